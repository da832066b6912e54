//! Gemma Scope (Lieberum et al. 2024): `params.npz` with `W_enc` `[d_in, f]`, `W_dec` `[f, d_in]`, `b_enc`, `b_dec`
//! and `threshold`, some in lower case. JumpReLU without `b_dec` at the input.
//!
//! The files say nothing else; model, site and layer are in the names of the repository and folders, as in
//! `google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71/params.npz`. Trained with BOS on sequences of 1024.

use std::path::Path;

use super::place;
use super::tensors::Tensors;
use crate::base::Result;
use crate::dictionary::set::Parts;
use crate::dictionary::{Activation, Architecture, DictionaryConfig, ReshapeActivations};

/// What the file name says the file is called.
pub(super) const FILE: &str = "params.npz";

pub(super) fn read(path: &Path, notes: &mut Vec<String>) -> Result<Parts> {
    let mut parts = weights(path)?;
    describe(&mut parts.config, path, notes);
    if parts.config.metadata.hook_name.as_deref() != Some("hook_embed") {
        return Ok(parts);
    }
    // Trained on embeddings before Gemma multiplies them by √d_model, and hooks are behind that.
    let mut dictionary = parts.dictionary()?;
    let scale = (dictionary.d_in() as f32).sqrt();
    for w in &mut dictionary.w_enc {
        *w /= scale;
    }
    for w in &mut dictionary.w_dec {
        *w *= scale;
    }
    Ok(Parts::of(dictionary))
}

/// What the file itself says.
pub(super) fn weights(path: &Path) -> Result<Parts> {
    let mut file = Tensors::npz(path)?;
    file.rename("w_enc", "W_enc");
    file.rename("w_dec", "W_dec");
    let [d_in, d_sae] = file.matrix("W_enc")?;
    let [_, d_out] = file.matrix("W_dec")?;
    let encoder = file.floats("W_enc", &[d_in, d_sae])?;
    let b_enc = file.take("b_enc", &[d_sae])?;
    let decoder = file.floats("W_dec", &[d_sae, d_out])?;
    let b_dec = file.take("b_dec", &[d_out])?;
    let activation = Activation::jump_relu(file.take("threshold", &[d_sae])?);
    file.finish()?;
    let mut config = DictionaryConfig::new(Architecture::JumpRelu, d_in, d_sae);
    config.d_out = d_out;
    config.apply_b_dec_to_input = false;
    Ok(Parts { config, encoder, by_feature: false, b_enc, decoder, b_dec, activation, skip: None })
}

/// Fills in what the folders say.
fn describe(config: &mut DictionaryConfig, path: &Path, notes: &mut Vec<String>) {
    let parts = place::parts(path);
    config.metadata.context_size = Some(1024);
    config.metadata.prepend_bos = Some(true);
    config.metadata.dataset_path = Some("monology/pile-uncopyrighted".into());
    let name = parts.iter().rev().find_map(|part| part.split_once("gemma-scope-").map(|(_, name)| name));
    let Some(name) = name else {
        notes.push(
            "no folder on the way to the file is called as Gemma Scope's repositories are (gemma-scope-2b-pt-res), so \
             its model and hook are not known"
                .into(),
        );
        return;
    };
    let mut words = name.split('-');
    let (size, tuning, site) = (words.next().unwrap_or_default(), words.next(), words.next());
    let suffix = if tuning == Some("it") { "-it" } else { "" };
    config.metadata.model_name = Some(format!("google/gemma-2-{size}{suffix}"));
    let layer = place::number_after(&parts, "layer_");
    let embedding = parts.iter().any(|part| part == "embedding");
    match (site, layer) {
        (Some("res"), _) if embedding => place::set_hook(&mut config.metadata, "hook_embed".into()),
        (Some("res"), Some(layer)) => {
            place::set_hook(&mut config.metadata, format!("blocks.{layer}.hook_resid_post"));
        }
        (Some("mlp"), Some(layer)) => place::set_hook(&mut config.metadata, format!("blocks.{layer}.hook_mlp_out")),
        (Some("att"), Some(layer)) => {
            place::set_hook(&mut config.metadata, format!("blocks.{layer}.attn.hook_z"));
            config.reshape_activations = ReshapeActivations::HookZ;
        }
        (Some("transcoders"), Some(layer)) => {
            // The normalised row before the norm's gain.
            place::set_hook(&mut config.metadata, format!("blocks.{layer}.ln2.hook_normalized"));
            place::set_output(config, &format!("blocks.{layer}.hook_mlp_out"));
        }
        _ => {
            notes
                .push(format!("'{name}' and its folders name no layer and site of Gemma Scope: the hook is not known"));
        }
    }
}
