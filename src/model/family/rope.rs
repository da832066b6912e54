//! `rope_theta` and `rope_scaling`, or transformers v5's `rope_parameters` that holds both.

use crate::base::nearest::nearest;
use crate::base::{Error, Result};

use super::super::config::{RopeScaling, Rotary};
use super::Fields;

const TYPES: [&str; 6] = ["default", "linear", "dynamic", "llama3", "yarn", "longrope"];

/// Reads the rotary settings of a configuration whose heads have width `d_head`.
pub(super) fn parse(fields: &Fields<'_>, d_head: usize, context_length: usize) -> Result<Rotary> {
    let parameters = fields.object("rope_parameters")?;
    let theta = match &parameters {
        Some(parameters) => parameters.f64_or("rope_theta", fields.f64_or("rope_theta", 10_000.0)?)?,
        None => fields.f64_or("rope_theta", 10_000.0)?,
    };
    let scaling = match parameters.or(fields.object("rope_scaling")?) {
        Some(scaling) => scaling_of(&scaling, fields, d_head, context_length)?,
        None => RopeScaling::None,
    };
    Ok(Rotary { theta, scaling })
}

fn scaling_of(s: &Fields<'_>, model: &Fields<'_>, d_head: usize, context_length: usize) -> Result<RopeScaling> {
    // `type` is the key of files written before transformers 4.43.
    let kind = if s.get("rope_type").is_some() { s.string("rope_type")? } else { s.string_or("type", "default")? };
    let original = |default: usize| -> Result<usize> {
        let own = s.usize_or("original_max_position_embeddings", default)?;
        model.usize_or("original_max_position_embeddings", own)
    };
    Ok(match kind.as_str() {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: s.f64("factor")? },
        "dynamic" => {
            RopeScaling::Dynamic { factor: s.f64("factor")?, max_position_embeddings: original(context_length)? }
        }
        "llama3" => RopeScaling::Llama3 {
            factor: s.f64("factor")?,
            low_freq_factor: s.f64("low_freq_factor")?,
            high_freq_factor: s.f64("high_freq_factor")?,
            original_max_position_embeddings: s.usize("original_max_position_embeddings")?,
        },
        "yarn" => RopeScaling::Yarn {
            factor: s.f64("factor")?,
            beta_fast: s.f64_or("beta_fast", 32.0)?,
            beta_slow: s.f64_or("beta_slow", 1.0)?,
            attention_factor: yarn_attention_factor(s)?,
            original_max_position_embeddings: original(context_length)?,
            truncate: s.bool_or("truncate", true)?,
        },
        "longrope" => longrope(s, original(context_length)?, d_head, context_length)?,
        _ => {
            return Err(Error::Unknown {
                kind: "rope_scaling type in config.json",
                found: kind.clone(),
                nearest: nearest(&kind, TYPES, TYPES.len()),
            });
        }
    })
}

/// The temperature of YaRN: given, or from `mscale`, or `0.1 ln(factor) + 1`.
fn yarn_attention_factor(s: &Fields<'_>) -> Result<f64> {
    if s.get("attention_factor").is_some() {
        return s.f64("attention_factor");
    }
    let factor = s.f64("factor")?;
    let temperature = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
    let (mscale, all_dim) = (s.f64_or("mscale", 0.0)?, s.f64_or("mscale_all_dim", 0.0)?);
    Ok(if mscale != 0.0 && all_dim != 0.0 { temperature(mscale) / temperature(all_dim) } else { temperature(1.0) })
}

fn longrope(s: &Fields<'_>, original: usize, d_head: usize, context_length: usize) -> Result<RopeScaling> {
    let (short_factor, long_factor) = (s.f64_list("short_factor")?, s.f64_list("long_factor")?);
    for (name, list) in [("short_factor", &short_factor), ("long_factor", &long_factor)] {
        if list.len() != d_head / 2 {
            return Err(Error::malformed(
                "model configuration",
                s.path(),
                format!("{} numbers in '{name}'", d_head / 2),
                list.len().to_string(),
                "one number a rotary frequency is needed; download config.json again",
            ));
        }
    }
    let stretch = match s.get("factor") {
        Some(_) => s.f64("factor")?,
        None => context_length as f64 / original as f64,
    };
    let by_length = if stretch > 1.0 { (1.0 + stretch.ln() / (original as f64).ln()).sqrt() } else { 1.0 };
    Ok(RopeScaling::Longrope {
        short_factor,
        long_factor,
        attention_factor: s.f64_or("attention_factor", by_length)?,
        original_max_position_embeddings: original,
    })
}
