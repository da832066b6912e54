//! Gradient clipping by global norm, then Adam (Kingma and Ba 2015) with β = (0.9, 0.999) and ε = 1e-8.

use rayon::prelude::*;

use super::parameters::{Parameters, State};
use crate::ops::{self, AdamStep, squared_norm};

/// Gradients longer than this are scaled down to it.
pub(super) const MAX_GRADIENT_NORM: f64 = 1.0;
/// Decay of the first moments.
pub(super) const BETA1: f64 = 0.9;
/// Decay of the second moments.
pub(super) const BETA2: f64 = 0.999;
/// Keeps the divisor away from zero.
pub(super) const EPSILON: f64 = 1e-8;

/// Weights that one task updates.
const CHUNK: usize = 1 << 14;

/// `√Σ g²` over all gradients.
pub(super) fn global_norm(gradients: &Parameters) -> f64 {
    let squares = gradients
        .tensors()
        .into_iter()
        .flat_map(|(_, _, g)| g.par_chunks(CHUNK).map(|chunk| f64::from(squared_norm(chunk))).collect::<Vec<_>>());
    squares.sum::<f64>().sqrt()
}

/// What multiplies gradients of global norm `norm`.
pub(super) fn clip_factor(norm: f64) -> f64 {
    // PyTorch's `clip_grad_norm_` adds the same 1e-6.
    (MAX_GRADIENT_NORM / (norm + 1e-6)).min(1.0)
}

/// One update of all weights by gradients of global norm `norm`. Thresholds stay at 0 or above: below, they would let
/// negative pre-activations through.
pub(super) fn update(state: &mut State, gradients: &Parameters, norm: f64, learning_rate: f64) {
    state.step += 1;
    let step = scalars(state.step, learning_rate, clip_factor(norm));
    let State { weights, first, second, .. } = state;
    let moments = first.tensors_mut().into_iter().zip(second.tensors_mut());
    for ((w, (m, v)), (_, _, g)) in weights.tensors_mut().into_iter().zip(moments).zip(gradients.tensors()) {
        w.par_chunks_mut(CHUNK)
            .zip(m.par_chunks_mut(CHUNK))
            .zip(v.par_chunks_mut(CHUNK))
            .zip(g.par_chunks(CHUNK))
            .for_each(|(((w, m), v), g)| ops::adam(w, m, v, g, step));
    }
    if let Some((_, threshold)) = weights.own.iter_mut().find(|(name, _)| *name == "threshold") {
        for t in threshold {
            *t = t.max(0.0);
        }
    }
}

/// Adam's scalars at step `t`, counted from 1.
pub(super) fn scalars(t: u64, learning_rate: f64, gradient_scale: f64) -> AdamStep {
    let t = i32::try_from(t).unwrap_or(i32::MAX);
    AdamStep {
        gradient_scale: gradient_scale as f32,
        beta1: BETA1 as f32,
        beta2: BETA2 as f32,
        step_size: (learning_rate / (1.0 - BETA1.powi(t))) as f32,
        root_correction: (1.0 / (1.0 - BETA2.powi(t)).sqrt()) as f32,
        epsilon: EPSILON as f32,
    }
}

#[cfg(test)]
mod tests {
    use super::super::parameters::Shape;
    use super::*;
    use crate::dictionary::train::TrainArchitecture;

    #[test]
    fn long_gradients_are_clipped_and_short_ones_are_not() {
        assert_eq!(clip_factor(0.5), 1.0);
        assert!((clip_factor(4.0) - 0.25).abs() < 1e-6);
        let mut gradients = Parameters::zeros(TrainArchitecture::Relu, Shape::autoencoder(2, 1));
        gradients.w_dec = vec![3.0, 0.0];
        gradients.b_dec = vec![0.0, 4.0];
        assert!((global_norm(&gradients) - 5.0).abs() < 1e-6);
    }

    #[test]
    fn every_tensor_moves_against_its_gradient() {
        let mut state = State::new(Parameters::zeros(TrainArchitecture::Gated, Shape::autoencoder(2, 3)));
        let mut gradients = Parameters::zeros(TrainArchitecture::Gated, Shape::autoencoder(2, 3));
        for tensor in gradients.tensors_mut() {
            tensor.fill(0.1);
        }
        update(&mut state, &gradients, 0.5, 0.01);
        for (name, _, values) in state.weights.tensors() {
            assert!(values.iter().all(|w| (w + 0.01).abs() < 1e-5), "{name} {values:?}");
        }
        assert_eq!(state.step, 1);
    }
}
