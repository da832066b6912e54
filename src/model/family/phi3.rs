//! Phi-3, 3.5 and 4: Llama with fused projections, partial rotation and one window for all layers
//! (`configuration_phi3.py`).

use crate::base::Result;

use super::super::config::ModelConfig;
use super::llama_like::{self, Defaults};
use super::rope::RopeDefaults;
use super::{Fields, FusedOrder, MlpNames, Names, Qkv, layers};

const DEFAULTS: Defaults = Defaults {
    rms_norm_eps: 1e-5,
    rope: RopeDefaults { theta: 10_000.0, partial: Some(1.0), context_length: 4096 },
    ..llama_like::LLAMA
};

const NAMES: Names = Names {
    qkv: Qkv::Fused("self_attn.qkv_proj", FusedOrder::Blocks),
    mlp: MlpNames::FusedGate { gate_up: "mlp.gate_up_proj", down: "mlp.down_proj" },
    ..llama_like::NAMES
};

pub(super) fn parse(fields: &Fields<'_>) -> Result<(ModelConfig, Names)> {
    let base = llama_like::parse(fields, "phi3", DEFAULTS)?.without_biases();
    let config = ModelConfig { windows: layers::same_window(fields, base.n_layers, None)?, ..base };
    Ok((config, NAMES))
}
