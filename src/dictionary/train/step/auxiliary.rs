//! Terms of the loss that keep features alive.

use rayon::prelude::*;

use super::super::operand::Precision;
use super::super::parameters::Parameters;
use super::Batch;
use super::pick::{self, Encoder};
use crate::dictionary::SparseCodes;
use crate::dictionary::metrics::column_sums;
use crate::ops::{add_scaled, dot};

/// `AuxK` (Gao et al. 2024, appendix A.2): the dead features with the largest pre-activations, of either sign,
/// reconstruct what the living ones leave over. Scaled down, as in SAELens, where fewer than `k_aux` are dead.
pub(super) struct Auxiliary {
    /// Chosen pre-activations.
    pub(super) codes: SparseCodes,
    /// What its squared error is multiplied by.
    pub(super) weight: f32,
}

impl Auxiliary {
    /// The choice of a batch; `None` where nothing is dead or the coefficient is zero.
    pub(super) fn new<E: Precision>(
        batch: &Batch<'_, E>,
        dead: &[u32],
        coefficient: f64,
        k_aux: usize,
    ) -> Option<Self> {
        if dead.is_empty() || coefficient == 0.0 || k_aux == 0 {
            return None;
        }
        let (weights, bias) = gathered(batch.weights, dead);
        let encoder = Encoder::<E>::of(&batch.left, &weights, &bias, batch.d);
        let mut codes = pick::top_of_rows(&encoder, batch.n, k_aux.min(dead.len()), f32::NEG_INFINITY);
        for feature in &mut codes.features {
            *feature = dead[*feature as usize];
        }
        codes.d_sae = batch.f;
        let share = (dead.len() as f64 / k_aux as f64).min(1.0);
        Some(Self { codes, weight: (coefficient * share) as f32 })
    }
}

/// Encoder rows and biases of `features`.
fn gathered(weights: &Parameters, features: &[u32]) -> (Vec<f32>, Vec<f32>) {
    let d = weights.shape.d_in;
    let rows = features.iter().flat_map(|&f| &weights.w_enc[f as usize * d..][..d]).copied().collect();
    (rows, features.iter().map(|&f| weights.b_enc[f as usize]).collect())
}

/// Anthropic's loss on the pre-activations of `dead` features, `c · mean_b Σ_f max(θ_f − u_f, 0) ‖W_dec,f‖`, which
/// pulls them up to their thresholds wherever they are below. Adds its gradients; gives its value.
///
/// A dead feature is below its threshold on almost every row, so sums over those rows are the sums over all rows less
/// those over the few others.
pub(super) fn pre_activation_loss<E: Precision>(
    batch: &Batch<'_, E>,
    threshold: &[f32],
    dead: &[u32],
    coefficient: f64,
    gradients: &mut Parameters,
) -> f64 {
    let (d, n) = (batch.d, batch.n);
    let (weights, bias) = gathered(batch.weights, dead);
    let encoder = Encoder::<E>::of(&batch.left, &weights, &bias, d);
    let thresholds: Vec<f32> = dead.iter().map(|&f| threshold[f as usize]).collect();
    // At the threshold itself the loss is flat, so entries just below it count as above.
    let above = pick::above(&encoder, n, &thresholds).by_feature();
    let centered: Vec<f32> = batch.centered.par_iter().map(|x| x.widen()).collect();
    let all: Vec<f32> = column_sums(&centered, d).into_iter().map(|sum| sum as f32).collect();
    let factor = (coefficient / n as f64) as f32;
    let mut loss = 0.0;
    for (i, &feature) in dead.iter().enumerate() {
        let f = feature as usize;
        let (rows, _) = above.feature(i);
        let mut below = all.clone();
        for &row in rows {
            add_scaled(&mut below, -1.0, &centered[row as usize * d..][..d]);
        }
        let count = (n - rows.len()) as f32;
        let w_enc = &weights[i * d..(i + 1) * d];
        let missing = count * (thresholds[i] - bias[i]) - dot(w_enc, &below);
        let norm = batch.norms[f];
        loss += f64::from(factor * missing * norm);
        add_scaled(&mut gradients.w_enc[f * d..(f + 1) * d], -factor * norm, &below);
        gradients.b_enc[f] -= factor * norm * count;
        if !batch.weights.shape.transcoder {
            add_scaled(&mut gradients.b_dec, factor * norm * count, w_enc);
        }
        let slope = factor * missing / norm.max(f32::MIN_POSITIVE);
        let row = f * batch.decoder_width()..(f + 1) * batch.decoder_width();
        add_scaled(&mut gradients.w_dec[row.clone()], slope, &batch.weights.w_dec[row]);
        if let Some((_, own)) = gradients.own.first_mut() {
            own[f] += factor * norm * count;
        }
    }
    loss
}
