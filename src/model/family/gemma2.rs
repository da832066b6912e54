//! Gemma 2: norms before and after attention and MLP, soft caps, windows in every other layer
//! (`configuration_gemma2.py`).

use crate::base::Result;

use super::super::config::{Attention, BlockLayout, Embedding, ModelConfig};
use super::llama_like::{self, Defaults};
use super::{Fields, Names, gemma, layers};

const DEFAULTS: Defaults = Defaults { key_value_heads: Some(4), ..gemma::DEFAULTS };

/// Tensor names of Gemma 2, which Gemma 3 extends: `post_attention_layernorm` is not the MLP's norm here.
pub(super) const NAMES: Names = Names {
    ln1_post: Some("post_attention_layernorm"),
    ln2: Some("pre_feedforward_layernorm"),
    ln2_post: Some("post_feedforward_layernorm"),
    ..llama_like::NAMES
};

pub(super) fn parse(fields: &Fields<'_>) -> Result<(ModelConfig, Names)> {
    let base = gemma::common(fields, "gemma2", DEFAULTS)?;
    let sliding = layers::sliding(fields, base.n_layers, |layer| layer % 2 == 0)?;
    let window = fields.usize_or("sliding_window", 4096)?;
    let config = ModelConfig {
        windows: layers::windows(fields, &sliding, Some(window))?,
        ..capped(fields, base, [Some(50.0), Some(30.0)])?
    };
    Ok((config, NAMES))
}

/// Layout, scale and soft caps of Gemma 2 and 3. `caps` are those of attention and logits where the file names none.
pub(super) fn capped(fields: &Fields<'_>, base: ModelConfig, caps: [Option<f64>; 2]) -> Result<ModelConfig> {
    let cap = |key: &str, default| if fields.names(key) { fields.f64_option(key) } else { Ok(default) };
    Ok(ModelConfig {
        layout: BlockLayout::PreAndPostNorm,
        attention: Attention {
            scale: fields.f64_or("query_pre_attn_scalar", 256.0)?.powf(-0.5),
            soft_cap: cap("attn_logit_softcapping", caps[0])?,
            ..base.attention
        },
        embedding: Embedding { logit_soft_cap: cap("final_logit_softcapping", caps[1])?, ..base.embedding },
        ..base
    })
}
