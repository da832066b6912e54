//! One layer of a set: an encoder, and a decoder for each layer that it writes to.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;

use super::floats::{Floats, Rows};
use crate::base::Result;
use crate::dictionary::{Activation, SparseCodes};
use crate::ops::compact::Picked;
use crate::ops::{Matrix, gemm};

/// Rows that one task encodes.
const TASK_ROWS: usize = 256;
/// Features of one tile of pre-activations.
const TILE_FEATURES: usize = 512;
/// Encoder weights that one task holds, where they cannot be used in place.
const TASK_WEIGHTS: usize = 1 << 21;

/// A layer's weights.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) encoder: EncoderWeights,
    /// One entry a layer written to, from the layer itself on: `f` rows of `d`.
    pub(crate) decoders: Vec<Rows>,
    /// Of the reconstruction of this layer, `[d]`.
    pub(crate) b_dec: Vec<f32>,
    pub(crate) skip: Option<Skip>,
}

/// A linear connection from the raw input to the reconstruction.
#[derive(Debug)]
pub(crate) struct Skip {
    pub(crate) weight: Floats,
    /// Whether it is stored `[d_in, d_out]`, for `x W`, and not `[d_out, d_in]`, for `x Wᵀ`.
    pub(crate) input_first: bool,
}

/// An encoder `[f, d]` or `[d, f]`.
#[derive(Debug)]
pub(crate) struct EncoderWeights {
    pub(crate) weight: Floats,
    /// Whether it is stored `[f, d]`, a row a feature.
    pub(crate) by_feature: bool,
    pub(crate) d: usize,
    /// `[f]`.
    pub(crate) bias: Vec<f32>,
    pub(crate) activation: Activation,
    /// Whether all weights were found finite.
    checked: AtomicBool,
}

impl EncoderWeights {
    pub(crate) fn new(weight: Floats, by_feature: bool, d: usize, bias: Vec<f32>, activation: Activation) -> Self {
        Self { weight, by_feature, d, bias, activation, checked: AtomicBool::new(false) }
    }

    /// Features.
    pub(crate) fn features(&self) -> usize {
        self.bias.len()
    }

    /// Codes of the rows `x`, `[n, d]`. Weights that cannot be used in place are converted piece by piece, and no more
    /// is held than a piece a thread.
    ///
    /// # Errors
    /// `NonFinite` when a weight is no number.
    pub(crate) fn encode(&self, x: &[f32]) -> Result<SparseCodes> {
        self.encode_by(x, (TASK_WEIGHTS / self.d.max(1) / TILE_FEATURES).max(1) * TILE_FEATURES)
    }

    /// Codes of `x`, `width` features a task.
    fn encode_by(&self, x: &[f32], width: usize) -> Result<SparseCodes> {
        let f = self.features();
        let parts: Vec<&[f32]> = x.chunks(TASK_ROWS * self.d.max(1)).collect();
        let pieces = f.div_ceil(width);
        let task = |task: usize| {
            let first = task % pieces * width;
            self.encode_piece(parts[task / pieces], first..(first + width).min(f))
        };
        let mut tasks: Vec<Vec<Picked>> = (0..parts.len() * pieces).into_par_iter().map(task).collect::<Result<_>>()?;
        if !parts.is_empty() {
            self.checked.store(true, Ordering::Relaxed);
        }
        let joined = tasks.par_chunks_mut(pieces.max(1)).map(|pieces| self.join(pieces)).collect();
        Ok(SparseCodes::joined(f, joined))
    }

    /// What is active among `features` in each row of `x`.
    fn encode_piece(&self, x: &[f32], features: Range<usize>) -> Result<Vec<Picked>> {
        let n = x.len() / self.d.max(1);
        let rows = Matrix::new(x, n, self.d);
        let piece = self.piece(features.clone());
        if !self.checked.load(Ordering::Relaxed) {
            self.weight.check_strided(&piece, features.len(), self.d)?;
        }
        let weight = piece.matrix();
        let mut picked = vec![Picked::default(); n];
        let mut tile = vec![0.0; n * TILE_FEATURES.min(features.len())];
        for first in features.clone().step_by(TILE_FEATURES) {
            let width = TILE_FEATURES.min(features.end - first);
            let tile = &mut tile[..n * width];
            let at = first - features.start;
            gemm::multiply_here(tile, rows, weight.cols(at..at + width), false);
            for (product, row) in tile.chunks_exact(width).zip(&mut picked) {
                self.activation.emit(product, &self.bias[first..first + width], first as u32, row);
            }
        }
        for row in &mut picked {
            self.activation.finish_row(row);
        }
        Ok(picked)
    }

    /// The rows of the pieces, put together.
    fn join(&self, pieces: &mut [Vec<Picked>]) -> SparseCodes {
        let mut codes = SparseCodes::new(self.features());
        let Some((first, others)) = pieces.split_first_mut() else { return codes };
        for (i, row) in first.iter_mut().enumerate() {
            for other in others.iter() {
                row.indices.extend_from_slice(&other[i].indices);
                row.values.extend_from_slice(&other[i].values);
            }
            if !others.is_empty() {
                self.activation.finish_row(row);
            }
            codes.push_row(&row.indices, &row.values);
        }
        codes
    }

    /// The weights of `features`, as `[d, features]`.
    fn piece(&self, features: Range<usize>) -> Piece<'_> {
        let (n, f, d) = (features.len(), self.features(), self.d);
        if self.by_feature {
            return Piece { data: self.weight.get(features.start * d..features.end * d), n, d, layout: Layout::Rows };
        }
        if let Some(all) = self.weight.in_place(n * d) {
            return Piece { data: all.into(), n, d, layout: Layout::Columns { first: features.start, of: f } };
        }
        let mut data = Vec::with_capacity(n * d);
        for row in 0..d {
            data.extend_from_slice(&self.weight.get(row * f + features.start..row * f + features.end));
        }
        Piece { data: data.into(), n, d, layout: Layout::Columns { first: 0, of: n } }
    }

    /// The encoder rows of `features`, `[k, d]`.
    ///
    /// # Errors
    /// `NonFinite`.
    pub(crate) fn rows(&self, features: &[u32]) -> Result<Vec<f32>> {
        if self.by_feature {
            return Rows::of_matrix(self.weight.clone(), self.d).gather(features);
        }
        let f = self.features();
        let mut out = vec![0.0; features.len() * self.d];
        let all = self.weight.in_place(out.len());
        for i in 0..self.d {
            for (row, &feature) in out.chunks_exact_mut(self.d).zip(features) {
                let at = i * f + feature as usize;
                row[i] = all.map_or_else(|| self.weight.at(at), |all| all[at]);
            }
        }
        self.weight.check(&out)?;
        Ok(out)
    }

    /// The encoder biases of `features`, `[k]`.
    pub(crate) fn biases(&self, features: &[u32]) -> Vec<f32> {
        features.iter().map(|&feature| self.bias[feature as usize]).collect()
    }

    /// The whole encoder, `[f, d]`.
    ///
    /// # Errors
    /// `NonFinite`.
    pub(crate) fn all_rows(&self) -> Result<Cow<'_, [f32]>> {
        let all = self.weight.whole()?;
        Ok(if self.by_feature { all } else { gemm::transposed(&all, self.features()).into() })
    }

    fn loaded(&self) -> Self {
        let Self { weight, by_feature, d, bias, activation, checked: _ } = self;
        Self::new(weight.loaded(), *by_feature, *d, bias.clone(), activation.clone())
    }
}

/// The encoder weights of some neighbouring features.
struct Piece<'a> {
    data: Cow<'a, [f32]>,
    n: usize,
    d: usize,
    layout: Layout,
}

enum Layout {
    /// A row a feature.
    Rows,
    /// A column a feature, from column `first` on of `of`.
    Columns { first: usize, of: usize },
}

impl Piece<'_> {
    /// As `[d, n]`.
    fn matrix(&self) -> Matrix<'_> {
        match self.layout {
            Layout::Rows => Matrix::new(&self.data, self.n, self.d).t(),
            Layout::Columns { first, of } => Matrix::new(&self.data, self.d, of).cols(first..first + self.n),
        }
    }
}

impl Floats {
    /// Refuses values of a piece that are not finite.
    fn check_strided(&self, piece: &Piece<'_>, n: usize, d: usize) -> Result<()> {
        match piece.layout {
            Layout::Rows => self.check(&piece.data),
            Layout::Columns { first, of } => {
                (0..d).try_for_each(|row| self.check(&piece.data[row * of + first..row * of + first + n]))
            }
        }
    }
}

impl Layer {
    /// Adds the linear connection of the rows `x`, `[n, d]`, to `out`.
    ///
    /// # Errors
    /// `NonFinite`.
    pub(crate) fn add_skip(&self, x: &[f32], out: &mut [f32]) -> Result<()> {
        let Some(skip) = &self.skip else { return Ok(()) };
        let (d_in, d_out) = (self.encoder.d, self.b_dec.len());
        let weight = skip.weight.whole()?;
        let matrix =
            if skip.input_first { Matrix::new(&weight, d_in, d_out) } else { Matrix::new(&weight, d_out, d_in).t() };
        let skipped = gemm::multiply(Matrix::new(x, x.len() / d_in.max(1), d_in), matrix);
        out.iter_mut().zip(&skipped).for_each(|(out, skipped)| *out += skipped);
        Ok(())
    }

    /// The linear connection as `[d_out, d_in]`.
    ///
    /// # Errors
    /// `NonFinite`.
    pub(crate) fn skip(&self) -> Result<Option<Vec<f32>>> {
        let Some(skip) = &self.skip else { return Ok(None) };
        let weight = skip.weight.whole()?;
        Ok(Some(if skip.input_first { gemm::transposed(&weight, self.b_dec.len()) } else { weight.into_owned() }))
    }

    /// Takes the pages of the layer's files out of this process' memory; they come back when they are read again.
    pub(crate) fn release(&self) {
        self.encoder.weight.release();
        self.decoders.iter().take(1).for_each(|rows| rows.floats.release());
    }

    /// The same layer with all weights in memory.
    pub(crate) fn loaded(&self) -> Self {
        let Self { encoder, decoders, b_dec, skip } = self;
        let skip = skip.as_ref();
        Self {
            encoder: encoder.loaded(),
            decoders: decoders.iter().map(Rows::loaded).collect(),
            b_dec: b_dec.clone(),
            skip: skip.map(|skip| Skip { weight: skip.weight.loaded(), input_first: skip.input_first }),
        }
    }

    /// All tensors that stay where they are until they are asked for.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = &Floats> {
        let decoders = self.decoders.iter().map(|rows| &rows.floats);
        std::iter::once(&self.encoder.weight).chain(decoders).chain(self.skip.as_ref().map(|skip| &skip.weight))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dictionary::Architecture;
    use crate::dictionary::tests::random_transcoder;
    use crate::ops::gemm::tests::numbers;

    #[test]
    fn pieces_of_the_encoder_give_what_the_whole_gives() {
        let (d, f) = (6, 1200);
        for architecture in [
            Architecture::Relu,
            Architecture::JumpIdentity,
            Architecture::TopK { k: 9, rescale_acts_by_decoder_norm: false },
            Architecture::AbsTopK { k: 9, rescale_acts_by_decoder_norm: false },
            Architecture::GroupMax { k: 4 },
        ] {
            let dictionary = random_transcoder(architecture, d, f, d);
            let columns = Floats::memory("W_enc", dictionary.w_enc.clone());
            let encoder = |weight, by_feature| {
                EncoderWeights::new(weight, by_feature, d, dictionary.b_enc.clone(), dictionary.activation.clone())
            };
            let by_column = encoder(columns, false);
            let by_row = encoder(Floats::memory("W_enc", by_column.all_rows().unwrap().into_owned()), true);
            let x = numbers(300 * d, "x");
            let whole = by_column.encode(&x).unwrap();
            assert_eq!(whole, dictionary.encode(&x).unwrap(), "{architecture:?}");
            for encoder in [&by_column, &by_row] {
                let parts = encoder.encode_by(&x, TILE_FEATURES).unwrap();
                assert_eq!(parts.features, whole.features, "{architecture:?}");
                assert!(parts.values.iter().zip(&whole.values).all(|(a, b)| (a - b).abs() < 1e-5), "{architecture:?}");
            }
            assert_eq!(by_column.rows(&[7, 1199]).unwrap(), by_row.rows(&[7, 1199]).unwrap());
            assert!(whole.len() > 300);
        }
    }
}
