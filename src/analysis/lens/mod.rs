//! What the model would say if it ended early: the logit lens (nostalgebraist 2020), and which parts of the model make
//! the logit of a token ([`attribution`]).
//!
//! ```text
//! lens(x) = cap(W_U norm_final(x))     for the residual stream x of every layer and position
//! ```
//!
//! The final norm is computed on each stream by itself, with that stream's own divisor.

pub mod attribution;
pub mod features;
mod frozen;

use candle_core::{DType, Tensor};
use rayon::prelude::*;
use serde::Serialize;

pub use attribution::{Attribution, Component, Part, attribute};
pub use features::{FeatureAttribution, FeaturePart};

use crate::base::{Context, Error, Progress, Result, Unit};
use crate::model::{HookPlan, HookPoint, Model, ModelConfig, Site};

use super::stop_if_cancelled;

/// Logits that are held at once, at most, unless one position alone has more.
const LOGITS_AT_ONCE: usize = 1 << 24;

/// What to look at.
#[derive(Debug, Clone)]
pub struct LensSettings {
    /// Residual streams, as [`streams`] lists them.
    pub points: Vec<HookPoint>,
    /// Positions of the prompt, from 0.
    pub positions: Vec<usize>,
    /// How many of the likeliest tokens to keep of each.
    pub top: usize,
    /// Tokens whose logit, probability and rank are wanted everywhere.
    pub watched: Vec<u32>,
}

/// A token that a stream reads as.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct TokenChance {
    /// Token id.
    pub token: u32,
    /// Its logit.
    pub logit: f32,
    /// Its probability.
    pub probability: f64,
    /// 1 for the likeliest token; of equal ones the lower id comes first.
    pub rank: usize,
}

/// One stream at one position.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LensCell {
    /// The likeliest tokens, best first.
    pub top: Vec<TokenChance>,
    /// The watched tokens, in the order of the settings.
    pub watched: Vec<TokenChance>,
    /// Entropy of the distribution in nats.
    pub entropy: f64,
    /// `KL(final ‖ this)` in nats: what is lost by ending here.
    pub kl: f64,
}

/// One stream at all positions.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LensRow {
    /// The residual stream.
    pub point: HookPoint,
    /// Parallel to the positions of the settings.
    pub cells: Vec<LensCell>,
}

/// The residual streams of a model in the order they are computed: what enters the first block, then what leaves each;
/// with `mid` also the stream between attention and MLP, where there is one.
pub fn streams(config: &ModelConfig, mid: bool) -> Vec<HookPoint> {
    let mut points = vec![HookPoint::block(0, Site::ResidPre)];
    for layer in 0..config.n_layers {
        let middle = HookPoint::block(layer, Site::ResidMid);
        points.extend(Some(middle).filter(|point| mid && point.exists_in(config)));
        points.push(HookPoint::block(layer, Site::ResidPost));
    }
    points
}

/// The logit lens on `tokens`. Memory: the streams of all chosen layers, and the logits of a few positions of one.
///
/// # Errors
/// `Flag` for a position outside the prompt; `NonFinite` when the model computes no numbers; as [`Model::forward`].
pub fn logit_lens(
    model: &Model,
    tokens: &[u32],
    settings: &LensSettings,
    progress: &dyn Progress,
) -> Result<Vec<LensRow>> {
    check_positions(&settings.positions, tokens.len())?;
    let last = HookPoint::block(model.config().n_layers.saturating_sub(1), Site::ResidPost);
    let plan = settings.points.iter().fold(HookPlan::new().capture(last), |plan, &point| plan.capture(point));
    let run = model.forward(&model.tokens(&[tokens])?, &plan)?;
    let mut rows: Vec<LensRow> = settings.points.iter().map(|&point| LensRow { point, cells: Vec::new() }).collect();
    let together = (LOGITS_AT_ONCE / model.config().vocab_size.max(1)).max(1);
    progress.begin("logit lens", (settings.positions.len() * rows.len()) as u64, Unit::Items);
    for positions in settings.positions.chunks(together) {
        let read = |point| -> Result<Vec<Vec<f32>>> { logits_at(model, run.captured(point)?, positions) };
        let end = read(last)?;
        for row in &mut rows {
            stop_if_cancelled(progress)?;
            let logits = if row.point == last { end.clone() } else { read(row.point)? };
            check_finite(&logits, row.point, positions)?;
            let cells = logits.par_iter().zip(&end).map(|(logits, end)| cell(logits, end, settings));
            row.cells.extend(cells.collect::<Vec<_>>());
            progress.advance(positions.len() as u64);
        }
    }
    progress.end();
    Ok(rows)
}

/// Checks that positions lie in a prompt of `length` tokens.
pub(super) fn check_positions(positions: &[usize], length: usize) -> Result<()> {
    match positions.iter().find(|&&position| position >= length) {
        None => Ok(()),
        Some(position) => Err(Error::flag(
            "--position",
            format!("a position of the prompt, 0 to {}", length.saturating_sub(1)),
            position,
            "positions count tokens from 0; -1 is the last",
        )),
    }
}

fn logits_at(model: &Model, stream: &Tensor, positions: &[usize]) -> Result<Vec<Vec<f32>>> {
    let reading = || "reading the residual stream out".to_owned();
    let index: Vec<u32> = positions.iter().map(|&position| position as u32).collect();
    let index = Tensor::from_vec(index, positions.len(), stream.device()).during(reading)?;
    let logits = model.read_out(&stream.index_select(&index, 1).during(reading)?)?;
    logits.squeeze(0).and_then(|logits| logits.to_dtype(DType::F32)?.to_vec2()).during(reading)
}

fn check_finite(logits: &[Vec<f32>], point: HookPoint, positions: &[usize]) -> Result<()> {
    let count = logits.iter().flatten().filter(|x| !x.is_finite()).count();
    let first = logits.iter().position(|row| row.iter().any(|x| !x.is_finite()));
    let Some(position) = first.and_then(|first| positions.get(first)) else { return Ok(()) };
    Err(Error::NonFinite {
        what: format!("logits of {point}"),
        count,
        at: format!("position {position}"),
        remedy: "run with --dtype f32 or bf16; if that does not help, the model's weights are damaged".into(),
    })
}

fn cell(logits: &[f32], end: &[f32], settings: &LensSettings) -> LensCell {
    let (log_total, end_total) = (log_sum_exp(logits), log_sum_exp(end));
    let (mut entropy, mut kl) = (0.0, 0.0);
    for (&logit, &end) in logits.iter().zip(end) {
        let (log_p, log_end) = (f64::from(logit) - log_total, f64::from(end) - end_total);
        entropy -= log_p.exp() * log_p;
        kl += log_end.exp() * (log_end - log_p);
    }
    let chance = |token: usize, rank: usize| TokenChance {
        token: token as u32,
        logit: logits[token],
        probability: (f64::from(logits[token]) - log_total).exp(),
        rank,
    };
    let better = |&a: &usize, &b: &usize| logits[b].total_cmp(&logits[a]).then(a.cmp(&b));
    let mut order: Vec<usize> = (0..logits.len()).collect();
    let n = settings.top.min(order.len());
    if 0 < n && n < order.len() {
        order.select_nth_unstable_by(n - 1, better);
    }
    order.truncate(n);
    order.sort_by(better);
    let rank = |token: usize| 1 + (0..logits.len()).filter(|other| better(other, &token).is_lt()).count();
    let watched = settings.watched.iter().map(|&token| token as usize).filter(|&token| token < logits.len());
    LensCell {
        top: order.iter().enumerate().map(|(i, &token)| chance(token, i + 1)).collect(),
        watched: watched.map(|token| chance(token, rank(token))).collect(),
        entropy,
        // Rounding may leave a distribution a hair below its own entropy.
        kl: kl.max(0.0),
    }
}

/// `log Σ exp(x)`
pub(super) fn log_sum_exp(x: &[f32]) -> f64 {
    let largest = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    f64::from(largest) + x.iter().map(|x| f64::from(x - largest).exp()).sum::<f64>().ln()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::tests::open;
    use crate::base::Silent;

    const TOKENS: [u32; 6] = [3, 9, 21, 17, 8, 30];

    fn settings(model: &Model, mid: bool) -> LensSettings {
        LensSettings { points: streams(model.config(), mid), positions: vec![1, 5], top: 4, watched: vec![7, 11] }
    }

    #[test]
    fn the_last_stream_reads_as_the_model_does_and_earlier_ones_otherwise() {
        for name in ["llama", "gpt2", "gemma2", "gpt_neox", "olmo2", "opt-350m", "granite"] {
            let model = open(name);
            let rows = logit_lens(&model, &TOKENS, &settings(&model, true), &Silent).unwrap();
            let plan = HookPlan::new().with_logits();
            let run = model.forward(&model.tokens(&[TOKENS]).unwrap(), &plan).unwrap();
            let logits = run.logits().unwrap().squeeze(0).unwrap().to_vec2::<f32>().unwrap();
            let last = rows.last().unwrap();
            for (cell, position) in last.cells.iter().zip([1, 5]) {
                assert!(cell.kl < 1e-9, "{name}");
                for chance in cell.top.iter().chain(&cell.watched) {
                    let own = logits[position][chance.token as usize];
                    assert!((chance.logit - own).abs() < 1e-4, "{name}");
                    let above = logits[position].iter().filter(|&&x| x > own).count();
                    assert_eq!(chance.rank, above + 1, "{name}");
                }
                assert!(cell.top.is_sorted_by(|a, b| a.logit >= b.logit));
            }
            assert!(rows[0].cells[0].kl > 1e-3, "{name}: the embedding is not the end");
        }
    }

    #[test]
    fn entropy_is_that_of_the_distribution() {
        let settings = LensSettings { points: vec![], positions: vec![], top: 1, watched: vec![2] };
        let even = cell(&[1.0; 8], &[1.0; 8], &settings);
        assert!((even.entropy - 8f64.ln()).abs() < 1e-12 && even.kl == 0.0);
        assert_eq!((even.top[0].token, even.watched[0].rank), (0, 3), "of equal tokens the lower id is first");
        let sure = cell(&[0.0, 40.0], &[0.0, 0.0], &LensSettings { watched: vec![], ..settings });
        assert!(sure.entropy < 1e-10 && (sure.kl - (20.0 - 2f64.ln())).abs() < 1e-6, "{sure:?}");
    }

    #[test]
    fn positions_outside_the_prompt_are_errors() {
        let model = open("llama");
        let settings = LensSettings { positions: vec![6], ..settings(&model, false) };
        let error = logit_lens(&model, &TOKENS, &settings, &Silent).unwrap_err().to_string();
        assert!(error.contains("0 to 5") && error.contains("found 6"), "{error}");
    }
}
