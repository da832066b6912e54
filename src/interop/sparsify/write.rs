//! Writes a sparsify run: a folder with the dictionary's own folder in it, named by the module.

use std::path::Path;

use serde_json::{Map, json};

use super::super::tensors::transposed;
use super::super::{Format, cannot, forms, place};
use super::{CONFIG, FILE};
use crate::base::artifact::write_json;
use crate::base::{Error, Result};
use crate::dictionary::io::{Values, write_tensors};
use crate::dictionary::scale::gather_competing_norms;
use crate::dictionary::{Architecture, Dictionary, NormalizeActivations};
use crate::model::{HookPoint, Site};

const FORMAT: Format = Format::Sparsify;

/// Writes `dictionary` into the existing directory `dir`.
///
/// # Errors
/// `Unsupported` with the reason, when the format cannot say what it computes; `Io` when a file cannot be written.
pub(crate) fn write(dir: &Path, mut dictionary: Dictionary) -> Result<()> {
    let (activation, k) = match dictionary.config.architecture {
        Architecture::TopK { k, .. } => ("topk", k),
        Architecture::GroupMax { k } => ("groupmax", k),
        other => return Err(cannot(FORMAT, &format!("it knows topk and groupmax, and this is '{}'", other.name()))),
    };
    let module = module(&dictionary)?;
    gather_competing_norms(&mut dictionary);
    let transcode = dictionary.config.transcoder;
    if !transcode {
        forms::set_subtracts(&mut dictionary, true);
    }
    let (d, f) = (dictionary.d_in(), dictionary.d_sae());
    let cfg = json!({
        "activation": activation,
        "expansion_factor": f.div_ceil(d),
        "normalize_decoder": false,
        "num_latents": f,
        "k": k,
        "multi_topk": false,
        "skip_connection": dictionary.w_skip.is_some(),
        "transcode": transcode,
        "d_in": d,
    });
    let own = dir.join(&module);
    std::fs::create_dir_all(&own).map_err(Error::io("make the dictionary's folder", &own))?;
    let encoder = transposed(&dictionary.w_enc, f);
    let mut tensors = vec![
        ("encoder.weight", vec![f, d], Values::F32(&encoder)),
        ("encoder.bias", vec![f], Values::F32(&dictionary.b_enc)),
        ("W_dec", vec![f, d], Values::F32(&dictionary.w_dec)),
        ("b_dec", vec![d], Values::F32(&dictionary.b_dec)),
    ];
    if let Some(skip) = &dictionary.w_skip {
        tensors.push(("W_skip", vec![d, d], Values::F32(skip)));
    }
    write_tensors(&own.join(FILE), &tensors)?;
    write_json(&own.join(CONFIG), &cfg)?;
    let metadata = &dictionary.config.metadata;
    let mut run = Map::new();
    let entries = [
        ("model", json!(metadata.model_name)),
        ("ctx_len", json!(metadata.context_size)),
        ("dataset", json!(metadata.dataset_path)),
    ];
    run.extend(entries.into_iter().filter(|(_, value)| !value.is_null()).map(|(key, value)| (key.to_owned(), value)));
    write_json(&dir.join("config.json"), &run)
}

/// The module whose output the dictionary reconstructs, without the base model's prefix.
fn module(dictionary: &Dictionary) -> Result<String> {
    let config = &dictionary.config;
    if config.d_in != config.d_out {
        return Err(cannot(
            FORMAT,
            &format!("its widths are equal, and this goes from {} to {}", config.d_in, config.d_out),
        ));
    }
    if config.normalize_activations != NormalizeActivations::None || config.center_input {
        return Err(cannot(FORMAT, "it cannot say that rows are normalised or centred"));
    }
    let metadata = &config.metadata;
    if metadata.hook_head_index.is_some() {
        return Err(cannot(FORMAT, "it cannot say which head the dictionary is of"));
    }
    let output = metadata.extra.get("hook_name_out").and_then(serde_json::Value::as_str);
    let Some(hook) = output.filter(|_| config.transcoder).or(metadata.hook_name.as_deref()) else {
        let why = "it names a dictionary's folder by its module, and this says no hook: name one (--hook)";
        return Err(cannot(FORMAT, why));
    };
    let model = metadata.model_name.as_deref().unwrap_or_default().to_lowercase();
    let Some(module) = module_of(hook, &model) else {
        let why = format!("{hook} is no module's output: name the module (--hook layers.10.mlp)");
        return Err(cannot(FORMAT, &why));
    };
    let input = metadata.hook_name.as_deref().unwrap_or_default();
    let reads_module = input.strip_suffix(".input").and_then(|input| module_of(input, &model)).as_ref()
        == Some(&module)
        || (module.strip_suffix(".mlp").is_some() && input.ends_with(".mlp.hook_in"));
    if config.transcoder && !reads_module {
        let why = format!("its transcoders go from a module's input to its output, and this from {input} to {hook}");
        return Err(cannot(FORMAT, &why));
    }
    Ok(module)
}

/// The module whose output has this hook in a model of this name.
fn module_of(hook: &str, model: &str) -> Option<String> {
    // GPT-2 and GPT-Neo call their blocks h; all other families that are read say layers.
    let h = model.contains("gpt2") || (model.contains("gpt-neo") && !model.contains("neox"));
    // Gemma normalises what a block writes, and the hooks are behind that.
    let normed = model.contains("gemma-2") || model.contains("gemma-3");
    let Ok(HookPoint { layer: Some(layer), site }) = hook.parse() else {
        let containers = ["model.", "transformer.", "gpt_neox.", "decoder.", "language_model."];
        let mut module = hook;
        while let Some(rest) = containers.iter().find_map(|container| module.strip_prefix(container)) {
            module = rest;
        }
        let module = module.strip_suffix(".output").unwrap_or(module);
        return place::is_module(module).then(|| module.to_owned());
    };
    let module = match site {
        Site::ResidPost => "",
        Site::MlpOut if normed => ".post_feedforward_layernorm",
        Site::MlpOut | Site::MlpHookOut => ".mlp",
        Site::AttnOut if normed => ".post_attention_layernorm",
        Site::AttnOut if h => ".attn",
        Site::AttnOut => ".self_attn",
        _ => return None,
    };
    Some(format!("{}.{layer}{module}", if h { "h" } else { "layers" }))
}
