//! A norm whose divisors are those of one run, run backwards.

use rayon::prelude::*;

use crate::base::Result;
use crate::model::{FrozenNorm, HookPoint, Model, Run};

use super::context::values;

/// Rows of a gradient that one task handles.
const ROWS: usize = 64;

/// `y = (x − mean(x)) / scale · gain + bias` with one scale a position.
#[derive(Debug, Clone)]
pub(super) struct HeldNorm {
    norm: FrozenNorm,
    /// One a position.
    scales: Vec<f32>,
}

impl HeldNorm {
    /// The norm whose divisor is captured at `point` in `run`; `None` where the model has none there.
    pub(super) fn of(model: &Model, run: &Run, point: HookPoint) -> Result<Option<Self>> {
        if !point.exists_in(model.config()) {
            return Ok(None);
        }
        let Some(norm) = model.frozen_norm(point)? else { return Ok(None) };
        Ok(Some(Self { norm, scales: values(run, point)? }))
    }

    /// What is added at the end.
    pub(super) fn bias(&self) -> Option<&[f32]> {
        self.norm.bias.as_deref()
    }

    /// The gradient of the norm's input from that of its output, in place: `(I − mean) (gain · g) / scale`. Without
    /// `gain` the output is the quotient before it.
    pub(super) fn pull(&self, g: &mut [f32], position: usize, gain: bool) {
        let scale = self.scales.get(position).copied().unwrap_or(1.0);
        match self.norm.gain.as_ref().filter(|_| gain) {
            Some(gain) => g.iter_mut().zip(gain).for_each(|(g, gain)| *g = *g * gain / scale),
            None => g.iter_mut().for_each(|g| *g /= scale),
        }
        if self.norm.centres {
            let mean = (g.iter().map(|g| f64::from(*g)).sum::<f64>() / g.len().max(1) as f64) as f32;
            for g in g.iter_mut() {
                *g -= mean;
            }
        }
    }

    /// [`HeldNorm::pull`] of rows `[n, d]`, row `i` at position `positions[i]`.
    pub(super) fn pull_all(&self, g: &mut [f32], positions: &[u32], gain: bool) {
        let d = g.len() / positions.len().max(1);
        if d == 0 {
            return;
        }
        let blocks = g.par_chunks_mut(d * ROWS).zip(positions.par_chunks(ROWS));
        blocks.for_each(|(g, positions)| {
            for (g, position) in g.chunks_exact_mut(d).zip(positions) {
                self.pull(g, *position as usize, gain);
            }
        });
    }
}
