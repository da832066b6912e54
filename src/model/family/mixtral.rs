//! Mixtral: Mistral with a mixture of experts (`configuration_mixtral.py`).

use crate::base::Result;

use super::super::config::{Experts, ModelConfig};
use super::llama_like::{self, Defaults};
use super::rope::RopeDefaults;
use super::{ExpertNames, Fields, MlpNames, Names, layers};

const DEFAULTS: Defaults = Defaults {
    key_value_heads: Some(8),
    rms_norm_eps: 1e-5,
    rope: RopeDefaults { theta: 1_000_000.0, partial: None, context_length: 131_072 },
    ..llama_like::LLAMA
};

const NAMES: Names = Names {
    mlp: MlpNames::Experts(ExpertNames {
        router: "block_sparse_moe.gate",
        experts: "block_sparse_moe.experts",
        projections: ["w1", "w3", "w2"],
        shared: None,
    }),
    ..llama_like::NAMES
};

pub(super) fn parse(fields: &Fields<'_>) -> Result<(ModelConfig, Names)> {
    let experts = Experts {
        count: fields.usize_or("num_local_experts", 8)?,
        active: fields.usize_or("num_experts_per_tok", 2)?,
        normalise: true,
        shared_width: None,
    };
    let base = llama_like::parse(fields, "mixtral", DEFAULTS)?.without_biases().with_experts(experts);
    let config = ModelConfig { windows: layers::same_window(fields, base.n_layers, None)?, ..base };
    Ok((config, NAMES))
}
