//! Decoder-only transformers with every intermediate value behind a typed hook point.

pub mod config;
pub mod family;
pub mod generate;
pub mod hook;
pub mod hook_page;
pub mod kv_cache;
pub mod plan;
pub mod weights;

mod attention;
mod axes;
mod block;
mod circuit;
mod decoder;
mod directions;
mod experts;
mod linear;
mod load;
mod mlp;
mod module_name;
mod norm;
mod pass;
mod plain;
mod position;
mod readout;
mod relay;
mod rotary;
mod shape;
mod site;
mod tail;
mod tap;

pub use circuit::{LogitDirections, ValueMaps};
pub use config::ModelConfig;
pub use decoder::{Model, Run};
pub use hook::{HookPoint, Site};
pub use kv_cache::KvCache;
pub use plan::{Edit, EditOp, HookPlan, Positions, ResolvedPlan, Rewrite};
pub use readout::FrozenNorm;
pub use relay::Relay;

#[cfg(test)]
pub(crate) mod tests {
    use std::path::Path;

    use candle_core::{DType, Device, Tensor};

    use super::Model;

    /// A tiny golden checkpoint.
    pub(crate) fn open(name: &str) -> Model {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models").join(name);
        Model::open(&dir.join("config.json"), &[dir.join("model.safetensors")], DType::F32, &Device::Cpu).unwrap()
    }

    /// The largest difference of two tensors.
    pub(crate) fn far(a: &Tensor, b: &Tensor) -> f32 {
        (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
    }
}
