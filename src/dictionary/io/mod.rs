//! Dictionary directories in SAELens' version 6 format: `cfg.json`, `sae_weights.safetensors`, and optionally
//! `sparsity.safetensors`. `SAE.load_from_disk` opens what [`write()`] makes. Also read are the flat format from before
//! version 6, and the checkpoints that SAELens leaves while it trains.
//!
//! Reading is strict, because a dictionary that is read a little wrong still gives plausible numbers: an unknown
//! architecture, normalisation or key is an error, as are missing, extra, misshapen and non-finite tensors.

mod config;
mod legacy;
mod stream;
mod tensors;
mod to_json;

use std::path::Path;

use safetensors::tensor::Dtype;
use serde_json::{Map, Value};

use super::set::{Parts, Skip};
use super::{Activation, Architecture, Dictionary, DictionaryConfig, scale};
use crate::base::artifact::{read_json, write_json};
use crate::base::mapped::Mapped;
use crate::base::{Error, Result};
use config::{Stored, Thresholds};
pub(crate) use stream::{Streamed, write_streamed};
use tensors::Weights;
pub(crate) use tensors::{Values, write_tensors};

/// The configuration file.
pub const CONFIG_FILE: &str = "cfg.json";
/// The weights.
pub const WEIGHTS_FILE: &str = "sae_weights.safetensors";
/// How often each feature fires.
pub const SPARSITY_FILE: &str = "sparsity.safetensors";

const CONFIG: &str = "dictionary configuration";
const WEIGHTS: &str = "dictionary weights";
const SPARSITY: &str = "feature sparsity";
const MAKE_AGAIN: &str = "copy or make the dictionary again";

/// Writes `dictionary` into the existing directory `dir`, each file whole or not at all.
///
/// # Errors
/// `Io` when a file cannot be written; `NonFinite` when a weight is NaN or infinite; `Unsupported` when SAELens has no
/// name for what the dictionary computes.
pub fn write(dir: &Path, dictionary: &Dictionary) -> Result<()> {
    let cfg = to_json::to_json(dictionary)?;
    let Dictionary { config, w_enc, b_enc, w_dec, b_dec, activation, w_skip } = dictionary;
    let (d_in, d_sae, d_out) = (config.d_in, config.d_sae, config.d_out);
    let bias = if config.architecture == Architecture::Gated { "b_gate" } else { "b_enc" };
    let mut tensors = vec![
        ("W_enc", vec![d_in, d_sae], w_enc.as_slice()),
        (bias, vec![d_sae], b_enc),
        ("W_dec", vec![d_sae, d_out], w_dec),
        ("b_dec", vec![d_out], b_dec),
    ];
    tensors.extend(activation.tensors().into_iter().map(|(name, values)| (name, vec![d_sae], values)));
    tensors.extend(w_skip.iter().map(|values| ("W_skip", vec![d_out, d_in], values.as_slice())));
    let path = dir.join(WEIGHTS_FILE);
    for (name, _, values) in &tensors {
        check_finite(name, values, &path)?;
    }
    let tensors: Vec<_> = tensors.into_iter().map(|(name, shape, v)| (name, shape, Values::F32(v))).collect();
    write_tensors(&path, &tensors)?;
    write_json(&dir.join(CONFIG_FILE), &cfg)
}

/// Writes firing frequencies, `[f]` between 0 and 1, as SAELens stores them: `log10(frequency + 1e-10)`.
///
/// # Errors
/// `Io` when the file cannot be written.
pub fn write_sparsity(dir: &Path, frequencies: &[f64]) -> Result<()> {
    let logs: Vec<f32> = frequencies.iter().map(|f| (f + 1e-10).log10() as f32).collect();
    write_tensors(&dir.join(SPARSITY_FILE), &[("sparsity", vec![logs.len()], Values::F32(&logs))])
}

/// Reads the dictionary in `dir`. See [`DictionaryConfig::notes`] for what its user should be told.
///
/// # Errors
/// `Missing` without one of the two files; `Malformed`, `Unknown`, `Unsupported` or `NonFinite`, naming the file,
/// when its contents are damaged or mean something that this version does not compute.
pub fn read(dir: &Path) -> Result<Dictionary> {
    let Stored { config, name, skip, thresholds, factor, legacy, finetuned } = read_stored(dir)?;
    let path = dir.join(WEIGHTS_FILE);
    require(&path, WEIGHTS)?;
    let mut weights = Weights::open(&path)?;
    let (d_in, d_sae, d_out) = (config.d_in, config.d_sae, config.d_out);
    let bias = if config.architecture == Architecture::Gated { "b_gate" } else { "b_enc" };
    let w_enc = weights.read("W_enc", &[d_in, d_sae])?;
    let b_enc = weights.read(bias, &[d_sae])?;
    let mut w_dec = weights.read("W_dec", &[d_sae, d_out])?;
    let b_dec = weights.read("b_dec", &[d_out])?;
    if legacy {
        legacy::apply_scaling_factor(&mut weights, finetuned, &mut w_dec, d_out, &path)?;
    }
    let activation = match thresholds {
        Thresholds::Own => Activation::from_tensors(&config, &w_dec, |name| read_own(&mut weights, name, d_sae))?,
        Thresholds::OfBatch { .. } => Activation::jump_relu(vec![0.0; d_sae]),
    };
    let w_skip = skip.then(|| weights.read("W_skip", &[d_out, d_in])).transpose()?;
    let mut dictionary = Dictionary::new(config, w_enc, b_enc, w_dec, b_dec, activation)?;
    if let Some(w_skip) = w_skip {
        dictionary = dictionary.with_skip(w_skip)?;
    }
    if let Thresholds::OfBatch { rescaled } = thresholds {
        let threshold = weights.read("topk_threshold", &[])?.first().copied().unwrap_or_default();
        // The threshold applies to activations that carry the decoder norm.
        if rescaled {
            scale::fold_w_dec_norm(&mut dictionary)?;
        }
        dictionary.activation = Activation::jump_relu(vec![threshold; d_sae]);
    }
    weights.finish(&name)?;
    if let Some(factor) = factor {
        scale::fold(&mut dictionary, factor);
    }
    Ok(dictionary)
}

/// As [`read`], with the large weights left in the file until they are asked for, where they are what the file says:
/// no factor is folded into them and no norm.
///
/// # Errors
/// As [`read`].
pub(crate) fn read_parts(dir: &Path) -> Result<Parts> {
    let Stored { config, name, skip, thresholds, factor, legacy, finetuned: _ } = read_stored(dir)?;
    let folded = factor.is_some() || legacy || config.architecture.activations_carry_decoder_norm();
    if folded || !matches!(thresholds, Thresholds::Own) || config.architecture == Architecture::Gated {
        return Ok(Parts::of(read(dir)?));
    }
    let path = dir.join(WEIGHTS_FILE);
    require(&path, WEIGHTS)?;
    let mut weights = Weights::open(&path)?;
    let (d_in, d_sae, d_out) = (config.d_in, config.d_sae, config.d_out);
    let encoder = weights.floats("W_enc", &[d_in, d_sae])?;
    let b_enc = weights.read("b_enc", &[d_sae])?;
    let decoder = weights.floats("W_dec", &[d_sae, d_out])?;
    let b_dec = weights.read("b_dec", &[d_out])?;
    let activation = Activation::from_tensors(&config, &[], |name| read_own(&mut weights, name, d_sae))?;
    let skip = skip.then(|| weights.floats("W_skip", &[d_out, d_in])).transpose()?;
    weights.finish(&name)?;
    let skip = skip.map(|weight| Skip { weight, input_first: false });
    Ok(Parts { config, encoder, by_feature: false, b_enc, decoder, b_dec, activation, skip })
}

/// A tensor `[f]` of the activation. Checkpoints of early JumpReLU training hold the logarithm of the threshold.
fn read_own(weights: &mut Weights, name: &str, d_sae: usize) -> Result<Vec<f32>> {
    if name == "threshold" && !weights.has(name) && weights.has("log_threshold") {
        return Ok(weights.read("log_threshold", &[d_sae])?.into_iter().map(f32::exp).collect());
    }
    weights.read(name, &[d_sae])
}

/// Reads `cfg.json` alone.
///
/// # Errors
/// As [`read`].
pub fn read_config(dir: &Path) -> Result<DictionaryConfig> {
    Ok(read_stored(dir)?.config)
}

fn read_stored(dir: &Path) -> Result<Stored> {
    let path = dir.join(CONFIG_FILE);
    require(&path, CONFIG)?;
    let cfg: Map<String, Value> = read_json(CONFIG, &path)?;
    config::from_json(cfg, &path)
}

/// Reads firing frequencies, `[d_sae]` between 0 and 1, where the directory has them.
///
/// # Errors
/// `Malformed` when the file is damaged or of another size.
pub fn read_sparsity(dir: &Path, d_sae: usize) -> Result<Option<Vec<f64>>> {
    let path = dir.join(SPARSITY_FILE);
    if !path.exists() {
        return Ok(None);
    }
    let bytes = Mapped::open(SPARSITY, &path)?.bytes("sparsity", Dtype::F32, &[d_sae])?.to_vec();
    let frequency = |b: &[u8]| (10f64.powf(f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))) - 1e-10).max(0.0);
    Ok(Some(bytes.chunks_exact(4).map(frequency).collect()))
}

fn require(path: &Path, what: &'static str) -> Result<()> {
    if path.is_file() {
        return Ok(());
    }
    Err(Error::Missing {
        what,
        path: path.into(),
        expected: format!("a dictionary directory holds {CONFIG_FILE} and {WEIGHTS_FILE}"),
        remedy: "give the directory that `train-sae` wrote, or one in SAELens' format".into(),
    })
}

fn check_finite(name: &str, values: &[f32], path: &Path) -> Result<()> {
    let count = values.iter().filter(|v| !v.is_finite()).count();
    if count == 0 {
        return Ok(());
    }
    let first = values.iter().position(|v| !v.is_finite()).unwrap_or_default();
    Err(Error::NonFinite {
        what: format!("'{name}' of {}", path.display()),
        count,
        at: format!("value {first}"),
        remedy: "the training that made it diverged: train again with a lower --lr".into(),
    })
}

#[cfg(test)]
mod tests;
