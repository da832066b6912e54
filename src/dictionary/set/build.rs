//! Sets from their parts.

use super::{EncoderWeights, Floats, Layer, Parts, Rows, SetConfig, SetKind, Skip, TranscoderSet};
use crate::base::{Error, Result};
use crate::dictionary::{Activation, Architecture, Dictionary, DictionaryConfig, NormalizeActivations};
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
            Parts::of(layer).layer(i)
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
        // Rows are asked for one by one, and what lies between them is not.
        set.layers.iter().flat_map(|layer| &layer.decoders).for_each(|rows| rows.floats.expect(false));
        Ok(set)
    }

    /// The transcoder of one layer of a per-layer set, in memory, with its hooks and model.
    ///
    /// # Errors
    /// `Unsupported` in a cross-layer transcoder; `Flag` when there is no such layer; `NonFinite`.
    pub fn dictionary(&self, layer: usize) -> Result<Dictionary> {
        let Layer { encoder, decoders, b_dec, skip } = self.layer(layer)?;
        let [decoder] = decoders.as_slice() else { return Err(self.no_dictionary()) };
        if self.config.kind == SetKind::CrossLayer {
            return Err(self.no_dictionary());
        }
        let SetConfig { d_model: d, d_transcoder: f, input, output, .. } = self.config;
        let rescale_acts_by_decoder_norm = false;
        let architecture = match &encoder.activation {
            Activation::Relu => Architecture::Relu,
            Activation::TopK(top_k) => Architecture::TopK { k: top_k.k(), rescale_acts_by_decoder_norm },
            Activation::AbsTopK(top_k) => Architecture::AbsTopK { k: top_k.k(), rescale_acts_by_decoder_norm },
            Activation::JumpRelu(_) => Architecture::JumpRelu,
            Activation::JumpIdentity(_) => Architecture::JumpIdentity,
            Activation::Gated(_) => Architecture::Gated,
            Activation::GroupMax(group) => Architecture::GroupMax { k: f / (*group).max(1) },
        };
        let mut config = DictionaryConfig::transcoder(architecture, d, f, d);
        let metadata = &mut config.metadata;
        metadata.model_name.clone_from(&self.config.model_name);
        metadata.model_class_name = Some("HookedTransformer".into());
        metadata.hook_name = Some(HookPoint::block(layer, input).to_string());
        metadata.extra.insert("hook_name_out".into(), HookPoint::block(layer, output).to_string().into());
        let parts = Parts {
            config,
            encoder: encoder.weight.clone(),
            by_feature: encoder.by_feature,
            b_enc: encoder.bias.clone(),
            decoder: decoder.floats.clone(),
            b_dec: b_dec.clone(),
            activation: encoder.activation.clone(),
            skip: skip.as_ref().map(|skip| Skip { weight: skip.weight.clone(), input_first: skip.input_first }),
        };
        parts.dictionary()
    }

    fn no_dictionary(&self) -> Error {
        Error::Unsupported {
            what: format!("a dictionary of one layer of {self}"),
            why: "its features write to several layers".into(),
            remedy: "use a set of per-layer transcoders".into(),
        }
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

/// Checks that what a dictionary computes is linear but for its activation function.
///
/// # Errors
/// `Unsupported`, naming the layer.
pub(super) fn check_linear(config: &DictionaryConfig, layer: usize) -> Result<()> {
    let why = match config.normalize_activations {
        _ if config.center_input => "it subtracts the mean of each row before the encoder",
        NormalizeActivations::None if !config.transcoder || config.apply_b_dec_to_input => "it is an autoencoder",
        NormalizeActivations::None => return Ok(()),
        _ => "it normalises each row before the encoder, which graphs cannot follow",
    };
    Err(unsupported(layer, why))
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
