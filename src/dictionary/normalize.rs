//! What happens to a row before the encoder, and is undone after the decoder.
//!
//! ```text
//! x' = (x − shift) / divide            x̂ = y · scale + shift
//!
//! center_input             shift = mean(x)                          divide = scale = 1
//! constant_norm_rescale    shift = 0       divide = scale = ‖x‖₂ / √d_in
//! layer_norm               shift = mean(x) divide = σ + 1e-5        scale = σ   (σ with n − 1)
//! ```
//!
//! Formulas are SAELens' (`sae_lens/saes/sae.py`, `_setup_activation_normalization`); centring comes first. Like
//! SAELens, a transcoder normalises its input only: what it writes is another hook's.

use std::borrow::Cow;

use rayon::prelude::*;

use super::config::{DictionaryConfig, NormalizeActivations};
use crate::ops::squared_norm;

/// SAELens' (and OpenAI's) guard against constant rows.
const EPSILON: f32 = 1e-5;
/// Rows that one task handles.
const TASK_ROWS: usize = 256;

/// The transformation of the rows of one dictionary, where it is not the identity.
#[derive(Debug, Clone, Copy)]
pub(super) struct Normalizer {
    kind: NormalizeActivations,
    center: bool,
    d_in: usize,
    /// Whether the output is transformed back.
    autoencoder: bool,
}

/// The three numbers of one row.
#[derive(Debug, Clone, Copy)]
struct RowNorm {
    shift: f32,
    divide: f32,
    scale: f32,
}

impl Normalizer {
    /// `None` where rows are used as they are.
    pub(super) fn of(config: &DictionaryConfig) -> Option<Self> {
        let DictionaryConfig { normalize_activations: kind, center_input: center, d_in, transcoder, .. } = *config;
        let used = matches!(kind, NormalizeActivations::ConstantNormRescale | NormalizeActivations::LayerNorm);
        (d_in > 0 && (used || center)).then_some(Self { kind, center, d_in, autoencoder: !transcoder })
    }

    /// Rows as the encoder takes them, `[n, d_in]`.
    pub(super) fn apply<'a>(&self, x: &'a [f32]) -> Cow<'a, [f32]> {
        let mut out = x.to_vec();
        out.par_chunks_exact_mut(self.d_in).with_min_len(TASK_ROWS).for_each(|row| {
            let RowNorm { shift, divide, .. } = self.row(row);
            for x in row {
                *x = (*x - shift) / divide;
            }
        });
        out.into()
    }

    /// What one unit of decoder output amounts to on each row of `x`, `[n]`; `None` where it is one.
    pub(super) fn output_scales(&self, x: &[f32]) -> Option<Vec<f32>> {
        let rescales = matches!(self.kind, NormalizeActivations::ConstantNormRescale | NormalizeActivations::LayerNorm);
        (rescales && self.autoencoder).then(|| x.chunks_exact(self.d_in).map(|row| self.row(row).scale).collect())
    }

    /// Brings decoder output `y`, `[n, d_in]`, back to the rows `x` that were encoded.
    pub(super) fn undo(&self, x: &[f32], y: &mut [f32]) {
        if !self.autoencoder {
            return;
        }
        let rows = y.par_chunks_exact_mut(self.d_in).zip(x.par_chunks_exact(self.d_in));
        rows.with_min_len(TASK_ROWS).for_each(|(y, x)| {
            let RowNorm { shift, scale, .. } = self.row(x);
            for y in y {
                *y = *y * scale + shift;
            }
        });
    }

    fn row(&self, x: &[f32]) -> RowNorm {
        let n = x.len() as f64;
        let mean = x.iter().map(|x| f64::from(*x)).sum::<f64>() / n;
        let squares = |center: f64| x.iter().map(|x| (f64::from(*x) - center).powi(2)).sum::<f64>();
        match self.kind {
            NormalizeActivations::LayerNorm => {
                let sigma = (squares(mean) / (n - 1.0).max(1.0)).sqrt() as f32;
                RowNorm { shift: mean as f32, divide: sigma + EPSILON, scale: sigma }
            }
            NormalizeActivations::ConstantNormRescale => {
                let shift = if self.center { mean } else { 0.0 };
                let scale = (squares(shift) / n).sqrt() as f32;
                RowNorm { shift: shift as f32, divide: scale.max(f32::MIN_POSITIVE), scale }
            }
            NormalizeActivations::None | NormalizeActivations::ExpectedAverageOnlyIn => {
                RowNorm { shift: if self.center { mean as f32 } else { 0.0 }, divide: 1.0, scale: 1.0 }
            }
        }
    }
}

/// The norms of the rows of a decoder, `[f]`.
pub(super) fn row_norms(w_dec: &[f32], d_out: usize) -> Vec<f32> {
    w_dec.chunks_exact(d_out.max(1)).map(|row| squared_norm(row).sqrt()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dictionary::Architecture;

    fn of(kind: NormalizeActivations, center: bool, d: usize) -> Normalizer {
        let mut config = DictionaryConfig::new(Architecture::Relu, d, 1);
        config.normalize_activations = kind;
        config.center_input = center;
        Normalizer::of(&config).unwrap()
    }

    #[test]
    fn rows_are_normalised_as_written_and_brought_back() {
        let x = [1.0, 2.0, 3.0, 6.0];
        let layer = of(NormalizeActivations::LayerNorm, false, 4);
        let sigma = (14.0f32 / 3.0).sqrt();
        let expected: Vec<f32> = x.iter().map(|x| (x - 3.0) / (sigma + 1e-5)).collect();
        let close = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6);
        assert!(close(&layer.apply(&x), &expected));
        let constant = of(NormalizeActivations::ConstantNormRescale, false, 4);
        let norm = squared_norm(&constant.apply(&x)).sqrt();
        assert!((norm - 2.0).abs() < 1e-6);
        let both = of(NormalizeActivations::ConstantNormRescale, true, 4);
        assert!(both.apply(&x).iter().sum::<f32>().abs() < 1e-5);
        let centered = of(NormalizeActivations::None, true, 4);
        assert!(close(&centered.apply(&x), &[-2.0, -1.0, 0.0, 3.0]));
        for normalizer in [layer, constant, both, centered] {
            let mut y = normalizer.apply(&x).to_vec();
            assert!(!close(&y, &x));
            normalizer.undo(&x, &mut y);
            assert!(y.iter().zip(x).all(|(y, x)| (y - x).abs() < 1e-4), "{y:?}");
        }
    }

    #[test]
    fn constant_and_zero_rows_stay_finite() {
        for kind in [NormalizeActivations::LayerNorm, NormalizeActivations::ConstantNormRescale] {
            for row in [[0.0; 3], [5.0; 3]] {
                let normalizer = of(kind, true, 3);
                let mut y = normalizer.apply(&row).to_vec();
                normalizer.undo(&row, &mut y);
                assert!(y.iter().all(|y| y.is_finite()) && normalizer.output_scales(&row).unwrap()[0].is_finite());
            }
        }
    }

    #[test]
    fn rows_are_left_alone_where_nothing_is_asked() {
        let mut config = DictionaryConfig::new(Architecture::Relu, 4, 1);
        assert!(Normalizer::of(&config).is_none());
        config.normalize_activations = NormalizeActivations::ExpectedAverageOnlyIn;
        assert!(Normalizer::of(&config).is_none());
    }
}
