//! JumpReLU: `z = max(pre, 0) · [pre > θ]`, strictly greater, so a negative threshold passes no negative value.
//!
//! Rajamanoharan et al. 2024, "Jumping Ahead". BatchTopK and Matryoshka dictionaries are stored as this. SAELens and
//! `dictionary_learning` put the ReLU first; circuit-tracer has none, `z = pre · [pre > θ]`, and a negative threshold
//! passes negative values there ([`emit_identity`](JumpRelu::emit_identity)).

use crate::ops::compact::Picked;

/// The thresholds.
#[derive(Debug, Clone, PartialEq)]
pub struct JumpRelu {
    /// `θ`, `[f]`.
    pub threshold: Vec<f32>,
}

impl JumpRelu {
    pub(super) fn emit(&self, product: &[f32], bias: &[f32], first: u32, row: &mut Picked) {
        self.emit_where(product, bias, first, row, |pre, threshold| pre > threshold.max(0.0));
    }

    pub(super) fn emit_identity(&self, product: &[f32], bias: &[f32], first: u32, row: &mut Picked) {
        self.emit_where(product, bias, first, row, |pre, threshold| pre > threshold && pre != 0.0);
    }

    fn emit_where(
        &self,
        product: &[f32],
        bias: &[f32],
        first: u32,
        row: &mut Picked,
        passes: impl Fn(f32, f32) -> bool,
    ) {
        let thresholds = &self.threshold[first as usize..][..product.len()];
        for (i, ((product, bias), threshold)) in product.iter().zip(bias).zip(thresholds).enumerate() {
            let pre = product + bias;
            if passes(pre, *threshold) {
                row.push(first + i as u32, pre);
            }
        }
    }
}
