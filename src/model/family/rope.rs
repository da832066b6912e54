//! `rope_theta` and `rope_scaling`, or transformers v5's `rope_parameters` that holds both.

use crate::base::nearest::nearest;
use crate::base::{Error, Result};

use super::super::config::{RopeScaling, Rotary};
use super::Fields;
use super::layers::LAYER_TYPES;

const TYPES: [&str; 6] = ["default", "linear", "dynamic", "llama3", "yarn", "longrope"];

/// What a family's configuration class says where `config.json` is silent.
#[derive(Debug, Clone, Copy)]
pub(super) struct RopeDefaults {
    /// `rope_theta`
    pub(super) theta: f64,
    /// `partial_rotary_factor`; `None` in families that rotate whole heads.
    pub(super) partial: Option<f64>,
    /// Longest sequence, `max_position_embeddings`.
    pub(super) context_length: usize,
}

/// Reads the rotary settings of a configuration whose heads have width `d_head`.
pub(super) fn parse(fields: &Fields<'_>, d_head: usize, defaults: RopeDefaults) -> Result<Rotary> {
    let parameters = fields.object("rope_parameters")?;
    if let Some(nested) = &parameters
        && LAYER_TYPES.iter().any(|kind| nested.names(kind))
    {
        return Err(fields.unsupported("rope_parameters", "models of this type rotate alike in all layers"));
    }
    let own = parameters.as_ref().unwrap_or(fields);
    let old = fields.object("rope_scaling")?;
    let theta = own.f64_or("rope_theta", fields.f64_or("rope_theta", defaults.theta)?)?;
    rotary(parameters.as_ref().or(old.as_ref()), own, fields, d_head, RopeDefaults { theta, ..defaults })
}

/// Reads the settings of one kind of layer from transformers v5's nested `rope_parameters`, if they are nested.
pub(super) fn parse_nested(
    fields: &Fields<'_>,
    kind: &str,
    d_head: usize,
    defaults: RopeDefaults,
) -> Result<Option<Rotary>> {
    let Some(parameters) = fields.object("rope_parameters")? else { return Ok(None) };
    if !LAYER_TYPES.iter().any(|kind| parameters.names(kind)) {
        return Ok(None);
    }
    let Some(own) = parameters.object(kind)? else {
        return Err(fields.unsupported("rope_parameters", &format!("it has no settings for '{kind}' layers")));
    };
    let theta = own.f64_or("rope_theta", defaults.theta)?;
    rotary(Some(&own), &own, fields, d_head, RopeDefaults { theta, ..defaults }).map(Some)
}

/// `own` holds `partial_rotary_factor` in transformers v5, `fields` before.
fn rotary(
    scaling: Option<&Fields<'_>>,
    own: &Fields<'_>,
    fields: &Fields<'_>,
    d_head: usize,
    defaults: RopeDefaults,
) -> Result<Rotary> {
    let key = "partial_rotary_factor";
    let partial = own.f64_or(key, fields.f64_or(key, defaults.partial.unwrap_or(1.0))?)?;
    let dims = (d_head as f64 * partial) as usize;
    if defaults.partial.is_none() && dims != d_head {
        let holder = if own.get(key).is_some() { own } else { fields };
        return Err(holder.unsupported(key, "models of this type rotate whole heads"));
    }
    let scaling = match scaling {
        Some(scaling) => scaling_of(scaling, fields, dims, defaults.context_length)?,
        None => RopeScaling::None,
    };
    Ok(Rotary { dims, theta: defaults.theta, scaling })
}

/// How long a sequence may be: dynamic scaling states the trained length and is there to go past it.
pub(super) fn context_length(rotary: &Rotary, trained: usize) -> usize {
    match rotary.scaling {
        RopeScaling::Dynamic { factor, .. } => (trained as f64 * factor) as usize,
        _ => trained,
    }
}

fn scaling_of(s: &Fields<'_>, model: &Fields<'_>, dims: usize, context_length: usize) -> Result<RopeScaling> {
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
        // `su` is the name in the first Phi-3 files.
        "longrope" | "su" => longrope(s, model, original(context_length)?, dims, context_length)?,
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

fn longrope(
    s: &Fields<'_>,
    model: &Fields<'_>,
    original: usize,
    dims: usize,
    context_length: usize,
) -> Result<RopeScaling> {
    let (short_factor, long_factor) = (s.f64_list("short_factor")?, s.f64_list("long_factor")?);
    for (name, list) in [("short_factor", &short_factor), ("long_factor", &long_factor)] {
        if list.len() != dims / 2 {
            return Err(Error::malformed(
                "model configuration",
                s.path(),
                format!("{} numbers in '{name}'", dims / 2),
                list.len().to_string(),
                "one number a rotary frequency is needed; download config.json again",
            ));
        }
    }
    // Beside `max_position_embeddings`, the trained length decides and `factor` is ignored.
    let beside = model.get("original_max_position_embeddings").is_some();
    let stretch = match s.f64_option("factor")?.filter(|_| !beside) {
        Some(factor) => factor,
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
