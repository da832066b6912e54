//! Causal self-attention with grouped key-value heads, every intermediate value behind its hook point:
//! project → norm of queries and keys → place (rotation, cache) → attend → output.

use candle_core::{D, DType, Tensor};

use crate::base::Result;

use super::config::QkNormScope;
use super::hook::{HookPoint, Site};
use super::kv_cache::KvCache;
use super::linear::Linear;
use super::norm::{Norm, NormPoints};
use super::pass::Pass;
use super::position::rotate;
use super::tap::Tap;

/// The attention of one block.
#[derive(Debug, Clone)]
pub(crate) struct Attention {
    pub(super) layer: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) q: Linear,
    pub(super) k: Linear,
    pub(super) v: Linear,
    pub(super) out: Linear,
    pub(super) qk_norm: Option<QkNorm>,
    /// Queries, keys and values are limited to `[−clip, clip]`.
    pub(super) clip: Option<f64>,
    /// Multiplies scores.
    pub(super) scale: f64,
    /// `c · tanh(score / c)`
    pub(super) soft_cap: Option<f64>,
    /// Which of the pass's rotations the layer uses.
    pub(super) rotation: Option<usize>,
    /// Positions a query sees, itself included.
    pub(super) window: Option<usize>,
}

/// Norms of queries and keys.
#[derive(Debug, Clone)]
pub(crate) struct QkNorm {
    pub(super) scope: QkNormScope,
    pub(super) q: Norm,
    pub(super) k: Norm,
}

/// What attention reads.
pub(super) struct Inputs {
    /// The stream after the block's norm, `[b, s, d]`.
    pub(super) whole: Tensor,
    /// The same per head, `[b, s, heads, d]`, for the projections whose inputs the plan touches.
    pub(super) q: Option<Tensor>,
    pub(super) k: Option<Tensor>,
    pub(super) v: Option<Tensor>,
}

impl Attention {
    /// What `hook_attn_out` sees before that hook and before any norm, `[b, s, d]`; `None` when the plan ends inside.
    pub(super) fn forward(
        &self,
        inputs: &Inputs,
        pass: &Pass,
        cache: Option<&mut KvCache>,
        tap: &mut Tap<'_>,
    ) -> Result<Option<Tensor>> {
        let Inputs { whole, q, k, v } = inputs;
        let q = self.project(Site::Q, &self.q, whole, q.as_ref(), self.heads, tap)?;
        let k = self.project(Site::K, &self.k, whole, k.as_ref(), self.kv_heads, tap)?;
        let v = self.project(Site::V, &self.v, whole, v.as_ref(), self.kv_heads, tap)?;
        let (q, k) = self.normalise(q, k, tap)?;
        let (q, k, v) = (q.transpose(1, 2)?, k.transpose(1, 2)?, v.transpose(1, 2)?); // b,heads,s,h
        let (q, k, v) = self.place(q, k, v, pass, cache, tap)?;
        if tap.stops_at(self.layer, Site::RotK) {
            return Ok(None);
        }
        let z = self.attend(&q, &k, &v, pass.bias(self.window), tap)?;
        if tap.stops_at(self.layer, Site::Z) {
            return Ok(None);
        }
        Ok(Some(self.output(&z, tap)?))
    }

    /// Queries, keys or values `[b, s, heads, h]`.
    fn project(
        &self,
        site: Site,
        linear: &Linear,
        whole: &Tensor,
        per_head: Option<&Tensor>,
        heads: usize,
        tap: &mut Tap<'_>,
    ) -> Result<Tensor> {
        let (b, s, _) = whole.dims3()?;
        let y = match per_head {
            Some(per_head) => linear.forward_per_head(per_head)?,
            None => linear.forward(whole)?.reshape((b, s, heads, ()))?,
        };
        // Norms of queries and keys come before clipping.
        let y = if site == Site::V || self.qk_norm.is_none() { self.clipped(y)? } else { y };
        tap.at(HookPoint::block(self.layer, site), y)
    }

    /// The norms of queries and keys, `[b, s, heads, h]`.
    fn normalise(&self, q: Tensor, k: Tensor, tap: &mut Tap<'_>) -> Result<(Tensor, Tensor)> {
        let Some(QkNorm { scope, q: q_norm, k: k_norm }) = &self.qk_norm else { return Ok((q, k)) };
        let q_points = NormPoints::block(self.layer, Site::QNormScale, Site::QNormNormalized);
        let k_points = NormPoints::block(self.layer, Site::KNormScale, Site::KNormNormalized);
        let mut one = |x: Tensor, norm: &Norm, points| match scope {
            QkNormScope::Head | QkNormScope::OwnHead => norm.forward(&x, tap, points),
            QkNormScope::Projection => Ok(norm.forward(&x.flatten_from(2)?, tap, points)?.reshape(x.shape())?),
        };
        let (q, k) = (one(q, q_norm, q_points)?, one(k, k_norm, k_points)?);
        Ok((self.clipped(q)?, self.clipped(k)?))
    }

    fn clipped(&self, x: Tensor) -> Result<Tensor> {
        Ok(match self.clip {
            Some(clip) => x.clamp(-clip, clip)?,
            None => x,
        })
    }

    /// Rotates, and joins keys and values with those of earlier positions, `[b, heads, positions, h]`.
    fn place(
        &self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        pass: &Pass,
        cache: Option<&mut KvCache>,
        tap: &mut Tap<'_>,
    ) -> Result<(Tensor, Tensor, Tensor)> {
        let rotary = self.rotation.and_then(|rotation| pass.rotary(rotation));
        let (q, k) = match rotary {
            Some((cos, sin)) => (rotate(&q, cos, sin)?, rotate(&k, cos, sin)?),
            None => (q, k),
        };
        let (k, v) = match cache {
            Some(cache) => cache.append(self.layer, &k, &v)?,
            None => (k, v),
        };
        if rotary.is_none() {
            return Ok((q, k, v));
        }
        let q = self.tap_rotated(Site::RotQ, q, tap)?;
        let k = self.tap_rotated(Site::RotK, k, tap)?;
        Ok((q, k, v))
    }

    /// Hooks see heads after positions, `[b, s, heads, h]`.
    fn tap_rotated(&self, site: Site, x: Tensor, tap: &mut Tap<'_>) -> Result<Tensor> {
        let point = HookPoint::block(self.layer, site);
        if !tap.wants(point) {
            return Ok(x);
        }
        Ok(tap.at(point, x.transpose(1, 2)?.contiguous()?)?.transpose(1, 2)?)
    }

    /// Weighted values `[b, s, H, h]` of queries `[b, H, s, h]` over keys and values `[b, K, S, h]`.
    fn attend(&self, q: &Tensor, k: &Tensor, v: &Tensor, bias: Option<&Tensor>, tap: &mut Tap<'_>) -> Result<Tensor> {
        let at = |site| HookPoint::block(self.layer, site);
        let (b, heads, s, d_head) = q.dims4()?;
        let (kv_heads, total) = (k.dim(1)?, k.dim(2)?);
        let group = heads / kv_heads;

        // Queries that share a key head are stacked, so that keys are never repeated. Scaling the queries is the
        // same as scaling the scores, of which there are more.
        let stacked = (q.contiguous()? * self.scale)?.reshape((b, kv_heads, group * s, d_head))?;
        let scores = stacked.matmul(&k.contiguous()?.t()?)?.reshape((b, heads, s, total))?;
        let scores = match self.soft_cap {
            Some(cap) => ((scores / cap)?.tanh()? * cap)?,
            None => scores,
        };
        let scores = match bias {
            Some(bias) => scores.broadcast_add(bias)?,
            None => scores,
        };
        let scores = tap.at(at(Site::AttnScores), scores)?;
        let pattern = tap.at(at(Site::AttnPattern), softmax(&scores)?)?;
        let z = pattern.reshape((b, kv_heads, group * s, total))?.matmul(&v.contiguous()?)?;
        let z = z.reshape((b, heads, s, d_head))?.transpose(1, 2)?.contiguous()?; // b,s,H,h
        tap.at(at(Site::Z), z)
    }

    /// The output projection of `z` `[b, s, H, h]`.
    fn output(&self, z: &Tensor, tap: &mut Tap<'_>) -> Result<Tensor> {
        let point = HookPoint::block(self.layer, Site::AttnResult);
        if !tap.wants(point) {
            return self.out.forward(&z.flatten_from(2)?);
        }
        let out = tap.at(point, self.out.contributions(z)?)?.sum(2)?;
        Ok(match self.out.bias() {
            Some(bias) => out.broadcast_add(bias)?,
            None => out,
        })
    }
}

/// Softmax over keys, in f32. candle's fused kernel has no gradient.
fn softmax(scores: &Tensor) -> Result<Tensor> {
    let dtype = scores.dtype();
    let scores = scores.to_dtype(DType::F32)?;
    let pattern = if scores.track_op() {
        candle_nn::ops::softmax(&scores, D::Minus1)?
    } else {
        candle_nn::ops::softmax_last_dim(&scores.contiguous()?)?
    };
    Ok(pattern.to_dtype(dtype)?)
}
