//! Gemma 3: Gemma 2 without soft caps, with norms on queries and keys and two rotations; the larger models are the
//! text part of multimodal checkpoints (`configuration_gemma3.py`).

use serde_json::{Map, Value};

use crate::base::Result;

use super::super::config::{Attention, ModelConfig, Position, QkNorm, QkNormScope, RopeScaling, Rotary};
use super::llama_like::Defaults;
use super::rope::{self, RopeDefaults};
use super::{Fields, Names, gemma, gemma2, layers};

const ROPE: RopeDefaults = RopeDefaults { theta: 1_000_000.0, partial: None, context_length: 131_072 };

const NAMES: Names = Names {
    // Multimodal files of transformers 4, of 5, and text models.
    prefixes: &["model.", "language_model.model.", "model.language_model.", ""],
    qk_norm: Some(["self_attn.q_norm", "self_attn.k_norm"]),
    unembed: &["lm_head", "language_model.lm_head"],
    ..gemma2::NAMES
};

/// The class defaults of fields without which no model can be built; published multimodal files leave them out.
const REQUIRED: [(&str, u64); 5] = [
    ("vocab_size", 262_208),
    ("hidden_size", 2304),
    ("intermediate_size", 9216),
    ("num_hidden_layers", 26),
    ("num_attention_heads", 8),
];

pub(super) fn parse_multimodal(fields: &Fields<'_>) -> Result<(ModelConfig, Names)> {
    let Some(text) = fields.object("text_config")? else {
        return Err(fields.unsupported("text_config", "a multimodal checkpoint describes its language model there"));
    };
    let (mut config, names) = parse(&text)?;
    if config.bos_token_id.is_none() {
        config.bos_token_id = fields.token_ids("bos_token_id").first().copied();
    }
    let end = fields.token_ids("eos_token_id");
    if !end.is_empty() {
        config.eos_token_ids = end;
    }
    Ok((config, names))
}

pub(super) fn parse(fields: &Fields<'_>) -> Result<(ModelConfig, Names)> {
    let filled = with_defaults(fields);
    let fields = &Fields::new(&filled, fields.path())?;
    if fields.bool_or("use_bidirectional_attention", false)? {
        return Err(fields.unsupported("use_bidirectional_attention", "the decoder attends to earlier positions only"));
    }
    let (global, local) = rotations(fields)?;
    let defaults = Defaults { key_value_heads: Some(4), rope: ROPE, ..gemma::DEFAULTS };
    // The common part takes one rotation; both are set below.
    let flat = without_rope(&filled);
    let base = gemma::common(&Fields::new(&flat, fields.path())?, "gemma3_text", defaults)?;
    let pattern = fields.usize_or("sliding_window_pattern", fields.usize_or("_sliding_window_pattern", 6)?)?.max(1);
    let sliding = layers::sliding(fields, base.n_layers, |layer| (layer + 1) % pattern != 0)?;
    let window = fields.usize_or("sliding_window", 4096)?;
    let base = gemma2::capped(fields, base, [None, None])?;
    let config = ModelConfig {
        windows: layers::windows(fields, &sliding, Some(window))?,
        context_length: rope::context_length(&global, base.context_length),
        position: Position::Rotary {
            rotations: vec![global, local],
            layers: sliding.iter().map(|&slides| Some(usize::from(slides))).collect(),
        },
        attention: Attention { qk_norm: Some(QkNorm { scope: QkNormScope::Head, norm: base.norm }), ..base.attention },
        ..base
    };
    Ok((config, NAMES))
}

/// The rotations of full and of sliding layers.
fn rotations(fields: &Fields<'_>) -> Result<(Rotary, Rotary)> {
    let d_head = fields.usize_or("head_dim", 256)?;
    let defaults =
        RopeDefaults { context_length: fields.usize_or("max_position_embeddings", ROPE.context_length)?, ..ROPE };
    let local_theta = fields.f64_or("rope_local_base_freq", 10_000.0)?;
    let local = RopeDefaults { theta: local_theta, ..defaults };
    let nested = |kind, defaults| rope::parse_nested(fields, kind, d_head, defaults);
    if let (Some(global), Some(local)) = (nested("full_attention", defaults)?, nested("sliding_attention", local)?) {
        return Ok((global, local));
    }
    let global = rope::parse(fields, d_head, defaults)?;
    Ok((global, Rotary { dims: d_head, theta: local_theta, scaling: RopeScaling::None }))
}

fn with_defaults(fields: &Fields<'_>) -> Value {
    let mut object: Map<String, Value> = fields.object_map().clone();
    for (key, value) in REQUIRED {
        object.entry(key).or_insert_with(|| value.into());
    }
    Value::Object(object)
}

fn without_rope(config: &Value) -> Value {
    let mut config = config.clone();
    if let Some(object) = config.as_object_mut() {
        object.retain(|key, _| !key.starts_with("rope_"));
    }
    config
}
