//! The encoder product, tile by tile, with the activation fused on the tile.

use rayon::prelude::*;

use super::{Activation, SparseCodes};
use crate::ops::{Matrix, gemm};

/// Rows that one task encodes.
const TILE_ROWS: usize = 256;
/// Features of one tile: a tile is 512 KiB, which stays in a core's cache until it is read.
const TILE_FEATURES: usize = 512;

/// What an encoder needs, whatever holds its weights.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Encoder<'a> {
    /// `[d_in, f]`, in any layout.
    pub(crate) weight: Matrix<'a>,
    /// Subtracted from every row first, `[d_in]`.
    pub(crate) center: Option<&'a [f32]>,
    /// Added to the product, `[f]`.
    pub(crate) bias: &'a [f32],
    /// Turns pre-activations into activations.
    pub(crate) activation: &'a Activation,
}

/// The active pairs of a few rows.
struct Part {
    lengths: Vec<usize>,
    features: Vec<u32>,
    values: Vec<f32>,
}

impl Encoder<'_> {
    /// Codes of the rows `x`, `[n, d_in]`. Holds one tile of pre-activations a thread, never `[n, f]`.
    pub(crate) fn encode(&self, x: &[f32]) -> SparseCodes {
        let [d, f] = self.weight.shape();
        let parts: Vec<Part> = x.par_chunks(TILE_ROWS * d.max(1)).map(|x| self.encode_part(x)).collect();
        let total = parts.iter().map(|part| part.features.len()).sum();
        let mut codes = SparseCodes::new(f);
        codes.features.reserve_exact(total);
        codes.values.reserve_exact(total);
        for part in parts {
            let mut end = codes.features.len();
            codes.offsets.extend(part.lengths.iter().map(|length| {
                end += length;
                end
            }));
            codes.features.extend_from_slice(&part.features);
            codes.values.extend_from_slice(&part.values);
        }
        codes
    }

    fn encode_part(&self, x: &[f32]) -> Part {
        let [d, f] = self.weight.shape();
        let n = x.len() / d.max(1);
        let centered = centered(x, self.center);
        let rows = Matrix::new(&centered, n, d);
        let mut tile = vec![0.0; n * TILE_FEATURES.min(f)];
        let mut scratch = Scratch { features: vec![0; TILE_FEATURES.min(f)], values: vec![0.0; TILE_FEATURES.min(f)] };
        let mut row_features: Vec<Vec<u32>> = vec![Vec::new(); n];
        let mut row_values: Vec<Vec<f32>> = vec![Vec::new(); n];
        for first in (0..f).step_by(TILE_FEATURES) {
            let width = TILE_FEATURES.min(f - first);
            let tile = &mut tile[..n * width];
            gemm::multiply_here(tile, rows, self.weight.cols(first..first + width), false);
            for (i, product) in tile.chunks_exact(width).enumerate() {
                let bias = &self.bias[first..first + width];
                let kept = self.activation.emit(product, bias, first as u32, &mut scratch);
                row_features[i].extend_from_slice(&scratch.features[..kept]);
                row_values[i].extend_from_slice(&scratch.values[..kept]);
            }
        }
        let mut part = Part { lengths: Vec::with_capacity(n), features: Vec::new(), values: Vec::new() };
        for (mut features, mut values) in row_features.into_iter().zip(row_values) {
            self.activation.finish_row(&mut features, &mut values);
            part.lengths.push(features.len());
            part.features.extend_from_slice(&features);
            part.values.extend_from_slice(&values);
        }
        part
    }
}

/// Room for the active pairs of one row of one tile.
pub(crate) struct Scratch {
    /// Features, ascending.
    pub(crate) features: Vec<u32>,
    /// Their activations.
    pub(crate) values: Vec<f32>,
}

/// `x` with `center` subtracted from every row.
pub(crate) fn centered<'a>(x: &'a [f32], center: Option<&[f32]>) -> std::borrow::Cow<'a, [f32]> {
    match center {
        None => x.into(),
        Some(center) => {
            x.chunks_exact(center.len()).flat_map(|row| row.iter().zip(center).map(|(x, c)| x - c)).collect()
        }
    }
}
