//! Phi 1, 1.5 and 2 (`configuration_phi.py`): parallel blocks with one norm, partial rotation, biases everywhere.

use crate::base::Result;

use super::super::config::{
    Activation, Attention, BlockLayout, Embedding, Mlp, ModelConfig, Norm, QkNorm, QkNormScope,
};
use super::llama_like::{self, Defaults};
use super::rope::RopeDefaults;
use super::{Fields, MlpNames, Names};

const DEFAULTS: Defaults =
    Defaults { rope: RopeDefaults { partial: Some(0.5), ..llama_like::LLAMA.rope }, ..llama_like::LLAMA };

const NAMES: Names = Names {
    qk_norm: Some(["self_attn.q_layernorm", "self_attn.k_layernorm"]),
    attention_out: "self_attn.dense",
    ln2: None,
    mlp: MlpNames::Plain { up: "mlp.fc1", down: "mlp.fc2" },
    ln_final: "final_layernorm",
    ..llama_like::NAMES
};

pub(super) fn parse(fields: &Fields<'_>) -> Result<(ModelConfig, Names)> {
    let base = llama_like::parse(fields, "phi", DEFAULTS)?;
    let norm = Norm::LayerNorm { eps: fields.f64_or("layer_norm_eps", 1e-5)? };
    let normalised = fields.bool_or("qk_layernorm", false)?;
    let config = ModelConfig {
        norm,
        layout: BlockLayout::ParallelSharedNorm,
        attention: Attention {
            qk_norm: normalised.then_some(QkNorm { scope: QkNormScope::Head, norm }),
            qkv_bias: true,
            out_bias: true,
            ..base.attention
        },
        mlp: Mlp {
            gated: false,
            activation: Activation::from_name(&fields.string_or("hidden_act", "gelu_new")?)?,
            bias: true,
            ..base.mlp
        },
        embedding: Embedding { head_bias: true, ..base.embedding },
        ..base
    };
    Ok((config, NAMES))
}
