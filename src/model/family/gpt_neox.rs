//! GPT-NeoX and Pythia (`configuration_gpt_neox.py`): parallel blocks, partial rotation, fused heads.

use crate::base::Result;

use super::super::config::{Activation, Attention, BlockLayout, Mlp, ModelConfig, Norm};
use super::llama_like::{self, Defaults};
use super::rope::RopeDefaults;
use super::{Fields, FusedOrder, MlpNames, Names, Qkv};

const NAMES: Names = Names {
    prefixes: &["gpt_neox.", ""],
    embed: "embed_in.weight",
    qkv: Qkv::Fused("attention.query_key_value", FusedOrder::Groups),
    attention_out: "attention.dense",
    mlp: MlpNames::Plain { up: "mlp.dense_h_to_4h", down: "mlp.dense_4h_to_h" },
    ln_final: "final_layer_norm",
    unembed: &["embed_out", "lm_head"],
    ..llama_like::NAMES
};

pub(super) fn parse(fields: &Fields<'_>) -> Result<(ModelConfig, Names)> {
    let rope = RopeDefaults {
        theta: fields.f64_or("rotary_emb_base", 10_000.0)?,
        partial: Some(fields.f64_or("rotary_pct", 0.25)?),
        context_length: 2048,
    };
    let base = llama_like::parse(fields, "gpt_neox", Defaults { rope, ..llama_like::LLAMA })?;
    let bias = fields.bool_or("attention_bias", true)?;
    let parallel = fields.bool_or("use_parallel_residual", true)?;
    let config = ModelConfig {
        norm: Norm::LayerNorm { eps: fields.f64_or("layer_norm_eps", 1e-5)? },
        layout: if parallel { BlockLayout::Parallel } else { BlockLayout::PreNorm },
        attention: Attention { qkv_bias: bias, out_bias: bias, ..base.attention },
        mlp: Mlp {
            gated: false,
            activation: Activation::from_name(&fields.string_or("hidden_act", "gelu")?)?,
            bias: true,
            ..base.mlp
        },
        ..base
    };
    Ok((config, NAMES))
}
