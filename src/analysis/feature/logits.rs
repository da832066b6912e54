//! The tokens that features promote and suppress: the largest and smallest entries of `W_dec W_U`.
//!
//! This is the direct effect on the logits as feature dashboards show it (`sae_vis`): no final norm, no soft cap, no
//! centring, nothing that later layers do. It exists only where the dictionary writes to the residual stream.

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::analysis::{Placement, stop_if_cancelled};
use crate::base::progress::Unit;
use crate::base::{Context, Progress, Result};
use crate::dictionary::Dictionary;
use crate::model::Model;
use crate::ops::{Matrix, gemm};

/// Features of one tile.
const TILE_FEATURES: usize = 1024;
/// Tokens of one tile: with [`TILE_FEATURES`] the product of two tiles is 32 MiB.
const TILE_TOKENS: usize = 8192;

/// A token with its direct effect.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TokenLogit {
    /// Token id.
    pub token: u32,
    /// `W_dec[f] · W_U[:, token]`: what one unit of the feature adds to the logit.
    pub logit: f32,
}

/// The extreme entries of one row of `W_dec W_U`; of equal ones the lower token comes first.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct LogitEffects {
    /// Largest first.
    pub promoted: Vec<TokenLogit>,
    /// Smallest first.
    pub suppressed: Vec<TokenLogit>,
}

/// The `n` most promoted and suppressed tokens of every feature, or `None` when the dictionary does not write to the
/// residual stream. Memory: one tile of products, and `2 n` tokens a feature.
///
/// # Errors
/// As [`Placement::of_output`]; `Interrupted` when the user stopped the work.
pub fn logit_effects(
    dictionary: &Dictionary,
    model: &Model,
    n: usize,
    progress: &dyn Progress,
) -> Result<Option<Vec<LogitEffects>>> {
    let placement = Placement::of_output(dictionary, model.config())?;
    if !placement.writes_to_residual_stream() {
        return Ok(None);
    }
    let vocab_size = model.config().vocab_size;
    let unembedding = model.unembedding()?;
    let mut effects = vec![LogitEffects::default(); dictionary.d_sae()];
    progress.begin("promoted tokens", vocab_size as u64, Unit::Items);
    for first in (0..vocab_size).step_by(TILE_TOKENS) {
        let tokens = TILE_TOKENS.min(vocab_size - first);
        let reading = || "reading the unembedding".to_owned();
        let unembed = unembedding.narrow(1, first, tokens).during(reading)?;
        let unembed = unembed.to_dtype(DType::F32).and_then(|t| t.contiguous()).during(reading)?;
        let tile = UnembedTile::new(unembed, first as u32)?;
        let d = dictionary.d_out();
        let decoder = dictionary.w_dec.chunks(TILE_FEATURES * d);
        for (decoder, effects) in decoder.zip(effects.chunks_mut(TILE_FEATURES)) {
            stop_if_cancelled(progress)?;
            tile.merge(decoder, d, n, effects)?;
        }
        progress.advance(tokens as u64);
    }
    progress.end();
    Ok(Some(effects))
}

/// Some columns of `W_U`, in f32.
struct UnembedTile {
    tensor: Tensor,
    /// The values, where the CPU multiplies; its own product gives the same bits on any number of threads.
    host: Option<Vec<f32>>,
    first: u32,
}

impl UnembedTile {
    fn new(tensor: Tensor, first: u32) -> Result<Self> {
        let host = match tensor.device() {
            Device::Cpu => Some(tensor.flatten_all()?.to_vec1::<f32>()?),
            _ => None,
        };
        Ok(Self { tensor, host, first })
    }

    /// Multiplies the decoder rows `[t, d]` with the tile and merges each row into its feature's extremes.
    fn merge(&self, decoder: &[f32], d: usize, n: usize, effects: &mut [LogitEffects]) -> Result<()> {
        let (features, tokens) = (effects.len(), self.tensor.dim(1)?);
        let logits = if let Some(host) = &self.host {
            gemm::multiply(Matrix::new(decoder, features, d), Matrix::new(host, d, tokens))
        } else {
            let decoder = Tensor::from_slice(decoder, (features, d), self.tensor.device())?;
            decoder.matmul(&self.tensor)?.flatten_all()?.to_vec1::<f32>()?
        };
        effects.par_iter_mut().zip(logits.par_chunks_exact(tokens)).for_each(|(effects, logits)| {
            extremes(&mut effects.promoted, logits, self.first, n, |a, b| a > b);
            extremes(&mut effects.suppressed, logits, self.first, n, |a, b| a < b);
        });
        Ok(())
    }
}

/// Merges `logits` of the tokens from `first` on into the sorted `best`, which keeps `n`. Tokens come in ascending
/// order, so one that equals the last kept is the higher token and loses.
fn extremes(best: &mut Vec<TokenLogit>, logits: &[f32], first: u32, n: usize, beats: impl Fn(f32, f32) -> bool) {
    for (i, &logit) in logits.iter().enumerate() {
        if best.len() >= n && !best.last().is_some_and(|last| beats(logit, last.logit)) {
            continue;
        }
        let place = best.partition_point(|kept| !beats(logit, kept.logit));
        best.insert(place, TokenLogit { token: first + i as u32, logit });
        best.truncate(n);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::tests::{dictionary_at, open};
    use crate::base::Silent;

    #[test]
    fn effects_equal_sorting_the_whole_product() {
        let model = open("llama");
        let dictionary = dictionary_at("blocks.1.hook_resid_post", 24, 60);
        let effects = logit_effects(&dictionary, &model, 10, &Silent).unwrap().unwrap();
        let unembed = model.unembedding().unwrap().contiguous().unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(effects.len(), 60);
        for (f, effects) in effects.iter().enumerate() {
            let row = dictionary.decoder_row(f as u32).unwrap();
            let logit = |t: usize| -> f32 { (0..24).map(|i| row[i] * unembed[i][t]).sum() };
            let mut order: Vec<usize> = (0..48).collect();
            order.sort_by(|&a, &b| logit(b).total_cmp(&logit(a)));
            let tokens = |effects: &[TokenLogit]| effects.iter().map(|e| e.token as usize).collect::<Vec<_>>();
            assert_eq!(tokens(&effects.promoted), order[..10]);
            order.reverse();
            assert_eq!(tokens(&effects.suppressed), order[..10]);
            assert!((effects.promoted[0].logit - logit(effects.promoted[0].token as usize)).abs() < 1e-4);
        }
    }

    #[test]
    fn tiles_merge_and_equal_values_keep_token_order() {
        let mut best = Vec::new();
        extremes(&mut best, &[1.0, 3.0, 1.0], 0, 3, |a, b| a > b);
        extremes(&mut best, &[3.0, 1.0, 2.0], 3, 3, |a, b| a > b);
        assert_eq!(best.iter().map(|e| e.token).collect::<Vec<_>>(), [1, 3, 5]);
    }

    #[test]
    fn a_dictionary_off_the_stream_has_no_effects() {
        let dictionary = dictionary_at("blocks.0.mlp.hook_post", 40, 50);
        assert!(logit_effects(&dictionary, &open("llama"), 10, &Silent).unwrap().is_none());
    }
}
