//! The gradients of one batch on the CPU: one dense product for the encoder, then active pairs only.
//!
//! While most features are still active, pairs are no cheaper than tiles. Above [`DENSE_ABOVE`] the decoder and the
//! gradients are dense products over tiles of features, filled from the codes. The choice depends on the density
//! alone, never on measured time, so results can be reproduced.

use rayon::prelude::*;

use super::loss::Loss;
use super::parameters::Parameters;
use crate::dictionary::SparseCodes;
use crate::dictionary::arch::Activation;
use crate::dictionary::encoder::{Encoder, centered};
use crate::dictionary::metrics::column_sums;
use crate::ops::{self, Matrix, gemm, sparse};

/// Share of active pairs above which tiles are faster.
const DENSE_ABOVE: f64 = 0.2;
/// Rows that one task decodes.
const ROWS: usize = 256;
/// Features of one dense tile.
const TILE: usize = 512;
/// Features whose gradients one task computes from pairs.
const FEATURES: usize = 16;

/// What a step found out about its batch.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct BatchReport {
    /// The loss before the update.
    pub(super) loss: Loss,
    /// Mean number of active features.
    pub(super) l0: f64,
    /// Rows on which each feature was active, `[f]`.
    pub(super) fired: Vec<u32>,
}

/// Buffers that live from step to step.
#[derive(Debug)]
pub(super) struct Workspace {
    /// The gradients of the last batch.
    pub(super) gradients: Parameters,
    /// [`DENSE_ABOVE`], but for tests.
    pub(super) dense_above: f64,
    /// `2 (x̂ − x) / n`, `[n, d]`.
    output_gradient: Vec<f32>,
    /// `∂L/∂u` of each active pair.
    pair_gradient: Vec<f32>,
}

/// One batch on its way back.
struct Batch<'a> {
    weights: &'a Parameters,
    norms: &'a [f32],
    x: &'a [f32],
    centered: &'a [f32],
    codes: &'a SparseCodes,
    dense: bool,
    /// `λ / n`.
    penalty: f32,
}

/// Sums over the rows of one task.
#[derive(Clone, Copy, Default)]
struct RowSums {
    squared_error: f64,
    weighted_l1: f64,
}

impl Workspace {
    /// Buffers for `f` features of width `d`.
    pub(super) fn new(d: usize, f: usize) -> Self {
        Self {
            gradients: Parameters::zeros(d, f),
            dense_above: DENSE_ABOVE,
            output_gradient: Vec::new(),
            pair_gradient: Vec::new(),
        }
    }

    /// Computes the gradients of the loss on the rows `x`, `[n, d]`, into [`Workspace::gradients`].
    pub(super) fn gradients(&mut self, weights: &Parameters, x: &[f32], l1_coefficient: f64) -> BatchReport {
        let n = x.len() / weights.width;
        let norms = weights.decoder_norms();
        let centered = centered(x, Some(&weights.b_dec));
        let codes = encode(weights, &centered);
        let dense = codes.len() as f64 > self.dense_above * n as f64 * weights.features() as f64;
        let penalty = (l1_coefficient / n as f64) as f32;
        let batch = Batch { weights, norms: &norms, x, centered: &centered, codes: &codes, dense, penalty };
        self.output_gradient.resize(x.len(), 0.0);
        self.pair_gradient.resize(codes.len(), 0.0);
        let sums = batch.rows(&mut self.output_gradient, &mut self.pair_gradient);
        let fired = if dense {
            batch.features_dense(&self.output_gradient, &self.pair_gradient, &mut self.gradients)
        } else {
            batch.features_sparse(&self.output_gradient, &self.pair_gradient, &mut self.gradients)
        };
        batch.decoder_bias(&self.output_gradient, &mut self.gradients);
        let loss = Loss { mse: sums.squared_error / n as f64, l1: sums.weighted_l1 / n as f64 };
        BatchReport { loss, l0: codes.len() as f64 / n as f64, fired }
    }
}

/// Codes of rows from which the decoder bias has been subtracted.
pub(super) fn encode(weights: &Parameters, centered: &[f32]) -> SparseCodes {
    let weight = Matrix::new(&weights.w_enc, weights.features(), weights.width).t();
    Encoder { weight, center: None, bias: &weights.b_enc, activation: &Activation::Relu }.encode(centered)
}

impl Batch<'_> {
    /// Decodes all rows and goes back as far as the codes: fills `∂L/∂x̂` and `∂L/∂u`.
    fn rows(&self, output_gradient: &mut [f32], pair_gradient: &mut [f32]) -> RowSums {
        let d = self.weights.width;
        let pairs = sparse::split_by_rows(pair_gradient, &self.codes.offsets, ROWS);
        let parts: Vec<RowSums> = output_gradient
            .par_chunks_mut(ROWS * d)
            .zip(pairs)
            .enumerate()
            .map(|(block, (g, pairs))| {
                let first = block * ROWS;
                if self.dense { self.rows_dense(first, g, pairs) } else { self.rows_sparse(first, g, pairs) }
            })
            .collect();
        parts.iter().fold(RowSums::default(), |total, part| RowSums {
            squared_error: total.squared_error + part.squared_error,
            weighted_l1: total.weighted_l1 + part.weighted_l1,
        })
    }

    fn rows_sparse(&self, first: usize, g: &mut [f32], mut pairs: &mut [f32]) -> RowSums {
        let d = self.weights.width;
        let mut sums = RowSums::default();
        for (i, g) in g.chunks_exact_mut(d).enumerate() {
            let (features, values) = self.codes.row(first + i);
            g.copy_from_slice(&self.weights.b_dec);
            sparse::decode_row(g, features, values, &self.weights.w_dec);
            sums.squared_error += self.residual(first + i, g);
            let (row, rest) = std::mem::take(&mut pairs).split_at_mut(features.len());
            sparse::dots_row(row, features, g, &self.weights.w_dec);
            sums.weighted_l1 += self.penalise(features, values, row);
            pairs = rest;
        }
        sums
    }

    fn rows_dense(&self, first: usize, g: &mut [f32], pairs: &mut [f32]) -> RowSums {
        let (d, f) = (self.weights.width, self.weights.features());
        let n = g.len() / d;
        let offset = self.codes.offsets[first];
        let decoder = Matrix::new(&self.weights.w_dec, f, d);
        let mut tile = vec![0.0; n * TILE.min(f)];
        for row in g.chunks_exact_mut(d) {
            row.copy_from_slice(&self.weights.b_dec);
        }
        for features in tiles(f) {
            let tile = &mut tile[..n * features.len()];
            self.scatter(first, &features, &self.codes.values, tile);
            gemm::multiply_here(g, Matrix::new(tile, n, features.len()), decoder.rows(features), true);
        }
        let mut sums = RowSums::default();
        for (i, g) in g.chunks_exact_mut(d).enumerate() {
            sums.squared_error += self.residual(first + i, g);
        }
        for features in tiles(f) {
            let width = features.len();
            let tile = &mut tile[..n * width];
            gemm::multiply_here(tile, Matrix::new(g, n, d), decoder.rows(features.clone()).t(), false);
            for (i, tile) in tile.chunks_exact(width).enumerate() {
                for pair in self.pairs_within(first + i, &features) {
                    pairs[pair - offset] = tile[self.codes.features[pair] as usize - features.start];
                }
            }
        }
        for i in 0..n {
            let (active, values) = self.codes.row(first + i);
            let range = self.codes.offsets[first + i] - offset..self.codes.offsets[first + i + 1] - offset;
            sums.weighted_l1 += self.penalise(active, values, &mut pairs[range]);
        }
        sums
    }

    /// Turns a reconstruction into `2 (x̂ − x) / n`; gives the squared error.
    fn residual(&self, row: usize, g: &mut [f32]) -> f64 {
        let d = self.weights.width;
        let factor = 2.0 / self.codes.rows() as f32;
        let x = &self.x[row * d..][..d];
        g.iter_mut().zip(x).for_each(|(g, x)| *g -= x);
        let squared_error = ops::squared_norm(g);
        for g in g {
            *g *= factor;
        }
        f64::from(squared_error)
    }

    /// Adds the penalty's part to the gradients of one row's pairs; gives `Σ z ‖W_dec‖`.
    fn penalise(&self, features: &[u32], values: &[f32], pairs: &mut [f32]) -> f64 {
        let mut weighted = 0.0f64;
        for ((&feature, &value), pair) in features.iter().zip(values).zip(pairs) {
            let norm = self.norms[feature as usize];
            weighted += f64::from(value * norm);
            *pair += self.penalty * norm;
        }
        weighted
    }

    /// Gradients of both matrices and the encoder bias, pair by pair; gives the firing counts.
    fn features_sparse(&self, g: &[f32], pair_gradient: &[f32], gradients: &mut Parameters) -> Vec<u32> {
        let d = self.weights.width;
        let by_feature = self.codes.by_feature();
        let tasks = gradients
            .w_enc
            .par_chunks_mut(FEATURES * d)
            .zip(gradients.w_dec.par_chunks_mut(FEATURES * d))
            .zip(gradients.b_enc.par_chunks_mut(FEATURES));
        tasks.enumerate().for_each(|(task, ((w_enc, w_dec), b_enc))| {
            let rows = w_enc.chunks_exact_mut(d).zip(w_dec.chunks_exact_mut(d)).zip(b_enc);
            for (i, ((w_enc, w_dec), b_enc)) in rows.enumerate() {
                let feature = task * FEATURES + i;
                let (rows, pairs) = by_feature.feature(feature);
                w_enc.fill(0.0);
                w_dec.fill(0.0);
                sparse::accumulate(w_enc, rows, pairs, pair_gradient, self.centered);
                sparse::accumulate(w_dec, rows, pairs, &self.codes.values, g);
                *b_enc = pairs.iter().map(|&pair| pair_gradient[pair as usize]).sum();
                let activity = pairs.iter().map(|&pair| self.codes.values[pair as usize]).sum();
                self.penalise_norm(feature, activity, w_dec);
            }
        });
        by_feature.offsets.windows(2).map(|w| (w[1] - w[0]) as u32).collect()
    }

    /// The same by dense products over tiles of features.
    fn features_dense(&self, g: &[f32], pair_gradient: &[f32], gradients: &mut Parameters) -> Vec<u32> {
        let (d, n) = (self.weights.width, self.codes.rows());
        let (g, centered) = (Matrix::new(g, n, d), Matrix::new(self.centered, n, d));
        let mut fired = vec![0u32; self.weights.features()];
        let tasks = gradients
            .w_enc
            .par_chunks_mut(TILE * d)
            .zip(gradients.w_dec.par_chunks_mut(TILE * d))
            .zip(gradients.b_enc.par_chunks_mut(TILE))
            .zip(fired.par_chunks_mut(TILE));
        tasks.enumerate().for_each(|(task, (((w_enc, w_dec), b_enc), fired))| {
            let width = b_enc.len();
            let features = task * TILE..task * TILE + width;
            let mut tile = vec![0.0; n * width];
            self.scatter(0, &features, pair_gradient, &mut tile);
            gemm::multiply_here(w_enc, Matrix::new(&tile, n, width).t(), centered, false);
            b_enc.fill(0.0);
            tile.chunks_exact(width).for_each(|row| ops::add_scaled(b_enc, 1.0, row));
            self.scatter(0, &features, &self.codes.values, &mut tile);
            gemm::multiply_here(w_dec, Matrix::new(&tile, n, width).t(), g, false);
            let mut activity = vec![0.0; width];
            for row in tile.chunks_exact(width) {
                ops::add_scaled(&mut activity, 1.0, row);
                fired.iter_mut().zip(row).for_each(|(fired, z)| *fired += u32::from(*z > 0.0));
            }
            for (i, w_dec) in w_dec.chunks_exact_mut(d).enumerate() {
                self.penalise_norm(features.start + i, activity[i], w_dec);
            }
        });
        fired
    }

    /// Adds the gradient of the decoder norm, `(λ/n) Σ z · W / ‖W‖`.
    fn penalise_norm(&self, feature: usize, activity: f32, w_dec: &mut [f32]) {
        let d = self.weights.width;
        let factor = self.penalty * activity / self.norms[feature].max(f32::MIN_POSITIVE);
        ops::add_scaled(w_dec, factor, &self.weights.w_dec[feature * d..][..d]);
    }

    /// `Σ_b g_b − Σ_f ∂L/∂b_enc,f · W_enc,f`.
    fn decoder_bias(&self, g: &[f32], gradients: &mut Parameters) {
        let d = self.weights.width;
        let through_encoder: Vec<Vec<f32>> = self
            .weights
            .w_enc
            .par_chunks(TILE * d)
            .zip(gradients.b_enc.par_chunks(TILE))
            .map(|(w_enc, b_enc)| {
                let mut sum = vec![0.0; d];
                w_enc.chunks_exact(d).zip(b_enc).for_each(|(row, b)| ops::add_scaled(&mut sum, *b, row));
                sum
            })
            .collect();
        gradients.b_dec.iter_mut().zip(column_sums(g, d)).for_each(|(to, sum)| *to = sum as f32);
        for part in &through_encoder {
            ops::add_scaled(&mut gradients.b_dec, -1.0, part);
        }
    }

    /// Writes one value a pair into the dense tile `[rows, features]` that starts at row `first`.
    fn scatter(&self, first: usize, features: &std::ops::Range<usize>, values: &[f32], tile: &mut [f32]) {
        tile.fill(0.0);
        for (i, tile) in tile.chunks_exact_mut(features.len()).enumerate() {
            for pair in self.pairs_within(first + i, features) {
                tile[self.codes.features[pair] as usize - features.start] = values[pair];
            }
        }
    }

    /// The pairs of `row` whose feature lies in `features`.
    fn pairs_within(&self, row: usize, features: &std::ops::Range<usize>) -> std::ops::Range<usize> {
        let offset = self.codes.offsets[row];
        let active = self.codes.row(row).0;
        let start = active.partition_point(|&f| (f as usize) < features.start);
        let end = active.partition_point(|&f| (f as usize) < features.end);
        offset + start..offset + end
    }
}

/// `0..f` in steps of [`TILE`].
fn tiles(f: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    (0..f).step_by(TILE).map(move |first| first..(first + TILE).min(f))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::dictionary::train::optimiser;
    use crate::dictionary::train::parameters::State;
    use crate::ops::gemm::tests::numbers;

    /// Seconds of a step at the sizes of SmolLM2 with 8 features a dimension, by number of active features:
    /// `cargo test --release --lib step_time -- --ignored --nocapture`.
    #[test]
    #[ignore = "a measurement"]
    fn step_time() {
        let (d, n) = (576, 4096);
        let x: Vec<f32> = numbers(n * d, "x").iter().map(|x| x * 1.7).collect();
        for (f, biases) in
            [(4608, [0.0, -0.05, -0.12, -0.16, -0.21, -0.25]), (16384, [0.0, -0.05, -0.12, -0.16, -0.21, -0.29])]
        {
            for bias in biases {
                let mut state = State::new(Parameters::initial(d, f, 0.1, vec![0.0; d], 1));
                state.weights.b_enc.fill(bias);
                for dense_above in [0.0, 1.0] {
                    let mut workspace = Workspace::new(d, f);
                    workspace.dense_above = dense_above;
                    let mut times = Vec::new();
                    let mut l0 = 0.0;
                    for _ in 0..4 {
                        let begun = Instant::now();
                        l0 = workspace.gradients(&state.weights, &x, 1.0).l0;
                        optimiser::update(&mut state, &workspace.gradients, 0.0);
                        times.push(begun.elapsed().as_secs_f64());
                    }
                    times.sort_by(f64::total_cmp);
                    let path = if dense_above < 0.5 { "tiles" } else { "pairs" };
                    println!("f {f:>6}  L0 {l0:>7.1}  {path}  {:.3} s", times[0]);
                }
            }
            let state = State::new(Parameters::initial(d, f, 0.1, vec![0.0; d], 1));
            let begun = Instant::now();
            encode(&state.weights, &x);
            println!("f {f:>6}  encode half active {:.3} s", begun.elapsed().as_secs_f64());
        }
    }
}
