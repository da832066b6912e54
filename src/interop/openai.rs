//! OpenAI's GPT-2 dictionaries (Gao et al. 2024): a dict of torch with `encoder.weight` `[f, d]`, `decoder.weight`
//! `[d, f]`, `pre_bias` `[d]`, `latent_bias` `[f]`, counters, the name of the activation and its settings.
//!
//! `z = act((x − pre_bias) W + latent_bias)`. With TopK, and only then, rows are brought to mean 0 and standard
//! deviation 1 first and reconstructions back, as SAELens' `layer_norm` does.

use std::collections::BTreeMap;

use super::place;
use super::tensors::{Tensors, damaged};
use crate::base::{Error, Result};
use crate::dictionary::{Activation, Architecture, Dictionary, DictionaryConfig, NormalizeActivations};
use crate::model::weights::pytorch::archive::Item;

/// Statistics of training.
const COUNTERS: [&str; 3] = ["stats_last_nonzero", "latents_activation_frequency", "latents_mean_square"];
/// Where the publisher's folder names lie in the model.
const LOCATIONS: [(&str, &str); 5] = [
    ("mlp_post_act", "mlp.hook_post"),
    ("resid_delta_attn", "hook_attn_out"),
    ("resid_delta_mlp", "hook_mlp_out"),
    ("resid_post_attn", "hook_resid_mid"),
    ("resid_post_mlp", "hook_resid_post"),
];

pub(super) fn read(
    mut file: Tensors,
    mut others: BTreeMap<&str, Item<'_>>,
    notes: &mut Vec<String>,
) -> Result<Dictionary> {
    let path = file.path().to_owned();
    // Files without the entry are of the time when ReLU was the only one.
    let name = match others.remove("activation") {
        None => "ReLU",
        Some(item) => item.text().ok_or_else(|| damaged(&path, "'activation' as a text", item.kind().into()))?,
    };
    let settings = others.remove("activation_state_dict");
    if let Some((key, item)) = others.into_iter().next() {
        let expected = "tensors, 'activation' and 'activation_state_dict'";
        return Err(damaged(&path, expected, format!("{} '{key}'", item.kind())));
    }
    let [d_sae, d] = file.matrix("encoder.weight")?;
    let architecture = architecture(name, settings, d_sae, &file)?;
    let w_enc = file.take_transposed("encoder.weight", [d_sae, d])?;
    let b_enc = file.take("latent_bias", &[d_sae])?;
    let w_dec = file.take_transposed("decoder.weight", [d, d_sae])?;
    let b_dec = file.take("pre_bias", &[d])?;
    for counter in COUNTERS {
        file.ignore(counter);
    }
    file.finish()?;
    let mut config = DictionaryConfig::new(architecture, d, d_sae);
    let activation = match architecture {
        Architecture::TopK { k, .. } => {
            config.normalize_activations = NormalizeActivations::LayerNorm;
            Activation::top_k(k, None, d)
        }
        _ => Activation::relu(),
    };
    let parts = place::parts(&path);
    let location = parts.iter().rev().find_map(|part| {
        LOCATIONS
            .iter()
            .find(|(name, _)| part.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('_')))
    });
    let layer = parts.last().and_then(|name| name.split('.').next()?.parse::<usize>().ok());
    match (location, layer) {
        (Some((_, site)), Some(layer)) => {
            config.metadata.model_name = Some("gpt2".into());
            place::set_hook(&mut config.metadata, format!("blocks.{layer}.{site}"));
        }
        _ => notes.push(
            "its folders are not called as OpenAI's are (resid_post_mlp_v5_32k/autoencoders/7.pt), so its hook is not known"
                .into(),
        ),
    }
    Dictionary::new(config, w_enc, b_enc, w_dec, b_dec, activation)
}

fn architecture(name: &str, settings: Option<Item<'_>>, d_sae: usize, file: &Tensors) -> Result<Architecture> {
    let mut entries = BTreeMap::new();
    for (key, value) in settings.into_iter().filter_map(Item::dict).flatten() {
        entries.insert(key.text().unwrap_or_default(), value);
    }
    let unknown = |kind, found: &str, known: &[&str]| Error::Unknown {
        kind,
        found: format!("{found}' in '{}", file.path().display()),
        nearest: known.iter().map(ToString::to_string).collect(),
    };
    let architecture = match name {
        "ReLU" => Architecture::Relu,
        "TopK" => {
            match entries.remove("postact_fn").and_then(Item::text) {
                Some("ReLU") => {}
                found => return Err(unknown("function after TopK", found.unwrap_or("none"), &["ReLU"])),
            }
            let k = entries.remove("k").and_then(Item::int).and_then(|k| usize::try_from(k).ok());
            match k {
                Some(k) if (1..=d_sae).contains(&k) => Architecture::TopK { k, rescale_acts_by_decoder_norm: false },
                _ => return Err(damaged(file.path(), &format!("k from 1 to {d_sae}"), format!("{k:?}"))),
            }
        }
        other => return Err(unknown("activation", other, &["ReLU", "TopK"])),
    };
    match entries.into_iter().next() {
        None => Ok(architecture),
        Some((key, _)) => Err(damaged(file.path(), "settings of the activation", format!("also '{key}'"))),
    }
}
