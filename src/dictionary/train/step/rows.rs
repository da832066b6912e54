//! Row by row: decode, error, and the pull of the error on every pair.

use rayon::prelude::*;

use super::super::loss::Loss;
use super::super::method::Rule;
use super::super::operand::Precision;
use super::auxiliary::Auxiliary;
use super::{Batch, BatchReport, Levels};
use crate::dictionary::SparseCodes;
use crate::ops::{add_scaled, sparse, squared_norm};

/// Rows that one task walks.
const ROWS: usize = 128;

/// What the walk over the rows leaves for the features.
pub(super) struct Walk<E> {
    /// Gradients of the loss by what features of a level, or of a channel, decode to: `[n, decoder]` each. In a
    /// cross-layer transcoder those of a channel are several, `[n, d_out]` for each layer that is written to.
    pub(super) planes: Vec<Vec<E>>,
    /// The same for the auxiliary reconstruction; empty without one.
    pub(super) auxiliary_plane: Vec<E>,
    /// `plane · W_dec,f` of every pair, a channel.
    pub(super) pulls: [Vec<f32>; 2],
    /// The same of every auxiliary pair.
    pub(super) auxiliary_pulls: Vec<f32>,
    /// `λ/n · P'(S)` of every row.
    pub(super) pushes: Vec<f32>,
    /// `Σ_b` of all gradients by reconstructions, `[d_out]`.
    pub(super) bias: Vec<f32>,
    pub(super) sums: Sums,
}

/// Sums over rows.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sums {
    pub(super) squared_error: f64,
    other_errors: f64,
    penalty: f64,
    pub(super) auxiliary: f64,
    active: u64,
}

impl Sums {
    /// Adds those of other rows.
    pub(super) fn add(&mut self, other: Self) {
        let Self { squared_error, other_errors, penalty, auxiliary, active } = other;
        self.squared_error += squared_error;
        self.other_errors += other_errors;
        self.penalty += penalty;
        self.auxiliary += auxiliary;
        self.active += active;
    }
}

/// What a task writes to: its part of every vector of [`Walk`].
struct Task<'a, E> {
    first: usize,
    planes: Vec<&'a mut [E]>,
    auxiliary_plane: &'a mut [E],
    pulls: [&'a mut [f32]; 2],
    auxiliary_pulls: &'a mut [f32],
    pushes: &'a mut [f32],
}

impl<E: Precision> Walk<E> {
    /// Nothing yet about `n` rows, without planes but for an auxiliary one of the width `decoder`.
    pub(super) fn empty(n: usize, (decoder, d_out): (usize, usize), auxiliary: bool) -> Self {
        Self {
            planes: Vec::new(),
            auxiliary_plane: vec![E::default(); if auxiliary { n * decoder } else { 0 }],
            pulls: Default::default(),
            auxiliary_pulls: Vec::new(),
            pushes: vec![0.0; n],
            bias: vec![0.0; d_out],
            sums: Sums::default(),
        }
    }

    /// The report of a batch of `n` rows with `features`' findings.
    pub(super) fn report(&self, n: usize, (fired, squared_gradient): (Vec<u32>, f64)) -> BatchReport {
        let n = n as f64;
        let Sums { squared_error, other_errors, penalty, auxiliary, active } = self.sums;
        let loss = Loss { mse: squared_error / n, sparsity: penalty / n, auxiliary: other_errors / n + auxiliary / n };
        BatchReport { loss, l0: active as f64 / n, fired, squared_gradient, least: None }
    }
}

/// Walks over all rows of `codes`.
pub(super) fn walk<E: Precision, R: Rule>(
    batch: &Batch<'_, E>,
    rule: &R,
    codes: &SparseCodes,
    levels: Levels<'_>,
    push: f32,
    auxiliary: Option<&Auxiliary>,
) -> Walk<E> {
    let (n, d) = (batch.n, batch.decoder_width());
    let planes = levels.0.len().max(R::CHANNELS);
    let auxiliary_codes = auxiliary.map(|auxiliary| &auxiliary.codes);
    let size = |present: bool, size: usize| if present { size } else { 0 };
    let mut walk = Walk {
        planes: vec![vec![E::default(); n * d]; planes],
        auxiliary_plane: vec![E::default(); size(auxiliary.is_some(), n * d)],
        pulls: [vec![0.0; codes.len()], vec![0.0; size(R::CHANNELS > 1, codes.len())]],
        auxiliary_pulls: vec![0.0; auxiliary_codes.map_or(0, SparseCodes::len)],
        pushes: vec![0.0; n],
        bias: vec![0.0; d],
        sums: Sums::default(),
    };
    let parts: Vec<(Sums, Vec<f32>)> = tasks(&mut walk, codes, auxiliary_codes, d)
        .into_par_iter()
        .map(|task| task.run(batch, rule, codes, levels, push, auxiliary))
        .collect();
    for (sums, bias) in parts {
        add_scaled(&mut walk.bias, 1.0, &bias);
        walk.sums.add(sums);
    }
    walk
}

/// Cuts everything that the walk writes into tasks of [`ROWS`] rows.
fn tasks<'a, E: Precision>(
    walk: &'a mut Walk<E>,
    codes: &SparseCodes,
    auxiliary: Option<&SparseCodes>,
    d: usize,
) -> Vec<Task<'a, E>> {
    let n = walk.pushes.len();
    let count = n.div_ceil(ROWS);
    let [first_pulls, second_pulls] = &mut walk.pulls;
    let mut first_pulls = sparse::split_by_rows(first_pulls, &codes.offsets, ROWS).into_iter();
    let mut second_pulls = match second_pulls.len() {
        0 => Vec::new(),
        _ => sparse::split_by_rows(second_pulls, &codes.offsets, ROWS),
    }
    .into_iter();
    let mut auxiliary_pulls = match auxiliary {
        None => Vec::new(),
        Some(codes) => sparse::split_by_rows(&mut walk.auxiliary_pulls, &codes.offsets, ROWS),
    }
    .into_iter();
    let mut planes: Vec<_> = walk.planes.iter_mut().map(|plane| plane.chunks_mut(ROWS * d)).collect();
    let mut auxiliary_plane = walk.auxiliary_plane.chunks_mut(ROWS * d);
    let mut pushes = walk.pushes.chunks_mut(ROWS);
    (0..count)
        .map(|task| Task {
            first: task * ROWS,
            planes: planes.iter_mut().filter_map(Iterator::next).collect(),
            auxiliary_plane: auxiliary_plane.next().unwrap_or_default(),
            pulls: [first_pulls.next().unwrap_or_default(), second_pulls.next().unwrap_or_default()],
            auxiliary_pulls: auxiliary_pulls.next().unwrap_or_default(),
            pushes: pushes.next().unwrap_or_default(),
        })
        .collect()
}

/// Vectors that a task uses for one row after the other.
struct Scratch {
    values: [Vec<f32>; 2],
    reconstruction: Vec<f32>,
    error: Vec<f32>,
    gradients: Vec<Vec<f32>>,
}

impl<E: Precision> Task<'_, E> {
    fn run<R: Rule>(
        mut self,
        batch: &Batch<'_, E>,
        rule: &R,
        codes: &SparseCodes,
        levels: Levels<'_>,
        push: f32,
        auxiliary: Option<&Auxiliary>,
    ) -> (Sums, Vec<f32>) {
        let d = batch.decoder_width();
        let (mut sums, mut bias) = (Sums::default(), vec![0.0; d]);
        let mut scratch = Scratch {
            values: Default::default(),
            reconstruction: vec![0.0; d],
            error: vec![0.0; d],
            gradients: vec![vec![0.0; d]; self.planes.len()],
        };
        let (mut filled, mut auxiliary_filled) = (0, 0);
        for i in 0..self.pushes.len() {
            let row = self.first + i;
            let (features, pres) = codes.row(row);
            let pairs = filled..filled + features.len();
            filled = pairs.end;
            self.pushes[i] = evaluate(rule, features, pres, &mut scratch.values, push, &mut sums);
            self.decode(batch, row, features, levels, &mut scratch, pairs.clone(), &mut sums);
            if R::CHANNELS > 1 {
                self.decode_gate(batch, row, features, &mut scratch, pairs, &mut sums);
                add_scaled(&mut bias, 1.0, &scratch.gradients[1]);
            }
            add_scaled(&mut bias, 1.0, &scratch.gradients[0]);
            for (plane, gradient) in self.planes.iter_mut().zip(&scratch.gradients) {
                E::store(gradient, &mut plane[i * d..(i + 1) * d]);
            }
            if let Some(auxiliary) = auxiliary {
                let (features, pres) = auxiliary.codes.row(row);
                let pairs = auxiliary_filled..auxiliary_filled + features.len();
                auxiliary_filled = pairs.end;
                let pulls = &mut self.auxiliary_pulls[pairs];
                sums.auxiliary += auxiliary.row(batch, features, pres, &mut scratch.error, pulls);
                E::store(&scratch.error, &mut self.auxiliary_plane[i * d..(i + 1) * d]);
            }
        }
        (sums, bias)
    }

    /// The main reconstruction, level by level; leaves the error of the whole one.
    #[expect(clippy::too_many_arguments, reason = "the state of a row on its way")]
    fn decode(
        &mut self,
        batch: &Batch<'_, E>,
        row: usize,
        features: &[u32],
        levels: Levels<'_>,
        scratch: &mut Scratch,
        pairs: std::ops::Range<usize>,
        sums: &mut Sums,
    ) {
        let Scratch { values, reconstruction, error, gradients } = scratch;
        let x = batch.target_row(row);
        let factor = 2.0 / batch.n as f32;
        reconstruction.copy_from_slice(&batch.weights.b_dec);
        let mut start = 0;
        for (level, &end) in levels.0.iter().enumerate() {
            let stop = features.partition_point(|&f| (f as usize) < end);
            E::decode_row(reconstruction, &features[start..stop], &values[0][start..stop], &batch.decoder);
            error.iter_mut().zip(&*reconstruction).zip(x).for_each(|((e, y), x)| *e = y - x);
            let squared = f64::from(squared_norm(error));
            if level + 1 == levels.0.len() {
                sums.squared_error += squared;
            } else {
                sums.other_errors += squared;
            }
            gradients[level].iter_mut().zip(&*error).for_each(|(g, e)| *g = factor * e);
            start = stop;
        }
        // A feature takes part in its level's reconstruction and in all wider ones.
        for level in (1..levels.0.len()).rev() {
            let (narrower, wider) = gradients.split_at_mut(level);
            add_scaled(&mut narrower[level - 1], 1.0, &wider[0]);
        }
        let pulls = &mut self.pulls[0][pairs];
        let mut start = 0;
        for (level, &end) in levels.0.iter().enumerate() {
            let stop = features.partition_point(|&f| (f as usize) < end);
            E::dots_row(&mut pulls[start..stop], &features[start..stop], &gradients[level], &batch.decoder);
            start = stop;
        }
    }

    /// The reconstruction from the second channel.
    fn decode_gate(
        &mut self,
        batch: &Batch<'_, E>,
        row: usize,
        features: &[u32],
        scratch: &mut Scratch,
        pairs: std::ops::Range<usize>,
        sums: &mut Sums,
    ) {
        let x = batch.target_row(row);
        let gradient = &mut scratch.gradients[1];
        gradient.copy_from_slice(&batch.weights.b_dec);
        E::decode_row(gradient, features, &scratch.values[1], &batch.decoder);
        gradient.iter_mut().zip(x).for_each(|(g, x)| *g -= x);
        sums.other_errors += f64::from(squared_norm(gradient));
        let factor = 2.0 / batch.n as f32;
        for g in gradient.iter_mut() {
            *g *= factor;
        }
        E::dots_row(&mut self.pulls[1][pairs], features, gradient, &batch.decoder);
    }
}

/// Fills `values` for the pairs of one row; gives the row's push.
pub(super) fn evaluate<R: Rule>(
    rule: &R,
    features: &[u32],
    pres: &[f32],
    values: &mut [Vec<f32>; 2],
    push: f32,
    sums: &mut Sums,
) -> f32 {
    values.iter_mut().for_each(Vec::clear);
    let mut size = 0.0f64;
    for (&feature, &pre) in features.iter().zip(pres) {
        let [value, gate] = rule.values(feature as usize, pre);
        values[0].push(value);
        if R::CHANNELS > 1 {
            values[1].push(gate);
        }
        sums.active += u64::from(value != 0.0);
        size += f64::from(rule.size(feature as usize, pre));
    }
    let (penalty, slope) = rule.penalty(size);
    sums.penalty += penalty;
    push * slope as f32
}

impl Auxiliary {
    /// One row: turns `error`, `x̂ − x`, into the gradient by the auxiliary reconstruction; gives the weighted loss.
    pub(super) fn row<E: Precision>(
        &self,
        batch: &Batch<'_, E>,
        features: &[u32],
        pres: &[f32],
        error: &mut [f32],
        pulls: &mut [f32],
    ) -> f64 {
        E::decode_row(error, features, pres, &batch.decoder);
        let loss = f64::from(self.weight) * f64::from(squared_norm(error));
        let factor = 2.0 * self.weight / batch.n as f32;
        for e in error.iter_mut() {
            *e *= factor;
        }
        E::dots_row(pulls, features, error, &batch.decoder);
        loss
    }
}
