//! The change of hidden states that turns features.
//!
//! ```text
//! h' = h + Σ_f (target_f(h) − f(h)) W_dec[f]
//! ```
//!
//! | operation | `target_f(h)` | change of `h` |
//! | --- | --- | --- |
//! | clamp to `v` | `v` | `(v − f(h)) W_dec[f]` |
//! | add `v` | `f(h) + v` | `v W_dec[f]`, the raw decoder row (Neuronpedia's additive steering) |
//! | scale by `v` | `v f(h)` | `(v − 1) f(h) W_dec[f]` |
//! | ablate | 0 | `−f(h) W_dec[f]` |
//! | cap at `v` | `min(f(h), v)` | `(min(f(h), v) − f(h)) W_dec[f]` |
//!
//! Where the dictionary normalises rows, one unit of activation is worth its decoder row times the row's own scale, and
//! every change above is multiplied by it ([`Dictionary::output_scales`]).
//!
//! The error term is kept: what the dictionary does not reconstruct, and all other features, stay as they are, so an
//! edit that asks for the present activation changes nothing (Templeton et al. 2024, "Scaling Monosemanticity"; SAELens'
//! `HookedSAETransformer` with `use_error_term`). Without it ([`FeatureRewrite::error_term`]) `h` on the right is the
//! dictionary's reconstruction, and the model sees nothing but features.

use std::sync::Arc;

use candle_core::{D, DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::base::{Context, Error, Result};
use crate::dictionary::{Activation, Dictionary};
use crate::model::Rewrite;
use crate::ops::squared_norm;

/// What to do with a feature.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FeatureOp {
    /// Set its activation.
    Clamp(f32),
    /// Add this many decoder rows.
    Add(f32),
    /// Multiply its activation.
    Scale(f32),
    /// Set its activation to zero.
    Ablate,
    /// Set its activation to this where it is larger.
    Cap(f32),
}

impl FeatureOp {
    /// The value that it is given, if any.
    pub fn value(self) -> Option<f32> {
        match self {
            Self::Clamp(v) | Self::Add(v) | Self::Scale(v) | Self::Cap(v) => Some(v),
            Self::Ablate => None,
        }
    }

    /// What it makes of an activation.
    pub fn applied(self, activation: f32) -> f32 {
        match self {
            Self::Clamp(v) => v,
            Self::Add(v) => activation + v,
            Self::Scale(v) => activation * v,
            Self::Ablate => 0.0,
            Self::Cap(v) => activation.min(v),
        }
    }
}

/// A change of one feature. Several of one feature apply one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct FeatureEdit {
    /// Number of the feature.
    pub feature: u32,
    /// What to do.
    pub op: FeatureOp,
}

impl std::fmt::Display for FeatureEdit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let feature = self.feature;
        match self.op {
            FeatureOp::Clamp(v) => write!(f, "clamp feature {feature} to {v}"),
            FeatureOp::Add(v) => write!(f, "add {v} of feature {feature}"),
            FeatureOp::Scale(v) => write!(f, "scale feature {feature} by {v}"),
            FeatureOp::Ablate => write!(f, "ablate feature {feature}"),
            FeatureOp::Cap(v) => write!(f, "cap feature {feature} at {v}"),
        }
    }
}

/// The edits of some features as one change of hidden states. Holds their encoder columns and decoder rows on the
/// model's device in f32, whatever the model's number type, so that `f(h)` is the dictionary's.
#[derive(Debug)]
pub struct FeatureRewrite {
    edits: Vec<FeatureEdit>,
    /// Distinct features, in order of first mention.
    features: Vec<u32>,
    dictionary: Arc<Dictionary>,
    /// Whether `f(h)` takes more than a few products, a comparison and a bias, and the dictionary computes it.
    by_dictionary: bool,
    /// `[d, k]`
    encoder: Tensor,
    /// `[1, k]`
    bias: Tensor,
    /// `[1, d]`, where `b_dec` is subtracted before encoding.
    center: Option<Tensor>,
    /// `[1, k]`: features are active above it.
    threshold: Tensor,
    /// What one unit of activation decodes to, `[k, d]`.
    decoder: Tensor,
    /// The change of activation is `gain · f(h) + offset`, both `[1, k]`.
    gain: Tensor,
    offset: Tensor,
    /// Lowest and highest target, `[1, k]`, where any is finite.
    bounds: Option<(Tensor, Tensor)>,
    /// Whether the change depends on `f(h)`.
    reads: bool,
    error_term: bool,
    max_norm: Option<f64>,
    d: usize,
}

impl FeatureRewrite {
    /// Prepares `edits` for a model on `device`.
    ///
    /// # Errors
    /// `Flag` when there are none, a feature is out of range or a strength is not finite.
    pub fn new(dictionary: &Arc<Dictionary>, edits: &[FeatureEdit], device: &Device) -> Result<Self> {
        check_edits(edits)?;
        let mut features: Vec<u32> = Vec::new();
        for edit in edits {
            if !features.contains(&edit.feature) {
                features.push(edit.feature);
            }
        }
        let (d, k) = (dictionary.d_in(), features.len());
        let encoder = dictionary.encoder_columns(&features)?;
        let mut decoder = Vec::with_capacity(k * d);
        let mut targets = Vec::with_capacity(k);
        for &feature in &features {
            let row = dictionary.decoder_row(feature)?;
            let norm = activation_per_row(dictionary, row);
            decoder.extend(row.iter().map(|w| w / norm));
            let own = edits.iter().filter(|e| e.feature == feature);
            targets.push(own.fold(Target::KEEP, |target, edit| target.then(edit.op, norm)));
        }
        let each = |value: fn(&Target) -> f32| targets.iter().map(value).collect::<Vec<f32>>();
        let bounded = targets.iter().any(|t| t.low.is_finite() || t.high.is_finite());
        let of = |values: &[f32]| features.iter().map(|&f| values[f as usize]).collect::<Vec<f32>>();
        let threshold = match &dictionary.activation {
            Activation::Relu => Some(vec![0.0; k]),
            Activation::JumpRelu(jump) => Some(of(&jump.threshold).iter().map(|t| t.max(0.0)).collect()),
            _ => None,
        };
        let tensor = |values: Vec<f32>, rows: usize, cols: usize| {
            Tensor::from_vec(values, (rows, cols), device).during(|| "preparing the feature edits".into())
        };
        let center = dictionary.config.apply_b_dec_to_input.then(|| tensor(dictionary.b_dec.clone(), 1, d));
        Ok(Self {
            edits: edits.to_vec(),
            by_dictionary: threshold.is_none() || dictionary.normalizes_rows(),
            dictionary: Arc::clone(dictionary),
            encoder: tensor(encoder, d, k)?,
            bias: tensor(of(&dictionary.b_enc), 1, k)?,
            center: center.transpose()?,
            threshold: tensor(threshold.unwrap_or_else(|| vec![0.0; k]), 1, k)?,
            decoder: tensor(decoder, k, d)?,
            reads: bounded || targets.iter().any(|t| t.slope - 1.0 != 0.0),
            gain: tensor(each(|t| t.slope - 1.0), 1, k)?,
            offset: tensor(each(|t| t.constant), 1, k)?,
            bounds: if bounded {
                Some((tensor(each(|t| t.low), 1, k)?, tensor(each(|t| t.high), 1, k)?))
            } else {
                None
            },
            error_term: true,
            max_norm: None,
            features,
            d,
        })
    }

    /// Leaves rows of a larger norm as they are. A dictionary that was trained without attention sinks gives them
    /// meaningless activations, and changing a sink breaks the model.
    #[must_use]
    pub fn max_norm(mut self, limit: Option<f64>) -> Self {
        self.max_norm = limit;
        self
    }

    /// Whether what the dictionary does not reconstruct is kept, as it is by default. Without it rows become their
    /// reconstructions, with the edited activations.
    #[must_use]
    pub fn error_term(mut self, keep: bool) -> Self {
        self.error_term = keep;
        self
    }

    /// The change of the features' activations, `[n, k]`, for `x` `[n, d]` in f32.
    fn change(&self, x: &Tensor) -> Result<Tensor> {
        if !self.reads {
            return Ok(self.offset.broadcast_as((x.dim(0)?, self.features.len()))?.contiguous()?);
        }
        let f = self.activations(x)?;
        let change = f.broadcast_mul(&self.gain)?.broadcast_add(&self.offset)?;
        let Some((low, high)) = &self.bounds else { return Ok(change) };
        Ok(change.maximum(&low.broadcast_sub(&f)?)?.minimum(&high.broadcast_sub(&f)?)?)
    }

    /// Activations of the edited features, `[n, k]`, for `x` `[n, d]` in f32.
    fn activations(&self, x: &Tensor) -> Result<Tensor> {
        if self.by_dictionary {
            let values = self.dictionary.feature_activations(&host(x)?, &self.features)?;
            return Ok(Tensor::from_vec(values, (x.dim(0)?, self.features.len()), x.device())?);
        }
        let centered = match &self.center {
            Some(center) => x.broadcast_sub(center)?,
            None => x.clone(),
        };
        let pre = centered.matmul(&self.encoder)?.broadcast_add(&self.bias)?;
        let active = pre.broadcast_gt(&self.threshold)?;
        Ok(active.where_cond(&pre, &pre.zeros_like()?)?)
    }
}

impl Rewrite for FeatureRewrite {
    fn width(&self) -> usize {
        self.d
    }

    fn describe(&self) -> String {
        self.edits.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }

    fn rewrite(&self, x: &Tensor) -> Result<Tensor> {
        let wide = x.to_dtype(DType::F32)?;
        let mut step = self.change(&wide)?.matmul(&self.decoder)?;
        if self.dictionary.normalizes_rows()
            && let Some(scales) = self.dictionary.output_scales(&host(&wide)?)?
        {
            step = step.broadcast_mul(&Tensor::from_vec(scales, (wide.dim(0)?, 1), wide.device())?)?;
        }
        let mut changed = if self.error_term {
            (&wide + step)?
        } else {
            let reconstruction = self.dictionary.reconstruct(&host(&wide)?)?;
            (Tensor::from_vec(reconstruction, wide.shape(), wide.device())? + step)?
        };
        if let Some(limit) = self.max_norm {
            let norms = wide.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?;
            let touched = norms.le(limit)?.broadcast_as(wide.shape())?.contiguous()?;
            changed = touched.where_cond(&changed, &wide)?;
        }
        changed.to_dtype(x.dtype()).during(|| self.describe())
    }
}

fn host(x: &Tensor) -> Result<Vec<f32>> {
    Ok(x.to_device(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?)
}

fn check_edits(edits: &[FeatureEdit]) -> Result<()> {
    if edits.is_empty() {
        let remedy = "name features with --feature ID and say --clamp, --add, --scale, --cap or --ablate";
        return Err(Error::flag("--feature", "at least one feature", "none", remedy));
    }
    for edit in edits {
        if let Some(v) = edit.op.value().filter(|v| !v.is_finite()) {
            return Err(Error::flag("--feature", "finite strengths", v, "the maximum activation is a usual strength"));
        }
    }
    Ok(())
}

/// Units of activation that decode to one decoder row: its norm where activations carry the norm, else one.
pub(super) fn activation_per_row(dictionary: &Dictionary, row: &[f32]) -> f32 {
    if dictionary.config.architecture.activations_carry_decoder_norm() {
        squared_norm(row).sqrt().max(f32::MIN_POSITIVE)
    } else {
        1.0
    }
}

/// What a sequence of operations makes of an activation: `clamp(slope · f(h) + constant, low, high)`. Every operation
/// keeps that form.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Target {
    slope: f32,
    constant: f32,
    low: f32,
    high: f32,
}

impl Target {
    /// No operation.
    const KEEP: Self = Self { slope: 1.0, constant: 0.0, low: f32::NEG_INFINITY, high: f32::INFINITY };

    fn always(constant: f32) -> Self {
        Self { slope: 0.0, constant, ..Self::KEEP }
    }

    /// After one more operation on a feature whose decoder row is worth `norm` units of activation.
    fn then(self, op: FeatureOp, norm: f32) -> Self {
        let Self { slope, constant, low, high } = self;
        match op {
            FeatureOp::Clamp(v) => Self::always(v),
            FeatureOp::Ablate | FeatureOp::Scale(0.0) => Self::always(0.0),
            FeatureOp::Add(v) => {
                let v = v * norm;
                Self { slope, constant: constant + v, low: low + v, high: high + v }
            }
            FeatureOp::Scale(v) => {
                let (low, high) = if v < 0.0 { (high, low) } else { (low, high) };
                Self { slope: slope * v, constant: constant * v, low: low * v, high: high * v }
            }
            FeatureOp::Cap(v) => Self { slope, constant, low: low.min(v), high: high.min(v) },
        }
    }
}
