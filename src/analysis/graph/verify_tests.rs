use super::*;
use crate::analysis::graph::test_sets::{cross_layer, graph_of, node_at, per_layer};
use crate::analysis::graph::{About, Context, Edge, GraphSettings, Node, TargetChoice, attribute, build, prune};
use crate::analysis::tests::open;
use crate::base::progress::Silent;

const PROMPT: [u32; 5] = [1, 9, 21, 17, 8];

/// Every active feature, error and token of a prompt and its most likely next tokens, with an edge of weight zero from
/// each to all that come after it.
fn complete(model: &Model, set: &Arc<TranscoderSet>) -> Graph {
    let run = FrozenRun::new(model, set, &PROMPT, 1).unwrap();
    let node = node_at;
    let mut nodes = Vec::new();
    for (position, &token) in PROMPT.iter().enumerate() {
        nodes.push(node(NodeKind::Token { token }, position));
    }
    for (layer, codes) in run.codes.iter().enumerate() {
        for position in 1..PROMPT.len() {
            nodes.push(node(NodeKind::Error { layer }, position));
            let (features, values) = codes.row(position);
            for (&feature, &activation) in features.iter().zip(values) {
                nodes.push(node(NodeKind::Feature { layer, feature, activation, label: None }, position));
            }
        }
    }
    for (token, against) in [(7, None), (11, Some(3))] {
        let kind = NodeKind::Target { token, against, text: String::new(), probability: 0.5, value: 0.0 };
        nodes.push(node(kind, PROMPT.len() - 1));
    }
    let rank = |node: &Node| match node.kind {
        NodeKind::Target { .. } => usize::MAX,
        _ => node.layer().map_or(0, |layer| layer + 1),
    };
    let mut edges = Vec::new();
    for (target, to) in nodes.iter().enumerate() {
        let takes = matches!(to.kind, NodeKind::Feature { .. } | NodeKind::Target { .. });
        for (source, from) in nodes.iter().enumerate().filter(|(_, from)| takes && from.position <= to.position) {
            if rank(from) < rank(to) {
                edges.push(Edge { source, target, weight: 0.0, measured: None });
            }
        }
    }
    let mut graph = graph_of(nodes, &[]);
    (graph.tokens, graph.edges, graph.n_layers) = (PROMPT.to_vec(), edges, model.config().n_layers);
    graph
}

/// The complete graph, its edges measured.
fn measured(model: &Model, set: &Arc<TranscoderSet>) -> Graph {
    let mut graph = complete(model, set);
    let settings = VerifySettings { nodes: usize::MAX, batch_size: 16 };
    verify(model, set, &mut graph, None, settings, &Silent).unwrap();
    for edge in &mut graph.edges {
        edge.weight = edge.measured.unwrap();
    }
    graph
}

#[test]
fn total_effects_of_measured_edges_are_those_of_the_local_replacement_model() {
    for (name, input, output, skip) in [
        ("llama", Site::MlpHookIn, Site::MlpHookOut, false),
        ("gpt2", Site::ResidMid, Site::MlpOut, true),
        ("gemma2", Site::Ln2Normalized, Site::MlpOut, false),
        ("gpt_neox", Site::MlpHookIn, Site::MlpOut, false),
        ("phi", Site::MlpHookIn, Site::MlpHookOut, true),
        ("olmo2", Site::ResidMid, Site::MlpOut, false),
        ("opt-350m", Site::MlpHookIn, Site::MlpHookOut, false),
        ("qwen2", Site::ResidMid, Site::MlpHookOut, false),
    ] {
        let model = open(name);
        for set in [per_layer(&model, input, output, skip), cross_layer(&model, input, output)] {
            let mut graph = measured(&model, &set);
            let settings = VerifySettings { nodes: usize::MAX, batch_size: 16 };
            verify(&model, &set, &mut graph, None, settings, &Silent).unwrap();
            let found = graph.verification.unwrap();
            let largest = found.nodes.iter().fold(0f64, |m, node| m.max(node.frozen.abs()));
            let (mut compared, mut worst, mut moved) = (0, 0f64, 0f64);
            for node in found.nodes.iter().filter(|node| node.switched == 0) {
                worst = worst.max((node.predicted - node.frozen).abs() / largest);
                moved = moved.max((node.predicted - node.free).abs() / largest);
                compared += 1;
            }
            assert!(compared > 20 && worst < 1e-3, "{name}: {compared} effects, off by {worst:.2e}");
            assert!(found.largest_edge_error.unwrap() < 1e-6 && found.edges == graph.edges.len());
            assert!(found.frozen_correlation.unwrap() > 0.3, "{name}: {:?}", found.frozen_correlation);
            assert!(moved > 1e-3, "{name}: the free model differs");
        }
    }
}

/// A prompt traced, with everything kept.
fn traced(model: &Model, set: &Arc<TranscoderSet>, tokens: &[u32], choice: &TargetChoice) -> (Graph, Attribution) {
    let settings = GraphSettings { node_threshold: 1.0, edge_threshold: 1.0, ..GraphSettings::default() };
    let context = Context::new(model, set, tokens, settings.zero_positions).unwrap();
    let targets = choice.resolve(model, &context).unwrap();
    let whole = attribute(model, set, &context, targets, &settings, &Silent).unwrap();
    let about = About { prompt: String::new(), model: String::new(), text: &|token| token.to_string() };
    let pruned = prune(&whole, &settings);
    (build(set, &context, &whole, &pruned, &settings, &about), whole)
}

#[test]
fn edges_are_what_taking_their_sources_away_changes_in_every_family() {
    let all = VerifySettings { nodes: usize::MAX, batch_size: 64 };
    let (tokens, contrast) = ([1, 9, 21, 17, 8, 30, 12], TargetChoice::Contrast(7, 11));
    let likeliest = TargetChoice::Likeliest { most: 3, probability: 0.9 };
    for (name, input, output, skip) in [
        ("llama", Site::MlpHookIn, Site::MlpHookOut, false),
        ("gpt2", Site::ResidMid, Site::MlpOut, true),
        ("gpt_neo", Site::Ln2Normalized, Site::MlpOut, false),
        ("gemma2", Site::Ln2Normalized, Site::MlpOut, false),
        ("gemma2", Site::MlpHookIn, Site::MlpHookOut, true),
        ("gemma3_text", Site::ResidMid, Site::MlpOut, false),
        ("gpt_neox", Site::MlpHookIn, Site::MlpOut, true),
        ("phi", Site::MlpHookIn, Site::MlpHookOut, false),
        ("falcon", Site::MlpHookIn, Site::MlpOut, false),
        ("falcon-alibi", Site::MlpHookIn, Site::MlpOut, false),
        ("falcon-one-norm", Site::MlpHookIn, Site::MlpOut, false),
        ("olmo2", Site::ResidMid, Site::MlpOut, false),
        ("opt", Site::MlpHookIn, Site::MlpHookOut, false),
        ("opt-350m", Site::MlpHookIn, Site::MlpHookOut, false),
        ("granite", Site::MlpHookIn, Site::MlpOut, false),
        ("qwen2", Site::ResidMid, Site::MlpHookOut, false),
        ("qwen3", Site::MlpHookIn, Site::MlpHookOut, true),
        ("smollm3", Site::MlpHookIn, Site::MlpHookOut, false),
        ("stablelm-parallel", Site::MlpHookIn, Site::MlpOut, false),
    ] {
        let model = open(name);
        for (set, choice) in
            [(per_layer(&model, input, output, skip), &contrast), (cross_layer(&model, input, output), &likeliest)]
        {
            let (mut graph, whole) = traced(&model, &set, &tokens, choice);
            verify(&model, &set, &mut graph, Some(&whole), all, &Silent).unwrap();
            let by_graph: Vec<Vec<f64>> = (0..graph.nodes.len()).map(|source| total_effects(&graph, source)).collect();
            let found = graph.verification.unwrap();
            let error = found.largest_edge_error.unwrap();
            assert!(
                error < 1e-3 && found.edges == graph.edges.len(),
                "{name}: {} edges, off by {error:.2e}",
                found.edges
            );
            let largest = graph.edges.iter().fold(0f32, |m, edge| m.max(edge.weight.abs()));
            assert!(found.edges > 100 && largest > 1e-2, "{name}: {} edges of at most {largest}", found.edges);
            let scale = found.nodes.iter().fold(0f64, |m, node| m.max(node.predicted.abs()));
            for node in &found.nodes {
                let off = (node.predicted - by_graph[node.node][node.target]).abs() / scale;
                assert!(off < 1e-3, "{name}: pruned and unpruned graph with nothing pruned, {off:.2e}");
                let off = (node.predicted - node.frozen).abs() / scale;
                assert!(node.switched > 0 || off < 1e-3, "{name}: local replacement model, {off:.2e}");
            }
        }
    }
}

#[test]
fn effects_on_logits_are_probabilities_turned() {
    let model = open("llama");
    let set = per_layer(&model, Site::MlpHookIn, Site::MlpHookOut, false);
    let run = FrozenRun::new(&model, &set, &PROMPT, 1).unwrap();
    let (layer, position) = (0, PROMPT.len() - 1);
    let (features, _) = run.codes[layer].row(position);
    let change = crate::analysis::graph::FeatureChange {
        layer,
        feature: features[0],
        positions: crate::model::Positions::List(vec![position]),
        op: crate::analysis::FeatureOp::Ablate,
    };
    let changed = run.intervene(&[change], &crate::analysis::graph::Hold::Nothing).unwrap();
    let vocabulary = model.config().vocab_size;
    let logits = changed.logits().unwrap();
    let last = &logits[position * vocabulary..];
    let clean = rows(run.clean.logits().unwrap()).unwrap();
    let effect = f64::from(clean[position * vocabulary + 7] - last[7]);
    let mean = |row: &[f32]| row.iter().map(|x| f64::from(*x)).sum::<f64>() / vocabulary as f64;
    let centred = effect - (mean(&clean[position * vocabulary..]) - mean(last));
    let graph = measured(&model, &set);
    let verification = graph.verification.unwrap();
    let index = graph.nodes.iter().position(|node| {
        node.position == position
            && matches!(node.kind, NodeKind::Feature { layer: 0, feature, .. } if feature == features[0])
    });
    let target = graph.nodes.len() - 2;
    let found = verification.nodes.iter().find(|v| Some(v.node) == index && v.target == target).unwrap();
    assert!((found.free - centred).abs() < 1e-4, "{} and {centred}", found.free);
    assert!(centred.abs() > 1e-3);
}

#[test]
fn a_graph_of_another_set_is_refused() {
    let model = open("llama");
    let set = per_layer(&model, Site::MlpHookIn, Site::MlpHookOut, false);
    let mut graph = complete(&model, &set);
    let other = per_layer(&model, Site::ResidMid, Site::MlpHookOut, false);
    let error = verify(&model, &other, &mut graph, None, VerifySettings { nodes: 999, ..Default::default() }, &Silent);
    let error = error.unwrap_err().to_string();
    assert!(error.contains("activation"), "{error}");
}

#[test]
fn effects_multiply_along_paths_and_add_up_over_them() {
    let feature = |layer, activation| node_at(NodeKind::Feature { layer, feature: 0, activation, label: None }, 1);
    let target = NodeKind::Target { token: 1, against: None, text: String::new(), probability: 1.0, value: 0.0 };
    let nodes = vec![node_at(NodeKind::Token { token: 4 }, 1), feature(0, 2.0), feature(1, 4.0), node_at(target, 1)];
    let edges = [(0, 1, 1.0), (1, 2, -3.0), (0, 2, 0.5), (2, 3, 8.0), (1, 3, 1.0), (0, 3, 0.25)];
    let graph = graph_of(nodes, &edges);
    // Half of feature 1 goes, and with it −1.5 of feature 2, which loses 0.5 directly: −1 of 4.
    let lost = total_effects(&graph, 0);
    assert_eq!(lost, [0.0, 1.0, -1.0, 8.0 * -0.25 + 0.5 + 0.25]);
    assert_eq!(total_effects(&graph, 1), [0.0, 0.0, -3.0, 8.0 * -0.75 + 1.0]);
}

#[test]
fn correlation_is_one_for_lines_and_absent_for_constants() {
    let line: Vec<(f64, f64)> = (0..5).map(|i| (f64::from(i), 3.0 - 2.0 * f64::from(i))).collect();
    assert!((pearson(&line).unwrap() + 1.0).abs() < 1e-12);
    assert_eq!(pearson(&[(1.0, 2.0); 5]), None);
    assert_eq!(pearson(&line[..2]), None);
}
