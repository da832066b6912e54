//! Rows on their way from a source: estimates before training, batches during it, measurements on held-out rows.

use std::sync::mpsc;

use crate::base::{Progress, Result, Unit};
use crate::dictionary::Dictionary;
use crate::dictionary::metrics::{Metrics, MetricsReport, column_sums};
use crate::dictionary::scale::ScaleEstimate;
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
}

/// Estimates from the first `batches` batches of `rows` rows, or fewer where more could not be read again cheaply; one
/// estimate a hook.
pub(super) fn estimate(
    source: &mut dyn RowSource,
    rows: usize,
    batches: u64,
    progress: &dyn Progress,
) -> Result<Vec<Estimate>> {
    let widths = source.widths().to_vec();
    // Of a whole pass every row counts; of less than one, rows beyond the cheap ones would have to be made twice.
    let cheap = source.cheap_rows();
    let at_most = if cheap < source.rows() { cheap / rows as u64 } else { cheap.div_ceil(rows as u64) };
    let batches = batches.min(at_most).max(1);
    progress.begin("measuring norms", batches * rows as u64, Unit::Tokens);
    let mut hooks: Vec<_> = widths.iter().map(|&d| (ScaleEstimate::new(d), vec![0.0; d])).collect();
    let mut buffers = vec![Vec::new(); widths.len()];
    let mut read = || -> Result<()> {
        source.seek(0)?;
        for _ in 0..batches {
            source.next_batch(rows, &mut buffers)?;
            for (((norms, sum), batch), &d) in hooks.iter_mut().zip(&buffers).zip(&widths) {
                norms.add(batch);
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
    let estimate = |(norms, sum): (ScaleEstimate, Vec<f64>)| {
        Ok(Estimate { scale: norms.scale()?, mean: sum.into_iter().map(|sum| sum / n).collect() })
    };
    hooks.into_iter().map(estimate).collect()
}

/// Measures each dictionary, beside the number of its hook, on the first `rows` rows of `source`.
pub(super) fn evaluate(
    dictionaries: &[(usize, Dictionary)],
    source: &mut dyn RowSource,
    rows: u64,
) -> Result<Vec<MetricsReport>> {
    let mut metrics: Vec<Metrics> = dictionaries.iter().map(|(_, d)| Metrics::new(d.d_out(), d.d_sae())).collect();
    let mut left = rows.min(source.rows());
    let mut buffers = vec![Vec::new(); source.widths().len()];
    source.seek(0)?;
    while left > 0 {
        let n = left.min(HELDOUT_BATCH);
        source.next_batch(n as usize, &mut buffers)?;
        for ((hook, dictionary), metrics) in dictionaries.iter().zip(&mut metrics) {
            let x = &buffers[*hook];
            let codes = dictionary.encode(x)?;
            metrics.add(x, &dictionary.decode(&codes)?, &codes)?;
        }
        left -= n;
    }
    Ok(metrics.iter().map(Metrics::report).collect())
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
    let squared: f64 = x.chunks_exact(d).map(|row| f64::from(crate::ops::squared_norm(row))).sum();
    let mean: f64 = column_sums(x, d).iter().map(|sum| (sum / n) * (sum / n)).sum();
    squared / n - mean
}
