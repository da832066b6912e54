//! The same gradients while many features are active: dense products over tiles of features, in two passes, so that
//! no `[n, f]` matrix exists. The second computes pre-activations again, feature-major, which costs less than keeping
//! them would.

#![expect(clippy::inline_always, reason = "a body must be inlined to be compiled for its caller's instruction set")]

use rayon::prelude::*;

use super::super::loss::Loss;
use super::super::method::{EntryGradient, Rule};
use super::super::operand::Precision;
use super::super::parameters::Parameters;
use super::features::Slice;
use super::{Batch, BatchReport, skip};
use crate::ops::{Work, add_scaled, squared_norm, widest};

/// Rows that one task of the first pass handles.
const ROWS: usize = 256;
/// Features of one tile.
const TILE: usize = 256;
/// Rows whose entries are held at once in the second pass.
const BLOCK: usize = 1024;

/// What the first pass leaves.
struct Forward {
    /// `2 (x̂ − x) / n` of each channel, `[n, d_out]`.
    gradients: [Vec<f32>; 2],
    /// `λ/n · P'(S)` of every row.
    pushes: Vec<f32>,
    loss: Loss,
    bias: Vec<f32>,
    active: u64,
}

/// Computes everything that [`super::features::gradients`] does, and the report.
pub(super) fn gradients<E: Precision, R: Rule>(
    batch: &Batch<'_, E>,
    rule: &R,
    push: f32,
    gradients: &mut Parameters,
) -> BatchReport {
    let forward = forward(batch, rule, push);
    let (fired, mut squared_gradient) = backward(batch, rule, &forward, gradients);
    squared_gradient += skip::gradient(batch, &forward.gradients[0], gradients);
    let l0 = forward.active as f64 / batch.n as f64;
    BatchReport { loss: forward.loss, l0, fired, squared_gradient, least: None }
}

/// Rows in tasks: reconstructions, errors, penalties.
fn forward<E: Precision, R: Rule>(batch: &Batch<'_, E>, rule: &R, push: f32) -> Forward {
    let (n, d, f, out) = (batch.n, batch.d, batch.f, batch.decoder_width());
    let weights = batch.weights;
    let w_enc = E::right_transposed(&weights.w_enc, None, f, d);
    let w_dec = E::right(&weights.w_dec, f, out);
    let mut forward = Forward {
        gradients: [vec![0.0; n * out], vec![0.0; if R::CHANNELS > 1 { n * out } else { 0 }]],
        pushes: vec![0.0; n],
        loss: Loss::default(),
        bias: vec![0.0; out],
        active: 0,
    };
    let [first, second] = &mut forward.gradients;
    let mut second = second.chunks_mut(ROWS * out);
    let tasks: Vec<_> = first
        .chunks_mut(ROWS * out)
        .zip(forward.pushes.chunks_mut(ROWS))
        .enumerate()
        .map(|(task, (first, pushes))| (task * ROWS, [first, second.next().unwrap_or_default()], pushes))
        .collect();
    let parts: Vec<(Loss, Vec<f32>, u64)> = tasks
        .into_par_iter()
        .map(|(first, mut outputs, pushes)| {
            let rows = pushes.len();
            for row in outputs.iter_mut().flat_map(|rows| rows.chunks_exact_mut(out)) {
                row.copy_from_slice(&weights.b_dec);
            }
            let mut tiles = [vec![0.0; rows * TILE], vec![0.0; if R::CHANNELS > 1 { rows * TILE } else { 0 }]];
            let (mut sizes, mut active) = (vec![0.0f64; rows], 0);
            for start in (0..f).step_by(TILE) {
                let features = start..(start + TILE).min(f);
                let width = features.len();
                let [values, gates] = &mut tiles;
                let values = &mut values[..rows * width];
                E::multiply(values, (&batch.left, first..first + rows), (&w_enc, features.clone()), 0..d, false);
                for (i, row) in values.chunks_exact_mut(width).enumerate() {
                    let gates = gates.get_mut(i * width..(i + 1) * width).unwrap_or_default();
                    let bias = &weights.b_enc[features.clone()];
                    let (size, count) = widest(Values { rule, first: start, bias, row, gates });
                    sizes[i] += size;
                    active += u64::from(count);
                }
                for (tile, output) in tiles.iter().zip(&mut outputs).take(R::CHANNELS) {
                    let left = E::left(&tile[..rows * width], rows, width);
                    E::multiply(output, (&left, 0..rows), (&w_dec, 0..out), features.clone(), true);
                }
            }
            let mut loss = Loss::default();
            let mut bias = vec![0.0; out];
            for (channel, output) in outputs.iter_mut().enumerate().take(R::CHANNELS) {
                for (i, row) in output.chunks_exact_mut(out).enumerate() {
                    row.iter_mut().zip(batch.target_row(first + i)).for_each(|(y, x)| *y -= x);
                    let squared = f64::from(squared_norm(row)) / n as f64;
                    if channel == 0 {
                        loss.mse += squared;
                    } else {
                        loss.auxiliary += squared;
                    }
                    for e in row.iter_mut() {
                        *e *= 2.0 / n as f32;
                    }
                    add_scaled(&mut bias, 1.0, row);
                }
            }
            for (to, size) in pushes.iter_mut().zip(sizes) {
                let (penalty, slope) = rule.penalty(size);
                loss.sparsity += penalty / n as f64;
                *to = push * slope as f32;
            }
            (loss, bias, active)
        })
        .collect();
    for (loss, bias, active) in parts {
        forward.loss.add(loss);
        add_scaled(&mut forward.bias, 1.0, &bias);
        forward.active += active;
    }
    forward
}

/// Tiles of features in tasks: pre-activations again, gradients by them, and both weight gradients.
fn backward<E: Precision, R: Rule>(
    batch: &Batch<'_, E>,
    rule: &R,
    forward: &Forward,
    gradients: &mut Parameters,
) -> (Vec<u32>, f64) {
    let (n, d, f, out) = (batch.n, batch.d, batch.f, batch.decoder_width());
    let centered: Vec<f32> = batch.centered.par_iter().map(|x| x.widen()).collect();
    let sides = Sides::<E> {
        by_row: E::right_transposed(&centered, None, n, d),
        rows: E::right(&centered, n, d),
        errors_by_row: (0..R::CHANNELS).map(|c| E::right_transposed(&forward.gradients[c], None, n, out)).collect(),
        errors: (0..R::CHANNELS).map(|c| E::right(&forward.gradients[c], n, out)).collect(),
    };
    let mut fired = vec![0u32; f];
    let parts: Vec<(Vec<f32>, f64)> = Slice::cut(gradients, &mut fired, TILE)
        .into_par_iter()
        .map(|mut slice| sides.tile(batch, rule, &forward.pushes, &mut slice))
        .collect();
    let mut b_dec = forward.bias.clone();
    let mut squares = 0.0;
    for (part, square) in &parts {
        if !part.is_empty() {
            add_scaled(&mut b_dec, 1.0, part);
        }
        squares += square;
    }
    squares += f64::from(squared_norm(&b_dec));
    gradients.b_dec = b_dec;
    (fired, squares)
}

/// The rows and errors as right sides of products.
struct Sides<'a, E: Precision> {
    /// `[d_in, n]`.
    by_row: E::Right<'a>,
    /// `[n, d_in]`.
    rows: E::Right<'a>,
    /// `[d_out, n]` a channel.
    errors_by_row: Vec<E::Right<'a>>,
    /// `[n, d_out]` a channel.
    errors: Vec<E::Right<'a>>,
}

impl<E: Precision> Sides<'_, E> {
    /// All gradients of the features of `slice`; gives what reaches `b_dec` through the encoder, and the squares.
    fn tile<R: Rule>(&self, batch: &Batch<'_, E>, rule: &R, pushes: &[f32], slice: &mut Slice<'_>) -> (Vec<f32>, f64) {
        let (n, d, out) = (batch.n, batch.d, batch.decoder_width());
        let width = slice.b_enc.len();
        let span = |d: usize| slice.first * d..(slice.first + width) * d;
        let encoder = E::left(&batch.weights.w_enc[span(d)], width, d);
        let decoder = E::left(&batch.weights.w_dec[span(out)], width, out);
        slice.w_enc.fill(0.0);
        slice.w_dec.fill(0.0);
        let mut sums = vec![EntryGradient::default(); width];
        let mut tiles: Vec<Vec<f32>> = vec![vec![0.0; width * BLOCK.min(n)]; 1 + R::CHANNELS];
        for start in (0..n).step_by(BLOCK) {
            let rows = start..(start + BLOCK).min(n);
            let count = width * rows.len();
            let (pres, pulls) = tiles.split_at_mut(1);
            let pres = &mut pres[0][..count];
            E::multiply(pres, (&encoder, 0..width), (&self.by_row, rows.clone()), 0..d, false);
            for (pulls, errors) in pulls.iter_mut().zip(&self.errors_by_row) {
                E::multiply(&mut pulls[..count], (&decoder, 0..width), (errors, rows.clone()), 0..out, false);
            }
            for (i, sums) in sums.iter_mut().enumerate() {
                let f = slice.first + i;
                let bias = batch.weights.b_enc[f];
                let span = i * rows.len()..(i + 1) * rows.len();
                let (value_pulls, gate_pulls) = pulls.split_at_mut(1);
                let gate_pulls = gate_pulls.first_mut().map(|gates| &mut gates[span.clone()]).unwrap_or_default();
                let (added, active) = widest(Gradients {
                    rule,
                    f,
                    bias,
                    pushes: &pushes[rows.clone()],
                    pres: &mut pres[span.clone()],
                    pulls: &mut value_pulls[0][span],
                    gate_pulls,
                });
                sums.add(added);
                slice.fired[i] += active;
            }
            let left = E::left(pres, width, rows.len());
            E::multiply(slice.w_enc, (&left, 0..width), (&self.rows, 0..d), rows.clone(), true);
            for (values, errors) in pulls.iter().zip(&self.errors) {
                let left = E::left(&values[..count], width, rows.len());
                E::multiply(slice.w_dec, (&left, 0..width), (errors, 0..out), rows.clone(), true);
            }
        }
        let encoder_sums: Vec<f32> = sums.iter().map(|sums| sums.encoder).collect();
        for (i, sums) in sums.into_iter().enumerate() {
            slice.put(batch, i, sums);
        }
        (slice.bias_through_encoder(batch, &encoder_sums), slice.squares())
    }
}

/// Entries that the loops over tiles take together, with a partial sum each.
const LANES: usize = 16;

/// Turns a row of a tile of pre-activations without bias into values; gives the row's part of `S` and the number of
/// active entries.
struct Values<'a, R> {
    rule: &'a R,
    first: usize,
    bias: &'a [f32],
    row: &'a mut [f32],
    gates: &'a mut [f32],
}

impl<R: Rule> Work for Values<'_, R> {
    type Output = (f64, u32);

    #[inline(always)]
    fn run(self) -> (f64, u32) {
        let Self { rule, first, bias, row, gates } = self;
        let (mut sizes, mut active) = ([0.0f32; LANES], [0u32; LANES]);
        for start in (0..row.len()).step_by(LANES) {
            let end = (start + LANES).min(row.len());
            let lanes = sizes.iter_mut().zip(&mut active);
            let entries = row[start..end].iter_mut().zip(&bias[start..end]);
            for (j, ((size, active), (entry, bias))) in lanes.zip(entries).enumerate() {
                let f = first + start + j;
                let pre = *entry + bias;
                let [value, gate] = rule.values(f, pre);
                *size += rule.size(f, pre);
                *active += u32::from(value != 0.0);
                *entry = value;
                if R::CHANNELS > 1 {
                    gates[start + j] = gate;
                }
            }
        }
        (sizes.iter().map(|size| f64::from(*size)).sum(), active.iter().sum())
    }
}

/// Turns pre-activations of one feature into gradients to the encoder, and pulls into values; gives the sums of
/// gradients and the number of active entries.
struct Gradients<'a, R> {
    rule: &'a R,
    f: usize,
    bias: f32,
    pushes: &'a [f32],
    pres: &'a mut [f32],
    pulls: &'a mut [f32],
    gate_pulls: &'a mut [f32],
}

impl<R: Rule> Work for Gradients<'_, R> {
    type Output = (EntryGradient, u32);

    #[inline(always)]
    fn run(self) -> (EntryGradient, u32) {
        let Self { rule, f, bias, pushes, pres, pulls, gate_pulls } = self;
        let (mut sums, mut active) = ([EntryGradient::default(); LANES], [0u32; LANES]);
        for start in (0..pres.len()).step_by(LANES) {
            let end = (start + LANES).min(pres.len());
            let lanes = sums.iter_mut().zip(&mut active);
            let entries = pres[start..end].iter_mut().zip(&mut pulls[start..end]).zip(&pushes[start..end]);
            for (j, ((sum, active), ((pre, pull), push))) in lanes.zip(entries).enumerate() {
                let u = *pre + bias;
                let second = if R::CHANNELS > 1 { gate_pulls[start + j] } else { 0.0 };
                let gradient = rule.gradient(f, u, [*pull, second], *push);
                let [value, gate] = rule.values(f, u);
                *active += u32::from(value != 0.0);
                *pre = gradient.encoder;
                *pull = value;
                if R::CHANNELS > 1 {
                    gate_pulls[start + j] = gate;
                }
                sum.add(gradient);
            }
        }
        let mut total = EntryGradient::default();
        for sum in sums {
            total.add(sum);
        }
        (total, active.iter().sum())
    }
}
