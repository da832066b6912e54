//! What tells architectures apart in training, entry by entry: which pre-activations matter, what they decode to, how
//! the penalty sees them, and the gradient that comes back. One file each.
//!
//! With `n` rows, `u` a pre-activation, `s_c = g_c · W_dec,f` the pull of the error of channel `c` on it, and
//! `S = Σ_f size(u_f)` of a row, the loss of a row is `Σ_c ‖x̂_c − x‖² + λ P(S)`. The formulas are SAELens' (version
//! 6.54) unless a file says otherwise.

#![expect(clippy::inline_always, reason = "a body must be inlined to be compiled for its caller's instruction set")]

mod gated;
mod jumprelu;
mod relu;

pub(super) use gated::Gated;
pub(super) use jumprelu::JumpRelu;
pub use jumprelu::SparsityLoss;
pub(super) use relu::{L1, Relu};

/// What one entry passes back.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct EntryGradient {
    /// To `(x − b_dec) · W_enc,f`.
    pub(super) encoder: f32,
    /// To `b_enc,f`.
    pub(super) bias: f32,
    /// To `‖W_dec,f‖`.
    pub(super) norm: f32,
    /// To the architecture's own tensors, in their order.
    pub(super) own: [f32; 2],
}

impl EntryGradient {
    /// Adds another entry's.
    #[inline(always)]
    pub(super) fn add(&mut self, other: Self) {
        let Self { encoder, bias, norm, own } = other;
        self.encoder += encoder;
        self.bias += bias;
        self.norm += norm;
        self.own[0] += own[0];
        self.own[1] += own[1];
    }
}

/// An architecture that looks at one entry at a time.
pub(super) trait Rule: Sync {
    /// Reconstructions that the loss has: 1, or 2.
    const CHANNELS: usize;

    /// Entries of feature `f` at or below this have neither value nor gradient.
    fn limit(&self, f: usize) -> f32;

    /// What the decoder row of `f` is multiplied by, a channel; the first is the activation.
    fn values(&self, f: usize, pre: f32) -> [f32; 2];

    /// What the entry adds to its row's `S`.
    fn size(&self, f: usize, pre: f32) -> f32;

    /// `P(S)` and its derivative.
    fn penalty(&self, size: f64) -> (f64, f64) {
        (size, 1.0)
    }

    /// The gradient of an entry, with `pulls` of the channels and `push = λ/n · P'(S)`.
    fn gradient(&self, f: usize, pre: f32, pulls: [f32; 2], push: f32) -> EntryGradient;
}

/// Entries that were chosen before: their value is the pre-activation, and nothing is penalised.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chosen;

impl Rule for Chosen {
    const CHANNELS: usize = 1;

    fn limit(&self, _: usize) -> f32 {
        f32::NEG_INFINITY
    }

    fn values(&self, _: usize, pre: f32) -> [f32; 2] {
        [pre, 0.0]
    }

    fn size(&self, _: usize, _: f32) -> f32 {
        0.0
    }

    fn gradient(&self, _: usize, _: f32, [pull, _]: [f32; 2], _: f32) -> EntryGradient {
        EntryGradient { encoder: pull, bias: pull, ..EntryGradient::default() }
    }
}
