//! A transcoder for every layer of a model: what attribution graphs are made of.
//!
//! ```text
//! a_i = σ(x_i W_enc,iᵀ + b_enc,i)                       x_i: rows at the input hook of layer i     encode
//! ŷ_l = Σ_{i ≤ l} a_i W_dec,i→l + b_dec,l + x_l W_skip,lᵀ   at the output hook of layer l          reconstruct
//! ```
//!
//! In a per-layer set (Dunefsky et al. 2024, "Transcoders Find Interpretable LLM Feature Circuits") only `i = l`
//! contributes; in a cross-layer transcoder (Ameisen et al. 2025, "Circuit Tracing") a feature writes to its own layer
//! and all later ones. `W_skip` is Paulo et al. 2025, "Transcoders Beat Sparse Autoencoders".
//!
//! Weights may stay in mapped files: an encoder is read when its layer encodes, of a decoder only the rows that are
//! asked for, and nothing of either is kept in this process' memory. Biases and thresholds are in memory.

use std::ops::Range;
use std::path::PathBuf;

mod build;
mod floats;
mod layer;
mod parts;
mod reconstruct;

pub use build::CrossLayer;
pub(crate) use floats::{Floats, Rows, WeightFile};
pub(crate) use layer::{EncoderWeights, Layer, Skip};
pub(crate) use parts::Parts;

use super::{Activation, SparseCodes};
use crate::base::{Error, Result};
use crate::model::{HookPoint, ModelConfig, Site};
use crate::ops::{Matrix, gemm};

/// Where the features of a layer write to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SetKind {
    /// To their own layer.
    PerLayer,
    /// To their own layer and all later ones.
    CrossLayer,
}

impl SetKind {
    /// In words.
    pub const fn title(self) -> &'static str {
        match self {
            Self::PerLayer => "per-layer transcoders",
            Self::CrossLayer => "cross-layer transcoder",
        }
    }
}

/// What a set is, apart from its numbers.
#[derive(Debug, Clone, PartialEq)]
pub struct SetConfig {
    /// Where features write to.
    pub kind: SetKind,
    /// The model, as the set's maker calls it.
    pub model_name: Option<String>,
    /// What each layer reads.
    pub input: Site,
    /// What each layer reconstructs.
    pub output: Site,
    /// The set's own name: where its features are looked up.
    pub scan: String,
    /// Layers of the model, every one with features.
    pub n_layers: usize,
    /// Width of both hooks.
    pub d_model: usize,
    /// Features of a layer, `f`.
    pub d_transcoder: usize,
}

/// A transcoder for every layer, in memory or in mapped files.
#[derive(Debug)]
pub struct TranscoderSet {
    config: SetConfig,
    layers: Vec<Layer>,
}

impl TranscoderSet {
    /// What it is.
    pub fn config(&self) -> &SetConfig {
        &self.config
    }

    /// The same set, said to be for another model.
    #[must_use]
    pub fn with_model_name(mut self, name: &str) -> Self {
        self.config.model_name = Some(name.into());
        self
    }

    /// What it is and where it belongs, in one line.
    pub fn summary(&self) -> String {
        let SetConfig { kind, ref model_name, input, output, n_layers, d_model, d_transcoder, .. } = self.config;
        let activation = self.layers.first().map_or("", |layer| layer.encoder.activation.name());
        let skip = if self.has_skip() { " with a linear connection" } else { "" };
        let model = model_name.as_ref().map(|name| format!(" of {name}")).unwrap_or_default();
        format!(
            "{} ({activation}{skip}), {n_layers} layers of {d_transcoder} features, from {} to {} of width {d_model}\
             {model}",
            kind.title(),
            input.name(),
            output.name()
        )
    }

    /// How pre-activations of `layer` become activations.
    ///
    /// # Errors
    /// `Flag` when there is no such layer.
    pub fn activation(&self, layer: usize) -> Result<&Activation> {
        Ok(&self.layer(layer)?.encoder.activation)
    }

    /// Active features of each row of `x`, `[n, d]`, at the input hook of `layer`.
    ///
    /// # Errors
    /// `Mismatch` when `x` is not made of whole rows; `NonFinite` when a weight of the file is no number; `Flag` when
    /// there is no such layer.
    pub fn encode(&self, layer: usize, x: &[f32]) -> Result<SparseCodes> {
        self.check_rows(x)?;
        let layer = self.layer(layer)?;
        let codes = layer.encoder.encode(x);
        layer.release();
        codes
    }

    /// What goes into the activation function for some features, `[n, k]`: `x · W_enc[f] + b_enc[f]`.
    ///
    /// # Errors
    /// As [`TranscoderSet::encode`]; `Flag` when a feature is out of range.
    pub fn pre_activations(&self, layer: usize, x: &[f32], features: &[u32]) -> Result<Vec<f32>> {
        self.check_rows(x)?;
        let (d, k) = (self.config.d_model, features.len());
        let rows = self.encoder_rows(layer, features)?;
        let biases = self.encoder_biases(layer, features)?;
        let mut out = gemm::multiply(Matrix::new(x, x.len() / d, d), Matrix::new(&rows, k, d).t());
        for row in out.chunks_exact_mut(k.max(1)) {
            row.iter_mut().zip(&biases).for_each(|(pre, bias)| *pre += bias);
        }
        Ok(out)
    }

    /// Encoder directions of some features, `[k, d]`. Where the file stores the encoder feature by feature, only these
    /// rows are read.
    ///
    /// # Errors
    /// `Flag` when the layer or a feature is out of range; `NonFinite`.
    pub fn encoder_rows(&self, layer: usize, features: &[u32]) -> Result<Vec<f32>> {
        self.check_features(features)?;
        let layer = self.layer(layer)?;
        let rows = layer.encoder.rows(features);
        layer.release();
        rows
    }

    /// Encoder biases of some features, `[k]`.
    ///
    /// # Errors
    /// `Flag` when the layer or a feature is out of range.
    pub fn encoder_biases(&self, layer: usize, features: &[u32]) -> Result<Vec<f32>> {
        self.check_features(features)?;
        Ok(self.layer(layer)?.encoder.biases(features))
    }

    /// The layers whose reconstruction the features of `layer` are part of.
    pub fn writes_to(&self, layer: usize) -> Range<usize> {
        match self.config.kind {
            SetKind::PerLayer => layer..layer + 1,
            SetKind::CrossLayer => layer..self.config.n_layers,
        }
    }

    /// What one unit of some features of `layer` adds to the reconstruction of layer `to`, `[k, d]`. Only these rows
    /// are read.
    ///
    /// # Errors
    /// `Flag` when a layer or feature is out of range, or `layer` does not write to `to`; `NonFinite`.
    pub fn decoder_rows(&self, layer: usize, to: usize, features: &[u32]) -> Result<Vec<f32>> {
        self.check_features(features)?;
        let rows = self.decoder(layer, to)?;
        let gathered = rows.gather(features);
        rows.floats.release();
        gathered
    }

    /// The bias of the reconstruction of `layer`, `[d]`.
    ///
    /// # Errors
    /// `Flag` when there is no such layer.
    pub fn b_dec(&self, layer: usize) -> Result<Vec<f32>> {
        Ok(self.layer(layer)?.b_dec.clone())
    }

    /// The linear connection of `layer`, `[d_out, d_in]`: the reconstruction gains `x W_skipᵀ` of the raw row.
    ///
    /// # Errors
    /// `Flag` when there is no such layer; `NonFinite`.
    pub fn skip(&self, layer: usize) -> Result<Option<Vec<f32>>> {
        self.layer(layer)?.skip()
    }

    /// Whether any layer has a linear connection.
    pub fn has_skip(&self) -> bool {
        self.layers.iter().any(|layer| layer.skip.is_some())
    }

    /// The same set with all weights in memory.
    #[must_use]
    pub fn loaded(&self) -> Self {
        Self { config: self.config.clone(), layers: self.layers.iter().map(Layer::loaded).collect() }
    }

    /// Bytes of weights that were read from files so far; what was read twice counts twice.
    pub fn bytes_read(&self) -> u64 {
        self.weight_files().iter().map(|file| file.bytes_read()).sum()
    }

    /// Bytes of all weights where they are stored, biases and thresholds left out.
    pub fn weight_bytes(&self) -> u64 {
        let number = |floats: &Floats| floats.bytes() / floats.len().max(1) as u64;
        let decoder = |rows: &Rows| (rows.count * rows.width) as u64 * number(&rows.floats);
        let of_layer = |layer: &Layer| {
            let skip = layer.skip.as_ref().map_or(0, |skip| skip.weight.bytes());
            layer.encoder.weight.bytes() + skip + layer.decoders.iter().map(decoder).sum::<u64>()
        };
        self.layers.iter().map(of_layer).sum()
    }

    /// Checks that the set can belong to a model: as many layers, the width, and the hooks.
    ///
    /// # Errors
    /// `Mismatch` naming both; `Unknown` when the model lacks a hook of the set.
    pub fn check_model(&self, model: &ModelConfig) -> Result<()> {
        let SetConfig { n_layers, d_model, input, output, .. } = self.config;
        if (n_layers, d_model) != (model.n_layers, model.d_model) {
            let missing = (n_layers < model.n_layers && d_model == model.d_model).then(|| match model.n_layers - 1 {
                last if last == n_layers => format!("layer {last} is missing: complete the set, or "),
                last => format!("layers {n_layers} to {last} are missing: complete the set, or "),
            });
            return Err(Error::Mismatch {
                what: "transcoder set and model",
                left: format!("{self}, of {n_layers} layers of width {d_model}"),
                right: format!("a {} model of {} layers of width {}", model.family, model.n_layers, model.d_model),
                remedy: format!("{}use the set that was trained on this model", missing.unwrap_or_default()),
            });
        }
        for site in [input, output] {
            HookPoint::block(0, site).check(model)?;
        }
        Ok(())
    }

    pub(crate) fn layer(&self, layer: usize) -> Result<&Layer> {
        self.layers.get(layer).ok_or_else(|| {
            Error::flag(
                "--layer",
                format!("a layer of {self}: 0 to {}", self.layers.len().saturating_sub(1)),
                layer,
                "`info` lists the layers of a set",
            )
        })
    }

    fn decoder(&self, layer: usize, to: usize) -> Result<&Rows> {
        let decoders = &self.layer(layer)?.decoders;
        to.checked_sub(layer).and_then(|target| decoders.get(target)).ok_or_else(|| {
            let targets = self.writes_to(layer);
            Error::flag(
                "--layer",
                format!("a layer that layer {layer} of {self} writes to: {} to {}", layer, targets.end.max(1) - 1),
                to,
                "features write to their own layer, those of a cross-layer transcoder to later ones too",
            )
        })
    }

    /// The files that weights are in.
    pub fn files(&self) -> Vec<PathBuf> {
        self.weight_files().into_iter().map(|file| file.path().into()).collect()
    }

    /// Every file once.
    fn weight_files(&self) -> Vec<&WeightFile> {
        let mut files: Vec<&WeightFile> = Vec::new();
        for file in self.layers.iter().flat_map(Layer::tensors).filter_map(Floats::source) {
            if !files.iter().any(|known| std::ptr::eq(*known, file.as_ref())) {
                files.push(file);
            }
        }
        files
    }

    fn check_rows(&self, x: &[f32]) -> Result<()> {
        let d = self.config.d_model;
        if d > 0 && x.len().is_multiple_of(d) {
            return Ok(());
        }
        Err(Error::Mismatch {
            what: "activations and the set's width",
            left: format!("{} values, no multiple of the width", x.len()),
            right: format!("{self}, of width {d}"),
            remedy: "use the set that was trained on this model".into(),
        })
    }

    fn check_features(&self, features: &[u32]) -> Result<()> {
        let f = self.config.d_transcoder;
        match features.iter().find(|&&feature| feature as usize >= f) {
            None => Ok(()),
            Some(feature) => Err(Error::flag(
                "--feature",
                format!("a feature of {self}: 0 to {}", f.saturating_sub(1)),
                feature,
                "`info` says how many features each layer of a set has",
            )),
        }
    }
}

impl std::fmt::Display for TranscoderSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the {} {}", self.config.kind.title(), self.config.scan)?;
        match &self.config.model_name {
            Some(model) => write!(f, " for {model}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
