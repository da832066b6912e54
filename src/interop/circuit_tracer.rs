//! circuit-tracer's transcoders of one layer, `layer_{i}.safetensors`: `W_enc` `[f, d]` and `W_dec` `[f, d]` (a row a
//! feature), `b_enc`, `b_dec`, optionally `W_skip` `[d, d]` and `activation_function.threshold` `[f]`. ReLU, or with
//! thresholds a jump without ReLU. The transcoders of mwhanna are the same with ReLU.
//!
//! Which hooks they read and write is in the set's `config.yaml`, `feature_input_hook` and `feature_output_hook`.

use std::path::Path;

use super::place;
use super::sets::CONFIG;
use super::sets::yaml::Yaml;
use super::tensors::Tensors;
use crate::base::{Error, Result};
use crate::dictionary::set::{Parts, Skip};
use crate::dictionary::{Activation, Architecture, DictionaryConfig};

const THRESHOLD: &str = "activation_function.threshold";

pub(super) fn read(file: Tensors, notes: &mut Vec<String>) -> Result<Parts> {
    let path = file.path().to_owned();
    let mut parts = weights(file)?;
    describe(&mut parts.config, &path, notes)?;
    Ok(parts)
}

/// What the file itself says.
pub(super) fn weights(mut file: Tensors) -> Result<Parts> {
    let [d_sae, d_in] = file.matrix("W_enc")?;
    let [_, d_out] = file.matrix("W_dec")?;
    let encoder = file.floats("W_enc", &[d_sae, d_in])?;
    let b_enc = file.take("b_enc", &[d_sae])?;
    let decoder = file.floats("W_dec", &[d_sae, d_out])?;
    let b_dec = file.take("b_dec", &[d_out])?;
    let skip = file.contains("W_skip").then(|| file.floats("W_skip", &[d_out, d_in])).transpose()?;
    let threshold = file.contains(THRESHOLD).then(|| file.take(THRESHOLD, &[d_sae])).transpose()?;
    file.finish()?;
    let (architecture, activation) = activation(threshold);
    let config = DictionaryConfig::transcoder(architecture, d_in, d_sae, d_out);
    let skip = skip.map(|weight| Skip { weight, input_first: false });
    Ok(Parts { config, encoder, by_feature: true, b_enc, decoder, b_dec, activation, skip })
}

/// ReLU, or with thresholds a jump without ReLU.
pub(super) fn activation(threshold: Option<Vec<f32>>) -> (Architecture, Activation) {
    match threshold {
        None => (Architecture::Relu, Activation::relu()),
        // Where no threshold is negative the ReLU changes nothing, and more programs know this one.
        Some(threshold) if threshold.iter().all(|t| *t >= 0.0) => {
            (Architecture::JumpRelu, Activation::jump_relu(threshold))
        }
        Some(threshold) => (Architecture::JumpIdentity, Activation::jump_identity(threshold)),
    }
}

fn describe(config: &mut DictionaryConfig, path: &Path, notes: &mut Vec<String>) -> Result<()> {
    let parts = place::parts(path);
    let layer = parts.last().and_then(|name| name.strip_prefix("layer_")?.split('.').next()?.parse::<usize>().ok());
    let set = path.with_file_name(CONFIG);
    let mut hooks = (None, None);
    if set.is_file() {
        let yaml = Yaml::read(&set)?;
        let text = |key: &str| Ok::<_, Error>(yaml.text(key)?.map(str::to_owned));
        config.metadata.model_name = text("model_name")?;
        hooks = (text("feature_input_hook")?, text("feature_output_hook")?);
    }
    match (layer, hooks) {
        (Some(layer), (Some(input), Some(output))) => {
            place::set_hook(&mut config.metadata, format!("blocks.{layer}.{input}"));
            place::set_output(config, &format!("blocks.{layer}.{output}"));
        }
        _ => notes.push(
            "its layer is in its file's name (layer_3.safetensors) and its hooks are in config.yaml beside it; without \
             both its hook is not known"
                .into(),
        ),
    }
    Ok(())
}
