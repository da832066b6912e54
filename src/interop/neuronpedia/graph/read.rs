//! A graph from its file: ours, circuit-tracer's, or one made for Neuronpedia.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::super::panel::unpair;
use super::document::{Document, NodeEntry, Own};
use super::{ERROR, FEATURE, GraphState, TARGET, TOKEN};
use crate::analysis::graph::{
    Edge, Graph, GraphReport, GraphScores, GraphSettings, GraphSource, Node, NodeKind, Paths,
};
use crate::base::{Error, Result};

const WHAT: &str = "attribution graph";
/// A larger number is no layer.
const MOST_LAYERS: usize = 1 << 16;
const REMEDY: &str = "give a graph that `graph --out`, circuit-tracer or Neuronpedia wrote";

/// What a file holds.
#[derive(Debug, Clone, PartialEq)]
pub struct GraphFile {
    /// The graph. Of a file that others made, scores and sums of influence are those of the pruned graph, and what is
    /// not in the file is empty.
    pub graph: Graph,
    /// What is pinned, grouped and renamed in it.
    pub state: GraphState,
    /// Its name.
    pub slug: String,
    /// What features are looked up by.
    pub scan: String,
    /// What the file leaves open, for the user to know.
    pub notes: Vec<String>,
}

/// Reads the file `path`.
///
/// # Errors
/// `Io`, or `Malformed` when it is no such graph, with the node or link that is wrong.
pub fn read(path: &Path) -> Result<GraphFile> {
    let bytes = std::fs::read(path).map_err(Error::io("read the graph", path))?;
    let document: Document = serde_json::from_slice(&bytes).map_err(|e| {
        let expected = "JSON with metadata, nodes and links as circuit-tracer writes it";
        Error::malformed(WHAT, path, expected, e.to_string(), REMEDY)
    })?;
    let mut reader = Reader { path, notes: Vec::new() };
    let graph = reader.graph(&document)?;
    let ours = |ids: &mut Vec<String>| {
        let known: Vec<String> = ids.drain(..).filter_map(|id| our_id(&document, &graph, &id)).collect();
        *ids = known;
    };
    let mut state = GraphState::of_params(&document.q_params);
    ours(&mut state.pinned);
    state.supernodes.iter_mut().for_each(|group| ours(&mut group.members));
    state.supernodes.retain(|group| !group.members.is_empty());
    state.clicked = state.clicked.and_then(|id| our_id(&document, &graph, &id));
    let Document { metadata, .. } = document;
    Ok(GraphFile { graph, state, slug: metadata.slug, scan: metadata.scan, notes: reader.notes })
}

struct Reader<'a> {
    path: &'a Path,
    notes: Vec<String>,
}

impl Reader<'_> {
    fn wrong(&self, expected: impl Into<String>, found: impl Into<String>) -> Error {
        Error::malformed(WHAT, self.path, expected, found, REMEDY)
    }

    fn graph(&mut self, document: &Document) -> Result<Graph> {
        let Document { metadata, q_params: _, nodes, links: _, mechinterp } = document;
        let n_layers = mechinterp.as_ref().map_or_else(|| layers(nodes), |own| own.n_layers);
        if n_layers > MOST_LAYERS + 1 {
            return Err(self.wrong("the number of the model's layers", format!("{n_layers}")));
        }
        let positions = metadata.prompt_tokens.len();
        let read: Vec<Node> = nodes.iter().map(|entry| self.node(entry, positions)).collect::<Result<_>>()?;
        let edges = self.edges(document, &read)?;
        let token = |position: usize| {
            let at = |node: &&Node| node.position == position;
            read.iter()
                .filter(at)
                .find_map(|node| if let NodeKind::Token { token } = node.kind { Some(token) } else { None })
        };
        let tokens: Vec<Option<u32>> = (0..metadata.prompt_tokens.len()).map(token).collect();
        if mechinterp.is_none() && tokens.contains(&None) {
            self.notes.push("the ids of some tokens of the prompt are not in the file".into());
        }
        // Ids are all there or of no use.
        let tokens = tokens.into_iter().collect::<Option<Vec<u32>>>().unwrap_or_default();
        let mut graph = Graph {
            source: GraphSource {
                prompt: metadata.prompt.clone(),
                model: String::new(),
                scan: metadata.scan.clone(),
                cross_layer: false,
                settings: settings(document),
            },
            tokens,
            token_texts: metadata.prompt_tokens.clone(),
            n_layers,
            nodes: read,
            edges,
            scores: GraphScores::default(),
            report: GraphReport::default(),
            verification: None,
        };
        let Some(own) = mechinterp else {
            self.complete(&mut graph);
            return Ok(graph);
        };
        let Own { model, scan, cross_layer, settings, n_layers: _, tokens, scores, report, verification } = own;
        let lost = |v: &crate::analysis::graph::Verification| {
            v.nodes.iter().any(|node| node.node.max(node.target) >= graph.nodes.len())
        };
        let strange = !tokens.is_empty() && tokens.len() != metadata.prompt_tokens.len();
        if strange || verification.as_ref().is_some_and(lost) {
            return Err(self.wrong("tokens and verified nodes of this graph under \"mechinterp\"", "others"));
        }
        graph.source = GraphSource {
            prompt: metadata.prompt.clone(),
            model: model.clone(),
            scan: scan.clone(),
            cross_layer: *cross_layer,
            settings: *settings,
        };
        graph.tokens.clone_from(tokens);
        (graph.scores, graph.report, graph.verification) = (*scores, report.clone(), verification.clone());
        if let Some(found) = graph.verification.as_mut().filter(|found| found.edges > 0) {
            // An error that is no number is written as none.
            found.largest_edge_error = found.largest_edge_error.or(Some(f64::NAN));
        }
        Ok(graph)
    }

    /// Influences and scores of a graph whose file has none, by circuit-tracer's formulas on the edges that are there.
    fn complete(&mut self, graph: &mut Graph) {
        let (influences, scores) = {
            let paths = Paths::new(graph);
            let influences = paths.influences();
            let scores = scores(graph, &paths, &influences);
            (influences, scores)
        };
        graph.nodes.iter_mut().zip(influences).for_each(|(node, influence)| node.influence = influence);
        graph.scores = scores;
        self.notes
            .push("another program made this graph: scores and influences are those of the edges in the file".into());
    }

    fn node(&self, entry: &NodeEntry, positions: usize) -> Result<Node> {
        let id = &entry.node_id;
        if entry.ctx_idx >= positions {
            let found = format!("node {id} at position {}", entry.ctx_idx);
            return Err(self.wrong(format!("positions below {positions}, the tokens of the prompt"), found));
        }
        let own = entry.mechinterp.as_ref();
        let kind = match entry.feature_type.as_str() {
            FEATURE => {
                let layer = self.layer(entry)?;
                let label = (!entry.clerp.is_empty()).then(|| entry.clerp.clone());
                let activation = entry.activation.unwrap_or_default();
                NodeKind::Feature { layer, feature: self.feature(entry, layer)?, activation, label }
            }
            ERROR => NodeKind::Error { layer: self.layer(entry)? },
            TOKEN => {
                let token = id.split('_').nth(1).and_then(|token| token.parse().ok());
                let expected = "a token's id in the id of its node, as in E_464_3";
                NodeKind::Token { token: token.ok_or_else(|| self.wrong(expected, format!("node {id}")))? }
            }
            TARGET => {
                let target = own.and_then(|own| own.target.as_ref());
                let token = entry.feature.and_then(|token| u32::try_from(token).ok());
                let quoted = || entry.clerp.split("\" (p=").next().and_then(|start| start.split_once('"'));
                NodeKind::Target {
                    token: token
                        .ok_or_else(|| self.wrong("a token id of every logit", format!("none of node {id}")))?,
                    against: target.and_then(|target| target.against),
                    text: match target {
                        Some(target) => target.text.clone(),
                        None => quoted().map_or_else(|| entry.clerp.clone(), |(_, text)| text.to_owned()),
                    },
                    probability: entry.token_prob,
                    value: target.map_or(0.0, |target| target.value),
                }
            }
            other => {
                let expected = format!("nodes that are \"{FEATURE}\", \"{ERROR}\", \"{TOKEN}\" or \"{TARGET}\"");
                return Err(self.wrong(expected, format!("node {id} that is \"{other}\"")));
            }
        };
        let target = matches!(kind, NodeKind::Target { .. });
        Ok(Node {
            kind,
            position: entry.ctx_idx,
            influence: own.map_or(0.0, |own| own.influence),
            cumulative_influence: if target { None } else { entry.influence },
        })
    }

    fn layer(&self, entry: &NodeEntry) -> Result<usize> {
        let found =
            || self.wrong("a number as the layer of every node", format!("{} of node {}", entry.layer, entry.node_id));
        number(&entry.layer).ok_or_else(found)
    }

    /// The number of a feature: the part before the position in ids of all programs, else half of the pair.
    fn feature(&self, entry: &NodeEntry, layer: usize) -> Result<u32> {
        let mut parts = entry.node_id.rsplit('_');
        let position = parts.next().and_then(|part| part.parse::<usize>().ok());
        let named = parts.next().and_then(|part| part.parse::<u32>().ok());
        let first = entry.node_id.split('_').next().and_then(|part| part.parse::<usize>().ok());
        if let (Some(feature), true) = (named, position == Some(entry.ctx_idx) && first == Some(layer)) {
            return Ok(feature);
        }
        let paired = entry.feature.and_then(|z| u64::try_from(z).ok()).map(unpair);
        match paired {
            Some((of, feature)) if of == layer => Ok(feature),
            _ => Err(self.wrong(
                "the number of every feature, in its id or paired with its layer",
                format!("node {}", entry.node_id),
            )),
        }
    }

    /// Links by node. circuit-tracer gives the error of layer L the id of feature L of layer 0: which of the two a link
    /// comes from follows from the order of links, by target and then source, features before errors.
    fn edges(&mut self, document: &Document, nodes: &[Node]) -> Result<Vec<Edge>> {
        let mut by_id: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (i, entry) in document.nodes.iter().enumerate() {
            by_id.entry(&entry.node_id).or_default().push(i);
        }
        if let Some((id, _)) = by_id.iter().find(|(_, list)| list.len() > 2) {
            return Err(self.wrong("ids of one node each", format!("several nodes {id}")));
        }
        let is_error = |i: &usize| matches!(nodes[*i].kind, NodeKind::Error { .. });
        let find = |id: &str, wanted: bool| {
            let list = by_id.get(id).map(Vec::as_slice).unwrap_or_default();
            list.iter().copied().find(|i| list.len() == 1 || is_error(i) == wanted)
        };
        let (mut edges, mut unclear) = (Vec::with_capacity(document.links.len()), 0);
        for (i, link) in document.links.iter().enumerate() {
            let missing = |id: &str| self.wrong("links between nodes of the file", format!("a link to {id}"));
            // Errors have no inputs.
            let target = find(&link.target, false).ok_or_else(|| missing(&link.target))?;
            let twins = by_id.get(link.source.as_str()).is_some_and(|list| list.len() == 2);
            let from_error = twins && {
                let (error, feature) = (find(&link.source, true), find(&link.source, false));
                let before = nodes[target].layer();
                let impossible = error.and_then(|e| nodes[e].layer()).zip(before).is_some_and(|(e, t)| e >= t);
                let beside = |j: Option<usize>| document.links.get(j?).filter(|other| other.target == link.target);
                let place = |other: Option<&super::document::Link>| find(&other?.source, false);
                let (last, next) = (place(beside(i.checked_sub(1))), place(beside(Some(i + 1))));
                let after_feature = last.zip(feature).is_some_and(|(last, feature)| last >= feature);
                let before_feature = next
                    .is_some_and(|next| matches!(nodes[next].kind, NodeKind::Feature { .. }) && Some(next) > feature);
                unclear += usize::from(!impossible && !after_feature && !before_feature);
                !impossible && after_feature && !before_feature
            };
            let source = find(&link.source, from_error).ok_or_else(|| missing(&link.source))?;
            edges.push(Edge { source, target, weight: link.weight, measured: link.measured });
        }
        if unclear > 0 {
            self.notes.push(format!(
                "{unclear} links are taken to come from features of layer 0, although errors have the same ids"
            ));
        }
        Ok(edges)
    }
}

/// Our id of the node that the file calls `id`.
fn our_id(document: &Document, graph: &Graph, id: &str) -> Option<String> {
    let place = document.nodes.iter().position(|entry| entry.node_id == id)?;
    Some(graph.nodes.get(place)?.id(graph.n_layers))
}

fn number(layer: &Value) -> Option<usize> {
    let number = layer.as_u64().or_else(|| layer.as_str()?.parse().ok());
    number.and_then(|layer| usize::try_from(layer).ok()).filter(|&layer| layer <= MOST_LAYERS)
}

/// Layers of the model: circuit-tracer puts logits one layer after the last and a half, as does Neuronpedia but for
/// graphs with attention features, whose ids name the kind of node.
fn layers(nodes: &[NodeEntry]) -> usize {
    let all = |target: bool| nodes.iter().filter(move |entry| (entry.feature_type == TARGET) == target);
    let inside = all(false).filter_map(|entry| number(&entry.layer)).max().map_or(0, |last| last + 1);
    let named = nodes.iter().any(|entry| entry.node_id.contains("_error_"));
    let of_logits = all(true).filter_map(|entry| number(&entry.layer)).max();
    of_logits.map_or(0, |layer| if named { layer } else { layer.saturating_sub(1) }).max(inside)
}

fn settings(document: &Document) -> GraphSettings {
    let metadata = &document.metadata;
    let mut settings = GraphSettings::default();
    let given = |group: &Option<Value>, key: &str| group.as_ref().and_then(|g| g.get(key)).and_then(Value::as_f64);
    let generation = |key: &str| given(&metadata.generation_settings, key);
    let whole = |key: &str, to: &mut usize| {
        if let Some(value) = generation(key) {
            *to = value as usize;
        }
    };
    whole("max_n_logits", &mut settings.max_n_logits);
    whole("batch_size", &mut settings.batch_size);
    whole("max_feature_nodes", &mut settings.max_feature_nodes);
    let pruning = |key: &str| given(&metadata.pruning_settings, key);
    settings.desired_logit_prob = generation("desired_logit_prob").unwrap_or(settings.desired_logit_prob);
    let threshold = pruning("node_threshold").or(metadata.node_threshold);
    settings.node_threshold = threshold.unwrap_or(settings.node_threshold);
    settings.edge_threshold = pruning("edge_threshold").unwrap_or(settings.edge_threshold);
    settings
}

/// circuit-tracer's scores (`compute_graph_scores`) of the edges that are there.
fn scores(graph: &Graph, paths: &Paths<'_>, influences: &[f64]) -> GraphScores {
    let (mut tokens, mut errors, mut weighted, mut total) = (0.0, 0.0, 0.0, 0.0);
    let mut from_errors = vec![0.0; graph.nodes.len()];
    for (i, edge) in graph.edges.iter().enumerate() {
        if matches!(graph.nodes[edge.source].kind, NodeKind::Error { .. }) {
            from_errors[edge.target] += paths.share(i);
        }
    }
    for ((node, influence), errors_in) in graph.nodes.iter().zip(influences).zip(&from_errors) {
        let weight = match node.kind {
            NodeKind::Token { .. } => {
                tokens += influence;
                *influence
            }
            NodeKind::Error { .. } => {
                errors += influence;
                *influence
            }
            NodeKind::Target { probability, .. } => influence + probability,
            NodeKind::Feature { .. } => *influence,
        };
        weighted += (1.0 - errors_in) * weight;
        total += weight;
    }
    let share = |part: f64, of: f64| if of > 0.0 { part / of } else { 0.0 };
    GraphScores { replacement: share(tokens, tokens + errors), completeness: share(weighted, total) }
}
