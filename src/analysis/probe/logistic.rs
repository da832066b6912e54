//! Logistic regression with an L2 penalty, as scikit-learn's `LogisticRegression(C=c)` defines it:
//!
//! ```text
//! two classes    Σᵢ log(1 + exp(−yᵢ zᵢ)) + ‖w‖² / 2c         z = w · x + b,  y = ±1
//! more           Σᵢ (log Σ_c exp(z_ic) − z_iyᵢ) + ‖W‖² / 2c    z = W x + b
//! ```
//!
//! The bias is not penalised. Of the softmax's equivalent biases the solution is the one whose mean is zero.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::lbfgs::minimise;
use super::linear::{Linear, Rows, add_scaled, dot};

/// Rows whose losses one task adds up; fixed, so that sums do not depend on the threads.
const TASK_ROWS: usize = 256;
/// Largest entry of the mean loss's gradient at which the fit is done.
const TOLERANCE: f64 = 1e-9;

/// How to fit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LogisticSettings {
    /// Inverse strength of the penalty.
    pub c: f64,
    /// Steps at most.
    pub max_iterations: usize,
}

impl Default for LogisticSettings {
    fn default() -> Self {
        Self { c: 1.0, max_iterations: 2000 }
    }
}

/// A fit.
#[derive(Debug, Clone, PartialEq)]
pub struct LogisticFit {
    /// The classifier.
    pub linear: Linear,
    /// Steps taken.
    pub iterations: usize,
    /// Largest entry of the mean loss's gradient where it ended.
    pub gradient: f64,
}

/// Fits `labels`, numbers below `classes`, on `rows`.
pub fn fit(rows: &Rows, labels: &[usize], classes: usize, settings: LogisticSettings) -> LogisticFit {
    let outputs = if classes == 2 { 1 } else { classes };
    let (n, d) = (rows.len().max(1) as f64, rows.width());
    let penalty = 1.0 / (settings.c * n);
    let start = vec![0.0; outputs * (d + 1)];
    let minimum = minimise(start, TOLERANCE, settings.max_iterations, |theta, gradient| {
        let loss = loss(rows, labels, outputs, theta, gradient);
        let weights = &theta[..outputs * d];
        gradient.iter_mut().for_each(|g| *g /= n);
        add_scaled(&mut gradient[..outputs * d], penalty, weights);
        loss / n + 0.5 * penalty * dot(weights, weights)
    });
    let mut weights = minimum.at;
    let biases = weights.split_off(outputs * d);
    LogisticFit { linear: Linear { weights, biases }, iterations: minimum.iterations, gradient: minimum.gradient }
}

/// The summed loss at `theta`, weights `[outputs, d]` and then biases, and its gradient.
fn loss(rows: &Rows, labels: &[usize], outputs: usize, theta: &[f64], gradient: &mut [f64]) -> f64 {
    let d = rows.width();
    let (weights, biases) = theta.split_at(outputs * d);
    let parts = rows.values().par_chunks(TASK_ROWS * d).zip(labels.par_chunks(TASK_ROWS)).map(|(rows, labels)| {
        let (mut loss, mut gradient) = (0.0, vec![0.0; theta.len()]);
        let mut z = vec![0.0; outputs];
        for (row, &label) in rows.chunks_exact(d).zip(labels) {
            for (o, z) in z.iter_mut().enumerate() {
                *z = dot(&weights[o * d..][..d], row) + biases[o];
            }
            loss += slopes(&mut z, label);
            for (o, &slope) in z.iter().enumerate() {
                add_scaled(&mut gradient[o * d..][..d], slope, row);
                gradient[outputs * d + o] += slope;
            }
        }
        (loss, gradient)
    });
    let parts: Vec<(f64, Vec<f64>)> = parts.collect();
    gradient.fill(0.0);
    parts.iter().for_each(|(_, part)| add_scaled(gradient, 1.0, part));
    parts.iter().map(|(loss, _)| loss).sum()
}

/// The loss of outputs `z` for class `label`; `z` becomes its gradient.
fn slopes(z: &mut [f64], label: usize) -> f64 {
    if let [z] = z {
        let y = if label == 1 { 1.0 } else { 0.0 };
        let loss = z.max(0.0) + (-z.abs()).exp().ln_1p() - y * *z;
        *z = 1.0 / (1.0 + (-*z).exp()) - y;
        return loss;
    }
    let own = z.get(label).copied().unwrap_or_default();
    let largest = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = z.iter().map(|z| (z - largest).exp()).sum();
    z.iter_mut().for_each(|z| *z = (*z - largest).exp() / total);
    if let Some(own) = z.get_mut(label) {
        *own -= 1.0;
    }
    largest + total.ln() - own
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::gemm::tests::with_threads;

    fn data(n: usize, d: usize) -> Rows {
        let values = (0..n * d).map(|i| (((i * 7919 + 13) % 1009) as f64 / 504.0) - 1.0);
        Rows::new(values.collect(), d)
    }

    #[test]
    fn the_gradient_is_that_of_the_loss() {
        let rows = data(9, 3);
        for classes in [2, 4] {
            let outputs = if classes == 2 { 1 } else { classes };
            let labels: Vec<usize> = (0..9).map(|i| i % classes).collect();
            let theta: Vec<f64> = (0..outputs * 4).map(|i| (i as f64 * 0.7).sin()).collect();
            let (mut gradient, mut ignored) = (vec![0.0; theta.len()], vec![0.0; theta.len()]);
            loss(&rows, &labels, outputs, &theta, &mut gradient);
            for i in 0..theta.len() {
                let mut at = |by: f64| {
                    let mut moved = theta.clone();
                    moved[i] += by;
                    loss(&rows, &labels, outputs, &moved, &mut ignored)
                };
                let numeric = (at(1e-5) - at(-1e-5)) / 2e-5;
                assert!((numeric - gradient[i]).abs() < 1e-7, "{classes} classes, {i}: {numeric} {}", gradient[i]);
            }
        }
    }

    #[test]
    fn fits_converge_on_separable_data_and_do_not_depend_on_threads() {
        let rows = data(600, 4);
        let labels: Vec<usize> = rows.iter().map(|row| usize::from(row[0] + row[1] > 0.1)).collect();
        let settings = LogisticSettings { c: 100.0, ..LogisticSettings::default() };
        let fitted = with_threads(1, || fit(&rows, &labels, 2, settings));
        assert!(fitted.gradient <= TOLERANCE, "{fitted:?}");
        let z = fitted.linear.outputs_on(&rows);
        assert!(z.iter().zip(&labels).filter(|(z, y)| (**z > 0.0) == (**y == 1)).count() > 590);
        assert_eq!(fitted, with_threads(2, || fit(&rows, &labels, 2, settings)));
    }
}
