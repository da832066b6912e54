//! Sets from their parts.

use super::{EncoderWeights, Floats, Layer, Rows, SetConfig, SetKind, Skip, TranscoderSet};
use crate::base::{Error, Result};
use crate::dictionary::{Activation, Architecture, Dictionary, NormalizeActivations};
use crate::model::{HookPoint, Site};

/// One layer of a cross-layer transcoder.
#[derive(Debug, Clone, PartialEq)]
pub struct CrossLayer {
    /// Encoder `[d, f]`, row-major, as in [`Dictionary`].
    pub w_enc: Vec<f32>,
    /// Encoder bias `[f]`.
    pub b_enc: Vec<f32>,
    /// A decoder `[f, d]` for each layer written to, from the layer itself to the last.
    pub w_dec: Vec<Vec<f32>>,
    /// Bias of this layer's reconstruction, `[d]`.
    pub b_dec: Vec<f32>,
    /// What turns pre-activations into activations.
    pub activation: Activation,
    /// Linear connection `[d, d]` from this layer's input to its reconstruction, `x W_skipᵀ`.
    pub w_skip: Option<Vec<f32>>,
}

impl SetConfig {
    /// The configuration of per-layer transcoders, from what each says of its hooks and model.
    ///
    /// # Errors
    /// `Mismatch` when a layer reads or writes another hook than the first, or has other sizes; `Unsupported` when a
    /// dictionary does not say its hooks.
    pub fn of_layers(layers: &[Dictionary], scan: &str) -> Result<Self> {
        let Some(first) = layers.first() else {
            return Err(Error::Unsupported {
                what: "a transcoder set without layers".into(),
                why: "a set has one transcoder for every layer of its model".into(),
                remedy: "give the transcoders of all layers".into(),
            });
        };
        let site = |hook: Option<String>| hook.and_then(|hook| hook.parse::<HookPoint>().ok()).map(|point| point.site);
        let (Some(input), Some(output)) = (site(input_of(first)), site(output_of(first))) else {
            return Err(Error::Unsupported {
                what: format!("{first} as the first layer of a set"),
                why: "it does not say which hook it reads and which it writes".into(),
                remedy: "use transcoders whose files name both (hook_name and hook_name_out)".into(),
            });
        };
        Ok(Self {
            kind: SetKind::PerLayer,
            model_name: first.config.metadata.model_name.clone(),
            input,
            output,
            scan: scan.into(),
            n_layers: layers.len(),
            d_model: first.d_in(),
            d_transcoder: first.d_sae(),
        })
    }
}

impl TranscoderSet {
    /// Per-layer transcoders in memory, the first that of layer 0.
    ///
    /// # Errors
    /// `Mismatch` when a layer has other sizes than `config`, or names another hook or layer; `Unsupported` when it
    /// computes what a set cannot: rows normalised before the encoder, gates.
    pub fn from_layers(config: SetConfig, layers: Vec<Dictionary>) -> Result<Self> {
        let layers = layers.into_iter().enumerate().map(|(i, layer)| {
            check_hooks(&config, i, &layer)?;
            Layer::of_dictionary(i, layer)
        });
        Self::from_parts(SetConfig { kind: SetKind::PerLayer, ..config.clone() }, layers.collect::<Result<_>>()?)
    }

    /// A cross-layer transcoder in memory.
    ///
    /// # Errors
    /// `Mismatch` when a tensor has another size than `config` gives it; `Unsupported` for gated activations.
    pub fn from_cross_layer(config: SetConfig, layers: Vec<CrossLayer>) -> Result<Self> {
        let d = config.d_model;
        let layers = layers.into_iter().enumerate().map(|(i, layer)| {
            let CrossLayer { w_enc, b_enc, w_dec, b_dec, activation, w_skip } = layer;
            let name = |tensor: &str| format!("{tensor} of layer {i}");
            let decoder = |(to, w): (usize, Vec<f32>)| {
                Rows::of_matrix(Floats::memory(&format!("W_dec of layer {i} to layer {}", i + to), w), d)
            };
            Layer {
                encoder: EncoderWeights::new(Floats::memory(&name("W_enc"), w_enc), false, d, b_enc, activation),
                decoders: w_dec.into_iter().enumerate().map(decoder).collect(),
                b_dec,
                skip: w_skip.map(|w| Skip { weight: Floats::memory(&name("W_skip"), w), input_first: false }),
            }
        });
        let layers = layers.collect();
        Self::from_parts(SetConfig { kind: SetKind::CrossLayer, ..config }, layers)
    }

    /// A set of any layers, whose sizes are checked.
    ///
    /// # Errors
    /// `Mismatch`, naming the layer; `Unsupported` for gated activations.
    pub(crate) fn from_parts(config: SetConfig, layers: Vec<Layer>) -> Result<Self> {
        let set = Self { config, layers };
        let SetConfig { n_layers, d_model: d, d_transcoder: f, .. } = set.config;
        if set.layers.len() != n_layers || n_layers == 0 {
            let found = format!("{} layers", set.layers.len());
            return Err(set.wrong("transcoder set and its layers", format!("{n_layers} layers, at least one"), found));
        }
        for (i, layer) in set.layers.iter().enumerate() {
            let Layer { encoder, decoders, b_dec, skip } = layer;
            if let Activation::Gated(_) = encoder.activation {
                return Err(unsupported(i, "a gate decides which features are active, apart from how much"));
            }
            let targets = set.writes_to(i).len();
            let sizes = [
                ("b_enc", encoder.bias.len(), f),
                ("W_enc", encoder.weight.len(), f * d),
                ("b_dec", b_dec.len(), d),
                ("layers of W_dec", decoders.len(), targets),
                ("W_skip", skip.as_ref().map_or(d * d, |skip| skip.weight.len()), d * d),
            ];
            let rows = decoders.iter().map(|rows| ("W_dec", rows.count * rows.width, f * d));
            let tensors = encoder.activation.tensors().into_iter().map(|(name, values)| (name, values.len(), f));
            for (name, found, expected) in sizes.into_iter().chain(rows).chain(tensors) {
                if found != expected {
                    let expected = format!("{expected} values of {name}, from {f} features of width {d}");
                    let found = format!("{found} in layer {i}");
                    return Err(set.wrong("transcoder set and the sizes of its layers", expected, found));
                }
            }
        }
        Ok(set)
    }

    fn wrong(&self, what: &'static str, expected: String, found: String) -> Error {
        Error::Mismatch {
            what,
            left: format!("{self}: {expected}"),
            right: found,
            remedy: "all layers of a set have the same sizes: the files are of different sets, or one is missing"
                .into(),
        }
    }
}

impl Layer {
    /// A transcoder of one layer.
    fn of_dictionary(layer: usize, dictionary: Dictionary) -> Result<Self> {
        let config = &dictionary.config;
        let why = match config.normalize_activations {
            _ if config.center_input => Some("it subtracts the mean of each row before the encoder"),
            NormalizeActivations::None if config.apply_b_dec_to_input => Some("it is an autoencoder"),
            NormalizeActivations::None => None,
            _ => Some("it normalises each row before the encoder, which graphs cannot follow"),
        };
        if let Some(why) = why {
            return Err(unsupported(layer, why));
        }
        let dictionary = without_competing_norms(dictionary);
        let Dictionary { config, w_enc, b_enc, w_dec, b_dec, activation, w_skip } = dictionary;
        let name = |tensor: &str| format!("{tensor} of layer {layer}");
        Ok(Self {
            encoder: EncoderWeights::new(Floats::memory(&name("W_enc"), w_enc), false, config.d_in, b_enc, activation),
            decoders: vec![Rows::of_matrix(Floats::memory(&name("W_dec"), w_dec), config.d_out)],
            b_dec,
            skip: w_skip.map(|w| Skip { weight: Floats::memory(&name("W_skip"), w), input_first: false }),
        })
    }
}

/// The same transcoder with decoder norms in its weights and not in the competition between features, so that an
/// activation times its decoder row is what the feature contributes.
fn without_competing_norms(mut dictionary: Dictionary) -> Dictionary {
    let d_out = dictionary.config.d_out;
    if !dictionary.config.architecture.activations_carry_decoder_norm() {
        return dictionary;
    }
    let norms = crate::dictionary::normalize::row_norms(&dictionary.w_dec, d_out);
    let scale = |values: &mut [f32]| values.iter_mut().zip(&norms).for_each(|(w, norm)| *w *= norm);
    dictionary.w_enc.chunks_exact_mut(norms.len().max(1)).for_each(scale);
    scale(&mut dictionary.b_enc);
    for (row, norm) in dictionary.w_dec.chunks_exact_mut(d_out.max(1)).zip(&norms).filter(|(_, norm)| **norm > 0.0) {
        row.iter_mut().for_each(|w| *w /= norm);
    }
    let rescale_acts_by_decoder_norm = false;
    (dictionary.config.architecture, dictionary.activation) = match dictionary.config.architecture {
        Architecture::AbsTopK { k, .. } => {
            (Architecture::AbsTopK { k, rescale_acts_by_decoder_norm }, Activation::abs_top_k(k, None, d_out))
        }
        Architecture::TopK { k, .. } => {
            (Architecture::TopK { k, rescale_acts_by_decoder_norm }, Activation::top_k(k, None, d_out))
        }
        other => (other, dictionary.activation),
    };
    dictionary
}

/// The hook that a transcoder reads, where it says so.
fn input_of(dictionary: &Dictionary) -> Option<String> {
    dictionary.config.metadata.hook_name.clone()
}

/// The hook that a transcoder writes, where it says so.
fn output_of(dictionary: &Dictionary) -> Option<String> {
    let name = dictionary.config.metadata.extra.get("hook_name_out").and_then(serde_json::Value::as_str);
    name.map(str::to_owned)
}

/// Checks that a transcoder names no other hooks than its place in the set gives it.
fn check_hooks(config: &SetConfig, layer: usize, dictionary: &Dictionary) -> Result<()> {
    let check = |found: Option<String>, site: Site| {
        let expected = HookPoint::block(layer, site);
        match found.and_then(|hook| hook.parse::<HookPoint>().ok()) {
            Some(found) if found != expected => Err(Error::Mismatch {
                what: "transcoder and its place in the set",
                left: format!("the transcoder given as layer {layer}, which names {found}"),
                right: format!("{expected}"),
                remedy: "give one transcoder for every layer, in order, all with the same hooks".into(),
            }),
            _ => Ok(()),
        }
    };
    check(input_of(dictionary), config.input)?;
    check(output_of(dictionary), config.output)
}

fn unsupported(layer: usize, why: &str) -> Error {
    Error::Unsupported {
        what: format!("the dictionary of layer {layer} in a transcoder set"),
        why: why.into(),
        remedy: "use ReLU, JumpReLU or TopK transcoders of raw rows".into(),
    }
}
