//! JumpReLU: `z = max(pre, 0) · [pre > θ]`, strictly greater, so a negative threshold passes no negative value.
//!
//! Rajamanoharan et al. 2024, "Jumping Ahead". BatchTopK and Matryoshka dictionaries are stored as this.

use crate::dictionary::encoder::Scratch;

/// The thresholds.
#[derive(Debug, Clone, PartialEq)]
pub struct JumpRelu {
    /// `θ`, `[f]`.
    pub threshold: Vec<f32>,
}

impl JumpRelu {
    pub(super) fn emit(&self, product: &[f32], bias: &[f32], first: u32, scratch: &mut Scratch) -> usize {
        let thresholds = &self.threshold[first as usize..][..product.len()];
        let mut kept = 0;
        for (i, ((product, bias), threshold)) in product.iter().zip(bias).zip(thresholds).enumerate() {
            let pre = product + bias;
            if pre > threshold.max(0.0) {
                scratch.features[kept] = first + i as u32;
                scratch.values[kept] = pre;
                kept += 1;
            }
        }
        kept
    }

    pub(super) fn of_one(&self, feature: u32, pre: f32) -> f32 {
        if pre > self.threshold[feature as usize].max(0.0) { pre } else { 0.0 }
    }
}
