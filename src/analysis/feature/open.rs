//! Reading an index. Figures of all features are in memory; everything else is read in place when it is asked for.

use std::path::{Path, PathBuf};

use super::arrays::{Array, Arrays, MAKE_AGAIN, Number};
use super::findings::Findings;
use super::histogram::INTERVALS;
use super::labels::Labels;
use super::logits::TokenLogit;
use super::record::{
    AlignmentRecord, CoactiveRecord, ExampleRecord, FeatureRecord, HistogramRecord, IndexHeader, IntervalRecord,
    LogitHistogram, NeighbourRecord, NeuronRecord, TokenRecord, VERSION,
};
use super::stats::Summary;
use super::write::{FEATURES_FILE, HEADER_FILE, NOTHING, TOP};
use crate::base::artifact::read_json;
use crate::base::{Error, Result};
use crate::data::Tokenizer;

/// An index on disk, or one that was just made.
#[derive(Debug)]
pub struct IndexFile {
    /// About the whole.
    pub header: IndexHeader,
    /// Names of features.
    pub labels: Labels,
    pub(super) arrays: Arrays,
    summaries: Vec<Summary>,
}

impl IndexFile {
    /// Opens what [`Findings::write`] wrote into `dir`.
    ///
    /// # Errors
    /// `Io` when there is no index, `Malformed` when it is damaged or of another version.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join(HEADER_FILE);
        if !path.exists() {
            return Err(Error::Missing {
                what: "feature index",
                path,
                expected: "a directory that `features --out` wrote".into(),
                remedy: "make one with `features --sae DIR --cache DIR --out DIR`".into(),
            });
        }
        let header: IndexHeader = read_json("feature index", &path)?;
        if header.version != VERSION {
            let (expected, found) = (format!("version {VERSION}"), format!("version {}", header.version));
            return Err(Error::malformed("feature index", dir.join(HEADER_FILE), expected, found, MAKE_AGAIN));
        }
        Self::new(header, Arrays::open(&dir.join(FEATURES_FILE))?, Labels::open(dir)?)
    }

    /// The index of `findings` without any file.
    ///
    /// # Errors
    /// As [`Findings::write`].
    pub fn in_memory(findings: &Findings, header: IndexHeader, tokenizer: Option<&Tokenizer>) -> Result<Self> {
        let path = PathBuf::from(FEATURES_FILE);
        let arrays = Arrays::in_memory(&path, findings.arrays(&path, tokenizer)?)?;
        Self::new(header, arrays, Labels::default())
    }

    fn new(header: IndexHeader, arrays: Arrays, labels: Labels) -> Result<Self> {
        let f = header.d_sae;
        let (count, sequences) = (arrays.get::<u64>("count")?, arrays.get::<u64>("sequences")?.of_length(f)?);
        let (mean, std) = (arrays.get::<f64>("mean")?.of_length(f)?, arrays.get::<f64>("std")?.of_length(f)?);
        let skewness = arrays.get::<f64>("skewness")?.of_length(f)?;
        let kurtosis = arrays.get::<f64>("kurtosis")?.of_length(f)?;
        let (min, max) = (arrays.get::<f32>("min")?.of_length(f)?, arrays.get::<f32>("max")?.of_length(f)?);
        let figures = count.of_length(f)?.iter().zip(sequences.iter()).zip(mean.iter().zip(std.iter()));
        let shapes = skewness.iter().zip(kurtosis.iter()).zip(min.iter().zip(max.iter()));
        let summary = |(index, (((count, sequences), (mean, std)), ((skewness, kurtosis), (min, max))))| Summary {
            index: index as u32,
            density: count as f64 / header.rows.max(1) as f64,
            count,
            sequences,
            mean,
            std,
            skewness,
            kurtosis,
            min,
            max,
        };
        let summaries = (0..f).zip(figures.zip(shapes)).map(summary).collect();
        arrays.get::<u64>("examples.offsets")?.of_length(f + 1)?;
        Ok(Self { header, labels, arrays, summaries })
    }

    /// The figures of every feature, by number.
    pub fn summaries(&self) -> &[Summary] {
        &self.summaries
    }

    /// Everything about one feature.
    ///
    /// # Errors
    /// `Flag` when it is out of range; `Malformed` when the file is damaged.
    pub fn record(&self, feature: u32) -> Result<FeatureRecord> {
        let f = feature as usize;
        let Some(&summary) = self.summaries.get(f) else {
            return Err(Error::flag(
                "--feature",
                format!("a feature from 0 to {}", self.summaries.len().saturating_sub(1)),
                feature,
                "count features from zero",
            ));
        };
        let words = self.vocabulary()?;
        let (examples, intervals) = self.examples(f, &words)?;
        Ok(FeatureRecord {
            summary,
            labels: self.labels.of(feature).to_vec(),
            histogram: self.histogram(f)?,
            promoted: self.tokens(["promoted.token", "promoted.logit"], f, &words)?,
            suppressed: self.tokens(["suppressed.token", "suppressed.logit"], f, &words)?,
            promoted_through_norm: self.tokens(
                ["promoted_through_norm.token", "promoted_through_norm.logit"],
                f,
                &words,
            )?,
            suppressed_through_norm: self.tokens(
                ["suppressed_through_norm.token", "suppressed_through_norm.logit"],
                f,
                &words,
            )?,
            logit_histogram: self.logit_histogram(f)?,
            alignment: self.alignment(f)?,
            neurons: self.neurons(f)?,
            nearest: self.nearest(f)?,
            coactive: self.coactive(f)?,
            examples,
            intervals,
        })
    }

    fn histogram(&self, f: usize) -> Result<HistogramRecord> {
        let bin_width = self.arrays.get::<f64>("histogram.bin_width")?.at(f)?;
        let mut counts: Vec<u64> = self.arrays.get::<u64>("histogram.counts")?.row(f)?.collect();
        counts.truncate(counts.iter().rposition(|&count| count > 0).map_or(0, |last| last + 1));
        Ok(HistogramRecord { bin_width, counts })
    }

    fn logit_histogram(&self, f: usize) -> Result<Option<LogitHistogram>> {
        if !self.arrays.has("logits.counts") {
            return Ok(None);
        }
        let bin_width = self.arrays.get::<f64>("logits.bin_width")?.at(f)?;
        let counts: Vec<u64> = self.arrays.get::<u32>("logits.counts")?.row(f)?.map(u64::from).collect();
        let first = counts.iter().position(|&count| count > 0).unwrap_or_default();
        let last = counts.iter().rposition(|&count| count > 0).map_or(0, |last| last + 1);
        let start = (first as f64 - (counts.len() / 2) as f64) * bin_width;
        Ok(Some(LogitHistogram { start, bin_width, counts: counts.get(first..last).unwrap_or_default().to_vec() }))
    }

    fn tokens(&self, names: [&str; 2], f: usize, words: &Vocabulary<'_>) -> Result<Option<Vec<TokenRecord>>> {
        if !self.arrays.has(names[0]) {
            return Ok(None);
        }
        let tokens = self.arrays.get::<u32>(names[0])?.row(f)?;
        let logits = self.arrays.get::<f32>(names[1])?.row(f)?;
        let record = |(token, logit)| Ok(TokenRecord { text: words.text(token)?, effect: TokenLogit { token, logit } });
        tokens.zip(logits).map(record).collect::<Result<_>>().map(Some)
    }

    fn alignment(&self, f: usize) -> Result<Vec<AlignmentRecord>> {
        let value = self.arrays.get::<f32>("alignment.value")?.row(f)?;
        let share = self.arrays.get::<f32>("alignment.share")?.row(f)?;
        let coordinates = self.listed("alignment.coordinate", f)?.into_iter();
        let entries = coordinates.zip(value.zip(share));
        Ok(entries.map(|(coordinate, (value, share))| AlignmentRecord { coordinate, value, share }).collect())
    }

    fn neurons(&self, f: usize) -> Result<Option<Vec<NeuronRecord>>> {
        if !self.arrays.has("neurons.neuron") {
            return Ok(None);
        }
        let cosines = self.arrays.get::<f32>("neurons.cosine")?.row(f)?;
        let neurons = self.listed("neurons.neuron", f)?.into_iter().zip(cosines);
        Ok(Some(neurons.map(|(neuron, cosine)| NeuronRecord { neuron, cosine }).collect()))
    }

    fn nearest(&self, f: usize) -> Result<Vec<NeighbourRecord>> {
        let cosines = self.arrays.get::<f32>("nearest.cosine")?.row(f)?;
        let nearest = self.listed("nearest.feature", f)?.into_iter().zip(cosines);
        Ok(nearest.map(|(feature, cosine)| NeighbourRecord { feature, cosine }).collect())
    }

    fn coactive(&self, f: usize) -> Result<Vec<CoactiveRecord>> {
        let jaccard = self.arrays.get::<f32>("coactive.jaccard")?.row(f)?;
        let correlation = self.arrays.get::<f32>("coactive.correlation")?.row(f)?;
        let cosine = self.arrays.get::<f32>("coactive.cosine")?.row(f)?;
        let coactive = self.listed("coactive.feature", f)?.into_iter().zip(jaccard.zip(correlation.zip(cosine)));
        let record =
            |(feature, (jaccard, (correlation, cosine)))| CoactiveRecord { feature, jaccard, correlation, cosine };
        Ok(coactive.map(record).collect())
    }

    /// The entries of a list that are there.
    fn listed(&self, name: &str, f: usize) -> Result<Vec<u32>> {
        Ok(self.arrays.get::<u32>(name)?.row(f)?.take_while(|&entry| entry != NOTHING).collect())
    }

    /// The strongest examples, and the intervals from the highest down with theirs.
    fn examples(&self, f: usize, words: &Vocabulary<'_>) -> Result<(Vec<ExampleRecord>, Vec<IntervalRecord>)> {
        let stored = Examples::of(self)?;
        let (mut top, mut intervals) = (Vec::new(), self.intervals(f)?);
        let kinds = self.arrays.get::<u8>("examples.interval")?;
        for e in stored.range(f)? {
            let record = stored.record(e, &self.header, words)?;
            match kinds.at(e)? {
                TOP => top.push(record),
                // Intervals run from the highest down.
                i => match intervals.iter_mut().rev().nth(usize::from(i)) {
                    Some(interval) => interval.examples.push(record),
                    None => return Err(self.arrays.malformed("ten intervals".into(), i.to_string())),
                },
            }
        }
        Ok((top, intervals))
    }

    fn intervals(&self, f: usize) -> Result<Vec<IntervalRecord>> {
        let (to, counts) =
            (self.arrays.get::<f64>("intervals.to")?.row(f)?, self.arrays.get::<u64>("intervals.count")?.row(f)?);
        let total = self.summaries.get(f).map_or(0, |s| s.count);
        if total == 0 {
            return Ok(Vec::new());
        }
        let mut from = 0.0;
        let mut intervals: Vec<IntervalRecord> = to
            .zip(counts)
            .take(INTERVALS)
            .map(|(to, count)| {
                let share = count as f64 / total as f64;
                IntervalRecord { from: std::mem::replace(&mut from, to), to, count, share, examples: Vec::new() }
            })
            .collect();
        intervals.reverse();
        Ok(intervals)
    }

    pub(super) fn vocabulary(&self) -> Result<Vocabulary<'_>> {
        Ok(Vocabulary {
            arrays: &self.arrays,
            tokens: self.arrays.get("vocabulary.token")?,
            offsets: self.arrays.get("vocabulary.offsets")?,
            text: self.arrays.get("vocabulary.text")?,
        })
    }
}

/// The arrays of examples.
pub(super) struct Examples<'a> {
    arrays: &'a Arrays,
    pub(super) offsets: Array<'a, u64>,
    pub(super) interval: Array<'a, u8>,
    pub(super) value: Array<'a, f32>,
    sequence: Array<'a, u32>,
    pub(super) position: Array<'a, u32>,
    document: Array<'a, u32>,
    pub(super) row: Array<'a, u32>,
    firings: Array<'a, u64>,
    firing_position: Array<'a, u32>,
    firing_value: Array<'a, f32>,
    tokens: Array<'a, u32>,
}

impl<'a> Examples<'a> {
    pub(super) fn of(file: &'a IndexFile) -> Result<Self> {
        let arrays = &file.arrays;
        Ok(Self {
            arrays,
            offsets: arrays.get("examples.offsets")?,
            interval: arrays.get("examples.interval")?,
            value: arrays.get("examples.value")?,
            sequence: arrays.get("examples.sequence")?,
            position: arrays.get("examples.position")?,
            document: arrays.get("examples.document")?,
            row: arrays.get("examples.text")?,
            firings: arrays.get("examples.firings")?,
            firing_position: arrays.get("firings.position")?,
            firing_value: arrays.get("firings.value")?,
            tokens: arrays.get("text.tokens")?,
        })
    }

    /// Positions and activations of the feature around example `e`.
    pub(super) fn firings(&self, e: usize) -> Result<impl Iterator<Item = (u32, f32)>> {
        let firings = between(&self.firings, e)?;
        Ok(self.firing_position.range(firings.clone())?.zip(self.firing_value.range(firings)?))
    }

    /// The examples of feature `f`.
    fn range(&self, f: usize) -> Result<std::ops::Range<usize>> {
        between(&self.offsets, f)
    }

    fn record(&self, e: usize, header: &IndexHeader, words: &Vocabulary<'_>) -> Result<ExampleRecord> {
        let (position, row) = (self.position.at(e)?, self.row.at(e)? as usize);
        let length = header.context_size;
        if position as usize >= length {
            return Err(self.arrays.malformed(format!("positions below {length}"), position.to_string()));
        }
        let window = header.settings.window.around(position as usize, length);
        let token_ids: Vec<u32> = self.tokens.range(row * length + window.start..row * length + window.end)?.collect();
        let mut values = vec![0.0; window.len()];
        for (at, value) in self.firings(e)? {
            if let Some(place) = (at as usize).checked_sub(window.start).and_then(|i| values.get_mut(i)) {
                *place = value;
            }
        }
        Ok(ExampleRecord {
            value: self.value.at(e)?,
            document: self.document.at(e)?,
            sequence: u64::from(self.sequence.at(e)?),
            position,
            peak: position as usize - window.start,
            tokens: token_ids.iter().map(|&token| words.text(token)).collect::<Result<_>>()?,
            token_ids,
            values,
        })
    }
}

/// The range that the numbers `i` and `i + 1` of `offsets` bound.
pub(super) fn between(offsets: &Array<'_, u64>, i: usize) -> Result<std::ops::Range<usize>> {
    let (start, end) = (offsets.at(i)? as usize, offsets.at(i + 1)? as usize);
    Ok(start..end.max(start))
}

/// Readable text of tokens.
pub(super) struct Vocabulary<'a> {
    arrays: &'a Arrays,
    pub(super) tokens: Array<'a, u32>,
    offsets: Array<'a, u64>,
    text: Array<'a, u8>,
}

impl<'a> Vocabulary<'a> {
    fn text(&self, token: u32) -> Result<String> {
        match search(&self.tokens, token)? {
            Some(i) => Ok(String::from_utf8_lossy(self.bytes(i)?).into_owned()),
            None => Err(self.arrays.malformed(format!("the text of token {token}"), "none".into())),
        }
    }

    /// The text of the token at place `i`.
    pub(super) fn bytes(&self, i: usize) -> Result<&'a [u8]> {
        let range = between(&self.offsets, i)?;
        let found = || format!("{} bytes", self.text.len());
        self.text.bytes().get(range).ok_or_else(|| self.arrays.malformed("the text of all tokens".into(), found()))
    }
}

/// Where `wanted` is among ascending numbers.
fn search<T: Number + Ord>(numbers: &Array<'_, T>, wanted: T) -> Result<Option<usize>> {
    let (mut low, mut high) = (0, numbers.len());
    while low < high {
        let middle = low.midpoint(high);
        match numbers.at(middle)?.cmp(&wanted) {
            std::cmp::Ordering::Less => low = middle + 1,
            std::cmp::Ordering::Equal => return Ok(Some(middle)),
            std::cmp::Ordering::Greater => high = middle,
        }
    }
    Ok(None)
}

#[cfg(test)]
#[path = "open_tests.rs"]
mod tests;
