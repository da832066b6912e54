//! The step that all layers of a cross-layer transcoder take together (Ameisen et al. 2025, "Circuit Tracing").
//!
//! ```text
//! ŷ_l = Σ_{i ≤ l} z_i W_dec^{i→l} + b_dec_l      W_dec^i [f, layers from i on · d_out]: one row a feature
//! L = Σ_l mean_b ‖ŷ_l − y_l‖² + λ Σ_i mean_b P(S_i)      ‖W_dec,f‖ over the whole row, so over all layers
//! ```
//!
//! Only the walk over the rows couples the layers: the errors of all layers from `i` on are what a feature of layer `i`
//! is pulled by. Picking active pairs before it and the gradients by feature after it are those of one dictionary with
//! wide decoder rows.

use rayon::prelude::*;

use super::super::method::{Chosen, JumpRelu, L1, Relu, Rule};
use super::super::operand::Precision;
use super::super::parameters::State;
use super::super::settings::{Method, TrainPlan};
use super::auxiliary::{Auxiliary, pre_activation_loss};
use super::pick::{self, Encoder};
use super::rows::{Sums, Walk, evaluate};
use super::{Batch, BatchReport, Levels, StepInput, Workspace, features};
use crate::base::DtypeChoice;
use crate::dictionary::SparseCodes;
use crate::ops::{add_scaled, squared_norm};

/// Rows that one task walks.
const ROWS: usize = 64;

/// One layer: its weights, where its gradients go, and its rows.
pub(in super::super) struct Layer<'a> {
    /// Weights.
    pub(in super::super) state: &'a State,
    /// Receives the gradients.
    pub(in super::super) workspace: &'a mut Workspace,
    /// Settings.
    pub(in super::super) plan: &'a TrainPlan,
    /// Rows of this layer, with its own target.
    pub(in super::super) input: StepInput<'a>,
}

/// Fills the gradients of all layers, which stand in their order and have the same method.
pub(in super::super) fn gradients(layers: &mut [Layer<'_>]) -> Vec<BatchReport> {
    match layers.first().map(|layer| layer.workspace.dtype) {
        Some(DtypeChoice::Bf16) => compute::<u16>(layers),
        _ => compute::<f32>(layers),
    }
}

fn compute<E: Precision>(layers: &mut [Layer<'_>]) -> Vec<BatchReport> {
    let batches: Vec<Batch<'_, E>> =
        layers.iter().map(|layer| Batch::new(&layer.state.weights, layer.input.x, layer.input.target)).collect();
    let Some(first) = layers.first() else { return Vec::new() };
    let exponent = first.input.exponent as f32;
    match &first.plan.method {
        Method::Relu { lp_norm: 1.0, p_anneal: None } => {
            let rules: Vec<_> = batches.iter().map(|batch| L1 { norms: &batch.norms }).collect();
            entrywise(layers, &batches, &rules)
        }
        Method::Relu { lp_norm, p_anneal } => {
            let (p, root) = if p_anneal.is_some() { (exponent, false) } else { (*lp_norm as f32, true) };
            let rules: Vec<_> = batches.iter().map(|batch| Relu { norms: &batch.norms, p, root }).collect();
            entrywise(layers, &batches, &rules)
        }
        Method::JumpRelu { pre_act_loss_coefficient, .. } => {
            let coefficient = *pre_act_loss_coefficient;
            let all = batches.iter().zip(layers.iter());
            let rules: Vec<JumpRelu<'_>> = all
                .filter_map(|(batch, layer)| JumpRelu::of(&layer.plan.method, &batch.norms, &batch.weights.own))
                .collect();
            let mut reports = entrywise(layers, &batches, &rules);
            if let Some(coefficient) = coefficient {
                for (((layer, batch), rule), report) in layers.iter_mut().zip(&batches).zip(&rules).zip(&mut reports) {
                    if !layer.input.dead.is_empty() {
                        let gradients = &mut layer.workspace.gradients;
                        report.loss.auxiliary +=
                            pre_activation_loss(batch, rule.threshold, layer.input.dead, coefficient, gradients);
                        report.squared_gradient = layer.workspace.squared_gradient();
                    }
                }
            }
            reports
        }
        _ => chosen(layers, &batches),
    }
}

/// Architectures that decide entry by entry.
fn entrywise<E: Precision, R: Rule>(
    layers: &mut [Layer<'_>],
    batches: &[Batch<'_, E>],
    rules: &[R],
) -> Vec<BatchReport> {
    let pick = |(batch, rule): (&Batch<'_, E>, &R)| {
        let limits: Vec<f32> = (0..batch.f).map(|f| rule.limit(f)).collect();
        pick::above(&Encoder::new(batch, None), batch.n, &limits)
    };
    let codes: Vec<SparseCodes> = batches.iter().zip(rules).map(pick).collect();
    let none = batches.iter().map(|_| None).collect::<Vec<_>>();
    finish(layers, batches, rules, &codes, &none)
}

/// Architectures whose features compete, those of each layer with each other.
fn chosen<E: Precision>(layers: &mut [Layer<'_>], batches: &[Batch<'_, E>]) -> Vec<BatchReport> {
    let (mut codes, mut least, mut auxiliaries) = (Vec::new(), Vec::new(), Vec::new());
    for (layer, batch) in layers.iter().zip(batches) {
        let top = layer.plan.method.top().unwrap_or_default();
        let (picked, smallest) = pick::compete(batch, &top);
        codes.push(picked);
        least.push(smallest);
        auxiliaries.push(Auxiliary::new(batch, layer.input.dead, top.aux_coefficient, top.k_aux));
    }
    let rules = vec![Chosen; batches.len()];
    let mut reports = finish(layers, batches, &rules, &codes, &auxiliaries);
    reports.iter_mut().zip(least).for_each(|(report, least)| report.least = least);
    reports
}

/// Everything after the choice of pairs.
fn finish<E: Precision, R: Rule>(
    layers: &mut [Layer<'_>],
    batches: &[Batch<'_, E>],
    rules: &[R],
    codes: &[SparseCodes],
    auxiliaries: &[Option<Auxiliary>],
) -> Vec<BatchReport> {
    let push = |layer: &Layer<'_>| {
        let n = (layer.input.x.len() / layer.state.weights.shape.d_in) as f64;
        (layer.input.coefficient * layer.state.penalty_scale / n) as f32
    };
    let pushes: Vec<f32> = layers.iter().map(push).collect();
    let (walks, mut planes) = walk(batches, rules, codes, &pushes, auxiliaries);
    let mut reports = Vec::with_capacity(layers.len());
    for (i, (layer, mut walk)) in layers.iter_mut().zip(walks).enumerate() {
        walk.planes = planes;
        let batch = &batches[i];
        let all = [batch.f];
        let auxiliary = auxiliaries[i].as_ref();
        let gradients = &mut layer.workspace.gradients;
        let found = features::gradients(batch, &rules[i], &codes[i], &walk, Levels(&all), auxiliary, gradients);
        reports.push(walk.report(batch.n, found));
        planes = walk.planes;
        planes.remove(0);
    }
    reports
}

/// What one task found for one layer.
struct Part<E> {
    auxiliary_plane: Vec<E>,
    pulls: Vec<f32>,
    auxiliary_pulls: Vec<f32>,
    pushes: Vec<f32>,
    bias: Vec<f32>,
    sums: Sums,
}

/// Walks over all rows, all layers at once. Beside what each layer's features need of their own, gives the gradients by
/// the reconstruction of every layer, `[n, d_out]` each: a feature of layer `i` is pulled by those from `i` on.
fn walk<E: Precision, R: Rule>(
    batches: &[Batch<'_, E>],
    rules: &[R],
    codes: &[SparseCodes],
    pushes: &[f32],
    auxiliaries: &[Option<Auxiliary>],
) -> (Vec<Walk<E>>, Vec<Vec<E>>) {
    let (n, d) = batches.first().map_or((0, 1), |batch| (batch.n, batch.weights.shape.d_out));
    let starts: Vec<usize> = (0..n).step_by(ROWS).collect();
    let task = |start: usize| task(batches, rules, codes, pushes, auxiliaries, start..(start + ROWS).min(n));
    let (rows, mut parts): (Vec<Vec<E>>, Vec<Vec<Part<E>>>) = starts.into_par_iter().map(task).unzip();
    let mut planes: Vec<Vec<E>> = batches.iter().map(|_| Vec::with_capacity(n * d)).collect();
    for row in rows.iter().flat_map(|rows| rows.chunks_exact(batches.len() * d)) {
        planes.iter_mut().zip(row.chunks_exact(d)).for_each(|(plane, row)| plane.extend_from_slice(row));
    }
    drop(rows);
    let layer = |i: usize| {
        let batch = &batches[i];
        let width = batch.decoder_width();
        let auxiliary = auxiliaries[i].is_some();
        let mut walk = Walk::<E>::empty(n, (width, batch.weights.shape.d_out), auxiliary);
        let (mut first, mut pulls, mut auxiliary_pulls) = (0, Vec::new(), Vec::new());
        for part in &mut parts {
            let Part { auxiliary_plane, pulls: own, auxiliary_pulls: dead, pushes, bias, sums } = part.remove(0);
            if auxiliary {
                walk.auxiliary_plane[first * width..][..auxiliary_plane.len()].copy_from_slice(&auxiliary_plane);
            }
            walk.pushes[first..first + pushes.len()].copy_from_slice(&pushes);
            first += pushes.len();
            pulls.extend(own);
            auxiliary_pulls.extend(dead);
            add_scaled(&mut walk.bias, 1.0, &bias);
            walk.sums.add(sums);
        }
        walk.pulls = [pulls, Vec::new()];
        walk.auxiliary_pulls = auxiliary_pulls;
        walk
    };
    ((0..batches.len()).map(layer).collect(), planes)
}

/// Decodes some rows at all layers; gives the gradients by what is reconstructed, `[rows, layers · d_out]`, and what else
/// each layer's features need to know of the errors.
fn task<E: Precision, R: Rule>(
    batches: &[Batch<'_, E>],
    rules: &[R],
    codes: &[SparseCodes],
    pushes: &[f32],
    auxiliaries: &[Option<Auxiliary>],
    rows: std::ops::Range<usize>,
) -> (Vec<E>, Vec<Part<E>>) {
    let d = batches.first().map_or(0, |batch| batch.weights.shape.d_out);
    let n = batches.first().map_or(1, |batch| batch.n);
    let mut plane = vec![E::default(); rows.len() * batches.len() * d];
    let mut parts: Vec<Part<E>> = batches.iter().map(|batch| Part::new(batch, rows.len())).collect();
    let mut values: Vec<[Vec<f32>; 2]> = vec![Default::default(); batches.len()];
    let mut errors = vec![0.0; batches.len() * d];
    for (row, plane) in rows.zip(plane.chunks_exact_mut((batches.len() * d).max(1))) {
        for (batch, errors) in batches.iter().zip(errors.chunks_exact_mut(d)) {
            errors.iter_mut().zip(&batch.weights.b_dec).zip(batch.target_row(row)).for_each(|((e, b), y)| *e = b - y);
        }
        for (i, (batch, part)) in batches.iter().zip(&mut parts).enumerate() {
            let (features, pres) = codes[i].row(row);
            part.pushes.push(evaluate(&rules[i], features, pres, &mut values[i], pushes[i], &mut part.sums));
            E::decode_row(&mut errors[i * d..], features, &values[i][0], &batch.decoder);
        }
        let factor = 2.0 / n as f32;
        let gradients: Vec<f32> = errors.iter().map(|e| factor * e).collect();
        E::store(&gradients, plane);
        for (i, (batch, part)) in batches.iter().zip(&mut parts).enumerate() {
            part.sums.squared_error += f64::from(squared_norm(&errors[i * d..(i + 1) * d]));
            let own = &gradients[i * d..];
            add_scaled(&mut part.bias, 1.0, &own[..d]);
            let (features, _) = codes[i].row(row);
            let before = part.pulls.len();
            part.pulls.resize(before + features.len(), 0.0);
            E::dots_row(&mut part.pulls[before..], features, own, &batch.decoder);
            if let Some(auxiliary) = &auxiliaries[i] {
                let (features, pres) = auxiliary.codes.row(row);
                let before = part.auxiliary_pulls.len();
                part.auxiliary_pulls.resize(before + features.len(), 0.0);
                let mut left = errors[i * d..].to_vec();
                let pulls = &mut part.auxiliary_pulls[before..];
                part.sums.auxiliary += auxiliary.row(batch, features, pres, &mut left, pulls);
                let before = part.auxiliary_plane.len();
                part.auxiliary_plane.resize(before + left.len(), E::default());
                E::store(&left, &mut part.auxiliary_plane[before..]);
            }
        }
    }
    (plane, parts)
}

impl<E: Precision> Part<E> {
    fn new(batch: &Batch<'_, E>, rows: usize) -> Self {
        Self {
            auxiliary_plane: Vec::new(),
            pulls: Vec::new(),
            auxiliary_pulls: Vec::new(),
            pushes: Vec::with_capacity(rows),
            bias: vec![0.0; batch.weights.shape.d_out],
            sums: Sums::default(),
        }
    }
}
