//! Attribution graphs: which features caused the next token, through which edges (Ameisen et al. 2025, "Circuit
//! Tracing: Revealing Computational Graphs in Language Models").

mod ablate;
mod frozen_run;
mod intervene;
#[cfg(test)]
mod test_sets;
mod through;
mod types;
mod verify;

pub use frozen_run::{FrozenRun, Hold};
pub use intervene::{ChangedRun, FeatureChange, check_changes, live_plan};
pub use through::{Answers, Route};
pub use types::{
    Edge, Graph, GraphReport, GraphScores, GraphSettings, GraphSource, Node, NodeKind, Verification, VerifiedNode,
};
pub use verify::{VerifySettings, pearson, total_effects, verify};
