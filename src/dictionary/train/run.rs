//! The loop: batches from a source, a step of every dictionary on each, measurements, checkpoints, and the finished
//! directories.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::Device;
use serde::{Deserialize, Serialize};

use super::log::MetricsLine;
use super::parameters::Shape;
use super::resume::{Seated, latest_common, mark_diverged};
use super::rows::{Stored, estimate, evaluate, with_batches};
use super::sessions::Clock;
use super::settings::{TrainPlan, TrainSettings};
use super::trainer::{Seat, Taken, Trainer};
use crate::base::{Artifact, Error, Progress, Result, Unit};
use crate::dictionary::metrics::MetricsReport;
use crate::dictionary::{Dictionary, Metadata, io};
use crate::store::RowSource;

/// Held-out rows at the end, as a multiple of those measured on the way.
const FINAL_HELDOUT: u64 = 8;

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

/// How dictionaries that share batches belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Each is a result of its own.
    Apart,
    /// They are of use only together.
    Set,
    /// They share their loss.
    CrossLayer,
}

/// What is trained, how, and who takes the results, in the order of the seats.
struct Run<'a> {
    seats: Vec<(Seat, Metadata)>,
    kind: Kind,
    sink: Box<dyn FnMut(End) -> Result<()> + 'a>,
}

/// How one of them ended.
enum End {
    Trained(Box<TrainedLayer>),
    Diverged(u64),
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

fn nobody() -> Error {
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

/// Asks for the memory of all weights, gradients and moments once, because a failed allocation later would end the
/// process without a word.
fn check_memory(seats: &[(Seat, Metadata)]) -> Result<()> {
    let bytes = |(Seat { plan, .. }, _): &(Seat, Metadata)| {
        let Shape { d_in, decoder, features, .. } = plan.shape();
        4 * size_of::<f32>() * (d_in + decoder) * features
    };
    let all = seats.iter().map(bytes).fold(0usize, usize::saturating_add);
    if Vec::<u8>::new().try_reserve_exact(all).is_ok() {
        return Ok(());
    }
    let found = format!("{} that need {:.0} GB together, more than there is", seats.len(), all as f64 / 1e9);
    Err(Error::flag("--d-sae", "dictionaries that fit into memory", found, "train fewer at a time, or fewer features"))
}

/// The two streams that a run reads.
struct Rows<'a> {
    source: &'a mut dyn RowSource,
    heldout: Option<&'a mut dyn RowSource>,
}

/// Trains everything of `run` together. There is at least one seat, and all agree about the batches.
fn train_all<'a>(
    rows: Rows<'a>,
    run: Run<'_>,
    (device, arguments): (&Device, &[String]),
    progress: &'a dyn Progress,
) -> Result<()> {
    let Rows { source, heldout } = rows;
    let Run { seats, kind, sink } = run;
    if let Some(heldout) = &heldout
        && heldout.widths() != source.widths()
    {
        return Err(Error::Mismatch {
            what: "widths of training and held-out rows",
            left: format!("{:?} in training", source.widths()),
            right: format!("{:?} held out", heldout.widths()),
            remedy: "measure on rows of the same hook of the same model".into(),
        });
    }
    let (seats, metadata): (Vec<Seat>, Vec<Metadata>) = seats.into_iter().unzip();
    let members = seats.iter().map(|seat| seat.dir.clone()).collect();
    let (trainers, diverged) = open(seats, source, device, progress)?;
    let mut together = Together::new((trainers, kind), diverged, members, heldout, arguments, progress)?;
    source.seek(together.step * together.batch_size as u64)?;
    together.run(source)?;
    together.finish(metadata, sink)
}

/// A member that diverged: its directory and the step that could not be taken.
type Left = (PathBuf, u64);

/// The trainers where their last common checkpoint left them, or new ones; beside them those that had diverged.
fn open(
    seats: Vec<Seat>,
    source: &mut dyn RowSource,
    device: &Device,
    progress: &dyn Progress,
) -> Result<(Vec<Trainer>, Vec<Left>)> {
    let (mut trainers, mut diverged) = (Vec::new(), Vec::new());
    match latest_common(seats, progress)? {
        Ok(seated) => {
            for seated in seated {
                match seated {
                    Seated::At(seat, checkpoint) => trainers.push(Trainer::resume(seat, *checkpoint, device)?),
                    Seated::Diverged(seat, step) => diverged.push((seat.dir, step)),
                }
            }
        }
        Err(seats) => {
            let Some(TrainPlan { batch_size, n_batches_for_norm, .. }) = seats.first().map(|seat| &seat.plan) else {
                return Err(nobody());
            };
            let estimates = estimate(source, *batch_size, *n_batches_for_norm, progress)?;
            for seat in seats {
                trainers.push(Trainer::start(seat, &estimates, device)?);
            }
        }
    }
    Ok((trainers, diverged))
}

/// Trainers in step with each other.
struct Together<'a> {
    trainers: Vec<Trainer>,
    kind: Kind,
    /// Directory and step of those that diverged.
    diverged: Vec<Left>,
    /// Directories of all, in their order.
    members: Vec<PathBuf>,
    heldout: Option<&'a mut dyn RowSource>,
    progress: &'a dyn Progress,
    batch_size: usize,
    steps: u64,
    checkpoint_every: u64,
    heldout_rows: u64,
    step: u64,
    /// The step of the last checkpoint.
    saved: u64,
    /// Step and time of the last row of the table.
    row: (u64, Instant),
    clock: Clock,
}

impl<'a> Together<'a> {
    fn new(
        (trainers, kind): (Vec<Trainer>, Kind),
        diverged: Vec<Left>,
        members: Vec<PathBuf>,
        heldout: Option<&'a mut dyn RowSource>,
        arguments: &[String],
        progress: &'a dyn Progress,
    ) -> Result<Self> {
        let first = trainers.first().ok_or_else(nobody)?;
        let TrainPlan { batch_size, steps, checkpoint_every, heldout_rows, .. } = first.seat.plan;
        let step = first.steps_taken();
        if step > 0 {
            progress.line(&format!("continuing after step {step} of {steps}"));
        }
        let row = (step, Instant::now());
        let clock = Clock::start(arguments, step, batch_size);
        Ok(Self {
            trainers,
            kind,
            diverged,
            members,
            heldout,
            progress,
            batch_size,
            steps,
            checkpoint_every,
            heldout_rows,
            step,
            saved: step,
            row,
            clock,
        })
    }

    fn run(&mut self, source: &mut dyn RowSource) -> Result<()> {
        let rows = self.batch_size as u64;
        self.progress.begin("training", self.steps * rows, Unit::Tokens);
        self.progress.set(self.step * rows);
        let margin = self.name_width();
        if self.kind != Kind::Apart {
            self.progress.line(&format!("means over {} layers; dead features of all", self.trainers.len()));
        }
        self.progress.line(&format!("{:margin$}{}", "", MetricsLine::table_head()));
        self.row.1 = Instant::now();
        let mut scales = vec![1.0; source.widths().len()];
        for trainer in &self.trainers {
            scales[trainer.seat.hook] = trainer.scales.input;
            for (&target, scale) in trainer.seat.targets.iter().zip(&trainer.scales.outputs) {
                scales[target] = *scale;
            }
        }
        let (n, left) = (self.batch_size, self.steps - self.step);
        let result = with_batches(source, n, left, &scales, |batches| self.one(batches));
        self.progress.end();
        match result {
            // The source noticed first that the user stopped the run.
            Err(Error::Interrupted { .. }) if self.step > self.saved => {
                self.checkpoint()?;
                Err(self.stopped())
            }
            other => other,
        }
    }

    /// Characters that names take at the left of the table.
    fn name_width(&self) -> usize {
        if self.kind != Kind::Apart {
            return 0;
        }
        let longest = self.trainers.iter().map(|t| t.seat.name.chars().count()).max().unwrap_or(0);
        if longest == 0 { 0 } else { longest + 1 }
    }

    /// One step of every trainer and whatever is due after it.
    fn one(&mut self, batches: &[Vec<f32>]) -> Result<()> {
        let taken = self.step(batches)?;
        self.step += 1;
        let heldout = self.measure()?;
        let mut lines = Vec::new();
        for ((trainer, taken), heldout) in self.trainers.iter_mut().zip(&taken).zip(&heldout) {
            if trainer.log_due() {
                lines.push(trainer.log(batches, taken, heldout.as_ref())?);
            }
        }
        self.tell(&lines);
        self.progress.advance(self.batch_size as u64);
        let done = self.step == self.steps;
        let stopped = self.progress.cancelled() && !done;
        if self.step.is_multiple_of(self.checkpoint_every) || done || stopped {
            self.checkpoint()?;
        }
        if stopped { Err(self.stopped()) } else { Ok(()) }
    }

    /// A step of every trainer on its rows. One that diverges leaves, unless it is the last or the others need it.
    fn step(&mut self, batches: &[Vec<f32>]) -> Result<Vec<Taken>> {
        if self.kind == Kind::CrossLayer {
            return Trainer::step_together(&mut self.trainers, batches);
        }
        let mut taken = Vec::with_capacity(self.trainers.len());
        while let Some(trainer) = self.trainers.get_mut(taken.len()) {
            match trainer.step(batches) {
                Ok(step) => taken.push(step),
                Err(error @ Error::NonFinite { .. }) if self.trainers.len() > 1 && self.kind == Kind::Apart => {
                    let left = self.trainers.remove(taken.len());
                    mark_diverged(&left.seat.dir, self.step + 1, &error)?;
                    self.progress.warn(&format!("'{}' is given up: {error}", left.seat.name));
                    self.diverged.push((left.seat.dir, self.step + 1));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(taken)
    }

    fn stopped(&self) -> Error {
        Error::Interrupted {
            kept: format!("step {} of {} is saved", self.step, self.steps),
            resume: "run the same command with --resume".into(),
        }
    }

    fn checkpoint(&mut self) -> Result<()> {
        for trainer in &mut self.trainers {
            trainer.checkpoint()?;
            self.clock.note(&trainer.seat.dir, self.step)?;
        }
        self.saved = self.step;
        Ok(())
    }

    /// Held-out figures of each trainer for which they are due.
    fn measure(&mut self) -> Result<Vec<Option<MetricsReport>>> {
        let due: Vec<bool> = self.trainers.iter().map(Trainer::measurement_due).collect();
        self.evaluate(&due, self.heldout_rows)
    }

    /// Measures the chosen dictionaries, as they would be stored, on the first `rows` held-out rows.
    fn evaluate(&mut self, chosen: &[bool], rows: u64) -> Result<Vec<Option<MetricsReport>>> {
        let Some(source) = self.heldout.as_mut().filter(|_| chosen.contains(&true)) else {
            return Ok(vec![None; chosen.len()]);
        };
        let stored = |trainer: &Trainer| {
            let Seat { hook, targets, .. } = &trainer.seat;
            Ok(Stored { hook: *hook, targets: targets.clone(), dictionary: trainer.dictionary(Metadata::default())? })
        };
        let trainers = self.trainers.iter().zip(chosen).filter(|(_, chosen)| **chosen);
        let dictionaries = trainers.map(|(trainer, _)| stored(trainer)).collect::<Result<Vec<_>>>()?;
        let together = self.kind == Kind::CrossLayer;
        let mut reports = evaluate(&dictionaries, together, *source, rows)?.into_iter();
        Ok(chosen.iter().map(|&chosen| if chosen { reports.next() } else { None }).collect())
    }

    /// Shows logged lines: beside the bar, and in the table where held-out rows were measured.
    fn tell(&mut self, lines: &[MetricsLine]) {
        if lines.is_empty() {
            return;
        }
        self.progress.note(&note(lines));
        let due = self.trainers.iter().any(Trainer::measurement_due);
        if !due || lines.len() < self.trainers.len() {
            return;
        }
        let rows = (self.step - self.row.0) * self.batch_size as u64;
        let speed = rows as f64 / self.row.1.elapsed().as_secs_f64().max(1e-9);
        let margin = self.name_width();
        if self.kind == Kind::Apart {
            for (trainer, line) in self.trainers.iter().zip(lines) {
                self.progress.line(&format!("{:margin$}{}", trainer.seat.name, line.table_row(speed)));
            }
        } else if let Some(mean) = MetricsLine::mean(lines) {
            self.progress.line(&mean.table_row(speed));
        }
        self.row = (self.step, Instant::now());
    }

    fn finish(mut self, metadata: Vec<Metadata>, mut sink: impl FnMut(End) -> Result<()>) -> Result<()> {
        let all = vec![true; self.trainers.len()];
        let heldout = self.evaluate(&all, self.heldout_rows.saturating_mul(FINAL_HELDOUT))?;
        let mut trained = self.trainers.into_iter().zip(heldout).peekable();
        for (dir, metadata) in self.members.iter().zip(metadata) {
            if let Some((trainer, heldout)) = trained.next_if(|(trainer, _)| trainer.seat.dir == *dir) {
                let (summary, dictionary, frequencies) = trainer.finish(metadata, heldout)?;
                sink(End::Trained(Box::new(TrainedLayer { summary, dictionary, frequencies })))?;
            } else {
                let step = self.diverged.iter().find(|(left, _)| left == dir).map_or(0, |(_, step)| *step);
                sink(End::Diverged(step))?;
            }
        }
        Ok(())
    }
}

/// What stands beside the bar: the figures of one dictionary, or their range over several.
fn note(lines: &[MetricsLine]) -> String {
    let range = |figure: fn(&MetricsLine) -> f64, decimals: usize| {
        let (low, high) = lines.iter().map(figure).fold((f64::MAX, f64::MIN), |(l, h), x| (l.min(x), h.max(x)));
        let (low, high) = (format!("{low:.decimals$}"), format!("{high:.decimals$}"));
        if low == high { low } else { format!("{low}..{high}") }
    };
    format!(
        "loss {}  EV {}  L0 {}  dead {}",
        range(|l| l.loss, 1),
        range(|l| l.explained_variance, 3),
        range(|l| l.l0, 0),
        range(|l| l.dead_features as f64, 0),
    )
}
