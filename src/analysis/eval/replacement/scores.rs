//! Next-token distributions compared with those of the clean model.

use std::collections::BTreeSet;

use rayon::prelude::*;

use super::Effect;
use crate::base::{Error, Result};

/// The clean model over all batches.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Baseline {
    /// Positions that are compared.
    pub(super) positions: u64,
    /// Those whose next token counts.
    pub(super) targets: u64,
    ce: f64,
}

/// The clean distributions of one batch.
#[derive(Debug)]
pub(super) struct Clean {
    v: usize,
    /// Log-probabilities, `[n, v]`.
    log_p: Vec<f32>,
    /// The next token of each row, where it counts.
    targets: Vec<Option<u32>>,
    top: Vec<usize>,
}

/// Sums over positions of one change.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sums {
    ce: f64,
    kl: f64,
    agree: u64,
}

impl Baseline {
    /// Counts a batch with clean `logits` of the positions that are kept.
    pub(super) fn add(
        &mut self,
        mut logits: Vec<f32>,
        sequences: &[Vec<u32>],
        kept: &[Vec<bool>],
        ignored: &BTreeSet<u32>,
    ) -> Result<Clean> {
        let target = |(tokens, kept): (&Vec<u32>, &Vec<bool>)| {
            let next = |(i, _): (usize, &bool)| tokens.get(i + 1).copied().filter(|token| !ignored.contains(token));
            kept.iter().enumerate().filter(|(_, kept)| **kept).map(next).collect::<Vec<_>>()
        };
        let targets: Vec<Option<u32>> = sequences.iter().zip(kept).flat_map(target).collect();
        let v = logits.len() / targets.len().max(1);
        let rows: Vec<(usize, f64)> = logits
            .par_chunks_exact_mut(v.max(1))
            .zip(&targets)
            .map(|(row, target)| {
                let (log_sum, top) = log_sum_exp(row);
                for x in row.iter_mut() {
                    *x -= log_sum;
                }
                (top, target.map_or(0.0, |target| -f64::from(row[target as usize])))
            })
            .collect();
        let ce: f64 = rows.iter().map(|(_, ce)| ce).sum();
        check(ce)?;
        self.positions += targets.len() as u64;
        self.targets += targets.iter().flatten().count() as u64;
        self.ce += ce;
        Ok(Clean { v, log_p: logits, targets, top: rows.iter().map(|(top, _)| *top).collect() })
    }

    /// Cross-entropy in nats a token.
    pub(super) fn ce_loss(&self) -> f64 {
        self.ce / self.targets.max(1) as f64
    }
}

impl Sums {
    /// Counts a batch with changed `logits`.
    pub(super) fn add(&mut self, clean: &Clean, logits: &[f32]) -> Result<()> {
        let v = clean.v.max(1);
        let rows: Vec<Self> = logits
            .par_chunks_exact(v)
            .zip(clean.log_p.par_chunks_exact(v))
            .zip(clean.targets.par_iter().zip(&clean.top))
            .map(|((row, log_p), (target, top))| {
                let (log_sum, own) = log_sum_exp(row);
                let term = |(x, log_p): (&f32, &f32)| log_p.exp() * (log_p - (x - log_sum));
                let kl = row.iter().zip(log_p).map(term).map(f64::from).sum();
                let ce = target.map_or(0.0, |target| f64::from(log_sum - row[target as usize]));
                Self { ce, kl, agree: u64::from(own == *top) }
            })
            .collect();
        for Self { ce, kl, agree } in rows {
            self.ce += ce;
            self.kl += kl;
            self.agree += agree;
        }
        check(self.ce + self.kl)
    }

    pub(super) fn effect(&self, baseline: &Baseline) -> Effect {
        let n = baseline.positions.max(1) as f64;
        Effect {
            ce_loss: self.ce / baseline.targets.max(1) as f64,
            kl_divergence: self.kl / n,
            top1_agreement: self.agree as f64 / n,
        }
    }
}

/// `ln Σ exp`, and the place of the largest, of equal ones the first.
fn log_sum_exp(logits: &[f32]) -> (f32, usize) {
    let mut top = 0;
    for (i, x) in logits.iter().enumerate() {
        if *x > logits[top] {
            top = i;
        }
    }
    let max = logits.get(top).copied().unwrap_or_default();
    let sum: f64 = logits.iter().map(|x| f64::from((x - max).exp())).sum();
    (max + sum.ln() as f32, top)
}

fn check(sum: f64) -> Result<()> {
    if sum.is_finite() {
        return Ok(());
    }
    Err(Error::NonFinite {
        what: "logits of the replacement model".into(),
        count: 1,
        at: "a batch of text".into(),
        remedy: "try the model on a prompt with 'mechinterp run'; if that fails too, its weights are damaged".into(),
    })
}
