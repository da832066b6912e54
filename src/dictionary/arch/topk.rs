//! TopK: `z = max(top_k(pre), 0)` over each row; AbsTopK: `z = top_k(|pre|) · sign(pre)`, so that features fire in both
//! directions.
//!
//! Gao et al. 2024, "Scaling and evaluating sparse autoencoders"; "AbsTopK: Rethinking Sparse Autoencoders For
//! Bidirectional Features", 2025. Of equal values the lower feature wins.

use std::borrow::Cow;

use crate::dictionary::encoder::Scratch;
use crate::dictionary::normalize::row_norms;
use crate::ops::sparse;

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

    /// Whether decoder norms take part.
    pub(super) fn has_norms(&self) -> bool {
        self.norms.is_some()
    }

    pub(super) fn emit(&self, product: &[f32], bias: &[f32], first: u32, scratch: &mut Scratch) -> usize {
        let kept = sparse::compact_positive(product, bias, first, &mut scratch.features, &mut scratch.values, 0);
        self.rescale(kept, scratch);
        kept
    }

    pub(super) fn emit_signed(&self, product: &[f32], bias: &[f32], first: u32, scratch: &mut Scratch) -> usize {
        let mut kept = 0;
        for (i, (product, bias)) in product.iter().zip(bias).enumerate() {
            scratch.features[kept] = first + i as u32;
            scratch.values[kept] = product + bias;
            kept += usize::from(product + bias != 0.0);
        }
        self.rescale(kept, scratch);
        kept
    }

    fn rescale(&self, kept: usize, scratch: &mut Scratch) {
        if let Some(norms) = &self.norms {
            for (value, feature) in scratch.values.iter_mut().zip(&scratch.features).take(kept) {
                *value *= norms[*feature as usize];
            }
        }
    }

    /// Keeps the `k` entries of largest absolute value, which for positive entries are the largest.
    pub(super) fn finish_row(&self, features: &mut Vec<u32>, values: &mut Vec<f32>) {
        if features.len() <= self.k {
            return;
        }
        let mut order: Vec<u32> = (0..features.len() as u32).collect();
        if self.k > 0 {
            let size = |i: &u32| values[*i as usize].abs();
            order.select_nth_unstable_by(self.k - 1, |a, b| size(b).total_cmp(&size(a)).then(a.cmp(b)));
        }
        order.truncate(self.k);
        order.sort_unstable();
        *features = order.iter().map(|&i| features[i as usize]).collect();
        *values = order.iter().map(|&i| values[i as usize]).collect();
    }

    pub(super) fn decoder_values<'a>(&self, features: &[u32], values: &'a [f32]) -> Cow<'a, [f32]> {
        match &self.norms {
            None => values.into(),
            Some(norms) => features.iter().zip(values).map(|(f, v)| v / norms[*f as usize]).collect(),
        }
    }
}
