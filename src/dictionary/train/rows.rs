//! Rows on their way from a source: estimates before training, batches during it, measurements on held-out rows.

use std::sync::mpsc;

use super::settings::TrainPlan;
use crate::base::{Progress, Result, Unit};
use crate::dictionary::Dictionary;
use crate::dictionary::metrics::{Metrics, MetricsReport, column_sums};
use crate::dictionary::scale::ScaleEstimate;
use crate::store::RowSource;

/// Held-out rows that are encoded at once.
const HELDOUT_BATCH: u64 = 4096;

/// The input scale and the mean row, from the first batches.
pub(super) fn estimate(
    plan: &TrainPlan,
    source: &mut dyn RowSource,
    progress: &dyn Progress,
) -> Result<(f32, Vec<f64>)> {
    let batches = plan.n_batches_for_norm.min(source.rows().div_ceil(plan.batch_size as u64)).max(1);
    progress.begin("measuring norms", batches * plan.batch_size as u64, Unit::Tokens);
    let mut norms = ScaleEstimate::new(plan.d_in);
    let mut sum = vec![0.0; plan.d_in];
    let mut batch = Vec::new();
    source.seek(0)?;
    for _ in 0..batches {
        source.next_batch(plan.batch_size, &mut batch)?;
        norms.add(&batch);
        sum.iter_mut().zip(column_sums(&batch, plan.d_in)).for_each(|(sum, part)| *sum += part);
        progress.advance(plan.batch_size as u64);
    }
    progress.end();
    let rows = (batches * plan.batch_size as u64) as f64;
    Ok((norms.scale()?, sum.into_iter().map(|sum| sum / rows).collect()))
}

/// Measures `dictionary` on the first `rows` rows of `source`.
pub(super) fn evaluate(dictionary: &Dictionary, source: &mut dyn RowSource, rows: u64) -> Result<MetricsReport> {
    let mut metrics = Metrics::new(dictionary.d_out(), dictionary.d_sae());
    let mut left = rows.min(source.rows());
    let mut batch = Vec::new();
    source.seek(0)?;
    while left > 0 {
        let n = left.min(HELDOUT_BATCH);
        source.next_batch(n as usize, &mut batch)?;
        let codes = dictionary.encode(&batch)?;
        metrics.add(&batch, &dictionary.decode(&codes)?, &codes)?;
        left -= n;
    }
    Ok(metrics.report())
}

/// Calls `use_batch` with each of the next `batches` batches, scaled, while a thread reads the one after it.
pub(super) fn with_batches(
    source: &mut dyn RowSource,
    rows: usize,
    batches: u64,
    scale: f32,
    mut use_batch: impl FnMut(&[f32]) -> Result<()>,
) -> Result<()> {
    std::thread::scope(|scope| {
        let (full, filled) = mpsc::sync_channel::<Result<Vec<f32>>>(1);
        let (empty, emptied) = mpsc::channel::<Vec<f32>>();
        scope.spawn(move || {
            for _ in 0..batches {
                let mut batch = emptied.try_recv().unwrap_or_default();
                let read = source.next_batch(rows, &mut batch).map(|()| {
                    for x in &mut batch {
                        *x *= scale;
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
