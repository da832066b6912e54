//! Falcon (`configuration_falcon.py`, `modeling_falcon.py`): parallel blocks with one norm or two, or sequential ones;
//! rotation or a position bias; all heads fused.

use crate::base::Result;

use super::super::config::{Activation, Attention, BlockLayout, Embedding, Mlp, ModelConfig, Norm, Position};
use super::rope::{self, RopeDefaults};
use super::{Fields, FusedOrder, LinearOrder, MlpNames, Names, Qkv};

const NAMES: Names = Names {
    prefixes: &["transformer.", ""],
    embed: "word_embeddings.weight",
    pos_embed: None,
    block: "h.",
    ln1: "input_layernorm",
    ln1_post: None,
    qkv: Qkv::Fused("self_attention.query_key_value", FusedOrder::Groups),
    qk_norm: None,
    attention_out: "self_attention.dense",
    ln2: Some("post_attention_layernorm"),
    ln2_post: None,
    mlp: MlpNames::Plain { up: "mlp.dense_h_to_4h", down: "mlp.dense_4h_to_h" },
    ln_final: "ln_f",
    unembed: &["lm_head"],
    linear_order: LinearOrder::OutIn,
};

pub(super) fn parse(fields: &Fields<'_>) -> Result<(ModelConfig, Names)> {
    let d_model = fields.usize_or("n_embed", fields.usize_or("hidden_size", 4544)?)?;
    let (n_layers, n_heads) = (fields.usize_or("num_hidden_layers", 32)?, fields.usize_or("num_attention_heads", 71)?);
    let d_head = d_model.checked_div(n_heads).unwrap_or(0);
    let trained_length = fields.usize_or("max_position_embeddings", 2048)?;
    let bias = fields.bool_or("bias", false)?;
    let (layout, names) = layout(fields)?;
    let (position, context_length) = if fields.bool_or("alibi", false)? {
        (Position::Alibi, trained_length)
    } else {
        let defaults = RopeDefaults { theta: 10_000.0, partial: None, context_length: trained_length };
        let rotary = rope::parse(fields, d_head, defaults)?;
        let length = rope::context_length(&rotary, trained_length);
        (Position::rotary(rotary, n_layers), length)
    };
    let config = ModelConfig {
        family: "falcon",
        d_model,
        n_layers,
        n_heads,
        n_key_value_heads: key_value_heads(fields, n_heads)?,
        d_head,
        vocab_size: fields.usize("vocab_size")?,
        context_length,
        norm: Norm::LayerNorm { eps: fields.f64_or("layer_norm_epsilon", 1e-5)? },
        layout,
        final_norm: true,
        position,
        windows: vec![None; n_layers],
        attention: Attention { qkv_bias: bias, out_bias: bias, ..Attention::plain(d_head) },
        mlp: Mlp {
            d_mlp: fields.usize_or("ffn_hidden_size", 4 * d_model)?,
            gated: false,
            activation: Activation::from_name(&fields.string_or("activation", "gelu")?)?,
            bias,
            experts: None,
        },
        embedding: Embedding::plain(d_model),
        residual_multiplier: 1.0,
        bos_token_id: fields.token_ids("bos_token_id").first().copied(),
        eos_token_ids: fields.token_ids("eos_token_id"),
    };
    Ok((config, names))
}

/// `num_kv_heads` counts in the new architecture only; before, there is one head or as many as query heads.
fn key_value_heads(fields: &Fields<'_>, n_heads: usize) -> Result<usize> {
    let given = fields.usize_or("num_kv_heads", n_heads)?;
    if fields.bool_or("new_decoder_architecture", false)? {
        return Ok(given);
    }
    if fields.bool_or("multi_query", true)? {
        return Ok(1);
    }
    if given != n_heads {
        return Err(fields.unsupported("num_kv_heads", "without the new architecture all heads have their own keys"));
    }
    Ok(n_heads)
}

/// Which norms the block has, by the combinations that transformers can run.
fn layout(fields: &Fields<'_>) -> Result<(BlockLayout, Names)> {
    let new = fields.bool_or("new_decoder_architecture", false)?;
    let parallel = fields.bool_or("parallel_attn", true)?;
    let norms = fields.usize_or("num_ln_in_parallel_attn", if new { 2 } else { 1 })?;
    match (new, parallel, norms) {
        (true, true, 2) => Ok((BlockLayout::Parallel, Names { ln1: "ln_attn", ln2: Some("ln_mlp"), ..NAMES })),
        (_, true, 1) => Ok((BlockLayout::ParallelSharedNorm, Names { ln2: None, ..NAMES })),
        (false, false, _) => Ok((BlockLayout::PreNorm, NAMES)),
        (true, false, _) => {
            Err(fields.unsupported("parallel_attn", "the new architecture computes attention and MLP side by side"))
        }
        (_, true, _) => Err(fields.unsupported("num_ln_in_parallel_attn", "no Falcon block has that many norms")),
    }
}
