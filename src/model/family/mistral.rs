//! Mistral: Llama with a sliding window in all layers, or in none (`configuration_mistral.py`).

use crate::base::Result;

use super::super::config::ModelConfig;
use super::llama_like::{self, Defaults};
use super::rope::RopeDefaults;
use super::{Fields, Names, layers};

const DEFAULTS: Defaults = Defaults {
    key_value_heads: Some(8),
    rope: RopeDefaults { context_length: 131_072, ..llama_like::LLAMA.rope },
    ..llama_like::LLAMA
};

pub(super) fn parse(fields: &Fields<'_>) -> Result<(ModelConfig, Names)> {
    fields.refuse(
        "layer_types",
        "Mistral's layers are all alike; checkpoints whose layers differ are of type ministral",
    )?;
    let base = llama_like::parse(fields, "mistral", DEFAULTS)?.without_biases();
    let config = ModelConfig { windows: layers::same_window(fields, base.n_layers, Some(4096))?, ..base };
    Ok((config, llama_like::NAMES))
}
