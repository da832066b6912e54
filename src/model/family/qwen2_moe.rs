//! Qwen 1.5 and 2 with mixtures of experts and a shared one (`configuration_qwen2_moe.py`).

use crate::base::Result;

use super::super::config::{Attention, Experts, Mlp, ModelConfig};
use super::llama_like::{self, Defaults};
use super::{ExpertNames, Fields, MlpNames, Names, qwen2};

const DEFAULTS: Defaults = Defaults { key_value_heads: Some(16), ..qwen2::DEFAULTS };

/// Tensor names that Qwen 3 and OLMoE share.
pub(super) const EXPERTS: ExpertNames = ExpertNames {
    router: "mlp.gate",
    experts: "mlp.experts",
    projections: ["gate_proj", "up_proj", "down_proj"],
    shared: None,
};

const NAMES: Names = Names {
    mlp: MlpNames::Experts(ExpertNames { shared: Some(["mlp.shared_expert", "mlp.shared_expert_gate"]), ..EXPERTS }),
    ..llama_like::NAMES
};

pub(super) fn parse(fields: &Fields<'_>) -> Result<(ModelConfig, Names)> {
    if fields.bool_or("use_sliding_window", false)? && fields.get("sliding_window").is_some() {
        return Err(fields.unsupported("use_sliding_window", "implementations differ in which layers slide"));
    }
    let shared_width = Some(fields.usize_or("shared_expert_intermediate_size", 5632)?);
    let experts = Experts { shared_width, ..experts(fields, [60, 4])? };
    let base = llama_like::parse(fields, "qwen2_moe", DEFAULTS)?.without_biases().with_experts(experts);
    let config = ModelConfig {
        attention: Attention { qkv_bias: fields.bool_or("qkv_bias", true)?, ..base.attention },
        mlp: Mlp { d_mlp: fields.usize_or("moe_intermediate_size", 1408)?, ..base.mlp },
        ..base
    };
    Ok((config, NAMES))
}

/// The mixture, with experts in every layer; `defaults` are all and active ones.
pub(super) fn experts(fields: &Fields<'_>, defaults: [usize; 2]) -> Result<Experts> {
    let dense = fields.get("mlp_only_layers").and_then(|layers| layers.as_array()).is_some_and(|l| !l.is_empty());
    if dense {
        return Err(fields.unsupported("mlp_only_layers", "the decoder has experts in all layers or in none"));
    }
    if fields.usize_or("decoder_sparse_step", 1)? != 1 {
        return Err(fields.unsupported("decoder_sparse_step", "the decoder has experts in all layers or in none"));
    }
    Ok(Experts {
        count: fields.usize_or("num_experts", defaults[0])?,
        active: fields.usize_or("num_experts_per_tok", defaults[1])?,
        normalise: fields.bool_or("norm_topk_prob", false)?,
        shared_width: None,
    })
}
