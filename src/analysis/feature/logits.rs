//! What features write: the largest and smallest entries of `W_dec W_U`, and how its rows are distributed.
//!
//! Twice: raw, as feature dashboards show it (`sae_vis`), and through the final norm of the model, where a decoder row
//! `v` counts as `g ⊙ (v − mean v)` (LayerNorm) or `g ⊙ v` (RMSNorm) with the norm's gain `g`. That is what the norm
//! makes of `v` when its divisor is held constant, up to that constant, so the second is right about order and sign
//! within a feature and says nothing about size. Neither knows of soft caps or of what later layers do. Both exist only
//! where the dictionary writes to the residual stream.

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::histogram::exponent_above;
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
/// Bins of an [`EffectHistogram`].
pub const EFFECT_BINS: usize = 64;

/// A token with its direct effect.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct TokenLogit {
    /// Token id.
    pub token: u32,
    /// `W_dec[f] · W_U[:, token]`: what one unit of the feature adds to the logit.
    pub logit: f32,
}

/// The extreme entries of one row; of equal ones the lower token comes first.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Extremes {
    /// Largest first.
    pub promoted: Vec<TokenLogit>,
    /// Smallest first.
    pub suppressed: Vec<TokenLogit>,
}

/// What one feature writes.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LogitEffects {
    /// Extreme entries of its row of `W_dec W_U`.
    pub raw: Extremes,
    /// The same through the final norm.
    pub normed: Extremes,
    /// All entries of the raw row.
    pub histogram: EffectHistogram,
}

/// Counts of effects in bins of equal width from `-2^e` to `2^e`, where `e` is the smallest that holds them all; it
/// grows as that of activations does.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EffectHistogram {
    exponent: i32,
    /// Empty before the first value.
    counts: Vec<u32>,
}

impl EffectHistogram {
    const HALF: usize = EFFECT_BINS / 2;

    fn add(&mut self, effects: &[f32]) {
        let largest = effects.iter().fold(0f32, |m, x| m.max(x.abs()));
        let needed = exponent_above(largest);
        if self.counts.is_empty() {
            self.counts = vec![0; EFFECT_BINS];
            self.exponent = needed;
        }
        while self.exponent < needed {
            let old = std::mem::replace(&mut self.counts, vec![0; EFFECT_BINS]);
            for (i, count) in old.into_iter().enumerate() {
                self.counts[Self::HALF / 2 + i / 2] += count;
            }
            self.exponent += 1;
        }
        let scale = (1.0 / self.bin_width()) as f32;
        for &effect in effects {
            let bin = ((effect * scale).floor() as i32 + Self::HALF as i32).clamp(0, EFFECT_BINS as i32 - 1);
            self.counts[bin as usize] += 1;
        }
    }

    /// Width of a bin.
    pub fn bin_width(&self) -> f64 {
        2f64.powi(self.exponent) / Self::HALF as f64
    }

    /// Counts of all bins, the first from `-EFFECT_BINS / 2` bin widths on; none before the first value.
    pub fn counts(&self) -> &[u32] {
        &self.counts
    }
}

/// What every feature writes, with `n` tokens at each end, or `None` when the dictionary does not write to the residual
/// stream. Memory: one tile of products, and `4 n` tokens and a histogram a feature.
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
            tile.merge(decoder, model, n, effects)?;
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

    /// Merges the effects of the decoder rows `[t, d]` on the tokens of the tile into what is known of their features.
    fn merge(&self, decoder: &[f32], model: &Model, n: usize, effects: &mut [LogitEffects]) -> Result<()> {
        let (d, tokens) = self.tensor.dims2()?;
        let rows = Tensor::from_slice(decoder, (effects.len(), d), self.tensor.device())?;
        let logits = self.product(decoder, &rows)?;
        effects.par_iter_mut().zip(logits.par_chunks_exact(tokens)).for_each(|(effects, logits)| {
            effects.raw.add(logits, self.first, n);
            effects.histogram.add(logits);
        });
        let rows = model.through_final_norm(&rows)?;
        let decoder = rows.flatten_all()?.to_vec1::<f32>()?;
        let logits = self.product(&decoder, &rows)?;
        effects.par_iter_mut().zip(logits.par_chunks_exact(tokens)).for_each(|(effects, logits)| {
            effects.normed.add(logits, self.first, n);
        });
        Ok(())
    }

    /// The rows, on both sides, times the tile.
    fn product(&self, host: &[f32], rows: &Tensor) -> Result<Vec<f32>> {
        let (d, tokens) = self.tensor.dims2()?;
        Ok(match &self.host {
            Some(tile) => gemm::multiply(Matrix::new(host, host.len() / d.max(1), d), Matrix::new(tile, d, tokens)),
            None => rows.matmul(&self.tensor)?.flatten_all()?.to_vec1::<f32>()?,
        })
    }
}

impl Extremes {
    fn add(&mut self, logits: &[f32], first: u32, n: usize) {
        extremes(&mut self.promoted, logits, first, n, |a, b| a > b);
        extremes(&mut self.suppressed, logits, first, n, |a, b| a < b);
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
        for (name, hook, d) in [("llama", "blocks.1.hook_resid_post", 24), ("gpt2", "blocks.0.hook_resid_post", 24)] {
            let model = open(name);
            let dictionary = dictionary_at(hook, d, 60);
            let effects = logit_effects(&dictionary, &model, 10, &Silent).unwrap().unwrap();
            let unembed = model.unembedding().unwrap().contiguous().unwrap().to_vec2::<f32>().unwrap();
            let vocab = model.config().vocab_size;
            assert_eq!(effects.len(), 60);
            for (f, effects) in effects.iter().enumerate() {
                let row = dictionary.decoder_row(f as u32).unwrap().to_vec();
                let tensor = Tensor::from_slice(&row, (1, d), &Device::Cpu).unwrap();
                let normed = model.through_final_norm(&tensor).unwrap().to_vec2::<f32>().unwrap().remove(0);
                assert_ne!(row, normed, "the final norm does something");
                for (row, found) in [(&row, &effects.raw), (&normed, &effects.normed)] {
                    let logit = |t: usize| -> f32 { (0..d).map(|i| row[i] * unembed[i][t]).sum() };
                    let mut order: Vec<usize> = (0..vocab).collect();
                    order.sort_by(|&a, &b| logit(b).total_cmp(&logit(a)));
                    let tokens = |effects: &[TokenLogit]| effects.iter().map(|e| e.token as usize).collect::<Vec<_>>();
                    assert_eq!(tokens(&found.promoted), order[..10]);
                    order.reverse();
                    assert_eq!(tokens(&found.suppressed), order[..10]);
                    assert!((found.promoted[0].logit - logit(found.promoted[0].token as usize)).abs() < 1e-4);
                }
                assert_eq!(effects.histogram.counts().iter().sum::<u32>() as usize, vocab);
            }
        }
    }

    #[test]
    fn a_grown_histogram_of_effects_equals_one_with_the_final_range() {
        let values: Vec<f32> = (0..300).map(|i| ((i * 7919 % 300) as f32 - 120.0) * 0.01).collect();
        let mut direct = EffectHistogram::default();
        direct.add(&values);
        let mut grown = EffectHistogram::default();
        let mut sorted = values;
        sorted.sort_by(|a, b| a.abs().total_cmp(&b.abs()));
        sorted.chunks(7).for_each(|part| grown.add(part));
        assert_eq!(grown, direct);
        assert!(direct.counts().iter().filter(|count| **count > 0).count() > 16);
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
