//! Directions of features: norms, and how near each is to the others.

use rayon::prelude::*;

use super::FeatureDetail;
use crate::analysis::stop_if_cancelled;
use crate::base::progress::Unit;
use crate::base::{Progress, Result};
use crate::dictionary::Dictionary;
use crate::ops::{Matrix, dot, gemm, squared_norm};

/// Features of one tile of cosines: [`TILE`] times `f` values are held.
const TILE: usize = 256;

/// What the weights alone say about each feature, `[f]` each.
#[derive(Debug, Clone, PartialEq)]
pub struct Directions {
    /// Norm of each encoder column.
    pub encoder_norm: Vec<f32>,
    /// Norm of each decoder row.
    pub decoder_norm: Vec<f32>,
    /// Cosine of each feature's two directions. Absent in transcoders, whose encoder and decoder live in different
    /// spaces.
    pub encoder_decoder: Option<Vec<f32>>,
    /// Largest cosine to another encoder column.
    pub max_encoder: Option<Vec<f32>>,
    /// Largest cosine to another decoder row.
    pub max_decoder: Option<Vec<f32>>,
}

/// The directions of `dictionary`; with `pairs` also the nearest neighbours, which cost `f² d` twice.
///
/// # Errors
/// `Interrupted` when the user stopped the work.
pub fn directions(dictionary: &Dictionary, pairs: bool, progress: &dyn Progress) -> Result<Directions> {
    let (d, f) = (dictionary.d_in(), dictionary.d_sae());
    let mut encoder = vec![0.0; d * f];
    for (i, row) in dictionary.w_enc.chunks_exact(f.max(1)).enumerate() {
        row.iter().enumerate().for_each(|(j, w)| encoder[j * d + i] = *w);
    }
    let mut decoder = dictionary.w_dec.clone();
    let encoder_norm = normalise(&mut encoder, d);
    let decoder_norm = normalise(&mut decoder, dictionary.d_out());
    let same_space = d == dictionary.d_out();
    let aligned = || encoder.chunks_exact(d.max(1)).zip(decoder.chunks_exact(d.max(1))).map(|(e, w)| dot(e, w));
    let encoder_decoder = same_space.then(|| aligned().collect());
    let (mut max_encoder, mut max_decoder) = (None, None);
    if pairs && f > 1 {
        progress.begin("feature directions", 2 * f as u64, Unit::Items);
        max_encoder = Some(nearest(&encoder, d, progress)?);
        max_decoder = Some(nearest(&decoder, dictionary.d_out(), progress)?);
        progress.end();
    }
    Ok(Directions { encoder_norm, decoder_norm, encoder_decoder, max_encoder, max_decoder })
}

impl Directions {
    pub(super) fn details(
        &self,
        dictionary: &Dictionary,
        densities: &[f64],
        fired: &[u64],
        sequences_fired: &[u64],
    ) -> Vec<FeatureDetail> {
        let of = |values: &Option<Vec<f32>>, i: usize| values.as_ref().map(|v| v[i]);
        // A gated dictionary has two biases; the one of its magnitudes is what SAEBench shows.
        let tensors = dictionary.activation.tensors();
        let bias = tensors.iter().find(|(name, _)| *name == "b_mag").map_or(dictionary.b_enc.as_slice(), |(_, b)| b);
        (0..dictionary.d_sae())
            .map(|i| FeatureDetail {
                index: i,
                feature_density: densities[i],
                consistent_activation_heuristic: fired[i] as f64 / sequences_fired[i].max(1) as f64,
                encoder_bias: bias[i],
                encoder_norm: self.encoder_norm[i],
                encoder_decoder_cosine_sim: of(&self.encoder_decoder, i),
                max_decoder_cosine_sim: of(&self.max_decoder, i),
                max_encoder_cosine_sim: of(&self.max_encoder, i),
            })
            .collect()
    }
}

/// Makes the rows of `matrix` `[n, d]` unit vectors and gives their norms; zero rows stay.
fn normalise(matrix: &mut [f32], d: usize) -> Vec<f32> {
    matrix
        .par_chunks_exact_mut(d.max(1))
        .map(|row| {
            let norm = squared_norm(row).sqrt();
            if norm > 0.0 {
                for w in row.iter_mut() {
                    *w /= norm;
                }
            }
            norm
        })
        .collect()
}

/// The largest product of each row of `unit` `[n, d]` with another row.
fn nearest(unit: &[f32], d: usize, progress: &dyn Progress) -> Result<Vec<f32>> {
    let n = unit.len() / d.max(1);
    let all = Matrix::new(unit, n, d);
    let mut result = Vec::with_capacity(n);
    for first in (0..n).step_by(TILE) {
        stop_if_cancelled(progress)?;
        let rows = TILE.min(n - first);
        let cosines = gemm::multiply(all.rows(first..first + rows), all.t());
        result.par_extend(cosines.par_chunks_exact(n).enumerate().map(|(i, row)| {
            let other = row.iter().enumerate().filter(|(j, _)| *j != first + i);
            other.fold(f32::NEG_INFINITY, |max, (_, cosine)| max.max(*cosine))
        }));
        progress.advance(rows as u64);
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::tests::dictionary_at;
    use crate::base::Silent;

    #[test]
    fn nearest_neighbours_equal_comparing_every_pair() {
        let dictionary = dictionary_at("blocks.0.hook_resid_post", 7, 300);
        let directions = directions(&dictionary, true, &Silent).unwrap();
        let decoder = |i: usize| dictionary.decoder_row(i as u32).unwrap().to_vec();
        let encoder = |i: usize| dictionary.encoder_columns(&[i as u32]).unwrap();
        let cosine = |a: &[f32], b: &[f32]| dot(a, b) / (squared_norm(a) * squared_norm(b)).sqrt();
        for i in [0, 1, 255, 256, 299] {
            let others = || (0..300).filter(|&j| j != i);
            let near = others().map(|j| cosine(&decoder(i), &decoder(j))).fold(-1f32, f32::max);
            assert!((directions.max_decoder.as_ref().unwrap()[i] - near).abs() < 1e-5);
            let near = others().map(|j| cosine(&encoder(i), &encoder(j))).fold(-1f32, f32::max);
            assert!((directions.max_encoder.as_ref().unwrap()[i] - near).abs() < 1e-5 && near < 0.99999);
            let aligned = cosine(&encoder(i), &decoder(i));
            assert!((directions.encoder_decoder.as_ref().unwrap()[i] - aligned).abs() < 1e-5);
        }
    }
}
