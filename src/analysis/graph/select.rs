//! Which features get a row: those of most influence on the targets, as far as is known when their turn comes.

use super::backward::Row;
use super::context::Context;
use super::influence::{Influence, size};
use super::targets::Target;

/// Batches between two rankings, as in circuit-tracer.
const UPDATE_INTERVAL: usize = 4;

/// Rows so far, and what they say about the features that have none.
#[derive(Debug)]
pub(super) struct Selection<'a> {
    context: &'a Context,
    /// Weights, sums and rows of the targets.
    targets: Vec<(f64, f64, Row)>,
    /// The row of each active feature that has one, with its sum.
    rows: Vec<Option<(f64, Vec<f32>)>>,
    visited: usize,
}

impl<'a> Selection<'a> {
    pub(super) fn new(context: &'a Context, targets: &[Target], rows: Vec<Row>) -> Self {
        let weighted = targets.iter().zip(rows).map(|(target, row)| (target.probability, size(&row.entries), row));
        Self { context, targets: weighted.collect(), rows: vec![None; context.features.len()], visited: 0 }
    }

    /// The features whose rows come next, of `most` in all; empty when there are enough. In an order that keeps
    /// features of the same height together: a sweep begins at its highest row.
    pub(super) fn next(&self, most: usize, batch_size: usize) -> Vec<usize> {
        let active = self.rows.len();
        let mut pending: Vec<usize> = if most >= active {
            (0..active).filter(|&i| self.rows[i].is_none()).collect()
        } else {
            let influence = self.influence();
            let mut rank: Vec<usize> = (0..active).filter(|&i| self.rows[i].is_none()).collect();
            let n = (UPDATE_INTERVAL * batch_size).min(most - self.visited);
            let descending = |a: &usize, b: &usize| influence[*b].total_cmp(&influence[*a]).then(a.cmp(b));
            if n > 0 && n < rank.len() {
                rank.select_nth_unstable_by(n - 1, descending);
            }
            rank.truncate(n);
            rank
        };
        pending.sort_unstable_by(|a, b| b.cmp(a));
        pending
    }

    /// Keeps the row of an active feature.
    pub(super) fn keep(&mut self, feature: usize, row: Row) {
        self.rows[feature] = Some((size(&row.entries), row.entries));
        self.visited += 1;
    }

    /// The rows of the targets, and those of active features that have one.
    pub(super) fn into_rows(self) -> (Vec<Vec<f32>>, Vec<Option<Vec<f32>>>) {
        let rows = self.rows.into_iter().map(|row| row.map(|(_, entries)| entries));
        (self.targets.into_iter().map(|(_, _, row)| row.entries).collect(), rows.collect())
    }

    /// The influence of active features along the rows so far.
    fn influence(&self) -> Vec<f64> {
        let columns = &self.context.columns;
        let mut influence = Influence::new(columns.sources());
        for (weight, sum, row) in &self.targets {
            influence.pass_on(*weight, *sum, columns.cut((row.layer, row.position), &row.entries));
        }
        for (i, feature) in self.context.features.iter().enumerate().rev() {
            if let Some((sum, entries)) = &self.rows[i] {
                let weight = influence.of[i];
                influence.pass_on(weight, *sum, columns.cut((feature.layer, feature.position), entries));
            }
        }
        influence.of.truncate(self.rows.len());
        influence.of
    }
}
