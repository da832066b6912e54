//! Qwen 3: Qwen 2 with a norm on each head's queries and keys, mostly without biases (`configuration_qwen3.py`).

use crate::base::Result;

use super::super::config::{Attention, Mlp, ModelConfig, QkNorm, QkNormScope};
use super::llama_like::{self, Defaults};
use super::{Fields, Names, qwen2};

const DEFAULTS: Defaults = Defaults { d_head: Some(128), ..qwen2::DEFAULTS };

pub(super) fn parse(fields: &Fields<'_>) -> Result<(ModelConfig, Names)> {
    let base = llama_like::parse(fields, "qwen3", DEFAULTS)?;
    let config = ModelConfig {
        windows: qwen2::windows(fields, base.n_layers)?,
        attention: Attention { qk_norm: Some(QkNorm { scope: QkNormScope::Head, norm: base.norm }), ..base.attention },
        mlp: Mlp { bias: false, ..base.mlp },
        ..base
    };
    Ok((config, Names { qk_norm: Some(["self_attn.q_norm", "self_attn.k_norm"]), ..llama_like::NAMES }))
}
