//! One pass over sequences that finds, for every feature at once, its statistics and strongest examples.
//!
//! Memory: one batch of rows and codes, and at most `top_k` examples a feature. A sequence lies whole in one batch, so
//! the activations around a peak are at hand when it is found, and positions that give way to a stronger neighbour are
//! known within the sequence: the kept examples are those that sorting all firings of all data would give.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::stats::{Example, FeatureStats, Firings, Summary, Window, strongest_apart};
use crate::analysis::sequences::{SequenceBatch, SequenceSource, batches, check_width, select_rows};
use crate::analysis::stop_if_cancelled;
use crate::base::progress::Unit;
use crate::base::{Progress, Result};
use crate::dictionary::codes::ByFeature;
use crate::dictionary::{Dictionary, SparseCodes};

/// Features that one task looks at.
const TASK_FEATURES: usize = 64;

/// What to keep of each feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexSettings {
    /// Examples a feature.
    pub top_k: usize,
    /// Tokens kept before and after each peak. Text explains a token mostly by what precedes it.
    pub window: Window,
    /// Sequences to read at most.
    pub max_sequences: Option<u64>,
}

impl Default for IndexSettings {
    fn default() -> Self {
        Self { top_k: 20, window: Window { before: 10, after: 5 }, max_sequences: None }
    }
}

/// Statistics and examples of every feature of a dictionary.
#[derive(Debug, Clone, PartialEq)]
pub struct FeatureIndex {
    /// What was kept.
    pub settings: IndexSettings,
    /// Positions counted.
    pub rows: u64,
    /// Positions that the filter left out.
    pub rows_left_out: u64,
    /// Sequences read.
    pub sequences: u64,
    /// By feature number.
    pub features: Vec<FeatureStats>,
}

impl FeatureIndex {
    /// Encodes every counted row of `source` and collects. The result does not depend on the number of threads.
    ///
    /// # Errors
    /// `Mismatch` when the widths differ, `Interrupted` when the user stopped the work, and whatever reading gives.
    pub fn build(
        dictionary: &Dictionary,
        source: &dyn SequenceSource,
        settings: IndexSettings,
        progress: &dyn Progress,
    ) -> Result<Self> {
        check_width(source, dictionary)?;
        let features = vec![FeatureStats::default(); dictionary.d_sae()];
        let mut index = Self { settings, rows: 0, rows_left_out: 0, sequences: 0, features };
        let ranges: Vec<_> = batches(source, settings.max_sequences).collect();
        let total = ranges.last().map_or(0, |last| last.end) * source.context_size() as u64;
        progress.begin("features", total, Unit::Tokens);
        let mut batch = SequenceBatch::default();
        for range in ranges {
            stop_if_cancelled(progress)?;
            source.read(range, true, &mut batch)?;
            let places = batch.kept_places();
            let rows = select_rows(&batch.rows, source.width(), &places);
            index.add(&batch, &places, &dictionary.encode(&rows)?);
            progress.advance(batch.tokens.len() as u64);
        }
        progress.end();
        Ok(index)
    }

    /// Takes the codes of a batch into account; row `i` of the codes is position `places[i]` of the batch. Batches come
    /// in the order of their sequences.
    fn add(&mut self, batch: &SequenceBatch, places: &[u32], codes: &SparseCodes) {
        self.rows += places.len() as u64;
        self.rows_left_out += (batch.tokens.len() - places.len()) as u64;
        self.sequences += batch.sequences() as u64;
        let by_feature = codes.by_feature();
        let pass = Pass { batch, places, codes, by_feature: &by_feature, settings: self.settings };
        self.features.par_iter_mut().enumerate().with_min_len(TASK_FEATURES).for_each(|(feature, stats)| {
            pass.feature(feature, stats);
        });
    }

    /// The figures of every feature, by number.
    pub fn summaries(&self) -> Vec<Summary> {
        self.features.iter().enumerate().map(|(i, stats)| stats.summary(i as u32, self.rows)).collect()
    }

    /// Features that never fired.
    pub fn dead_features(&self) -> usize {
        self.features.iter().filter(|stats| stats.count == 0).count()
    }
}

/// One batch, seen by every feature.
struct Pass<'a> {
    batch: &'a SequenceBatch,
    places: &'a [u32],
    codes: &'a SparseCodes,
    by_feature: &'a ByFeature,
    settings: IndexSettings,
}

impl Pass<'_> {
    fn feature(&self, feature: usize, stats: &mut FeatureStats) {
        let (rows, pairs) = self.by_feature.feature(feature);
        let length = self.batch.context_size;
        let mut firings: Firings = Vec::new();
        let mut sequence = 0;
        for (&row, &pair) in rows.iter().zip(pairs) {
            let place = self.places[row as usize] as usize;
            let value = self.codes.values[pair as usize];
            if place / length != sequence {
                self.end_sequence(sequence, &firings, stats);
                firings.clear();
                sequence = place / length;
            }
            stats.add(value);
            firings.push(((place % length) as u32, value));
        }
        self.end_sequence(sequence, &firings, stats);
    }

    fn end_sequence(&self, sequence: usize, firings: &[(u32, f32)], stats: &mut FeatureStats) {
        if firings.is_empty() {
            return;
        }
        stats.sequences += 1;
        // A firing is pushed aside only by stronger ones, so those too weak to be kept need not compete.
        let k = self.settings.top_k;
        let strong: Firings = firings.iter().copied().filter(|f| stats.admits(f.1, k)).collect();
        for (position, value) in strongest_apart(&strong, k, self.settings.window, self.batch.context_size) {
            if stats.admits(value, k) {
                stats.insert(self.example(sequence, position, value, firings), k);
            }
        }
    }

    fn example(&self, sequence: usize, position: u32, value: f32, firings: &[(u32, f32)]) -> Example {
        let length = self.batch.context_size;
        let window = self.settings.window.around(position as usize, length);
        let first = sequence * length;
        let mut values = vec![0.0; window.len()];
        for &(position, value) in firings {
            if window.contains(&(position as usize)) {
                values[position as usize - window.start] = value;
            }
        }
        Example {
            value,
            sequence: self.batch.first + sequence as u64,
            position,
            document: self.batch.documents[first + position as usize],
            start: window.start as u32,
            tokens: self.batch.tokens[first + window.start..first + window.end].to_vec(),
            values,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::analysis::sequences::tests::InMemory;
    use crate::base::Silent;
    use crate::dictionary::{Activation, Architecture, DictionaryConfig};
    use crate::ops::gemm::tests::{numbers, with_threads};

    const S: usize = 17;

    /// A dictionary over rows of width `d` whose features are the inputs themselves, so that codes are known.
    pub(crate) fn identity(d: usize) -> Dictionary {
        let eye: Vec<f32> = (0..d * d).map(|i| if i % (d + 1) == 0 { 1.0 } else { 0.0 }).collect();
        let config = DictionaryConfig::new(Architecture::Relu, d, d);
        Dictionary::new(config, eye.clone(), vec![0.0; d], eye, vec![0.0; d], Activation::relu()).unwrap()
    }

    /// Sequences of small whole numbers, full of ties, over several batches.
    pub(crate) fn source(width: usize, sequences: usize) -> InMemory {
        let n = sequences * S;
        let rows = numbers(n * width, "rows").iter().map(|x| (x * 6.0).round().max(0.0) * 0.25).collect();
        let all = SequenceBatch {
            first: 0,
            context_size: S,
            tokens: (0..n as u32).map(|i| i * 31 % 97).collect(),
            documents: (0..n as u32).map(|i| i / 40).collect(),
            kept: (0..n).map(|i| i % S != 0 && i % 13 != 5).collect(),
            rows,
        };
        InMemory { width, all }
    }

    fn build(source: &InMemory, top_k: usize) -> FeatureIndex {
        let settings = IndexSettings { top_k, ..IndexSettings::default() };
        FeatureIndex::build(&identity(source.width), source, settings, &Silent).unwrap()
    }

    #[test]
    fn top_examples_equal_sorting_everything() {
        let source = source(6, 600);
        let (d, all) = (source.width, &source.all);
        for top_k in [1, 20, 3000] {
            let index = build(&source, top_k);
            assert!(index.sequences == 600 && index.rows + index.rows_left_out == 600 * S as u64);
            for (f, stats) in index.features.iter().enumerate() {
                let active = |i: usize| all.kept[i] && all.rows[i * d + f] > 0.0;
                let value = |i: usize| if active(i) { all.rows[i * d + f] } else { 0.0 };
                let mut order: Vec<usize> = (0..all.tokens.len()).filter(|&i| active(i)).collect();
                assert_eq!(stats.count, order.len() as u64);
                assert!((stats.sum - order.iter().map(|&i| f64::from(value(i))).sum::<f64>()).abs() < 1e-9);
                assert_eq!(stats.histogram.counts().iter().sum::<u64>(), stats.count);
                order.sort_by(|&a, &b| value(b).total_cmp(&value(a)).then(a.cmp(&b)));
                let mut expected: Vec<usize> = Vec::new();
                for i in order {
                    let near = |&p: &usize| i / S == p / S && i + 10 >= p && i <= p + 5;
                    if expected.len() < top_k && !expected.iter().any(near) {
                        expected.push(i);
                    }
                }
                let found: Vec<usize> =
                    stats.examples.iter().map(|e| e.sequence as usize * S + e.position as usize).collect();
                assert_eq!(found, expected, "feature {f}, top {top_k}");
                for e in &stats.examples {
                    let first = e.sequence as usize * S + e.start as usize;
                    let window = first..first + e.tokens.len();
                    assert_eq!(e.tokens, all.tokens[window.clone()]);
                    assert_eq!(e.values, window.map(value).collect::<Vec<_>>());
                    assert_eq!(e.values[(e.position - e.start) as usize], e.value);
                    assert_eq!(e.document, all.documents[first + (e.position - e.start) as usize]);
                }
                assert!(stats.max == stats.examples[0].value && stats.max > 0.0);
            }
        }
    }

    #[test]
    fn the_index_does_not_depend_on_the_threads() {
        let source = source(70, 300);
        assert_eq!(with_threads(1, || build(&source, 4)), with_threads(2, || build(&source, 4)));
    }

    #[test]
    fn a_dictionary_of_another_width_is_an_error_that_names_both() {
        let settings = IndexSettings::default();
        let error = FeatureIndex::build(&identity(5), &source(6, 1), settings, &Silent).unwrap_err().to_string();
        assert!(error.contains("rows of 5") && error.contains("rows of 6"), "{error}");
    }
}
