//! The loop: batches from a source, a step of every dictionary on each, measurements and checkpoints.

use std::path::PathBuf;
use std::time::Instant;

use candle_core::Device;

use super::log::MetricsLine;
use super::resume::{Seated, latest_common, mark_diverged};
use super::rows::{Stored, estimate, evaluate, with_batches};
use super::run::{TrainedLayer, nobody};
use super::sessions::Clock;
use super::settings::TrainPlan;
use super::trainer::{Seat, Taken, Trainer};
use crate::base::{Error, Progress, Result, Unit};
use crate::dictionary::Metadata;
use crate::dictionary::metrics::MetricsReport;
use crate::store::RowSource;

/// Held-out rows at the end, as a multiple of those measured on the way.
const FINAL_HELDOUT: u64 = 8;

/// How dictionaries that share batches belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Each is a result of its own.
    Apart,
    /// They are of use only together.
    Set,
    /// They share their loss.
    CrossLayer,
}

/// What is trained, how, and who takes the results, in the order of the seats.
pub(super) struct Run<'a> {
    pub(super) seats: Vec<(Seat, Metadata)>,
    pub(super) kind: Kind,
    pub(super) sink: Box<dyn FnMut(End) -> Result<()> + 'a>,
}

/// How one of them ended.
pub(super) enum End {
    Trained(Box<TrainedLayer>),
    Diverged(u64),
}
/// The two streams that a run reads.
pub(super) struct Rows<'a> {
    pub(super) source: &'a mut dyn RowSource,
    pub(super) heldout: Option<&'a mut dyn RowSource>,
}

/// Trains everything of `run` together. There is at least one seat, and all agree about the batches.
pub(super) fn train_all<'a>(
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
            let features = seats.iter().filter(|seat| seat.plan.transcoder.is_some()).map(|seat| seat.plan.d_sae);
            let kept = features.max().unwrap_or(0);
            let estimates = estimate(source, (*batch_size, *n_batches_for_norm), kept, progress)?;
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
