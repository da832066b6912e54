//! What can be trained: one dictionary, several on the same rows, the layers of a set; and what comes of it.

use std::fs;
use std::path::{Path, PathBuf};

use candle_core::Device;
use serde::{Deserialize, Serialize};

use super::log::MetricsLine;
use super::parameters::Shape;
use super::settings::{TrainArchitecture, TrainPlan, TrainSettings};
use super::together::{End, Kind, Rows, Run, train_all};
use super::trainer::Seat;
use crate::base::{Artifact, Error, Progress, Result};
use crate::dictionary::metrics::MetricsReport;
use crate::dictionary::{Dictionary, Metadata, io};
use crate::store::RowSource;

/// A training run: what to learn from, how, and where to.
pub struct TrainRun<'a> {
    /// Rows to train on: of one hook, or for a transcoder of the one that it encodes and the one that it reconstructs.
    pub source: &'a mut dyn RowSource,
    /// Rows of other text to measure on.
    pub heldout: Option<&'a mut dyn RowSource>,
    /// The settings.
    pub settings: &'a TrainSettings,
    /// Where the rows come from; training adds its own part.
    pub metadata: Metadata,
    /// Where to compute.
    pub device: &'a Device,
    /// The output; checkpoints found in it are continued.
    pub out: &'a Artifact,
    /// Receives the table.
    pub progress: &'a dyn Progress,
}

/// One of several dictionaries that are trained on the same batches.
#[derive(Debug, Clone)]
pub struct Member {
    /// Its directory inside the output, and what tables call it.
    pub name: String,
    /// Which of the source's hooks it learns from.
    pub hook: usize,
    /// Which of them it reconstructs, for a transcoder.
    pub target: Option<usize>,
    /// The settings.
    pub settings: TrainSettings,
    /// Where the rows come from; training adds its own part.
    pub metadata: Metadata,
}

/// Several dictionaries trained in one pass over the rows: every batch is read once and every member takes a step on
/// it. A member ends with the bits that it would have in a run of its own on the same rows.
pub struct SweepRun<'a> {
    /// Rows to train on.
    pub source: &'a mut dyn RowSource,
    /// Rows of other text to measure on.
    pub heldout: Option<&'a mut dyn RowSource>,
    /// The dictionaries. They agree in what concerns the batches: batch size, steps, checkpoints, norm estimate.
    pub members: Vec<Member>,
    /// Where to compute.
    pub device: &'a Device,
    /// The output, with a directory a member; checkpoints found in it are continued.
    pub out: &'a Artifact,
    /// Receives the table.
    pub progress: &'a dyn Progress,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainSummary {
    /// The settings with every blank filled in.
    pub plan: TrainPlan,
    /// The factor that gave the rows a mean norm of `√d`, folded into the weights.
    pub scale: f32,
    /// The same of the rows that a transcoder reconstructs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale_out: Option<f32>,
    /// Figures of the last training batch.
    pub last: MetricsLine,
    /// Figures of the stored dictionary on held-out rows.
    pub heldout: Option<MetricsReport>,
    /// Features that fired in none of the last `dead_feature_window` steps.
    pub dead_features: usize,
    /// Dead features that were started again, over the whole run.
    pub resampled: u64,
}

/// How a member of a sweep ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum MemberEnd {
    /// As it should.
    Trained(Box<TrainSummary>),
    /// Its loss left the finite numbers; the others went on.
    Diverged {
        /// The step that could not be taken.
        diverged_at_step: u64,
    },
}

/// A set of transcoders trained together on the rows of a model: one a layer, each from its own hook to its own
/// target.
pub struct SetRun<'a> {
    /// Rows of all hooks.
    pub source: &'a mut dyn RowSource,
    /// Rows of other text to measure on.
    pub heldout: Option<&'a mut dyn RowSource>,
    /// The layers, from the first to the last. All have a target, and agree in what concerns the batches.
    pub layers: Vec<Member>,
    /// Whether each layer's features write to all later layers' targets too.
    pub cross_layer: bool,
    /// Where to compute.
    pub device: &'a Device,
    /// The output, where each layer has a directory of its name for its checkpoints and metrics; those found in it are
    /// continued.
    pub out: &'a Artifact,
    /// Receives the table.
    pub progress: &'a dyn Progress,
}

/// A layer of a trained set.
#[derive(Debug)]
pub struct TrainedLayer {
    /// How its training ended.
    pub summary: TrainSummary,
    /// Its weights, for rows as they are. Of a cross-layer transcoder's layer the decoder rows of all layers that it
    /// writes to stand one after the other, `[f, layers · d_out]`, and zeros follow its own layer's `b_dec`.
    pub dictionary: Dictionary,
    /// Share of the last million rows on which each feature fired.
    pub frequencies: Vec<f64>,
}

/// Trains a dictionary and writes it into the output directory in SAELens' format, with `metrics.jsonl` and
/// `checkpoints/`. A source of two hooks makes it a transcoder from the first to the second. The caller finishes the
/// [`Artifact`].
///
/// # Errors
/// `Flag` and `Mismatch` before anything is computed; `NonFinite` when the loss leaves the finite numbers;
/// `Interrupted`, after a checkpoint, when the user stops the run; whatever the source returns.
pub fn train(run: TrainRun) -> Result<TrainSummary> {
    let TrainRun { source, heldout, settings, metadata, device, out, progress } = run;
    let target = (source.widths().len() > 1).then_some(1);
    let plan = plan(settings, &*source, (0, target), 1)?;
    let seat =
        Seat { name: String::new(), hook: 0, targets: target.into_iter().collect(), plan, dir: out.dir().into() };
    let mut ends = Vec::new();
    let sink = |end: End| {
        ends.push(write(end, out.dir())?);
        Ok(())
    };
    let run = Run { seats: vec![(seat, metadata)], kind: Kind::Apart, sink: Box::new(sink) };
    train_all(Rows { source, heldout }, run, (device, out.arguments()), progress)?;
    match ends.pop() {
        Some(MemberEnd::Trained(summary)) => Ok(*summary),
        Some(MemberEnd::Diverged { .. }) | None => Err(nobody()),
    }
}

/// Trains every member and writes it into the directory of its name inside the output. The caller finishes the
/// [`Artifact`]. Ends come in the order of the members; a member that diverges does not stop the others.
///
/// # Errors
/// As [`train`]; `Mismatch` when members do not agree about the batches.
pub fn train_sweep(run: SweepRun) -> Result<Vec<MemberEnd>> {
    let SweepRun { source, heldout, members, device, out, progress } = run;
    let seats = seats(members, &*source, out, None)?;
    let dirs: Vec<PathBuf> = seats.iter().map(|(seat, _)| seat.dir.clone()).collect();
    let mut ends = Vec::with_capacity(dirs.len());
    let sink = |end: End| {
        ends.push(write(end, &dirs[ends.len()])?);
        Ok(())
    };
    let run = Run { seats, kind: Kind::Apart, sink: Box::new(sink) };
    train_all(Rows { source, heldout }, run, (device, out.arguments()), progress)?;
    Ok(ends)
}

/// Trains the layers of a set, and gives them in their order.
///
/// # Errors
/// As [`train_sweep`], but a layer that diverges stops all.
pub fn train_set(run: SetRun) -> Result<Vec<TrainedLayer>> {
    let SetRun { source, heldout, layers, cross_layer, device, out, progress } = run;
    let kind = if cross_layer { Kind::CrossLayer } else { Kind::Set };
    if cross_layer {
        layers.iter().try_for_each(|layer| check_cross_layer(&layer.settings, device))?;
    }
    let seats = seats(layers, &*source, out, Some(cross_layer))?;
    let mut trained = Vec::with_capacity(seats.len());
    let sink = |end: End| {
        if let End::Trained(layer) = end {
            trained.push(*layer);
        }
        Ok(())
    };
    train_all(
        Rows { source, heldout },
        Run { seats, kind, sink: Box::new(sink) },
        (device, out.arguments()),
        progress,
    )?;
    Ok(trained)
}

/// Refuses what no cross-layer transcoder can be. Norms of decoder rows differ by layer once scales are folded in, which
/// would change the features that win a place among the `k` largest.
///
/// # Errors
/// `Flag` naming what has to go.
pub fn check_cross_layer(settings: &TrainSettings, device: &Device) -> Result<()> {
    let wrong = |flag, expected, found: &str, remedy| Err(Error::flag(flag, expected, found, remedy));
    match settings.arch {
        _ if settings.skip => wrong(
            "--skip",
            "a cross-layer transcoder without a linear connection",
            "one",
            "leave it out, or train transcoders of one layer each",
        ),
        _ if !device.is_cpu() => wrong(
            "--device",
            "cpu: the layers of a cross-layer transcoder are trained together there",
            "a GPU",
            "leave it out",
        ),
        TrainArchitecture::TopK => wrong(
            "--arch",
            "batchtopk, jumprelu or relu with --cross-layer",
            "topk, which no file format of them has",
            "batchtopk keeps as many features active, on average over a batch",
        ),
        _ => Ok(()),
    }
}

/// Writes what was trained into `dir`.
fn write(end: End, dir: &Path) -> Result<MemberEnd> {
    Ok(match end {
        End::Diverged(diverged_at_step) => MemberEnd::Diverged { diverged_at_step },
        End::Trained(layer) => {
            let TrainedLayer { summary, dictionary, frequencies } = *layer;
            io::write(dir, &dictionary)?;
            io::write_sparsity(dir, &frequencies)?;
            MemberEnd::Trained(Box::new(summary))
        }
    })
}

/// The members of a run with their directories made. With `cross_layer`, members are the layers of a set.
fn seats(
    members: Vec<Member>,
    source: &dyn RowSource,
    out: &Artifact,
    cross_layer: Option<bool>,
) -> Result<Vec<(Seat, Metadata)>> {
    let all: Vec<usize> = members.iter().filter_map(|member| member.target).collect();
    let mut seats = Vec::with_capacity(members.len());
    for (layer, Member { name, hook, target, settings, metadata }) in members.into_iter().enumerate() {
        let targets = match cross_layer {
            Some(true) => all[layer.min(all.len())..].to_vec(),
            _ => target.into_iter().collect(),
        };
        let plan = plan(&settings, source, (hook, target), targets.len())?;
        let dir = out.dir().join(&name);
        fs::create_dir_all(&dir).map_err(Error::io("make the directory of a run", &dir))?;
        seats.push((Seat { name, hook, targets, plan, dir }, metadata));
    }
    check_batches(&seats)?;
    check_memory(&seats)?;
    Ok(seats)
}

/// The plan for rows of `hook` of `source`, from which those of `target` are reconstructed at `layers` layers.
fn plan(
    settings: &TrainSettings,
    source: &dyn RowSource,
    (hook, target): (usize, Option<usize>),
    layers: usize,
) -> Result<TrainPlan> {
    match target {
        None => settings.plan(width(source, hook)?, source.rows()),
        Some(target) => settings.plan_transcoder(width(source, hook)?, (width(source, target)?, layers), source.rows()),
    }
}

fn width(source: &dyn RowSource, hook: usize) -> Result<usize> {
    let widths = source.widths();
    widths.get(hook).copied().ok_or_else(|| Error::Unknown {
        kind: "hook number of the rows",
        found: hook.to_string(),
        nearest: (0..widths.len()).map(|i| i.to_string()).collect(),
    })
}

pub(super) fn nobody() -> Error {
    Error::flag("--sweep", "at least one run", "none", "add a [[run]] to the file")
}

/// Checks that all members use the batches in the same way.
fn check_batches(seats: &[(Seat, Metadata)]) -> Result<()> {
    let shared = |plan: &TrainPlan| {
        [
            ("batch_size", plan.batch_size as u64),
            ("steps", plan.steps),
            ("checkpoint_every", plan.checkpoint_every),
            ("n_batches_for_norm", plan.n_batches_for_norm),
            ("heldout_rows", plan.heldout_rows),
        ]
    };
    let Some((first, others)) = seats.split_first() else { return Err(nobody()) };
    for (other, _) in others {
        for ((key, left), (_, right)) in shared(&first.0.plan).into_iter().zip(shared(&other.plan)) {
            if left != right {
                return Err(Error::Mismatch {
                    what: "two runs on the same batches",
                    left: format!("{key} {left} in '{}'", first.0.name),
                    right: format!("{right} in '{}'", other.name),
                    remedy: format!("give {key} once, for all runs"),
                });
            }
        }
    }
    Ok(())
}

/// Asks for the memory of all weights, gradients and moments, and of the rows of one step, once, because a failed
/// allocation later would end the process without a word.
fn check_memory(seats: &[(Seat, Metadata)]) -> Result<()> {
    let bytes = |(Seat { plan, .. }, _): &(Seat, Metadata)| {
        let Shape { d_in, decoder, features, .. } = plan.shape();
        // Of a cross-layer transcoder all layers' rows are there at once, those of dead features twice.
        4 * size_of::<f32>() * (d_in + decoder) * features + size_of::<f32>() * plan.batch_size * (d_in + decoder)
    };
    let all = seats.iter().map(bytes).fold(0usize, usize::saturating_add);
    if Vec::<u8>::new().try_reserve_exact(all).is_ok() {
        return Ok(());
    }
    let found = format!("{} that need {:.0} GB together, more than there is", seats.len(), all as f64 / 1e9);
    Err(Error::flag("--d-sae", "dictionaries that fit into memory", found, "train fewer at a time, or fewer features"))
}
