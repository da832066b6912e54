//! Steering a model while it writes: what is changed ([`Intervention`]), the texts without and with it, and what every
//! strength does to them ([`sweep()`]).

mod difference;
mod direction;
mod intervention;
mod measure;
mod sweep;
mod transcoders;
mod vector;

pub use difference::{Difference, Pool, difference_of_means};
pub use direction::{DirectionEdit, DirectionOp};
pub use intervention::{Concept, FeatureEdits, Intervention};
pub use measure::Measures;
pub use sweep::{PromptSweep, Written, summary, sweep};
pub use transcoders::TranscoderEdits;
pub use vector::{SteeringVector, VectorOrigin};

use serde::{Deserialize, Serialize};

use crate::base::{Context, Progress, Result};
use crate::model::generate::GenerateSettings;
use crate::model::{HookPlan, KvCache, Model, Positions, Run};

/// Which positions are steered.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SteerPositions {
    /// Prompt and generated text.
    #[default]
    All,
    /// Generated text only.
    Generated,
    /// These positions of each prompt, one list a prompt, and nothing else.
    Listed(Vec<Vec<usize>>),
}

impl SteerPositions {
    /// The positions of a text that begins with the prompt of this number, which has `prompt_len` tokens.
    pub fn of(&self, prompt: usize, prompt_len: usize) -> Positions {
        match self {
            Self::All => Positions::All,
            Self::Generated => Positions::From(prompt_len),
            Self::Listed(lists) => Positions::List(lists.get(prompt).cloned().unwrap_or_default()),
        }
    }
}

/// How to steer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SteerSettings {
    /// Where.
    pub positions: SteerPositions,
    /// How to choose tokens, the same for all texts.
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
    /// What the unsteered text is like.
    pub before: Measures,
    /// What the steered text is like.
    pub after: Measures,
    /// What each edit turns ([`Intervention::concepts`]) on each position of `compared`, before the edits:
    /// `[positions][edits]`. Zero on positions that [`FeatureEdits::max_norm`] leaves alone: the dictionary never saw
    /// such rows.
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

/// Generates after `prompt` without and with `intervention`.
///
/// # Errors
/// As [`sweep()`].
pub fn steer(
    model: &Model,
    prompt: &[u32],
    intervention: &Intervention,
    settings: &SteerSettings,
    progress: &dyn Progress,
) -> Result<SteerResult> {
    let (mut texts, prompts) = (None, [prompt.to_vec()]);
    sweep(model, &prompts, std::slice::from_ref(intervention), settings, progress, |_, texts_of_prompt| {
        texts = Some(texts_of_prompt.clone());
        Ok(())
    })?;
    let PromptSweep { unsteered, steered } = texts.unwrap_or_default();
    let steered = steered.into_iter().next().unwrap_or_default();
    let mut compared = prompt.to_vec();
    if settings.positions == SteerPositions::Generated && prompt.len() < model.config().context_length {
        compared.extend(unsteered.tokens.first());
    }
    let concepts = intervention.concepts(model.config())?;
    let capture = concepts.iter().fold(HookPlan::new(), |plan, concept| plan.capture(concept.at.point));
    let plan = intervention.plan(model, settings.positions.of(0, prompt.len()))?;
    let (before, run) = next_token(model, &compared, &capture)?;
    let (after, _) = next_token(model, &compared, &plan)?;
    let mut activations = vec![Vec::with_capacity(concepts.len()); compared.len()];
    for concept in &concepts {
        let values = concept.read(&measure::rows_at(&run, concept.at)?)?;
        activations.iter_mut().zip(values).for_each(|(row, value)| row.push(value));
    }
    let (gained, lost) = changes(&before, &after, settings.top_changes);
    let (before, after) = (unsteered.measures, steered.measures);
    Ok(SteerResult {
        unsteered: unsteered.tokens,
        steered: steered.tokens,
        before,
        after,
        activations,
        compared,
        gained,
        lost,
    })
}

/// Probabilities `[v]` of the token after `tokens`, and what `plan` captured.
fn next_token(model: &Model, tokens: &[u32], plan: &HookPlan) -> Result<(Vec<f32>, Run)> {
    let plan = plan.clone().with_logits().resolve(model.config())?;
    let run = model.step(&model.tokens(&[tokens])?, &plan, &mut KvCache::new())?;
    let reading = || "reading next-token probabilities".to_owned();
    let logits = run.logits()?.flatten_all().during(reading)?;
    let probabilities = candle_nn::ops::softmax(&logits, 0).and_then(|p| p.to_vec1::<f32>()).during(reading)?;
    Ok((probabilities, run))
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
mod tests;
