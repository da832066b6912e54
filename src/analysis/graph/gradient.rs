//! Integrated gradients of values later in the model with respect to a residual stream, by automatic differentiation
//! through the real model: attention patterns, norms and MLPs all follow.
//!
//! ```text
//! ḡ = 1/n Σ_j ∇ f(b + α_j (x − b)),   α_j = (j + ½) / n          ⟨ḡ, x − b⟩ ≈ f(x) − f(b)
//! ```
//!
//! Sundararajan et al. 2017, "Axiomatic Attribution for Deep Networks"; Marks et al. 2024, "Sparse Feature Circuits".

use candle_core::{DType, Tensor, Var};

use crate::base::{Context, Result};
use crate::model::{HookPlan, HookPoint, Model};

/// A value that is differentiated: a vector times what stands at a position.
#[derive(Debug, Clone, Copy)]
pub(super) struct Value<'a> {
    pub(super) position: usize,
    /// `[d]`
    pub(super) vector: &'a [f32],
}

/// From a stream to a later point.
#[derive(Debug, Clone, Copy)]
pub(super) struct Segment<'a> {
    pub(super) model: &'a Model,
    /// The block that the stream enters.
    pub(super) from: usize,
    /// What enters it, `[s, d]`.
    pub(super) stream: &'a [f32],
    /// The same without what is attributed to, `[s, d]`.
    pub(super) baseline: &'a [f32],
    /// Where values are read.
    pub(super) to: HookPoint,
    /// Steps from the one to the other.
    pub(super) steps: usize,
}

impl Segment<'_> {
    /// The integrated gradients `[s, d]` of each value, and how much of each the baseline alone gives.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub(super) fn gradients(&self, values: &[Value<'_>]) -> Result<Vec<(Vec<f32>, f64)>> {
        let size = self.stream.len();
        let mut sums = vec![(vec![0f32; size], 0f64); values.len()];
        for step in 0..self.steps {
            let share = (step as f32 + 0.5) / self.steps as f32;
            let gradients = self.at(share, values)?;
            for ((sum, _), gradient) in sums.iter_mut().zip(gradients.chunks_exact(size)) {
                sum.iter_mut().zip(gradient).for_each(|(sum, g)| *sum += g / self.steps as f32);
            }
        }
        let without = self.read(&self.stream_at(0.0), values)?;
        sums.iter_mut().zip(without).for_each(|((_, at), value)| *at = value);
        Ok(sums)
    }

    /// The values themselves on a stream `[s, d]`.
    fn read(&self, stream: &[f32], values: &[Value<'_>]) -> Result<Vec<f64>> {
        let reading = || "reading values of a stream".into();
        let (s, d) = self.shape();
        let x = Tensor::from_slice(stream, (1, s, d), self.model.device()).during(reading)?;
        let run = self.model.forward_from(self.from, &x, &HookPlan::new().capture(self.to))?;
        let out = run.captured(self.to)?.to_dtype(DType::F32).and_then(|x| x.flatten_all()?.to_vec1::<f32>());
        let out = out.during(reading)?;
        let value = |value: &Value<'_>| {
            let row = &out[value.position * d..][..d];
            row.iter().zip(value.vector).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum()
        };
        Ok(values.iter().map(value).collect())
    }

    /// Gradients of all values at one point of the way, `[n, s, d]`: each value has its own copy of the stream, and the
    /// gradient of their sum is that of each.
    fn at(&self, share: f32, values: &[Value<'_>]) -> Result<Vec<f32>> {
        let differentiating = || "differentiating through the model".into();
        let ((s, d), n) = (self.shape(), values.len());
        let copies = self.stream_at(share).repeat(n);
        let var = Tensor::from_vec(copies, (n, s, d), self.model.device()).and_then(|x| Var::from_tensor(&x));
        let var = var.during(differentiating)?;
        let run = self.model.forward_from(self.from, var.as_tensor(), &HookPlan::new().capture(self.to))?;
        let mut weights = vec![0f32; n * s * d];
        for (weights, value) in weights.chunks_exact_mut(s * d).zip(values) {
            weights[value.position * d..][..d].copy_from_slice(value.vector);
        }
        let gradient = || -> candle_core::Result<Vec<f32>> {
            let weights = Tensor::from_vec(weights, (n, s, d), self.model.device())?;
            let out = run.captures.get(&self.to).ok_or_else(|| candle_core::Error::Msg("nothing captured".into()))?;
            let gradients = (out.to_dtype(DType::F32)? * weights)?.sum_all()?.backward()?;
            let gradient = gradients.get(var.as_tensor());
            let gradient = gradient.ok_or_else(|| candle_core::Error::Msg("the values do not depend on it".into()))?;
            gradient.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
        };
        gradient().during(differentiating)
    }

    fn stream_at(&self, share: f32) -> Vec<f32> {
        self.stream.iter().zip(self.baseline).map(|(x, b)| b + share * (x - b)).collect()
    }

    fn shape(&self) -> (usize, usize) {
        let d = self.model.config().d_model;
        (self.stream.len() / d.max(1), d)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::tests::open;
    use crate::model::Site;
    use crate::ops::gemm::tests::numbers;

    #[test]
    fn gradients_are_those_of_finite_differences_in_every_layout() {
        for name in ["llama", "gpt2", "gemma2", "gpt_neox", "falcon", "olmo2", "opt-350m", "qwen2"] {
            let model = open(name);
            let (d, s) = (model.config().d_model, 5);
            let stream = numbers(s * d, "x");
            let vector = numbers(d, "v");
            let to = HookPoint::block(model.config().n_layers - 1, Site::ResidPost);
            let baseline = vec![0.0; s * d];
            let segment = Segment { model: &model, from: 1, stream: &stream, baseline: &baseline, to, steps: 40 };
            let values = [Value { position: s - 1, vector: &vector }, Value { position: 2, vector: &vector }];
            let along = numbers(s * d, "along");
            let found = segment.at(1.0, &values).unwrap();
            for (value, gradient) in values.iter().zip(found.chunks_exact(s * d)) {
                let ours: f64 = gradient.iter().zip(&along).map(|(g, a)| f64::from(g * a)).sum();
                let at = |step: f32| -> f64 {
                    let moved: Vec<f32> = stream.iter().zip(&along).map(|(x, a)| x + step * a).collect();
                    segment.read(&moved, std::slice::from_ref(value)).unwrap()[0]
                };
                let measured = (at(1e-3) - at(-1e-3)) / 2e-3;
                assert!((ours - measured).abs() < 2e-2 * (1.0 + measured.abs()), "{name}: {ours} {measured}");
                assert!(measured.abs() > 1e-3, "{name}: it moves");
            }
            let (later, n) = (&found[s * d + 3 * d..], d);
            assert!(later[..n].iter().all(|g| *g == 0.0), "{name}: nothing after position 2 matters there");
        }
    }
}
