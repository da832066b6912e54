//! What tells dictionary architectures apart: how pre-activations become activations. One file each; this is the one
//! place that dispatches.
//!
//! An architecture answers four questions: which entries of a tile are active (`Activation::emit`), what happens
//! once a row is complete (`Activation::finish_row`), what the decoder multiplies by
//! (`Activation::decoder_values`), and which tensors it stores ([`Activation::tensors`]).

use std::borrow::Cow;

mod jumprelu;
mod relu;
mod topk;

pub use jumprelu::JumpRelu;
pub use topk::TopK;

use super::config::{Architecture, DictionaryConfig};
use super::encoder::Scratch;
use crate::base::{Error, Result};

/// An architecture with its tensors.
#[derive(Debug, Clone, PartialEq)]
pub enum Activation {
    /// `max(pre, 0)`.
    Relu,
    /// The `k` largest of a row.
    TopK(TopK),
    /// `pre` where it exceeds the feature's threshold.
    JumpRelu(JumpRelu),
}

impl Activation {
    /// ReLU.
    pub fn relu() -> Self {
        Self::Relu
    }

    /// The `k` largest. With `w_dec` `[f, d_out]` pre-activations compete multiplied by their decoder norms
    /// (SAELens' `rescale_acts_by_decoder_norm`).
    pub fn top_k(k: usize, w_dec: Option<&[f32]>, d_out: usize) -> Self {
        Self::TopK(TopK::new(k, w_dec, d_out))
    }

    /// JumpReLU with a threshold a feature.
    pub fn jump_relu(threshold: Vec<f32>) -> Self {
        Self::JumpRelu(JumpRelu { threshold })
    }

    /// The activation of `architecture`, from its stored tensors by name.
    ///
    /// # Errors
    /// Whatever `tensor` returns when asked for a name and length.
    pub(crate) fn from_tensors(
        architecture: Architecture,
        w_dec: &[f32],
        d_out: usize,
        mut tensor: impl FnMut(&str) -> Result<Vec<f32>>,
    ) -> Result<Self> {
        Ok(match architecture {
            Architecture::Relu => Self::Relu,
            Architecture::TopK { k, rescale_acts_by_decoder_norm } => {
                Self::top_k(k, rescale_acts_by_decoder_norm.then_some(w_dec), d_out)
            }
            Architecture::JumpRelu => Self::jump_relu(tensor("threshold")?),
        })
    }

    /// Stored tensors beyond `W_enc`, `b_enc`, `W_dec`, `b_dec`: name and values, one a feature.
    pub fn tensors(&self) -> Vec<(&'static str, &[f32])> {
        match self {
            Self::Relu | Self::TopK(_) => Vec::new(),
            Self::JumpRelu(jump) => vec![("threshold", &jump.threshold)],
        }
    }

    /// Whether each feature's activation depends on its own pre-activation alone.
    pub fn is_per_feature(&self) -> bool {
        !matches!(self, Self::TopK(_))
    }

    /// Activation of one feature with pre-activation `pre`, where [`Activation::is_per_feature`].
    pub(super) fn of_one(&self, feature: u32, pre: f32) -> f32 {
        match self {
            Self::Relu | Self::TopK(_) => pre.max(0.0),
            Self::JumpRelu(jump) => jump.of_one(feature, pre),
        }
    }

    /// Writes the candidates among `product + bias`, features from `first` on, to `scratch`; gives their number.
    pub(super) fn emit(&self, product: &[f32], bias: &[f32], first: u32, scratch: &mut Scratch) -> usize {
        match self {
            Self::Relu => relu::emit(product, bias, first, scratch),
            Self::TopK(top_k) => top_k.emit(product, bias, first, scratch),
            Self::JumpRelu(jump) => jump.emit(product, bias, first, scratch),
        }
    }

    /// Reduces the candidates of a whole row to its active features; both stay in feature order.
    pub(super) fn finish_row(&self, features: &mut Vec<u32>, values: &mut Vec<f32>) {
        match self {
            Self::Relu | Self::JumpRelu(_) => {}
            Self::TopK(top_k) => top_k.finish_row(features, values),
        }
    }

    /// What multiplies the decoder rows of a row's active features.
    pub(super) fn decoder_values<'a>(&self, features: &[u32], values: &'a [f32]) -> Cow<'a, [f32]> {
        match self {
            Self::Relu | Self::JumpRelu(_) => values.into(),
            Self::TopK(top_k) => top_k.decoder_values(features, values),
        }
    }

    /// Follows a change of the decoder `w_dec`, `[f, d_out]`.
    pub(super) fn decoder_changed(&mut self, w_dec: &[f32], d_out: usize) {
        match self {
            Self::Relu | Self::JumpRelu(_) => {}
            Self::TopK(top_k) => top_k.decoder_changed(w_dec, d_out),
        }
    }

    /// Whether this is the activation that `config` names, with one value a feature in each tensor.
    pub(super) fn check(&self, config: &DictionaryConfig) -> Result<()> {
        let same = matches!(
            (self, config.architecture),
            (Self::Relu, Architecture::Relu)
                | (Self::TopK(_), Architecture::TopK { .. })
                | (Self::JumpRelu(_), Architecture::JumpRelu)
        );
        match self.tensors().iter().find(|(_, values)| values.len() != config.d_sae) {
            None if same => Ok(()),
            wrong => Err(Error::Mismatch {
                what: "dictionary configuration and activation",
                left: format!("architecture {} with d_sae {}", config.architecture.name(), config.d_sae),
                right: wrong.map_or_else(
                    || "the tensors of another architecture".into(),
                    |(name, values)| format!("{} values of {name}", values.len()),
                ),
                remedy: "the weights belong to another configuration".into(),
            }),
        }
    }
}
