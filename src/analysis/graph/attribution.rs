//! All direct effects of one prompt: the unpruned graph.

use super::columns::Columns;
use super::targets::Target;

pub use super::columns::ActiveFeature;

/// Every direct effect on the targets and on the features that were selected, as far as it is not zero by construction.
///
/// Nodes are numbered as circuit-tracer numbers them: selected features by layer, position and number; an error for
/// every layer and position; tokens; targets.
#[derive(Debug, Clone, PartialEq)]
pub struct Attribution {
    /// The selected features by layer, position and number: the first nodes.
    pub features: Vec<ActiveFeature>,
    /// Features that were active.
    pub active_features: usize,
    /// What is explained: the last nodes.
    pub targets: Vec<Target>,
    /// The largest `|Σ row + constants − value|` of all rows, relative to the largest term of its row.
    pub largest_row_error: f64,
    pub(super) columns: Columns,
    /// Entries of features and then of targets, in the order of [`Columns::spans`].
    pub(super) rows: Vec<Vec<f32>>,
}

impl Attribution {
    /// The rows of the features that have one and of the targets, over all `features`, with entries for these alone.
    pub(super) fn packed(
        all: &Columns,
        features: &[ActiveFeature],
        rows: Vec<Option<Vec<f32>>>,
        target_rows: Vec<Vec<f32>>,
        targets: Vec<Target>,
        largest_row_error: f64,
    ) -> Self {
        let chosen: Vec<bool> = rows.iter().map(Option::is_some).collect();
        let whole = !chosen.contains(&false);
        let kept = |place: (usize, usize), entries: Vec<f32>| {
            if whole {
                return entries;
            }
            let nodes = all.spans(place.0, place.1).flatten();
            let kept = nodes.zip(entries).filter(|(node, _)| chosen.get(*node).copied().unwrap_or(true));
            kept.map(|(_, entry)| entry).collect()
        };
        let selected: Vec<ActiveFeature> =
            features.iter().zip(&chosen).filter(|(_, chosen)| **chosen).map(|(feature, _)| *feature).collect();
        let own = rows.into_iter().flatten().zip(&selected);
        let mut packed: Vec<Vec<f32>> = own.map(|(row, f)| kept((f.layer, f.position), row)).collect();
        packed.extend(target_rows.into_iter().map(|row| kept((all.n_layers, all.positions - 1), row)));
        Self {
            columns: Columns::new(&selected, all.n_layers, all.positions),
            active_features: features.len(),
            features: selected,
            targets,
            largest_row_error,
            rows: packed,
        }
    }

    /// All nodes.
    pub fn nodes(&self) -> usize {
        self.columns.sources() + self.targets.len()
    }

    /// Layers of the model.
    pub fn n_layers(&self) -> usize {
        self.columns.n_layers
    }

    /// Positions of the prompt.
    pub fn positions(&self) -> usize {
        self.columns.positions
    }

    /// The node of the error of `layer` at `position`.
    pub fn error_node(&self, layer: usize, position: usize) -> usize {
        self.columns.error(layer, position)
    }

    /// The node of the token at `position`.
    pub fn token_node(&self, position: usize) -> usize {
        self.columns.token(position)
    }

    /// The node of target `i`.
    pub fn target_node(&self, i: usize) -> usize {
        self.columns.sources() + i
    }

    /// Whether `node` is an error.
    pub fn is_error(&self, node: usize) -> bool {
        (self.columns.features()..self.columns.token(0)).contains(&node)
    }

    /// The effects on `node`, as `(source, effect)` with sources in no particular order; nothing for errors and tokens.
    pub fn effects_on(&self, node: usize) -> impl Iterator<Item = (usize, f32)> {
        let row = self.row_of(node);
        row.into_iter().flat_map(move |row| self.entries(row))
    }

    /// The direct effect of `source` on `target`.
    pub fn effect(&self, target: usize, source: usize) -> f32 {
        self.effects_on(target).find(|&(node, _)| node == source).map_or(0.0, |(_, effect)| effect)
    }

    /// Effects that are not zero.
    pub fn edges(&self) -> usize {
        self.rows.iter().map(|row| row.iter().filter(|effect| **effect != 0.0).count()).sum()
    }

    /// The dense matrix `[nodes, nodes]` of effects, row by row the targets. For small graphs and other programs.
    pub fn dense(&self) -> Vec<f32> {
        let n = self.nodes();
        let mut dense = vec![0.0; n * n];
        for target in 0..n {
            for (source, effect) in self.effects_on(target) {
                dense[target * n + source] = effect;
            }
        }
        dense
    }

    /// The row of `node`, if it has one.
    pub(super) fn row_of(&self, node: usize) -> Option<usize> {
        let features = self.features.len();
        if node < features {
            return Some(node);
        }
        node.checked_sub(self.columns.sources()).map(|target| features + target)
    }

    /// The node that row `row` is of.
    pub(super) fn node_of(&self, row: usize) -> usize {
        let features = self.features.len();
        if row < features { row } else { self.columns.sources() + row - features }
    }

    /// Layer and position of row `row`, as [`Columns`] counts them.
    pub(super) fn place_of(&self, row: usize) -> (usize, usize) {
        match self.features.get(row) {
            Some(feature) => (feature.layer, feature.position),
            None => (self.columns.n_layers, self.columns.positions - 1),
        }
    }

    /// Sources of row `row` in ranges, with their entries.
    pub(super) fn spans(&self, row: usize) -> impl Iterator<Item = (std::ops::Range<usize>, &[f32])> {
        self.columns.cut(self.place_of(row), &self.rows[row])
    }

    fn entries(&self, row: usize) -> impl Iterator<Item = (usize, f32)> {
        self.spans(row).flat_map(|(span, entries)| span.zip(entries.iter().copied()))
    }
}
