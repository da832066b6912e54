//! JumpReLU: `z = max(pre, 0) · [pre > θ]`, strictly greater, so a negative threshold passes no negative value.
//!
//! Rajamanoharan et al. 2024, "Jumping Ahead". BatchTopK and Matryoshka dictionaries are stored as this. SAELens and
//! `dictionary_learning` put the ReLU first; circuit-tracer has none, `z = pre · [pre > θ]`, and a negative threshold
//! passes negative values there ([`emit_identity`](JumpRelu::emit_identity)).

use crate::dictionary::encoder::Scratch;

/// The thresholds.
#[derive(Debug, Clone, PartialEq)]
pub struct JumpRelu {
    /// `θ`, `[f]`.
    pub threshold: Vec<f32>,
}

impl JumpRelu {
    pub(super) fn emit(&self, product: &[f32], bias: &[f32], first: u32, scratch: &mut Scratch) -> usize {
        self.emit_where(product, bias, first, scratch, |pre, threshold| pre > threshold.max(0.0))
    }

    pub(super) fn emit_identity(&self, product: &[f32], bias: &[f32], first: u32, scratch: &mut Scratch) -> usize {
        self.emit_where(product, bias, first, scratch, |pre, threshold| pre > threshold && pre != 0.0)
    }

    fn emit_where(
        &self,
        product: &[f32],
        bias: &[f32],
        first: u32,
        scratch: &mut Scratch,
        passes: impl Fn(f32, f32) -> bool,
    ) -> usize {
        let thresholds = &self.threshold[first as usize..][..product.len()];
        let mut kept = 0;
        for (i, ((product, bias), threshold)) in product.iter().zip(bias).zip(thresholds).enumerate() {
            let pre = product + bias;
            if passes(pre, *threshold) {
                scratch.features[kept] = first + i as u32;
                scratch.values[kept] = pre;
                kept += 1;
            }
        }
        kept
    }
}
