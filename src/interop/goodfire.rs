//! Goodfire: a dict of torch with the tensors of two Linear layers, `encoder_linear.weight` `[f, d]`,
//! `decoder_linear.weight` `[d, f]` and their biases. ReLU without `b_dec` at the input.

use std::path::Path;

use super::place;
use super::tensors::Tensors;
use crate::base::Result;
use crate::dictionary::{Activation, Architecture, Dictionary, DictionaryConfig};

pub(super) fn read(mut file: Tensors, notes: &mut Vec<String>) -> Result<Dictionary> {
    let [d_sae, d] = file.matrix("encoder_linear.weight")?;
    let w_enc = file.take_transposed("encoder_linear.weight", [d_sae, d])?;
    let b_enc = file.take("encoder_linear.bias", &[d_sae])?;
    let w_dec = file.take_transposed("decoder_linear.weight", [d, d_sae])?;
    let b_dec = file.take("decoder_linear.bias", &[d])?;
    let mut config = DictionaryConfig::new(Architecture::Relu, d, d_sae);
    config.apply_b_dec_to_input = false;
    describe(&mut config, file.path(), notes);
    file.finish()?;
    Dictionary::new(config, w_enc, b_enc, w_dec, b_dec, Activation::relu())
}

/// `Llama-3.1-8B-Instruct-SAE-l19.pth` is layer 19 of that model.
fn describe(config: &mut DictionaryConfig, path: &Path, notes: &mut Vec<String>) {
    let parts = place::parts(path);
    let named = parts.iter().rev().find_map(|part| {
        let (model, layer) = part.split_once("-SAE-l")?;
        let layer = layer.split('.').next()?.parse::<usize>().ok()?;
        Some((model.rsplit("--").next()?.to_owned(), layer))
    });
    match named {
        Some((model, layer)) => {
            config.metadata.model_name =
                Some(if model.starts_with("Llama") { format!("meta-llama/{model}") } else { model });
            config.metadata.dataset_path = Some("lmsys/lmsys-chat-1m".into());
            place::set_hook(&mut config.metadata, format!("blocks.{layer}.hook_resid_post"));
        }
        None => notes.push(
            "its file is not called as Goodfire's are (Llama-3.1-8B-Instruct-SAE-l19.pth), so its model and hook are not \
             known"
                .into(),
        ),
    }
}
