//! Turning features while the model writes: both texts, and how the edits ([`super::rewrite`]) change the next token.

use std::sync::Arc;

use candle_core::DType;
use serde::{Deserialize, Serialize};

use super::rewrite::{FeatureEdit, FeatureRewrite};
use super::{Placement, stop_if_cancelled};
use crate::base::progress::Unit;
use crate::base::{Context, Progress, Result};
use crate::dictionary::Dictionary;
use crate::model::generate::{GenerateSettings, generate};
use crate::model::{EditOp, HookPlan, KvCache, Model, Positions};
use crate::ops::squared_norm;

/// Which positions are steered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SteerPositions {
    /// Prompt and generated text.
    #[default]
    All,
    /// Generated text only.
    Generated,
}

/// How to steer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SteerSettings {
    /// Where.
    pub positions: SteerPositions,
    /// Positions whose activation has a larger norm stay as they are; see [`FeatureRewrite::max_norm`].
    pub max_norm: Option<f64>,
    /// How to choose tokens, the same for both texts.
    pub generate: GenerateSettings,
    /// Tokens to list whose probability rose most, and fell most.
    pub top_changes: usize,
}

/// The two texts and the first difference between them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SteerResult {
    /// New tokens without the edits.
    pub unsteered: Vec<u32>,
    /// New tokens with them.
    pub steered: Vec<u32>,
    /// Activation of each edit's feature on each position of `compared`, before the edits: `[positions][edits]`. Zero
    /// on positions that [`SteerSettings::max_norm`] leaves alone: the dictionary never saw such rows.
    pub activations: Vec<Vec<f32>>,
    /// The tokens after which next-token probabilities are compared: the prompt, and where only generated positions are
    /// steered also the first unsteered token, which is the first position that edits reach.
    pub compared: Vec<u32>,
    /// Tokens whose probability rose most, largest rise first.
    pub gained: Vec<ProbabilityChange>,
    /// Tokens whose probability fell most, largest fall first.
    pub lost: Vec<ProbabilityChange>,
}

/// The probability of a next token, without and with the edits.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ProbabilityChange {
    /// Token id.
    pub token: u32,
    /// Without.
    pub before: f32,
    /// With.
    pub after: f32,
}

/// Generates after `prompt` without and with `edits`.
///
/// # Errors
/// As [`Placement::of`], [`FeatureRewrite::new`] and [`generate`]; `Interrupted` when the user stopped the work.
pub fn steer(
    model: &Model,
    dictionary: &Arc<Dictionary>,
    prompt: &[u32],
    edits: &[FeatureEdit],
    settings: &SteerSettings,
    progress: &dyn Progress,
) -> Result<SteerResult> {
    let placement = Placement::of(dictionary, model.config())?;
    let plan = steering_plan(model, dictionary, edits, prompt.len(), settings)?;
    progress.begin("generating", 2 * settings.generate.max_new_tokens as u64, Unit::Tokens);
    let on_token = |_| {
        progress.advance(1);
        stop_if_cancelled(progress)
    };
    let unsteered = generate(model, prompt, &HookPlan::new(), &settings.generate, on_token)?;
    let steered = generate(model, prompt, &plan, &settings.generate, on_token)?;
    progress.end();
    let mut compared = prompt.to_vec();
    if settings.positions == SteerPositions::Generated && prompt.len() < model.config().context_length {
        compared.extend(unsteered.first());
    }
    let capture = HookPlan::new().capture(placement.point);
    let (before, rows) = next_token(model, &compared, &capture, placement)?;
    let (after, _) = next_token(model, &compared, &plan, placement)?;
    let features: Vec<u32> = edits.iter().map(|edit| edit.feature).collect();
    let mut activations = dictionary.feature_activations(&rows, &features)?;
    if let Some(limit) = settings.max_norm {
        for (row, activations) in rows.chunks_exact(dictionary.d_in()).zip(activations.chunks_exact_mut(features.len()))
        {
            if f64::from(squared_norm(row)).sqrt() > limit {
                activations.fill(0.0);
            }
        }
    }
    let (gained, lost) = changes(&before, &after, settings.top_changes);
    let activations = activations.chunks_exact(features.len()).map(<[f32]>::to_vec).collect();
    Ok(SteerResult { unsteered, steered, activations, compared, gained, lost })
}

/// The plan that applies `edits` to text after a prompt of `prompt_len` tokens.
///
/// # Errors
/// As [`Placement::of`] and [`FeatureRewrite::new`].
pub fn steering_plan(
    model: &Model,
    dictionary: &Arc<Dictionary>,
    edits: &[FeatureEdit],
    prompt_len: usize,
    settings: &SteerSettings,
) -> Result<HookPlan> {
    let placement = Placement::of(dictionary, model.config())?;
    let rewrite = FeatureRewrite::new(dictionary, edits, model.device())?.max_norm(settings.max_norm);
    let positions = match settings.positions {
        SteerPositions::All => Positions::All,
        SteerPositions::Generated => Positions::From(prompt_len),
    };
    Ok(HookPlan::new().edit(placement.edit(EditOp::Rewrite(Arc::new(rewrite))).positions(positions)))
}

/// Probabilities `[v]` of the token after `tokens`, and the rows captured at the dictionary's place, if any.
fn next_token(model: &Model, tokens: &[u32], plan: &HookPlan, placement: Placement) -> Result<(Vec<f32>, Vec<f32>)> {
    let plan = plan.clone().with_logits().resolve(model.config())?;
    let run = model.step(&model.tokens(&[tokens])?, &plan, &mut KvCache::new())?;
    let reading = || "reading next-token probabilities".to_owned();
    let logits = run.logits()?.flatten_all().during(reading)?;
    let probabilities = candle_nn::ops::softmax(&logits, 0).and_then(|p| p.to_vec1::<f32>()).during(reading)?;
    let Some(captured) = run.captures.get(&placement.point) else { return Ok((probabilities, Vec::new())) };
    let captured = match placement.head {
        Some(head) => captured.narrow(2, head, 1).during(reading)?,
        None => captured.clone(),
    };
    let rows = captured.to_dtype(DType::F32).and_then(|x| x.flatten_all()?.to_vec1::<f32>()).during(reading)?;
    Ok((probabilities, rows))
}

/// The `n` tokens whose probability rose most and fell most; of equal changes the lower token comes first.
fn changes(before: &[f32], after: &[f32], n: usize) -> (Vec<ProbabilityChange>, Vec<ProbabilityChange>) {
    let of = |(token, (&before, &after))| ProbabilityChange { token: token as u32, before, after };
    let mut all: Vec<ProbabilityChange> = before.iter().zip(after).enumerate().map(of).collect();
    let rise = |change: &ProbabilityChange| change.after - change.before;
    all.sort_by(|a, b| rise(b).total_cmp(&rise(a)));
    let gained = all.iter().filter(|c| rise(c) > 0.0).take(n).copied().collect();
    all.sort_by(|a, b| rise(a).total_cmp(&rise(b)).then(a.token.cmp(&b.token)));
    let lost = all.iter().filter(|c| rise(c) < 0.0).take(n).copied().collect();
    (gained, lost)
}

#[cfg(test)]
#[path = "steer_tests.rs"]
mod tests;
