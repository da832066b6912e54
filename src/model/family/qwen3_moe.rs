//! Qwen 3 with mixtures of experts (`configuration_qwen3_moe.py`).

use crate::base::Result;

use super::super::config::{Attention, Mlp, ModelConfig, QkNorm, QkNormScope};
use super::llama_like::{self, Defaults};
use super::{Fields, MlpNames, Names, layers, qwen2, qwen2_moe};

const DEFAULTS: Defaults = Defaults { key_value_heads: Some(4), ..qwen2::DEFAULTS };

const NAMES: Names = Names {
    qk_norm: Some(["self_attn.q_norm", "self_attn.k_norm"]),
    mlp: MlpNames::Experts(qwen2_moe::EXPERTS),
    ..llama_like::NAMES
};

pub(super) fn parse(fields: &Fields<'_>) -> Result<(ModelConfig, Names)> {
    let experts = qwen2_moe::experts(fields, [128, 8])?;
    let base = llama_like::parse(fields, "qwen3_moe", DEFAULTS)?.with_experts(experts);
    let slides = fields.bool_or("use_sliding_window", false)?;
    let windows = layers::same_window(fields, base.n_layers, Some(4096))?;
    let config = ModelConfig {
        windows: if slides { windows } else { base.windows },
        attention: Attention { qk_norm: Some(QkNorm { scope: QkNormScope::Head, norm: base.norm }), ..base.attention },
        mlp: Mlp { d_mlp: fields.usize_or("moe_intermediate_size", 768)?, bias: false, ..base.mlp },
        ..base
    };
    Ok((config, NAMES))
}
