//! Input scaling: training sees rows of mean norm `√d_in`, so that one learning rate and one L1 coefficient suit
//! every model and layer (SAELens' `expected_average_only_in`; Conerly et al. 2024, "Update on how we train SAEs").
//!
//! `s = √d_in / mean ‖x‖₂`. Folding it afterwards gives a dictionary of raw rows: `W_enc·s`, `W_dec/s`, `b_dec/s`,
//! with `b_enc` and thresholds unchanged. Activations stay the same numbers, except where they carry the decoder norm.

use super::config::NormalizeActivations;
use super::normalize::row_norms;
use super::{Activation, Architecture, Dictionary};
use crate::base::{Error, Result};
use crate::ops::squared_norm;

/// Estimates the scale from rows, in any number of batches.
#[derive(Debug, Clone)]
pub struct ScaleEstimate {
    d_in: usize,
    norms: f64,
    rows: u64,
}

impl ScaleEstimate {
    /// No rows yet.
    pub fn new(d_in: usize) -> Self {
        Self { d_in, norms: 0.0, rows: 0 }
    }

    /// Takes the rows `x`, `[n, d_in]`, into account.
    pub fn add(&mut self, x: &[f32]) {
        for row in x.chunks_exact(self.d_in.max(1)) {
            self.norms += f64::from(squared_norm(row)).sqrt();
            self.rows += 1;
        }
    }

    /// `√d_in / mean ‖x‖₂`.
    ///
    /// # Errors
    /// `NonFinite` when there were no rows, all were zero, or one held NaN or infinity.
    pub fn scale(&self) -> Result<f32> {
        let scale = ((self.d_in as f64).sqrt() * self.rows as f64 / self.norms) as f32;
        if scale.is_normal() {
            return Ok(scale);
        }
        Err(Error::NonFinite {
            what: "the input scale, √d_in over the mean norm of the activations,".into(),
            count: 1,
            at: format!("a mean norm of {} over {} rows", self.norms / self.rows as f64, self.rows),
            remedy: "check the activations: they must hold finite rows that are not all zero".into(),
        })
    }
}

/// Turns a dictionary of rows `scale · x` into one of rows `x`; what was `expected_average_only_in` is then `none`.
///
/// A gated dictionary needs no more than the others: gate and magnitude share the product, and its biases stay. A skip
/// connection takes rows in and gives rows out of the same scale, so it stays too. A dictionary that normalises each
/// row by itself gives the same for both kinds of rows and is left as it is.
pub fn fold(dictionary: &mut Dictionary, scale: f32) {
    match dictionary.config.normalize_activations {
        NormalizeActivations::LayerNorm | NormalizeActivations::ConstantNormRescale => return,
        NormalizeActivations::None | NormalizeActivations::ExpectedAverageOnlyIn => {}
    }
    dictionary.w_enc.iter_mut().for_each(|w| *w *= scale);
    dictionary.w_dec.iter_mut().chain(&mut dictionary.b_dec).for_each(|w| *w /= scale);
    dictionary.activation.decoder_changed(&dictionary.w_dec, dictionary.config.d_out);
    dictionary.config.normalize_activations = NormalizeActivations::None;
}

/// Gives every decoder row the norm 1 and multiplies its feature's pre-activation by the former norm (SAELens'
/// `fold_W_dec_norm`), which leaves reconstructions as they are and makes activations comparable between features.
/// Norms below 1e-8 count as 1e-8.
///
/// # Errors
/// `Unsupported` where features compete by activations without norms, so that other ones would win.
pub fn fold_w_dec_norm(dictionary: &mut Dictionary) -> Result<()> {
    let d_out = dictionary.config.d_out.max(1);
    let norms: Vec<f32> = row_norms(&dictionary.w_dec, d_out).into_iter().map(|norm| norm.max(1e-8)).collect();
    if !dictionary.activation.scale_features(&norms) {
        return Err(Error::Unsupported {
            what: format!("folding decoder norms into {dictionary}"),
            why: format!(
                "its features compete by activations that do not carry the norm ({}), so others would win",
                dictionary.config.architecture.name()
            ),
            remedy: "use it as it is".into(),
        });
    }
    move_norms(dictionary, &norms);
    dictionary.activation.decoder_changed(&dictionary.w_dec, dictionary.config.d_out);
    Ok(())
}

/// Moves decoder norms from the competition between features into the weights, where features compete by activations
/// that carry them: `W_enc·n`, `b_enc·n`, `W_dec/n`. Codes and reconstructions stay the same numbers.
pub(crate) fn gather_competing_norms(dictionary: &mut Dictionary) {
    let d_out = dictionary.config.d_out;
    let rescale_acts_by_decoder_norm = false;
    let (architecture, activation) = match dictionary.config.architecture {
        Architecture::TopK { k, rescale_acts_by_decoder_norm: true } => {
            (Architecture::TopK { k, rescale_acts_by_decoder_norm }, Activation::top_k(k, None, d_out))
        }
        Architecture::AbsTopK { k, rescale_acts_by_decoder_norm: true } => {
            (Architecture::AbsTopK { k, rescale_acts_by_decoder_norm }, Activation::abs_top_k(k, None, d_out))
        }
        _ => return,
    };
    move_norms(dictionary, &row_norms(&dictionary.w_dec, d_out));
    (dictionary.config.architecture, dictionary.activation) = (architecture, activation);
}

/// Multiplies each feature's encoder by its entry of `norms` and divides its decoder row by it; a row of zeros stays.
fn move_norms(dictionary: &mut Dictionary, norms: &[f32]) {
    let scale = |values: &mut [f32]| values.iter_mut().zip(norms).for_each(|(w, norm)| *w *= norm);
    dictionary.w_enc.chunks_exact_mut(norms.len().max(1)).for_each(scale);
    scale(&mut dictionary.b_enc);
    let rows = dictionary.w_dec.chunks_exact_mut(dictionary.config.d_out.max(1)).zip(norms);
    for (row, norm) in rows.filter(|(_, norm)| **norm > 0.0) {
        for w in row {
            *w /= norm;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dictionary::Architecture;
    use crate::dictionary::tests::{architectures, random, random_transcoder};
    use crate::ops::gemm::tests::numbers;

    #[test]
    fn folding_moves_the_scale_into_the_weights() {
        for architecture in architectures() {
            for scaled in [random(architecture, 8, 20), random_transcoder(architecture, 8, 20, 5)] {
                let mut folded = scaled.clone();
                fold(&mut folded, 4.0);
                let x = numbers(5 * 8, "x");
                let x_scaled: Vec<f32> = x.iter().map(|x| x * 4.0).collect();
                let (raw, large) = (folded.encode(&x).unwrap(), scaled.encode(&x_scaled).unwrap());
                assert_eq!(raw.features, large.features, "{architecture:?}");
                // Activations that carry the decoder norm shrink with it.
                let carried = if architecture.activations_carry_decoder_norm() { 4.0 } else { 1.0 };
                let close = |(a, b): (&f32, &f32)| (a * carried - b).abs() < 1e-5 * (1.0 + b.abs());
                assert!(raw.values.iter().zip(&large.values).all(close) && !raw.is_empty(), "{architecture:?}");
                let (raw, large) = (folded.reconstruct(&x).unwrap(), scaled.reconstruct(&x_scaled).unwrap());
                assert!(raw.iter().zip(&large).all(|(raw, large)| (raw * 4.0 - large).abs() < 1e-4));
                assert!(folded != scaled);
            }
        }
    }

    #[test]
    fn folding_decoder_norms_keeps_reconstructions_and_multiplies_activations() {
        for architecture in architectures() {
            let before = random(architecture, 8, 20);
            let mut after = before.clone();
            let x = numbers(5 * 8, "x");
            let Ok(()) = fold_w_dec_norm(&mut after) else {
                assert!(!before.activation.is_per_feature() && !architecture.activations_carry_decoder_norm());
                assert_eq!(before, after);
                continue;
            };
            assert!(row_norms(&after.w_dec, 8).iter().all(|norm| (norm - 1.0).abs() < 1e-6));
            let (old, new) = (before.reconstruct(&x).unwrap(), after.reconstruct(&x).unwrap());
            assert!(old.iter().zip(&new).all(|(a, b)| (a - b).abs() < 1e-4), "{architecture:?}");
            let (old, new) = (before.encode(&x).unwrap(), after.encode(&x).unwrap());
            assert_eq!(old.features, new.features);
            let norms = row_norms(&before.w_dec, 8);
            for ((feature, old), new) in old.features.iter().zip(&old.values).zip(&new.values) {
                let norm = if architecture.activations_carry_decoder_norm() { 1.0 } else { norms[*feature as usize] };
                assert!((old * norm - new).abs() < 1e-4, "{architecture:?}");
            }
        }
        assert!(fold_w_dec_norm(&mut random(Architecture::GroupMax { k: 4 }, 8, 20)).is_err());
    }

    #[test]
    fn a_dictionary_that_normalises_rows_is_left_as_it_is() {
        let mut dictionary = random(Architecture::Relu, 8, 20);
        dictionary.config.normalize_activations = NormalizeActivations::LayerNorm;
        let before = dictionary.clone();
        fold(&mut dictionary, 4.0);
        assert_eq!(before, dictionary);
        dictionary.config.normalize_activations = NormalizeActivations::ExpectedAverageOnlyIn;
        fold(&mut dictionary, 4.0);
        assert_eq!(dictionary.config.normalize_activations, NormalizeActivations::None);
    }

    #[test]
    fn the_estimate_gives_rows_a_mean_norm_of_root_d() {
        let mut estimate = ScaleEstimate::new(4);
        estimate.add(&[3.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0]);
        assert_eq!(estimate.scale().unwrap(), 1.0);
        assert!(ScaleEstimate::new(4).scale().is_err());
        let mut zeros = ScaleEstimate::new(2);
        zeros.add(&[0.0, 0.0]);
        assert!(matches!(zeros.scale(), Err(Error::NonFinite { .. })));
    }
}
