//! One pass over sequences that finds, for every feature at once, its statistics and examples.
//!
//! Memory: one batch of rows and codes, and of each feature at most [`IndexSettings::bytes_a_feature`], whatever the
//! amount of text. A sequence lies whole in one batch, so the activations around a peak are at hand when it is found,
//! and positions that give way to a stronger neighbour are known within the sequence: the strongest examples are those
//! that sorting all firings of all data would give.

use std::time::Instant;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::checkpoint::{self, CheckpointPlan};
use super::examples::{Example, Firings, SLOTS, Window, strongest_apart};
use super::histogram::{BINS, INTERVALS};
use super::sketch::{ROOM, number_of};
use super::stats::{FeatureStats, Summary};
use crate::analysis::sequences::{SequenceBatch, SequenceSource, batches, check_width, select_rows};
use crate::analysis::stop_if_cancelled;
use crate::base::progress::Unit;
use crate::base::rng::mix;
use crate::base::{Error, Progress, Result};
use crate::dictionary::codes::ByFeature;
use crate::dictionary::{Dictionary, SparseCodes};

/// Features that one task looks at.
const TASK_FEATURES: usize = 64;

/// What to keep of each feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexSettings {
    /// Strongest examples a feature.
    pub top_k: usize,
    /// Examples drawn from each of ten intervals of its activations.
    #[serde(default)]
    pub interval_examples: usize,
    /// Tokens kept before and after each peak. Text explains a token mostly by what precedes it.
    pub window: Window,
    /// Sequences to read at most.
    pub max_sequences: Option<u64>,
    /// Seed of the draw.
    #[serde(default)]
    pub seed: u64,
}

impl Default for IndexSettings {
    fn default() -> Self {
        let window = Window { before: 10, after: 5 };
        Self { top_k: 20, interval_examples: 5, window, max_sequences: None, seed: 0 }
    }
}

impl IndexSettings {
    /// The most memory that the pass takes for one feature, in bytes.
    pub fn bytes_a_feature(&self) -> usize {
        let slots = self.top_k + INTERVALS * self.interval_examples + 1;
        let windows = (slots + SLOTS) * size_of::<f32>() * self.window.width();
        // Growing lists take up to twice what they hold.
        let lists = 2 * slots * (size_of::<Example>() + size_of::<u32>());
        size_of::<FeatureStats>() + BINS * size_of::<u64>() + ROOM * size_of::<u64>() + windows + lists
    }
}

/// Statistics and examples of every feature of a dictionary.
#[derive(Debug, Clone, PartialEq)]
pub struct FeatureIndex {
    /// What was kept; windows no longer than a sequence.
    pub settings: IndexSettings,
    /// Positions counted.
    pub rows: u64,
    /// Positions that the filter left out.
    pub rows_left_out: u64,
    /// Sequences read.
    pub sequences: u64,
    /// Tokens of a sequence.
    pub context_size: usize,
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
        Self::empty(dictionary, source, settings)?.go_on(dictionary, source, None, progress)
    }

    /// As [`FeatureIndex::build`], saving its state on the schedule of `plan` and when the user stops the work, and
    /// going on from what an earlier run saved. The result equals that of an uninterrupted run.
    ///
    /// # Errors
    /// As [`FeatureIndex::build`]; `Mismatch` when what was saved is of another run, `Malformed` when it does not read,
    /// `Io`.
    pub fn build_resumable(
        dictionary: &Dictionary,
        source: &dyn SequenceSource,
        settings: IndexSettings,
        plan: &CheckpointPlan,
        progress: &dyn Progress,
    ) -> Result<Self> {
        let empty = Self::empty(dictionary, source, settings)?;
        let begun = checkpoint::read(plan, &empty)?.unwrap_or(empty);
        begun.go_on(dictionary, source, Some(plan), progress)
    }

    fn empty(dictionary: &Dictionary, source: &dyn SequenceSource, settings: IndexSettings) -> Result<Self> {
        check_width(source, dictionary)?;
        Self::with_features(dictionary.d_sae(), source, settings)
    }

    /// An index of `d_sae` features that has seen nothing of `source` yet.
    pub(super) fn with_features(d_sae: usize, source: &dyn SequenceSource, settings: IndexSettings) -> Result<Self> {
        if u32::try_from(source.sequences()).is_err() {
            return Err(Error::Unsupported {
                what: format!("an index over {} sequences", source.sequences()),
                why: "examples name their sequence by 32 bits".into(),
                remedy: "index a part of the text; a few million tokens show what features mean".into(),
            });
        }
        let context_size = source.context_size();
        let settings = IndexSettings { window: settings.window.within(context_size), ..settings };
        let features = vec![FeatureStats::default(); d_sae];
        Ok(Self { settings, rows: 0, rows_left_out: 0, sequences: 0, context_size, features })
    }

    fn go_on(
        mut self,
        dictionary: &Dictionary,
        source: &dyn SequenceSource,
        plan: Option<&CheckpointPlan>,
        progress: &dyn Progress,
    ) -> Result<Self> {
        let ranges: Vec<_> = batches(source, self.settings.max_sequences).collect();
        let total = ranges.last().map_or(0, |last| last.end) * source.context_size() as u64;
        progress.begin("features", total, Unit::Tokens);
        progress.set(self.sequences * source.context_size() as u64);
        let (mut batch, mut saved) = (SequenceBatch::default(), Instant::now());
        for range in ranges {
            if range.start < self.sequences {
                continue;
            }
            if let Some(plan) = plan
                && (progress.cancelled() || saved.elapsed() >= plan.every)
            {
                checkpoint::write(plan, &self)?;
                saved = Instant::now();
            }
            stop_if_cancelled(progress)?;
            source.read(range, true, &mut batch)?;
            let places = batch.kept_places();
            let rows = select_rows(&batch.rows, source.width(), &places);
            self.add(&batch, &places, &dictionary.encode(&rows)?);
            progress.advance(batch.tokens.len() as u64);
        }
        progress.end();
        if let Some(plan) = plan {
            checkpoint::write(plan, &self)?;
        }
        Ok(self)
    }

    /// Takes the codes of a batch into account; row `i` of the codes is position `places[i]` of the batch. Batches come
    /// in the order of their sequences.
    pub(super) fn add(&mut self, batch: &SequenceBatch, places: &[u32], codes: &SparseCodes) {
        self.rows += places.len() as u64;
        self.rows_left_out += (batch.tokens.len() - places.len()) as u64;
        self.sequences += batch.sequences() as u64;
        let by_feature = codes.by_feature();
        let first = batch.first * batch.context_size as u64;
        let numbers: Vec<u32> = places.iter().map(|&place| number_of(first + u64::from(place))).collect();
        let settings = self.settings;
        let pass = Pass { batch, places, numbers: &numbers, codes, by_feature: &by_feature, settings };
        let features = self.features.par_iter_mut().enumerate().with_min_len(TASK_FEATURES);
        features.for_each_init(Scratch::default, |scratch, (feature, stats)| pass.feature(feature, stats, scratch));
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

/// What a task needs again and again.
#[derive(Default)]
struct Scratch {
    firings: Firings,
    strong: Firings,
    taken: Firings,
}

/// One batch, seen by every feature.
struct Pass<'a> {
    batch: &'a SequenceBatch,
    places: &'a [u32],
    /// The random number of each row.
    numbers: &'a [u32],
    codes: &'a SparseCodes,
    by_feature: &'a ByFeature,
    settings: IndexSettings,
}

/// The firings of one feature in one sequence.
struct InSequence<'a> {
    feature: usize,
    sequence: usize,
    firings: &'a [(u32, f32)],
}

impl Pass<'_> {
    fn feature(&self, feature: usize, stats: &mut FeatureStats, scratch: &mut Scratch) {
        let (rows, pairs) = self.by_feature.feature(feature);
        let length = self.batch.context_size;
        let mut firings = std::mem::take(&mut scratch.firings);
        firings.clear();
        let (mut sequence, mut moved) = (0, false);
        for (&row, &pair) in rows.iter().zip(pairs) {
            let place = self.places[row as usize] as usize;
            let value = self.codes.values[pair as usize];
            if place / length != sequence {
                self.end_sequence(InSequence { feature, sequence, firings: &firings }, moved, stats, scratch);
                firings.clear();
                (sequence, moved) = (place / length, false);
            }
            moved |= stats.add(value);
            stats.sketch.add(self.numbers[row as usize], value);
            firings.push(((place % length) as u32, value));
        }
        self.end_sequence(InSequence { feature, sequence, firings: &firings }, moved, stats, scratch);
        scratch.firings = firings;
    }

    /// `moved` says that the sequence changed the bounds of the feature's intervals.
    fn end_sequence(&self, at: InSequence<'_>, moved: bool, stats: &mut FeatureStats, scratch: &mut Scratch) {
        if at.firings.is_empty() {
            return;
        }
        stats.sequences += 1;
        let IndexSettings { top_k: k, interval_examples: n, window, .. } = self.settings;
        // A firing is pushed aside only by stronger ones, so those too weak to be kept need not compete.
        let Scratch { strong, taken, .. } = scratch;
        strong.clear();
        strong.extend(at.firings.iter().filter(|f| stats.examples.admits(f.1, k)));
        strongest_apart(strong, k, window, self.batch.context_size, taken);
        for &(position, value) in &*taken {
            if stats.examples.admits(value, k) {
                let example = Example::new(value, self.number(at.sequence), position, 0);
                stats.examples.insert(example, k, window, |to| self.around(position, at.firings, to));
            }
        }
        let (histogram, examples) = (&stats.histogram, &mut stats.examples);
        if moved {
            examples.regroup(histogram, n);
        }
        let stream = mix(self.settings.seed.wrapping_add(mix(at.feature as u64 + 1)));
        let first = (self.batch.first + at.sequence as u64) * self.batch.context_size as u64;
        for &(position, value) in at.firings {
            let lot = (mix(stream ^ (first + u64::from(position))) >> 32) as u32;
            let interval = histogram.interval(value);
            if examples.draws(interval, lot, n) {
                let example = Example::new(value, self.number(at.sequence), position, lot);
                let fill = |to: &mut [f32]| self.around(position, at.firings, to);
                examples.insert_drawn(example, interval, (histogram, n), window, fill);
            }
        }
    }

    fn number(&self, sequence: usize) -> u32 {
        (self.batch.first + sequence as u64) as u32
    }

    /// Writes the firings around `position` into the slots of its window.
    fn around(&self, position: u32, firings: &[(u32, f32)], to: &mut [f32]) {
        let Window { before, after } = self.settings.window;
        let (first, last) = (position.saturating_sub(before as u32), position + after as u32);
        let start = firings.partition_point(|f| f.0 < first);
        for &(at, value) in firings[start..].iter().take_while(|f| f.0 <= last) {
            to[at as usize + before - position as usize] = value;
        }
    }
}

#[cfg(test)]
#[path = "index_tests.rs"]
pub(crate) mod tests;
