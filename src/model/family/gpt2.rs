//! GPT-2 and its descendants (`GPT2LMHeadModel`, `configuration_gpt2.py`).

use crate::base::Result;

use super::super::config::{Activation, Attention, BlockLayout, Embedding, Mlp, ModelConfig, Norm, Position};
use super::{Fields, FusedOrder, LinearOrder, MlpNames, Names, Qkv};

/// Tensor names that GPT-Neo shares in part.
pub(super) const NAMES: Names = Names {
    // The original OpenAI files have no prefix.
    prefixes: &["transformer.", ""],
    embed: "wte.weight",
    pos_embed: Some("wpe.weight"),
    block: "h.",
    ln1: "ln_1",
    ln1_post: None,
    qkv: Qkv::Fused("attn.c_attn", FusedOrder::Blocks),
    qk_norm: None,
    attention_out: "attn.c_proj",
    ln2: Some("ln_2"),
    ln2_post: None,
    mlp: MlpNames::Plain { up: "mlp.c_fc", down: "mlp.c_proj" },
    ln_final: "ln_f",
    unembed: &["lm_head"],
    linear_order: LinearOrder::InOut,
};

pub(super) fn parse(fields: &Fields<'_>) -> Result<(ModelConfig, Names)> {
    let (d_model, n_heads, n_layers) = (fields.usize("n_embd")?, fields.usize("n_head")?, fields.usize("n_layer")?);
    let d_head = d_model.checked_div(n_heads).unwrap_or(0);
    let plain = Attention::plain(d_head);
    let config = ModelConfig {
        family: "gpt2",
        d_model,
        n_layers,
        n_heads,
        n_key_value_heads: n_heads,
        d_head,
        vocab_size: fields.usize("vocab_size")?,
        context_length: match fields.usize_option("n_positions")? {
            Some(positions) => positions,
            None => fields.usize_or("n_ctx", 1024)?,
        },
        norm: Norm::LayerNorm { eps: fields.f64_or("layer_norm_epsilon", 1e-5)? },
        layout: BlockLayout::PreNorm,
        final_norm: true,
        position: Position::Learned { offset: 0 },
        windows: vec![None; n_layers],
        attention: Attention {
            scale: if fields.bool_or("scale_attn_weights", true)? { plain.scale } else { 1.0 },
            scale_by_inverse_layer: fields.bool_or("scale_attn_by_inverse_layer_idx", false)?,
            qkv_bias: true,
            out_bias: true,
            ..plain
        },
        mlp: Mlp {
            d_mlp: fields.usize_or("n_inner", 4 * d_model)?,
            gated: false,
            activation: Activation::from_name(&fields.string_or("activation_function", "gelu_new")?)?,
            bias: true,
            experts: None,
        },
        embedding: Embedding::plain(d_model),
        residual_multiplier: 1.0,
        bos_token_id: fields.token_ids("bos_token_id").first().copied(),
        eos_token_ids: fields.token_ids("eos_token_id"),
    };
    Ok((config, NAMES))
}
