//! OLMo 1: Llama with LayerNorm that has no parameters, and clipped queries, keys and values
//! (`configuration_olmo.py`, `modeling_olmo.py`).

use crate::base::Result;

use super::super::config::{Attention, Mlp, ModelConfig, Norm};
use super::{Fields, Names, llama_like};

pub(super) fn parse(fields: &Fields<'_>) -> Result<(ModelConfig, Names)> {
    let base = llama_like::parse(fields, "olmo", llama_like::LLAMA)?;
    let config = ModelConfig {
        norm: Norm::LayerNormWithoutGain { eps: 1e-5 },
        attention: Attention { clip_qkv: fields.f64_option("clip_qkv")?, ..base.attention },
        mlp: Mlp { bias: false, ..base.mlp },
        ..base
    };
    Ok((config, llama_like::NAMES))
}
