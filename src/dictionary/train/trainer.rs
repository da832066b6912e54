//! One dictionary in training: its steps, what it says about them, its checkpoints, and the finished directory.

use std::path::PathBuf;

use candle_core::Device;

use super::checkpoint::{self, Checkpoint};
use super::dead::{self, Activity};
use super::engine::Engine;
use super::finish;
use super::log::{METRICS_FILE, MetricsLine, MetricsLog};
use super::parameters::{Parameters, State};
use super::rows::{Estimate, total_variance};
use super::run::TrainSummary;
use super::schedule;
use super::settings::{DeadFeatures, DecoderBias, Method, TrainPlan};
use super::step::{BatchReport, StepInput};
use crate::base::{Error, Result};
use crate::dictionary::metrics::MetricsReport;
use crate::dictionary::{Dictionary, Metadata, io};

/// What is settled about a dictionary before its weights exist.
#[derive(Debug, Clone)]
pub(super) struct Seat {
    /// What tells it from the others of a run; empty when there are none.
    pub(super) name: String,
    /// Which of the source's hooks it learns from.
    pub(super) hook: usize,
    /// The settings with every blank filled in.
    pub(super) plan: TrainPlan,
    /// Where its files go.
    pub(super) dir: PathBuf,
}

/// One dictionary in training.
pub(super) struct Trainer {
    pub(super) seat: Seat,
    /// The factor that gives its rows a mean norm of `√d`.
    pub(super) scale: f32,
    engine: Engine,
    activity: Activity,
    step: u64,
    resampled: u64,
    metrics: MetricsLog,
    last: Option<MetricsLine>,
}

/// What one step gave.
pub(super) struct Taken {
    report: BatchReport,
    learning_rate: f64,
    coefficient: f64,
    grad_norm: f64,
}

impl Trainer {
    /// Before the first step.
    pub(super) fn start(seat: Seat, estimate: &Estimate, device: &Device) -> Result<Self> {
        let plan = &seat.plan;
        let scale = estimate.scale;
        let b_dec = match plan.decoder_bias {
            DecoderBias::Mean => estimate.mean.iter().map(|m| (m * f64::from(scale)) as f32).collect(),
            DecoderBias::Zero => vec![0.0; plan.d_in],
        };
        let size = (plan.d_in, plan.d_sae);
        let mut weights = Parameters::initial(plan.arch, size, plan.decoder_init_norm, b_dec, plan.seed);
        if let (Method::JumpRelu { init_threshold, .. }, [(_, threshold)]) = (&plan.method, weights.own.as_mut_slice())
        {
            threshold.fill(*init_threshold as f32);
        }
        let activity = Activity::new(plan.d_sae);
        let engine = Engine::new(State::new(weights), plan, device)?;
        let metrics = MetricsLog::open(&seat.dir, 0)?;
        Ok(Self { seat, scale, engine, activity, step: 0, resampled: 0, metrics, last: None })
    }

    /// As it was when `checkpoint` was written.
    pub(super) fn resume(seat: Seat, checkpoint: Checkpoint, device: &Device) -> Result<Self> {
        let Checkpoint { header, state, activity } = checkpoint;
        let metrics = MetricsLog::open(&seat.dir, header.metrics_bytes)?;
        let last = metrics.last()?;
        let engine = Engine::new(state, &seat.plan, device)?;
        let (scale, step, resampled) = (header.scale, header.step, header.resampled);
        Ok(Self { seat, scale, engine, activity, step, resampled, metrics, last })
    }

    /// Steps taken.
    pub(super) fn steps_taken(&self) -> u64 {
        self.step
    }

    /// One step on scaled rows `x`.
    ///
    /// # Errors
    /// `NonFinite` when the loss or its gradient leaves the finite numbers.
    pub(super) fn step(&mut self, x: &[f32]) -> Result<Taken> {
        let plan = &self.seat.plan;
        let learning_rate = schedule::learning_rate(plan, self.step);
        let coefficient = schedule::coefficient(plan, self.step);
        let exponent = schedule::exponent(plan, self.step);
        let dead = if plan.method.uses_dead() { self.activity.dead(plan.dead_feature_window) } else { Vec::new() };
        let input = StepInput { x, coefficient, exponent, dead: &dead };
        if self.step > 0 {
            let before = schedule::exponent(plan, self.step - 1);
            self.engine.anneal(input, before)?;
        }
        let (report, grad_norm) = self.engine.step(plan, input, learning_rate)?;
        self.step += 1;
        if !(report.loss.total(coefficient).is_finite() && grad_norm.is_finite()) {
            return Err(self.diverged());
        }
        self.activity.record(&report.fired, plan.batch_size as u64);
        self.revive(x)?;
        Ok(Taken { report, learning_rate, coefficient, grad_norm })
    }

    fn diverged(&self) -> Error {
        let Seat { name, plan, .. } = &self.seat;
        let of = if name.is_empty() { String::new() } else { format!(" of '{name}'") };
        Error::NonFinite {
            what: format!("the training loss{of} or its gradient"),
            count: 1,
            at: format!("step {}", self.step),
            remedy: format!(
                "train with a lower --lr than {} (checkpoints of earlier steps are kept), and check the activations \
                 for outliers",
                plan.lr
            ),
        }
    }

    /// Starts dead features again, once a window, while the learning rate is still high enough for them to learn.
    fn revive(&mut self, x: &[f32]) -> Result<()> {
        let plan = &self.seat.plan;
        let TrainPlan { dead_features, dead_feature_window, steps, lr_decay_steps, .. } = *plan;
        let due = self.step.is_multiple_of(dead_feature_window) && self.step + lr_decay_steps < steps;
        if dead_features == DeadFeatures::Ignore || !due {
            return Ok(());
        }
        let dead = self.activity.dead(dead_feature_window);
        if dead.is_empty() {
            return Ok(());
        }
        let revived = self.engine.edit(|state| dead::resample(state, plan, &dead, x))??;
        for feature in &revived {
            self.activity.since_fired[*feature as usize] = 0;
        }
        self.resampled += revived.len() as u64;
        Ok(())
    }

    /// Whether this was the last step.
    pub(super) fn done(&self) -> bool {
        self.step == self.seat.plan.steps
    }

    /// Whether held-out rows are to be measured after this step.
    pub(super) fn measurement_due(&self) -> bool {
        self.step.is_multiple_of(self.seat.plan.eval_every) || self.done()
    }

    /// Whether this step has a line in `metrics.jsonl`.
    pub(super) fn log_due(&self) -> bool {
        self.step.is_multiple_of(self.seat.plan.log_every) || self.measurement_due()
    }

    /// Adds a line for the step on `x` to `metrics.jsonl`.
    pub(super) fn log(&mut self, x: &[f32], taken: &Taken, heldout: Option<&MetricsReport>) -> Result<MetricsLine> {
        let plan = &self.seat.plan;
        let Taken { report, learning_rate, coefficient, grad_norm } = taken;
        let line = MetricsLine {
            step: self.step,
            n_training_samples: self.step * plan.batch_size as u64,
            loss: report.loss.total(*coefficient),
            mse: report.loss.mse,
            sparsity: report.loss.sparsity,
            auxiliary: report.loss.auxiliary,
            explained_variance: 1.0 - report.loss.mse / total_variance(x, plan.d_in),
            l0: report.l0,
            dead_features: self.activity.dead(plan.dead_feature_window).len(),
            resampled: self.resampled,
            learning_rate: *learning_rate,
            coefficient: *coefficient,
            grad_norm: *grad_norm,
            heldout_explained_variance: heldout.map(|report| report.explained_variance),
            heldout_l0: heldout.map(|report| report.l0),
        };
        self.metrics.append(&line)?;
        self.last = Some(line.clone());
        Ok(line)
    }

    /// The dictionary as it would be stored now.
    pub(super) fn dictionary(&self, metadata: Metadata) -> Result<Dictionary> {
        finish::dictionary(self.engine.state()?.as_ref(), &self.seat.plan, self.scale, metadata)
    }

    /// Makes everything up to this step durable.
    pub(super) fn checkpoint(&mut self) -> Result<()> {
        let metrics_bytes = self.metrics.sync()?;
        let state = self.engine.state()?;
        let scalars = (self.scale, metrics_bytes, self.resampled);
        checkpoint::write(&self.seat.dir, &self.seat.plan, scalars, &state, &self.activity)
    }

    /// Writes the finished dictionary; `heldout` are its figures on held-out rows.
    pub(super) fn finish(self, mut metadata: Metadata, heldout: Option<MetricsReport>) -> Result<TrainSummary> {
        let dead_features = self.activity.dead(self.seat.plan.dead_feature_window).len();
        let last = self.last.clone().ok_or_else(|| Error::Missing {
            what: "training metrics",
            path: self.seat.dir.join(METRICS_FILE),
            expected: "a line for the last step".into(),
            remedy: "train again in another --out".into(),
        })?;
        metadata.l0 = Some(heldout.map_or(last.l0, |report| report.l0));
        metadata.num_dead_features = Some(dead_features as u64);
        metadata.extra.extend(finish::metadata(&self.seat.plan));
        if let Some(heldout) = heldout {
            metadata.extra.insert("explained_variance".into(), heldout.explained_variance.into());
        }
        io::write(&self.seat.dir, &self.dictionary(metadata)?)?;
        io::write_sparsity(&self.seat.dir, &self.activity.frequencies())?;
        let Self { seat, scale, resampled, .. } = self;
        Ok(TrainSummary { plan: seat.plan, scale, last, heldout, dead_features, resampled })
    }
}
