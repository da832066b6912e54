//! What the descendants of Llama have in common: field names, tensor names, grouped heads, rotation, RMSNorm before
//! attention and MLP, a gated MLP. Families change what they do otherwise.

use crate::base::Result;

use super::super::config::{Activation, Attention, BlockLayout, Embedding, Experts, Mlp, ModelConfig, Norm, Position};
use super::rope::{self, RopeDefaults};
use super::{Fields, LinearOrder, MlpNames, Names, Qkv};

/// Tensor names of `LlamaForCausalLM`.
pub(super) const NAMES: Names = Names {
    // Base models without a head are saved without the prefix.
    prefixes: &["model.", ""],
    embed: "embed_tokens.weight",
    pos_embed: None,
    block: "layers.",
    ln1: "input_layernorm",
    ln1_post: None,
    qkv: Qkv::Separate(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
    qk_norm: None,
    attention_out: "self_attn.o_proj",
    ln2: Some("post_attention_layernorm"),
    ln2_post: None,
    mlp: MlpNames::Gated { gate: "mlp.gate_proj", up: "mlp.up_proj", down: "mlp.down_proj" },
    ln_final: "norm",
    unembed: &["lm_head"],
    linear_order: LinearOrder::OutIn,
};

/// What a family's configuration class says where `config.json` is silent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Defaults {
    /// `num_key_value_heads`; as many as query heads where the class says nothing.
    pub(super) key_value_heads: Option<usize>,
    /// `head_dim`; the hidden size shared out among the heads where the class says nothing.
    pub(super) d_head: Option<usize>,
    /// `rms_norm_eps`
    pub(super) rms_norm_eps: f64,
    /// Rotation and context.
    pub(super) rope: RopeDefaults,
}

/// `configuration_llama.py`
pub(super) const LLAMA: Defaults = Defaults {
    key_value_heads: None,
    d_head: None,
    rms_norm_eps: 1e-6,
    rope: RopeDefaults { theta: 10_000.0, partial: None, context_length: 2048 },
};

/// The common part of a configuration; `attention_bias` and `mlp_bias` count where they are given.
pub(super) fn parse(fields: &Fields<'_>, family: &'static str, defaults: Defaults) -> Result<ModelConfig> {
    let (d_model, n_layers) = (fields.usize("hidden_size")?, fields.usize("num_hidden_layers")?);
    let n_heads = fields.usize("num_attention_heads")?;
    let d_head = head_width(fields, d_model, n_heads, defaults.d_head)?;
    let n_key_value_heads = match defaults.key_value_heads {
        Some(default) if !fields.names("num_key_value_heads") => default,
        _ => fields.usize_or("num_key_value_heads", n_heads)?,
    };
    let trained_length = fields.usize_or("max_position_embeddings", defaults.rope.context_length)?;
    let rotary = rope::parse(fields, d_head, RopeDefaults { context_length: trained_length, ..defaults.rope })?;
    let attention_bias = fields.bool_or("attention_bias", false)?;
    Ok(ModelConfig {
        family,
        d_model,
        n_layers,
        n_heads,
        n_key_value_heads,
        d_head,
        vocab_size: fields.usize("vocab_size")?,
        context_length: rope::context_length(&rotary, trained_length),
        norm: Norm::Rms { eps: fields.f64_or("rms_norm_eps", defaults.rms_norm_eps)? },
        layout: BlockLayout::PreNorm,
        final_norm: true,
        position: Position::rotary(rotary, n_layers),
        windows: vec![None; n_layers],
        attention: Attention { qkv_bias: attention_bias, out_bias: attention_bias, ..Attention::plain(d_head) },
        mlp: Mlp {
            d_mlp: fields.usize("intermediate_size")?,
            gated: true,
            activation: Activation::from_name(&fields.string_or("hidden_act", "silu")?)?,
            bias: fields.bool_or("mlp_bias", false)?,
            experts: None,
        },
        embedding: Embedding::plain(d_model),
        residual_multiplier: 1.0,
        bos_token_id: fields.token_ids("bos_token_id").first().copied(),
        eos_token_ids: fields.token_ids("eos_token_id"),
    })
}

/// `head_dim`, or the hidden size shared out among the heads.
pub(super) fn head_width(fields: &Fields<'_>, d_model: usize, n_heads: usize, default: Option<usize>) -> Result<usize> {
    let shared = d_model.checked_div(n_heads).unwrap_or(0);
    match default {
        Some(default) if !fields.names("head_dim") => Ok(default),
        _ => fields.usize_or("head_dim", shared),
    }
}

impl ModelConfig {
    /// Without the biases of attention and MLP that Llama may have.
    pub(super) fn without_biases(self) -> Self {
        Self {
            attention: Attention { qkv_bias: false, out_bias: false, ..self.attention },
            mlp: Mlp { bias: false, ..self.mlp },
            ..self
        }
    }

    /// With a mixture of MLPs in place of one.
    pub(super) fn with_experts(self, experts: Experts) -> Self {
        Self { mlp: Mlp { experts: Some(experts), ..self.mlp }, ..self }
    }
}
