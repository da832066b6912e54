//! What the model loses: its next-token distributions untouched, through the dictionary, and with the hook zeroed.
//!
//! A position counts for the KL divergence when the filter keeps it, and for the cross-entropy when it also has a next
//! token in its sequence that is none of `ignored_targets`: where packed documents meet, the next token begins another
//! text, and predicting that measures the packing. Positions that the filter leaves out keep their values in the pass
//! through the dictionary; zeros replace every position (SAELens `get_recons_loss`).

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;
use serde::Serialize;

use super::metrics::{ModelBehaviorPreservation, ModelPerformancePreservation};
use super::splice::Splice;
use crate::analysis::sequences::{SequenceBatch, SequenceSource};
use crate::analysis::{Placement, stop_if_cancelled};
use crate::base::progress::Unit;
use crate::base::{Context, Error, Progress, Result};
use crate::dictionary::Dictionary;
use crate::model::{EditOp, HookPlan, Model};

/// Bytes that the logits of one pass over a batch may take; three passes are held at once.
const LOGIT_BYTES: usize = 128 << 20;

/// How losses are measured.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct LanguageSettings {
    /// Tokens whose prediction does not count: the beginning-of-sequence token.
    pub ignored_targets: BTreeSet<u32>,
}

/// Sums over positions, in nats.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct LanguageSums {
    /// Positions of the KL sums.
    pub positions: u64,
    /// Positions of the cross-entropy sums.
    pub targets: u64,
    kl_sae: f64,
    kl_zero: f64,
    ce_clean: f64,
    ce_sae: f64,
    ce_zero: f64,
}

impl LanguageSums {
    fn add(&mut self, other: &Self) {
        let Self { positions, targets, kl_sae, kl_zero, ce_clean, ce_sae, ce_zero } = other;
        self.positions += positions;
        self.targets += targets;
        self.kl_sae += kl_sae;
        self.kl_zero += kl_zero;
        self.ce_clean += ce_clean;
        self.ce_sae += ce_sae;
        self.ce_zero += ce_zero;
    }

    /// The sums of one position: logits `[v]` of the three passes, and the next token when it counts.
    fn of(clean: &[f32], sae: &[f32], zero: &[f32], target: Option<u32>) -> Self {
        let [log_clean, log_sae, log_zero] = [clean, sae, zero].map(log_sum_exp);
        let (mut kl_sae, mut kl_zero) = (0.0, 0.0);
        for ((clean, sae), zero) in clean.iter().zip(sae).zip(zero) {
            let log_p = f64::from(*clean) - log_clean;
            let p = log_p.exp();
            kl_sae += p * (log_p - (f64::from(*sae) - log_sae));
            kl_zero += p * (log_p - (f64::from(*zero) - log_zero));
        }
        let mut sums = Self { positions: 1, kl_sae, kl_zero, ..Self::default() };
        if let Some(target) = target {
            let loss = |logits: &[f32], log_sum: f64| log_sum - f64::from(logits[target as usize]);
            sums.targets = 1;
            sums.ce_clean = loss(clean, log_clean);
            sums.ce_sae = loss(sae, log_sae);
            sums.ce_zero = loss(zero, log_zero);
        }
        sums
    }

    pub(super) fn behavior(&self) -> ModelBehaviorPreservation {
        let n = self.positions.max(1) as f64;
        let (with_sae, with_ablation) = (self.kl_sae / n, self.kl_zero / n);
        ModelBehaviorPreservation {
            kl_div_score: score(with_ablation, with_sae, 0.0),
            kl_div_with_ablation: with_ablation,
            kl_div_with_sae: with_sae,
        }
    }

    pub(super) fn performance(&self) -> ModelPerformancePreservation {
        let n = self.targets.max(1) as f64;
        let (clean, with_sae, with_ablation) = (self.ce_clean / n, self.ce_sae / n, self.ce_zero / n);
        ModelPerformancePreservation {
            ce_loss_score: score(with_ablation, with_sae, clean),
            ce_loss_with_ablation: with_ablation,
            ce_loss_with_sae: with_sae,
            ce_loss_without_sae: clean,
        }
    }
}

/// The share of the way from `worst` to `best` that `value` reaches; 0 where zeroing the hook changes nothing.
fn score(worst: f64, value: f64, best: f64) -> f64 {
    let way = worst - best;
    if way.abs() < f64::MIN_POSITIVE { 0.0 } else { (worst - value) / way }
}

fn row(logits: &[f32], i: usize, v: usize) -> &[f32] {
    &logits[i * v..][..v]
}

fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = f64::from(logits.iter().fold(f32::NEG_INFINITY, |max, x| max.max(*x)));
    max + logits.iter().map(|x| (f64::from(*x) - max).exp()).sum::<f64>().ln()
}

/// Sums over the first `limit` sequences of `source`, or all.
///
/// # Errors
/// `NonFinite` when logits are not finite, `Unsupported` when nothing counts, `Interrupted` when the user stopped the
/// work, and whatever the model gives.
pub(super) fn measure(
    dictionary: &Dictionary,
    source: &dyn SequenceSource,
    model: &Model,
    placement: Placement,
    limit: Option<u64>,
    settings: &LanguageSettings,
    progress: &dyn Progress,
) -> Result<LanguageSums> {
    let total = limit.map_or(source.sequences(), |limit| limit.min(source.sequences()));
    let bytes = source.context_size() * model.config().vocab_size * size_of::<f32>();
    let step = (LOGIT_BYTES / bytes.max(1)).max(1) as u64;
    let passes = Passes { dictionary: Arc::new(dictionary.clone()), model, placement };
    let mut sums = LanguageSums::default();
    let mut batch = SequenceBatch::default();
    progress.begin("model losses", total * source.context_size() as u64, Unit::Tokens);
    for first in (0..total).step_by(step as usize) {
        stop_if_cancelled(progress)?;
        source.read(Range { start: first, end: (first + step).min(total) }, false, &mut batch)?;
        sums.add(&passes.sums(&batch, settings)?);
        progress.advance(batch.tokens.len() as u64);
    }
    progress.end();
    if sums.targets > 0 {
        return Ok(sums);
    }
    Err(Error::Unsupported {
        what: "measuring the model's loss on this text".into(),
        why: "no position counts".into(),
        remedy: "use more text, or keep outliers and special tokens".into(),
    })
}

/// The three passes over one batch.
struct Passes<'a> {
    dictionary: Arc<Dictionary>,
    model: &'a Model,
    placement: Placement,
}

impl Passes<'_> {
    fn sums(&self, batch: &SequenceBatch, settings: &LanguageSettings) -> Result<LanguageSums> {
        let splice = Splice { dictionary: Arc::clone(&self.dictionary), kept: batch.kept.clone() };
        let with_sae = HookPlan::new().edit(self.placement.edit(EditOp::Rewrite(Arc::new(splice))));
        let zeroed = HookPlan::new().edit(self.placement.edit(EditOp::Ablate));
        let clean = self.logits(batch, HookPlan::new())?;
        let (sae, zero) = (self.logits(batch, with_sae)?, self.logits(batch, zeroed)?);
        let (s, v) = (batch.context_size, self.model.config().vocab_size);
        let parts: Vec<LanguageSums> = (0..batch.tokens.len())
            .into_par_iter()
            .filter(|&i| batch.kept[i])
            .map(|i| {
                let next = ((i + 1) % s != 0).then(|| batch.tokens[i + 1]);
                let target = next.filter(|token| !settings.ignored_targets.contains(token));
                LanguageSums::of(row(&clean, i, v), row(&sae, i, v), row(&zero, i, v), target)
            })
            .collect();
        let mut sums = LanguageSums::default();
        for part in &parts {
            sums.add(part);
        }
        if sums.kl_sae.is_finite() && sums.kl_zero.is_finite() && sums.ce_clean.is_finite() {
            return Ok(sums);
        }
        Err(Error::NonFinite {
            what: "logits".into(),
            count: 1,
            at: format!("sequences {} to {}", batch.first, batch.first + batch.sequences() as u64 - 1),
            remedy: "try the model on a prompt with 'mechinterp run'; if that fails too, its weights are damaged"
                .into(),
        })
    }

    /// `[sequences · positions, v]`.
    fn logits(&self, batch: &SequenceBatch, plan: HookPlan) -> Result<Vec<f32>> {
        let sequences: Vec<&[u32]> = batch.tokens.chunks_exact(batch.context_size.max(1)).collect();
        let run = self.model.forward(&self.model.tokens(&sequences)?, &plan.with_logits())?;
        run.logits()?.flatten_all().and_then(|t| t.to_vec1::<f32>()).during(|| "reading logits".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::sequences::tests::InMemory;
    use crate::analysis::tests::{dictionary_at, open};
    use crate::base::Silent;
    use crate::dictionary::{Activation, Architecture, DictionaryConfig};
    use crate::model::Edit;

    const HOOK: &str = "blocks.0.hook_resid_post";

    fn text(kept: impl Fn(usize) -> bool) -> InMemory {
        let tokens: Vec<u32> = (0..60).map(|i| (i * i + 5) % 48).collect();
        let all = SequenceBatch {
            first: 0,
            context_size: 12,
            documents: vec![0; 60],
            kept: (0..60).map(kept).collect(),
            rows: vec![],
            tokens,
        };
        InMemory { width: 24, all }
    }

    fn losses(dictionary: &Dictionary, source: &InMemory, ignored: &[u32]) -> LanguageSums {
        let model = open("llama");
        let placement = Placement::of(dictionary, model.config()).unwrap();
        let settings = LanguageSettings { ignored_targets: ignored.iter().copied().collect() };
        measure(dictionary, source, &model, placement, None, &settings, &Silent).unwrap()
    }

    /// Reconstructs every row: `z = relu([x, −x])`, `x̂ = z [I; −I]`.
    fn perfect() -> Dictionary {
        let (d, f) = (24, 48);
        let sign = |j: usize| if j < d { 1.0 } else { -1.0 };
        let w_enc = (0..d * f).map(|i| if i % f % d == i / f { sign(i % f) } else { 0.0 }).collect();
        let w_dec = (0..f * d).map(|i| if i / d % d == i % d { sign(i / d) } else { 0.0 }).collect();
        let mut config = DictionaryConfig::new(Architecture::Relu, d, f);
        config.metadata.hook_name = Some(HOOK.into());
        Dictionary::new(config, w_enc, vec![0.0; f], w_dec, vec![0.0; d], Activation::relu()).unwrap()
    }

    #[test]
    fn a_perfect_dictionary_recovers_everything_and_a_poor_one_does_not() {
        let source = text(|_| true);
        let sums = losses(&perfect(), &source, &[]);
        assert_eq!((sums.positions, sums.targets), (60, 55));
        let (behavior, performance) = (sums.behavior(), sums.performance());
        assert!((behavior.kl_div_score - 1.0).abs() < 1e-6 && behavior.kl_div_with_ablation > 0.01);
        assert!((performance.ce_loss_score - 1.0).abs() < 1e-4);
        let poor = losses(&dictionary_at(HOOK, 24, 50), &source, &[]);
        assert!(poor.behavior().kl_div_with_sae > 0.01);
        assert_eq!(poor.performance().ce_loss_without_sae, performance.ce_loss_without_sae);
    }

    #[test]
    fn losses_equal_a_direct_computation() {
        let (model, source) = (open("llama"), text(|i| i % 12 > 1));
        let sums = losses(&dictionary_at(HOOK, 24, 50), &source, &[21]);
        let (mut expected, mut kl_zero) = ((0.0, 0), 0.0);
        for sequence in source.all.tokens.chunks_exact(12) {
            let run = model.forward(&model.tokens(&[sequence]).unwrap(), &HookPlan::new().with_logits()).unwrap();
            let logits = run.logits().unwrap().get(0).unwrap().to_vec2::<f32>().unwrap();
            let zeroed = Edit::new(HOOK.parse().unwrap(), EditOp::Ablate);
            let plan = HookPlan::new().with_logits().edit(zeroed);
            let run = model.forward(&model.tokens(&[sequence]).unwrap(), &plan).unwrap();
            let zero = run.logits().unwrap().get(0).unwrap().to_vec2::<f32>().unwrap();
            let probabilities = |logits: &[f32]| -> Vec<f64> {
                let total: f64 = logits.iter().map(|x| f64::from(*x).exp()).sum();
                logits.iter().map(|x| f64::from(*x).exp() / total).collect()
            };
            for (clean, zero) in logits.iter().zip(&zero).skip(2) {
                let pairs = probabilities(clean).into_iter().zip(probabilities(zero));
                kl_zero += pairs.map(|(p, q)| p * (p / q).ln()).sum::<f64>();
            }
            for i in (2..11).filter(|&i| sequence[i + 1] != 21) {
                let total: f64 = logits[i].iter().map(|x| f64::from(*x).exp()).sum();
                expected.0 -= (f64::from(logits[i][sequence[i + 1] as usize]).exp() / total).ln();
                expected.1 += 1;
            }
        }
        assert_eq!((sums.targets, sums.positions), (expected.1, 50));
        assert!(expected.1 < 45, "an ignored target occurs");
        assert!((sums.performance().ce_loss_without_sae - expected.0 / expected.1 as f64).abs() < 1e-6);
        assert!((sums.behavior().kl_div_with_ablation - kl_zero / 50.0).abs() < 1e-6 && kl_zero > 1.0);
    }

    #[test]
    fn positions_left_out_pass_through_unchanged() {
        // With every position but the last left out, only the last one's prediction may change.
        let sums = losses(&dictionary_at(HOOK, 24, 50), &text(|i| i % 12 == 10), &[]);
        let clean = losses(&perfect(), &text(|i| i % 12 == 10), &[]);
        assert!(sums.kl_sae > 1e-3 && clean.kl_sae < 1e-6);
        let model = open("llama");
        let dictionary = Arc::new(dictionary_at(HOOK, 24, 50));
        let placement = Placement::of(&dictionary, model.config()).unwrap();
        let passes = Passes { dictionary: Arc::clone(&dictionary), model: &model, placement };
        let batch = text(|i| i % 12 == 10).all;
        let splice = Splice { dictionary, kept: batch.kept.clone() };
        let edited = passes.logits(&batch, HookPlan::new().edit(placement.edit(EditOp::Rewrite(Arc::new(splice)))));
        let (edited, clean) = (edited.unwrap(), passes.logits(&batch, HookPlan::new()).unwrap());
        for (i, (a, b)) in edited.chunks_exact(48).zip(clean.chunks_exact(48)).enumerate() {
            assert_eq!(a == b, i % 12 < 10, "position {i}");
        }
    }
}
