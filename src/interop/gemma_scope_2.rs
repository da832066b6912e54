//! Gemma Scope 2: `params.safetensors` with `w_enc` `[d_in, f]`, `w_dec` `[f, d_out]`, `b_enc`, `b_dec`, `threshold`
//! and, with an affine connection, `affine_skip_connection` `[d_in, d_out]`; `config.json` beside it names model and
//! modules, and where it is missing the folders do. JumpReLU without `b_dec` at the input.

use std::path::Path;

use super::object::Object;
use super::place;
use super::tensors::Tensors;
use crate::base::{Error, Result};
use crate::dictionary::set::{Parts, Skip};
use crate::dictionary::{Activation, Architecture, DictionaryConfig, ReshapeActivations};

/// What the file is called.
pub(super) const FILE: &str = "params.safetensors";
const CONFIG: &str = "config.json";
const SKIP: &str = "affine_skip_connection";

/// What `config.json` or the folders say.
#[derive(Debug, Default)]
struct Place {
    model: Option<String>,
    input: Option<String>,
    output: Option<String>,
    l0: Option<f64>,
    affine: Option<bool>,
}

pub(super) fn read(path: &Path, notes: &mut Vec<String>) -> Result<Parts> {
    let place = place_of(path)?;
    let file = Tensors::safetensors(path)?;
    if file.shape("w_dec")?.len() == 3 {
        return Err(Error::Unsupported {
            what: format!("the cross-layer transcoder {}", path.display()),
            why: "each of its features writes to several layers".into(),
            remedy:
                "give its whole directory to a command that takes a transcoder set, or use a transcoder of one layer \
                     (transcoder_all/layer_N…)"
                    .into(),
        });
    }
    let mut parts = weights(file)?;
    if place.affine.is_some_and(|affine| affine != parts.skip.is_some()) {
        let with = if parts.skip.is_some() { "with" } else { "without" };
        return Err(Error::Mismatch {
            what: "dictionary configuration and weights",
            left: format!(
                "affine_connection {} of {}",
                place.affine == Some(true),
                path.with_file_name(CONFIG).display()
            ),
            right: format!("{} {with} '{SKIP}'", path.display()),
            remedy: "the two files belong to different dictionaries: download both again".into(),
        });
    }
    describe(&mut parts.config, place, notes);
    Ok(parts)
}

/// What the file itself says.
pub(super) fn weights(mut file: Tensors) -> Result<Parts> {
    let [d_in, d_sae] = file.matrix("w_enc")?;
    let [_, d_out] = file.matrix("w_dec")?;
    let encoder = file.floats("w_enc", &[d_in, d_sae])?;
    let b_enc = file.take("b_enc", &[d_sae])?;
    let decoder = file.floats("w_dec", &[d_sae, d_out])?;
    let b_dec = file.take("b_dec", &[d_out])?;
    let activation = Activation::jump_relu(file.take("threshold", &[d_sae])?);
    let skip = file.contains(SKIP).then(|| file.floats(SKIP, &[d_in, d_out])).transpose()?;
    file.finish()?;
    let mut config = DictionaryConfig::new(Architecture::JumpRelu, d_in, d_sae);
    config.d_out = d_out;
    config.apply_b_dec_to_input = false;
    let skip = skip.map(|weight| Skip { weight, input_first: true });
    Ok(Parts { config, encoder, by_feature: false, b_enc, decoder, b_dec, activation, skip })
}

/// What `config.json` beside the weights says, or the folders.
fn place_of(path: &Path) -> Result<Place> {
    let config = path.with_file_name(CONFIG);
    if config.is_file() { configured(&config) } else { Ok(inferred(path)) }
}

fn configured(path: &Path) -> Result<Place> {
    let mut json = Object::read(path)?;
    let architecture: String = json.require("architecture")?;
    if architecture != "jump_relu" {
        return Err(json.refuse("architecture", architecture, "Gemma Scope 2 has 'jump_relu' only"));
    }
    let place = Place {
        model: json.take("model_name")?,
        input: json.take("hf_hook_point_in")?,
        output: json.take("hf_hook_point_out")?,
        l0: json.take("l0")?,
        affine: json.take("affine_connection")?,
    };
    json.ignore(&["width", "type"]);
    json.finish()?;
    Ok(place)
}

/// What the folders say where there is no `config.json`, as SAELens infers it.
fn inferred(path: &Path) -> Place {
    let parts = place::parts(path);
    let Some(layer) = place::number_after(&parts, "layer_") else { return Place::default() };
    let has = |word: &str| parts.iter().any(|part| part.starts_with(word));
    let (input, output) = if has("transcoder") {
        ("pre_feedforward_layernorm.output", Some("post_feedforward_layernorm.output"))
    } else if has("resid_post") {
        ("output", None)
    } else if has("attn_out") {
        ("self_attn.o_proj.input", None)
    } else if has("mlp_out") {
        ("post_feedforward_layernorm.output", None)
    } else {
        return Place::default();
    };
    let module = |module| format!("model.layers.{layer}.{module}");
    let release = parts.iter().rev().find_map(|part| Some(part.split_once("gemma-scope-2-")?.1.to_owned()));
    Place {
        model: release.map(|name| format!("google/gemma-3-{name}")),
        input: Some(module(input)),
        output: output.map(module),
        ..Place::default()
    }
}

fn describe(config: &mut DictionaryConfig, place: Place, notes: &mut Vec<String>) {
    let Place { model, input, output, l0, affine: _ } = place;
    let metadata = &mut config.metadata;
    metadata.context_size = Some(1024);
    metadata.prepend_bos = Some(true);
    metadata.dataset_path = Some("monology/pile-uncopyrighted".into());
    metadata.l0 = l0;
    metadata.model_name = model.map(|name| {
        let name = name.replace("-v3", "-3");
        let name = if name.contains('/') { name } else { format!("google/{name}") };
        // The smallest model is the only one whose base version has no suffix on the hub.
        if name.contains("270m") { name.replace("-pt", "") } else { name }
    });
    let Some(input) = input else {
        notes.push("neither config.json nor the folders name its hook, so it is not known".into());
        return;
    };
    let output = output.filter(|output| *output != input);
    let (hook, reshape) = hook(&input);
    match hook {
        Some(hook) => place::set_hook(metadata, hook),
        None => place::set_module(metadata, &input),
    }
    metadata.extra.insert("hf_hook_name".into(), input.into());
    if reshape {
        config.reshape_activations = ReshapeActivations::HookZ;
    }
    if let Some(output) = output {
        let name = self::hook(&output).0.unwrap_or_else(|| output.clone());
        place::set_output(config, &name);
        config.metadata.extra.insert("hf_hook_name_out".into(), output.into());
    }
}

/// The hook of a module of Gemma 3, and whether its rows are heads side by side.
fn hook(module: &str) -> (Option<String>, bool) {
    let Some((layer, rest)) = module.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.')) else {
        return (None, false);
    };
    let site = match rest {
        "output" => "hook_resid_post",
        "self_attn.o_proj.input" => "attn.hook_z",
        "pre_feedforward_layernorm.output" => "mlp.hook_in",
        "post_feedforward_layernorm.output" => "hook_mlp_out",
        _ => return (None, false),
    };
    (Some(format!("blocks.{layer}.{site}")), site == "attn.hook_z")
}
