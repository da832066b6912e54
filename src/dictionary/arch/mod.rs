//! What tells dictionary architectures apart: how pre-activations become activations. One file each; this is the one
//! place that dispatches.
//!
//! An architecture answers four questions: which entries of a tile are active (`Activation::emit`), what happens
//! once a row is complete (`Activation::finish_row`), what the decoder multiplies by
//! (`Activation::decoder_values`), and which tensors it stores ([`Activation::tensors`]).

use std::borrow::Cow;

mod gated;
mod groupmax;
mod jumprelu;
mod topk;

pub use gated::Gated;
pub use jumprelu::JumpRelu;
pub use topk::TopK;

use super::config::{Architecture, DictionaryConfig};
use crate::base::{Error, Result};
use crate::ops::compact::{Limit, Picked};

/// An architecture with its tensors.
#[derive(Debug, Clone, PartialEq)]
pub enum Activation {
    /// `max(pre, 0)`.
    Relu,
    /// The `k` largest of a row.
    TopK(TopK),
    /// The `k` of largest absolute value in a row.
    AbsTopK(TopK),
    /// `pre` where it exceeds the feature's threshold and zero.
    JumpRelu(JumpRelu),
    /// `pre` where it exceeds the feature's threshold.
    JumpIdentity(JumpRelu),
    /// A magnitude where a gate is open.
    Gated(Gated),
    /// The largest of each group of this many neighbouring features.
    GroupMax(usize),
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

    /// The `k` of largest absolute value; `w_dec` as in [`Activation::top_k`].
    pub fn abs_top_k(k: usize, w_dec: Option<&[f32]>, d_out: usize) -> Self {
        Self::AbsTopK(TopK::new(k, w_dec, d_out))
    }

    /// JumpReLU with a threshold a feature, ReLU first: SAELens', `dictionary_learning`'s and Gemma Scope's.
    pub fn jump_relu(threshold: Vec<f32>) -> Self {
        Self::JumpRelu(JumpRelu { threshold })
    }

    /// A threshold a feature without the ReLU: circuit-tracer's JumpReLU.
    pub fn jump_identity(threshold: Vec<f32>) -> Self {
        Self::JumpIdentity(JumpRelu { threshold })
    }

    /// Gated, from the parameters of the magnitude; the gate's bias is the dictionary's `b_enc`.
    pub fn gated(r_mag: Vec<f32>, b_mag: Vec<f32>) -> Self {
        Self::Gated(Gated::new(r_mag, b_mag))
    }

    /// The largest of each of `k` groups among `d_sae` features.
    pub fn group_max(k: usize, d_sae: usize) -> Self {
        Self::GroupMax(d_sae / k.max(1))
    }

    /// The name of its architecture.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Relu => "relu",
            Self::TopK(_) => "topk",
            Self::AbsTopK(_) => "abstopk",
            Self::JumpRelu(_) => "jumprelu",
            Self::JumpIdentity(_) => "jumprelu without ReLU",
            Self::Gated(_) => "gated",
            Self::GroupMax(_) => "groupmax",
        }
    }

    /// The activation of `config`, from its stored tensors by name.
    ///
    /// # Errors
    /// Whatever `tensor` returns when asked for the name of a tensor `[f]`.
    pub(crate) fn from_tensors(
        config: &DictionaryConfig,
        w_dec: &[f32],
        mut tensor: impl FnMut(&str) -> Result<Vec<f32>>,
    ) -> Result<Self> {
        let d_out = config.d_out;
        Ok(match config.architecture {
            Architecture::Relu => Self::Relu,
            Architecture::TopK { k, rescale_acts_by_decoder_norm } => {
                Self::top_k(k, rescale_acts_by_decoder_norm.then_some(w_dec), d_out)
            }
            Architecture::AbsTopK { k, rescale_acts_by_decoder_norm } => {
                Self::abs_top_k(k, rescale_acts_by_decoder_norm.then_some(w_dec), d_out)
            }
            Architecture::JumpRelu => Self::jump_relu(tensor("threshold")?),
            Architecture::JumpIdentity => Self::jump_identity(tensor("threshold")?),
            Architecture::Gated => Self::gated(tensor("r_mag")?, tensor("b_mag")?),
            Architecture::GroupMax { k } => Self::group_max(k, config.d_sae),
        })
    }

    /// Stored tensors beyond the two weights and two biases: name and values, one a feature.
    pub fn tensors(&self) -> Vec<(&'static str, &[f32])> {
        match self {
            Self::Relu | Self::TopK(_) | Self::AbsTopK(_) | Self::GroupMax(_) => Vec::new(),
            Self::JumpRelu(jump) | Self::JumpIdentity(jump) => vec![("threshold", &jump.threshold)],
            Self::Gated(gated) => vec![("r_mag", gated.r_mag()), ("b_mag", gated.b_mag())],
        }
    }

    /// Whether each feature's activation depends on its own pre-activation alone.
    pub fn is_per_feature(&self) -> bool {
        match self {
            Self::Relu | Self::JumpRelu(_) | Self::JumpIdentity(_) | Self::Gated(_) => true,
            Self::TopK(_) | Self::AbsTopK(_) | Self::GroupMax(_) => false,
        }
    }

    /// The same activation over `features` only, where [`Activation::is_per_feature`].
    pub(super) fn select(&self, features: &[u32]) -> Self {
        let of = |values: &[f32]| features.iter().map(|&f| values[f as usize]).collect::<Vec<f32>>();
        match self {
            Self::JumpRelu(jump) => Self::jump_relu(of(&jump.threshold)),
            Self::JumpIdentity(jump) => Self::jump_identity(of(&jump.threshold)),
            Self::Gated(gated) => Self::gated(of(gated.r_mag()), of(gated.b_mag())),
            Self::Relu | Self::TopK(_) | Self::AbsTopK(_) | Self::GroupMax(_) => self.clone(),
        }
    }

    /// Appends the candidates among `product + bias`, features from `first` on, to `row`.
    pub(super) fn emit(&self, product: &[f32], bias: &[f32], first: u32, row: &mut Picked) {
        match self {
            Self::Relu | Self::GroupMax(_) => row.above(product, bias, Limit::Same(0.0), first),
            Self::TopK(top_k) => top_k.emit(product, bias, first, row),
            Self::AbsTopK(top_k) => top_k.emit_signed(product, bias, first, row),
            Self::JumpRelu(jump) => jump.emit(product, bias, first, row),
            Self::JumpIdentity(jump) => jump.emit_identity(product, bias, first, row),
            Self::Gated(gated) => gated.emit(product, bias, first, row),
        }
    }

    /// Reduces the candidates of a whole row to its active features, in their order.
    pub(super) fn finish_row(&self, row: &mut Picked) {
        match self {
            Self::Relu | Self::JumpRelu(_) | Self::JumpIdentity(_) | Self::Gated(_) => {}
            Self::TopK(top_k) | Self::AbsTopK(top_k) => top_k.reduce(row),
            Self::GroupMax(group) => groupmax::finish_row(*group, row),
        }
    }

    /// What multiplies the decoder rows of a row's active features.
    pub(crate) fn decoder_values<'a>(&self, features: &[u32], values: &'a [f32]) -> Cow<'a, [f32]> {
        match self {
            Self::TopK(top_k) | Self::AbsTopK(top_k) => top_k.decoder_values(features, values),
            Self::Relu | Self::JumpRelu(_) | Self::JumpIdentity(_) | Self::Gated(_) | Self::GroupMax(_) => {
                values.into()
            }
        }
    }

    /// Follows a change of the decoder `w_dec`, `[f, d_out]`.
    pub(super) fn decoder_changed(&mut self, w_dec: &[f32], d_out: usize) {
        if let Self::TopK(top_k) | Self::AbsTopK(top_k) = self {
            top_k.decoder_changed(w_dec, d_out);
        }
    }

    /// Follows a multiplication of each feature's pre-activation by a positive factor, so that activations are
    /// multiplied by it too; `false`, with nothing changed, where it would change which features are active.
    ///
    /// TopK with decoder norms is not concerned: its activations carry the norm before and after.
    pub(super) fn scale_features(&mut self, factors: &[f32]) -> bool {
        let scale = |values: &mut [f32]| values.iter_mut().zip(factors).for_each(|(v, f)| *v *= f);
        match self {
            Self::Relu => {}
            Self::JumpRelu(jump) | Self::JumpIdentity(jump) => scale(&mut jump.threshold),
            Self::Gated(gated) => scale(&mut gated.b_mag),
            Self::TopK(top_k) | Self::AbsTopK(top_k) => return top_k.has_norms(),
            Self::GroupMax(_) => return false,
        }
        true
    }

    /// Whether this is the activation that `config` names, with one value a feature in each tensor.
    pub(super) fn check(&self, config: &DictionaryConfig) -> Result<()> {
        let same = match (self, config.architecture) {
            (Self::Relu, Architecture::Relu)
            | (Self::TopK(_), Architecture::TopK { .. })
            | (Self::AbsTopK(_), Architecture::AbsTopK { .. })
            | (Self::JumpRelu(_), Architecture::JumpRelu)
            | (Self::JumpIdentity(_), Architecture::JumpIdentity)
            | (Self::Gated(_), Architecture::Gated) => true,
            (Self::GroupMax(group), Architecture::GroupMax { k }) => *group > 0 && group * k == config.d_sae,
            _ => false,
        };
        match self.tensors().iter().find(|(_, values)| values.len() != config.d_sae) {
            None if same => Ok(()),
            wrong => Err(Error::Mismatch {
                what: "dictionary configuration and activation",
                left: format!("architecture {} with d_sae {}", config.architecture.name(), config.d_sae),
                right: wrong.map_or_else(
                    || "the tensors of another architecture, or a number of groups that does not divide d_sae".into(),
                    |(name, values)| format!("{} values of {name}", values.len()),
                ),
                remedy: "the weights belong to another configuration".into(),
            }),
        }
    }
}
