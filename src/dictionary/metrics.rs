//! How well a dictionary reconstructs and how sparsely, as streaming sums in `f64` that merge.
//!
//! Definitions are SAELens' (`sae_lens/evals.py`) and SAEBench's core set; every token counts the same.
//!
//! | name | formula |
//! | --- | --- |
//! | `explained_variance` | R²: `1 − E‖x − x̂‖² / (E‖x‖² − ‖E x‖²)` |
//! | `explained_variance_legacy` | mean over tokens of `1 − ‖x − x̂‖² / ‖x − x̄‖²`, `x̄` the mean of the token's batch |
//! | `mse` | mean over tokens of `‖x − x̂‖²`, summed over the width |
//! | `cossim` | mean over tokens of the cosine of `x` and `x̂` |
//! | `l2_norm_in`, `l2_norm_out`, `l2_ratio` | means over tokens; a norm below 1e-4 divides as 1 |
//! | `relative_reconstruction_bias` | `E‖x̂‖² / E⟨x, x̂⟩` (Rajamanoharan et al. 2024, equation 10) |
//! | `l0`, `l1` | mean number and mean absolute sum of active features a token |

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::SparseCodes;
use crate::base::{Error, Result};

/// Rows whose sums are formed together; batches are cut here, so the order of additions is fixed.
const CHUNK: usize = 256;
/// Features that fire on more than this share of tokens are called dense.
pub const DENSE_ABOVE: f64 = 0.1;

/// Sums over all tokens seen so far.
#[derive(Debug, Clone, PartialEq)]
pub struct Metrics {
    rows: u64,
    sums: Sums,
    /// `Σ x`, `[d]`.
    sum_x: Vec<f64>,
    /// Tokens on which each feature was active, `[f]`.
    fired: Vec<u64>,
}

/// Scalar sums over tokens.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Sums {
    squared_norm: f64,
    squared_error: f64,
    squared_norm_out: f64,
    product: f64,
    cosine: f64,
    norm_in: f64,
    norm_out: f64,
    ratio: f64,
    legacy: f64,
    active: f64,
    absolute: f64,
}

impl Sums {
    fn add(&mut self, other: &Self) {
        let Self {
            squared_norm,
            squared_error,
            squared_norm_out,
            product,
            cosine,
            norm_in,
            norm_out,
            ratio,
            legacy,
            active,
            absolute,
        } = other;
        self.squared_norm += squared_norm;
        self.squared_error += squared_error;
        self.squared_norm_out += squared_norm_out;
        self.product += product;
        self.cosine += cosine;
        self.norm_in += norm_in;
        self.norm_out += norm_out;
        self.ratio += ratio;
        self.legacy += legacy;
        self.active += active;
        self.absolute += absolute;
    }

    /// The sums of one token.
    fn of(x: &[f32], reconstruction: &[f32], mean: &[f64], values: &[f32]) -> Self {
        let (mut squared_norm, mut squared_error, mut squared_norm_out) = (0.0, 0.0, 0.0);
        let (mut product, mut variance) = (0.0, 0.0);
        for ((x, y), mean) in x.iter().zip(reconstruction).zip(mean) {
            let (x, y) = (f64::from(*x), f64::from(*y));
            squared_norm += x * x;
            squared_norm_out += y * y;
            product += x * y;
            squared_error += (x - y) * (x - y);
            variance += (x - mean) * (x - mean);
        }
        let (norm_in, norm_out) = (squared_norm.sqrt(), squared_norm_out.sqrt());
        Self {
            squared_norm,
            squared_error,
            squared_norm_out,
            product,
            cosine: product / (norm_in * norm_out).max(f64::MIN_POSITIVE),
            norm_in,
            norm_out,
            ratio: norm_out / if norm_in < 1e-4 { 1.0 } else { norm_in },
            legacy: 1.0 - squared_error / variance.max(f64::MIN_POSITIVE),
            active: values.iter().filter(|v| **v != 0.0).count() as f64,
            absolute: values.iter().map(|v| f64::from(v.abs())).sum(),
        }
    }
}

impl Metrics {
    /// No tokens yet, for rows of width `d_out` and `d_sae` features.
    pub fn new(d_out: usize, d_sae: usize) -> Self {
        Self { rows: 0, sums: Sums::default(), sum_x: vec![0.0; d_out], fired: vec![0; d_sae] }
    }

    /// Takes a batch into account: the target rows `x` and their `reconstruction`, both `[n, d_out]`, with `codes`.
    ///
    /// # Errors
    /// `Mismatch` when the three do not describe the same rows.
    pub fn add(&mut self, x: &[f32], reconstruction: &[f32], codes: &SparseCodes) -> Result<()> {
        let d = self.sum_x.len();
        let n = codes.rows();
        if x.len() != n * d || reconstruction.len() != n * d || codes.d_sae != self.fired.len() {
            return Err(Error::Mismatch {
                what: "rows, reconstructions and codes",
                left: format!("{} and {} values of width {d}", x.len(), reconstruction.len()),
                right: format!("{n} rows of codes over {} features", codes.d_sae),
                remedy: "measure a dictionary on the rows that it encoded".into(),
            });
        }
        if n == 0 || d == 0 {
            return Ok(());
        }
        let sum_x = column_sums(x, d);
        let mean: Vec<f64> = sum_x.iter().map(|sum| sum / n as f64).collect();
        let parts: Vec<Sums> = x
            .par_chunks(CHUNK * d)
            .zip(reconstruction.par_chunks(CHUNK * d))
            .enumerate()
            .map(|(chunk, (x, reconstruction))| {
                let mut sums = Sums::default();
                for (i, (x, reconstruction)) in x.chunks_exact(d).zip(reconstruction.chunks_exact(d)).enumerate() {
                    sums.add(&Sums::of(x, reconstruction, &mean, codes.row(chunk * CHUNK + i).1));
                }
                sums
            })
            .collect();
        for part in &parts {
            self.sums.add(part);
        }
        self.sum_x.iter_mut().zip(&sum_x).for_each(|(total, sum)| *total += sum);
        self.rows += n as u64;
        for (&feature, &value) in codes.features.iter().zip(&codes.values) {
            self.fired[feature as usize] += u64::from(value != 0.0);
        }
        Ok(())
    }

    /// Adds the tokens of `other`, which measured the same dictionary.
    ///
    /// # Errors
    /// `Mismatch` when it measured one of another size.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        let Self { rows, sums, sum_x, fired } = other;
        if sum_x.len() != self.sum_x.len() || fired.len() != self.fired.len() {
            return Err(Error::Mismatch {
                what: "metrics to be merged",
                left: format!("width {}, {} features", self.sum_x.len(), self.fired.len()),
                right: format!("width {}, {} features", sum_x.len(), fired.len()),
                remedy: "merge metrics of one dictionary".into(),
            });
        }
        self.rows += rows;
        self.sums.add(sums);
        self.sum_x.iter_mut().zip(sum_x).for_each(|(total, sum)| *total += sum);
        self.fired.iter_mut().zip(fired).for_each(|(total, count)| *total += count);
        Ok(())
    }

    /// Tokens seen.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Tokens on which each feature was active, `[f]`.
    pub fn fired(&self) -> &[u64] {
        &self.fired
    }

    /// Share of tokens on which each feature was active, `[f]`.
    pub fn densities(&self) -> Vec<f64> {
        self.fired.iter().map(|&count| count as f64 / self.rows.max(1) as f64).collect()
    }

    /// The figures so far. Before the first token all are zero.
    pub fn report(&self) -> MetricsReport {
        let n = self.rows.max(1) as f64;
        let Sums { squared_norm, squared_error, squared_norm_out, product, .. } = self.sums;
        let mean_squared: f64 = self.sum_x.iter().map(|sum| (sum / n) * (sum / n)).sum();
        let (variance, mse) = (squared_norm / n - mean_squared, squared_error / n);
        let explained_variance = match (variance < 1e-10, mse < 1e-10) {
            _ if self.rows == 0 => 0.0,
            (true, true) => 1.0,
            (true, false) => 0.0,
            _ => 1.0 - mse / variance,
        };
        let density = |count: u64| count as f64 / n;
        MetricsReport {
            explained_variance,
            explained_variance_legacy: self.sums.legacy / n,
            mse,
            cossim: self.sums.cosine / n,
            l2_norm_in: self.sums.norm_in / n,
            l2_norm_out: self.sums.norm_out / n,
            l2_ratio: self.sums.ratio / n,
            relative_reconstruction_bias: if product == 0.0 { 0.0 } else { squared_norm_out / product },
            l0: self.sums.active / n,
            l1: self.sums.absolute / n,
            dead_features: self.fired.iter().filter(|&&count| count == 0).count(),
            dense_features: self.fired.iter().filter(|&&count| density(count) > DENSE_ABOVE).count(),
            d_sae: self.fired.len(),
            rows: self.rows,
        }
    }
}

/// The figures of [`Metrics`], as in the table of the module documentation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct MetricsReport {
    /// R².
    pub explained_variance: f64,
    /// Mean of per-token ratios.
    pub explained_variance_legacy: f64,
    /// Mean squared error, summed over the width.
    pub mse: f64,
    /// Mean cosine of input and reconstruction.
    pub cossim: f64,
    /// Mean norm of the input.
    pub l2_norm_in: f64,
    /// Mean norm of the reconstruction.
    pub l2_norm_out: f64,
    /// Mean ratio of the two norms.
    pub l2_ratio: f64,
    /// Below 1 where reconstructions are too small.
    pub relative_reconstruction_bias: f64,
    /// Mean number of active features.
    pub l0: f64,
    /// Mean sum of activations.
    pub l1: f64,
    /// Features that were never active.
    pub dead_features: usize,
    /// Features active on more than [`DENSE_ABOVE`] of the tokens.
    pub dense_features: usize,
    /// Features in the dictionary.
    pub d_sae: usize,
    /// Tokens measured.
    pub rows: u64,
}

/// `Σ x` over rows, `[d]`, in chunks whose order is fixed.
pub(crate) fn column_sums(x: &[f32], d: usize) -> Vec<f64> {
    let parts: Vec<Vec<f64>> = x
        .par_chunks(CHUNK * d.max(1))
        .map(|x| {
            let mut sums = vec![0.0; d];
            for row in x.chunks_exact(d.max(1)) {
                sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x));
            }
            sums
        })
        .collect();
    parts.iter().fold(vec![0.0; d], |mut total, part| {
        total.iter_mut().zip(part).for_each(|(total, sum)| *total += sum);
        total
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dictionary::Architecture;
    use crate::dictionary::tests::random;
    use crate::ops::gemm::tests::{numbers, with_threads};

    #[test]
    fn figures_equal_their_formulas() {
        let (x, y) = ([1.0f32, 2.0, 3.0, -2.0, 0.0, 4.0], [1.5f32, 2.0, 2.0, -2.0, 1.0, 4.0]);
        let mut codes = SparseCodes::new(4);
        codes.push_row(&[0, 2], &[0.5, 1.5]);
        codes.push_row(&[2], &[1.0]);
        codes.push_row(&[], &[]);
        let mut metrics = Metrics::new(2, 4);
        metrics.add(&x, &y, &codes).unwrap();
        let report = metrics.report();
        // Errors 0.25, 1, 1; mean of x (4/3, 4/3); E‖x‖² = (5 + 13 + 16) / 3.
        assert!((report.mse - 0.75).abs() < 1e-12);
        let variance = 34.0 / 3.0 - 32.0 / 9.0;
        assert!((report.explained_variance - (1.0 - 0.75 / variance)).abs() < 1e-12);
        let around = |a: f64, b: f64| (a - 4.0 / 3.0).powi(2) + (b - 4.0 / 3.0).powi(2);
        let legacy = 1.0 - (0.25 / around(1., 2.) + 1.0 / around(3., -2.) + 1.0 / around(0., 4.)) / 3.0;
        assert!((report.explained_variance_legacy - legacy).abs() < 1e-12);
        let cosines = 5.5 / (5f64.sqrt() * 2.5) + 10.0 / (13f64.sqrt() * 8f64.sqrt()) + 16.0 / (4.0 * 17f64.sqrt());
        assert!((report.cossim - cosines / 3.0).abs() < 1e-12);
        assert!((report.relative_reconstruction_bias - (6.25 + 8.0 + 17.0) / (5.5 + 10.0 + 16.0)).abs() < 1e-12);
        assert!((report.l0 - 1.0).abs() < 1e-12 && (report.l1 - 1.0).abs() < 1e-12);
        assert_eq!((report.dead_features, report.dense_features, report.rows), (2, 2, 3));
    }

    #[test]
    fn parts_merge_to_the_whole_and_threads_do_not_matter() {
        let dictionary = random(Architecture::Relu, 9, 40);
        let x = numbers(700 * 9, "x");
        let measure = |x: &[f32]| {
            let codes = dictionary.encode(x).unwrap();
            let mut metrics = Metrics::new(9, 40);
            metrics.add(x, &dictionary.decode(&codes).unwrap(), &codes).unwrap();
            metrics
        };
        assert_eq!(with_threads(1, || measure(&x)), with_threads(2, || measure(&x)));
        let (whole, mut parts) = (measure(&x), measure(&x[..300 * 9]));
        parts.merge(&measure(&x[300 * 9..])).unwrap();
        let (a, b) = (whole.report(), parts.report());
        assert!((a.explained_variance - b.explained_variance).abs() < 1e-9 && (a.l0 - b.l0).abs() < 1e-9);
        assert_eq!(whole.fired(), parts.fired());
        assert!(parts.merge(&Metrics::new(9, 41)).is_err());
    }
}
