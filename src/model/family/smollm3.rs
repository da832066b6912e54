//! SmolLM3: Llama without rotation in every fourth layer (`configuration_smollm3.py`).

use crate::base::{Error, Result};

use super::super::config::{ModelConfig, Position};
use super::llama_like::{self, Defaults};
use super::rope::RopeDefaults;
use super::{Fields, Names, layers};

const DEFAULTS: Defaults = Defaults {
    key_value_heads: Some(4),
    rope: RopeDefaults { theta: 2_000_000.0, partial: None, context_length: 32_768 },
    ..llama_like::LLAMA
};

pub(super) fn parse(fields: &Fields<'_>) -> Result<(ModelConfig, Names)> {
    let base = llama_like::parse(fields, "smollm3", DEFAULTS)?;
    let rotates = rotating_layers(fields, base.n_layers)?;
    let window = fields.usize_option("sliding_window")?;
    let slides = fields.bool_or("use_sliding_window", false)? && window.is_some();
    let sliding = layers::sliding(fields, base.n_layers, |layer| slides && !rotates[layer])?;
    let Position::Rotary { rotations, .. } = base.position else { return Ok((base, llama_like::NAMES)) };
    let config = ModelConfig {
        position: Position::Rotary { rotations, layers: rotates.iter().map(|&r| r.then_some(0)).collect() },
        windows: layers::windows(fields, &sliding, window)?,
        ..base
    };
    Ok((config, llama_like::NAMES))
}

/// `no_rope_layers` is one where a layer does rotate.
fn rotating_layers(fields: &Fields<'_>, n_layers: usize) -> Result<Vec<bool>> {
    if fields.get("no_rope_layers").is_none() {
        let interval = fields.usize_or("no_rope_layer_interval", 4)?.max(1);
        return Ok((0..n_layers).map(|layer| !(layer + 1).is_multiple_of(interval)).collect());
    }
    let flags = fields.flag_list("no_rope_layers")?;
    if flags.len() == n_layers {
        return Ok(flags);
    }
    Err(Error::malformed(
        "model configuration",
        fields.path(),
        format!("{n_layers} entries in 'no_rope_layers'"),
        flags.len().to_string(),
        "one entry a layer is needed; download config.json again",
    ))
}
