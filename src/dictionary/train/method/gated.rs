//! Gated dictionaries (Rajamanoharan et al. 2024, "Improving Dictionary Learning with Gated Sparse Autoencoders"):
//! one encoder, two heads.
//!
//! ```text
//! π = (x − b_dec) W_enc + b_gate         m = (x − b_dec) W_enc · exp(r_mag) + b_mag
//! z = [π > 0] · max(m, 0)                x̂ = z W_dec + b_dec
//! L = ‖x̂ − x‖² + ‖max(π, 0) W_dec + b_dec − x‖² + λ Σ_f max(π_f, 0) ‖W_dec,f‖
//! ```
//!
//! The second term trains the gate, which the first gives no gradient. Its decoder is not detached, as in SAELens; the
//! paper and `dictionary_learning` detach it.

#![expect(clippy::inline_always, reason = "a body must be inlined to be compiled for its caller's instruction set")]

use super::{EntryGradient, Rule};

/// The rule of one step. `pre` is `π`.
#[derive(Debug, Clone, Copy)]
pub(in crate::dictionary::train) struct Gated<'a> {
    /// `‖W_dec,f‖`, `[f]`.
    pub(in crate::dictionary::train) norms: &'a [f32],
    /// `b_gate`, `[f]`.
    pub(in crate::dictionary::train) b_gate: &'a [f32],
    /// `exp(r_mag)`, `[f]`.
    pub(in crate::dictionary::train) gain: &'a [f32],
    /// `b_mag`, `[f]`.
    pub(in crate::dictionary::train) b_mag: &'a [f32],
}

impl Gated<'_> {
    /// `m`, and its derivative by `π`.
    #[inline(always)]
    fn magnitude(&self, f: usize, pre: f32) -> (f32, f32) {
        let gain = self.gain[f];
        ((pre - self.b_gate[f]) * gain + self.b_mag[f], gain)
    }
}

impl Rule for Gated<'_> {
    const CHANNELS: usize = 2;

    fn limit(&self, _: usize) -> f32 {
        0.0
    }

    #[inline(always)]
    fn values(&self, f: usize, pre: f32) -> [f32; 2] {
        if pre > 0.0 { [self.magnitude(f, pre).0.max(0.0), pre] } else { [0.0; 2] }
    }

    #[inline(always)]
    fn size(&self, f: usize, pre: f32) -> f32 {
        pre.max(0.0) * self.norms[f]
    }

    #[inline(always)]
    fn gradient(&self, f: usize, pre: f32, [pull, gate_pull]: [f32; 2], push: f32) -> EntryGradient {
        if pre <= 0.0 {
            return EntryGradient::default();
        }
        let (magnitude, gain) = self.magnitude(f, pre);
        let through = if magnitude > 0.0 { pull } else { 0.0 };
        let gate = gate_pull + push * self.norms[f];
        EntryGradient {
            encoder: gate + through * gain,
            bias: gate,
            norm: push * pre,
            own: [through * (pre - self.b_gate[f]) * gain, through],
        }
    }
}
