//! The gradients of one batch on the CPU: one dense product for the encoder, then active pairs only.
//!
//! ```text
//! pick     (x − b_dec) W_enc + b_enc by tiles, of which the entries that matter stay      dense, low precision
//! rows     decode, error, pull of the error on every pair                                 a row at a time
//! features gradients of W_enc, W_dec and everything else a feature has                    a feature at a time
//! ```
//!
//! While many features are still active, pairs cost more than tiles do; then `tiles` computes the same gradients as
//! dense products over tiles of features. The choice depends on the density of the batch alone, never on measured
//! time, so results can be reproduced.

use std::borrow::Cow;

use rayon::prelude::*;

use super::loss::Loss;
use super::method::{Chosen, Gated, JumpRelu, L1, Relu, Rule};
use super::operand::Precision;
use super::parameters::{Parameters, Shape, State};
use super::settings::{Method, TrainPlan};
use crate::base::DtypeChoice;
use crate::dictionary::SparseCodes;
use crate::dictionary::encoder::centered;
use crate::ops::bf16::Kernel;

mod auxiliary;
pub(super) mod cross;
mod features;
mod pick;
mod rows;
mod skip;
mod tiles;

use auxiliary::{Auxiliary, pre_activation_loss};
use pick::Encoder;

/// What a step is told beside its rows.
#[derive(Debug, Clone, Copy)]
pub(super) struct StepInput<'a> {
    /// Scaled rows, `[n, d_in]`.
    pub(super) x: &'a [f32],
    /// The scaled rows that a transcoder reconstructs, `[n, d_out]`; `x` where there are none.
    pub(super) target: Option<&'a [f32]>,
    /// Weight of the penalty, `λ`.
    pub(super) coefficient: f64,
    /// Exponent of the penalty, where it is annealed.
    pub(super) exponent: f64,
    /// Features that are dead, ascending.
    pub(super) dead: &'a [u32],
}

/// What a step found out about its batch.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct BatchReport {
    /// The loss before the update.
    pub(super) loss: Loss,
    /// Mean number of active features.
    pub(super) l0: f64,
    /// Rows on which each feature was active, `[f]`.
    pub(super) fired: Vec<u32>,
    /// Squared length of all gradients together.
    pub(super) squared_gradient: f64,
    /// The least activation that batch-wide selection let through.
    pub(super) least: Option<f32>,
}

/// Buffers that live from step to step.
#[derive(Debug)]
pub(super) struct Workspace {
    /// The gradients of the last batch.
    pub(super) gradients: Parameters,
    /// Share of active pairs above which tiles are taken.
    pub(super) dense_above: f64,
    /// The precision of rows and weights in products.
    pub(super) dtype: DtypeChoice,
}

/// One batch with all that its steps read.
struct Batch<'a, E: Precision> {
    weights: &'a Parameters,
    norms: Vec<f32>,
    /// What features and `b_dec` are to reconstruct, `[n, d_out]`: without what a skip connection gives.
    target: Cow<'a, [f32]>,
    n: usize,
    d: usize,
    f: usize,
    /// Rows as they are encoded, `x − b_dec` or `x`, for products.
    left: E::Left,
    /// The same, `[n, d_in]`.
    centered: Vec<E>,
    /// `W_dec`, `[f, decoder]`.
    decoder: Vec<E>,
}

/// Reconstructions that nest: the features before each end make one; the last is the whole.
#[derive(Debug, Clone, Copy)]
struct Levels<'a>(&'a [usize]);

impl Levels<'_> {
    fn of(self, feature: usize) -> usize {
        self.0.partition_point(|&end| end <= feature)
    }
}

impl Workspace {
    /// Buffers for weights like `weights`, computing in `dtype`.
    pub(super) fn new(weights: &Parameters, dtype: DtypeChoice) -> Self {
        Self { gradients: weights.zeros_like(), dense_above: dense_above(dtype), dtype }
    }

    /// Computes the gradients of the loss on a batch into [`Workspace::gradients`].
    pub(super) fn gradients(&mut self, state: &State, plan: &TrainPlan, input: StepInput<'_>) -> BatchReport {
        match self.dtype {
            DtypeChoice::Bf16 => self.compute::<u16>(state, plan, input),
            _ => self.compute::<f32>(state, plan, input),
        }
    }

    fn compute<E: Precision>(&mut self, state: &State, plan: &TrainPlan, input: StepInput<'_>) -> BatchReport {
        let weights = &state.weights;
        let batch = Batch::<E>::new(weights, input.x, input.target);
        let norms = batch.norms.as_slice();
        let push = (input.coefficient * state.penalty_scale / batch.n as f64) as f32;
        match &plan.method {
            Method::Relu { lp_norm: 1.0, p_anneal: None } => self.entrywise(&batch, &L1 { norms }, push),
            Method::Relu { lp_norm, p_anneal: None } => {
                let rule = Relu { norms, p: *lp_norm as f32, root: true };
                self.entrywise(&batch, &rule, push)
            }
            Method::Relu { p_anneal: Some(_), .. } => {
                let rule = Relu { norms, p: input.exponent as f32, root: false };
                self.entrywise(&batch, &rule, push)
            }
            Method::Gated => {
                let [(_, r_mag), (_, b_mag)] = weights.own.as_slice() else { unreachable!("a gated dictionary") };
                let gain: Vec<f32> = r_mag.iter().map(|r| r.exp()).collect();
                self.entrywise(&batch, &Gated { norms, b_gate: &weights.b_enc, gain: &gain, b_mag }, push)
            }
            Method::JumpRelu { pre_act_loss_coefficient, .. } => {
                let Some(rule) = JumpRelu::of(&plan.method, norms, &weights.own) else {
                    unreachable!("a JumpReLU dictionary")
                };
                let mut report = self.entrywise(&batch, &rule, push);
                if let Some(coefficient) = pre_act_loss_coefficient
                    && !input.dead.is_empty()
                {
                    report.loss.auxiliary +=
                        pre_activation_loss(&batch, rule.threshold, input.dead, *coefficient, &mut self.gradients);
                    report.squared_gradient = self.squared_gradient();
                }
                report
            }
            Method::TopK { .. } | Method::BatchTopK { .. } | Method::Matryoshka { .. } => {
                self.chosen(&batch, plan, input)
            }
        }
    }

    /// Architectures that decide entry by entry.
    fn entrywise<E: Precision, R: Rule>(&mut self, batch: &Batch<'_, E>, rule: &R, push: f32) -> BatchReport {
        let encoder = Encoder::new(batch, None);
        if pick::density(&encoder, batch.n, rule) > self.dense_above {
            return tiles::gradients(batch, rule, push, &mut self.gradients);
        }
        let limits: Vec<f32> = (0..batch.f).map(|f| rule.limit(f)).collect();
        let codes = pick::above(&encoder, batch.n, &limits);
        let walk = rows::walk(batch, rule, &codes, Levels(&[batch.f]), push, None);
        let (fired, squares) =
            features::gradients(batch, rule, &codes, &walk, Levels(&[batch.f]), None, &mut self.gradients);
        let skip = skip::gradient(batch, &walk.planes[0], &mut self.gradients);
        walk.report(batch.n, (fired, squares + skip))
    }

    /// Architectures whose features compete: they are chosen first, and linear afterwards.
    fn chosen<E: Precision>(&mut self, batch: &Batch<'_, E>, plan: &TrainPlan, input: StepInput<'_>) -> BatchReport {
        let top = plan.method.top().unwrap_or_default();
        let (codes, least) = pick::compete(batch, &top);
        let all = [batch.f];
        let levels = Levels(if top.levels.is_empty() { &all } else { &top.levels });
        let auxiliary = Auxiliary::new(batch, input.dead, top.aux_coefficient, top.k_aux);
        let walk = rows::walk(batch, &Chosen, &codes, levels, 0.0, auxiliary.as_ref());
        let (fired, squares) =
            features::gradients(batch, &Chosen, &codes, &walk, levels, auxiliary.as_ref(), &mut self.gradients);
        let skip = skip::gradient(batch, &walk.planes[0], &mut self.gradients);
        BatchReport { least, ..walk.report(batch.n, (fired, squares + skip)) }
    }

    fn squared_gradient(&self) -> f64 {
        super::optimiser::global_norm(&self.gradients).powi(2)
    }
}

impl<'a, E: Precision> Batch<'a, E> {
    fn new(weights: &'a Parameters, x: &'a [f32], target: Option<&'a [f32]>) -> Self {
        let Shape { d_in: d, features: f, transcoder, .. } = weights.shape;
        let n = x.len() / d;
        let encoded = centered(x, (!transcoder).then_some(weights.b_dec.as_slice()));
        let left = E::left(&encoded, n, d);
        let target = target.unwrap_or(x);
        Self {
            norms: weights.decoder_norms(),
            target: skip::without::<E>(weights, &left, target),
            centered: stored(&encoded),
            decoder: stored(&weights.w_dec),
            left,
            weights,
            n,
            d,
            f,
        }
    }

    /// Width of a decoder row.
    fn decoder_width(&self) -> usize {
        self.weights.shape.decoder
    }

    fn target_row(&self, row: usize) -> &[f32] {
        let d = self.weights.shape.d_out;
        &self.target[row * d..][..d]
    }
}

/// `values` in another precision.
fn stored<E: Precision>(values: &[f32]) -> Vec<E> {
    const PIECE: usize = 1 << 14;
    let mut out = vec![E::default(); values.len()];
    out.par_chunks_mut(PIECE).zip(values.par_chunks(PIECE)).for_each(|(to, from)| E::store(from, to));
    out
}

/// Share of active pairs above which tiles are faster, from the time of a step with 16,384 features of width 576: a
/// pair costs 0.16 µs in bf16 and 0.25 µs in f32, wherever its rows lie in memory, and an entry of a tile 5 ns with
/// Intel's tiles, 20 ns in f32.
fn dense_above(dtype: DtypeChoice) -> f64 {
    match (dtype, Kernel::best()) {
        (DtypeChoice::Bf16, Kernel::Amx) => 0.03,
        (DtypeChoice::Bf16, Kernel::Avx512) => 0.1,
        _ => 0.08,
    }
}

/// The codes of `x` under `weights`, entry by entry, in `f32`: what a dictionary with these weights would do.
pub(super) fn active_pairs<R: Rule>(weights: &Parameters, rule: &R, x: &[f32]) -> SparseCodes {
    let Shape { d_in: d, features, transcoder, .. } = weights.shape;
    let n = x.len() / d;
    let left = f32::left(&centered(x, (!transcoder).then_some(weights.b_dec.as_slice())), n, d);
    let limits: Vec<f32> = (0..features).map(|f| rule.limit(f)).collect();
    pick::above(&Encoder::<f32>::of(&left, &weights.w_enc, &weights.b_enc, d), n, &limits)
}

/// `Σ_b P(S_b)` of a ReLU dictionary with an annealed exponent.
pub(super) fn penalty(state: &State, x: &[f32], exponent: f64) -> f64 {
    let norms = state.weights.decoder_norms();
    let rule = Relu { norms: &norms, p: exponent as f32, root: false };
    let codes = active_pairs(&state.weights, &rule, x);
    codes.features.iter().zip(&codes.values).map(|(f, pre)| f64::from(rule.size(*f as usize, *pre))).sum()
}
