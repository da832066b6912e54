//! What a steered text is like, judged by the unsteered model.
//!
//! | measure | what it is |
//! | --- | --- |
//! | concept | mean of a feature's activation, or of the projection on a direction, over the written tokens, when the unsteered model reads them after the prompt |
//! | KL | `KL(p ‖ q)` in nats of the next token, `p` unsteered and `q` steered, mean over the positions that predict the *unsteered* text: the same text for every strength |
//! | perplexity | `exp` of the unsteered model's mean loss on the written tokens |
//! | repetition | share of the text's three-token runs that occurred in it before |
//!
//! A concept score above the unsteered text's says that the text itself is about the concept, not only that hidden
//! states were moved: the edit is not there when it is read.

use std::collections::BTreeSet;

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;
use serde::Serialize;

use crate::analysis::Placement;
use crate::base::{Context, Error, Result};
use crate::model::{HookPlan, Model, Run};

use super::intervention::Concept;

/// Tokens of a run that counts as repeated when it occurs again.
const RUN: usize = 3;

/// What a text is like. Absent is what a text that ended at once, or too early, does not tell.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Measures {
    /// Mean of each concept over the written tokens, the one that ended the text left out.
    pub concepts: Vec<Option<f64>>,
    /// Mean next-token KL divergence from the unsteered model, in nats; zero for the unsteered text.
    pub kl: Option<f64>,
    /// Perplexity of the written tokens under the unsteered model.
    pub perplexity: Option<f64>,
    /// Share of repeated three-token runs, 0 to 1.
    pub repetition: Option<f64>,
}

/// The unsteered model as a reader of texts after one prompt.
pub(super) struct Reader<'a> {
    pub(super) model: &'a Model,
    pub(super) concepts: &'a [Concept],
    pub(super) prompt: &'a [u32],
    /// Tokens that end a text.
    pub(super) stop_tokens: &'a [u32],
}

/// Next-token logits at the positions that predict a text, `[n, v]`.
pub(super) struct Predictions {
    logits: Vec<f32>,
    v: usize,
}

impl Reader<'_> {
    /// Reads `written`, the tokens after the prompt.
    ///
    /// # Errors
    /// `NonFinite` when logits are not finite, and whatever the model gives.
    pub(super) fn read(&self, written: &[u32]) -> Result<(Measures, Predictions)> {
        let plan = self.concepts.iter().fold(HookPlan::new(), |plan, concept| plan.capture(concept.at.point));
        let (run, predictions) = self.pass(written, plan)?;
        let ended = written.last().is_some_and(|token| self.stop_tokens.contains(token));
        let text = &written[..written.len() - usize::from(ended)];
        let mut concepts = Vec::with_capacity(self.concepts.len());
        for concept in self.concepts {
            let values = concept.read(&rows_at(&run, concept.at)?)?;
            let own = values.iter().skip(self.prompt.len()).take(text.len());
            concepts.push(mean(own.map(|v| f64::from(*v))));
        }
        let measures = Measures {
            concepts,
            kl: None,
            perplexity: mean(predictions.losses(written).into_iter()).map(f64::exp),
            repetition: repetition(text),
        };
        Ok((measures, predictions))
    }

    /// Mean divergence of the model under `plan` from the unsteered `predictions` of `written`.
    ///
    /// # Errors
    /// As [`Reader::read`].
    pub(super) fn divergence(&self, plan: HookPlan, written: &[u32], predictions: &Predictions) -> Result<Option<f64>> {
        let (_, steered) = self.pass(written, plan)?;
        let rows = predictions.rows().zip(steered.rows()).collect::<Vec<_>>();
        let divergences: Vec<f64> = rows.into_par_iter().map(|(p, q)| divergence(p, q)).collect();
        Ok(mean(divergences.into_iter()))
    }

    /// One pass over prompt and text under `plan`.
    fn pass(&self, written: &[u32], plan: HookPlan) -> Result<(Run, Predictions)> {
        let mut tokens = [self.prompt, written].concat();
        // Generation may end with one token more than the model reads at once.
        tokens.truncate(self.model.config().context_length);
        let run = self.model.forward(&self.model.tokens(&[&tokens])?, &plan.with_logits())?;
        let reading = || "reading logits".to_owned();
        let first = self.prompt.len().saturating_sub(1);
        let rows = written.len().min(tokens.len() - first);
        let logits = run.logits()?.get(0).and_then(|t| t.narrow(0, first, rows)).during(reading)?;
        let v = logits.dim(1).during(reading)?;
        let logits = host(&logits)?;
        if let Some(bad) = logits.iter().position(|x| !x.is_finite()) {
            return Err(Error::NonFinite {
                what: "logits".into(),
                count: logits.iter().filter(|x| !x.is_finite()).count(),
                at: format!("position {}", first + bad / v.max(1)),
                remedy: "use a smaller steering strength, or --dtype f32".into(),
            });
        }
        Ok((run, Predictions { logits, v }))
    }
}

impl Predictions {
    fn rows(&self) -> impl Iterator<Item = &[f32]> {
        self.logits.chunks_exact(self.v.max(1))
    }

    /// The loss on each of `targets`, in nats.
    fn losses(&self, targets: &[u32]) -> Vec<f64> {
        let rows = self.rows().zip(targets);
        rows.filter_map(|(row, &target)| Some(log_sum_exp(row) - f64::from(*row.get(target as usize)?))).collect()
    }
}

/// `KL(p ‖ q)` of the distributions that two rows of logits stand for.
fn divergence(p: &[f32], q: &[f32]) -> f64 {
    let (log_p, log_q) = (log_sum_exp(p), log_sum_exp(q));
    let term = |(p, q): (&f32, &f32)| {
        let (p, q) = (f64::from(*p) - log_p, f64::from(*q) - log_q);
        p.exp() * (p - q)
    };
    p.iter().zip(q).map(term).sum::<f64>().max(0.0)
}

fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = f64::from(logits.iter().fold(f32::NEG_INFINITY, |max, x| max.max(*x)));
    max + logits.iter().map(|x| (f64::from(*x) - max).exp()).sum::<f64>().ln()
}

/// The share of three-token runs that occurred before (one minus distinct-3; Li et al. 2016, "A Diversity-Promoting
/// Objective Function for Neural Conversation Models"); `None` for texts shorter than that.
pub(super) fn repetition(tokens: &[u32]) -> Option<f64> {
    let runs = tokens.windows(RUN);
    let total = runs.len();
    let distinct = runs.collect::<BTreeSet<_>>().len();
    (total > 0).then(|| (total - distinct) as f64 / total as f64)
}

/// The mean, if there is anything.
pub(super) fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, n) = values.fold((0.0, 0usize), |(sum, n), value| (sum + value, n + 1));
    (n > 0).then(|| sum / n as f64)
}

/// What a pass over one sequence captured at a placement, `[s, d]`.
pub(super) fn rows_at(run: &Run, at: Placement) -> Result<Vec<f32>> {
    let captured = run.captured(at.point)?;
    match at.head {
        Some(head) => host(&captured.narrow(2, head, 1)?),
        None => host(captured),
    }
}

fn host(x: &Tensor) -> Result<Vec<f32>> {
    let values = x.to_dtype(DType::F32).and_then(|x| x.to_device(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>());
    values.during(|| "reading a pass".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repetition_is_the_share_of_runs_seen_before() {
        assert_eq!(repetition(&[1, 2]), None);
        assert_eq!(repetition(&[1, 2, 3, 4]), Some(0.0));
        assert_eq!(repetition(&[7; 12]), Some(0.9));
        assert_eq!(repetition(&[1, 2, 1, 2, 1]), Some(1.0 / 3.0));
    }

    #[test]
    fn divergence_is_zero_for_equal_distributions_and_the_textbook_value_otherwise() {
        let (p, q) = ([0.0f32, 0.0], [3f32.ln(), 0.0]);
        assert!(divergence(&p, &[5.0, 5.0]) < 1e-12, "logits are defined up to a constant");
        let expected = 0.5 * (0.5f64 / 0.75).ln() + 0.5 * (0.5f64 / 0.25).ln();
        assert!((divergence(&p, &q) - expected).abs() < 1e-7);
    }
}
