//! Starcoder 2 (`configuration_starcoder2.py`): Llama with LayerNorm, a plain MLP and biases.

use crate::base::Result;

use super::super::config::{Activation, Attention, Mlp, ModelConfig, Norm};
use super::llama_like::{self, Defaults};
use super::rope::RopeDefaults;
use super::{Fields, MlpNames, Names, layers};

const DEFAULTS: Defaults = Defaults {
    key_value_heads: Some(2),
    rope: RopeDefaults { context_length: 4096, ..llama_like::LLAMA.rope },
    ..llama_like::LLAMA
};

const NAMES: Names = Names { mlp: MlpNames::Plain { up: "mlp.c_fc", down: "mlp.c_proj" }, ..llama_like::NAMES };

pub(super) fn parse(fields: &Fields<'_>) -> Result<(ModelConfig, Names)> {
    // The published files say so and the class knows nothing else.
    for (key, known) in [("mlp_type", "default"), ("norm_type", "layer_norm")] {
        if fields.string_or(key, known)? != known {
            return Err(fields.unsupported(key, &format!("only '{known}' is known")));
        }
    }
    let base = llama_like::parse(fields, "starcoder2", DEFAULTS)?;
    let bias = fields.bool_or("use_bias", true)?;
    let config = ModelConfig {
        norm: Norm::LayerNorm { eps: fields.f64_or("norm_epsilon", 1e-5)? },
        windows: layers::same_window(fields, base.n_layers, None)?,
        attention: Attention { qkv_bias: bias, out_bias: bias, ..base.attention },
        mlp: Mlp {
            gated: false,
            activation: Activation::from_name(&fields.string_or("hidden_act", "gelu_pytorch_tanh")?)?,
            bias,
            ..base.mlp
        },
        ..base
    };
    Ok((config, NAMES))
}
