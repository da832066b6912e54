//! `dictionary_learning` (Marks et al.): `ae.pt`, the state dict of one of its classes, and `config.json` with the
//! settings of the trainer and of the buffer. Classes and their equations: its `dictionary.py` and `trainers/*.py`.
//!
//! | class | tensors | here |
//! | --- | --- | --- |
//! | `AutoEncoder` | `bias`, `encoder.*`, `decoder.weight` | ReLU |
//! | `AutoEncoderNew` | `encoder.*`, `decoder.*` | ReLU, no `b_dec` at the input |
//! | `GatedAutoEncoder` | `decoder_bias`, `encoder.weight`, `r_mag`, `gate_bias`, `mag_bias`, `decoder.weight` | gated |
//! | `AutoEncoderTopK` | `k`, `threshold`, `encoder.*`, `decoder.weight`, `b_dec` | TopK |
//! | `BatchTopKSAE` | the same | JumpReLU with one threshold |
//! | `MatryoshkaBatchTopKSAE` | `k`, `threshold`, `group_sizes`, `W_enc`, `b_enc`, `W_dec`, `b_dec` | the same |
//! | `JumpReluAutoEncoder` | `W_enc`, `b_enc`, `W_dec`, `b_dec`, `threshold` | JumpReLU, no `b_dec` at the input |
//!
//! A cut-off training leaves an `ae.pt` of another shape, its periodic backup `{step, ae, optimizer, config,
//! norm_factor}`; its weights are those of training, on rows divided by `norm_factor`, so its biases are multiplied by
//! it here, as the library does when it ends a training.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::object::Object;
use super::place;
use super::tensors::{Tensors, damaged, listed};
use crate::base::mapped::MappedBytes;
use crate::base::{Error, Result};
use crate::dictionary::{Activation, Architecture, Dictionary, DictionaryConfig, Metadata};
use crate::model::weights::pytorch::archive::Item;

mod write;

pub(super) use write::write;

/// The weights.
pub(super) const FILE: &str = "ae.pt";
/// The settings.
pub(super) const CONFIG: &str = "config.json";

const CLASSES: [&str; 7] = [
    "AutoEncoder",
    "AutoEncoderNew",
    "AutoEncoderTopK",
    "BatchTopKSAE",
    "GatedAutoEncoder",
    "JumpReluAutoEncoder",
    "MatryoshkaBatchTopKSAE",
];

/// Settings of the library's trainers that change nothing about what a trained dictionary computes.
const TRAINING: &[&str] = &[
    "trainer_class",
    "lr",
    "steps",
    "seed",
    "device",
    "wandb_name",
    "l1_penalty",
    "warmup_steps",
    "resample_steps",
    "sparsity_warmup_steps",
    "decay_start",
    "auxk_alpha",
    "threshold_beta",
    "threshold_start_step",
    "k_anneal_steps",
    "top_k_aux",
    "group_fractions",
    "group_weights",
    "group_sizes",
    "bandwidth",
    "sparsity_penalty",
    "target_l0",
    "sparsity_function",
    "p_start",
    "p_end",
    "p_step_count",
    "anneal_start",
    "anneal_end",
    "n_sparsity_updates",
    "sparsity_queue_length",
    "initial_sparsity_penalty",
    "training_autocast_dtype",
    "lr_schedule",
    "norm_factor",
    "warmup_steps_p",
    "num_tokens",
];
/// Settings of its buffer of activations.
const BUFFER: &[&str] = &[
    "d_submodule",
    "io",
    "n_ctxs",
    "refresh_batch_size",
    "out_batch_size",
    "device",
    "remove_bos",
    "add_special_tokens",
    "max_activation_norm_multiple",
    "remove_high_norm",
];

/// What `config.json` says.
#[derive(Debug, Default)]
struct Settings {
    class: Option<String>,
    metadata: Metadata,
    sizes: [Option<usize>; 2],
    k: Option<usize>,
}

/// `config.json` beside the weights, or above `checkpoints/`.
pub(super) fn config_of(weights: &Path) -> Option<PathBuf> {
    let beside = weights.with_file_name(CONFIG);
    let above = weights.parent()?.parent().map(|dir| dir.join(CONFIG));
    let in_checkpoints = weights.parent().is_some_and(|dir| dir.ends_with("checkpoints"));
    [Some(beside), above.filter(|_| in_checkpoints)].into_iter().flatten().find(|path| path.is_file())
}

/// Whether a state dict with these names is one of this library's.
pub(super) fn is_state_dict(names: &[&str]) -> bool {
    !candidates(names).is_empty()
}

/// The classes whose state dicts have these names.
fn candidates(names: &[&str]) -> Vec<&'static str> {
    let has = |all: &[&str]| names.len() == all.len() && all.iter().all(|name| names.contains(name));
    let topk = ["k", "threshold", "encoder.weight", "encoder.bias", "decoder.weight", "b_dec"];
    let jump = ["W_enc", "b_enc", "W_dec", "b_dec", "threshold"];
    if has(&["bias", "encoder.weight", "encoder.bias", "decoder.weight"]) {
        vec!["AutoEncoder"]
    } else if has(&["encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"]) {
        vec!["AutoEncoderNew"]
    } else if has(&["decoder_bias", "encoder.weight", "r_mag", "gate_bias", "mag_bias", "decoder.weight"]) {
        vec!["GatedAutoEncoder"]
    } else if has(&topk) || has(&topk[2..]) || has(&["k", "encoder.weight", "encoder.bias", "decoder.weight", "b_dec"])
    {
        vec!["AutoEncoderTopK", "BatchTopKSAE"]
    } else if has(&[&jump[..], &["k", "group_sizes"]].concat()) {
        vec!["MatryoshkaBatchTopKSAE"]
    } else if has(&jump) {
        vec!["JumpReluAutoEncoder"]
    } else {
        vec![]
    }
}

/// Reads the weights in `file`, whose settings are in `config` where there is one.
pub(super) fn read(
    file: Tensors,
    others: BTreeMap<&str, Item<'_>>,
    config: Option<&Path>,
    notes: &mut Vec<String>,
) -> Result<Dictionary> {
    let path = file.path().to_owned();
    let (file, norm_factor) = match others.get("ae") {
        None => (file, None),
        Some(&weights) => {
            notes.push("the file is the backup of a training that did not end".into());
            let factor = others.get("norm_factor").filter(|item| !item.is_none());
            let positive = |item: &Item<'_>| item.float().filter(|x| x.is_finite() && *x > 0.0).map(|x| x as f32);
            let wrong = || damaged(&path, "'norm_factor' as a positive number", "something else".into());
            let factor = factor.map(|item| positive(item).ok_or_else(wrong)).transpose()?;
            (Tensors::torch(&path, MappedBytes::open(&path)?, weights)?.0, factor)
        }
    };
    let unknown: Vec<&str> = others
        .keys()
        .copied()
        .filter(|key| !["step", "ae", "optimizer", "config", "norm_factor"].contains(key))
        .collect();
    if !unknown.is_empty() || (!others.is_empty() && !others.contains_key("ae")) {
        return Err(damaged(&path, "a state dict", format!("also {}", listed(others.keys().copied()))));
    }
    let settings = match config {
        Some(path) => Settings::read(path)?,
        None => Settings::default(),
    };
    let class = settings.class_of(&file)?;
    let mut dictionary = settings.dictionary(class, file, notes)?;
    if let Some(factor) = norm_factor {
        scale_biases(&mut dictionary, factor);
    }
    if dictionary.config.metadata.hook_name.is_none() {
        notes.push("no config.json says which layer it is of, so its hook is not known".into());
    }
    Ok(dictionary)
}

impl Settings {
    fn read(path: &Path) -> Result<Self> {
        let mut json = Object::read(path)?;
        let Some(mut trainer) = json.object("trainer")? else {
            return Err(Error::malformed(
                "dictionary configuration",
                path,
                "'trainer', the settings of dictionary_learning's trainer",
                "none",
                "the file is of another format, or incomplete: download it again",
            ));
        };
        let mut settings = Self {
            class: Some(trainer.require("dict_class")?),
            sizes: [trainer.take("activation_dim")?, trainer.take("dict_size")?],
            k: trainer.take("k")?,
            ..Self::default()
        };
        let metadata = &mut settings.metadata;
        metadata.model_name = trainer.take("lm_name")?;
        let layer: Option<usize> = trainer.take("layer")?;
        let submodule: Option<String> = trainer.take("submodule_name")?;
        // The library's own scripts and SAELens take a dictionary without a word about its module as one of the
        // residual stream behind its layer.
        match (layer, submodule.as_deref()) {
            (Some(layer), None) => place::set_hook(metadata, format!("blocks.{layer}.hook_resid_post")),
            (Some(layer), Some(name)) if name.starts_with("resid_post") => {
                place::set_hook(metadata, format!("blocks.{layer}.hook_resid_post"));
            }
            (_, Some(name)) if place::is_module(name) => place::set_module(metadata, name),
            _ => {}
        }
        if let Some(name) = submodule {
            metadata.extra.insert("submodule_name".into(), name.into());
        }
        trainer.ignore(TRAINING);
        trainer.finish()?;
        if let Some(mut buffer) = json.object("buffer")? {
            metadata.context_size = buffer.take("ctx_len")?;
            buffer.ignore(BUFFER);
            buffer.finish()?;
        }
        json.finish()?;
        Ok(settings)
    }

    /// The class, from the configuration and from the names of the tensors, which must agree.
    fn class_of(&self, file: &Tensors) -> Result<&'static str> {
        let names: Vec<&str> = file.names().collect();
        let possible = candidates(&names);
        let Some(named) = &self.class else {
            return match possible[..] {
                [class] => Ok(class),
                [] => Err(damaged(file.path(), "the state dict of a known class", listed(names.into_iter()))),
                _ => Err(Error::Missing {
                    what: "dictionary configuration",
                    path: file.path().with_file_name(CONFIG),
                    expected: format!("its weights may be those of {}, which it tells apart", possible.join(" or ")),
                    remedy: "keep config.json beside the weights".into(),
                }),
            };
        };
        let Some(class) = CLASSES.iter().find(|class| *class == named) else {
            return Err(Error::Unknown {
                kind: "dict_class",
                found: format!("{named}' beside '{}", file.path().display()),
                nearest: CLASSES.iter().map(ToString::to_string).collect(),
            });
        };
        if possible.contains(class) {
            return Ok(class);
        }
        Err(damaged(file.path(), &format!("the tensors of {class}, as {CONFIG} says"), listed(names.into_iter())))
    }

    fn dictionary(self, class: &str, mut file: Tensors, notes: &mut Vec<String>) -> Result<Dictionary> {
        let linear = file.contains("encoder.weight");
        let [d_sae, d] = if linear {
            file.matrix("encoder.weight")?
        } else {
            let [d, d_sae] = file.matrix("W_enc")?;
            [d_sae, d]
        };
        if self.sizes.iter().zip([d, d_sae]).any(|(said, is)| said.is_some_and(|said| said != is)) {
            return Err(Error::Mismatch {
                what: "dictionary configuration and weights",
                left: format!("activation_dim and dict_size {:?} in {CONFIG}", self.sizes),
                right: format!("widths {:?} in {}", [d, d_sae], file.path().display()),
                remedy: "the two files belong to different dictionaries: download both again".into(),
            });
        }
        let (w_enc, w_dec) = if linear {
            let encoder = file.take_transposed("encoder.weight", [d_sae, d])?;
            (encoder, file.take_transposed("decoder.weight", [d, d_sae])?)
        } else {
            (file.take("W_enc", &[d, d_sae])?, file.take("W_dec", &[d_sae, d])?)
        };
        let k = if file.contains("k") { integer(&mut file, "k")? } else { self.k };
        let (b_enc, b_dec, activation, architecture) = match class {
            "AutoEncoder" => {
                let biases = (file.take("encoder.bias", &[d_sae])?, file.take("bias", &[d])?);
                (biases.0, biases.1, Activation::relu(), Architecture::Relu)
            }
            "AutoEncoderNew" => {
                let biases = (file.take("encoder.bias", &[d_sae])?, file.take("decoder.bias", &[d])?);
                (biases.0, biases.1, Activation::relu(), Architecture::Relu)
            }
            "GatedAutoEncoder" => {
                let biases = (file.take("gate_bias", &[d_sae])?, file.take("decoder_bias", &[d])?);
                let gated = Activation::gated(file.take("r_mag", &[d_sae])?, file.take("mag_bias", &[d_sae])?);
                (biases.0, biases.1, gated, Architecture::Gated)
            }
            "AutoEncoderTopK" => {
                // The threshold is for another way of inference, which the library's encode does not take by itself.
                file.ignore("threshold");
                let k = k
                    .filter(|k| (1..=d_sae).contains(k))
                    .ok_or_else(|| damaged(file.path(), &format!("'k' from 1 to {d_sae}"), format!("{k:?}")))?;
                let biases = (file.take("encoder.bias", &[d_sae])?, file.take("b_dec", &[d])?);
                let architecture = Architecture::TopK { k, rescale_acts_by_decoder_norm: false };
                (biases.0, biases.1, Activation::top_k(k, None, d), architecture)
            }
            _ => {
                let b_enc = file.take(if linear { "encoder.bias" } else { "b_enc" }, &[d_sae])?;
                file.ignore("group_sizes");
                let threshold = threshold(&mut file, d_sae, notes)?;
                (b_enc, file.take("b_dec", &[d])?, Activation::jump_relu(threshold), Architecture::JumpRelu)
            }
        };
        file.finish()?;
        let mut config = DictionaryConfig::new(architecture, d, d_sae);
        config.apply_b_dec_to_input = !matches!(class, "AutoEncoderNew" | "JumpReluAutoEncoder");
        config.metadata = self.metadata;
        Dictionary::new(config, w_enc, b_enc, w_dec, b_dec, activation)
    }
}

fn integer(file: &mut Tensors, name: &str) -> Result<Option<usize>> {
    let values = file.take_integers(name)?;
    match values.as_slice() {
        [value] => Ok(usize::try_from(*value).ok()),
        _ => Err(file.wrong(name, "one integer", format!("{} integers", values.len()))),
    }
}

/// A threshold a feature, or one for all.
fn threshold(file: &mut Tensors, d_sae: usize, notes: &mut Vec<String>) -> Result<Vec<f32>> {
    if file.contains("threshold") && !file.shape("threshold")?.is_empty() {
        return file.take("threshold", &[d_sae]);
    }
    let threshold = file.take("threshold", &[])?.first().copied().unwrap_or_default();
    if threshold < 0.0 {
        notes.push(
            "its threshold was never set, as in a short training: it encodes as with ReLU, which is what the library \
             does"
                .into(),
        );
    }
    Ok(vec![threshold; d_sae])
}

/// The library's `scale_biases`: weights of rows divided by `factor`, made to take them as they are.
fn scale_biases(dictionary: &mut Dictionary, factor: f32) {
    let scale = |values: &mut [f32]| values.iter_mut().for_each(|value| *value *= factor);
    scale(&mut dictionary.b_enc);
    scale(&mut dictionary.b_dec);
    match &dictionary.activation {
        Activation::JumpRelu(jump) => {
            // An unset threshold is no number of activations.
            let scaled = jump.threshold.iter().map(|t| if *t >= 0.0 { t * factor } else { *t });
            dictionary.activation = Activation::jump_relu(scaled.collect());
        }
        Activation::Gated(gated) => {
            let b_mag = gated.b_mag().iter().map(|b| b * factor).collect();
            dictionary.activation = Activation::gated(gated.r_mag().to_vec(), b_mag);
        }
        _ => {}
    }
}
