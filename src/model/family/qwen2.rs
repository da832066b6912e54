//! Qwen 2 and 2.5: Llama with biases on queries, keys and values, and windows in the upper layers if at all
//! (`configuration_qwen2.py`).

use crate::base::Result;

use super::super::config::{Attention, Mlp, ModelConfig};
use super::llama_like::{self, Defaults};
use super::rope::RopeDefaults;
use super::{Fields, Names, layers};

/// The class defaults that Qwen 3 shares.
pub(super) const DEFAULTS: Defaults = Defaults {
    key_value_heads: Some(32),
    rope: RopeDefaults { context_length: 32_768, ..llama_like::LLAMA.rope },
    ..llama_like::LLAMA
};

pub(super) fn parse(fields: &Fields<'_>) -> Result<(ModelConfig, Names)> {
    let base = llama_like::parse(fields, "qwen2", DEFAULTS)?;
    let config = ModelConfig {
        windows: windows(fields, base.n_layers)?,
        attention: Attention { qkv_bias: true, out_bias: false, ..base.attention },
        mlp: Mlp { bias: false, ..base.mlp },
        ..base
    };
    Ok((config, llama_like::NAMES))
}

/// `sliding_window` from layer `max_window_layers` on, in models that use it.
pub(super) fn windows(fields: &Fields<'_>, n_layers: usize) -> Result<Vec<Option<usize>>> {
    let window = match (fields.bool_or("use_sliding_window", false)?, fields.names("sliding_window")) {
        (false, _) => None,
        (true, true) => fields.usize_option("sliding_window")?,
        (true, false) => Some(4096),
    };
    let first = fields.usize_or("max_window_layers", 28)?;
    let sliding = layers::sliding(fields, n_layers, |layer| window.is_some() && layer >= first)?;
    layers::windows(fields, &sliding, window)
}
