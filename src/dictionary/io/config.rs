//! `cfg.json`: what SAELens' keys mean here.

use std::path::Path;

use serde_json::{Map, Value};

use super::{CONFIG, MAKE_AGAIN, legacy};
use crate::base::nearest::nearest;
use crate::base::{Error, Result};
use crate::dictionary::metadata::is_version_6_or_later;
use crate::dictionary::{Architecture, DictionaryConfig, Metadata, NormalizeActivations, ReshapeActivations};

/// Architectures of SAELens that are read, and two transcoders that it lacks, with names as its others have.
const NAMES: &[&str] = &[
    "standard",
    "topk",
    "abstopk",
    "jumprelu",
    "gated",
    "transcoder",
    "skip_transcoder",
    "jumprelu_transcoder",
    "jumprelu_skip_transcoder",
    "topk_transcoder",
    "topk_skip_transcoder",
    "batchtopk",
    "matryoshka_batchtopk",
];
/// Keys that change what is computed, for every architecture.
const COMMON_KEYS: &[&str] = &[
    "architecture",
    "d_in",
    "d_sae",
    "dtype",
    "device",
    "apply_b_dec_to_input",
    "normalize_activations",
    "reshape_activations",
    "metadata",
    "sae_lens_version",
];
/// Keys that change what is computed, for the architectures that have them.
const OWN_KEYS: &[&str] = &["k", "rescale_acts_by_decoder_norm", "d_out"];
/// Settings of training, in the configurations of SAELens' checkpoints; they leave inference as it is.
const TRAINING_KEYS: &[&str] = &[
    "decoder_init_norm",
    "l1_coefficient",
    "l1_warm_up_steps",
    "lp_norm",
    "aux_loss_coefficient",
    "use_sparse_activations",
    "topk_threshold_lr",
    "matryoshka_widths",
    "use_matryoshka_aux_loss",
    "jumprelu_bandwidth",
    "jumprelu_init_threshold",
    "jumprelu_sparsity_loss_mode",
    "jumprelu_ste_to_input",
    "jumprelu_tanh_scale",
    "l0_coefficient",
    "l0_warm_up_steps",
    "pre_act_loss_coefficient",
    "target_l0",
];
/// Number types that SAELens may name.
const DTYPES: &[&str] = &["float32", "float64", "float16", "bfloat16"];
/// In `metadata`: the factor of `expected_average_only_in`, which SAELens keeps in its list of releases instead.
const FACTOR_KEY: &str = "norm_scaling_factor";

/// A configuration as it is stored.
#[derive(Debug)]
pub(super) struct Stored {
    /// What is computed.
    pub(super) config: DictionaryConfig,
    /// The stored architecture's name.
    pub(super) name: String,
    /// Whether the weights hold `W_skip`.
    pub(super) skip: bool,
    /// Where thresholds come from.
    pub(super) thresholds: Thresholds,
    /// To be folded into the weights.
    pub(super) factor: Option<f32>,
    /// Whether the file is of the flat format.
    pub(super) legacy: bool,
    /// `finetuning_scaling_factor` of the flat format.
    pub(super) finetuned: bool,
}

/// Where the thresholds of a JumpReLU come from.
#[derive(Debug)]
pub(super) enum Thresholds {
    /// Tensors of the architecture, if it has any.
    Own,
    /// The running threshold of a BatchTopK checkpoint, on activations that carry the decoder norm where `rescaled`.
    OfBatch { rescaled: bool },
}

/// Reads the contents of `path`.
///
/// # Errors
/// `Malformed`, `Unknown` or `Unsupported`, naming the file and the key.
pub(super) fn from_json(cfg: Map<String, Value>, path: &Path) -> Result<Stored> {
    let legacy = !is_version_6(&cfg);
    let finetuned = legacy && cfg.get("finetuning_scaling_factor") == Some(&Value::Bool(true));
    let cfg = if legacy { legacy::upgrade(cfg, path)? } else { cfg };
    let name = name(&cfg, path)?;
    let known = [COMMON_KEYS, OWN_KEYS, TRAINING_KEYS].concat();
    if let Some(key) = cfg.keys().find(|key| !known.contains(&key.as_str())) {
        return Err(unknown_key(key, path));
    }
    check_dtype(&cfg, path)?;
    let d_in = size(&cfg, "d_in", path)?;
    let d_sae = size(&cfg, "d_sae", path)?;
    let base = name.strip_suffix("transcoder").map(|base| base.trim_end_matches('_'));
    let (architecture, thresholds) = architecture(&cfg, base.unwrap_or(&name), d_sae, path)?;
    let transcoder = base.is_some();
    let mut metadata: Metadata = optional(&cfg, "metadata", path)?.unwrap_or_default();
    if legacy {
        legacy::recognise_centring(&mut metadata, path);
    }
    let config = DictionaryConfig {
        d_out: if transcoder { size(&cfg, "d_out", path)? } else { d_in },
        transcoder,
        apply_b_dec_to_input: optional(&cfg, "apply_b_dec_to_input", path)?.unwrap_or(true),
        normalize_activations: normalization(&cfg, path)?,
        center_input: metadata.centers_rows(),
        reshape_activations: optional(&cfg, "reshape_activations", path)?.unwrap_or_default(),
        metadata,
        ..DictionaryConfig::new(architecture, d_in, d_sae)
    };
    check(&config, path)?;
    let factor = factor(&config, path)?;
    Ok(Stored { skip: name.contains("skip"), config, name, thresholds, factor, legacy, finetuned })
}

/// Version 6 keeps the model's names under `metadata`; older files are flat and mean other things by some keys.
fn is_version_6(cfg: &Map<String, Value>) -> bool {
    let version = cfg.get("sae_lens_version").or_else(|| cfg.get("metadata")?.get("sae_lens_version"));
    is_version_6_or_later(version.and_then(Value::as_str))
}

fn name(cfg: &Map<String, Value>, path: &Path) -> Result<String> {
    let Some(name) = cfg.get("architecture").and_then(Value::as_str) else {
        return Err(malformed(path, "a string 'architecture'".into(), "none".into()));
    };
    if NAMES.contains(&name) {
        return Ok(name.to_owned());
    }
    Err(Error::Unknown {
        kind: "dictionary architecture",
        found: format!("{name}' in '{}", path.display()),
        nearest: nearest(name, NAMES.iter().copied(), NAMES.len()),
    })
}

fn architecture(cfg: &Map<String, Value>, base: &str, d_sae: usize, path: &Path) -> Result<(Architecture, Thresholds)> {
    let rescale: Option<bool> = optional(cfg, "rescale_acts_by_decoder_norm", path)?;
    let k = || match optional::<usize>(cfg, "k", path)? {
        Some(k) if (1..=d_sae).contains(&k) => Ok(k),
        k => Err(malformed(path, format!("'k' from 1 to d_sae, {d_sae}"), k.map_or("no k".into(), |k| k.to_string()))),
    };
    let rescale_acts_by_decoder_norm = rescale.unwrap_or(false);
    let architecture = match base {
        "topk" | "topk_skip" => Architecture::TopK { k: k()?, rescale_acts_by_decoder_norm },
        "abstopk" => Architecture::AbsTopK { k: k()?, rescale_acts_by_decoder_norm },
        "gated" => Architecture::Gated,
        "jumprelu" | "jumprelu_skip" => Architecture::JumpRelu,
        "batchtopk" | "matryoshka_batchtopk" => {
            // The default of SAELens' training configurations.
            return Ok((Architecture::JumpRelu, Thresholds::OfBatch { rescaled: rescale.unwrap_or(true) }));
        }
        _ => Architecture::Relu,
    };
    Ok((architecture, Thresholds::Own))
}

fn normalization(cfg: &Map<String, Value>, path: &Path) -> Result<NormalizeActivations> {
    let Some(found) = cfg.get("normalize_activations") else { return Ok(NormalizeActivations::None) };
    serde_json::from_value(found.clone()).map_err(|_| Error::Unsupported {
        what: format!("normalize_activations {found} in {}", path.display()),
        why: "this version computes none, expected_average_only_in, constant_norm_rescale and layer_norm".into(),
        remedy: "fold it into the weights with SAELens (fold_activation_whitening for a whitening) and save again"
            .into(),
    })
}

fn factor(config: &DictionaryConfig, path: &Path) -> Result<Option<f32>> {
    if config.normalize_activations != NormalizeActivations::ExpectedAverageOnlyIn {
        return Ok(None);
    }
    let Some(found) = config.metadata.extra.get(FACTOR_KEY).filter(|found| !found.is_null()) else { return Ok(None) };
    match found.as_f64().map(|factor| factor as f32).filter(|factor| factor.is_normal() && *factor > 0.0) {
        Some(factor) => Ok(Some(factor)),
        None => Err(malformed(path, format!("a positive number as metadata.{FACTOR_KEY}"), found.to_string())),
    }
}

fn check(config: &DictionaryConfig, path: &Path) -> Result<()> {
    if config.transcoder && config.apply_b_dec_to_input {
        let expected = "apply_b_dec_to_input false in a transcoder, whose b_dec belongs to its output";
        return Err(malformed(path, expected.into(), "true".into()));
    }
    let hook = config.metadata.hook_name.as_deref();
    if config.reshape_activations == ReshapeActivations::HookZ && hook.is_some_and(|hook| !hook.ends_with("_z")) {
        let expected = "a hook ending in _z, whose heads reshape_activations hook_z joins";
        return Err(malformed(path, expected.into(), hook.unwrap_or_default().into()));
    }
    Ok(())
}

fn check_dtype(cfg: &Map<String, Value>, path: &Path) -> Result<()> {
    let Some(dtype) = optional::<String>(cfg, "dtype", path)? else { return Ok(()) };
    if DTYPES.contains(&dtype.trim_start_matches("torch.")) {
        return Ok(());
    }
    Err(malformed(path, format!("'dtype' as one of {}", DTYPES.join(", ")), dtype))
}

fn size(cfg: &Map<String, Value>, key: &str, path: &Path) -> Result<usize> {
    match optional::<usize>(cfg, key, path)? {
        Some(size) if size > 0 => Ok(size),
        _ => {
            let found = cfg.get(key).map_or("none".into(), Value::to_string);
            Err(malformed(path, format!("'{key}' as a positive integer"), found))
        }
    }
}

/// The value of `key`; absent and null are the same.
pub(super) fn optional<T: serde::de::DeserializeOwned>(
    cfg: &Map<String, Value>,
    key: &str,
    path: &Path,
) -> Result<Option<T>> {
    let Some(value) = cfg.get(key).filter(|value| !value.is_null()) else { return Ok(None) };
    serde_json::from_value(value.clone())
        .map(Some)
        .map_err(|e| malformed(path, format!("a valid '{key}'"), format!("{value} ({e})")))
}

pub(super) fn unknown_key(key: &str, path: &Path) -> Error {
    Error::Unsupported {
        what: format!("the key '{key}' of {}", path.display()),
        why: "it may change what the dictionary computes, and this version does not know it".into(),
        remedy: "if it is harmless, move it into \"metadata\"".into(),
    }
}

pub(super) fn malformed(path: &Path, expected: String, found: String) -> Error {
    Error::malformed(CONFIG, path, expected, found, MAKE_AGAIN)
}
