//! TopK: `z = max(top_k(pre), 0)` over each row; AbsTopK: `z = top_k(|pre|) · sign(pre)`, so that features fire in both
//! directions.
//!
//! Gao et al. 2024, "Scaling and evaluating sparse autoencoders"; "AbsTopK: Rethinking Sparse Autoencoders For
//! Bidirectional Features", 2025. Of equal values the lower feature wins.

use std::borrow::Cow;

use crate::dictionary::normalize::row_norms;
use crate::ops::compact::{Limit, Picked};

/// `k`, and the decoder norms where they take part.
#[derive(Debug, Clone, PartialEq)]
pub struct TopK {
    k: usize,
    /// `‖W_dec,f‖`: multiplies pre-activations before the selection and divides activations before decoding.
    norms: Option<Vec<f32>>,
}

impl TopK {
    pub(super) fn new(k: usize, w_dec: Option<&[f32]>, d_out: usize) -> Self {
        Self { k, norms: w_dec.map(|w| row_norms(w, d_out)) }
    }

    pub(super) fn decoder_changed(&mut self, w_dec: &[f32], d_out: usize) {
        *self = Self::new(self.k, self.norms.is_some().then_some(w_dec), d_out);
    }

    /// Active features a row.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Whether decoder norms take part.
    pub(super) fn has_norms(&self) -> bool {
        self.norms.is_some()
    }

    pub(super) fn emit(&self, product: &[f32], bias: &[f32], first: u32, row: &mut Picked) {
        let before = row.values.len();
        row.above(product, bias, Limit::Same(0.0), first);
        self.compete(before, row);
    }

    pub(super) fn emit_signed(&self, product: &[f32], bias: &[f32], first: u32, row: &mut Picked) {
        let before = row.values.len();
        for (i, (product, bias)) in product.iter().zip(bias).enumerate() {
            if product + bias != 0.0 {
                row.push(first + i as u32, product + bias);
            }
        }
        self.compete(before, row);
    }

    /// Multiplies the entries from `new` on by their norms, and drops some that can no longer win.
    fn compete(&self, new: usize, row: &mut Picked) {
        if let Some(norms) = &self.norms {
            for (value, feature) in row.values.iter_mut().zip(&row.indices).skip(new) {
                *value *= norms[*feature as usize];
            }
        }
        if row.overfull(self.k) {
            self.reduce(row);
        }
    }

    /// Keeps the `k` entries of largest absolute value, which for positive entries are the largest.
    pub(super) fn reduce(&self, row: &mut Picked) {
        row.keep_largest(self.k, f32::abs);
    }

    pub(super) fn decoder_values<'a>(&self, features: &[u32], values: &'a [f32]) -> Cow<'a, [f32]> {
        match &self.norms {
            None => values.into(),
            Some(norms) => features.iter().zip(values).map(|(f, v)| v / norms[*f as usize]).collect(),
        }
    }
}
