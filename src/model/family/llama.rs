//! Llama 1 to 3 and everything saved as `LlamaForCausalLM`, such as SmolLM2.

use crate::base::Result;

use super::super::config::{Activation, AttentionScale, Mlp, ModelConfig, Norm, Position, RopeScaling};
use super::{Fields, LinearOrder, Names, Qkv, rope};

const NAMES: Names = Names {
    prefixes: &["model."],
    embed: "embed_tokens.weight",
    pos_embed: None,
    block: "layers.",
    ln1: "input_layernorm",
    qkv: Qkv::Separate(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
    attention_out: "self_attn.o_proj",
    ln2: "post_attention_layernorm",
    mlp_gate: Some("mlp.gate_proj"),
    mlp_up: "mlp.up_proj",
    mlp_down: "mlp.down_proj",
    ln_final: "norm",
    unembed: "lm_head.weight",
    linear_order: LinearOrder::OutIn,
};

pub(super) fn parse(fields: &Fields<'_>) -> Result<(ModelConfig, Names)> {
    let d_model = fields.usize("hidden_size")?;
    let n_heads = fields.usize("num_attention_heads")?;
    let d_head = fields.usize_or("head_dim", d_model.checked_div(n_heads).unwrap_or(0))?;
    let trained_length = fields.usize_or("max_position_embeddings", 2048)?;
    let rotary = rope::parse(fields, d_head, trained_length)?;
    // Dynamic scaling states the trained length; it is there to go past it.
    let context_length = match rotary.scaling {
        RopeScaling::Dynamic { factor, .. } => (trained_length as f64 * factor) as usize,
        _ => trained_length,
    };
    let attention_bias = fields.bool_or("attention_bias", false)?;
    let config = ModelConfig {
        family: "llama",
        d_model,
        n_layers: fields.usize("num_hidden_layers")?,
        n_heads,
        n_key_value_heads: fields.usize_or("num_key_value_heads", n_heads)?,
        d_head,
        vocab_size: fields.usize("vocab_size")?,
        context_length,
        norm: Norm::Rms { eps: fields.f64_or("rms_norm_eps", 1e-6)? },
        position: Position::Rotary(rotary),
        mlp: Mlp {
            d_mlp: fields.usize("intermediate_size")?,
            gated: true,
            activation: Activation::from_name(&fields.string_or("hidden_act", "silu")?)?,
            bias: fields.bool_or("mlp_bias", false)?,
        },
        attention_scale: AttentionScale { factor: 1.0 / (d_head as f64).sqrt(), by_inverse_layer: false },
        qkv_bias: attention_bias,
        attention_out_bias: attention_bias,
        bos_token_id: fields.token_ids("bos_token_id").first().copied(),
        eos_token_ids: fields.token_ids("eos_token_id"),
    };
    Ok((config, NAMES))
}
