//! circuit-tracer's transcoders of one layer, `layer_{i}.safetensors`: `W_enc` `[f, d]` and `W_dec` `[f, d]` (a row a
//! feature), `b_enc`, `b_dec`, optionally `W_skip` `[d, d]` and `activation_function.threshold` `[f]`. ReLU, or with
//! thresholds a jump without ReLU. The transcoders of mwhanna are the same with ReLU.
//!
//! Which hooks they read and write is in the set's `config.yaml`, `feature_input_hook` and `feature_output_hook`.

use std::path::Path;

use super::place;
use super::tensors::Tensors;
use crate::base::{Error, Result};
use crate::dictionary::{Activation, Architecture, Dictionary, DictionaryConfig};

const THRESHOLD: &str = "activation_function.threshold";

pub(super) fn read(mut file: Tensors, notes: &mut Vec<String>) -> Result<Dictionary> {
    let [d_sae, d_in] = file.matrix("W_enc")?;
    let [_, d_out] = file.matrix("W_dec")?;
    let w_enc = file.take_transposed("W_enc", [d_sae, d_in])?;
    let b_enc = file.take("b_enc", &[d_sae])?;
    let w_dec = file.take("W_dec", &[d_sae, d_out])?;
    let b_dec = file.take("b_dec", &[d_out])?;
    let skip = if file.contains("W_skip") { Some(file.take("W_skip", &[d_out, d_in])?) } else { None };
    let threshold = if file.contains(THRESHOLD) { Some(file.take(THRESHOLD, &[d_sae])?) } else { None };
    let path = file.path().to_owned();
    file.finish()?;
    let (architecture, activation) = match threshold {
        None => (Architecture::Relu, Activation::relu()),
        // Where no threshold is negative the ReLU changes nothing, and more programs know this one.
        Some(threshold) if threshold.iter().all(|t| *t >= 0.0) => {
            (Architecture::JumpRelu, Activation::jump_relu(threshold))
        }
        Some(threshold) => (Architecture::JumpIdentity, Activation::jump_identity(threshold)),
    };
    let mut config = DictionaryConfig::transcoder(architecture, d_in, d_sae, d_out);
    describe(&mut config, &path, notes)?;
    let dictionary = Dictionary::new(config, w_enc, b_enc, w_dec, b_dec, activation)?;
    match skip {
        Some(skip) => dictionary.with_skip(skip),
        None => Ok(dictionary),
    }
}

fn describe(config: &mut DictionaryConfig, path: &Path, notes: &mut Vec<String>) -> Result<()> {
    let parts = place::parts(path);
    let layer = parts.last().and_then(|name| name.strip_prefix("layer_")?.split('.').next()?.parse::<usize>().ok());
    let set = path.with_file_name("config.yaml");
    let text = match std::fs::metadata(&set) {
        Ok(found) if found.len() < 1 << 20 => {
            std::fs::read_to_string(&set).map_err(Error::io("read the set's configuration", &set))?
        }
        _ => String::new(),
    };
    config.metadata.model_name = value(&text, "model_name");
    let hooks = (value(&text, "feature_input_hook"), value(&text, "feature_output_hook"));
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

/// The value of a top-level `key: value` line.
fn value(yaml: &str, key: &str) -> Option<String> {
    let line = yaml.lines().find_map(|line| line.strip_prefix(key)?.trim_start().strip_prefix(':'))?;
    let value = line.split(" #").next()?.trim().trim_matches(['"', '\'']);
    (!value.is_empty()).then(|| value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_set_are_found() {
        let yaml = "model_name: \"google/gemma-2-2b\"  # the model\nfeature_input_hook: ln2.hook_normalized\nscan:\n";
        assert_eq!(value(yaml, "model_name").as_deref(), Some("google/gemma-2-2b"));
        assert_eq!(value(yaml, "feature_input_hook").as_deref(), Some("ln2.hook_normalized"));
        assert!(value(yaml, "scan").is_none() && value(yaml, "model").is_none());
    }
}
