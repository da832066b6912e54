//! The encoder product, tile by tile, with the activation fused on the tile.

use rayon::prelude::*;

use super::{Activation, SparseCodes};
use crate::ops::compact::Picked;
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

impl Encoder<'_> {
    /// Codes of the rows `x`, `[n, d_in]`. Holds one tile of pre-activations a thread, never `[n, f]`.
    pub(crate) fn encode(&self, x: &[f32]) -> SparseCodes {
        let [d, f] = self.weight.shape();
        SparseCodes::joined(f, x.par_chunks(TILE_ROWS * d.max(1)).map(|x| self.encode_part(x)).collect())
    }

    fn encode_part(&self, x: &[f32]) -> SparseCodes {
        let [d, f] = self.weight.shape();
        let n = x.len() / d.max(1);
        let centered = centered(x, self.center);
        let rows = Matrix::new(&centered, n, d);
        let mut tile = vec![0.0; n * TILE_FEATURES.min(f)];
        let mut picked = vec![Picked::default(); n];
        for first in (0..f).step_by(TILE_FEATURES) {
            let width = TILE_FEATURES.min(f - first);
            let tile = &mut tile[..n * width];
            gemm::multiply_here(tile, rows, self.weight.cols(first..first + width), false);
            for (product, row) in tile.chunks_exact(width).zip(&mut picked) {
                self.activation.emit(product, &self.bias[first..first + width], first as u32, row);
            }
        }
        let mut codes = SparseCodes::new(f);
        for row in &mut picked {
            self.activation.finish_row(row);
            codes.push_row(&row.indices, &row.values);
        }
        codes
    }
}

/// `x` with `center` subtracted from every row.
pub(crate) fn centered<'a>(x: &'a [f32], center: Option<&[f32]>) -> std::borrow::Cow<'a, [f32]> {
    let Some(center) = center else { return x.into() };
    let d = center.len().max(1);
    let mut out = vec![0.0; x.len()];
    out.par_chunks_exact_mut(d).zip(x.par_chunks_exact(d)).for_each(|(to, x)| {
        to.iter_mut().zip(x).zip(center).for_each(|((to, x), c)| *to = x - c);
    });
    out.into()
}
