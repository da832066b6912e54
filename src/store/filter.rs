//! Which rows to learn from. Language models keep attention sinks: the first position, separators and a few other
//! tokens have residual norms a hundred times those of text, and would dominate every squared error.
//!
//! Left out by default are the first position of every sequence, special tokens, and rows whose norm exceeds ten
//! times the median (`max_activation_norm_multiple` of `dictionary_learning`, with its value). The median is exact
//! over up to [`MEDIAN_ROWS`] rows of evenly spaced whole sequences, so over all rows of a cache of that size.

use std::collections::HashSet;
use std::fmt;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::reader::CacheReader;
use crate::base::{Error, Progress, Result, Unit};

/// Rows that the median norm is taken over at most.
pub const MEDIAN_ROWS: u64 = 1 << 20;

/// Rows whose activations one task holds in memory.
const CHUNK_ROWS: u64 = 4096;

/// Which rows to leave out.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FilterSettings {
    /// The first position of every sequence.
    pub skip_first: bool,
    /// The special tokens that the cache lists.
    pub skip_special: bool,
    /// Rows with a norm above this multiple of the median norm; none when absent.
    pub max_norm_multiple: Option<f32>,
}

impl Default for FilterSettings {
    fn default() -> Self {
        Self { skip_first: true, skip_special: true, max_norm_multiple: Some(10.) }
    }
}

impl FilterSettings {
    /// Keeps every row.
    pub const NONE: Self = Self { skip_first: false, skip_special: false, max_norm_multiple: None };
}

/// How many rows were left out, each under the first reason that applies.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FilterReport {
    /// Rows in the cache.
    pub rows: u64,
    /// Rows that stay.
    pub kept: u64,
    /// Left out as the first of their sequence.
    pub first_position: u64,
    /// Left out as special tokens.
    pub special_tokens: u64,
    /// Left out for their norm.
    pub large_norm: u64,
    /// The median norm of the rows that the other rules keep, when norms were looked at.
    pub median_norm: Option<f32>,
    /// The rules.
    pub settings: FilterSettings,
}

impl fmt::Display for FilterReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kept {} of {} rows", self.kept, self.rows)?;
        let mut reasons = Vec::new();
        if self.settings.skip_first {
            reasons.push(format!("{} first positions", self.first_position));
        }
        if self.settings.skip_special {
            reasons.push(format!("{} special tokens", self.special_tokens));
        }
        if let (Some(multiple), Some(median)) = (self.settings.max_norm_multiple, self.median_norm) {
            reasons.push(format!("{} above {multiple} x the median norm of {median:.4}", self.large_norm));
        }
        if reasons.is_empty() { Ok(()) } else { write!(f, "; left out {}", reasons.join(", ")) }
    }
}

/// One bit a row, with the counts that make the k-th kept row quick to find.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptRows {
    rows: u64,
    words: Vec<u64>,
    /// Kept rows before every block of [`BLOCK`] words, and after the last.
    before: Vec<u64>,
}

const BLOCK: usize = 8;

impl KeptRows {
    /// Keeps the rows for which `keep` holds.
    pub fn from_fn(rows: u64, mut keep: impl FnMut(u64) -> bool) -> Self {
        let mut words = vec![0u64; rows.div_ceil(64) as usize];
        for row in (0..rows).filter(|&row| keep(row)) {
            words[(row / 64) as usize] |= 1 << (row % 64);
        }
        Self::from_words(rows, words)
    }

    /// Applies the rules to the activations of `hook`, in one pass over them.
    ///
    /// # Errors
    /// `NonFinite` when a norm is, `Flag` for a multiple that is not positive, `Malformed` when no row stays.
    pub fn of_cache(
        reader: &CacheReader,
        hook: usize,
        settings: FilterSettings,
        progress: &dyn Progress,
    ) -> Result<(Self, FilterReport)> {
        Filter::new(reader, hook, settings)?.run(progress)
    }

    fn from_words(rows: u64, words: Vec<u64>) -> Self {
        let mut before = vec![0];
        let mut total = 0;
        for block in words.chunks(BLOCK) {
            total += block.iter().map(|w| u64::from(w.count_ones())).sum::<u64>();
            before.push(total);
        }
        Self { rows, words, before }
    }

    /// The rows that both keep, of as many rows as the shorter has.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        let words = self.words.iter().zip(&other.words).map(|(a, b)| a & b).collect();
        Self::from_words(self.rows.min(other.rows), words)
    }

    /// Rows in all.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Rows kept.
    pub fn kept(&self) -> u64 {
        self.before.last().copied().unwrap_or_default()
    }

    /// Whether a row is kept.
    pub fn contains(&self, row: u64) -> bool {
        row < self.rows && self.words.get((row / 64) as usize).is_some_and(|word| word >> (row % 64) & 1 == 1)
    }

    /// Kept rows before `row`.
    pub fn rank(&self, row: u64) -> u64 {
        let row = row.min(self.rows);
        let (word, bit) = ((row / 64) as usize, row % 64);
        let block = word / BLOCK;
        let ones = |words: &[u64]| words.iter().map(|w| u64::from(w.count_ones())).sum::<u64>();
        let partial = self.words.get(word).map_or(0, |w| u64::from((w & ((1 << bit) - 1)).count_ones()));
        self.before[block] + ones(&self.words[block * BLOCK..word]) + partial
    }

    /// The `k`-th kept row, from 0; `None` when there are not that many.
    pub fn select(&self, k: u64) -> Option<u64> {
        if k >= self.kept() {
            return None;
        }
        let block = self.before.partition_point(|&before| before <= k) - 1;
        let mut left = k - self.before[block];
        for (i, &word) in self.words.iter().enumerate().skip(block * BLOCK) {
            let ones = u64::from(word.count_ones());
            if left < ones {
                let mut word = word;
                for _ in 0..left {
                    word &= word - 1;
                }
                return Some(i as u64 * 64 + u64::from(word.trailing_zeros()));
            }
            left -= ones;
        }
        None
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Kept,
    First,
    Special,
    Large,
}

struct Filter<'a> {
    reader: &'a CacheReader,
    hook: usize,
    width: usize,
    settings: FilterSettings,
    special: HashSet<u32>,
}

impl<'a> Filter<'a> {
    fn new(reader: &'a CacheReader, hook: usize, settings: FilterSettings) -> Result<Self> {
        if let Some(multiple) = settings.max_norm_multiple.filter(|&m| !(m > 0. && m.is_finite())) {
            let remedy = "use 10, or switch the rule off";
            return Err(Error::flag("--max-norm-multiple", "a number above 0", multiple, remedy));
        }
        let width = reader.hook_entry(hook)?.width;
        let special = reader.settings().special_token_ids.iter().copied().collect();
        Ok(Self { reader, hook, width, settings, special })
    }

    fn run(&self, progress: &dyn Progress) -> Result<(KeptRows, FilterReport)> {
        let (rows, context) = (self.reader.rows(), self.reader.context_size() as u64);
        let median_norm = self.settings.max_norm_multiple.map(|_| self.median()).transpose()?.flatten();
        let limit = self.settings.max_norm_multiple.zip(median_norm).map(|(multiple, median)| multiple * median);
        let mut report = FilterReport {
            rows,
            kept: 0,
            first_position: 0,
            special_tokens: 0,
            large_norm: 0,
            median_norm,
            settings: self.settings,
        };
        let mut words = vec![0u64; rows.div_ceil(64) as usize];
        progress.begin("choosing rows", rows, Unit::Tokens);
        let per_chunk = (CHUNK_ROWS / context).max(1);
        let starts: Vec<u64> = (0..self.reader.sequences()).step_by(per_chunk as usize).collect();
        for group in starts.chunks(64) {
            let fates: Vec<Vec<Fate>> = group
                .par_iter()
                .map(|&start| self.fates(start..(start + per_chunk).min(self.reader.sequences()), limit))
                .collect::<Result<_>>()?;
            for (row, fate) in (group[0] * context..).zip(fates.into_iter().flatten()) {
                match fate {
                    Fate::Kept => {
                        words[(row / 64) as usize] |= 1 << (row % 64);
                        report.kept += 1;
                    }
                    Fate::First => report.first_position += 1,
                    Fate::Special => report.special_tokens += 1,
                    Fate::Large => report.large_norm += 1,
                }
                if row % (CHUNK_ROWS * 16) == 0 {
                    progress.set(row);
                }
            }
        }
        progress.end();
        if report.kept == 0 {
            return Err(Error::malformed(
                "activation cache",
                self.reader.dir(),
                "at least one row that the filter keeps",
                report.to_string(),
                "cache text with fewer special tokens, or switch the filters off",
            ));
        }
        Ok((KeptRows::from_words(rows, words), report))
    }

    fn fates(&self, sequences: std::ops::Range<u64>, limit: Option<f32>) -> Result<Vec<Fate>> {
        let mut fates = Vec::new();
        for sequence in sequences.clone() {
            fates.extend(self.by_token(sequence)?);
        }
        if let Some(limit) = limit {
            for (fate, norm) in fates.iter_mut().zip(self.norms(sequences)?) {
                if *fate == Fate::Kept && norm > limit {
                    *fate = Fate::Large;
                }
            }
        }
        Ok(fates)
    }

    fn by_token(&self, sequence: u64) -> Result<Vec<Fate>> {
        let fate = |(position, token): (usize, u32)| match (position, self.special.contains(&token)) {
            (0, _) if self.settings.skip_first => Fate::First,
            (_, true) if self.settings.skip_special => Fate::Special,
            _ => Fate::Kept,
        };
        Ok(self.reader.tokens(sequence)?.into_iter().enumerate().map(fate).collect())
    }

    /// Euclidean norms of the rows of `sequences`.
    fn norms(&self, sequences: std::ops::Range<u64>) -> Result<Vec<f32>> {
        let mut values = Vec::new();
        self.reader.read_sequences(self.hook, sequences.clone(), &mut values)?;
        let norm = |row: &[f32]| row.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt() as f32;
        let norms: Vec<f32> = values.chunks_exact(self.width).map(norm).collect();
        if let Some(first) = norms.iter().position(|n| !n.is_finite()) {
            let context = self.reader.context_size();
            return Err(Error::NonFinite {
                what: format!("the cached activations of {}", self.reader.hook_entry(self.hook)?.name),
                count: norms.iter().filter(|n| !n.is_finite()).count(),
                at: format!("sequence {}, position {}", sequences.start + (first / context) as u64, first % context),
                remedy: "the cache was damaged after it was written: remove it and cache again".into(),
            });
        }
        Ok(norms)
    }

    /// The median norm of rows that are neither first nor special, over evenly spaced sequences.
    fn median(&self) -> Result<Option<f32>> {
        let context = self.reader.context_size() as u64;
        let sample = (MEDIAN_ROWS / context).max(1);
        let step = self.reader.sequences().div_ceil(sample).max(1);
        let sampled: Vec<u64> = (0..self.reader.sequences()).step_by(step as usize).collect();
        let of_sequence = |&sequence: &u64| -> Result<Vec<f32>> {
            let fates = self.by_token(sequence)?;
            let norms = self.norms(sequence..sequence + 1)?;
            Ok(norms.into_iter().zip(fates).filter(|(_, fate)| *fate == Fate::Kept).map(|(norm, _)| norm).collect())
        };
        let norms: Vec<Vec<f32>> = sampled.par_iter().map(of_sequence).collect::<Result<_>>()?;
        let mut norms = norms.concat();
        if norms.is_empty() {
            return Ok(None);
        }
        let middle = norms.len() / 2;
        Ok(Some(*norms.select_nth_unstable_by(middle, f32::total_cmp).1))
    }
}

#[cfg(test)]
mod tests {
    use super::super::writer::tests::{Example, HOOK};
    use super::*;
    use crate::base::{DtypeChoice, Silent};

    #[test]
    fn rank_and_select_agree_with_counting() {
        for (rows, modulus) in [(1u64, 1), (64, 2), (1000, 3), (5000, 700), (513, 1)] {
            let kept = KeptRows::from_fn(rows, |row| row % modulus == 0);
            let listed: Vec<u64> = (0..rows).filter(|row| row % modulus == 0).collect();
            assert_eq!(kept.kept(), listed.len() as u64);
            for (k, &row) in (0..).zip(&listed) {
                assert_eq!((kept.select(k), kept.rank(row), kept.contains(row)), (Some(row), k, true));
            }
            assert_eq!((kept.select(kept.kept()), kept.rank(rows), kept.contains(rows)), (None, kept.kept(), false));
        }
        assert_eq!(KeptRows::from_fn(0, |_| true).select(0), None);
        let by = |modulus| KeptRows::from_fn(1000, move |row| row % modulus == 0);
        assert_eq!(by(2).and(&by(3)), by(6));
    }

    #[test]
    fn sinks_and_special_tokens_are_left_out_and_counted() {
        let mut example = Example::new(DtypeChoice::F32, 40);
        for (sequence, position) in [(3, 5), (7, 2), (7, 0)] {
            example.scale_row(sequence, position, 500.);
        }
        example.set_token(7, 2, 1);
        example.set_token(9, 4, 1);
        let reader = example.written();
        let (kept, report) = KeptRows::of_cache(&reader, 0, FilterSettings::default(), &Silent).unwrap();
        let rows = 40 * Example::CONTEXT as u64;
        assert_eq!((report.first_position, report.special_tokens, report.large_norm), (40, 2, 1));
        assert_eq!((report.rows, report.kept, kept.kept()), (rows, rows - 43, rows - 43));
        for (sequence, position, expected) in [(3, 5, false), (7, 2, false), (9, 4, false), (3, 0, false), (3, 4, true)]
        {
            assert_eq!(kept.contains(sequence * Example::CONTEXT as u64 + position), expected, "{sequence} {position}");
        }
        assert!(report.to_string().contains("1 above 10 x the median norm"), "{report}");

        let (all, report) = KeptRows::of_cache(&reader, 0, FilterSettings::NONE, &Silent).unwrap();
        assert_eq!((all.kept(), report.to_string()), (rows, format!("kept {rows} of {rows} rows")));
        assert!(reader.hook_entry(0).is_ok_and(|hook| hook.name == HOOK));
    }

    #[test]
    fn the_median_is_that_of_the_rows_the_other_rules_keep() {
        let example = Example::new(DtypeChoice::F32, 5);
        let reader = example.written();
        let (_, report) = KeptRows::of_cache(&reader, 0, FilterSettings::default(), &Silent).unwrap();
        let mut norms: Vec<f32> = (0..5)
            .flat_map(|sequence| (1..Example::CONTEXT).map(move |position| (sequence, position)))
            .map(|(sequence, position)| example.row(sequence, position).iter().map(|x| x * x).sum::<f32>().sqrt())
            .collect();
        norms.sort_by(f32::total_cmp);
        assert!((report.median_norm.unwrap() / norms[norms.len() / 2] - 1.).abs() < 1e-5);
        let bad = FilterSettings { max_norm_multiple: Some(-1.), ..FilterSettings::default() };
        assert!(KeptRows::of_cache(&reader, 0, bad, &Silent).is_err());
    }
}
