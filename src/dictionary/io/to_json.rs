//! `cfg.json` of a dictionary, with SAELens' keys and names.

use serde_json::{Value, json};

use crate::base::{Error, Result};
use crate::dictionary::metadata::SAE_LENS_VERSION;
use crate::dictionary::{Activation, Architecture, Dictionary};

/// The contents of `cfg.json` for `dictionary`.
///
/// # Errors
/// `Unsupported` when SAELens has no name for what it computes.
pub(super) fn to_json(dictionary: &Dictionary) -> Result<Value> {
    let config = &dictionary.config;
    let mut cfg = json!({
        "d_in": config.d_in,
        "d_sae": config.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": config.apply_b_dec_to_input,
        "normalize_activations": config.normalize_activations,
        "reshape_activations": config.reshape_activations,
        "architecture": saelens_name(dictionary)?,
    });
    if let Architecture::TopK { k, rescale_acts_by_decoder_norm }
    | Architecture::AbsTopK { k, rescale_acts_by_decoder_norm } = config.architecture
    {
        cfg["k"] = json!(k);
        cfg["rescale_acts_by_decoder_norm"] = json!(rescale_acts_by_decoder_norm);
    }
    if config.transcoder {
        cfg["d_out"] = json!(config.d_out);
    }
    cfg["metadata"] = json!(config.metadata);
    // What came from the flat format is written in this one, and without the version SAELens would not see that.
    if !config.metadata.is_version_6() {
        cfg["metadata"]["sae_lens_version"] = json!(SAE_LENS_VERSION);
    }
    // A reader that finds no key does not centre, and one that finds it true must.
    if config.center_input != config.metadata.centers_rows() {
        let kwargs = &mut cfg["metadata"]["model_from_pretrained_kwargs"];
        if !kwargs.is_object() {
            *kwargs = json!({});
        }
        kwargs["center_writing_weights"] = json!(config.center_input);
    }
    Ok(cfg)
}

/// SAELens' name for what `dictionary` computes.
fn saelens_name(dictionary: &Dictionary) -> Result<&'static str> {
    let architecture = match (&dictionary.activation, dictionary.config.architecture) {
        // Without negative thresholds the two mean the same.
        (Activation::JumpIdentity(jump), _) if jump.threshold.iter().all(|t| *t >= 0.0) => Architecture::JumpRelu,
        (_, architecture) => architecture,
    };
    let name = match (architecture, dictionary.config.transcoder, dictionary.w_skip.is_some()) {
        (Architecture::Relu, false, false) => Some("standard"),
        (Architecture::Relu, true, false) => Some("transcoder"),
        (Architecture::Relu, true, true) => Some("skip_transcoder"),
        (Architecture::JumpRelu, false, false) => Some("jumprelu"),
        (Architecture::JumpRelu, true, false) => Some("jumprelu_transcoder"),
        (Architecture::JumpRelu, true, true) => Some("jumprelu_skip_transcoder"),
        (Architecture::TopK { .. }, false, false) => Some("topk"),
        // SAELens trains no such transcoders; the names follow its others'.
        (Architecture::TopK { .. }, true, false) => Some("topk_transcoder"),
        (Architecture::TopK { .. }, true, true) => Some("topk_skip_transcoder"),
        (Architecture::AbsTopK { .. }, false, false) => Some("abstopk"),
        (Architecture::Gated, false, false) => Some("gated"),
        _ => None,
    };
    name.ok_or_else(|| Error::Unsupported {
        what: format!("writing {dictionary} in SAELens' format"),
        why: format!(
            "SAELens has no architecture '{}'{}{}",
            architecture.name(),
            if dictionary.config.transcoder { " for transcoders" } else { "" },
            if dictionary.w_skip.is_some() { " with a skip connection" } else { "" },
        ),
        remedy: "keep it in the format that it came in".into(),
    })
}
