//! LayerNorm (Ba et al. 2016) and RMSNorm (Zhang and Sennrich 2019), split where hooks look: `x / scale`, then gain.
//!
//! Statistics are in f32 whatever the number type of `x`. A fused norm has no gradient and no place for hooks, so it
//! runs only when nobody needs either.

use candle_core::{D, DType, Tensor};

use crate::base::Result;
use crate::ops::lanes;

use super::config;
use super::hook::{HookPoint, Site};
use super::plain;
use super::tap::Tap;

/// One norm with its parameters.
#[derive(Debug, Clone)]
pub(crate) struct Norm {
    kind: config::Norm,
    /// Multiplies the quotient; for `RmsOnePlus` the one is in it already.
    gain: Option<Tensor>,
    bias: Option<Tensor>,
}

/// The hook points of a norm: divisor and quotient.
#[derive(Debug, Clone, Copy)]
pub(super) struct NormPoints {
    pub(super) scale: HookPoint,
    pub(super) normalized: HookPoint,
}

impl NormPoints {
    pub(super) const fn block(layer: usize, scale: Site, normalized: Site) -> Self {
        Self { scale: HookPoint::block(layer, scale), normalized: HookPoint::block(layer, normalized) }
    }
}

impl Norm {
    /// `weight` and `bias` are `[width]`, or `[H, h]` where heads have parameters of their own; absent where `kind` has
    /// none.
    pub(crate) fn new(kind: config::Norm, weight: Option<Tensor>, bias: Option<Tensor>) -> Result<Self> {
        let gain = match (kind, weight) {
            (config::Norm::RmsOnePlus { .. }, Some(weight)) => Some((weight.to_dtype(DType::F32)? + 1.0)?),
            (_, weight) => weight,
        };
        Ok(Self { kind, gain, bias })
    }

    /// Whether the mean is subtracted, the gain, and the bias.
    pub(super) fn parts(&self) -> (bool, Option<&Tensor>, Option<&Tensor>) {
        (self.kind.centres(), self.gain.as_ref(), self.bias.as_ref())
    }

    /// Normalises the last axis of `x`, passing divisor and quotient through their hook points.
    pub(super) fn forward(&self, x: &Tensor, tap: &mut Tap<'_>, points: NormPoints) -> Result<Tensor> {
        let hooked = tap.wants(points.scale) || tap.wants(points.normalized);
        if !hooked && let Some(y) = self.fused(x)? {
            return Ok(y);
        }
        let (centred, scale) = self.divide(x)?;
        let scale = tap.at(points.scale, scale)?;
        let normalized = centred.broadcast_div(&scale)?.to_dtype(x.dtype())?;
        self.gain_and_bias(&tap.at(points.normalized, normalized)?)
    }

    /// As [`Norm::forward`] for `x` `[b, s, heads, d]`, a copy of the stream per head. Edits apply to every head;
    /// captures keep what the whole stream gives.
    pub(super) fn forward_per_head(&self, x: &Tensor, tap: &Tap<'_>, points: NormPoints) -> Result<Tensor> {
        let (centred, scale) = self.divide(x)?;
        let scale = tap.edited(points.scale, scale)?;
        let normalized = centred.broadcast_div(&scale)?.to_dtype(x.dtype())?;
        self.gain_and_bias(&tap.edited(points.normalized, normalized)?)
    }

    /// What is linear in the norm of `x` `[n, width]`: centring and gain, with the divisor held at one and no bias. In
    /// f32.
    pub(super) fn linear_part(&self, x: &Tensor) -> Result<Tensor> {
        let x = x.to_dtype(DType::F32)?;
        let centred = if self.kind.centres() { x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)? } else { x };
        Ok(match &self.gain {
            Some(gain) => centred.broadcast_mul(&gain.to_dtype(DType::F32)?)?,
            None => centred,
        })
    }

    /// Dividend and divisor in f32.
    fn divide(&self, x: &Tensor) -> Result<(Tensor, Tensor)> {
        let x = x.to_dtype(DType::F32)?;
        let centred = if self.kind.centres() { x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)? } else { x };
        let scale = (centred.sqr()?.mean_keepdim(D::Minus1)? + self.kind.eps())?.sqrt()?;
        Ok((centred, scale))
    }

    /// A gain in f32 is applied in f32, others in the number type of `x`.
    fn gain_and_bias(&self, x: &Tensor) -> Result<Tensor> {
        let mut y = x.clone();
        if let Some(gain) = &self.gain {
            y = y.to_dtype(gain.dtype())?.broadcast_mul(gain)?.to_dtype(x.dtype())?;
        }
        if let Some(bias) = &self.bias {
            y = y.broadcast_add(bias)?;
        }
        Ok(y)
    }

    /// One sweep, where nobody needs a gradient and heads share their parameters.
    fn fused(&self, x: &Tensor) -> Result<Option<Tensor>> {
        let parameters = [&self.gain, &self.bias];
        let fits = |t: &Tensor| plain::is_plain(t) && t.rank() == 1;
        if !plain::is_plain(x) || !parameters.iter().all(|t| t.as_ref().is_none_or(fits)) {
            return Ok(None);
        }
        let values = |t: &Option<Tensor>| t.as_ref().map(|t| plain::read(t, <[f32]>::to_vec)).transpose();
        let (gain, bias) = (values(&self.gain)?, values(&self.bias)?);
        let row = lanes::NormRow {
            centre: self.kind.centres(),
            eps: self.kind.eps() as f32,
            gain: gain.as_deref(),
            bias: bias.as_deref(),
        };
        let width = x.dim(D::Minus1)?;
        let y = plain::read(x, |x| lanes::norms(x, width, row))?;
        Ok(Some(plain::tensor(y, x.dims(), x)?))
    }
}
