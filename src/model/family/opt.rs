//! OPT (`configuration_opt.py`, `modeling_opt.py`): learned positions from row 2 on; the 350m model normalises the stream
//! after each addition and embeds in another width.

use crate::base::Result;

use super::super::config::{Activation, Attention, BlockLayout, Embedding, Mlp, ModelConfig, Norm, Position};
use super::{Fields, LinearOrder, MlpNames, Names, Qkv};

const NAMES: Names = Names {
    prefixes: &["model.decoder.", "decoder."],
    embed: "embed_tokens.weight",
    pos_embed: Some("embed_positions.weight"),
    block: "layers.",
    ln1: "self_attn_layer_norm",
    ln1_post: None,
    qkv: Qkv::Separate(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
    qk_norm: None,
    attention_out: "self_attn.out_proj",
    ln2: Some("final_layer_norm"),
    ln2_post: None,
    mlp: MlpNames::Plain { up: "fc1", down: "fc2" },
    ln_final: "final_layer_norm",
    unembed: &["lm_head"],
    linear_order: LinearOrder::OutIn,
};

/// `torch.nn.LayerNorm`'s default, which the class does not change.
const EPS: f64 = 1e-5;

pub(super) fn parse(fields: &Fields<'_>) -> Result<(ModelConfig, Names)> {
    let (d_model, n_layers) = (fields.usize("hidden_size")?, fields.usize("num_hidden_layers")?);
    let n_heads = fields.usize("num_attention_heads")?;
    let d_head = d_model.checked_div(n_heads).unwrap_or(0);
    let before = fields.bool_or("do_layer_norm_before", true)?;
    let bias = fields.bool_or("enable_bias", true)?;
    let affine = fields.bool_or("layer_norm_elementwise_affine", true)?;
    let config = ModelConfig {
        family: "opt",
        d_model,
        n_layers,
        n_heads,
        n_key_value_heads: n_heads,
        d_head,
        vocab_size: fields.usize("vocab_size")?,
        context_length: fields.usize_or("max_position_embeddings", 2048)?,
        norm: if affine { Norm::LayerNorm { eps: EPS } } else { Norm::LayerNormWithoutGain { eps: EPS } },
        layout: if before { BlockLayout::PreNorm } else { BlockLayout::StreamNorm },
        // Files fine-tuned before transformers 4.20.1 lack the final norm.
        final_norm: before && !fields.bool_or("_remove_final_layer_norm", false)?,
        position: Position::Learned { offset: 2 },
        windows: vec![None; n_layers],
        attention: Attention { qkv_bias: bias, out_bias: bias, ..Attention::plain(d_head) },
        mlp: Mlp {
            d_mlp: fields.usize("ffn_dim")?,
            gated: false,
            activation: Activation::from_name(&fields.string_or("activation_function", "relu")?)?,
            bias,
            experts: None,
        },
        embedding: Embedding { width: fields.usize_or("word_embed_proj_dim", d_model)?, ..Embedding::plain(d_model) },
        residual_multiplier: 1.0,
        bos_token_id: fields.token_ids("bos_token_id").first().copied(),
        eos_token_ids: fields.token_ids("eos_token_id"),
    };
    Ok((config, NAMES))
}
