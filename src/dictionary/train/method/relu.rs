//! ReLU with a penalty on decoder-norm-weighted activations, `v_f = z_f ‖W_dec,f‖`:
//!
//! ```text
//! P = (Σ_f v_f^p)^{1/p}     SAELens' lp_norm, p = 1 unless told otherwise
//! P = Σ_f v_f^p             while the exponent is annealed
//! ```
//!
//! The weight makes the loss blind to moving scale from codes to decoder, so no norm constraint is needed (Conerly et
//! al. 2024, "Update on how we train SAEs"). Annealing `p` from 1 down lets the penalty shrink large activations less
//! (Karvonen et al. 2024, "Measuring Progress in Dictionary Learning", p-annealing).

#![expect(clippy::inline_always, reason = "a body must be inlined to be compiled for its caller's instruction set")]

use super::{EntryGradient, Rule};

/// Keeps the slope of `v^p` finite at 0 (`dictionary_learning`).
const TINY: f32 = 1e-15;

/// The rule of one step with exponent 1. No branch depends on an entry, so that loops over tiles become vector code.
#[derive(Debug, Clone, Copy)]
pub(in crate::dictionary::train) struct L1<'a> {
    /// `‖W_dec,f‖`, `[f]`.
    pub(in crate::dictionary::train) norms: &'a [f32],
}

impl Rule for L1<'_> {
    const CHANNELS: usize = 1;

    fn limit(&self, _: usize) -> f32 {
        0.0
    }

    #[inline(always)]
    fn values(&self, _: usize, pre: f32) -> [f32; 2] {
        [pre.max(0.0), 0.0]
    }

    #[inline(always)]
    fn size(&self, f: usize, pre: f32) -> f32 {
        pre.max(0.0) * self.norms[f]
    }

    #[inline(always)]
    fn gradient(&self, f: usize, pre: f32, [pull, _]: [f32; 2], push: f32) -> EntryGradient {
        let encoder = pull + push * self.norms[f];
        let encoder = if pre > 0.0 { encoder } else { 0.0 };
        EntryGradient { encoder, bias: encoder, norm: push * pre.max(0.0), own: [0.0; 2] }
    }
}

/// The rule of one step with any exponent.
#[derive(Debug, Clone, Copy)]
pub(in crate::dictionary::train) struct Relu<'a> {
    /// `‖W_dec,f‖`, `[f]`.
    pub(in crate::dictionary::train) norms: &'a [f32],
    /// The exponent.
    pub(in crate::dictionary::train) p: f32,
    /// Whether `P` is a norm, with its root taken.
    pub(in crate::dictionary::train) root: bool,
}

impl Rule for Relu<'_> {
    const CHANNELS: usize = 1;

    fn limit(&self, _: usize) -> f32 {
        0.0
    }

    #[inline(always)]
    fn values(&self, _: usize, pre: f32) -> [f32; 2] {
        [pre.max(0.0), 0.0]
    }

    #[inline(always)]
    fn size(&self, f: usize, pre: f32) -> f32 {
        let v = pre.max(0.0) * self.norms[f];
        if v == 0.0 { v } else { (v + TINY).powf(self.p) }
    }

    fn penalty(&self, size: f64) -> (f64, f64) {
        if !self.root || size == 0.0 {
            return (size, 1.0);
        }
        let power = 1.0 / f64::from(self.p);
        (size.powf(power), power * size.powf(power - 1.0))
    }

    #[inline(always)]
    fn gradient(&self, f: usize, pre: f32, [pull, _]: [f32; 2], push: f32) -> EntryGradient {
        if pre <= 0.0 {
            return EntryGradient::default();
        }
        let norm = self.norms[f];
        let slope = push * self.p * (pre * norm + TINY).powf(self.p - 1.0);
        let encoder = pull + slope * norm;
        EntryGradient { encoder, bias: encoder, norm: slope * pre, own: [0.0; 2] }
    }
}
