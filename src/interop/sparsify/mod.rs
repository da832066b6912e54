//! sparsify (EleutherAI): a folder named by the module, with `cfg.json` and `sae.safetensors`: `encoder.weight`
//! `[f, d]`, `encoder.bias`, `W_dec` `[f, d]` (a row a feature), `b_dec` and, with a skip connection, `W_skip` `[d, d]`.
//!
//! ```text
//! a = relu((x − b_dec) Wᵀ + b)        a = relu(x Wᵀ + b) when it transcodes
//! y = Σ aᵢ W_dec[i] + b_dec + x W_skipᵀ   over the k largest, or over the largest of each of k groups
//! ```
//!
//! SAELens' own reader of this format transposes `W_dec` once too often, drops the skip connection, takes `b_dec` off
//! the input by another rule and ignores groups; this one follows sparsify (`sparse_coder.py`, `fused_encoder.py`).

use std::path::Path;

use serde_json::Value;

use super::object::Object;
use super::place;
use super::tensors::Tensors;
use crate::base::{Error, Result};
use crate::dictionary::set::{Parts, Skip};
use crate::dictionary::{Activation, Architecture, DictionaryConfig};

mod write;

pub(super) use write::write;

/// The weights.
pub(super) const FILE: &str = "sae.safetensors";
/// The configuration.
pub(super) const CONFIG: &str = "cfg.json";

/// What `cfg.json` says.
struct Settings {
    d: usize,
    d_sae: usize,
    k: usize,
    activation: String,
    transcode: bool,
    skip: bool,
}

pub(super) fn read(dir: &Path, notes: &mut Vec<String>) -> Result<Parts> {
    let path = dir.join(CONFIG);
    let settings = Settings::read(&path)?;
    let Settings { d, d_sae, k, .. } = settings;
    let mut file = Tensors::safetensors(&dir.join(FILE))?;
    if file.matrix("encoder.weight")? != [d_sae, d] {
        return Err(Error::Mismatch {
            what: "dictionary configuration and weights",
            left: format!("{d_sae} latents of width {d} in {}", path.display()),
            right: format!("encoder.weight {:?} in {}", file.shape("encoder.weight")?, file.path().display()),
            remedy: "the two files belong to different dictionaries: download both again".into(),
        });
    }
    let encoder = file.floats("encoder.weight", &[d_sae, d])?;
    let b_enc = file.take("encoder.bias", &[d_sae])?;
    let decoder = file.floats("W_dec", &[d_sae, d])?;
    let b_dec = file.take("b_dec", &[d])?;
    let skip = settings.skip.then(|| file.floats("W_skip", &[d, d])).transpose()?;
    file.finish()?;
    let (architecture, activation) = match settings.activation.as_str() {
        "topk" => (Architecture::TopK { k, rescale_acts_by_decoder_norm: false }, Activation::top_k(k, None, d)),
        "groupmax" => (Architecture::GroupMax { k }, Activation::group_max(k, d_sae)),
        other => {
            return Err(Error::Unknown {
                kind: "activation",
                found: format!("{other}' in '{}", path.display()),
                nearest: vec!["topk".into(), "groupmax".into()],
            });
        }
    };
    if !(1..=d_sae).contains(&k) || (settings.activation == "groupmax" && d_sae % k != 0) {
        let expected = format!("k from 1 to {d_sae}, and for groupmax a divisor of it");
        let remedy = "copy or make the dictionary again";
        return Err(Error::malformed("dictionary configuration", &path, expected, k.to_string(), remedy));
    }
    let mut config = DictionaryConfig::new(architecture, d, d_sae);
    config.apply_b_dec_to_input = !settings.transcode;
    describe(&mut config, dir, settings.transcode, notes)?;
    let skip = skip.map(|weight| Skip { weight, input_first: false });
    Ok(Parts { config, encoder, by_feature: true, b_enc, decoder, b_dec, activation, skip })
}

impl Settings {
    fn read(path: &Path) -> Result<Self> {
        let mut json = Object::read(path)?;
        let d = json.size("d_in")?;
        // Defaults as in sparsify's SparseCoderConfig.
        let latents: usize = json.take("num_latents")?.unwrap_or(0);
        let expansion: usize = json.take("expansion_factor")?.unwrap_or(32);
        let d_sae = if latents > 0 { Some(latents) } else { d.checked_mul(expansion) };
        let Some(d_sae) = d_sae.filter(|d_sae| *d_sae > 0) else {
            return Err(json.wrong("expansion_factor", "a positive integer".into(), &expansion.into()));
        };
        let settings = Self {
            d,
            d_sae,
            k: json.take("k")?.unwrap_or(32),
            activation: json.take("activation")?.unwrap_or_else(|| "topk".into()),
            transcode: json.take("transcode")?.unwrap_or(false),
            skip: json.take("skip_connection")?.unwrap_or(false),
        };
        if json.take("signed")? == Some(true) {
            return Err(json.refuse("signed", true, "early sparsify chose by absolute value under it"));
        }
        // Both concern training: the decoder is stored as it was normalised, and the loss has no part in encoding.
        json.ignore(&["normalize_decoder", "multi_topk"]);
        json.finish()?;
        Ok(settings)
    }
}

/// The module is the folder's name; the model is in the `config.json` of the run above it.
fn describe(config: &mut DictionaryConfig, dir: &Path, transcode: bool, notes: &mut Vec<String>) -> Result<()> {
    let parts = place::parts(dir);
    let module = parts.last().map(String::as_str).filter(|name| place::is_module(name));
    match module {
        Some(module) if transcode => {
            place::set_module(&mut config.metadata, &format!("{module}.input"));
            place::set_output(config, module);
        }
        Some(module) => place::set_module(&mut config.metadata, module),
        None => {
            config.transcoder = transcode;
            notes.push(format!(
                "sparsify names a dictionary's folder by its module (layers.10), and '{}' is none, so its hook is not \
                 known",
                parts.last().map_or("", String::as_str)
            ));
        }
    }
    let above = std::path::absolute(dir).ok().and_then(|dir| Some(dir.parent()?.join("config.json")));
    if let Some(path) = above.filter(|path| path.is_file()) {
        // The whole of the run's settings; only what describes the rows is read.
        let mut run = Object::read(&path)?;
        let text = |value: Option<Value>| value.as_ref().and_then(Value::as_str).map(str::to_owned);
        config.metadata.model_name = text(run.take("model")?);
        config.metadata.context_size = run.take("ctx_len")?;
        config.metadata.dataset_path = text(run.take("dataset")?);
    }
    Ok(())
}
