//! GPT-2 and its descendants (`GPT2LMHeadModel`).

use crate::base::{Error, Result};

use super::super::config::{Activation, AttentionScale, Mlp, ModelConfig, Norm, Position};
use super::{Fields, LinearOrder, Names, Qkv};

const NAMES: Names = Names {
    // The original OpenAI files have no prefix.
    prefixes: &["transformer.", ""],
    embed: "wte.weight",
    pos_embed: Some("wpe.weight"),
    block: "h.",
    ln1: "ln_1",
    qkv: Qkv::Fused("attn.c_attn"),
    attention_out: "attn.c_proj",
    ln2: "ln_2",
    mlp_gate: None,
    mlp_up: "mlp.c_fc",
    mlp_down: "mlp.c_proj",
    ln_final: "ln_f",
    unembed: "lm_head.weight",
    linear_order: LinearOrder::InOut,
};

pub(super) fn parse(fields: &Fields<'_>) -> Result<(ModelConfig, Names)> {
    if fields.bool_or("add_cross_attention", false)? {
        return Err(Error::Unsupported {
            what: "add_cross_attention in config.json".into(),
            why: "the model attends to an encoder, which a decoder-only pass does not have".into(),
            remedy: "use a decoder-only checkpoint".into(),
        });
    }
    let d_model = fields.usize("n_embd")?;
    let n_heads = fields.usize("n_head")?;
    let d_head = d_model.checked_div(n_heads).unwrap_or(0);
    let scaled = fields.bool_or("scale_attn_weights", true)?;
    let config = ModelConfig {
        family: "gpt2",
        d_model,
        n_layers: fields.usize("n_layer")?,
        n_heads,
        n_key_value_heads: n_heads,
        d_head,
        vocab_size: fields.usize("vocab_size")?,
        context_length: if fields.get("n_positions").is_some() {
            fields.usize("n_positions")?
        } else {
            fields.usize("n_ctx")?
        },
        norm: Norm::LayerNorm { eps: fields.f64_or("layer_norm_epsilon", 1e-5)? },
        position: Position::Learned,
        mlp: Mlp {
            d_mlp: fields.usize_or("n_inner", 4 * d_model)?,
            gated: false,
            activation: Activation::from_name(&fields.string_or("activation_function", "gelu_new")?)?,
            bias: true,
        },
        attention_scale: AttentionScale {
            factor: if scaled { 1.0 / (d_head as f64).sqrt() } else { 1.0 },
            by_inverse_layer: fields.bool_or("scale_attn_by_inverse_layer_idx", false)?,
        },
        qkv_bias: true,
        attention_out_bias: true,
        bos_token_id: fields.token_ids("bos_token_id").first().copied(),
        eos_token_ids: fields.token_ids("eos_token_id"),
    };
    Ok((config, NAMES))
}
