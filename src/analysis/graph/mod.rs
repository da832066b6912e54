//! Attribution graphs: which features caused the next token, through which edges (Ameisen et al. 2025, "Circuit
//! Tracing: Revealing Computational Graphs in Language Models").
//!
//! ```text
//! Context::new   one run of the prompt: patterns, divisors, active features, what transcoders leave over
//! attribute      rows of direct effects, by sweeps from the top of the model to its embeddings
//! prune, scores  the nodes and edges that matter; how much of the answer features account for
//! build          the Graph that writers and pages start from
//! FrozenRun      the prompt again with features changed, and with as much of the rest held as is asked for
//! verify         what the graph predicts against what happens
//! ```

mod ablate;
mod attribute;
mod attribution;
mod backward;
mod build;
mod columns;
mod composition;
mod context;
mod dictionaries;
mod effects;
mod frozen_run;
mod gradient;
mod held;
mod influence;
mod intervene;
mod labels;
mod live;
mod memory;
mod paths;
mod prune;
mod reading;
mod relays;
mod replacement;
mod scores;
mod select;
mod targets;
#[cfg(test)]
mod test_sets;
mod through;
mod types;
mod verify;

pub use attribute::attribute;
pub use attribution::{ActiveFeature, Attribution};
pub use build::{About, Traced, build, trace};
pub use composition::Composition;
pub use context::Context;
pub use dictionaries::{Dictionaries, trace_dictionaries};
pub use effects::{pearson, total_effects};
pub use frozen_run::{FrozenRun, Hold};
pub use influence::node_influence;
pub use intervene::{ChangedRun, FeatureChange, check_changes, live_plan};
pub use labels::LayerIndexes;
pub use memory::check_prompt;
pub use paths::{Path, Paths};
pub use prune::{KeptEdge, Pruned, prune};
pub use reading::{Trust, trust};
pub(crate) use relays::activations;
pub use scores::{pruned_scores, scores};
pub use targets::{Target, TargetChoice};
pub use through::Answers;
pub use types::{
    Edge, Graph, GraphReport, GraphScores, GraphSettings, GraphSource, Node, NodeKind, Verification, VerifiedNode,
};
pub use verify::{VerifySettings, verify};

#[cfg(test)]
#[path = "tests.rs"]
mod attribution_tests;

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
