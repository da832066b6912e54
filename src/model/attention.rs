//! Causal self-attention with grouped key-value heads, every intermediate value behind its hook point.

use candle_core::{D, DType, Tensor};

use crate::base::Result;

use super::config::{ModelConfig, Position};
use super::hook::{HookPoint, Site};
use super::kv_cache::KvCache;
use super::linear::Linear;
use super::position::rotate;
use super::tap::Tap;

/// The attention of one block.
#[derive(Debug, Clone)]
pub(crate) struct Attention {
    pub(super) layer: usize,
    pub(super) q: Linear,
    pub(super) k: Linear,
    pub(super) v: Linear,
    pub(super) out: Linear,
}

/// What all layers of one pass share.
pub(super) struct Pass {
    /// Cosine and sine for the new positions, and for all positions when keys are cached unrotated.
    pub(super) rotary: Option<RotaryTables>,
    /// Zero where a query may see a key, else negative infinity, `[1, 1, s, S]`; absent when every query sees every
    /// key. It is added, which candle does in one sweep, where choosing by a broadcast mask indexes every element.
    pub(super) mask: Option<Tensor>,
}

pub(super) struct RotaryTables {
    pub(super) new: (Tensor, Tensor),
    pub(super) all: Option<(Tensor, Tensor)>,
}

impl Attention {
    /// `x` is the normed residual `[b, s, d]`; the result is what `hook_attn_out` sees, before that hook.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        config: &ModelConfig,
        pass: &Pass,
        cache: Option<&mut KvCache>,
        tap: &mut Tap<'_>,
    ) -> Result<Option<Tensor>> {
        let (b, s, _) = x.dims3()?;
        let (heads, kv_heads, d_head) = (config.n_heads, config.n_key_value_heads, config.d_head);
        let at = |site| HookPoint::block(self.layer, site);

        let q = tap.at(at(Site::Q), self.q.forward(x)?.reshape((b, s, heads, d_head))?)?;
        let k = tap.at(at(Site::K), self.k.forward(x)?.reshape((b, s, kv_heads, d_head))?)?;
        let v = tap.at(at(Site::V), self.v.forward(x)?.reshape((b, s, kv_heads, d_head))?)?;
        let (q, k, v) = (q.transpose(1, 2)?, k.transpose(1, 2)?, v.transpose(1, 2)?); // b,heads,s,h

        let (q, k, v) = self.place(q, k, v, pass, cache, tap)?;
        let total = k.dim(2)?;
        let group = heads / kv_heads;

        // Queries that share a key head are stacked, so that keys are never repeated. Scaling the queries is the
        // same as scaling the scores, of which there are more.
        let stacked = (q.contiguous()? * self.scale(config))?.reshape((b, kv_heads, group * s, d_head))?;
        let scores = stacked.matmul(&k.contiguous()?.t()?)?.reshape((b, heads, s, total))?;
        let scores = match &pass.mask {
            Some(mask) => scores.broadcast_add(mask)?,
            None => scores,
        };
        let scores = tap.at(at(Site::AttnScores), scores)?;
        let pattern = tap.at(at(Site::AttnPattern), softmax(&scores)?)?;
        let z = pattern.reshape((b, kv_heads, group * s, total))?.matmul(&v.contiguous()?)?;
        let z = z.reshape((b, heads, s, d_head))?.transpose(1, 2)?.contiguous()?; // b,s,H,h
        let z = tap.at(at(Site::Z), z)?;
        if tap.stops_at(self.layer, Site::Z) {
            return Ok(None);
        }
        if tap.wants(at(Site::AttnResult)) {
            let result = tap.at(at(Site::AttnResult), self.per_head(&z)?)?;
            let out = result.sum(2)?;
            return Ok(Some(match self.out.bias() {
                Some(bias) => out.broadcast_add(bias)?,
                None => out,
            }));
        }
        Ok(Some(self.out.forward(&z.reshape((b, s, heads * d_head))?)?))
    }

    /// Rotates, and joins keys and values with those of earlier positions.
    fn place(
        &self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        pass: &Pass,
        cache: Option<&mut KvCache>,
        tap: &mut Tap<'_>,
    ) -> Result<(Tensor, Tensor, Tensor)> {
        let join = |k: Tensor, v: Tensor, cache: Option<&mut KvCache>| -> Result<(Tensor, Tensor)> {
            match cache {
                Some(cache) => cache.append(self.layer, &k, &v),
                None => Ok((k, v)),
            }
        };
        let Some(RotaryTables { new, all }) = &pass.rotary else {
            let (k, v) = join(k, v, cache)?;
            return Ok((q, k, v));
        };
        let q = rotate(&q, &new.0, &new.1)?;
        let (k, v) = match all {
            Some((cos, sin)) => {
                let (k, v) = join(k, v, cache)?;
                (rotate(&k, cos, sin)?, v)
            }
            None => join(rotate(&k, &new.0, &new.1)?, v, cache)?,
        };
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

    fn scale(&self, config: &ModelConfig) -> f64 {
        let scale = config.attention_scale;
        if scale.by_inverse_layer { scale.factor / (self.layer + 1) as f64 } else { scale.factor }
    }

    /// What each head adds, `[b, s, H, d]`.
    fn per_head(&self, z: &Tensor) -> Result<Tensor> {
        let (b, s, heads, d_head) = z.dims4()?;
        let weight = self.out.weight(); // H*h, d
        let d = weight.dim(1)?;
        let weight = weight.contiguous()?.reshape((heads, d_head, d))?;
        let z = z.transpose(1, 2)?.transpose(0, 1)?.contiguous()?.reshape((heads, b * s, d_head))?;
        let result = z.matmul(&weight)?.reshape((heads, b, s, d))?;
        Ok(result.permute((1, 2, 0, 3))?.contiguous()?)
    }
}

impl Pass {
    /// Tables and mask for `s` new positions after `offset` earlier ones.
    pub(super) fn new(config: &ModelConfig, offset: usize, s: usize, like: &Tensor) -> Result<Self> {
        let (dtype, device) = (like.dtype(), like.device());
        let rotary = match &config.position {
            Position::Learned => None,
            Position::Rotary(rotary) => {
                let table = |start, count| rotary.table(config.d_head, start, count, dtype, device);
                // The new positions' rows come from the whole table, so that frequencies follow the full length.
                let all = table(0, offset + s)?;
                let new = (all.0.narrow(0, offset, s)?.contiguous()?, all.1.narrow(0, offset, s)?.contiguous()?);
                Some(RotaryTables { new, all: rotary.depends_on_length().then_some(all) })
            }
        };
        let total = offset + s;
        let mask = if s == 1 {
            None
        } else {
            let hidden = |i: usize, j: usize| if j <= offset + i { 0.0 } else { f32::NEG_INFINITY };
            let values: Vec<f32> = (0..s).flat_map(|i| (0..total).map(move |j| hidden(i, j))).collect();
            Some(Tensor::from_vec(values, (1, 1, s, total), device)?.to_dtype(dtype)?)
        };
        Ok(Self { rotary, mask })
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
