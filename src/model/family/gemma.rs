//! Gemma 1: Llama with `1 + weight` norms and scaled embeddings (`configuration_gemma.py`, `modeling_gemma.py`).

use crate::base::Result;

use super::super::config::{Activation, Embedding, Mlp, ModelConfig, Norm};
use super::llama_like::{self, Defaults};
use super::rope::RopeDefaults;
use super::{Fields, Names};

/// The class defaults that Gemma 2 shares.
pub(super) const DEFAULTS: Defaults = Defaults {
    key_value_heads: Some(16),
    d_head: Some(256),
    rope: RopeDefaults { context_length: 8192, ..llama_like::LLAMA.rope },
    ..llama_like::LLAMA
};

pub(super) fn parse(fields: &Fields<'_>) -> Result<(ModelConfig, Names)> {
    let config = common(fields, "gemma", DEFAULTS)?;
    Ok((config, llama_like::NAMES))
}

/// What all Gemmas share.
pub(super) fn common(fields: &Fields<'_>, family: &'static str, defaults: Defaults) -> Result<ModelConfig> {
    let base = llama_like::parse(fields, family, defaults)?;
    // The first files said `gelu` in `hidden_act` and meant the approximation, which the models were trained with.
    let old = match fields.string_or("hidden_act", "gelu_pytorch_tanh")?.as_str() {
        "gelu" => "gelu_pytorch_tanh".to_owned(),
        named => named.to_owned(),
    };
    let activation = fields.string_or("hidden_activation", &old)?;
    Ok(ModelConfig {
        norm: Norm::RmsOnePlus { eps: base.norm.eps() },
        mlp: Mlp { activation: Activation::from_name(&activation)?, bias: false, ..base.mlp },
        embedding: Embedding { multiplier: (base.d_model as f64).sqrt(), ..base.embedding },
        ..base
    })
}
