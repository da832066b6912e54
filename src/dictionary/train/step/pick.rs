//! The encoder product by tiles, of which only the entries that matter stay.

use std::borrow::Cow;

use rayon::prelude::*;

use super::super::method::Rule;
use super::super::operand::Precision;
use super::super::settings::Top;
use super::Batch;
use crate::dictionary::SparseCodes;
use crate::ops::compact::{Limit, Picked, TopK, rank};

/// Rows that one task encodes.
const ROWS: usize = 256;
/// Features of one tile: a tile is 512 KiB, which stays in a core's cache until it is read.
const TILE: usize = 512;
/// Rows that stand for a batch where its density or its largest entries are guessed.
const SAMPLE: usize = 64;

/// The encoder of one step.
pub(super) struct Encoder<'a, E: Precision> {
    left: &'a E::Left,
    weight: E::Right<'a>,
    bias: Cow<'a, [f32]>,
    /// Decoder norms that pre-activations are multiplied by before they compete.
    scale: Option<&'a [f32]>,
    d: usize,
    f: usize,
}

impl<'a, E: Precision> Encoder<'a, E> {
    /// The encoder of `batch`, multiplied by `scale` a feature.
    pub(super) fn new<'b: 'a>(batch: &'a Batch<'b, E>, scale: Option<&'a [f32]>) -> Self {
        let (d, f) = (batch.d, batch.f);
        let weights = batch.weights;
        let bias: Cow<[f32]> = match scale {
            None => (&weights.b_enc).into(),
            Some(scale) => weights.b_enc.iter().zip(scale).map(|(b, s)| b * s).collect(),
        };
        let weight = E::right_transposed(&weights.w_enc, scale, f, d);
        Self { left: &batch.left, weight, bias, scale, d, f }
    }

    /// An encoder with the rows `weights`, `[f, d]`, for rows `left`.
    pub(super) fn of(left: &'a E::Left, weights: &'a [f32], bias: &'a [f32], d: usize) -> Self {
        let f = bias.len();
        Self { left, weight: E::right_transposed(weights, None, f, d), bias: bias.into(), scale: None, d, f }
    }

    /// Calls `visit` with every tile of the rows from `first` on: the first feature and pre-activations `[n, width]`
    /// without the bias.
    fn tiles(&self, first: usize, n: usize, mut visit: impl FnMut(usize, &[f32])) {
        let mut tile = vec![0.0; n * TILE.min(self.f)];
        for feature in (0..self.f).step_by(TILE) {
            let width = TILE.min(self.f - feature);
            let tile = &mut tile[..n * width];
            let columns = feature..feature + width;
            E::multiply(tile, (self.left, first..first + n), (&self.weight, columns), 0..self.d, false);
            visit(feature, tile);
        }
    }

    fn bias(&self, feature: usize, width: usize) -> &[f32] {
        &self.bias[feature..feature + width]
    }

    /// Turns competing values back into pre-activations.
    fn unscale(&self, codes: &mut SparseCodes) {
        let Some(scale) = self.scale else { return };
        for (value, feature) in codes.values.iter_mut().zip(&codes.features) {
            *value /= scale[*feature as usize].max(f32::MIN_POSITIVE);
        }
    }

    /// Runs `work(first row, rows)` on every [`ROWS`] rows, and puts the parts together.
    fn in_parts(&self, n: usize, work: impl Fn(usize, usize) -> SparseCodes + Sync) -> SparseCodes {
        let starts: Vec<usize> = (0..n).step_by(ROWS).collect();
        SparseCodes::joined(self.f, starts.into_par_iter().map(|first| work(first, ROWS.min(n - first))).collect())
    }
}

/// Share of entries above `rule`'s limits, from every `n / 64`th row.
pub(super) fn density<E: Precision, R: Rule>(encoder: &Encoder<'_, E>, n: usize, rule: &R) -> f64 {
    let limits: Vec<f32> = (0..encoder.f).map(|f| rule.limit(f)).collect();
    let rows = SAMPLE.min(n);
    let mut picked = Picked::default();
    encoder.tiles(0, rows, |first, tile| {
        let width = tile.len() / rows;
        let limits = Limit::Each(&limits[first..first + width]);
        for pre in tile.chunks_exact(width) {
            picked.above(pre, encoder.bias(first, width), limits, first as u32);
        }
    });
    picked.values.len() as f64 / (rows * encoder.f) as f64
}

/// The entries above `limits`, `[f]`.
pub(super) fn above<E: Precision>(encoder: &Encoder<'_, E>, n: usize, limits: &[f32]) -> SparseCodes {
    encoder.in_parts(n, |first, n| {
        let mut rows = vec![Picked::default(); n];
        encoder.tiles(first, n, |feature, tile| {
            let width = tile.len() / n;
            let (bias, limits) = (encoder.bias(feature, width), Limit::Each(&limits[feature..feature + width]));
            for (pre, row) in tile.chunks_exact(width).zip(&mut rows) {
                row.above(pre, bias, limits, feature as u32);
            }
        });
        let mut codes = SparseCodes::new(encoder.f);
        for row in &rows {
            codes.push_row(&row.indices, &row.values);
        }
        codes
    })
}

/// The `k` largest entries above `floor` of every row.
pub(super) fn top_of_rows<E: Precision>(encoder: &Encoder<'_, E>, n: usize, k: usize, floor: f32) -> SparseCodes {
    encoder.in_parts(n, |first, n| {
        let mut rows = vec![TopK::new(k, floor); n];
        encoder.tiles(first, n, |feature, tile| {
            let width = tile.len() / n;
            for (pre, row) in tile.chunks_exact(width).zip(&mut rows) {
                row.offer(pre, encoder.bias(feature, width), feature as u32);
            }
        });
        let mut codes = SparseCodes::new(encoder.f);
        for row in &mut rows {
            let Picked { indices, values } = row.finish();
            codes.push_row(indices, values);
        }
        codes
    })
}

/// The pre-activations that win a place, and the least of them where all rows compete.
pub(super) fn compete<E: Precision>(batch: &Batch<'_, E>, top: &Top) -> (SparseCodes, Option<f32>) {
    let encoder = Encoder::new(batch, top.rescale.then_some(batch.norms.as_slice()));
    let (mut codes, least) = if top.whole_batch {
        top_of_batch(&encoder, batch.n, (top.k * batch.n as f64) as usize)
    } else {
        (top_of_rows(&encoder, batch.n, top.k as usize, 0.0), None)
    };
    encoder.unscale(&mut codes);
    (codes, least)
}

/// The `count` largest positive entries of the whole batch, of equal ones the first; and the least of them.
///
/// Entries above a guess are gathered first. A guess that was too high costs time, but does not change the result.
pub(super) fn top_of_batch<E: Precision>(
    encoder: &Encoder<'_, E>,
    n: usize,
    count: usize,
) -> (SparseCodes, Option<f32>) {
    let guess = guess(encoder, n, count);
    let mut codes = above(encoder, n, &vec![guess; encoder.f]);
    if codes.len() < count && guess > 0.0 {
        codes = above(encoder, n, &vec![0.0; encoder.f]);
    }
    if codes.len() > count {
        keep(&mut codes, count);
    }
    let least = codes.values.iter().copied().min_by(f32::total_cmp);
    (codes, least)
}

/// A value that is likely to be a little below the `count`th largest of the batch.
fn guess<E: Precision>(encoder: &Encoder<'_, E>, n: usize, count: usize) -> f32 {
    const MARGIN: f64 = 1.5;
    let rows = SAMPLE.min(n);
    let wanted = (count as f64 / n as f64 * rows as f64 * MARGIN) as usize + rows;
    let mut top = TopK::new(wanted, 0.0);
    let mut index = 0;
    encoder.tiles(0, rows, |first, tile| {
        let width = tile.len() / rows;
        for pre in tile.chunks_exact(width) {
            top.offer(pre, encoder.bias(first, width), index);
            index += width as u32;
        }
    });
    let values = &top.finish().values;
    if values.len() < wanted { 0.0 } else { values.iter().copied().fold(f32::INFINITY, f32::min) }
}

/// Reduces `codes` to the `count` largest, of equal ones the first.
fn keep(codes: &mut SparseCodes, count: usize) {
    let mut ranked: Vec<u64> = (0u32..).zip(&codes.values).map(|(at, value)| rank(*value, at)).collect();
    if count > 0 {
        ranked.select_nth_unstable_by(count - 1, |a, b| b.cmp(a));
    }
    let least = if count > 0 { ranked[count - 1] } else { u64::MAX };
    let (mut filled, mut start) = (0, 0);
    for row in 0..codes.rows() {
        let end = codes.offsets[row + 1];
        for at in start..end {
            if rank(codes.values[at], at as u32) >= least {
                codes.features[filled] = codes.features[at];
                codes.values[filled] = codes.values[at];
                filled += 1;
            }
        }
        start = end;
        codes.offsets[row + 1] = filled;
    }
    codes.features.truncate(filled);
    codes.values.truncate(filled);
}
