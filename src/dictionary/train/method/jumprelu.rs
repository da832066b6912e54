//! JumpReLU (Rajamanoharan et al. 2024, "Jumping Ahead"): `z = u · [u > θ]`, with thresholds `θ` trained through
//! straight-through estimators of bandwidth `ε`, `r(u) = [|u − θ| < ε/2]`:
//!
//! ```text
//! step:       P = S,  S = Σ_f [u_f > θ_f]             ∂S/∂θ = −r/ε
//! quadratic:  P = (2/T)(S − T)², the same S           (Gemma Scope 2, target T)
//! tanh:       P = S,  S = Σ_f tanh(c z_f ‖W_dec,f‖)   (Anthropic, January 2025)
//! ∂z/∂θ = −(θ/ε) r
//! ```
//!
//! With `ste_to_input` the estimators pass the opposite gradient to `u` as well.

#![expect(clippy::inline_always, reason = "a body must be inlined to be compiled for its caller's instruction set")]

use serde::{Deserialize, Serialize};

use super::{EntryGradient, Rule};
use crate::dictionary::train::settings::Method;

/// The penalty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SparsityLoss {
    /// Number of active features.
    #[default]
    Step,
    /// A saturating function of activations.
    Tanh,
    /// Squared distance of their number from a target.
    Quadratic,
}

/// The rule of one step.
#[derive(Debug, Clone, Copy)]
pub(in crate::dictionary::train) struct JumpRelu<'a> {
    /// `‖W_dec,f‖`, `[f]`.
    pub(in crate::dictionary::train) norms: &'a [f32],
    /// `θ`, `[f]`, none negative.
    pub(in crate::dictionary::train) threshold: &'a [f32],
    /// `ε`.
    pub(in crate::dictionary::train) bandwidth: f32,
    /// Which penalty.
    pub(in crate::dictionary::train) loss: SparsityLoss,
    /// `c` of the tanh.
    pub(in crate::dictionary::train) tanh_scale: f32,
    /// `T` of the quadratic penalty.
    pub(in crate::dictionary::train) target_l0: f64,
    /// Whether estimators reach the encoder.
    pub(in crate::dictionary::train) ste_to_input: bool,
}

impl<'a> JumpRelu<'a> {
    /// The rule of `method`, where that is JumpReLU, with the weights' own tensors.
    pub(in crate::dictionary::train) fn of(
        method: &Method,
        norms: &'a [f32],
        own: &'a [(&'static str, Vec<f32>)],
    ) -> Option<Self> {
        let (Method::JumpRelu { bandwidth, loss, tanh_scale, target_l0, ste_to_input, .. }, [(_, threshold)]) =
            (method, own)
        else {
            return None;
        };
        Some(Self {
            norms,
            threshold,
            bandwidth: *bandwidth as f32,
            loss: *loss,
            tanh_scale: *tanh_scale as f32,
            target_l0: target_l0.unwrap_or(1.0),
            ste_to_input: *ste_to_input,
        })
    }
}

impl Rule for JumpRelu<'_> {
    const CHANNELS: usize = 1;

    fn limit(&self, f: usize) -> f32 {
        self.threshold[f] - self.bandwidth / 2.0
    }

    #[inline(always)]
    fn values(&self, f: usize, pre: f32) -> [f32; 2] {
        [if pre > self.threshold[f] { pre } else { 0.0 }, 0.0]
    }

    #[inline(always)]
    fn size(&self, f: usize, pre: f32) -> f32 {
        if pre <= self.threshold[f] {
            return 0.0;
        }
        match self.loss {
            SparsityLoss::Step | SparsityLoss::Quadratic => 1.0,
            SparsityLoss::Tanh => (self.tanh_scale * pre * self.norms[f]).tanh(),
        }
    }

    fn penalty(&self, size: f64) -> (f64, f64) {
        match self.loss {
            SparsityLoss::Step | SparsityLoss::Tanh => (size, 1.0),
            SparsityLoss::Quadratic => {
                let (away, slope) = (size - self.target_l0, 2.0 / self.target_l0);
                (slope * away * away, 2.0 * slope * away)
            }
        }
    }

    #[inline(always)]
    fn gradient(&self, f: usize, pre: f32, [pull, _]: [f32; 2], push: f32) -> EntryGradient {
        let threshold = self.threshold[f];
        let near = (pre - threshold).abs() < self.bandwidth / 2.0;
        let active = pre > threshold;
        let (mut on_value, mut norm, mut on_count) = (pull, 0.0, 0.0);
        match self.loss {
            SparsityLoss::Step | SparsityLoss::Quadratic => on_count = push,
            SparsityLoss::Tanh => {
                let scale = self.tanh_scale * self.norms[f];
                let z = if active { pre } else { 0.0 };
                let slope = push * (1.0 - (scale * z).tanh().powi(2));
                on_value += slope * scale;
                norm = slope * self.tanh_scale * z;
            }
        }
        let estimate = if near { (threshold * on_value + on_count) / self.bandwidth } else { 0.0 };
        let through = if active { on_value } else { 0.0 };
        let encoder = through + if self.ste_to_input { estimate } else { 0.0 };
        EntryGradient { encoder, bias: encoder, norm, own: [-estimate, 0.0] }
    }
}
