//! Keys and values of earlier positions, so that generation computes each position once.

use candle_core::Tensor;

use crate::base::Result;

/// Positions that a fresh buffer holds at least.
const FIRST: usize = 64;

/// Per layer, keys and values `[b, S, K, h]` of the positions seen so far, in buffers that grow by doubling.
///
/// Keys are those before edits at `attn.hook_rot_k`, which see all positions at every step and must not be applied
/// twice. Tokens are kept for models whose rotary frequencies change with the length: past that point all positions
/// have other keys, in all layers but the first also other inputs, and are computed again.
#[derive(Debug, Default)]
pub struct KvCache {
    layers: Vec<(Tensor, Tensor)>,
    tokens: Option<Tensor>,
    length: usize,
}

impl KvCache {
    /// An empty cache.
    pub fn new() -> Self {
        Self::default()
    }

    /// Positions seen so far.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether nothing has been seen.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Appends keys and values `[b, s, K, h]` of layer `layer`; returns those of all positions, which are views of the
    /// cache and hold until the next call.
    pub(super) fn append(&mut self, layer: usize, keys: &Tensor, values: &Tensor) -> Result<(Tensor, Tensor)> {
        let total = self.length + keys.dim(1)?;
        if layer == self.layers.len() {
            self.layers.push((grown(None, total, keys)?, grown(None, total, values)?));
        }
        let (key_buffer, value_buffer) = &mut self.layers[layer];
        if key_buffer.dim(1)? < total {
            *key_buffer = grown(Some((key_buffer, self.length)), total, keys)?;
            *value_buffer = grown(Some((value_buffer, self.length)), total, values)?;
        }
        key_buffer.slice_set(&keys.contiguous()?, 1, self.length)?;
        value_buffer.slice_set(&values.contiguous()?, 1, self.length)?;
        Ok((key_buffer.narrow(1, 0, total)?, value_buffer.narrow(1, 0, total)?))
    }

    /// Records the tokens `[b, s]` whose keys and values were appended.
    pub(super) fn advance(&mut self, tokens: &Tensor) -> Result<()> {
        self.length += tokens.dim(1)?;
        self.tokens = Some(match &self.tokens {
            Some(earlier) => Tensor::cat(&[earlier, tokens], 1)?,
            None => tokens.clone(),
        });
        Ok(())
    }

    /// Empties the cache and returns the tokens seen so far.
    pub(super) fn restart(&mut self) -> Option<Tensor> {
        std::mem::take(self).tokens
    }
}

/// A buffer for at least `total` positions that begins with the first positions of `old`.
fn grown(old: Option<(&Tensor, usize)>, total: usize, like: &Tensor) -> Result<Tensor> {
    let (b, _, heads, d_head) = like.dims4()?;
    let capacity = total.next_power_of_two().max(FIRST);
    let buffer = Tensor::zeros((b, capacity, heads, d_head), like.dtype(), like.device())?;
    if let Some((old, length)) = old {
        buffer.slice_set(&old.narrow(1, 0, length)?.contiguous()?, 1, 0)?;
    }
    Ok(buffer)
}
