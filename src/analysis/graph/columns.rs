//! Which sources a row of the graph has entries for, and where they stand in it.
//!
//! Nodes are numbered as circuit-tracer does: features by layer, position and number; then errors and then tokens by
//! position; then targets. What feature `(l, p)` reads was written by layers below `l` at positions up to `p`, so its
//! row holds those entries alone: features layer by layer, errors layer by layer, tokens.

use std::ops::Range;

/// A feature that is active at a position.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ActiveFeature {
    /// The layer that it reads.
    pub layer: usize,
    /// The position.
    pub position: usize,
    /// Its number.
    pub feature: u32,
    /// Its activation.
    pub activation: f32,
}

/// The numbering of nodes over a list of features.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Columns {
    pub(super) n_layers: usize,
    pub(super) positions: usize,
    /// Features of each layer before each position, `[layers, positions + 1]`.
    before: Vec<usize>,
    /// The first feature of each layer, `[layers + 1]`.
    first: Vec<usize>,
    /// Features below each layer up to each position, `[layers + 1, positions]`.
    below: Vec<usize>,
}

impl Columns {
    /// Over `features`, which ascend by layer and position.
    pub(super) fn new(features: &[ActiveFeature], n_layers: usize, positions: usize) -> Self {
        let mut before = vec![0; n_layers * (positions + 1)];
        for feature in features {
            before[feature.layer * (positions + 1) + feature.position + 1] += 1;
        }
        let (mut first, mut below) = (vec![0], vec![0; positions]);
        for layer in 0..n_layers {
            let counts = &mut before[layer * (positions + 1)..][..=positions];
            for position in 0..positions {
                counts[position + 1] += counts[position];
            }
            first.push(first[layer] + counts[positions]);
            for position in 0..positions {
                below.push(below[layer * positions + position] + counts[position + 1]);
            }
        }
        Self { n_layers, positions, before, first, below }
    }

    /// Features of all layers.
    pub(super) fn features(&self) -> usize {
        self.first[self.n_layers]
    }

    /// All nodes but targets.
    pub(super) fn sources(&self) -> usize {
        self.features() + (self.n_layers + 1) * self.positions
    }

    /// The node of the error of `layer` at `position`.
    pub(super) fn error(&self, layer: usize, position: usize) -> usize {
        self.features() + layer * self.positions + position
    }

    /// The node of the token at `position`.
    pub(super) fn token(&self, position: usize) -> usize {
        self.error(self.n_layers, position)
    }

    /// The nodes of features of `layer` at `position`.
    pub(super) fn features_at(&self, layer: usize, position: usize) -> Range<usize> {
        let at = layer * (self.positions + 1) + position;
        self.first[layer] + self.before[at]..self.first[layer] + self.before[at + 1]
    }

    /// Entries of a row at `(layer, position)`; targets stand at layer `n_layers` and the last position.
    pub(super) fn len(&self, layer: usize, position: usize) -> usize {
        self.below[layer * self.positions + position] + (layer + 1) * (position + 1)
    }

    /// Where in that row the features of `source` at position `at` begin.
    pub(super) fn feature_entry(&self, position: usize, source: usize, at: usize) -> usize {
        self.below[source * self.positions + position] + self.before[source * (self.positions + 1) + at]
    }

    /// Where in that row the error of layer `source` at position `at` stands; with `source` the row's own layer, the
    /// token at that position.
    pub(super) fn error_entry(&self, layer: usize, position: usize, source: usize, at: usize) -> usize {
        self.below[layer * self.positions + position] + source * (position + 1) + at
    }

    /// The nodes that a row's entries are for, in ranges, in the order of the entries.
    pub(super) fn spans(&self, layer: usize, position: usize) -> impl Iterator<Item = Range<usize>> {
        let features = (0..layer).map(move |source| {
            let start = self.first[source];
            start..start + self.before[source * (self.positions + 1) + position + 1]
        });
        let errors = (0..layer).map(move |source| self.error(source, 0)..self.error(source, position) + 1);
        let tokens = std::iter::once(self.token(0)..self.token(position) + 1);
        features.chain(errors).chain(tokens)
    }

    /// [`Columns::spans`] with the entries that belong to each.
    pub(super) fn cut<'a>(
        &'a self,
        (layer, position): (usize, usize),
        entries: &'a [f32],
    ) -> impl Iterator<Item = (Range<usize>, &'a [f32])> {
        let mut rest = entries;
        self.spans(layer, position).map(move |span| {
            let (here, after) = rest.split_at(span.len());
            rest = after;
            (span, here)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_stand_where_the_spans_say() {
        let mut features = Vec::new();
        for (layer, position, n) in [(0, 1, 2), (0, 3, 1), (1, 2, 3), (2, 1, 1), (2, 3, 2)] {
            features.extend((0..n).map(|feature| ActiveFeature { layer, position, feature, activation: 1.0 }));
        }
        let columns = Columns::new(&features, 3, 4);
        assert_eq!((columns.features(), columns.sources()), (9, 9 + 16));
        for layer in 0..=3 {
            for position in 0..4 {
                let nodes: Vec<usize> = columns.spans(layer, position).flatten().collect();
                assert_eq!(nodes.len(), columns.len(layer, position));
                let expected = (0..columns.sources()).filter(|&node| {
                    if let Some(feature) = features.get(node) {
                        return feature.layer < layer && feature.position <= position;
                    }
                    let (at, source) = ((node - 9) % 4, (node - 9) / 4);
                    at <= position && (source < layer || source == 3)
                });
                assert_eq!(nodes, expected.collect::<Vec<_>>());
                for source in 0..layer {
                    for at in 0..=position {
                        let range = columns.features_at(source, at);
                        if !range.is_empty() {
                            assert_eq!(nodes[columns.feature_entry(position, source, at)], range.start);
                        }
                        let entry = columns.error_entry(layer, position, source, at);
                        assert_eq!(nodes[entry], columns.error(source, at));
                    }
                }
                assert_eq!(nodes[columns.error_entry(layer, position, layer, position)], columns.token(position));
            }
        }
    }
}
