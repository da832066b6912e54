//! StableLM (`configuration_stablelm.py`): Llama with LayerNorm, partial rotation, and in some models parallel blocks
//! and a norm for each head's queries and keys.

use crate::base::Result;

use super::super::config::{Attention, BlockLayout, Mlp, ModelConfig, Norm, QkNorm, QkNormScope};
use super::llama_like::{self, Defaults};
use super::rope::RopeDefaults;
use super::{Fields, Names};

const DEFAULTS: Defaults = Defaults {
    key_value_heads: Some(32),
    rope: RopeDefaults { theta: 10_000.0, partial: Some(0.25), context_length: 4096 },
    ..llama_like::LLAMA
};

pub(super) fn parse(fields: &Fields<'_>) -> Result<(ModelConfig, Names)> {
    let base = llama_like::parse(fields, "stablelm", DEFAULTS)?;
    let eps = fields.f64_or("layer_norm_eps", 1e-5)?;
    let parallel = fields.bool_or("use_parallel_residual", false)?;
    let qk_norm = QkNorm { scope: QkNormScope::OwnHead, norm: Norm::LayerNormWithoutBias { eps } };
    let config = ModelConfig {
        norm: Norm::LayerNorm { eps },
        layout: if parallel { BlockLayout::ParallelSharedNorm } else { BlockLayout::PreNorm },
        attention: Attention {
            qk_norm: fields.bool_or("qk_layernorm", false)?.then_some(qk_norm),
            qkv_bias: fields.bool_or("use_qkv_bias", false)?,
            out_bias: false,
            ..base.attention
        },
        mlp: Mlp { bias: false, ..base.mlp },
        ..base
    };
    let names = Names {
        qk_norm: Some(["self_attn.q_layernorm", "self_attn.k_layernorm"]),
        ln2: if parallel { None } else { llama_like::NAMES.ln2 },
        ..llama_like::NAMES
    };
    Ok((config, names))
}
