//! Minimises smooth convex functions: L-BFGS (Nocedal and Wright 2006, algorithm 7.5) with the bisection line search for
//! the weak Wolfe conditions (Lewis and Overton 2013). In f64 and without chance, so the same input gives the same bits.

use std::collections::VecDeque;

use super::linear::{add_scaled, dot};

/// Pairs of steps and gradient changes kept.
const MEMORY: usize = 20;
/// Constants of the two Wolfe conditions.
const C1: f64 = 1e-4;
const C2: f64 = 0.9;
/// Points tried on one line.
const LINE_STEPS: usize = 60;

/// Where a minimisation ended.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Minimum {
    pub(super) at: Vec<f64>,
    pub(super) iterations: usize,
    /// Largest absolute entry of the gradient.
    pub(super) gradient: f64,
}

/// Minimises `f`, which gives its value and fills in its gradient, from `start` until no entry of the gradient exceeds
/// `tolerance` or the numbers allow no further descent. `solve` turns a vector into what some symmetric matrix that is
/// like the second derivative makes it out of; the better the likeness, the fewer the steps.
pub(super) fn minimise(
    start: Vec<f64>,
    tolerance: f64,
    max_iterations: usize,
    solve: &dyn Fn(&mut [f64]),
    mut f: impl FnMut(&[f64], &mut [f64]) -> f64,
) -> Minimum {
    let n = start.len();
    let (mut x, mut gradient) = (start, vec![0.0; n]);
    let mut value = f(&x, &mut gradient);
    let mut history: VecDeque<Pair> = VecDeque::new();
    let (mut next, mut next_gradient) = (vec![0.0; n], vec![0.0; n]);
    let mut iterations = 0;
    while largest(&gradient) > tolerance && iterations < max_iterations {
        let direction = descent(&gradient, &history, solve);
        let slope = dot(&direction, &gradient);
        // The first step has no curvature to go by.
        let mut step = if history.is_empty() { 1.0 / largest(&gradient).max(1.0) } else { 1.0 };
        let (mut low, mut high) = (0.0, f64::INFINITY);
        let mut found = None;
        for _ in 0..LINE_STEPS {
            next.copy_from_slice(&x);
            add_scaled(&mut next, step, &direction);
            let there = f(&next, &mut next_gradient);
            // Near the minimum differences of values drown in rounding; the slope still tells.
            let slack = 1e-14 * value.abs();
            if there.is_nan() || there > value + C1 * step * slope + slack {
                high = step;
            } else if dot(&direction, &next_gradient) < C2 * slope {
                low = step;
            } else {
                found = Some(there);
                break;
            }
            step = if high.is_finite() { f64::midpoint(low, high) } else { 2.0 * low };
        }
        let Some(there) = found else { break };
        let pair = Pair::new(&x, &next, &gradient, &next_gradient);
        std::mem::swap(&mut x, &mut next);
        std::mem::swap(&mut gradient, &mut next_gradient);
        value = there;
        iterations += 1;
        if let Some(pair) = pair {
            history.push_back(pair);
            if history.len() > MEMORY {
                history.pop_front();
            }
        }
    }
    Minimum { gradient: largest(&gradient), at: x, iterations }
}

/// A step `s`, the gradient's change `y` along it, and `1 / (s · y)`.
struct Pair {
    s: Vec<f64>,
    y: Vec<f64>,
    rho: f64,
}

impl Pair {
    /// `None` where rounding hides the curvature.
    fn new(x: &[f64], next: &[f64], gradient: &[f64], next_gradient: &[f64]) -> Option<Self> {
        let minus = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a - b).collect::<Vec<f64>>();
        let (s, y) = (minus(next, x), minus(next_gradient, gradient));
        let curvature = dot(&s, &y);
        (curvature > 1e-16 * dot(&y, &y)).then(|| Self { rho: 1.0 / curvature, s, y })
    }
}

/// The two-loop recursion.
fn descent(gradient: &[f64], history: &VecDeque<Pair>, solve: &dyn Fn(&mut [f64])) -> Vec<f64> {
    let mut q: Vec<f64> = gradient.iter().map(|g| -g).collect();
    let mut alphas = Vec::with_capacity(history.len());
    for Pair { s, y, rho } in history.iter().rev() {
        let alpha = rho * dot(s, &q);
        add_scaled(&mut q, -alpha, y);
        alphas.push(alpha);
    }
    solve(&mut q);
    if let Some(Pair { y, rho, .. }) = history.back() {
        let mut solved = y.clone();
        solve(&mut solved);
        let scale = 1.0 / (rho * dot(y, &solved));
        for q in &mut q {
            *q *= scale;
        }
    }
    for (Pair { s, y, rho }, alpha) in history.iter().zip(alphas.into_iter().rev()) {
        let beta = rho * dot(y, &q);
        add_scaled(&mut q, alpha - beta, s);
    }
    q
}

fn largest(x: &[f64]) -> f64 {
    x.iter().fold(0.0, |most, x| x.abs().max(most))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_badly_scaled_quadratic_is_solved() {
        let scales: Vec<f64> = (0..30).map(|i| 10f64.powf(f64::from(i) / 6.0)).collect();
        let f = |x: &[f64], g: &mut [f64]| {
            let mut value = 0.0;
            for (i, (x, scale)) in x.iter().zip(&scales).enumerate() {
                let off = x - i as f64;
                value += 0.5 * scale * off * off;
                g[i] = scale * off;
            }
            value
        };
        // Alike to a factor of three.
        let solve = |x: &mut [f64]| {
            x.iter_mut().zip(&scales).enumerate().for_each(|(i, (x, scale))| *x /= scale * (1 + i % 3) as f64);
        };
        let found = minimise(vec![0.0; 30], 1e-9, 100, &solve, f);
        assert!(found.gradient <= 1e-9 && found.iterations < 40, "{found:?}");
        assert!(found.at.iter().enumerate().all(|(i, x)| (x - i as f64).abs() < 1e-8));
    }

    #[test]
    fn a_narrow_valley_is_followed() {
        let rosenbrock = |x: &[f64], g: &mut [f64]| {
            let (a, b) = (x[0], x[1]);
            g[0] = -2.0 * (1.0 - a) - 400.0 * a * (b - a * a);
            g[1] = 200.0 * (b - a * a);
            (1.0 - a).powi(2) + 100.0 * (b - a * a).powi(2)
        };
        let found = minimise(vec![-1.2, 1.0], 1e-10, 500, &|_: &mut [f64]| {}, rosenbrock);
        assert!((found.at[0] - 1.0).abs() < 1e-8 && (found.at[1] - 1.0).abs() < 1e-8, "{found:?}");
    }
}
