//! How much of the targets goes through each node, over all paths.
//!
//! ```text
//! N[t, s] = |A[t, s]| / Σ_s |A[t, s]|        I = p N + p N² + …        p: the targets' weights
//! ```
//!
//! circuit-tracer sums powers until they vanish. The graph has no cycles and features are numbered by layer, so one walk
//! from the targets down gives the same sum: when a node's turn comes, every path to it has been counted.

use std::ops::Range;

use super::attribution::Attribution;

/// Below this a row counts as empty.
const LEAST_SUM: f64 = 1e-10;

/// The influence of nodes, added up from the targets down.
#[derive(Debug, Clone)]
pub(super) struct Influence {
    /// One a node that can be a source.
    pub(super) of: Vec<f64>,
}

impl Influence {
    pub(super) fn new(sources: usize) -> Self {
        Self { of: vec![0.0; sources] }
    }

    /// Shares `weight`, the influence of a node (its own weight as a target included), among the sources of its row.
    pub(super) fn pass_on<'r>(
        &mut self,
        weight: f64,
        sum: f64,
        spans: impl Iterator<Item = (Range<usize>, &'r [f32])>,
    ) {
        if weight == 0.0 {
            return;
        }
        let share = weight / sum.max(LEAST_SUM);
        for (span, entries) in spans {
            for (influence, entry) in self.of[span].iter_mut().zip(entries) {
                *influence += share * f64::from(entry.abs());
            }
        }
    }
}

/// The sum of the sizes of a row's entries.
pub(super) fn size(entries: &[f32]) -> f64 {
    entries.iter().map(|entry| f64::from(entry.abs())).sum()
}

/// The influence of every node of an unpruned graph; targets have none.
pub fn node_influence(graph: &Attribution) -> Vec<f64> {
    let mut influence = Influence::new(graph.columns.sources());
    let features = graph.features.len();
    for row in (0..graph.rows.len()).rev() {
        let weight = if row < features { influence.of[row] } else { graph.targets[row - features].probability };
        influence.pass_on(weight, size(&graph.rows[row]), graph.spans(row));
    }
    let mut all = influence.of;
    all.resize(graph.nodes(), 0.0);
    all
}
