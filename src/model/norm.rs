//! LayerNorm (Ba et al. 2016) and RMSNorm (Zhang and Sennrich 2019), split where hooks look: `x / scale`, then gain.
//!
//! Statistics are in f32 whatever the number type of `x`. candle's fused norms have no gradient and no place for
//! hooks, so they run only when nobody needs either.

use candle_core::{D, DType, Tensor};

use crate::base::Result;

use super::config;
use super::hook::HookPoint;
use super::tap::Tap;

/// One norm with its parameters.
#[derive(Debug, Clone)]
pub(crate) struct Norm {
    kind: config::Norm,
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Norm {
    /// `weight` and `bias` are `[d]`.
    pub(crate) fn new(kind: config::Norm, weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { kind, weight, bias }
    }

    /// Normalises `x` `[b, s, d]`, passing divisor and quotient through their hook points.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        tap: &mut Tap<'_>,
        scale_at: HookPoint,
        normalized_at: HookPoint,
    ) -> Result<Tensor> {
        let hooked = tap.wants(scale_at) || tap.wants(normalized_at);
        if !hooked && x.dtype() == DType::F32 && !x.track_op() && !self.weight.track_op() {
            return self.fused(x);
        }
        let (centred, scale) = self.divide(x)?;
        let scale = tap.at(scale_at, scale)?;
        let normalized = centred.broadcast_div(&scale)?.to_dtype(x.dtype())?;
        let normalized = tap.at(normalized_at, normalized)?;
        let gained = normalized.broadcast_mul(&self.weight)?;
        Ok(match &self.bias {
            Some(bias) => gained.broadcast_add(bias)?,
            None => gained,
        })
    }

    /// Dividend and divisor in f32.
    fn divide(&self, x: &Tensor) -> Result<(Tensor, Tensor)> {
        let x = x.to_dtype(DType::F32)?;
        let centred = match self.kind {
            config::Norm::LayerNorm { .. } => x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?,
            config::Norm::Rms { .. } => x,
        };
        let scale = (centred.sqr()?.mean_keepdim(D::Minus1)? + self.kind.eps())?.sqrt()?;
        Ok((centred, scale))
    }

    fn fused(&self, x: &Tensor) -> Result<Tensor> {
        let x = x.contiguous()?;
        let eps = self.kind.eps() as f32;
        Ok(match (self.kind, &self.bias) {
            (config::Norm::Rms { .. }, None) => candle_nn::ops::rms_norm(&x, &self.weight, eps)?,
            (config::Norm::LayerNorm { .. }, Some(bias)) => candle_nn::ops::layer_norm(&x, &self.weight, bias, eps)?,
            (config::Norm::LayerNorm { .. }, None) => {
                candle_nn::ops::layer_norm(&x, &self.weight, &self.weight.zeros_like()?, eps)?
            }
            (config::Norm::Rms { .. }, Some(bias)) => {
                candle_nn::ops::rms_norm(&x, &self.weight, eps)?.broadcast_add(bias)?
            }
        })
    }
}
