//! OLMoE: Llama with a mixture of experts, norms on whole query and key projections, and clipping
//! (`configuration_olmoe.py`, `modeling_olmoe.py`).

use crate::base::Result;

use super::super::config::{Attention, Mlp, ModelConfig, QkNorm, QkNormScope};
use super::llama_like::{self, Defaults};
use super::rope::RopeDefaults;
use super::{Fields, MlpNames, Names, qwen2_moe};

const DEFAULTS: Defaults = Defaults {
    rms_norm_eps: 1e-5,
    rope: RopeDefaults { context_length: 4096, ..llama_like::LLAMA.rope },
    ..llama_like::LLAMA
};

const NAMES: Names = Names {
    qk_norm: Some(["self_attn.q_norm", "self_attn.k_norm"]),
    mlp: MlpNames::Experts(qwen2_moe::EXPERTS),
    ..llama_like::NAMES
};

pub(super) fn parse(fields: &Fields<'_>) -> Result<(ModelConfig, Names)> {
    let experts = qwen2_moe::experts(fields, [64, 8])?;
    let base = llama_like::parse(fields, "olmoe", DEFAULTS)?.with_experts(experts);
    let config = ModelConfig {
        attention: Attention {
            qk_norm: Some(QkNorm { scope: QkNormScope::Projection, norm: base.norm }),
            clip_qkv: fields.f64_option("clip_qkv")?,
            ..base.attention
        },
        mlp: Mlp { bias: false, ..base.mlp },
        ..base
    };
    Ok((config, NAMES))
}
