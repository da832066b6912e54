//! Writes `ae.pt` and `config.json` as the library's `trainSAE` leaves them.

use std::path::Path;

use serde_json::json;

use super::super::forms;
use super::super::tensors::transposed;
use super::super::torch_file::{self, Numbers};
use super::super::{Format, cannot};
use super::{CONFIG, FILE};
use crate::base::Result;
use crate::base::artifact::write_json;
use crate::dictionary::scale::gather_competing_norms;
use crate::dictionary::{Activation, Architecture, Dictionary, NormalizeActivations};
use crate::model::{HookPoint, Site};

const FORMAT: Format = Format::DictionaryLearning;

/// Writes `dictionary` into the existing directory `dir`.
///
/// # Errors
/// `Unsupported` with the reason, when the format has no class for it; `Io` when a file cannot be written.
pub(crate) fn write(dir: &Path, mut dictionary: Dictionary) -> Result<()> {
    let layer = check(&dictionary)?;
    gather_competing_norms(&mut dictionary);
    let subtracts = dictionary.config.apply_b_dec_to_input;
    let class = match dictionary.config.architecture {
        Architecture::Relu if subtracts => "AutoEncoder",
        Architecture::Relu => "AutoEncoderNew",
        Architecture::Gated => "GatedAutoEncoder",
        Architecture::TopK { .. } => "AutoEncoderTopK",
        Architecture::JumpRelu => "JumpReluAutoEncoder",
        other => return Err(cannot(FORMAT, &format!("no class of it computes '{}'", other.name()))),
    };
    match dictionary.config.architecture {
        Architecture::Gated | Architecture::TopK { .. } => forms::set_subtracts(&mut dictionary, true),
        Architecture::JumpRelu => forms::set_subtracts(&mut dictionary, false),
        _ => {}
    }
    let metadata = dictionary.config.metadata.clone();
    let mut trainer = json!({
        "dict_class": class,
        "activation_dim": dictionary.d_in(),
        "dict_size": dictionary.d_sae(),
        "layer": layer,
        "lm_name": metadata.model_name,
        "submodule_name": layer.map(|layer| format!("resid_post_layer_{layer}")),
    });
    if let (Architecture::TopK { k, .. }, Some(trainer)) = (dictionary.config.architecture, trainer.as_object_mut()) {
        trainer.insert("k".into(), k.into());
    }
    let config = json!({"trainer": trainer, "buffer": {"ctx_len": metadata.context_size}});
    torch_file::write(&dir.join(FILE), &tensors(dictionary))?;
    write_json(&dir.join(CONFIG), &config)
}

/// The layer, which is all that the format says about the hook.
fn check(dictionary: &Dictionary) -> Result<Option<usize>> {
    let config = &dictionary.config;
    if config.transcoder || dictionary.w_skip.is_some() {
        return Err(cannot(FORMAT, "it has no transcoders and no skip connections"));
    }
    if config.normalize_activations != NormalizeActivations::None {
        let name = config.normalize_activations.name();
        return Err(cannot(FORMAT, &format!("it cannot say that rows are normalised ({name})")));
    }
    if config.center_input {
        return Err(cannot(FORMAT, "it cannot say that the mean of each row is subtracted (center_writing_weights)"));
    }
    if config.metadata.hook_head_index.is_some() {
        return Err(cannot(FORMAT, "it cannot say which head the dictionary is of"));
    }
    match config.metadata.hook_name.as_deref().map(str::parse) {
        None => Ok(None),
        Some(Ok(HookPoint { layer: Some(layer), site: Site::ResidPost })) => Ok(Some(layer)),
        _ => {
            let hook = config.metadata.hook_name.as_deref().unwrap_or_default();
            let why =
                format!("its readers take every dictionary as one of blocks.N.hook_resid_post, and this is of {hook}");
            Err(cannot(FORMAT, &why))
        }
    }
}

/// The state dict of the class, in the library's order.
fn tensors(dictionary: Dictionary) -> Vec<torch_file::Tensor<'static>> {
    let (d, f) = (dictionary.d_in(), dictionary.d_sae());
    let Dictionary { config, w_enc, b_enc, w_dec, b_dec, activation, .. } = dictionary;
    let encoder = |w: &[f32]| ("encoder.weight", vec![f, d], Numbers::F32(transposed(w, f)));
    let decoder = |w: &[f32]| ("decoder.weight", vec![d, f], Numbers::F32(transposed(w, d)));
    let vector = |name, values: Vec<f32>| (name, vec![values.len()], Numbers::F32(values));
    match activation {
        Activation::JumpRelu(jump) => vec![
            ("W_enc", vec![d, f], Numbers::F32(w_enc)),
            vector("b_enc", b_enc),
            ("W_dec", vec![f, d], Numbers::F32(w_dec)),
            vector("b_dec", b_dec),
            vector("threshold", jump.threshold),
        ],
        Activation::Gated(gated) => vec![
            vector("decoder_bias", b_dec),
            vector("r_mag", gated.r_mag().to_vec()),
            vector("gate_bias", b_enc),
            vector("mag_bias", gated.b_mag().to_vec()),
            encoder(&w_enc),
            decoder(&w_dec),
        ],
        _ => match config.architecture {
            Architecture::TopK { k, .. } => vec![
                vector("b_dec", b_dec),
                ("k", vec![], Numbers::I32(vec![k as i32])),
                // Unset, as before a training's first estimate; the class encodes by k.
                ("threshold", vec![], Numbers::F32(vec![-1.0])),
                decoder(&w_dec),
                encoder(&w_enc),
                vector("encoder.bias", b_enc),
            ],
            _ if config.apply_b_dec_to_input => {
                vec![vector("bias", b_dec), encoder(&w_enc), vector("encoder.bias", b_enc), decoder(&w_dec)]
            }
            _ => vec![encoder(&w_enc), vector("encoder.bias", b_enc), decoder(&w_dec), vector("decoder.bias", b_dec)],
        },
    }
}
