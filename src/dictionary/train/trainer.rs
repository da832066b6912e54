//! One dictionary in training: its steps, what it says about them, its checkpoints, and the finished directory.

use std::path::PathBuf;

use candle_core::Device;

use super::checkpoint::{self, Checkpoint};
use super::dead::{self, Activity};
use super::engine::Engine;
use super::finish::{self, Scales};
use super::log::{METRICS_FILE, MetricsLine, MetricsLog};
use super::parameters::{Parameters, State};
use super::rows::{Estimate, Stored, beside_each_other, reconstruct_together, total_variance};
use super::run::TrainSummary;
use super::schedule;
use super::settings::{DeadFeatures, DecoderBias, Method, TrainPlan};
use super::step::{BatchReport, StepInput, cross};
use crate::base::{Error, Result};
use crate::dictionary::metrics::MetricsReport;
use crate::dictionary::{Dictionary, Metadata};
use crate::ops::threads;

/// What is settled about a dictionary before its weights exist.
#[derive(Debug, Clone)]
pub(super) struct Seat {
    /// What tells it from the others of a run; empty when there are none.
    pub(super) name: String,
    /// Which of the source's hooks it learns from.
    pub(super) hook: usize,
    /// Which of them it reconstructs: none of an autoencoder, one of a transcoder, and of a layer of a cross-layer
    /// transcoder its own layer's and all later ones'.
    pub(super) targets: Vec<usize>,
    /// The settings with every blank filled in.
    pub(super) plan: TrainPlan,
    /// Where its files go.
    pub(super) dir: PathBuf,
}

/// One dictionary in training.
pub(super) struct Trainer {
    pub(super) seat: Seat,
    /// The factors that give its rows a mean norm of `√d`.
    pub(super) scales: Scales,
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
    /// Before the first step, with an estimate of each of the source's hooks.
    pub(super) fn start(seat: Seat, estimates: &[Estimate], device: &Device) -> Result<Self> {
        let plan = &seat.plan;
        let input = &estimates[seat.hook];
        let outputs = seat.targets.iter().map(|&target| estimates[target].scale).collect();
        let scales = Scales { input: input.scale, outputs };
        let reconstructed = seat.targets.first().map_or(input, |&target| &estimates[target]);
        let b_dec = match plan.decoder_bias {
            DecoderBias::Mean => reconstructed.scaled_mean(),
            DecoderBias::Zero => vec![0.0; reconstructed.mean.len()],
        };
        let mut weights = Parameters::initial(plan.arch, plan.shape(), plan.decoder_init_norm, b_dec, plan.seed);
        if plan.transcoder.is_some() {
            let pair = |feature: usize| (input.direction(feature), reconstructed.direction(feature));
            weights.start_at_pairs(plan.decoder_init_norm as f32, pair);
            weights.center_inputs(&input.scaled_mean());
        }
        if let (Method::JumpRelu { init_threshold, .. }, [(_, threshold)]) = (&plan.method, weights.own.as_mut_slice())
        {
            threshold.fill(*init_threshold as f32);
        }
        let activity = Activity::new(plan.d_sae);
        let engine = Engine::new(State::new(weights), plan, device)?;
        let metrics = MetricsLog::open(&seat.dir, 0)?;
        Ok(Self { seat, scales, engine, activity, step: 0, resampled: 0, metrics, last: None })
    }

    /// As it was when `checkpoint` was written.
    pub(super) fn resume(seat: Seat, checkpoint: Checkpoint, device: &Device) -> Result<Self> {
        let Checkpoint { header, state, activity } = checkpoint;
        let metrics = MetricsLog::open(&seat.dir, header.metrics_bytes)?;
        let last = metrics.last()?;
        let engine = Engine::new(state, &seat.plan, device)?;
        let scales = Scales { input: header.scale, outputs: header.output_scales };
        let (step, resampled) = (header.step, header.resampled);
        Ok(Self { seat, scales, engine, activity, step, resampled, metrics, last })
    }

    /// Steps taken.
    pub(super) fn steps_taken(&self) -> u64 {
        self.step
    }

    /// The scaled rows that it encodes, and those that a transcoder reconstructs at its own layer.
    fn rows<'b>(&self, batches: &'b [Vec<f32>]) -> (&'b [f32], Option<&'b [f32]>) {
        (&batches[self.seat.hook], self.seat.targets.first().map(|&target| batches[target].as_slice()))
    }

    /// The scaled rows that are reconstructed.
    fn reconstructed<'b>(&self, batches: &'b [Vec<f32>]) -> &'b [f32] {
        let (x, target) = self.rows(batches);
        target.unwrap_or(x)
    }

    /// What the next step is told.
    fn agenda(&self) -> Agenda {
        let plan = &self.seat.plan;
        Agenda {
            learning_rate: schedule::learning_rate(plan, self.step),
            coefficient: schedule::coefficient(plan, self.step),
            exponent: schedule::exponent(plan, self.step),
            dead: if plan.method.uses_dead() { self.activity.dead(plan.dead_feature_window) } else { Vec::new() },
        }
    }

    /// Keeps the penalty of these rows what it was where the next step has another exponent.
    fn anneal(&mut self, agenda: &Agenda, batches: &[Vec<f32>]) -> Result<()> {
        let Some(before) = self.step.checked_sub(1) else { return Ok(()) };
        let input = agenda.input((&batches[self.seat.hook], None));
        self.engine.anneal(input, schedule::exponent(&self.seat.plan, before))
    }

    /// One step on scaled rows, one batch a hook of the source.
    ///
    /// # Errors
    /// `NonFinite` when the loss or its gradient leaves the finite numbers.
    pub(super) fn step(&mut self, batches: &[Vec<f32>]) -> Result<Taken> {
        let agenda = self.agenda();
        self.anneal(&agenda, batches)?;
        let input = agenda.input(self.rows(batches));
        let (report, grad_norm) = self.engine.step(&self.seat.plan, input, agenda.learning_rate)?;
        let taken = self.taken(report, grad_norm, &agenda)?;
        if self.revival_due() {
            let (x, target) = self.rows(batches);
            let now = finish::dictionary(
                self.engine.state()?.as_ref(),
                &self.seat.plan,
                &Scales::unit(self.seat.targets.len()),
                Metadata::default(),
            )?;
            let mut residuals = now.reconstruct(x)?;
            residuals.iter_mut().zip(target.unwrap_or(x)).for_each(|(y, x)| *y = x - *y);
            self.revive(&dead::Rows { x, residuals: &residuals })?;
        }
        Ok(taken)
    }

    /// One step of all layers of a cross-layer transcoder together, `trainers` from the first layer to the last.
    ///
    /// # Errors
    /// As [`Trainer::step`].
    pub(super) fn step_together(trainers: &mut [Self], batches: &[Vec<f32>]) -> Result<Vec<Taken>> {
        let agendas: Vec<Agenda> = trainers.iter().map(Self::agenda).collect();
        let mut layers = Vec::with_capacity(trainers.len());
        for (trainer, agenda) in trainers.iter_mut().zip(&agendas) {
            trainer.anneal(agenda, batches)?;
            let input = agenda.input(trainer.rows(batches));
            let Self { seat, engine, .. } = trainer;
            layers.push(engine.layer(&seat.plan, input)?);
        }
        let reports = threads::in_pool(|| cross::gradients(&mut layers));
        let mut taken = Vec::with_capacity(trainers.len());
        for ((trainer, agenda), report) in trainers.iter_mut().zip(&agendas).zip(reports) {
            let grad_norm = report.squared_gradient.sqrt();
            trainer.engine.update(&trainer.seat.plan, &report, agenda.learning_rate);
            taken.push(trainer.taken(report, grad_norm, agenda)?);
        }
        if trainers.iter().any(Self::revival_due) {
            Self::revive_together(trainers, batches)?;
        }
        Ok(taken)
    }

    /// Starts dead features of all layers again where their layers' rows are reconstructed badly.
    fn revive_together(trainers: &mut [Self], batches: &[Vec<f32>]) -> Result<()> {
        let stored = |trainer: &Self| {
            let scales = Scales::unit(trainer.seat.targets.len());
            let now =
                finish::dictionary(trainer.engine.state()?.as_ref(), &trainer.seat.plan, &scales, Metadata::default());
            Ok(Stored { hook: trainer.seat.hook, targets: trainer.seat.targets.clone(), dictionary: now? })
        };
        let dictionaries = trainers.iter().map(stored).collect::<Result<Vec<_>>>()?;
        let codes = dictionaries.iter().map(|d| d.dictionary.encode(&batches[d.hook])).collect::<Result<Vec<_>>>()?;
        let mut residuals = reconstruct_together(&dictionaries, &codes)?;
        for (residual, trainer) in residuals.iter_mut().zip(&*trainers) {
            residual.iter_mut().zip(trainer.reconstructed(batches)).for_each(|(y, x)| *y = x - *y);
        }
        for (layer, trainer) in trainers.iter_mut().enumerate().filter(|(_, trainer)| trainer.revival_due()) {
            let x = batches[trainer.seat.hook].as_slice();
            let residuals = beside_each_other(&residuals[layer..], trainer.seat.plan.batch_size);
            trainer.revive(&dead::Rows { x, residuals: &residuals })?;
        }
        Ok(())
    }

    /// Counts a step.
    fn taken(&mut self, report: BatchReport, grad_norm: f64, agenda: &Agenda) -> Result<Taken> {
        let (learning_rate, coefficient) = (agenda.learning_rate, agenda.coefficient * self.engine.penalty_scale());
        self.step += 1;
        if !(report.loss.total(coefficient).is_finite() && grad_norm.is_finite()) {
            return Err(self.diverged());
        }
        self.activity.record(&report.fired, self.seat.plan.batch_size as u64);
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

    /// Whether dead features are to start again: once a window, while the learning rate is still high enough for them to
    /// learn, and where there are any.
    fn revival_due(&self) -> bool {
        let TrainPlan { dead_features, dead_feature_window, steps, lr_decay_steps, .. } = self.seat.plan;
        let due = self.step.is_multiple_of(dead_feature_window) && self.step + lr_decay_steps < steps;
        due && dead_features != DeadFeatures::Ignore && !self.activity.dead(dead_feature_window).is_empty()
    }

    fn revive(&mut self, batch: &dead::Rows<'_>) -> Result<()> {
        let plan = &self.seat.plan;
        let dead = self.activity.dead(plan.dead_feature_window);
        let revived = self.engine.edit(|state| dead::resample(state, plan, &dead, batch))?;
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

    /// Adds a line for the step on `batches` to `metrics.jsonl`.
    pub(super) fn log(
        &mut self,
        batches: &[Vec<f32>],
        taken: &Taken,
        heldout: Option<&MetricsReport>,
    ) -> Result<MetricsLine> {
        let plan = &self.seat.plan;
        let variance = total_variance(self.reconstructed(batches), plan.shape().d_out);
        let Taken { report, learning_rate, coefficient, grad_norm } = taken;
        let line = MetricsLine {
            step: self.step,
            n_training_samples: self.step * plan.batch_size as u64,
            loss: report.loss.total(*coefficient),
            mse: report.loss.mse,
            sparsity: report.loss.sparsity,
            auxiliary: report.loss.auxiliary,
            explained_variance: 1.0 - report.loss.mse / variance,
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
        finish::dictionary(self.engine.state()?.as_ref(), &self.seat.plan, &self.scales, metadata)
    }

    /// Makes everything up to this step durable.
    pub(super) fn checkpoint(&mut self) -> Result<()> {
        let metrics_bytes = self.metrics.sync()?;
        let state = self.engine.state()?;
        let scalars = (&self.scales, metrics_bytes, self.resampled);
        checkpoint::write(&self.seat.dir, &self.seat.plan, scalars, &state, &self.activity)
    }

    /// The finished dictionary, with how its training went and how often each feature fired; `heldout` are its figures
    /// on held-out rows.
    pub(super) fn finish(
        self,
        mut metadata: Metadata,
        heldout: Option<MetricsReport>,
    ) -> Result<(TrainSummary, Dictionary, Vec<f64>)> {
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
        let (dictionary, frequencies) = (self.dictionary(metadata)?, self.activity.frequencies());
        let Self { seat, scales, resampled, .. } = self;
        let (scale, scale_out) = (scales.input, scales.outputs.first().copied());
        let summary = TrainSummary { plan: seat.plan, scale, scale_out, last, heldout, dead_features, resampled };
        Ok((summary, dictionary, frequencies))
    }
}

/// What one step is told beside its rows.
struct Agenda {
    learning_rate: f64,
    coefficient: f64,
    exponent: f64,
    dead: Vec<u32>,
}

impl Agenda {
    fn input<'a>(&'a self, (x, target): (&'a [f32], Option<&'a [f32]>)) -> StepInput<'a> {
        StepInput { x, target, coefficient: self.coefficient, exponent: self.exponent, dead: &self.dead }
    }
}
