//! The training step with candle's tensors and automatic differentiation: for GPUs, and as the twin that the sparse
//! step is tested against. Holds dense `[n, f]` matrices on the device.

use candle_core::{D, DType, Device, Tensor, Var};

use super::loss::Loss;
use super::optimiser::{clip_factor, scalars};
use super::parameters::{Parameters, State};
use super::step::BatchReport;
use crate::base::{Error, Result};
use crate::ops::AdamStep;

/// Weights and moments on a device, in the order of [`Parameters::tensors`].
#[derive(Debug)]
pub(super) struct DenseState {
    width: usize,
    weights: [Var; 4],
    first: [Tensor; 4],
    second: [Tensor; 4],
    step: u64,
}

impl DenseState {
    /// Copies `state` to `device`.
    pub(super) fn upload(state: &State, device: &Device) -> Result<Self> {
        let copy = |parameters: &Parameters| -> Result<[Tensor; 4]> {
            let [a, b, c, d] = parameters.tensors();
            let one = |(_, shape, values): (_, Vec<usize>, &[f32])| Tensor::from_slice(values, shape, device);
            Ok([one(a)?, one(b)?, one(c)?, one(d)?])
        };
        let [a, b, c, d] = copy(&state.weights)?;
        let weights = [Var::from_tensor(&a)?, Var::from_tensor(&b)?, Var::from_tensor(&c)?, Var::from_tensor(&d)?];
        let (first, second) = (copy(&state.first)?, copy(&state.second)?);
        Ok(Self { width: state.weights.width, weights, first, second, step: state.step })
    }

    /// Copies everything back.
    pub(super) fn download(&self) -> Result<State> {
        let Self { width, weights, first, second, step } = self;
        let weights = self::download(*width, weights.each_ref().map(Var::as_tensor))?;
        let (first, second) = (self::download(*width, first.each_ref())?, self::download(*width, second.each_ref())?);
        Ok(State { weights, first, second, step: *step })
    }

    /// One training step on the rows `x`, `[n, d]`; gives the report and the norm of the gradients before clipping.
    pub(super) fn step(&mut self, x: &[f32], l1_coefficient: f64, learning_rate: f64) -> Result<(BatchReport, f64)> {
        let (report, gradients) = self.gradients(x, l1_coefficient)?;
        let mut squares = 0.0;
        for gradient in &gradients {
            squares += f64::from(gradient.sqr()?.sum_all()?.to_scalar::<f32>()?);
        }
        let norm = squares.sqrt();
        self.step += 1;
        let step = scalars(self.step, learning_rate, clip_factor(norm));
        for (i, gradient) in gradients.iter().enumerate() {
            let (weight, first, second) = adam(&self.weights[i], &self.first[i], &self.second[i], gradient, step)?;
            self.weights[i].set(&weight)?;
            (self.first[i], self.second[i]) = (first, second);
        }
        Ok((report, norm))
    }

    /// The loss of the module [`super::loss`] and its gradients.
    fn gradients(&self, x: &[f32], l1_coefficient: f64) -> Result<(BatchReport, [Tensor; 4])> {
        let [w_enc, b_enc, w_dec, b_dec] = self.weights.each_ref().map(Var::as_tensor);
        let n = x.len() / self.width;
        let x = Tensor::from_slice(x, (n, self.width), b_dec.device())?;
        let z = x.broadcast_sub(b_dec)?.matmul(&w_enc.t()?)?.broadcast_add(b_enc)?.relu()?;
        let reconstruction = z.matmul(w_dec)?.broadcast_add(b_dec)?;
        let mse = ((reconstruction - x)?.sqr()?.sum_all()? / n as f64)?;
        let norms = w_dec.sqr()?.sum(D::Minus1)?.sqrt()?;
        let l1 = (z.broadcast_mul(&norms)?.sum_all()? / n as f64)?;
        let mut store = (&mse + (&l1 * l1_coefficient)?)?.backward()?;
        let mut take = |weight: &Tensor| {
            store.remove(weight).map(|g| g.detach()).ok_or_else(|| Error::Tensor {
                action: "collecting gradients".into(),
                source: Box::new(candle_core::Error::Msg("a weight has no gradient".into())),
            })
        };
        let gradients = [take(w_enc)?, take(b_enc)?, take(w_dec)?, take(b_dec)?];
        let fired = z.detach().gt(0f32)?.to_dtype(DType::F32)?.sum(0)?.to_vec1::<f32>()?;
        let loss = Loss { mse: f64::from(mse.to_scalar::<f32>()?), l1: f64::from(l1.to_scalar::<f32>()?) };
        let l0 = fired.iter().map(|count| f64::from(*count)).sum::<f64>() / n as f64;
        let fired = fired.into_iter().map(|count| count as u32).collect();
        Ok((BatchReport { loss, l0, fired }, gradients))
    }
}

/// As [`crate::ops::adam`]: the new weight and moments.
fn adam(w: &Tensor, m: &Tensor, v: &Tensor, g: &Tensor, step: AdamStep) -> Result<(Tensor, Tensor, Tensor)> {
    let AdamStep { gradient_scale, beta1, beta2, step_size, root_correction, epsilon } = step;
    let [scale, beta1, beta2] = [gradient_scale, beta1, beta2].map(f64::from);
    let g = (g * scale)?;
    let m = ((m * beta1)? + (&g * (1.0 - beta1))?)?;
    let v = ((v * beta2)? + (g.sqr()? * (1.0 - beta2))?)?;
    let divisor = ((v.sqrt()? * f64::from(root_correction))? + f64::from(epsilon))?;
    let w = (w.detach() - ((&m / divisor)? * f64::from(step_size))?)?;
    Ok((w, m, v))
}

fn download(width: usize, tensors: [&Tensor; 4]) -> Result<Parameters> {
    let [w_enc, b_enc, w_dec, b_dec] = tensors.map(|t| t.flatten_all()?.to_vec1::<f32>());
    Ok(Parameters { width, w_enc: w_enc?, b_enc: b_enc?, w_dec: w_dec?, b_dec: b_dec? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dictionary::train::loss::naive;
    use crate::dictionary::train::optimiser;
    use crate::dictionary::train::step::Workspace;
    use crate::ops::gemm::tests::{numbers, with_threads};

    /// Odd sizes, a bias everywhere, rows of which only some fire.
    fn example(d: usize, f: usize, n: usize) -> (Parameters, Vec<f32>) {
        let mut weights = Parameters::initial(d, f, 0.5, numbers(d, "b_dec"), 9);
        weights.w_enc = numbers(f * d, "w_enc");
        weights.b_enc = numbers(f, "b_enc");
        (weights, numbers(n * d, "x").iter().map(|x| x * 3.0).collect())
    }

    fn close(a: &[f32], b: &[f32], tolerance: f32) -> bool {
        let scale = b.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        a.len() == b.len() && scale > 0.0 && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= tolerance * scale)
    }

    #[test]
    fn sparse_and_tiled_gradients_equal_automatic_differentiation() {
        for (d, f, n) in [(7, 13, 5), (19, 300, 131), (33, 64, 300)] {
            let (weights, x) = example(d, f, n);
            let twin = DenseState::upload(&State::new(weights.clone()), &Device::Cpu).unwrap();
            let (expected, tensors) = twin.gradients(&x, 0.7).unwrap();
            let expected_gradients = download(d, tensors.each_ref()).unwrap();
            for dense_above in [0.0, 1.0] {
                let mut workspace = Workspace::new(d, f);
                workspace.dense_above = dense_above;
                let report = workspace.gradients(&weights, &x, 0.7);
                assert_eq!(report.fired, expected.fired);
                assert!((report.loss.mse / expected.loss.mse - 1.0).abs() < 1e-4);
                assert!((report.loss.l1 / expected.loss.l1 - 1.0).abs() < 1e-4);
                let pairs = workspace.gradients.tensors().into_iter().zip(expected_gradients.tensors());
                for ((name, _, ours), (_, _, theirs)) in pairs {
                    assert!(close(ours, theirs, 1e-4), "{name} with d {d}, f {f}, n {n}, {dense_above}");
                }
            }
        }
    }

    #[test]
    fn gradients_equal_finite_differences() {
        let (mut weights, x) = example(3, 7, 5);
        let mut workspace = Workspace::new(3, 7);
        workspace.gradients(&weights, &x, 0.7);
        let gradients = workspace.gradients.clone();
        let step = 1e-3f32;
        for (tensor, (name, _, expected)) in gradients.tensors().into_iter().enumerate() {
            for (i, expected) in expected.iter().enumerate() {
                let mut at = |change: f32| {
                    let value = weights.tensors_mut()[tensor][i];
                    weights.tensors_mut()[tensor][i] = value + change;
                    let moved = weights.tensors_mut()[tensor][i] - value;
                    let loss = naive(&weights, &x).total(0.7);
                    weights.tensors_mut()[tensor][i] = value;
                    (f64::from(moved), loss)
                };
                let ((up, loss_up), (down, loss_down)) = (at(step), at(-step));
                let difference = (loss_up - loss_down) / (up - down);
                let wrong = (difference - f64::from(*expected)).abs() / (1.0 + difference.abs());
                assert!(wrong < 1e-3, "{name}[{i}]: {expected} against {difference}");
            }
        }
    }

    #[test]
    fn both_steps_walk_the_same_path() {
        let (weights, x) = example(11, 40, 64);
        let mut ours = State::new(weights.clone());
        let mut twin = DenseState::upload(&ours, &Device::Cpu).unwrap();
        let mut workspace = Workspace::new(11, 40);
        for step in 1..=10 {
            let learning_rate = 0.01 / f64::from(step);
            let report = workspace.gradients(&ours.weights, &x, 0.7);
            let norm = optimiser::update(&mut ours, &workspace.gradients, learning_rate);
            let (twin_report, twin_norm) = twin.step(&x, 0.7, learning_rate).unwrap();
            assert!((norm / twin_norm - 1.0).abs() < 1e-3, "{norm} {twin_norm}");
            assert!((report.loss.mse / twin_report.loss.mse - 1.0).abs() < 1e-3);
        }
        let twin = twin.download().unwrap();
        assert_eq!(ours.step, twin.step);
        for ((name, _, ours), (_, _, twin)) in ours.weights.tensors().into_iter().zip(twin.weights.tensors()) {
            assert!(close(ours, twin, 1e-3), "{name}");
        }
        assert!(!close(&ours.weights.w_dec, &weights.w_dec, 1e-2), "the weights moved");
    }

    #[test]
    fn the_bits_do_not_depend_on_the_threads() {
        for dense_above in [0.0, 1.0] {
            let run = || {
                let (weights, x) = example(17, 300, 400);
                let (mut state, mut workspace) = (State::new(weights), Workspace::new(17, 300));
                workspace.dense_above = dense_above;
                for _ in 0..3 {
                    workspace.gradients(&state.weights, &x, 0.7);
                    optimiser::update(&mut state, &workspace.gradients, 0.01);
                }
                state
            };
            assert_eq!(with_threads(1, run), with_threads(2, run));
        }
    }
}
