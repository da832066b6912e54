//! The trainable tensors. Gradients and Adam's moments have the same shapes, so they share the type.

use rand::Rng;
use rayon::prelude::*;

use super::settings::TrainArchitecture;
use crate::base::rng;
use crate::ops::squared_norm;

/// Weights of a dictionary in training. Both matrices are `[f, d]`, one row a feature, so that everything that
/// concerns a feature is contiguous.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Parameters {
    /// `d`.
    pub(super) width: usize,
    /// Encoder, transposed: `[f, d]`.
    pub(super) w_enc: Vec<f32>,
    /// `[f]`; of a gated dictionary the gate's.
    pub(super) b_enc: Vec<f32>,
    /// Decoder, `[f, d]`.
    pub(super) w_dec: Vec<f32>,
    /// `[d]`.
    pub(super) b_dec: Vec<f32>,
    /// The architecture's own tensors, `[f]` each, by SAELens' names.
    pub(super) own: Vec<(&'static str, Vec<f32>)>,
}

impl Parameters {
    /// Zeros for `f` features of width `d`.
    pub(super) fn zeros(arch: TrainArchitecture, d: usize, f: usize) -> Self {
        let own = arch.own_tensors().iter().map(|name| (*name, vec![0.0; f])).collect();
        let (w_enc, w_dec) = (vec![0.0; f * d], vec![0.0; f * d]);
        Self { width: d, w_enc, b_enc: vec![0.0; f], w_dec, b_dec: vec![0.0; d], own }
    }

    /// Decoder rows of random direction and norm `norm`, encoder the same rows, biases zero (Conerly et al. 2024;
    /// SAELens).
    pub(super) fn initial(
        arch: TrainArchitecture,
        (d, f): (usize, usize),
        norm: f64,
        b_dec: Vec<f32>,
        seed: u64,
    ) -> Self {
        let mut random = rng::stream(seed, "dictionary initialisation");
        let mut w_dec: Vec<f32> = (0..f * d).map(|_| random.random_range(-1.0..1.0)).collect();
        for row in w_dec.chunks_exact_mut(d) {
            let factor = norm as f32 / squared_norm(row).sqrt().max(f32::MIN_POSITIVE);
            for w in row {
                *w *= factor;
            }
        }
        let own = arch.own_tensors().iter().map(|name| (*name, vec![0.0; f])).collect();
        Self { width: d, w_enc: w_dec.clone(), b_enc: vec![0.0; f], w_dec, b_dec, own }
    }

    /// Zeros of the same shapes.
    pub(super) fn zeros_like(&self) -> Self {
        let mut zeros = self.clone();
        zeros.tensors_mut().into_iter().for_each(|tensor| tensor.fill(0.0));
        zeros
    }

    /// Number of features.
    pub(super) fn features(&self) -> usize {
        self.b_enc.len()
    }

    /// The tensors with their names and shapes.
    pub(super) fn tensors(&self) -> Vec<(&'static str, Vec<usize>, &[f32])> {
        let Self { width: d, w_enc, b_enc, w_dec, b_dec, own } = self;
        let f = b_enc.len();
        let mut all = vec![
            ("w_enc", vec![f, *d], w_enc.as_slice()),
            ("b_enc", vec![f], b_enc),
            ("w_dec", vec![f, *d], w_dec),
            ("b_dec", vec![*d], b_dec),
        ];
        all.extend(own.iter().map(|(name, values)| (*name, vec![f], values.as_slice())));
        all
    }

    /// The tensors, mutable, in the order of [`Parameters::tensors`].
    pub(super) fn tensors_mut(&mut self) -> Vec<&mut Vec<f32>> {
        let Self { width: _, w_enc, b_enc, w_dec, b_dec, own } = self;
        let mut all = vec![w_enc, b_enc, w_dec, b_dec];
        all.extend(own.iter_mut().map(|(_, values)| values));
        all
    }

    /// Norm of each decoder row, `[f]`.
    pub(super) fn decoder_norms(&self) -> Vec<f32> {
        self.w_dec.par_chunks_exact(self.width).map(|row| squared_norm(row).sqrt()).collect()
    }

    /// The encoder as SAELens stores it, `[d, f]`.
    pub(super) fn w_enc_by_input(&self) -> Vec<f32> {
        let (d, f) = (self.width, self.features());
        let mut w_enc = vec![0.0; d * f];
        w_enc.par_chunks_exact_mut(f).enumerate().for_each(|(i, row)| {
            row.iter_mut().zip(self.w_enc[i..].iter().step_by(d)).for_each(|(to, from)| *to = *from);
        });
        w_enc
    }
}

/// Everything that a training step changes.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct State {
    /// The weights.
    pub(super) weights: Parameters,
    /// Adam's first moments.
    pub(super) first: Parameters,
    /// Adam's second moments.
    pub(super) second: Parameters,
    /// Steps taken.
    pub(super) step: u64,
    /// Running mean of the least activation that batch-wide selection let through (BatchTopK, Matryoshka).
    pub(super) threshold: f64,
    /// What the penalty's coefficient is multiplied by after its exponent has moved (p-annealing).
    pub(super) penalty_scale: f64,
}

impl State {
    /// The start of training from `weights`.
    pub(super) fn new(weights: Parameters) -> Self {
        let zeros = weights.zeros_like();
        Self { first: zeros.clone(), second: zeros, weights, step: 0, threshold: 0.0, penalty_scale: 1.0 }
    }
}
