//! Several strengths on several prompts: the texts, and what each is like.

use serde::Serialize;

use super::measure::{Measures, Reader, mean};
use super::{Intervention, SteerSettings};
use crate::analysis::stop_if_cancelled;
use crate::base::progress::Unit;
use crate::base::{Error, Progress, Result};
use crate::model::generate::{GenerateSettings, generate};
use crate::model::{HookPlan, Model};

/// One text.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Written {
    /// The new tokens.
    pub tokens: Vec<u32>,
    /// What the text is like.
    #[serde(flatten)]
    pub measures: Measures,
}

/// The texts after one prompt.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct PromptSweep {
    /// Without any edit.
    pub unsteered: Written,
    /// With each intervention.
    pub steered: Vec<Written>,
}

/// Generates after every prompt without and with each of `interventions`, which differ in strength alone, and hands the
/// texts of a prompt with its number to `on_prompt` as soon as they are there.
///
/// # Errors
/// As [`Intervention::plan`] and [`generate`], before anything is generated where plans are wrong; `Flag` when there
/// are no interventions or prompts; `Interrupted` when the user stopped the work; whatever `on_prompt` gives.
pub fn sweep(
    model: &Model,
    prompts: &[Vec<u32>],
    interventions: &[Intervention],
    settings: &SteerSettings,
    progress: &dyn Progress,
    mut on_prompt: impl FnMut(usize, &PromptSweep) -> Result<()>,
) -> Result<()> {
    let (Some(first), false) = (interventions.first(), prompts.is_empty()) else {
        return Err(Error::flag("--feature", "something to change and a prompt", "nothing", "name a --feature"));
    };
    let concepts = first.concepts(model.config())?;
    for intervention in interventions {
        intervention.plan(model, settings.positions.of(0, 0))?.resolve(model.config())?;
    }
    let texts = (prompts.len() * (1 + interventions.len())) as u64;
    progress.begin("generating", texts * settings.generate.max_new_tokens as u64, Unit::Tokens);
    for (number, prompt) in prompts.iter().enumerate() {
        let reader =
            Reader { model, concepts: &concepts, prompt, stop_tokens: settings.generate.stop_tokens.as_slice() };
        let write = |plan: &HookPlan| write(model, prompt, plan, &settings.generate, progress);
        let tokens = write(&HookPlan::new())?;
        let (mut measures, predictions) = reader.read(&tokens)?;
        measures.kl = measures.perplexity.map(|_| 0.0);
        let mut all = PromptSweep { unsteered: Written { tokens, measures }, steered: Vec::new() };
        for intervention in interventions {
            let plan = intervention.plan(model, settings.positions.of(number, prompt.len()))?;
            let tokens = write(&plan)?;
            let (mut measures, _) = reader.read(&tokens)?;
            measures.kl = reader.divergence(plan, &all.unsteered.tokens, &predictions)?;
            all.steered.push(Written { tokens, measures });
        }
        on_prompt(number, &all)?;
    }
    progress.end();
    Ok(())
}

fn write(
    model: &Model,
    prompt: &[u32],
    plan: &HookPlan,
    settings: &GenerateSettings,
    progress: &dyn Progress,
) -> Result<Vec<u32>> {
    let written = generate(model, prompt, plan, settings, |_| {
        progress.advance(1);
        stop_if_cancelled(progress)
    })?;
    // A text may end early.
    progress.advance((settings.max_new_tokens - written.len()) as u64);
    Ok(written)
}

/// The mean of what texts are like: losses, concepts and divergences over all tokens together, each text's repetition
/// counting once.
pub fn summary<'a>(texts: impl IntoIterator<Item = &'a Written>) -> Measures {
    let texts: Vec<&Written> = texts.into_iter().collect();
    let weighted = |value: &dyn Fn(&Measures) -> Option<f64>| {
        let known = || texts.iter().filter_map(|text| Some((value(&text.measures)?, text.tokens.len() as f64)));
        let total: f64 = known().map(|(_, n)| n).sum();
        (total > 0.0).then(|| known().map(|(value, n)| value * n).sum::<f64>() / total)
    };
    let concepts = texts.iter().map(|text| text.measures.concepts.len()).max().unwrap_or(0);
    Measures {
        concepts: (0..concepts).map(|i| weighted(&|m| m.concepts.get(i).copied().flatten())).collect(),
        kl: weighted(&|m| m.kl),
        perplexity: weighted(&|m| m.perplexity.map(f64::ln)).map(f64::exp),
        repetition: mean(texts.iter().filter_map(|text| text.measures.repetition)),
    }
}
