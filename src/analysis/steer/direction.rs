//! Changes of hidden states along a direction, whatever it came from: a steering vector, a probe, a decoder row.
//!
//! With `v̂ = v / ‖v‖` and the projection `p = h · v̂`:
//!
//! | operation | `h'` | Neuronpedia's name |
//! | --- | --- | --- |
//! | add `c` | `h + c v` | `SIMPLE_ADDITIVE` |
//! | scale by `c` | `h + (c − 1) p v̂` | `ORTHOGONAL_DECOMP`: `(I − P) h + c P h` with `P = v vᵀ / ‖v‖²` |
//! | cap at `c` | `h + (min(p, c) − p) v̂` | `PROJECTION_CAP` |
//! | clamp to `c` | `h + (c − p) v̂` | |
//! | project out | `h − p v̂` | `ORTHOGONAL_DECOMP` with 0 |
//!
//! Adding uses the length of `v`, the others its direction alone. Neuronpedia's `c` is strength times multiplier
//! (`neuronpedia_inference/endpoints/steer/completion.py`).

use std::sync::Arc;

use candle_core::{D, DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::analysis::Placement;
use crate::base::{Context, Error, Result};
use crate::dictionary::Dictionary;
use crate::model::{ModelConfig, Rewrite};
use crate::ops::squared_norm;

/// What to do along a direction; see the table above.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DirectionOp {
    /// Add this many vectors.
    Add(f32),
    /// Set the projection.
    Clamp(f32),
    /// Multiply the projection.
    Scale(f32),
    /// Set the projection to this where it is larger.
    Cap(f32),
    /// Set the projection to zero.
    ProjectOut,
}

impl DirectionOp {
    /// The value that it is given, if any.
    pub fn value(self) -> Option<f32> {
        match self {
            Self::Add(v) | Self::Clamp(v) | Self::Scale(v) | Self::Cap(v) => Some(v),
            Self::ProjectOut => None,
        }
    }
}

/// A change along one direction.
#[derive(Debug, Clone, PartialEq)]
pub struct DirectionEdit {
    /// What the direction is to the user: "vector joy.safetensors", "the decoder row of feature 12".
    pub name: String,
    /// Where.
    pub at: Placement,
    /// The vector, `[d]`.
    pub vector: Vec<f32>,
    /// The feature whose decoder row it is, if it is one: what counts as its concept then.
    pub feature: Option<(Arc<Dictionary>, u32)>,
    /// What to do.
    pub op: DirectionOp,
    /// Rows of a larger norm stay as they are.
    pub max_norm: Option<f64>,
}

impl DirectionEdit {
    /// A change along the decoder row of a feature, as Neuronpedia steers: the raw row, whatever the architecture.
    ///
    /// # Errors
    /// As [`Placement::of`] and [`Dictionary::decoder_row`].
    pub fn of_feature(
        dictionary: &Arc<Dictionary>,
        feature: u32,
        op: DirectionOp,
        config: &ModelConfig,
    ) -> Result<Self> {
        Ok(Self {
            name: format!("the decoder row of feature {feature}"),
            at: Placement::of(dictionary, config)?,
            vector: dictionary.decoder_row(feature)?.to_vec(),
            feature: Some((Arc::clone(dictionary), feature)),
            op,
            max_norm: None,
        })
    }

    /// Checks the vector and the strength, and compares the width with the model's.
    ///
    /// # Errors
    /// `NonFinite` for a vector with NaN or infinity, `Flag` for a strength that is not finite, `Unsupported` for a
    /// vector of zeros, `Mismatch` when the widths differ, `Unknown` when the model lacks the hook.
    pub fn check(&self, config: &ModelConfig) -> Result<()> {
        self.at.point.check(config)?;
        if let Some(v) = self.op.value().filter(|v| !v.is_finite()) {
            return Err(Error::flag("--strength", "finite strengths", v, "1 adds the vector as it is"));
        }
        if let Some(first) = self.vector.iter().position(|x| !x.is_finite()) {
            return Err(Error::NonFinite {
                what: self.name.clone(),
                count: self.vector.iter().filter(|x| !x.is_finite()).count(),
                at: format!("place {first}"),
                remedy: "make the vector again".into(),
            });
        }
        if squared_norm(&self.vector) == 0.0 {
            return Err(Error::Unsupported {
                what: format!("steering with {}", self.name),
                why: "all its values are zero, so it has no direction".into(),
                remedy: "make the vector from prompts that differ".into(),
            });
        }
        let width = self.at.width(config);
        if width == Some(self.vector.len()) {
            return Ok(());
        }
        Err(Error::Mismatch {
            what: "vector and model widths",
            left: format!("{} has {} values", self.name, self.vector.len()),
            right: match width {
                Some(width) => format!("{} of the model has width {width}", self.at),
                None => format!("{} of the model has no fixed width", self.at),
            },
            remedy: "use a vector made for this model and hook, or name its hook with --hook".into(),
        })
    }

    /// The change as the model takes it.
    ///
    /// # Errors
    /// When the device runs out of memory.
    pub(super) fn rewrite(&self, device: &Device) -> Result<DirectionRewrite> {
        let d = self.vector.len();
        let norm = squared_norm(&self.vector).sqrt();
        let scale = if matches!(self.op, DirectionOp::Add(_)) { 1.0 } else { norm.recip() };
        let row = self.vector.iter().map(|x| x * scale).collect::<Vec<f32>>();
        Ok(DirectionRewrite {
            row: Tensor::from_vec(row, (1, d), device).during(|| format!("preparing {}", self.name))?,
            op: self.op,
            max_norm: self.max_norm,
            description: self.to_string(),
        })
    }
}

impl std::fmt::Display for DirectionEdit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, .. } = self;
        match self.op {
            DirectionOp::Add(c) => write!(f, "add {c} of {name}"),
            DirectionOp::Clamp(c) => write!(f, "clamp the projection on {name} to {c}"),
            DirectionOp::Scale(c) => write!(f, "scale the projection on {name} by {c}"),
            DirectionOp::Cap(c) => write!(f, "cap the projection on {name} at {c}"),
            DirectionOp::ProjectOut => write!(f, "project out {name}"),
        }
    }
}

/// The change of hidden states along one direction, computed in f32.
#[derive(Debug)]
pub(super) struct DirectionRewrite {
    /// `[1, d]`: the vector where it is added, else its direction.
    row: Tensor,
    op: DirectionOp,
    max_norm: Option<f64>,
    description: String,
}

impl Rewrite for DirectionRewrite {
    fn width(&self) -> usize {
        self.row.elem_count()
    }

    fn describe(&self) -> String {
        self.description.clone()
    }

    fn rewrite(&self, x: &Tensor) -> Result<Tensor> {
        let wide = x.to_dtype(DType::F32)?;
        let projection = || wide.broadcast_mul(&self.row)?.sum_keepdim(D::Minus1);
        let mut changed = match self.op {
            DirectionOp::Add(c) => wide.broadcast_add(&(&self.row * f64::from(c))?)?,
            DirectionOp::Clamp(c) => self.moved(&wide, &projection()?.affine(-1.0, f64::from(c))?)?,
            DirectionOp::Scale(c) => self.moved(&wide, &(projection()? * (f64::from(c) - 1.0))?)?,
            DirectionOp::ProjectOut => self.moved(&wide, &projection()?.neg()?)?,
            DirectionOp::Cap(c) => {
                let p = projection()?;
                self.moved(&wide, &(p.minimum(c)? - &p)?)?
            }
        };
        if let Some(limit) = self.max_norm {
            let norms = wide.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?;
            let touched = norms.le(limit)?.broadcast_as(wide.shape())?.contiguous()?;
            changed = touched.where_cond(&changed, &wide)?;
        }
        changed.to_dtype(x.dtype()).during(|| self.describe())
    }
}

impl DirectionRewrite {
    /// `x` `[n, d]` moved along the direction by `amounts` `[n, 1]`.
    fn moved(&self, x: &Tensor, amounts: &Tensor) -> candle_core::Result<Tensor> {
        x + amounts.broadcast_mul(&self.row)?
    }
}
