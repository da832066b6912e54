//! Attribution graphs: which features caused the next token, through which edges (Ameisen et al. 2025, "Circuit
//! Tracing: Revealing Computational Graphs in Language Models").

mod labels;
mod paths;
mod reading;
mod types;

pub use labels::LayerIndexes;
pub use paths::{Path, Paths};
pub use reading::{Trust, trust};
pub use types::{
    Edge, Graph, GraphReport, GraphScores, GraphSettings, GraphSource, Node, NodeKind, Verification, VerifiedNode,
};

#[cfg(test)]
#[path = "../../../tests/it/graph_sample.rs"]
pub(crate) mod sample;

#[cfg(test)]
pub(crate) mod tests {
    pub(crate) use super::sample::{edge, graph_of, node, sample};
    use super::{Node, NodeKind};

    pub(crate) fn token(position: usize, token: u32) -> Node {
        node(NodeKind::Token { token }, position)
    }

    pub(crate) fn feature(layer: usize, feature: u32, position: usize) -> Node {
        node(NodeKind::Feature { layer, feature, activation: 1.0, label: None }, position)
    }

    pub(crate) fn target(position: usize, token: u32, probability: f64) -> Node {
        node(NodeKind::Target { token, against: None, text: " x".into(), probability, value: 1.0 }, position)
    }
}
