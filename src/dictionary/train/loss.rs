//! The loss and its gradients.
//!
//! ```text
//! u = (x − b_dec) W_enc + b_enc      z = max(u, 0)      x̂ = z W_dec + b_dec
//! L = mean_b Σ_d (x̂ − x)² + λ · mean_b Σ_f z_f ‖W_dec,f‖
//! ```
//!
//! With `n` rows, `g = 2 (x̂ − x) / n` and everything below over active pairs only:
//!
//! ```text
//! ∂L/∂u_bf     = g_b · W_dec,f + (λ/n) ‖W_dec,f‖
//! ∂L/∂W_dec,f  = Σ_b z_bf g_b + (λ/n) Σ_b z_bf · W_dec,f / ‖W_dec,f‖
//! ∂L/∂W_enc,f  = Σ_b ∂L/∂u_bf · (x_b − b_dec)
//! ∂L/∂b_enc,f  = Σ_b ∂L/∂u_bf
//! ∂L/∂b_dec    = Σ_b g_b − Σ_f ∂L/∂b_enc,f · W_enc,f
//! ```
//!
//! The penalty weighs each activation by its decoder norm, so the loss cannot be lowered by moving scale from codes
//! to decoder, and no norm constraint is needed (Conerly et al. 2024, "Update on how we train SAEs").

/// The two terms of the loss of one batch.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Loss {
    /// `mean_b Σ_d (x̂ − x)²`.
    pub(super) mse: f64,
    /// `mean_b Σ_f z_f ‖W_dec,f‖`, without its coefficient.
    pub(super) l1: f64,
}

impl Loss {
    /// `L` with penalty weight `l1_coefficient`.
    pub(super) fn total(self, l1_coefficient: f64) -> f64 {
        self.mse + l1_coefficient * self.l1
    }
}

/// The first formula of the module, number by number in `f64`.
#[cfg(test)]
pub(super) fn naive(weights: &super::parameters::Parameters, x: &[f32]) -> Loss {
    let (d, f) = (weights.width, weights.features());
    let n = x.len() / d;
    let of = |w: &[f32], i: usize| f64::from(w[i]);
    let mut loss = Loss::default();
    for x in x.chunks_exact(d) {
        let mut error: Vec<f64> = (0..d).map(|i| of(&weights.b_dec, i) - of(x, i)).collect();
        for j in 0..f {
            let inner = |i: usize| (of(x, i) - of(&weights.b_dec, i)) * of(&weights.w_enc, j * d + i);
            let z = ((0..d).map(inner).sum::<f64>() + of(&weights.b_enc, j)).max(0.0);
            let row = &weights.w_dec[j * d..][..d];
            loss.l1 += z * row.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>().sqrt() / n as f64;
            error.iter_mut().zip(row).for_each(|(e, w)| *e += z * f64::from(*w));
        }
        loss.mse += error.iter().map(|e| e * e).sum::<f64>() / n as f64;
    }
    loss
}
