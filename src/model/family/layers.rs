//! Settings that differ from layer to layer: `layer_types` and sliding windows.

use crate::base::{Error, Result};

use super::Fields;

/// The entries of `layer_types` that a decoder can have.
pub(super) const LAYER_TYPES: [&str; 2] = ["full_attention", "sliding_attention"];

/// Per layer whether attention slides: `layer_types`, or `default` of the layer's index.
pub(super) fn sliding(fields: &Fields<'_>, n_layers: usize, default: impl Fn(usize) -> bool) -> Result<Vec<bool>> {
    if fields.get("layer_types").is_none() {
        return Ok((0..n_layers).map(default).collect());
    }
    let kinds = fields.string_list("layer_types")?;
    if kinds.len() != n_layers {
        return Err(Error::malformed(
            "model configuration",
            fields.path(),
            format!("{n_layers} entries in 'layer_types'"),
            kinds.len().to_string(),
            "one entry a layer is needed; download config.json again",
        ));
    }
    let one = |kind: &String| match kind.as_str() {
        "full_attention" => Ok(false),
        "sliding_attention" => Ok(true),
        _ => Err(Error::Unknown {
            kind: "entry of layer_types in config.json",
            found: kind.clone(),
            nearest: LAYER_TYPES.map(String::from).to_vec(),
        }),
    };
    kinds.iter().map(one).collect()
}

/// The window of each layer: `window` where it slides.
pub(super) fn windows(fields: &Fields<'_>, sliding: &[bool], window: Option<usize>) -> Result<Vec<Option<usize>>> {
    if window.is_none() && sliding.contains(&true) {
        return Err(Error::malformed(
            "model configuration",
            fields.path(),
            "'sliding_window' as a number, as some layers slide",
            "no window in use",
            "the file does not describe a model of this type; download it again",
        ));
    }
    Ok(sliding.iter().map(|&slides| window.filter(|_| slides)).collect())
}

/// `sliding_window` in every layer, or in none.
pub(super) fn same_window(fields: &Fields<'_>, n_layers: usize, default: Option<usize>) -> Result<Vec<Option<usize>>> {
    let window = if fields.names("sliding_window") { fields.usize_option("sliding_window")? } else { default };
    Ok(vec![window; n_layers])
}
