//! Rows on their way from a source: estimates before training, batches during it, measurements on held-out rows.

use std::sync::mpsc;

use rayon::prelude::*;

use crate::base::{Progress, Result, Unit};
use crate::dictionary::metrics::{Metrics, MetricsReport, column_sums};
use crate::dictionary::scale::ScaleEstimate;
use crate::dictionary::{Dictionary, SparseCodes};
use crate::ops::squared_norm;
use crate::store::RowSource;

/// Held-out rows that are encoded at once.
const HELDOUT_BATCH: u64 = 4096;

/// What the first rows of a hook say about the others.
#[derive(Debug, Clone)]
pub(super) struct Estimate {
    /// The factor that gives rows a mean norm of `√d`.
    pub(super) scale: f32,
    /// The mean row, unscaled.
    pub(super) mean: Vec<f64>,
    /// The first rows, unscaled, `[n, width]`.
    pub(super) rows: Vec<f32>,
}

/// Estimates from the first `batches` batches of `rows` rows, or fewer where more could not be read again cheaply; one
/// estimate a hook. The first `kept` rows are kept.
pub(super) fn estimate(
    source: &mut dyn RowSource,
    (rows, batches): (usize, u64),
    kept: usize,
    progress: &dyn Progress,
) -> Result<Vec<Estimate>> {
    let widths = source.widths().to_vec();
    // Of a whole pass every row counts; of less than one, rows beyond the cheap ones would have to be made twice.
    let cheap = source.cheap_rows();
    let at_most = if cheap < source.rows() { cheap / rows as u64 } else { cheap.div_ceil(rows as u64) };
    let batches = batches.min(at_most).max(1);
    progress.begin("measuring norms", batches * rows as u64, Unit::Tokens);
    let mut hooks: Vec<_> = widths.iter().map(|&d| (ScaleEstimate::new(d), vec![0.0; d], Vec::new())).collect();
    let mut buffers = vec![Vec::new(); widths.len()];
    let mut read = || -> Result<()> {
        source.seek(0)?;
        for _ in 0..batches {
            source.next_batch(rows, &mut buffers)?;
            for (((norms, sum, first), batch), &d) in hooks.iter_mut().zip(&buffers).zip(&widths) {
                norms.add(batch);
                first.extend_from_slice(&batch[..batch.len().min(kept * d - first.len())]);
                sum.iter_mut().zip(column_sums(batch, d)).for_each(|(sum, part)| *sum += part);
            }
            progress.advance(rows as u64);
        }
        Ok(())
    };
    let outcome = read();
    progress.end();
    outcome?;
    let n = (batches * rows as u64) as f64;
    let estimate = |(norms, sum, rows): (ScaleEstimate, Vec<f64>, Vec<f32>)| {
        Ok(Estimate { scale: norms.scale()?, mean: sum.into_iter().map(|sum| sum / n).collect(), rows })
    };
    hooks.into_iter().map(estimate).collect()
}

impl Estimate {
    /// What sets kept row `i` apart from the mean, as a unit vector; the rows begin again where they end.
    pub(super) fn direction(&self, i: usize) -> Vec<f32> {
        let d = self.mean.len().max(1);
        let row = &self.rows[i % (self.rows.len() / d).max(1) * d..][..d];
        let mut away: Vec<f32> = row.iter().zip(&self.mean).map(|(x, mean)| x - *mean as f32).collect();
        let norm = squared_norm(&away).sqrt().max(f32::MIN_POSITIVE);
        for x in &mut away {
            *x /= norm;
        }
        away
    }

    /// The mean of the rows as they are trained on.
    pub(super) fn scaled_mean(&self) -> Vec<f32> {
        self.mean.iter().map(|m| (m * f64::from(self.scale)) as f32).collect()
    }
}

/// A dictionary as it would be stored, and the numbers of its hooks.
#[derive(Debug)]
pub(super) struct Stored {
    /// The hook that it encodes.
    pub(super) hook: usize,
    /// The hooks that it reconstructs, where those are others: several of a layer of a cross-layer transcoder.
    pub(super) targets: Vec<usize>,
    /// With decoder rows for all targets, one after the other.
    pub(super) dictionary: Dictionary,
}

/// Measures each dictionary on the first `rows` rows of `source`; those of `together` are the layers of one cross-layer
/// transcoder.
pub(super) fn evaluate(
    dictionaries: &[Stored],
    together: bool,
    source: &mut dyn RowSource,
    rows: u64,
) -> Result<Vec<MetricsReport>> {
    let width = |stored: &Stored| stored.dictionary.d_out() / stored.targets.len().max(1);
    let mut metrics: Vec<Metrics> =
        dictionaries.iter().map(|stored| Metrics::new(width(stored), stored.dictionary.d_sae())).collect();
    let mut left = rows.min(source.rows());
    let mut buffers = vec![Vec::new(); source.widths().len()];
    source.seek(0)?;
    while left > 0 {
        let n = left.min(HELDOUT_BATCH);
        source.next_batch(n as usize, &mut buffers)?;
        let target = |stored: &Stored| &buffers[stored.targets.first().copied().unwrap_or(stored.hook)];
        if together {
            let codes: Vec<SparseCodes> =
                dictionaries.iter().map(|d| d.dictionary.encode(&buffers[d.hook])).collect::<Result<_>>()?;
            let made = reconstruct_together(dictionaries, &codes)?;
            for (((stored, metrics), codes), made) in dictionaries.iter().zip(&mut metrics).zip(&codes).zip(&made) {
                metrics.add(target(stored), made, codes)?;
            }
        } else {
            for (stored, metrics) in dictionaries.iter().zip(&mut metrics) {
                let x = &buffers[stored.hook];
                let codes = stored.dictionary.encode(x)?;
                metrics.add(target(stored), &stored.dictionary.reconstruct_codes(x, &codes)?, &codes)?;
            }
        }
        left -= n;
    }
    Ok(metrics.iter().map(Metrics::report).collect())
}

/// What the layers of a cross-layer transcoder make of the rows with these `codes`, `[n, d_out]` a layer:
/// `ŷ_l = Σ_{i ≤ l} z_i W_dec^{i→l} + b_dec_l`.
pub(super) fn reconstruct_together(layers: &[Stored], codes: &[SparseCodes]) -> Result<Vec<Vec<f32>>> {
    let mut made: Vec<Vec<f32>> = Vec::new();
    for (layer, (stored, codes)) in layers.iter().zip(codes).enumerate() {
        let wide = stored.dictionary.decode(codes)?;
        let width = stored.dictionary.d_out() / stored.targets.len().max(1);
        for block in 0..stored.targets.len() {
            if made.len() == layer + block {
                made.push(vec![0.0; codes.rows() * width]);
            }
            let rows = made[layer + block].par_chunks_exact_mut(width);
            rows.zip(wide.par_chunks_exact(stored.dictionary.d_out())).for_each(|(to, from)| {
                to.iter_mut().zip(&from[block * width..]).for_each(|(to, from)| *to += from);
            });
        }
    }
    Ok(made)
}

/// Rows of several layers, `[n, d]` each, joined row by row: `[n, layers · d]`.
pub(super) fn beside_each_other(layers: &[Vec<f32>], n: usize) -> Vec<f32> {
    let width = layers.first().map_or(0, Vec::len) / n.max(1);
    (0..n).flat_map(|row| layers.iter().flat_map(move |layer| &layer[row * width..][..width])).copied().collect()
}

/// Calls `use_batch` with each of the next `batches` batches, scaled by the factor of their hook, while a thread
/// reads the one after it.
pub(super) fn with_batches(
    source: &mut dyn RowSource,
    rows: usize,
    batches: u64,
    scales: &[f32],
    mut use_batch: impl FnMut(&[Vec<f32>]) -> Result<()>,
) -> Result<()> {
    std::thread::scope(|scope| {
        let (full, filled) = mpsc::sync_channel::<Result<Vec<Vec<f32>>>>(1);
        let (empty, emptied) = mpsc::channel::<Vec<Vec<f32>>>();
        scope.spawn(move || {
            for _ in 0..batches {
                let mut batch = emptied.try_recv().unwrap_or_else(|_| vec![Vec::new(); scales.len()]);
                let read = source.next_batch(rows, &mut batch).map(|()| {
                    for (values, scale) in batch.iter_mut().zip(scales) {
                        for x in values {
                            *x *= scale;
                        }
                    }
                    batch
                });
                let failed = read.is_err();
                // The other side hangs up when a step fails or the user stops the run.
                if full.send(read).is_err() || failed {
                    return;
                }
            }
        });
        for batch in filled {
            let batch = batch?;
            use_batch(&batch)?;
            drop(empty.send(batch));
        }
        Ok(())
    })
}

/// `mean ‖x − x̄‖²` of a batch.
pub(super) fn total_variance(x: &[f32], d: usize) -> f64 {
    let n = (x.len() / d) as f64;
    let squared: f64 = x.chunks_exact(d).map(|row| f64::from(squared_norm(row))).sum();
    let mean: f64 = column_sums(x, d).iter().map(|sum| (sum / n) * (sum / n)).sum();
    squared / n - mean
}
