//! From a run to its unpruned graph: rows of the targets, then of features by influence.

use rayon::prelude::*;

use crate::base::progress::Unit;
use crate::base::{Progress, Result};
use crate::dictionary::set::TranscoderSet;
use crate::model::Model;

use super::attribution::Attribution;
use super::backward::{Row, Seed, Sweep};
use super::columns::ActiveFeature;
use super::context::Context;
use super::memory;
use super::select::Selection;
use super::targets::Target;
use super::types::GraphSettings;
use crate::analysis::stop_if_cancelled;

/// The direct effects on `targets` and on the features that matter for them.
///
/// A target is a logit, before any soft cap, less the mean of the vocabulary's, or a difference of two; a feature's value
/// is its pre-activation. An effect is what the source's whole activation (or error, or embedding) adds to that value
/// while attention patterns and the divisors of norms stay as they are (Ameisen et al. 2025, "Circuit Tracing"; Lindsey
/// et al. 2025). Every row is checked: with what constants add it must sum to its value.
///
/// # Errors
/// `Flag` when the rows would not fit into memory, before any is computed; when weights cannot be read; `Interrupted`.
pub fn attribute(
    model: &Model,
    set: &TranscoderSet,
    context: &Context,
    targets: Vec<Target>,
    settings: &GraphSettings,
    progress: &dyn Progress,
) -> Result<Attribution> {
    settings.check()?;
    memory::check_rows(context, settings, targets.len())?;
    let most = settings.max_feature_nodes.min(context.features.len());
    let work = Work { sweep: Sweep { model, set, context } };
    progress.begin("attributing", (most + targets.len()) as u64, Unit::Items);
    let (rows, mut largest_row_error) = work.targets(&targets)?;
    progress.advance(targets.len() as u64);
    let mut selection = Selection::new(context, &targets, rows);
    loop {
        let pending = selection.next(most, settings.batch_size);
        if pending.is_empty() {
            break;
        }
        for batch in pending.chunks(settings.batch_size) {
            stop_if_cancelled(progress)?;
            let (rows, worst) = work.features(batch)?;
            largest_row_error = nan_or_max(largest_row_error, worst);
            batch.iter().zip(rows).for_each(|(&feature, row)| selection.keep(feature, row));
            progress.advance(batch.len() as u64);
        }
    }
    progress.end();
    let (target_rows, rows) = selection.into_rows();
    Ok(Attribution::packed(&context.columns, &context.features, rows, target_rows, targets, largest_row_error))
}

struct Work<'a> {
    sweep: Sweep<'a>,
}

impl Work<'_> {
    /// The rows of targets, and how far the worst is from summing to its value.
    fn targets(&self, targets: &[Target]) -> Result<(Vec<Row>, f64)> {
        let columns = &self.sweep.context.columns;
        let (layer, position) = (columns.n_layers, columns.positions - 1);
        let seed = |target| Seed { layer, position, vector: direction(target) };
        let mut rows = self.sweep.run(&targets.iter().map(seed).collect::<Vec<_>>())?;
        rows.iter_mut().zip(targets).for_each(|(row, target)| row.bias += target.constant);
        let values: Vec<f64> = targets.iter().map(|target| target.value).collect();
        let worst = worst(&rows, &values);
        Ok((rows, worst))
    }

    /// The same of active features.
    fn features(&self, batch: &[usize]) -> Result<(Vec<Row>, f64)> {
        let Sweep { model, set, context } = self.sweep;
        let d = model.config().d_model;
        let features: Vec<ActiveFeature> = batch.iter().map(|&i| context.features[i]).collect();
        let (mut vectors, mut biases, mut values) = (Vec::with_capacity(features.len() * d), Vec::new(), Vec::new());
        for together in features.chunk_by(|a, b| (a.layer, a.position) == (b.layer, b.position)) {
            let (layer, position) = (together[0].layer, together[0].position);
            let numbers: Vec<u32> = together.iter().map(|feature| feature.feature).collect();
            vectors.extend(set.encoder_rows(layer, &numbers)?);
            biases.extend(set.encoder_biases(layer, &numbers)?);
            values.extend(set.pre_activations(layer, &context.inputs[layer][position * d..][..d], &numbers)?);
        }
        let seeds = features.iter().zip(vectors.chunks_exact(d));
        let seeds = seeds.map(|(f, vector)| Seed { layer: f.layer, position: f.position, vector });
        let mut rows = self.sweep.run(&seeds.collect::<Vec<_>>())?;
        rows.iter_mut().zip(biases).for_each(|(row, bias)| row.bias += f64::from(bias));
        let values: Vec<f64> = values.into_iter().map(f64::from).collect();
        let worst = worst(&rows, &values);
        Ok((rows, worst))
    }
}

fn direction(target: &Target) -> &[f32] {
    &target.direction
}

/// The largest difference between the sum of a row with its constants and the value it explains, relative to the row's
/// largest term.
fn worst(rows: &[Row], values: &[f64]) -> f64 {
    let error = |(row, value): (&Row, &f64)| {
        let sum: f64 = row.entries.iter().map(|entry| f64::from(*entry)).sum();
        let largest = row.entries.iter().fold(0f32, |m, entry| m.max(entry.abs()));
        let scale = f64::from(largest).max(row.bias.abs()).max(value.abs()).max(f64::MIN_POSITIVE);
        (sum + row.bias - value).abs() / scale
    };
    rows.par_iter().zip(values).map(error).reduce(|| 0.0, nan_or_max)
}

/// The larger; not a number where either is none, so that a broken row is not lost among others.
pub(super) fn nan_or_max(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) }
}
