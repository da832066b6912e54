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
use crate::ops::{Matrix, gemm};

/// Rows whose losses one task adds up; fixed, so that sums do not depend on the threads.
const TASK_ROWS: usize = 256;
/// Largest entry of the mean loss's gradient at which the fit is done.
const TOLERANCE: f64 = 1e-9;
/// Coordinates beyond which factoring their products takes longer than it saves.
const MOST_FACTORED: usize = 2048;

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

/// Rows to fit on, perhaps for several labels.
#[derive(Debug, Clone)]
pub struct Design {
    rows: Rows,
    settings: LogisticSettings,
    /// Cholesky's factor of a quarter of the mean of `[x; 1] [x; 1]ᵀ`, with the penalty: what the second derivative is
    /// at most (Böhning 1992, "Multinomial logistic regression algorithm"), row by row. Coordinates of activations are
    /// correlated, and without it the solver takes hundreds of steps.
    factor: Option<Vec<f64>>,
}

impl Design {
    /// Prepares `rows`.
    pub fn new(rows: Rows, settings: LogisticSettings) -> Self {
        let factor = (rows.width() <= MOST_FACTORED).then(|| bound(&rows, settings)).and_then(factored);
        Self { rows, settings, factor }
    }

    /// Fits `labels`, numbers below `classes`.
    pub fn fit(&self, labels: &[usize], classes: usize) -> LogisticFit {
        let Self { rows, settings, factor } = self;
        let outputs = if classes == 2 { 1 } else { classes };
        let (n, d) = (rows.len().max(1) as f64, rows.width());
        let penalty = 1.0 / (settings.c * n);
        let start = vec![0.0; outputs * (d + 1)];
        let solve = |x: &mut [f64]| {
            if let Some(factor) = factor {
                solve_each(factor, x, outputs, d);
            }
        };
        let minimum = minimise(start, TOLERANCE, settings.max_iterations, &solve, |theta, gradient| {
            let loss = loss(rows, labels, outputs, theta, gradient);
            let weights = &theta[..outputs * d];
            for g in gradient.iter_mut() {
                *g /= n;
            }
            add_scaled(&mut gradient[..outputs * d], penalty, weights);
            loss / n + 0.5 * penalty * dot(weights, weights)
        });
        let mut weights = minimum.at;
        let biases = weights.split_off(outputs * d);
        LogisticFit { linear: Linear { weights, biases }, iterations: minimum.iterations, gradient: minimum.gradient }
    }
}

/// The bound of the second derivative, `[d + 1, d + 1]`. It only guides the solver, so f32 products do.
fn bound(rows: &Rows, settings: LogisticSettings) -> Vec<f64> {
    let (n, side) = (rows.len(), rows.width() + 1);
    let narrow: Vec<f32> = rows.each().flat_map(|row| row.iter().map(|&x| x as f32).chain([1.0])).collect();
    let x = Matrix::new(&narrow, n, side);
    let scale = 0.25 / n.max(1) as f64;
    let mut bound: Vec<f64> = gemm::multiply(x.t(), x).into_iter().map(|x| f64::from(x) * scale).collect();
    // What rounding could make negative is lifted.
    let largest = (0..side).map(|i| bound[i * side + i]).fold(0.0, f64::max);
    for i in 0..side {
        bound[i * side + i] += 1.0 / (settings.c * n.max(1) as f64) + 1e-6 * largest;
    }
    bound
}

/// The lower triangle `L` with `L Lᵀ = matrix`; `None` where there is none.
fn factored(mut matrix: Vec<f64>) -> Option<Vec<f64>> {
    let side = matrix.len().isqrt();
    for i in 0..side {
        for j in 0..=i {
            let (before, own) = matrix.split_at_mut(i * side);
            let other = if j == i { &own[..j] } else { &before[j * side..][..j] };
            let rest = own[j] - dot(&own[..j], other);
            own[j] = if j == i { rest.sqrt() } else { rest / before[j * side + j] };
        }
        if !(matrix[i * side + i] > 0.0 && matrix[i * side + i].is_finite()) {
            return None;
        }
    }
    Some(matrix)
}

/// Solves `L Lᵀ y = x` for the weights and bias of every output in `x`, weights `[outputs, d]` and then biases.
fn solve_each(factor: &[f64], x: &mut [f64], outputs: usize, d: usize) {
    let side = d + 1;
    for output in 0..outputs {
        let mut y: Vec<f64> = x[output * d..][..d].iter().copied().chain([x[outputs * d + output]]).collect();
        for i in 0..side {
            let row = &factor[i * side..][..=i];
            y[i] = (y[i] - dot(&row[..i], &y[..i])) / row[i];
        }
        for i in (0..side).rev() {
            let row = &factor[i * side..][..=i];
            y[i] /= row[i];
            let (before, own) = y.split_at_mut(i);
            add_scaled(before, -own[0], &row[..i]);
        }
        x[output * d..][..d].copy_from_slice(&y[..d]);
        x[outputs * d + output] = y[d];
    }
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
    for (_, part) in &parts {
        add_scaled(gradient, 1.0, part);
    }
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
    for z in z.iter_mut() {
        *z = (*z - largest).exp() / total;
    }
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
        let labels: Vec<usize> = rows.each().map(|row| usize::from(row[0] + row[1] > 0.1)).collect();
        let settings = LogisticSettings { c: 100.0, ..LogisticSettings::default() };
        let fit = || Design::new(rows.clone(), settings).fit(&labels, 2);
        let fitted = with_threads(1, fit);
        assert!(fitted.gradient <= TOLERANCE && fitted.iterations < 100, "{fitted:?}");
        let z = fitted.linear.outputs_on(&rows);
        assert!(z.iter().zip(&labels).filter(|(z, y)| (**z > 0.0) == (**y == 1)).count() > 590);
        assert_eq!(fitted, with_threads(2, fit));
    }

    #[test]
    fn a_factor_solves_its_matrix() {
        let rows = data(30, 5);
        let matrix = bound(&rows, LogisticSettings::default());
        let factor = factored(matrix.clone()).unwrap();
        let mut x: Vec<f64> = (0..12).map(|i| f64::from(i) - 4.0).collect();
        let wanted = x.clone();
        solve_each(&factor, &mut x, 2, 5);
        for output in 0..2 {
            let own: Vec<f64> = x[output * 5..][..5].iter().copied().chain([x[10 + output]]).collect();
            for i in 0..6 {
                let expected = if i == 5 { wanted[10 + output] } else { wanted[output * 5 + i] };
                assert!((dot(&matrix[i * 6..][..6], &own) - expected).abs() < 1e-9);
            }
        }
        assert_eq!(factored(vec![1.0, 2.0, 2.0, 1.0]), None);
    }
}
