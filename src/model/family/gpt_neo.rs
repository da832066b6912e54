//! GPT-Neo and TinyStories (`configuration_gpt_neo.py`, `modeling_gpt_neo.py`): unscaled scores, windows in local layers.

use serde_json::Value;

use crate::base::{Error, Result};

use super::super::config::{Activation, Attention, BlockLayout, Embedding, Mlp, ModelConfig, Norm, Position};
use super::{Fields, LinearOrder, Names, Qkv, gpt2, layers};

const NAMES: Names = Names {
    qkv: Qkv::Separate(["attn.attention.q_proj", "attn.attention.k_proj", "attn.attention.v_proj"]),
    attention_out: "attn.attention.out_proj",
    linear_order: LinearOrder::OutIn,
    ..gpt2::NAMES
};

pub(super) fn parse(fields: &Fields<'_>) -> Result<(ModelConfig, Names)> {
    let (d_model, n_layers) = (fields.usize("hidden_size")?, fields.usize("num_layers")?);
    let n_heads = fields.usize("num_heads")?;
    let d_head = d_model.checked_div(n_heads).unwrap_or(0);
    let local = local_layers(fields, n_layers)?;
    let window = fields.usize_or("window_size", 256)?;
    let config = ModelConfig {
        family: "gpt_neo",
        d_model,
        n_layers,
        n_heads,
        n_key_value_heads: n_heads,
        d_head,
        vocab_size: fields.usize("vocab_size")?,
        context_length: fields.usize_or("max_position_embeddings", 2048)?,
        norm: Norm::LayerNorm { eps: fields.f64_or("layer_norm_epsilon", 1e-5)? },
        layout: BlockLayout::PreNorm,
        final_norm: true,
        position: Position::Learned { offset: 0 },
        windows: layers::windows(fields, &local, Some(window))?,
        attention: Attention { scale: 1.0, out_bias: true, ..Attention::plain(d_head) },
        mlp: Mlp {
            d_mlp: fields.usize_or("intermediate_size", 4 * d_model)?,
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

/// `attention_types` is a list of `[kinds, repetitions]`.
fn local_layers(fields: &Fields<'_>, n_layers: usize) -> Result<Vec<bool>> {
    let Some(types) = fields.get("attention_types") else {
        return Ok((0..n_layers).map(|layer| layer % 2 == 1).collect());
    };
    let malformed = |found: String| {
        Error::malformed(
            "model configuration",
            fields.path(),
            format!("'attention_types' as [[kinds, repetitions], …] with {n_layers} layers"),
            found,
            "the file does not describe a model of this type; download it again",
        )
    };
    let mut local = Vec::new();
    for item in types.as_array().into_iter().flatten() {
        let (kinds, times) = (item.get(0).and_then(Value::as_array), item.get(1).and_then(Value::as_u64));
        let (Some(kinds), Some(times)) = (kinds, times) else { return Err(malformed(item.to_string())) };
        for _ in 0..times.min(n_layers as u64 + 1) {
            for kind in kinds {
                local.push(match kind.as_str() {
                    Some("global") => false,
                    Some("local") => true,
                    _ => {
                        return Err(Error::Unknown {
                            kind: "kind of attention in config.json",
                            found: kind.to_string(),
                            nearest: vec!["global".into(), "local".into()],
                        });
                    }
                });
            }
        }
    }
    if local.len() == n_layers { Ok(local) } else { Err(malformed(format!("{} layers", local.len()))) }
}
