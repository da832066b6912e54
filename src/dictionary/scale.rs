//! Input scaling: training sees rows of mean norm `√d_in`, so that one learning rate and one L1 coefficient suit
//! every model and layer (SAELens' `expected_average_only_in`; Conerly et al. 2024, "Update on how we train SAEs").
//!
//! `s = √d_in / mean ‖x‖₂`. Folding it afterwards gives a dictionary of raw rows: `W_enc·s`, `W_dec/s`, `b_dec/s`,
//! with `b_enc` and thresholds unchanged. Activations stay the same numbers, except where they carry the decoder norm.

use super::Dictionary;
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

/// Turns a dictionary of rows `scale · x` into one of rows `x`.
pub fn fold(dictionary: &mut Dictionary, scale: f32) {
    dictionary.w_enc.iter_mut().for_each(|w| *w *= scale);
    dictionary.w_dec.iter_mut().chain(&mut dictionary.b_dec).for_each(|w| *w /= scale);
    dictionary.activation.decoder_changed(&dictionary.w_dec, dictionary.config.d_out);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dictionary::Architecture;
    use crate::dictionary::tests::random;
    use crate::ops::gemm::tests::numbers;

    #[test]
    fn folding_moves_the_scale_into_the_weights() {
        let scaled = random(Architecture::JumpRelu, 8, 20);
        let mut folded = scaled.clone();
        fold(&mut folded, 4.0);
        let x = numbers(5 * 8, "x");
        let x_scaled: Vec<f32> = x.iter().map(|x| x * 4.0).collect();
        assert_eq!(folded.encode(&x).unwrap(), scaled.encode(&x_scaled).unwrap());
        let (raw, large) = (folded.reconstruct(&x).unwrap(), scaled.reconstruct(&x_scaled).unwrap());
        assert!(raw.iter().zip(&large).all(|(raw, large)| (raw * 4.0 - large).abs() < 1e-5));
        assert!(folded != scaled);
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
