//! A graph to its files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Value, json};

use super::super::panel::{self, pair};
use super::super::{Names, Source, identifier};
use super::document::{Document, Link, Metadata, NodeEntry, Own, OwnNode, OwnTarget};
use super::{ERROR, FEATURE, GraphState, TARGET, TOKEN};
use crate::analysis::graph::{Graph, LayerIndexes, Node, NodeKind, trust};
use crate::base::artifact::{read_json, write_atomic, write_json};
use crate::base::{Error, Progress, Result};

/// The list of graphs of a directory.
/// The list of the graphs of a directory.
pub const METADATA_FILE: &str = "graph-metadata.json";
/// `feature` of errors.
const NO_FEATURE: i64 = -1;

/// A graph with what belongs into its file.
#[derive(Debug, Clone, Copy)]
pub struct Publication<'a> {
    /// The graph.
    pub graph: &'a Graph,
    /// What is pinned, grouped and renamed.
    pub state: &'a GraphState,
    /// Its name: that of the file, and unique among the graphs of a directory.
    pub slug: &'a str,
    /// What others look features up by: the place that [`write_features`] gives, Neuronpedia's id of a model, or where
    /// absent the transcoder set.
    pub scan: Option<&'a str>,
    /// When it was made, in milliseconds since 1970.
    pub created_ms: Option<u64>,
}

/// The file's contents.
///
/// # Errors
/// `Unsupported` when two nodes have the same id or an edge leads to none.
pub fn to_json(publication: &Publication<'_>) -> Result<Vec<u8>> {
    let document = document(publication)?;
    let mut bytes = serde_json::to_vec(&document).map_err(|e| Error::io("serialise JSON", "-")(e.into()))?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// Writes the graph into the file `path`, and its entry into `graph-metadata.json` beside it.
///
/// # Errors
/// As [`to_json`]; `Io` when a file cannot be written, `Malformed` when `graph-metadata.json` is something else.
pub fn write(path: &Path, publication: &Publication<'_>) -> Result<()> {
    let bytes = to_json(publication)?;
    let list = path.with_file_name(METADATA_FILE);
    let mut all = if list.exists() { read_json::<Value>("list of graphs", &list)? } else { json!({"graphs": []}) };
    let Some(graphs) = all.get_mut("graphs").and_then(Value::as_array_mut) else {
        let remedy = "write the graph into another directory, or remove the file";
        return Err(Error::malformed("list of graphs", &list, "an object with a list \"graphs\"", "another", remedy));
    };
    graphs.retain(|graph| graph.get("slug").and_then(Value::as_str) != Some(publication.slug));
    graphs.push(json!(metadata(publication)));
    write_atomic(path, &bytes)?;
    write_json(&list, &all)
}

fn document(publication: &Publication<'_>) -> Result<Document> {
    let Graph { source, tokens, token_texts: _, n_layers, nodes, edges, scores, report, verification } =
        publication.graph;
    let ids: Vec<String> = nodes.iter().map(|node| node.id(*n_layers)).collect();
    let mut seen = BTreeSet::new();
    if let Some(twice) = ids.iter().find(|id| !seen.insert(id.as_str())) {
        return Err(broken(format!("two nodes are called {twice}")));
    }
    let id =
        |i: usize| ids.get(i).cloned().ok_or_else(|| broken(format!("an edge leads to node {i} of {}", ids.len())));
    let link = |edge: &crate::analysis::graph::Edge| {
        let crate::analysis::graph::Edge { source, target, weight, measured } = *edge;
        Ok(Link { source: id(source)?, target: id(target)?, weight, measured })
    };
    let first_target = nodes.iter().position(|node| matches!(node.kind, NodeKind::Target { .. }));
    let own = Own {
        model: source.model.clone(),
        scan: source.scan.clone(),
        cross_layer: source.cross_layer,
        settings: source.settings,
        n_layers: *n_layers,
        tokens: tokens.clone(),
        scores: *scores,
        report: report.clone(),
        verification: verification.clone(),
    };
    Ok(Document {
        metadata: metadata(publication),
        q_params: publication.state.to_params(),
        nodes: nodes
            .iter()
            .zip(&ids)
            .enumerate()
            .map(|(i, (node, id))| entry(node, id.clone(), *n_layers, first_target == Some(i)))
            .collect(),
        links: edges.iter().map(link).collect::<Result<_>>()?,
        mechinterp: Some(own),
    })
}

fn broken(why: String) -> Error {
    Error::Unsupported {
        what: "writing this graph".into(),
        why,
        remedy: "make the graph again; this is a defect of whatever made it".into(),
    }
}

fn metadata(publication: &Publication<'_>) -> Metadata {
    let Publication { graph, state: _, slug, scan, created_ms } = *publication;
    let settings = graph.source.settings;
    let mut info = json!({
        "description": trust(graph).1,
        "generator": {"name": "mechinterp", "version": env!("CARGO_PKG_VERSION")},
    });
    if let Some(time) = created_ms {
        info["create_time_ms"] = json!(time);
    }
    Metadata {
        slug: slug.into(),
        scan: scan.unwrap_or(&graph.source.scan).into(),
        transcoder_list: Vec::new(),
        prompt_tokens: graph.token_texts.clone(),
        prompt: graph.source.prompt.clone(),
        node_threshold: Some(settings.node_threshold),
        schema_version: Some(1),
        info: Some(info),
        generation_settings: Some(json!({
            "max_n_logits": settings.max_n_logits,
            "desired_logit_prob": settings.desired_logit_prob,
            "batch_size": settings.batch_size,
            "max_feature_nodes": settings.max_feature_nodes,
        })),
        pruning_settings: Some(json!({
            "node_threshold": settings.node_threshold,
            "edge_threshold": settings.edge_threshold,
        })),
    }
}

fn entry(node: &Node, node_id: String, n_layers: usize, is_target_logit: bool) -> NodeEntry {
    let position = node.position;
    let mut entry = NodeEntry {
        node_id,
        feature: Some(NO_FEATURE),
        layer: Value::Null,
        ctx_idx: position,
        feature_type: String::new(),
        token_prob: 0.0,
        is_target_logit,
        run_idx: 0,
        reverse_ctx_idx: 0,
        js_node_id: String::new(),
        clerp: String::new(),
        influence: node.cumulative_influence,
        activation: None,
        mechinterp: Some(OwnNode { influence: node.influence, target: None }),
    };
    match &node.kind {
        NodeKind::Feature { layer, feature, activation, label } => {
            entry.feature = Some(pair(*layer, *feature) as i64);
            entry.layer = json!(layer.to_string());
            entry.feature_type = FEATURE.into();
            entry.js_node_id = format!("{layer}_{feature}-0");
            entry.clerp = label.clone().unwrap_or_default();
            entry.activation = Some(*activation);
        }
        NodeKind::Error { layer } => {
            entry.layer = json!(layer.to_string());
            entry.feature_type = ERROR.into();
            entry.js_node_id = format!("{layer}_{position}-0");
        }
        NodeKind::Token { token } => {
            entry.feature = Some(position as i64);
            entry.layer = json!("E");
            entry.feature_type = TOKEN.into();
            entry.js_node_id = format!("E_{token}-{position}");
        }
        NodeKind::Target { token, against, text, probability, value } => {
            entry.feature = Some(i64::from(*token));
            entry.layer = json!((n_layers + 1).to_string());
            entry.feature_type = TARGET.into();
            entry.js_node_id = format!("L_{token}-{position}");
            entry.token_prob = *probability;
            entry.clerp = format!("Output \"{text}\" (p={probability:.3})");
            let target = OwnTarget { text: text.clone(), against: *against, value: *value };
            entry.mechinterp = Some(OwnNode { influence: node.influence, target: Some(target) });
        }
    }
    entry
}

/// Writes the features of `graph` whose layer has an index into `features/SET` under `dir`, and gives the `scan` by
/// which circuit-tracer's page finds them, or nothing where there is no index.
///
/// # Errors
/// `Io` when a file cannot be written, `Interrupted`, and whatever reading an index gives.
pub fn write_features(
    dir: &Path,
    graph: &Graph,
    indexes: &LayerIndexes,
    progress: &dyn Progress,
) -> Result<Option<String>> {
    let mut by_layer: BTreeMap<usize, BTreeSet<u32>> = BTreeMap::new();
    for node in &graph.nodes {
        if let NodeKind::Feature { layer, feature, .. } = node.kind {
            by_layer.entry(layer).or_default().insert(feature);
        }
    }
    let last = graph.source.scan.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    let set = match identifier(last) {
        empty if empty.is_empty() => "set".to_owned(),
        set => set,
    };
    let mut written = false;
    for (layer, features) in by_layer {
        let Some(index) = indexes.of(layer) else { continue };
        let known = |f: &u32| (*f as usize) < index.summaries().len();
        let features: Vec<u32> = features.into_iter().filter(known).collect();
        let names = Names::of(&index.header, Some(&set))?;
        let source = Source {
            header: &index.header,
            features: &features,
            record: &|feature| index.record(feature),
            dictionary: None,
            names: &names,
            progress,
        };
        panel::write(source, dir)?;
        written = true;
    }
    Ok(written.then(|| format!("./data/features/{set}")))
}
