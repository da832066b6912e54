//! Gated: `z = [p + b_gate > 0] · max(e^{r_mag} p + b_mag, 0)` with the one product `p = (x − b_dec) W_enc`.
//!
//! Rajamanoharan et al. 2024, "Improving Dictionary Learning with Gated Sparse Autoencoders": the magnitude's encoder
//! is the gate's with each column scaled by `e^{r_mag}`, so one product serves both. `b_gate` is the dictionary's
//! `b_enc`.

use crate::ops::compact::Picked;

/// The magnitude's own parameters.
#[derive(Debug, Clone, PartialEq)]
pub struct Gated {
    /// `r_mag`, `[f]`.
    r_mag: Vec<f32>,
    /// `b_mag`, `[f]`.
    pub(super) b_mag: Vec<f32>,
    /// `e^{r_mag}`, `[f]`.
    gain: Vec<f32>,
}

impl Gated {
    pub(super) fn new(r_mag: Vec<f32>, b_mag: Vec<f32>) -> Self {
        let gain = r_mag.iter().map(|r| r.exp()).collect();
        Self { r_mag, b_mag, gain }
    }

    /// `r_mag`, `[f]`: log of the factor between the magnitude's encoder and the gate's.
    pub fn r_mag(&self) -> &[f32] {
        &self.r_mag
    }

    /// `b_mag`, `[f]`: bias of the magnitude.
    pub fn b_mag(&self) -> &[f32] {
        &self.b_mag
    }

    pub(super) fn emit(&self, product: &[f32], bias: &[f32], first: u32, row: &mut Picked) {
        let range = first as usize..first as usize + product.len();
        let magnitudes = self.gain[range.clone()].iter().zip(&self.b_mag[range]);
        for (i, ((product, b_gate), (gain, b_mag))) in product.iter().zip(bias).zip(magnitudes).enumerate() {
            let magnitude = product * gain + b_mag;
            if product + b_gate > 0.0 && magnitude > 0.0 {
                row.push(first + i as u32, magnitude);
            }
        }
    }
}
