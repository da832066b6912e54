//! Random transcoder sets and small graphs for tests.

use std::sync::Arc;

use crate::analysis::graph::{Edge, Graph, GraphReport, GraphScores, GraphSettings, GraphSource, Node, NodeKind};
use crate::dictionary::{
    Activation, Architecture, CrossLayer, Dictionary, DictionaryConfig, SetConfig, SetKind, TranscoderSet,
};
use crate::model::{Model, Site};
use crate::ops::gemm::tests::numbers;

/// Features of a layer.
pub(crate) const F: usize = 24;

fn named(n: usize, what: &str, layer: usize, scale: f32) -> Vec<f32> {
    numbers(n, &format!("{what} {layer}")).into_iter().map(|x| x * scale).collect()
}

fn config(model: &Model, kind: SetKind, input: Site, output: Site) -> SetConfig {
    SetConfig {
        kind,
        model_name: None,
        input,
        output,
        scan: "random".into(),
        n_layers: model.config().n_layers,
        d_model: model.config().d_model,
        d_transcoder: F,
    }
}

/// ReLU transcoders for `model`, with linear skips where `skip`.
pub(crate) fn per_layer(model: &Model, input: Site, output: Site, skip: bool) -> Arc<TranscoderSet> {
    let d = model.config().d_model;
    let layer = |layer: usize| {
        let config = DictionaryConfig::transcoder(Architecture::Relu, d, F, d);
        let (w_enc, w_dec) = (named(d * F, "w_enc", layer, 1.0), named(F * d, "w_dec", layer, 0.2));
        let biases = (named(F, "b_enc", layer, 0.2), named(d, "b_dec", layer, 0.2));
        let plain = Dictionary::new(config, w_enc, biases.0, w_dec, biases.1, Activation::relu()).unwrap();
        if skip { plain.with_skip(named(d * d, "w_skip", layer, 0.1)).unwrap() } else { plain }
    };
    let layers = (0..model.config().n_layers).map(layer).collect();
    Arc::new(TranscoderSet::from_layers(config(model, SetKind::PerLayer, input, output), layers).unwrap())
}

/// A ReLU cross-layer transcoder for `model`.
pub(crate) fn cross_layer(model: &Model, input: Site, output: Site) -> Arc<TranscoderSet> {
    let (d, n) = (model.config().d_model, model.config().n_layers);
    let layer = |layer: usize| CrossLayer {
        w_enc: named(d * F, "w_enc", layer, 1.0),
        b_enc: named(F, "b_enc", layer, 0.2),
        w_dec: (layer..n).map(|to| named(F * d, &format!("w_dec {to}"), layer, 0.2)).collect(),
        b_dec: named(d, "b_dec", layer, 0.2),
        activation: Activation::relu(),
        w_skip: None,
    };
    let layers = (0..n).map(layer).collect();
    Arc::new(TranscoderSet::from_cross_layer(config(model, SetKind::CrossLayer, input, output), layers).unwrap())
}

/// A node without influence.
pub(crate) fn node_at(kind: NodeKind, position: usize) -> Node {
    Node { kind, position, influence: 0.0, cumulative_influence: None }
}

/// A graph of nodes and edges `(source, target, weight)`, of two layers.
pub(crate) fn graph_of(nodes: Vec<Node>, edges: &[(usize, usize, f32)]) -> Graph {
    let edge = |&(source, target, weight): &(usize, usize, f32)| Edge { source, target, weight, measured: None };
    Graph {
        source: GraphSource {
            prompt: String::new(),
            model: String::new(),
            scan: String::new(),
            cross_layer: false,
            settings: GraphSettings::default(),
        },
        tokens: Vec::new(),
        token_texts: Vec::new(),
        n_layers: 2,
        nodes,
        edges: edges.iter().map(edge).collect(),
        scores: GraphScores::default(),
        report: GraphReport::default(),
        verification: None,
    }
}
