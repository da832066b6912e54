//! The loss of a batch, term by term. The formulas stand with their gradients: the penalties in [`super::method`], the
//! auxiliary terms in `step::auxiliary`.
//!
//! ```text
//! u = (x − b_dec) W_enc + b_enc      z = σ(u)      x̂ = z W_dec + b_dec
//! L = mean_b ‖x̂ − x‖² + λ · mean_b P(S_b) + auxiliary terms
//! ```

/// The terms of the loss of one batch.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Loss {
    /// `mean_b Σ_d (x̂ − x)²`.
    pub(super) mse: f64,
    /// `mean_b P(S_b)`, without its coefficient.
    pub(super) sparsity: f64,
    /// Everything else, coefficients included: what dead features make of the residual, the gate's reconstruction,
    /// the reconstructions of narrower widths.
    pub(super) auxiliary: f64,
}

impl Loss {
    /// `L` with penalty weight `coefficient`.
    pub(super) fn total(self, coefficient: f64) -> f64 {
        self.mse + coefficient * self.sparsity + self.auxiliary
    }

    /// Adds part of a batch.
    pub(super) fn add(&mut self, other: Self) {
        let Self { mse, sparsity, auxiliary } = other;
        self.mse += mse;
        self.sparsity += sparsity;
        self.auxiliary += auxiliary;
    }
}
