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
mod context;
mod frozen_run;
mod held;
mod influence;
mod intervene;
mod live;
mod memory;
mod prune;
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
pub use build::{About, build, trace};
pub use context::Context;
pub use frozen_run::{FrozenRun, Hold};
pub use influence::node_influence;
pub use intervene::{ChangedRun, FeatureChange, check_changes, live_plan};
pub use memory::check_prompt;
pub use prune::{KeptEdge, Pruned, prune};
pub use scores::{pruned_scores, scores};
pub use targets::{Target, TargetChoice};
pub use through::{Answers, Route};
pub use types::{
    Edge, Graph, GraphReport, GraphScores, GraphSettings, GraphSource, Node, NodeKind, Verification, VerifiedNode,
};
pub use verify::{VerifySettings, pearson, total_effects, verify};

#[cfg(test)]
#[path = "tests.rs"]
mod attribution_tests;
