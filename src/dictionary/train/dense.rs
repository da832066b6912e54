//! The training step with candle's tensors and automatic differentiation: for GPUs, and as the twin that the sparse
//! step is tested against. Holds dense `[n, f]` matrices on the device.

use candle_core::{D, DType, Device, Tensor, Var};

use super::loss::Loss;
use super::method::SparsityLoss;
use super::optimiser::{clip_factor, scalars};
use super::parameters::{Parameters, Shape, State};
use super::settings::{Method, Top, TrainPlan};
use super::step::{BatchReport, StepInput};
use crate::base::{Error, Result};
use crate::ops::AdamStep;
use crate::ops::compact::{TopK, rank};

/// Weights and moments on a device, in the order of [`Parameters::tensors`].
#[derive(Debug)]
pub(super) struct DenseState {
    shape: Shape,
    own: Vec<&'static str>,
    weights: Vec<Var>,
    first: Vec<Tensor>,
    second: Vec<Tensor>,
    step: u64,
    /// As in [`State`].
    pub(super) threshold: f64,
    pub(super) penalty_scale: f64,
}

/// What an architecture makes of pre-activations.
struct Forward {
    /// Activations, `[n, f]`.
    z: Tensor,
    /// Mean penalty, without its coefficient.
    sparsity: Option<Tensor>,
    /// Other terms of the loss.
    auxiliary: Vec<Tensor>,
    least: Option<f32>,
}

/// One batch on the device.
struct Batch<'a> {
    /// What features and `b_dec` are to reconstruct.
    target: Tensor,
    centered: Tensor,
    pre: Tensor,
    w_enc: &'a Tensor,
    b_enc: &'a Tensor,
    w_dec: &'a Tensor,
    b_dec: &'a Tensor,
    own: &'a [Var],
    norms: Tensor,
    n: usize,
}

impl DenseState {
    /// Copies `state` to `device`.
    pub(super) fn upload(state: &State, device: &Device) -> Result<Self> {
        let copy = |parameters: &Parameters| -> Result<Vec<Tensor>> {
            let tensors = parameters.tensors().into_iter();
            tensors.map(|(_, shape, values)| Ok(Tensor::from_slice(values, shape, device)?)).collect()
        };
        let weights = copy(&state.weights)?.iter().map(Var::from_tensor).collect::<Result<_, _>>()?;
        Ok(Self {
            shape: state.weights.shape,
            own: state.weights.own.iter().map(|(name, _)| *name).collect(),
            weights,
            first: copy(&state.first)?,
            second: copy(&state.second)?,
            step: state.step,
            threshold: state.threshold,
            penalty_scale: state.penalty_scale,
        })
    }

    /// Copies everything back.
    pub(super) fn download(&self) -> Result<State> {
        let tensors: Vec<&Tensor> = self.weights.iter().map(Var::as_tensor).collect();
        Ok(State {
            weights: self.fetch(&tensors)?,
            first: self.fetch(&self.first.iter().collect::<Vec<_>>())?,
            second: self.fetch(&self.second.iter().collect::<Vec<_>>())?,
            step: self.step,
            threshold: self.threshold,
            penalty_scale: self.penalty_scale,
        })
    }

    fn fetch(&self, tensors: &[&Tensor]) -> Result<Parameters> {
        let values: Vec<Vec<f32>> =
            tensors.iter().map(|t| t.flatten_all()?.to_vec1()).collect::<Result<_, candle_core::Error>>()?;
        let mut values = values.into_iter();
        let mut next = || values.next().unwrap_or_default();
        let (w_enc, b_enc, w_dec, b_dec) = (next(), next(), next(), next());
        let own = self.own.iter().map(|name| (*name, next())).collect();
        let w_skip = if self.shape.skip { next() } else { Vec::new() };
        Ok(Parameters { shape: self.shape, w_enc, b_enc, w_dec, b_dec, w_skip, own })
    }

    /// One training step.
    pub(super) fn step(&mut self, plan: &TrainPlan, input: StepInput<'_>, learning_rate: f64) -> Result<BatchReport> {
        let (report, gradients) = self.gradients(plan, input)?;
        self.step += 1;
        let step = scalars(self.step, learning_rate, clip_factor(report.squared_gradient.sqrt()));
        for (i, gradient) in gradients.iter().enumerate() {
            let (mut weight, first, second) = adam(&self.weights[i], &self.first[i], &self.second[i], gradient, step)?;
            if i >= 4 && self.own.get(i - 4) == Some(&"threshold") {
                weight = weight.relu()?;
            }
            self.weights[i].set(&weight)?;
            (self.first[i], self.second[i]) = (first, second);
        }
        Ok(report)
    }

    /// The loss and its gradients, in the order of [`Parameters::tensors`].
    fn gradients(&self, plan: &TrainPlan, input: StepInput<'_>) -> Result<(BatchReport, Vec<Tensor>)> {
        let [w_enc, b_enc, w_dec, b_dec, own @ ..] = self.weights.as_slice() else {
            return Err(no_gradient("four tensors"));
        };
        let (w_enc, b_enc, w_dec, b_dec) = (w_enc.as_tensor(), b_enc.as_tensor(), w_dec.as_tensor(), b_dec.as_tensor());
        let own = &own[..self.own.len()];
        let Shape { d_in, d_out, transcoder, skip, .. } = self.shape;
        let n = input.x.len() / d_in;
        let x = Tensor::from_slice(input.x, (n, d_in), b_dec.device())?;
        let centered = if transcoder { x.clone() } else { x.broadcast_sub(b_dec)? };
        let mut target = match input.target {
            Some(target) => Tensor::from_slice(target, (n, d_out), b_dec.device())?,
            None => x.clone(),
        };
        if let (true, Some(w_skip)) = (skip, self.weights.last()) {
            target = (target - x.matmul(&w_skip.t()?)?)?;
        }
        let pre = centered.matmul(&w_enc.t()?)?.broadcast_add(b_enc)?;
        let norms = w_dec.sqr()?.sum(D::Minus1)?.sqrt()?;
        let batch = Batch { target, centered, pre, w_enc, b_enc, w_dec, b_dec, own, norms, n };
        let Forward { z, sparsity, auxiliary, least } = batch.forward(plan, input)?;
        let mse = batch.squared_error(&batch.decode(&z)?)?;
        let coefficient = input.coefficient * self.penalty_scale;
        let mut total = mse.clone();
        if let Some(sparsity) = &sparsity {
            total = (total + (sparsity * coefficient)?)?;
        }
        for term in &auxiliary {
            total = (total + term)?;
        }
        let mut store = total.backward()?;
        let mut gradients = Vec::new();
        let mut squared_gradient = 0.0;
        for weight in &self.weights {
            let gradient = match store.remove(weight.as_tensor()) {
                Some(gradient) => gradient.detach(),
                None => weight.zeros_like()?,
            };
            squared_gradient += f64::from(gradient.sqr()?.sum_all()?.to_scalar::<f32>()?);
            gradients.push(gradient);
        }
        let fired = z.detach().ne(0f32)?.to_dtype(DType::F32)?.sum(0)?.to_vec1::<f32>()?;
        let scalar = |t: &Tensor| Ok::<_, Error>(f64::from(t.to_scalar::<f32>()?));
        let mut loss = Loss { mse: scalar(&mse)?, ..Loss::default() };
        loss.sparsity = sparsity.as_ref().map(scalar).transpose()?.unwrap_or_default();
        for term in &auxiliary {
            loss.auxiliary += scalar(term)?;
        }
        let l0 = fired.iter().map(|count| f64::from(*count)).sum::<f64>() / n as f64;
        let fired = fired.into_iter().map(|count| count as u32).collect();
        Ok((BatchReport { loss, l0, fired, squared_gradient, least }, gradients))
    }
}

fn no_gradient(what: &str) -> Error {
    Error::Tensor {
        action: "collecting gradients".into(),
        source: Box::new(candle_core::Error::Msg(format!("a dictionary without {what}"))),
    }
}

impl Batch<'_> {
    fn decode(&self, z: &Tensor) -> Result<Tensor> {
        Ok(z.matmul(self.w_dec)?.broadcast_add(self.b_dec)?)
    }

    fn squared_error(&self, reconstruction: &Tensor) -> Result<Tensor> {
        Ok(((reconstruction - &self.target)?.sqr()?.sum_all()? / self.n as f64)?)
    }

    fn forward(&self, plan: &TrainPlan, input: StepInput<'_>) -> Result<Forward> {
        match &plan.method {
            Method::Relu { lp_norm, p_anneal } => {
                let z = self.pre.relu()?;
                let v = z.broadcast_mul(&self.norms)?;
                let p = if p_anneal.is_some() { input.exponent } else { *lp_norm };
                let plain = (p - 1.0).abs() < f64::EPSILON;
                let powers = if plain { v } else { (v + 1e-15)?.powf(p)? };
                let rows = powers.sum(D::Minus1)?;
                let rows = if plain || p_anneal.is_some() { rows } else { rows.powf(1.0 / p)? };
                self.plain(z, Some(rows))
            }
            Method::Gated => {
                let gate = self.pre.relu()?;
                let open = self.pre.gt(0f32)?.to_dtype(DType::F32)?;
                let [r_mag, b_mag] = self.own else { return Err(no_gradient("r_mag and b_mag")) };
                let product = self.pre.broadcast_sub(self.b_enc)?;
                let magnitude = product.broadcast_mul(&r_mag.exp()?)?.broadcast_add(b_mag)?.relu()?;
                let rows = gate.broadcast_mul(&self.norms)?.sum(D::Minus1)?;
                let by_gate = self.squared_error(&self.decode(&gate)?)?;
                let plain = self.plain((open * magnitude)?, Some(rows))?;
                Ok(Forward { auxiliary: vec![by_gate], ..plain })
            }
            Method::JumpRelu { .. } => self.jump_relu(&plan.method, input),
            Method::TopK { .. } | Method::BatchTopK { .. } | Method::Matryoshka { .. } => {
                self.chosen(&plan.method.top().unwrap_or_default(), input)
            }
        }
    }

    fn plain(&self, z: Tensor, rows: Option<Tensor>) -> Result<Forward> {
        let sparsity = rows.map(|rows| rows.sum_all()? / self.n as f64).transpose()?;
        Ok(Forward { z, sparsity, auxiliary: Vec::new(), least: None })
    }

    /// Straight-through estimators as terms that are zero and have the gradient wanted.
    fn jump_relu(&self, method: &Method, input: StepInput<'_>) -> Result<Forward> {
        let Method::JumpRelu { bandwidth, loss, tanh_scale, target_l0, ste_to_input, pre_act_loss_coefficient, .. } =
            method
        else {
            return Err(no_gradient("thresholds"));
        };
        let [threshold] = self.own else { return Err(no_gradient("thresholds")) };
        let fixed = threshold.as_tensor().detach();
        let away = self.pre.detach().broadcast_sub(&fixed)?;
        let active = away.gt(0f32)?.to_dtype(DType::F32)?;
        let near = (away.abs()?.lt(bandwidth / 2.0)?.to_dtype(DType::F32)? / *bandwidth)?;
        let mut moved = threshold.as_tensor().sub(&fixed)?.neg()?.broadcast_as(self.pre.shape())?;
        if *ste_to_input {
            moved = (moved + (&self.pre - self.pre.detach())?)?;
        }
        let z = ((&active * &self.pre)? + near.broadcast_mul(&fixed)?.mul(&moved)?)?;
        let rows = match loss {
            SparsityLoss::Tanh => (z.broadcast_mul(&self.norms)? * *tanh_scale)?.tanh()?.sum(D::Minus1)?,
            SparsityLoss::Step | SparsityLoss::Quadratic => (&active + (near * moved)?)?.sum(D::Minus1)?,
        };
        let rows = match (loss, target_l0) {
            (SparsityLoss::Quadratic, Some(target)) => ((rows - *target)?.sqr()? * (2.0 / target))?,
            _ => rows,
        };
        let mut forward = self.plain(z, Some(rows))?;
        if let Some(coefficient) = pre_act_loss_coefficient
            && !input.dead.is_empty()
        {
            let dead = Tensor::from_slice(input.dead, input.dead.len(), self.pre.device())?;
            let missing = self.pre.neg()?.broadcast_add(threshold.as_tensor())?.relu()?.broadcast_mul(&self.norms)?;
            let term = (missing.index_select(&dead, 1)?.sum_all()? * (coefficient / self.n as f64))?;
            forward.auxiliary.push(term);
        }
        Ok(forward)
    }

    fn chosen(&self, top: &Top, input: StepInput<'_>) -> Result<Forward> {
        let keys = if top.rescale { self.pre.broadcast_mul(&self.norms)? } else { self.pre.clone() };
        let (mask, least) = self.mask(&keys, top)?;
        let z = (&self.pre * mask)?;
        let mut forward = self.plain(z.clone(), None)?;
        forward.least = least;
        let f = self.b_enc.elem_count();
        for &width in top.levels.iter().filter(|&&width| width < f) {
            let part = z.narrow(1, 0, width)?.matmul(&self.w_dec.narrow(0, 0, width)?)?.broadcast_add(self.b_dec)?;
            forward.auxiliary.push(self.squared_error(&part)?);
        }
        if !input.dead.is_empty() && top.aux_coefficient > 0.0 && top.k_aux > 0 {
            let residual = (&self.target - self.decode(&z)?)?.detach();
            let dead = Tensor::from_slice(input.dead, input.dead.len(), self.pre.device())?;
            let (w_enc, b_enc) = (self.w_enc.index_select(&dead, 0)?, self.b_enc.index_select(&dead, 0)?);
            let pre = self.centered.matmul(&w_enc.t()?)?.broadcast_add(&b_enc)?;
            let k = top.k_aux.min(input.dead.len());
            let chosen = (&pre * mask_of(&pre, k, f32::NEG_INFINITY)?)?;
            let error = (chosen.matmul(&self.w_dec.index_select(&dead, 0)?)? - residual)?;
            let share = (input.dead.len() as f64 / top.k_aux as f64).min(1.0);
            let weight = top.aux_coefficient * share / self.n as f64;
            forward.auxiliary.push((error.sqr()?.sum_all()? * weight)?);
        }
        Ok(forward)
    }

    /// 1 where an entry is chosen, and the least chosen value of a whole batch.
    fn mask(&self, keys: &Tensor, top: &Top) -> Result<(Tensor, Option<f32>)> {
        if !top.whole_batch {
            return Ok((mask_of(keys, top.k as usize, 0.0)?, None));
        }
        let count = (top.k * self.n as f64) as usize;
        let values = keys.detach().flatten_all()?.to_vec1::<f32>()?;
        let positive = (0u32..).zip(&values).filter(|(_, value)| **value > 0.0);
        let mut ranked: Vec<u64> = positive.map(|(at, value)| rank(*value, at)).collect();
        ranked.sort_unstable_by(|a, b| b.cmp(a));
        ranked.truncate(count);
        let mut mask = vec![0f32; values.len()];
        let chosen: Vec<usize> = ranked.iter().map(|rank| !(*rank as u32) as usize).collect();
        for &at in &chosen {
            mask[at] = 1.0;
        }
        let least = chosen.last().map(|&at| values[at]);
        Ok((Tensor::from_vec(mask, keys.shape(), keys.device())?, least))
    }
}

/// 1 at the `k` largest entries above `floor` of every row.
fn mask_of(keys: &Tensor, k: usize, floor: f32) -> Result<Tensor> {
    let rows = keys.detach().to_vec2::<f32>()?;
    let zeros = vec![0.0; rows.first().map_or(0, Vec::len)];
    let mut top = TopK::new(k, floor);
    let mut mask = vec![0f32; keys.elem_count()];
    for (row, mask) in rows.iter().zip(mask.chunks_exact_mut(zeros.len().max(1))) {
        top.clear();
        top.offer(row, &zeros, 0);
        top.finish().indices.iter().for_each(|&at| mask[at as usize] = 1.0);
    }
    Ok(Tensor::from_vec(mask, keys.shape(), keys.device())?)
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

#[cfg(test)]
#[path = "cross_tests.rs"]
mod cross_tests;
#[cfg(test)]
#[path = "dense_tests.rs"]
mod tests;
