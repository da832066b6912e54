//! Keys and values of earlier positions, so that generation computes each position once.

use candle_core::Tensor;

use crate::base::Result;

/// Per layer, keys and values `[b, K, S, h]` of the positions seen so far.
///
/// Keys are those before edits at `attn.hook_rot_k`, which see all positions at every step and must not be applied
/// twice. Tokens are kept for models whose rotary frequencies change with the length: past that point all positions
/// have other keys, in all layers but the first also other inputs, and are computed again.
#[derive(Debug, Clone, Default)]
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

    /// Appends keys and values `[b, K, s, h]` of layer `layer`; returns those of all positions.
    pub(super) fn append(&mut self, layer: usize, keys: &Tensor, values: &Tensor) -> Result<(Tensor, Tensor)> {
        if layer == self.layers.len() {
            self.layers.push((keys.contiguous()?, values.contiguous()?));
        } else {
            let (old_keys, old_values) = &self.layers[layer];
            self.layers[layer] = (Tensor::cat(&[old_keys, keys], 2)?, Tensor::cat(&[old_values, values], 2)?);
        }
        Ok(self.layers[layer].clone())
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
