//! Sampling token by token over [`Model`] and a [`HookPlan`], with a key-value cache. Knows nothing of features.

use candle_core::D;
use candle_transformers::generation::{LogitsProcessor, Sampling};

use crate::base::{Error, Result};

use super::decoder::Model;
use super::kv_cache::KvCache;
use super::plan::HookPlan;

/// How to choose tokens.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct GenerateSettings {
    /// Tokens to generate at most.
    pub max_new_tokens: usize,
    /// Zero takes the most likely token.
    pub temperature: f64,
    /// Samples from the smallest set of tokens with this probability together.
    pub top_p: Option<f64>,
    /// Seed of the sampling.
    pub seed: u64,
    /// Tokens that end the text.
    pub stop_tokens: Vec<u32>,
}

/// Generates after `prompt`, calling `on_token` with each new token; returns the new tokens.
///
/// Edits of the plan hold for the prompt and for every generated position, as their [`super::Positions`] say.
/// Generation ends early at the model's context length.
///
/// # Errors
/// When the prompt is empty, too long or outside the vocabulary, when logits are not finite, or when `on_token`
/// fails.
pub fn generate(
    model: &Model,
    prompt: &[u32],
    plan: &HookPlan,
    settings: &GenerateSettings,
    mut on_token: impl FnMut(u32) -> Result<()>,
) -> Result<Vec<u32>> {
    let plan = plan.clone().with_logits().resolve(model.config())?;
    let mut sampler = sampler(settings);
    let mut cache = KvCache::new();
    let mut pending = prompt.to_vec();
    let mut generated = Vec::new();
    while generated.len() < settings.max_new_tokens && cache.len() + pending.len() <= model.config().context_length {
        let tokens = model.tokens(&[&pending])?;
        let run = model.step(&tokens, &plan, &mut cache)?;
        let logits = run.logits()?.get(0)?.get(0)?;
        if !logits.max(D::Minus1)?.to_scalar::<f32>()?.is_finite() {
            return Err(Error::NonFinite {
                what: "logits".into(),
                count: 1,
                at: format!("position {}", cache.len() - 1),
                remedy:
                    "use a smaller steering strength, or --dtype f32; if the model fails unsteered too, its weights \
                         are damaged"
                        .into(),
            });
        }
        let token = sampler.sample(&logits)?;
        generated.push(token);
        on_token(token)?;
        if settings.stop_tokens.contains(&token) {
            break;
        }
        pending = vec![token];
    }
    if generated.is_empty() && settings.max_new_tokens > 0 {
        return Err(Error::Mismatch {
            what: "prompt and model",
            left: format!("a prompt of {} tokens", prompt.len()),
            right: format!("a context of {} tokens", model.config().context_length),
            remedy: "shorten the prompt".into(),
        });
    }
    Ok(generated)
}

fn sampler(settings: &GenerateSettings) -> LogitsProcessor {
    let sampling = match settings.top_p {
        _ if settings.temperature <= 0.0 => Sampling::ArgMax,
        Some(p) if p < 1.0 => Sampling::TopP { p, temperature: settings.temperature },
        _ => Sampling::All { temperature: settings.temperature },
    };
    LogitsProcessor::from_sampling(settings.seed, sampling)
}
