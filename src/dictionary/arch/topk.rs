//! TopK: `z = max(top_k(pre), 0)` over each row.
//!
//! Gao et al. 2024, "Scaling and evaluating sparse autoencoders". Of equal values the lower feature wins.

use std::borrow::Cow;

use crate::dictionary::encoder::Scratch;
use crate::ops::{sparse, squared_norm};

/// `k`, and the decoder norms where they take part.
#[derive(Debug, Clone, PartialEq)]
pub struct TopK {
    k: usize,
    /// `‖W_dec,f‖`: multiplies pre-activations before the selection and divides activations before decoding.
    norms: Option<Vec<f32>>,
}

impl TopK {
    pub(super) fn new(k: usize, w_dec: Option<&[f32]>, d_out: usize) -> Self {
        let norms = w_dec.map(|w| w.chunks_exact(d_out.max(1)).map(|row| squared_norm(row).sqrt()).collect());
        Self { k, norms }
    }

    pub(super) fn decoder_changed(&mut self, w_dec: &[f32], d_out: usize) {
        *self = Self::new(self.k, self.norms.is_some().then_some(w_dec), d_out);
    }

    pub(super) fn emit(&self, product: &[f32], bias: &[f32], first: u32, scratch: &mut Scratch) -> usize {
        let kept = sparse::compact_positive(product, bias, first, &mut scratch.features, &mut scratch.values, 0);
        if let Some(norms) = &self.norms {
            for (value, feature) in scratch.values.iter_mut().zip(&scratch.features).take(kept) {
                *value *= norms[*feature as usize];
            }
        }
        kept
    }

    pub(super) fn finish_row(&self, features: &mut Vec<u32>, values: &mut Vec<f32>) {
        if features.len() <= self.k {
            return;
        }
        let mut order: Vec<u32> = (0..features.len() as u32).collect();
        if self.k > 0 {
            let better = |a: &u32, b: &u32| values[*b as usize].total_cmp(&values[*a as usize]).then(a.cmp(b));
            order.select_nth_unstable_by(self.k - 1, better);
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
