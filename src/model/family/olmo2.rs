//! OLMo 2: Llama with norms on what attention and MLP add and on whole query and key projections
//! (`configuration_olmo2.py`, `modeling_olmo2.py`).

use crate::base::Result;

use super::super::config::{Attention, BlockLayout, Mlp, ModelConfig, QkNorm, QkNormScope};
use super::llama_like::{self, Defaults};
use super::{Fields, Names};

const DEFAULTS: Defaults = Defaults { rms_norm_eps: 1e-5, ..llama_like::LLAMA };

const NAMES: Names = Names {
    ln1: "post_attention_layernorm",
    qk_norm: Some(["self_attn.q_norm", "self_attn.k_norm"]),
    ln2: Some("post_feedforward_layernorm"),
    ..llama_like::NAMES
};

pub(super) fn parse(fields: &Fields<'_>) -> Result<(ModelConfig, Names)> {
    let base = llama_like::parse(fields, "olmo2", DEFAULTS)?;
    let config = ModelConfig {
        layout: BlockLayout::OutputNorm,
        attention: Attention {
            qk_norm: Some(QkNorm { scope: QkNormScope::Projection, norm: base.norm }),
            ..base.attention
        },
        mlp: Mlp { bias: false, ..base.mlp },
        ..base
    };
    Ok((config, NAMES))
}
