//! Attribution graphs against circuit-tracer's, made by `tests/golden/graph/make_graphs.py`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use mechinterp::analysis::graph::{
    About, Attribution, Context, GraphSettings, Pruned, TargetChoice, attribute, node_influence, prune, scores, trace,
};
use mechinterp::base::progress::Silent;
use mechinterp::dictionary::TranscoderSet;
use mechinterp::interop::open_set;
use mechinterp::model::Model;

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/graph").join(path)
}

/// What circuit-tracer gave for one model, by name.
struct Reference(HashMap<String, Tensor>);

impl Reference {
    fn open(model: &str) -> Self {
        Self(candle_core::safetensors::load(golden(model).join("graphs.safetensors"), &Device::Cpu).unwrap())
    }

    fn values(&self, name: &str) -> Vec<f64> {
        let values = self.0.get(name).unwrap_or_else(|| panic!("{name}"));
        values.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    fn numbers(&self, name: &str) -> Vec<usize> {
        self.values(name).into_iter().map(|x| x as usize).collect()
    }
}

fn model(name: &str) -> Model {
    let dir = golden(name);
    Model::open(&dir.join("config.json"), &[dir.join("model.safetensors")], DType::F32, &Device::Cpu).unwrap()
}

const CHOICE: TargetChoice = TargetChoice::Likeliest { most: 3, probability: 0.8 };

fn settings(limited: bool) -> GraphSettings {
    let (batch_size, max_feature_nodes) = if limited { (5, 30) } else { (64, usize::MAX) };
    let base = GraphSettings { node_threshold: 0.9, edge_threshold: 0.95, ..GraphSettings::default() };
    GraphSettings { batch_size, max_feature_nodes, ..base }
}

fn graph(model: &Model, set: &TranscoderSet, tokens: &[u32], settings: &GraphSettings) -> (Context, Attribution) {
    let context = Context::new(model, set, tokens, settings.zero_positions).unwrap();
    let targets = CHOICE.resolve(model, &context).unwrap();
    let graph = attribute(model, set, &context, targets, settings, &Silent).unwrap();
    (context, graph)
}

/// The largest difference, relative to the largest value.
fn distance(ours: &[f64], theirs: &[f64]) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    let largest = theirs.iter().fold(0f64, |m, x| m.max(x.abs()));
    assert!(largest > 0.0);
    ours.iter().zip(theirs).fold(0f64, |m, (a, b)| m.max((a - b).abs())) / largest
}

fn compare(reference: &Reference, key: &str, active: usize, graph: &Attribution, pruned: &Pruned) {
    let of = |name: &str| reference.values(&format!("{key}.{name}"));
    assert_eq!(active, of("active")[0] as usize, "{key}: active features");
    let ours: Vec<usize> = graph.features.iter().flat_map(|f| [f.layer, f.position, f.feature as usize]).collect();
    assert_eq!(ours, reference.numbers(&format!("{key}.selected")), "{key}: selected features");
    let activations: Vec<f64> = graph.features.iter().map(|f| f64::from(f.activation)).collect();
    assert!(distance(&activations, &of("activations")) < 1e-5, "{key}: activations");
    let tokens: Vec<usize> = graph.targets.iter().map(|target| target.token as usize).collect();
    assert_eq!(tokens, reference.numbers(&format!("{key}.targets")), "{key}: targets");
    let probabilities: Vec<f64> = graph.targets.iter().map(|target| target.probability).collect();
    assert!(distance(&probabilities, &of("probabilities")) < 1e-5, "{key}: probabilities");

    let (n, sources) = (graph.nodes(), graph.target_node(0));
    let dense = graph.dense();
    let rows: Vec<usize> = (0..graph.features.len()).chain(sources..n).collect();
    let theirs = of("adjacency");
    let mut edges = 0;
    for (&row, theirs) in rows.iter().zip(theirs.chunks_exact(sources)) {
        let largest = theirs.iter().fold(0f64, |m, x| m.max(x.abs()));
        for (column, &their) in theirs.iter().enumerate() {
            let our = f64::from(dense[row * n + column]);
            // A sum that all but cancels is known to the precision of its parts.
            let near = (our - their).abs() <= 1e-3 * their.abs() + 1e-5 * largest;
            assert!(near, "{key}: {column} → {row} is {our}, there {their}");
            edges += usize::from(their != 0.0);
        }
    }
    assert_eq!(edges, graph.edges(), "{key}: edges that are not zero");
    assert!(edges > 400, "{key}: {edges}");

    assert!(distance(&node_influence(graph), &of("influence")) < 1e-4, "{key}: influence");
    assert!(
        distance(&pruned.cumulative[..sources], &of("cumulative")[..sources]) < 1e-4,
        "{key}: cumulative influence"
    );
    let nodes: Vec<usize> = pruned.nodes.iter().map(|kept| usize::from(*kept)).collect();
    assert_eq!(nodes, reference.numbers(&format!("{key}.nodes")), "{key}: kept nodes");
    let mut kept = vec![0; rows.len() * sources];
    for edge in &pruned.edges {
        let row = rows.iter().position(|&row| row == edge.target).unwrap();
        kept[row * sources + edge.source] = 1;
    }
    assert!(kept.contains(&1) && nodes.contains(&0));
    assert_eq!(kept, reference.numbers(&format!("{key}.edges")), "{key}: kept edges");
    let found = scores(graph);
    assert!(distance(&[found.replacement, found.completeness], &of("scores")) < 1e-4, "{key}: {found:?}");
    assert!(graph.largest_row_error < 1e-4, "{key}: {}", graph.largest_row_error);
}

fn compare_all(name: &str) {
    let (reference, model) = (Reference::open(name), model(name));
    let tokens: Vec<u32> = reference.numbers("tokens").into_iter().map(|t| t as u32).collect();
    for (set, limited) in
        [("jumprelu", false), ("jumprelu", true), ("skip", false), ("cross-layer", false), ("cross-layer", true)]
    {
        let transcoders = open_set(&golden("sets").join(set)).unwrap();
        let settings = settings(limited);
        let (context, graph) = graph(&model, &transcoders, &tokens, &settings);
        let key = if limited { format!("{set}-limited") } else { set.to_owned() };
        compare(&reference, &key, context.active_features(), &graph, &prune(&graph, &settings));
    }
}

#[test]
fn graphs_of_a_llama_are_those_of_circuit_tracer() {
    compare_all("llama");
}

#[test]
fn graphs_of_a_gemma_2_are_those_of_circuit_tracer() {
    compare_all("gemma2");
}

#[test]
fn a_traced_graph_has_every_kept_node_once_and_its_edges_between_them() {
    let (model, set) = (model("llama"), open_set(&golden("sets/jumprelu")).unwrap());
    let about = About { prompt: "p".into(), model: "m".into(), text: &|token| format!("<{token}>") };
    let tokens = [1, 9, 21, 17, 8, 30];
    let traced = trace(&model, &set, &tokens, &CHOICE, &settings(false), &about, &Silent).unwrap();
    let graph = traced.graph;
    let ids: std::collections::BTreeSet<String> = graph.nodes.iter().map(|node| node.id(graph.n_layers)).collect();
    assert_eq!(ids.len(), graph.nodes.len());
    assert!(graph.edges.iter().all(|edge| edge.source.max(edge.target) < graph.nodes.len()));
    assert_eq!((graph.token_texts[1].as_str(), graph.n_layers), ("<9>", 4));
    let Attribution { largest_row_error, .. } = traced.attribution;
    assert_eq!(graph.report.largest_row_error, largest_row_error);
    assert!(graph.report.unpruned.1 > graph.edges.len() && graph.scores.replacement > 0.0);
}
