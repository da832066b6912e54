//! Where sequences come from: a cache on disk, or a model that runs when asked.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;

use candle_core::{DType, Device};
use rayon::prelude::*;

use super::sequences::{SequenceBatch, SequenceSource};
use super::stop_if_cancelled;
use crate::base::progress::Unit;
use crate::base::{Context, Error, Progress, Result};
use crate::data::Sequence;
use crate::model::{HookPlan, HookPoint, Model};
use crate::store::{CacheReader, FilterReport, FilterSettings, KeptRows};

/// Sequences that the model computes at once.
const LIVE_BATCH: usize = 8;

/// One hook of an activation cache, with the rows that count.
#[derive(Debug)]
pub struct CacheSequences {
    reader: CacheReader,
    hook: usize,
    width: usize,
    kept: KeptRows,
    report: FilterReport,
}

impl CacheSequences {
    /// Opens the cache in `dir`. Without `hook` the cache must hold a single one. The filter reads all rows once.
    ///
    /// # Errors
    /// As [`CacheReader::open`], [`CacheReader::hook`] and [`KeptRows::of_cache`].
    pub fn open(dir: &Path, hook: Option<&str>, filter: FilterSettings, progress: &dyn Progress) -> Result<Self> {
        let reader = CacheReader::open(dir)?;
        let hook = reader.hook(hook)?;
        let (kept, report) = KeptRows::of_cache(&reader, hook, filter, progress)?;
        Ok(Self { width: reader.hook_entry(hook)?.width, reader, hook, kept, report })
    }

    /// The cache.
    pub fn reader(&self) -> &CacheReader {
        &self.reader
    }

    /// How many rows count, and why others do not.
    pub fn report(&self) -> &FilterReport {
        &self.report
    }
}

impl SequenceSource for CacheSequences {
    fn width(&self) -> usize {
        self.width
    }

    fn context_size(&self) -> usize {
        self.reader.context_size()
    }

    fn sequences(&self) -> u64 {
        self.reader.sequences()
    }

    fn read(&self, range: Range<u64>, with_rows: bool, batch: &mut SequenceBatch) -> Result<()> {
        let context = self.reader.context_size();
        start(batch, &range, context);
        for sequence in range.clone() {
            batch.tokens.extend(self.reader.tokens(sequence)?);
            batch.documents.extend(self.reader.documents(sequence)?);
        }
        let rows = range.start * context as u64..range.end * context as u64;
        batch.kept.extend(rows.map(|row| self.kept.contains(row)));
        if !with_rows {
            return Ok(());
        }
        self.reader.read_sequences(self.hook, range, &mut batch.rows)?;
        let what = || format!("the cached activations of {}", self.reader.settings().hooks[self.hook].name);
        check_finite(batch, self.width, what, "the cache is damaged: remove it and cache again")
    }
}

/// Packed text that a model runs through up to a hook whenever rows are wanted; nothing is stored.
#[derive(Debug)]
pub struct LiveSequences<'a> {
    model: &'a Model,
    hook: HookPoint,
    width: usize,
    sequences: Vec<Sequence>,
    kept: Vec<bool>,
    report: FilterReport,
}

impl<'a> LiveSequences<'a> {
    /// Applies the rules of `filter` to `sequences`, all of one length. The norm rule runs the model once, and its
    /// median is over all rows that the other rules keep.
    ///
    /// # Errors
    /// `Unknown` or `Unsupported` for a hook that the model lacks or that has no fixed width, `Unsupported` when there
    /// are no sequences, `NonFinite`, `Interrupted`, and whatever the model gives.
    pub fn new(
        model: &'a Model,
        hook: HookPoint,
        sequences: Vec<Sequence>,
        special: &BTreeSet<u32>,
        filter: FilterSettings,
        progress: &dyn Progress,
    ) -> Result<Self> {
        let width = hook.check(model.config())?.site.width(model.config()).ok_or_else(|| Error::Unsupported {
            what: format!("reading rows of {hook}"),
            why: format!("its shape {} has no fixed number of values a token", hook.site.axes()),
            remedy: "use another hook".into(),
        })?;
        if sequences.is_empty() {
            return Err(Error::Unsupported {
                what: "analysing this text".into(),
                why: "it fills no sequence".into(),
                remedy: "use more text or a smaller --context-size".into(),
            });
        }
        let context = sequences.first().map_or(1, |s| s.tokens.len());
        let mut report = FilterReport {
            rows: (sequences.len() * context) as u64,
            kept: 0,
            first_position: 0,
            special_tokens: 0,
            large_norm: 0,
            median_norm: None,
            settings: filter,
        };
        let mut kept = Vec::with_capacity(sequences.len() * context);
        for (position, token) in sequences.iter().flat_map(|s| s.tokens.iter().enumerate()) {
            let first = filter.skip_first && position == 0;
            let is_special = !first && filter.skip_special && special.contains(token);
            report.first_position += u64::from(first);
            report.special_tokens += u64::from(is_special);
            kept.push(!first && !is_special);
        }
        let mut live = Self { model, hook, width, sequences, kept, report };
        if let Some(multiple) = filter.max_norm_multiple {
            live.leave_out_large_norms(multiple, progress)?;
        }
        live.report.kept = live.kept.iter().filter(|kept| **kept).count() as u64;
        Ok(live)
    }

    /// How many rows count, and why others do not.
    pub fn report(&self) -> &FilterReport {
        &self.report
    }

    fn leave_out_large_norms(&mut self, multiple: f32, progress: &dyn Progress) -> Result<()> {
        let mut norms: Vec<f32> = Vec::with_capacity(self.kept.len());
        let mut batch = SequenceBatch::default();
        progress.begin("choosing rows", self.report.rows, Unit::Tokens);
        for first in (0..self.sequences()).step_by(LIVE_BATCH) {
            stop_if_cancelled(progress)?;
            self.read(first..(first + LIVE_BATCH as u64).min(self.sequences()), true, &mut batch)?;
            let norm = |row: &[f32]| row.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt() as f32;
            norms.par_extend(batch.rows.par_chunks_exact(self.width).map(norm));
            progress.advance(batch.tokens.len() as u64);
        }
        progress.end();
        let mut counted: Vec<f32> = norms.iter().zip(&self.kept).filter(|(_, kept)| **kept).map(|(n, _)| *n).collect();
        if counted.is_empty() {
            return Ok(());
        }
        let middle = counted.len() / 2;
        let median = *counted.select_nth_unstable_by(middle, f32::total_cmp).1;
        for (kept, norm) in self.kept.iter_mut().zip(&norms) {
            if *kept && *norm > multiple * median {
                *kept = false;
                self.report.large_norm += 1;
            }
        }
        self.report.median_norm = Some(median);
        Ok(())
    }
}

impl SequenceSource for LiveSequences<'_> {
    fn width(&self) -> usize {
        self.width
    }

    fn context_size(&self) -> usize {
        self.sequences.first().map_or(1, |s| s.tokens.len())
    }

    fn sequences(&self) -> u64 {
        self.sequences.len() as u64
    }

    fn read(&self, range: Range<u64>, with_rows: bool, batch: &mut SequenceBatch) -> Result<()> {
        let context = self.context_size();
        let sequences = &self.sequences[range.start as usize..range.end as usize];
        start(batch, &range, context);
        for sequence in sequences {
            batch.tokens.extend_from_slice(&sequence.tokens);
            batch.documents.extend_from_slice(&sequence.documents);
        }
        batch.kept.extend_from_slice(&self.kept[range.start as usize * context..range.end as usize * context]);
        if !with_rows {
            return Ok(());
        }
        let plan = HookPlan::new().capture(self.hook);
        for sequences in sequences.chunks(LIVE_BATCH) {
            let tokens: Vec<&[u32]> = sequences.iter().map(|s| s.tokens.as_slice()).collect();
            let run = self.model.forward(&self.model.tokens(&tokens)?, &plan)?;
            let rows = run.captured(self.hook)?.to_dtype(DType::F32).and_then(|t| t.to_device(&Device::Cpu));
            let rows = rows.and_then(|t| t.flatten_all()?.to_vec1::<f32>());
            batch.rows.extend(rows.during(|| format!("fetching {}", self.hook))?);
        }
        let what = || format!("the activations of {}", self.hook);
        check_finite(batch, self.width, what, "run the model with --dtype f32")
    }
}

/// Empties `batch` for the sequences `range`.
fn start(batch: &mut SequenceBatch, range: &Range<u64>, context_size: usize) {
    let SequenceBatch { first, context_size: context, tokens, documents, kept, rows } = batch;
    (*first, *context) = (range.start, context_size);
    tokens.clear();
    documents.clear();
    kept.clear();
    rows.clear();
}

fn check_finite(batch: &SequenceBatch, width: usize, what: impl Fn() -> String, remedy: &str) -> Result<()> {
    let bad = |x: &f32| !x.is_finite();
    let count = batch.rows.par_chunks(1 << 16).map(|part| part.iter().filter(|x| bad(x)).count()).sum();
    if count == 0 {
        return Ok(());
    }
    let row = batch.rows.iter().position(bad).unwrap_or_default() / width.max(1);
    let (sequence, position) = (row / batch.context_size.max(1), row % batch.context_size.max(1));
    Err(Error::NonFinite {
        what: what(),
        count,
        at: format!("sequence {}, position {position}", batch.first + sequence as u64),
        remedy: remedy.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::tests::open;
    use crate::base::{DtypeChoice, Silent};
    use crate::data::BosPolicy;
    use crate::store::{CacheSettings, CacheWriter, HookEntry, ModelEntry};

    const S: usize = 10;

    fn text() -> Vec<Sequence> {
        let sequence = |i: u32| Sequence {
            tokens: (0..S as u32).map(|p| if p == 0 { 1 } else { (i * 11 + p * p) % 48 }).collect(),
            documents: vec![i / 2; S],
        };
        (0..23).map(sequence).collect()
    }

    /// A cache of `hook` made of what `live` computes.
    fn cached(live: &LiveSequences<'_>, dir: &Path) {
        let hook = HookEntry { name: live.hook.to_string(), width: live.width, dtype: DtypeChoice::F32 };
        let settings = CacheSettings {
            model: ModelEntry {
                name: "m".into(),
                weights_blake3: "w".into(),
                dtype: DtypeChoice::F32,
                device: "cpu".into(),
            },
            tokenizer_blake3: "t".into(),
            data: Vec::new(),
            text_field: "text".into(),
            hooks: vec![hook],
            context_size: S,
            bos: BosPolicy::Prepend,
            special_token_ids: vec![1, 2],
            batch_size: 2,
            shard_sequences: 5,
            target_sequences: None,
        };
        let mut writer = CacheWriter::begin(dir, settings, false).unwrap();
        let mut batch = SequenceBatch::default();
        for first in 0..23 {
            live.read(first..first + 1, true, &mut batch).unwrap();
            writer.push(&batch.tokens, &batch.documents, &[&batch.rows]).unwrap();
        }
        writer.finish(&crate::base::RunRecord::new("cache", &(), 0)).unwrap();
    }

    #[test]
    fn a_cache_and_the_live_model_give_the_same_sequences() {
        let (model, hook) = (open("llama"), "blocks.0.hook_resid_post".parse().unwrap());
        let special = BTreeSet::from([1, 2]);
        // The norms of a tiny random model are alike, so a low multiple makes the norm rule bite.
        let filter = FilterSettings { max_norm_multiple: Some(1.1), ..FilterSettings::default() };
        let live = LiveSequences::new(&model, hook, text(), &special, filter, &Silent).unwrap();
        let dir = tempfile::tempdir().unwrap();
        cached(&live, &dir.path().join("acts"));
        let cache = CacheSequences::open(&dir.path().join("acts"), None, filter, &Silent).unwrap();
        // The model's last bits depend on how many sequences it computes at once.
        let (found, expected) = (cache.report().median_norm.unwrap(), live.report().median_norm.unwrap());
        assert!((found - expected).abs() < 1e-5 * expected);
        assert_eq!(FilterReport { median_norm: Some(expected), ..*cache.report() }, *live.report());
        assert!(live.report().large_norm > 0 && live.report().special_tokens > 0);
        assert_eq!((cache.width(), cache.context_size(), cache.sequences()), (24, S, 23));
        let (mut a, mut b) = (SequenceBatch::default(), SequenceBatch::default());
        for (range, with_rows) in [(3..21, true), (0..2, true), (22..23, true), (4..9, false)] {
            cache.read(range.clone(), with_rows, &mut a).unwrap();
            live.read(range.clone(), with_rows, &mut b).unwrap();
            let worst = a.rows.iter().zip(&b.rows).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            assert!(worst < 1e-5 && a.rows.len() == b.rows.len() && a.rows.is_empty() != with_rows, "{range:?}");
            a.rows.clone_from(&b.rows);
            assert_eq!(a, b);
        }
    }

    #[test]
    fn rows_that_are_not_finite_are_an_error_with_their_place() {
        let mut rows = vec![0.0; 2 * 3 * 4];
        rows[17] = f32::NAN;
        let batch = SequenceBatch { first: 7, context_size: 3, rows, ..SequenceBatch::default() };
        let error = check_finite(&batch, 4, || "rows".into(), "remedy").unwrap_err().to_string();
        assert!(error.contains("sequence 8, position 1"), "{error}");
    }
}
