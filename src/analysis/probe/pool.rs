//! One row a text: what a hook holds at the text's end, or over all its tokens.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{DType, Device};
use serde::{Deserialize, Serialize};

use crate::analysis::stop_if_cancelled;
use crate::base::progress::Unit;
use crate::base::{Context, Error, Progress, Result};
use crate::dictionary::{Dictionary, SparseCodes};
use crate::model::{HookPlan, HookPoint, Model};

/// Captured values that one batch may hold, 128 MiB.
const BATCH_VALUES: usize = 1 << 25;
/// Positions of one batch at most.
const BATCH_POSITIONS: usize = 4096;

/// Which positions of a text make its row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Position {
    /// The last token, which has seen the whole text.
    #[default]
    Last,
    /// The mean over tokens.
    Mean,
    /// The largest value of each coordinate over tokens.
    Max,
}

impl Position {
    /// The name that flags and files have.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Last => "last",
            Self::Mean => "mean",
            Self::Max => "max",
        }
    }
}

/// A text as a model takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PooledText {
    tokens: Vec<u32>,
    /// The positions that count, ascending.
    counted: Vec<usize>,
}

impl PooledText {
    /// `tokens`, of which those in `special` do not count. `None` when none counts.
    pub fn new(tokens: Vec<u32>, special: &BTreeSet<u32>) -> Option<Self> {
        let counted: Vec<usize> = (0..tokens.len()).filter(|&i| !special.contains(&tokens[i])).collect();
        (!counted.is_empty()).then_some(Self { tokens, counted })
    }

    /// The positions that `position` reads.
    fn read(&self, position: Position) -> &[usize] {
        match position {
            Position::Last => &self.counted[self.counted.len().saturating_sub(1)..],
            Position::Mean | Position::Max => &self.counted,
        }
    }
}

/// What to pool.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub(super) hooks: &'a [HookPoint],
    /// Dictionaries with the hooks they read.
    pub(super) dictionaries: &'a [(HookPoint, &'a Dictionary)],
    pub(super) position: Position,
}

/// One row a text.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Pooled {
    /// By hook, `[n, d]`.
    pub(super) rows: Vec<Vec<f32>>,
    /// By dictionary, `n` rows.
    pub(super) codes: Vec<SparseCodes>,
}

/// Runs every text through the model once and pools. Texts of like length run together, padded after their ends where
/// nothing looks back at the padding.
pub(super) fn pool(model: &Model, texts: &[PooledText], wanted: Wanted<'_>, progress: &dyn Progress) -> Result<Pooled> {
    let Wanted { hooks, dictionaries, position } = wanted;
    let widths: Vec<usize> = hooks.iter().map(|&hook| width(hook, model)).collect::<Result<_>>()?;
    let points: BTreeSet<HookPoint> = hooks.iter().copied().chain(dictionaries.iter().map(|(hook, _)| *hook)).collect();
    let plan = points.iter().fold(HookPlan::new(), |plan, &point| plan.capture(point));
    let captured: usize = points.iter().map(|&point| width(point, model)).sum::<Result<usize>>()?;
    let mut rows: Vec<Vec<f32>> = widths.iter().map(|d| vec![0.0; texts.len() * d]).collect();
    let mut codes = vec![vec![(Vec::new(), Vec::new()); texts.len()]; dictionaries.len()];
    progress.begin("texts", texts.len() as u64, Unit::Items);
    for batch in batches(texts, (BATCH_VALUES / captured.max(1)).min(BATCH_POSITIONS)) {
        stop_if_cancelled(progress)?;
        let length = batch.iter().map(|&i| texts[i].tokens.len()).max().unwrap_or(0);
        let padded = batch.iter().map(|&i| {
            let tokens = &texts[i].tokens;
            tokens.iter().copied().chain(std::iter::repeat_n(0, length - tokens.len())).collect::<Vec<u32>>()
        });
        let run = model.forward(&model.tokens(&padded.collect::<Vec<_>>())?, &plan)?;
        let values = |hook: HookPoint| -> Result<Vec<f32>> {
            let values = run.captured(hook)?.to_dtype(DType::F32).and_then(|t| t.to_device(&Device::Cpu));
            let values =
                values.and_then(|t| t.flatten_all()?.to_vec1::<f32>()).during(|| format!("fetching {hook}"))?;
            check_finite(&values, hook, &batch, length)?;
            Ok(values)
        };
        for ((&hook, &d), rows) in hooks.iter().zip(&widths).zip(&mut rows) {
            let values = values(hook)?;
            for (sequence, &i) in values.chunks_exact(length * d).zip(&batch) {
                pool_dense(sequence, texts[i].read(position), position, &mut rows[i * d..][..d]);
            }
        }
        for (&(hook, dictionary), codes) in dictionaries.iter().zip(&mut codes) {
            let (values, d) = (values(hook)?, dictionary.d_in());
            for (sequence, &i) in values.chunks_exact(length * d).zip(&batch) {
                codes[i] = pool_codes(sequence, texts[i].read(position), position, dictionary)?;
            }
        }
        progress.advance(batch.len() as u64);
    }
    progress.end();
    let codes = codes.into_iter().zip(dictionaries).map(|(rows, (_, dictionary))| {
        let mut codes = SparseCodes::new(dictionary.d_sae());
        for (features, values) in &rows {
            codes.push_row(features, values);
        }
        codes
    });
    Ok(Pooled { codes: codes.collect(), rows })
}

/// Values a token at `hook`.
pub(super) fn width(hook: HookPoint, model: &Model) -> Result<usize> {
    hook.check(model.config())?.site.width(model.config()).ok_or_else(|| Error::Unsupported {
        what: format!("probing {hook}"),
        why: format!("its shape {} has no fixed number of values a token", hook.site.axes()),
        remedy: "use another hook".into(),
    })
}

/// Numbers of the texts in groups of like length whose padded size stays at `positions`, or of one text.
fn batches(texts: &[PooledText], positions: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..texts.len()).collect();
    order.sort_by_key(|&i| texts[i].tokens.len());
    let mut batches: Vec<Vec<usize>> = Vec::new();
    for i in order {
        // Lengths ascend, so this text's is that of the batch it joins.
        let length = texts[i].tokens.len();
        match batches.last_mut().filter(|batch| (batch.len() + 1) * length <= positions) {
            Some(batch) => batch.push(i),
            None => batches.push(vec![i]),
        }
    }
    batches
}

fn check_finite(values: &[f32], hook: HookPoint, batch: &[usize], length: usize) -> Result<()> {
    let Some(first) = values.iter().position(|x| !x.is_finite()) else { return Ok(()) };
    let row = first / (values.len() / (batch.len() * length).max(1)).max(1);
    Err(Error::NonFinite {
        what: format!("the activations of {hook}"),
        count: values.iter().filter(|x| !x.is_finite()).count(),
        at: format!("text {}, position {}", batch[row / length.max(1)] + 1, row % length.max(1)),
        remedy: "run the model with --dtype f32; if that does not help, its weights are damaged".into(),
    })
}

/// Pools the rows at `places` of `sequence` `[s, d]` into `out`.
fn pool_dense(sequence: &[f32], places: &[usize], position: Position, out: &mut [f32]) {
    let d = out.len();
    let row = |place: usize| &sequence[place * d..][..d];
    match position {
        Position::Last => places.iter().for_each(|&place| out.copy_from_slice(row(place))),
        Position::Mean => {
            let mut sum = vec![0.0f64; d];
            for &place in places {
                sum.iter_mut().zip(row(place)).for_each(|(sum, &x)| *sum += f64::from(x));
            }
            out.iter_mut().zip(sum).for_each(|(out, sum)| *out = (sum / places.len() as f64) as f32);
        }
        Position::Max => {
            out.fill(f32::NEG_INFINITY);
            for &place in places {
                out.iter_mut().zip(row(place)).for_each(|(out, &x)| *out = out.max(x));
            }
        }
    }
}

/// Pools the features that are active at `places`; a feature counts as zero where it is not.
fn pool_codes(
    sequence: &[f32],
    places: &[usize],
    position: Position,
    dictionary: &Dictionary,
) -> Result<(Vec<u32>, Vec<f32>)> {
    let places: Vec<u32> = places.iter().map(|&place| place as u32).collect();
    let rows = crate::analysis::sequences::select_rows(sequence, dictionary.d_in(), &places);
    let codes = dictionary.encode(&rows)?;
    let mut by_feature: BTreeMap<u32, (f64, f32, usize)> = BTreeMap::new();
    for (&feature, &value) in codes.features.iter().zip(&codes.values) {
        let (sum, largest, count) = by_feature.entry(feature).or_insert((0.0, f32::NEG_INFINITY, 0));
        (*sum, *largest, *count) = (*sum + f64::from(value), largest.max(value), *count + 1);
    }
    let pooled = by_feature.into_iter().map(|(feature, (sum, largest, count))| {
        let value = match position {
            Position::Last | Position::Mean => (sum / places.len() as f64) as f32,
            Position::Max if count < places.len() => largest.max(0.0),
            Position::Max => largest,
        };
        (feature, value)
    });
    Ok(pooled.unzip())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::tests::{dictionary_at, open};
    use crate::base::Silent;

    const HOOK: &str = "blocks.1.hook_resid_post";

    fn texts() -> Vec<PooledText> {
        let text = |i: u32| (0..3 + i * 5 % 7).map(|p| if p == 0 { 1 } else { (i * 11 + p * p) % 48 }).collect();
        (0..9).map(|i| PooledText::new(text(i), &BTreeSet::from([1])).unwrap()).collect()
    }

    fn pooled(position: Position, texts: &[PooledText]) -> Pooled {
        let (model, dictionary) = (open("llama"), dictionary_at(HOOK, 24, 40));
        let hook: HookPoint = HOOK.parse().unwrap();
        let hooks = [hook, "blocks.0.hook_mlp_out".parse().unwrap()];
        let wanted = Wanted { hooks: &hooks, dictionaries: &[(hook, &dictionary)], position };
        pool(&model, texts, wanted, &Silent).unwrap()
    }

    #[test]
    fn pooling_a_batch_equals_pooling_each_text_alone() {
        for position in [Position::Last, Position::Mean, Position::Max] {
            let all = pooled(position, &texts());
            for (i, text) in texts().into_iter().enumerate() {
                let alone = pooled(position, &[text]);
                for (together, alone) in all.rows.iter().zip(&alone.rows) {
                    let together = &together[i * 24..][..24];
                    assert!(together.iter().zip(alone).all(|(a, b)| (a - b).abs() < 1e-5), "{position:?} {i}");
                }
                let ((_, together), (_, alone)) = (all.codes[0].row(i), alone.codes[0].row(0));
                assert!(!alone.is_empty() && together.len() == alone.len());
                assert!(together.iter().zip(alone).all(|(a, b)| (a - b).abs() < 1e-4), "{position:?} {i}");
            }
        }
    }

    #[test]
    fn positions_pool_as_they_say() {
        let sequence = [9.0, 9.0, 1.0, -2.0, 3.0, -4.0];
        let pooled = |position, places: &[usize]| {
            let mut out = [0.0; 2];
            pool_dense(&sequence, places, position, &mut out);
            out
        };
        assert_eq!(pooled(Position::Last, &[2]), [3.0, -4.0]);
        assert_eq!(pooled(Position::Mean, &[1, 2]), [2.0, -3.0]);
        assert_eq!(pooled(Position::Max, &[1, 2]), [3.0, -2.0]);
        let text = PooledText::new(vec![1, 5, 6, 2], &BTreeSet::from([1, 2])).unwrap();
        assert_eq!((text.read(Position::Last), text.read(Position::Mean)), (&[2][..], &[1, 2][..]));
        assert_eq!(PooledText::new(vec![1, 2], &BTreeSet::from([1, 2])), None);
    }

    #[test]
    fn every_text_is_in_one_batch() {
        let texts = texts();
        let batches = batches(&texts, 16);
        let mut seen: Vec<usize> = batches.concat();
        seen.sort_unstable();
        assert!(seen == (0..9).collect::<Vec<_>>() && batches.len() > 1 && batches.iter().any(|b| b.len() > 1));
    }
}
