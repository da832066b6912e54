//! The trainable tensors. Gradients and Adam's moments have the same four shapes, so they share the type.

use rand::Rng;
use rayon::prelude::*;

use crate::base::{Result, rng};
use crate::dictionary::{Activation, Dictionary, DictionaryConfig, scale};
use crate::ops::squared_norm;

/// Weights of a dictionary in training. Both matrices are `[f, d]`, one row a feature, so that everything that
/// concerns a feature is contiguous.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Parameters {
    /// `d`.
    pub(super) width: usize,
    /// Encoder, transposed: `[f, d]`.
    pub(super) w_enc: Vec<f32>,
    /// `[f]`.
    pub(super) b_enc: Vec<f32>,
    /// Decoder, `[f, d]`.
    pub(super) w_dec: Vec<f32>,
    /// `[d]`.
    pub(super) b_dec: Vec<f32>,
}

impl Parameters {
    /// Zeros for `f` features of width `d`.
    pub(super) fn zeros(d: usize, f: usize) -> Self {
        Self { width: d, w_enc: vec![0.0; f * d], b_enc: vec![0.0; f], w_dec: vec![0.0; f * d], b_dec: vec![0.0; d] }
    }

    /// Decoder rows of random direction and norm `norm`, encoder the same rows, encoder bias zero (Conerly et al.
    /// 2024; SAELens).
    pub(super) fn initial(d: usize, f: usize, norm: f64, b_dec: Vec<f32>, seed: u64) -> Self {
        let mut random = rng::stream(seed, "dictionary initialisation");
        let mut w_dec: Vec<f32> = (0..f * d).map(|_| random.random_range(-1.0..1.0)).collect();
        for row in w_dec.chunks_exact_mut(d) {
            let factor = norm as f32 / squared_norm(row).sqrt().max(f32::MIN_POSITIVE);
            for w in row {
                *w *= factor;
            }
        }
        Self { width: d, w_enc: w_dec.clone(), b_enc: vec![0.0; f], w_dec, b_dec }
    }

    /// Number of features.
    pub(super) fn features(&self) -> usize {
        self.b_enc.len()
    }

    /// The four tensors with their names and shapes.
    pub(super) fn tensors(&self) -> [(&'static str, Vec<usize>, &[f32]); 4] {
        let Self { width: d, w_enc, b_enc, w_dec, b_dec } = self;
        let f = b_enc.len();
        [
            ("w_enc", vec![f, *d], w_enc),
            ("b_enc", vec![f], b_enc),
            ("w_dec", vec![f, *d], w_dec),
            ("b_dec", vec![*d], b_dec),
        ]
    }

    /// The four tensors, mutable, in the order of [`Parameters::tensors`].
    pub(super) fn tensors_mut(&mut self) -> [&mut Vec<f32>; 4] {
        let Self { width: _, w_enc, b_enc, w_dec, b_dec } = self;
        [w_enc, b_enc, w_dec, b_dec]
    }

    /// Norm of each decoder row, `[f]`.
    pub(super) fn decoder_norms(&self) -> Vec<f32> {
        self.w_dec.par_chunks_exact(self.width).map(|row| squared_norm(row).sqrt()).collect()
    }

    /// The dictionary of unscaled rows that these weights, trained on rows `scale · x`, amount to.
    pub(super) fn to_dictionary(&self, config: DictionaryConfig, factor: f32) -> Result<Dictionary> {
        let (d, f) = (self.width, self.features());
        let mut w_enc = vec![0.0; d * f];
        w_enc.par_chunks_exact_mut(f).enumerate().for_each(|(i, row)| {
            row.iter_mut().zip(self.w_enc[i..].iter().step_by(d)).for_each(|(to, from)| *to = *from);
        });
        let (b_enc, w_dec, b_dec) = (self.b_enc.clone(), self.w_dec.clone(), self.b_dec.clone());
        let mut dictionary = Dictionary::new(config, w_enc, b_enc, w_dec, b_dec, Activation::Relu)?;
        scale::fold(&mut dictionary, factor);
        Ok(dictionary)
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
}

impl State {
    /// The start of training from `weights`.
    pub(super) fn new(weights: Parameters) -> Self {
        let zeros = Parameters::zeros(weights.width, weights.features());
        Self { first: zeros.clone(), second: zeros, weights, step: 0 }
    }
}
