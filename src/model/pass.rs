//! What all layers of one forward pass share: rotary tables, masks and position biases.

use candle_core::{Device, Tensor};
use half::bf16;

use crate::base::Result;

use super::config::{ModelConfig, Position};

/// Shared by the layers of one pass.
pub(super) struct Pass {
    /// Cosine and sine of the new positions, parallel to the configuration's rotations.
    rotary: Vec<(Tensor, Tensor)>,
    /// What is added to scores, per distinct window. It is added, which candle does in one sweep, where choosing by a
    /// broadcast mask indexes every element.
    biases: Vec<(Option<usize>, Option<Tensor>)>,
}

impl Pass {
    /// Tables and biases for `s` new positions after `offset` earlier ones.
    pub(super) fn new(config: &ModelConfig, offset: usize, s: usize, like: &Tensor) -> Result<Self> {
        let (dtype, device) = (like.dtype(), like.device());
        let rotary = match &config.position {
            Position::Rotary { rotations, .. } => {
                let tables = rotations.iter().map(|rotary| rotary.table(offset, s, dtype, device));
                tables.collect::<Result<_>>()?
            }
            Position::Learned { .. } | Position::Alibi => Vec::new(),
        };
        let alibi = match config.position {
            Position::Alibi => Some(alibi(config, offset + s, device)?),
            Position::Learned { .. } | Position::Rotary { .. } => None,
        };
        let mut windows = config.windows.clone();
        windows.sort_unstable();
        windows.dedup();
        let bias = |window| -> Result<(Option<usize>, Option<Tensor>)> {
            let mask = mask(offset, s, window, device)?;
            let both = match (mask, &alibi) {
                (Some(mask), Some(alibi)) => Some(alibi.broadcast_add(&mask)?),
                (mask, alibi) => mask.or_else(|| alibi.clone()),
            };
            Ok((window, both.map(|t| t.to_dtype(dtype)).transpose()?))
        };
        Ok(Self { rotary, biases: windows.into_iter().map(bias).collect::<Result<_>>()? })
    }

    /// Cosine and sine `[s, dims / 2]` of a rotation.
    pub(super) fn rotary(&self, rotation: usize) -> Option<&(Tensor, Tensor)> {
        self.rotary.get(rotation)
    }

    /// What is added to the scores of layers with that window: `[1, 1 or H, s or 1, S]`; nothing when every query sees
    /// every key alike.
    pub(super) fn bias(&self, window: Option<usize>) -> Option<&Tensor> {
        self.biases.iter().find(|(w, _)| *w == window).and_then(|(_, bias)| bias.as_ref())
    }
}

/// Zero where query `i` sees key `j`, `i − window < j ≤ i`, else negative infinity, `[1, 1, s, S]`; absent when every
/// query sees every key.
fn mask(offset: usize, s: usize, window: Option<usize>, device: &Device) -> Result<Option<Tensor>> {
    let total = offset + s;
    if s == 1 && window.is_none_or(|w| total <= w) {
        return Ok(None);
    }
    let value = |query: usize, key: usize| {
        let seen = key <= query && window.is_none_or(|w| query - key < w);
        if seen { 0.0 } else { f32::NEG_INFINITY }
    };
    let values: Vec<f32> = (offset..total).flat_map(|query| (0..total).map(move |key| value(query, key))).collect();
    Ok(Some(Tensor::from_vec(values, (1, 1, s, total), device)?))
}

/// Falcon's position bias `[1, H, 1, S]`: `slope · key position`, scaled as the scores are. Slope and product are
/// rounded to bfloat16, as the models were trained.
fn alibi(config: &ModelConfig, total: usize, device: &Device) -> Result<Tensor> {
    let heads = config.n_heads;
    let scale = config.attention.scale as f32;
    let biases: Vec<f32> = slopes(heads)
        .into_iter()
        .flat_map(|slope| {
            let slope = bf16::from_f32(slope).to_f32();
            (0..total).map(move |key| bf16::from_f32(slope * key as f32).to_f32() * scale)
        })
        .collect();
    Ok(Tensor::from_vec(biases, (1, heads, 1, total), device)?)
}

/// Press et al. 2021: powers of `2^(−8/n)` for `n` heads, and for the heads past a power of two every other power of
/// the sequence with twice as many.
fn slopes(heads: usize) -> Vec<f32> {
    let power_of_two = 1 << heads.ilog2();
    let base = |n: usize| 2f32.powf(-8.0 / n as f32);
    let first = (1..=power_of_two).map(|i| base(power_of_two).powi(i as i32));
    let rest = (0..heads - power_of_two).map(|i| base(2 * power_of_two).powi(2 * i as i32 + 1));
    first.chain(rest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_are_geometric_and_interleaved_past_a_power_of_two() {
        assert_eq!(slopes(8)[0], 0.5);
        assert_eq!(slopes(8)[7], 2f32.powi(-8));
        let twelve = slopes(12);
        assert_eq!(twelve.len(), 12);
        assert!((twelve[8] - 2f32.powf(-0.5)).abs() < 1e-6 && (twelve[9] - 2f32.powf(-1.5)).abs() < 1e-6);
    }

    #[test]
    fn a_window_counts_the_query_itself() {
        let seen = |offset, s, window| -> Vec<Vec<bool>> {
            let mask = mask(offset, s, window, &Device::Cpu).unwrap().unwrap();
            let rows = mask.squeeze(0).unwrap().squeeze(0).unwrap().to_vec2::<f32>().unwrap();
            rows.into_iter().map(|row| row.into_iter().map(|v| v == 0.0).collect()).collect()
        };
        assert_eq!(seen(0, 3, Some(2)), [[true, false, false], [true, true, false], [false, true, true]]);
        assert_eq!(seen(3, 1, Some(2)), [[false, false, true, true]]);
        assert!(mask(3, 1, None, &Device::Cpu).unwrap().is_none());
        assert!(mask(1, 1, Some(2), &Device::Cpu).unwrap().is_none());
    }
}
