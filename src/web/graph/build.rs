//! From a graph to the blocks of its page.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::analysis::feature::FeatureRecord;
use crate::analysis::feature::record::TokenRecord;
use crate::analysis::graph::{Graph, LayerIndexes, NodeKind, Paths, trust};
use crate::base::{Error, Result};
use crate::interop::neuronpedia::graph::{Publication, to_json};
use crate::interop::neuronpedia::panel::pair;
use crate::web::block::deflated;
use crate::web::text::{short, thousands};

/// Features of one block.
const CHUNK: usize = 32;
/// Examples of a feature.
const EXAMPLES: usize = 12;
/// Targets to which a path is shown, the likeliest.
const PATHS: usize = 5;
/// Tokens that a feature promotes or suppresses.
const TOKENS: usize = 8;

/// A page's data, deflated.
#[derive(Debug)]
pub(super) struct Blocks {
    pub(super) title: String,
    pub(super) data: Vec<(String, Vec<u8>)>,
}

/// What the graph's own file does not hold.
#[derive(Serialize)]
struct Extra<'a> {
    title: &'a str,
    about: String,
    trust: &'static str,
    words: String,
    paths: Vec<PathEntry>,
    /// Which block holds which feature, by the number that pairs layer and feature.
    features: BTreeMap<u64, usize>,
}

#[derive(Serialize)]
struct PathEntry {
    /// Whether the strongest path, which is another one, has no features on it.
    through_features: bool,
    nodes: Vec<usize>,
    weights: Vec<f32>,
    share: f64,
}

/// What of a feature the page shows.
#[derive(Serialize)]
struct Feature {
    density: f64,
    max: f32,
    promoted: Option<Vec<(String, f32)>>,
    suppressed: Option<Vec<(String, f32)>>,
    examples: Vec<Example>,
}

#[derive(Serialize)]
struct Example {
    value: f32,
    peak: usize,
    tokens: Vec<String>,
    values: Vec<f32>,
}

pub(super) fn build(publication: &Publication<'_>, indexes: &LayerIndexes) -> Result<Blocks> {
    let graph = publication.graph;
    let mut data = vec![("graph".to_owned(), pack(&to_json(publication)?)?)];
    let mut numbers: Vec<(usize, u32)> = graph
        .nodes
        .iter()
        .filter_map(|node| match node.kind {
            NodeKind::Feature { layer, feature, .. } if indexes.of(layer).is_some() => Some((layer, feature)),
            _ => None,
        })
        .collect();
    numbers.sort_unstable();
    numbers.dedup();
    let (mut features, mut blocks) = (BTreeMap::new(), Vec::new());
    for (number, chunk) in numbers.chunks(CHUNK).enumerate() {
        let mut records = BTreeMap::new();
        for &(layer, feature) in chunk {
            if let Some(record) = indexes.record(layer, feature)? {
                features.insert(pair(layer, feature), number);
                records.insert(pair(layer, feature), Feature::new(record));
            }
        }
        blocks.push((format!("f{number}"), pack(&json(&records)?)?));
    }
    let (trust, words) = trust(graph);
    let title = format!("{} · attribution graph", graph.source.prompt);
    let extra = Extra { title: &title, about: about(graph), trust: trust.name(), words, paths: paths(graph), features };
    data.push(("extra".to_owned(), pack(&json(&extra)?)?));
    data.append(&mut blocks);
    Ok(Blocks { title, data })
}

/// The strongest path to each of the likeliest targets, through features where there is one.
fn paths(graph: &Graph) -> Vec<PathEntry> {
    let all = Paths::new(graph);
    let entry = |target| {
        let any = all.strongest(target, false)?;
        let featured = all.strongest(target, true).filter(|path| path.nodes != any.nodes);
        let through_features = featured.is_some();
        let path = featured.unwrap_or(any);
        Some(PathEntry { through_features, nodes: path.nodes, weights: path.weights, share: path.share })
    };
    graph.ranked_targets().into_iter().take(PATHS).filter_map(entry).collect()
}

fn about(graph: &Graph) -> String {
    let source = &graph.source;
    // Nothing in a graph tells transcoders of single layers from autoencoders of the stream.
    let kind = if source.cross_layer { "cross-layer transcoders" } else { "dictionaries" };
    let model = if source.model.is_empty() { "a model" } else { short(&source.model) };
    format!(
        "Attribution graph of {model}, {} layers, {kind} {}, {} nodes and {} edges",
        graph.n_layers,
        short(&source.scan),
        thousands(graph.nodes.len() as u64),
        thousands(graph.edges.len() as u64)
    )
}

impl Feature {
    fn new(record: FeatureRecord) -> Self {
        let tokens = |list: Option<Vec<TokenRecord>>| {
            list.map(|list| list.into_iter().take(TOKENS).map(|t| (t.text, rounded(t.effect.logit))).collect())
        };
        let examples = record.examples.into_iter().take(EXAMPLES).map(|example| Example {
            value: rounded(example.value),
            peak: example.peak,
            tokens: example.tokens,
            values: example.values.into_iter().map(rounded).collect(),
        });
        Self {
            density: record.summary.density,
            max: rounded(record.summary.max),
            promoted: tokens(record.promoted),
            suppressed: tokens(record.suppressed),
            examples: examples.collect(),
        }
    }
}

/// `x` to four significant digits: shades and figures show no more.
fn rounded(x: f32) -> f32 {
    if x == 0.0 || !x.is_finite() {
        return 0.0;
    }
    let scale = 10f64.powi(3 - f64::from(x.abs()).log10().floor() as i32);
    ((f64::from(x) * scale).round() / scale) as f32
}

fn json(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|e| Error::io("serialise JSON", "-")(e.into()))
}

fn pack(data: &[u8]) -> Result<Vec<u8>> {
    deflated(data).map_err(Error::io("compress the page", "-"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::graph::tests::{edge, feature, graph_of, target, token};

    #[test]
    fn paths_say_whether_a_stronger_one_has_no_features() {
        let nodes = vec![token(0, 1), feature(0, 3, 0), target(0, 9, 0.5)];
        let way = [edge(0, 1, 2.0), edge(1, 2, 1.0)];
        let beside = graph_of(nodes.clone(), [way.as_slice(), &[edge(0, 2, 9.0)]].concat());
        let alone = graph_of(nodes, way.to_vec());
        for (graph, expected) in [(beside, true), (alone, false)] {
            let [path] = &paths(&graph)[..] else { panic!("one target") };
            assert_eq!((path.through_features, path.nodes.as_slice()), (expected, &[0, 1, 2][..]));
        }
    }

    #[test]
    fn figures_are_short() {
        assert_eq!([0.0, 1.234_567, -0.000_123_456, 98_765.0].map(rounded), [0.0, 1.235, -0.000_123_5, 98_770.0]);
        assert!(rounded(f32::NAN) == 0.0 && rounded(1e-40) >= 0.0);
    }
}
