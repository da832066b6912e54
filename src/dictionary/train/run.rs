//! The loop: batches from a source, steps, measurements, checkpoints, and the finished dictionary.

use std::path::Path;
use std::time::Instant;

use candle_core::Device;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::checkpoint::{self, Checkpoint};
use super::dead::{self, Activity};
use super::engine::Engine;
use super::log::{METRICS_FILE, MetricsLine, MetricsLog};
use super::parameters::{Parameters, State};
use super::rows::{estimate, evaluate, total_variance, with_batches};
use super::schedule;
use super::settings::{DeadFeatures, DecoderBias, TrainPlan, TrainSettings};
use super::step::BatchReport;
use crate::base::{Artifact, Error, Progress, Result, Unit};
use crate::dictionary::metrics::MetricsReport;
use crate::dictionary::{Architecture, Dictionary, DictionaryConfig, Metadata, io};
use crate::store::RowSource;

/// The run is measured on held-out rows this many times.
const HELDOUT_MEASUREMENTS: u64 = 20;
/// Held-out rows at the end, as a multiple of those measured on the way.
const FINAL_HELDOUT: u64 = 8;

/// A training run: what to learn from, how, and where to.
pub struct TrainRun<'a> {
    /// Rows to train on.
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

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainSummary {
    /// The settings with every blank filled in.
    pub plan: TrainPlan,
    /// The factor that gave the rows a mean norm of `√d`, folded into the weights.
    pub scale: f32,
    /// Figures of the last training batch.
    pub last: MetricsLine,
    /// Figures of the stored dictionary on held-out rows.
    pub heldout: Option<MetricsReport>,
    /// Features that fired in none of the last `dead_feature_window` steps.
    pub dead_features: usize,
    /// Dead features that were started again, over the whole run.
    pub resampled: u64,
}

/// Trains a dictionary and writes it into the output directory in SAELens' format, with `metrics.jsonl` and
/// `checkpoints/`. The caller finishes the [`Artifact`].
///
/// # Errors
/// `Flag` and `Mismatch` before anything is computed; `NonFinite` when the loss leaves the finite numbers;
/// `Interrupted`, after a checkpoint, when the user stops the run; whatever the source returns.
pub fn train(run: TrainRun) -> Result<TrainSummary> {
    let TrainRun { source, heldout, settings, metadata, device, out, progress } = run;
    let plan = settings.plan(source.width(), source.rows())?;
    if let Some(heldout) = &heldout
        && heldout.width() != plan.d_in
    {
        return Err(Error::Mismatch {
            what: "widths of training and held-out rows",
            left: format!("{} in training", plan.d_in),
            right: format!("{} held out", heldout.width()),
            remedy: "measure on rows of the same hook of the same model".into(),
        });
    }
    let resumed = checkpoint::latest(out.dir(), &plan, progress)?;
    let trainer = match resumed {
        Some(checkpoint) => Trainer::resume(plan, checkpoint, heldout, device, out.dir(), progress)?,
        None => Trainer::start(plan, source, heldout, device, out.dir(), progress)?,
    };
    source.seek(trainer.step * trainer.plan.batch_size as u64)?;
    trainer.run(source, metadata)
}

/// A run in progress.
struct Trainer<'a> {
    plan: TrainPlan,
    dir: &'a Path,
    progress: &'a dyn Progress,
    heldout: Option<&'a mut dyn RowSource>,
    engine: Engine,
    activity: Activity,
    scale: f32,
    step: u64,
    resampled: u64,
    metrics: MetricsLog,
    last: Option<MetricsLine>,
}

impl<'a> Trainer<'a> {
    fn start(
        plan: TrainPlan,
        source: &mut dyn RowSource,
        heldout: Option<&'a mut dyn RowSource>,
        device: &Device,
        dir: &'a Path,
        progress: &'a dyn Progress,
    ) -> Result<Self> {
        let (scale, mean) = estimate(&plan, source, progress)?;
        let b_dec = match plan.decoder_bias {
            DecoderBias::Mean => mean.iter().map(|m| (m * f64::from(scale)) as f32).collect(),
            DecoderBias::Zero => vec![0.0; plan.d_in],
        };
        let weights = Parameters::initial(plan.d_in, plan.d_sae, plan.decoder_init_norm, b_dec, plan.seed);
        let activity = Activity::new(plan.d_sae);
        let engine = Engine::new(State::new(weights), device)?;
        let metrics = MetricsLog::open(dir, 0)?;
        Ok(Self { plan, dir, progress, heldout, engine, activity, scale, step: 0, resampled: 0, metrics, last: None })
    }

    fn resume(
        plan: TrainPlan,
        checkpoint: Checkpoint,
        heldout: Option<&'a mut dyn RowSource>,
        device: &Device,
        dir: &'a Path,
        progress: &'a dyn Progress,
    ) -> Result<Self> {
        let Checkpoint { header, state, activity } = checkpoint;
        let metrics = MetricsLog::open(dir, header.metrics_bytes)?;
        let last = metrics.last()?;
        progress.line(&format!("continuing after step {} of {}", header.step, plan.steps));
        let engine = Engine::new(state, device)?;
        let (scale, step, resampled) = (header.scale, header.step, header.resampled);
        Ok(Self { plan, dir, progress, heldout, engine, activity, scale, step, resampled, metrics, last })
    }

    fn run(mut self, source: &mut dyn RowSource, metadata: Metadata) -> Result<TrainSummary> {
        let rows = self.plan.batch_size as u64;
        self.progress.begin("training", self.plan.steps * rows, Unit::Tokens);
        self.progress.set(self.step * rows);
        self.progress.line(&MetricsLine::table_head());
        let left = self.plan.steps - self.step;
        let result = with_batches(source, self.plan.batch_size, left, self.scale, |x| self.one(x));
        self.progress.end();
        result?;
        self.finish(metadata)
    }

    /// One step and whatever is due after it.
    fn one(&mut self, x: &[f32]) -> Result<()> {
        let begun = Instant::now();
        let learning_rate = schedule::learning_rate(&self.plan, self.step);
        let l1_coefficient = schedule::l1_coefficient(&self.plan, self.step);
        let (report, grad_norm) = self.engine.step(x, l1_coefficient, learning_rate)?;
        self.step += 1;
        let loss = report.loss.total(l1_coefficient);
        if !(loss.is_finite() && grad_norm.is_finite()) {
            return Err(Error::NonFinite {
                what: "the training loss or its gradient".into(),
                count: 1,
                at: format!("step {}", self.step),
                remedy: format!(
                    "train with a lower --lr than {} (checkpoints of earlier steps are kept), and check the \
                     activations for outliers",
                    self.plan.lr
                ),
            });
        }
        let rows = self.plan.batch_size as u64;
        self.activity.record(&report.fired, rows);
        self.revive(x)?;
        let last_step = self.step == self.plan.steps;
        if self.step.is_multiple_of(self.plan.log_every) || last_step {
            let line = self.measure(x, &report, (learning_rate, l1_coefficient, grad_norm))?;
            self.metrics.append(&line)?;
            if self.measurement_due() || last_step {
                self.progress.line(&line.table_row(rows as f64 / begun.elapsed().as_secs_f64()));
            }
            let (ev, l0, dead) = (line.explained_variance, line.l0, line.dead_features);
            self.progress.note(&format!("loss {:.1}  EV {ev:.3}  L0 {l0:.0}  dead {dead}", line.loss));
            self.last = Some(line);
        }
        self.progress.advance(rows);
        let stopped = self.progress.cancelled() && !last_step;
        if self.step.is_multiple_of(self.plan.checkpoint_every) || last_step || stopped {
            self.checkpoint()?;
        }
        if stopped {
            return Err(Error::Interrupted {
                kept: format!("step {} of {} is saved", self.step, self.plan.steps),
                resume: "run the same command with --resume".into(),
            });
        }
        Ok(())
    }

    /// Starts dead features again, once a window, while the learning rate is still high enough for them to learn.
    fn revive(&mut self, x: &[f32]) -> Result<()> {
        let TrainPlan { dead_features, dead_feature_window, steps, lr_decay_steps, seed, .. } = self.plan;
        let due = self.step.is_multiple_of(dead_feature_window) && self.step + lr_decay_steps < steps;
        if dead_features == DeadFeatures::Ignore || !due {
            return Ok(());
        }
        let dead = self.activity.dead(dead_feature_window);
        if dead.is_empty() {
            return Ok(());
        }
        let revived = self.engine.edit(|state| dead::resample(state, &dead, x, seed))?;
        for feature in &revived {
            self.activity.since_fired[*feature as usize] = 0;
        }
        self.resampled += revived.len() as u64;
        Ok(())
    }

    /// Whether the logged step at hand is the first one of another twentieth of the run.
    fn measurement_due(&self) -> bool {
        let every = (self.plan.steps / HELDOUT_MEASUREMENTS).max(self.plan.log_every);
        self.step / every > (self.step - self.plan.log_every.min(self.step)) / every
    }

    fn measure(
        &mut self,
        x: &[f32],
        report: &BatchReport,
        (learning_rate, l1_coefficient, grad_norm): (f64, f64, f64),
    ) -> Result<MetricsLine> {
        let heldout = if self.measurement_due() { self.measure_heldout(self.plan.heldout_rows)? } else { None };
        Ok(MetricsLine {
            step: self.step,
            n_training_samples: self.step * self.plan.batch_size as u64,
            loss: report.loss.total(l1_coefficient),
            mse: report.loss.mse,
            l1: report.loss.l1,
            explained_variance: 1.0 - report.loss.mse / total_variance(x, self.plan.d_in),
            l0: report.l0,
            dead_features: self.activity.dead(self.plan.dead_feature_window).len(),
            resampled: self.resampled,
            learning_rate,
            l1_coefficient,
            grad_norm,
            heldout_explained_variance: heldout.map(|report| report.explained_variance),
            heldout_l0: heldout.map(|report| report.l0),
        })
    }

    /// Measures the dictionary as it would be stored on the first `rows` held-out rows.
    fn measure_heldout(&mut self, rows: u64) -> Result<Option<MetricsReport>> {
        if self.heldout.is_none() {
            return Ok(None);
        }
        let dictionary = self.dictionary(Metadata::default())?;
        self.heldout.as_mut().map(|source| evaluate(&dictionary, *source, rows)).transpose()
    }

    fn dictionary(&self, metadata: Metadata) -> Result<Dictionary> {
        let config =
            DictionaryConfig { metadata, ..DictionaryConfig::new(Architecture::Relu, self.plan.d_in, self.plan.d_sae) };
        self.engine.state()?.weights.to_dictionary(config, self.scale)
    }

    fn checkpoint(&mut self) -> Result<()> {
        let metrics_bytes = self.metrics.sync()?;
        let state = self.engine.state()?;
        checkpoint::write(self.dir, &self.plan, (self.scale, metrics_bytes, self.resampled), &state, &self.activity)
    }

    fn finish(mut self, mut metadata: Metadata) -> Result<TrainSummary> {
        let dead_features = self.activity.dead(self.plan.dead_feature_window).len();
        let heldout = self.measure_heldout(self.plan.heldout_rows.saturating_mul(FINAL_HELDOUT))?;
        let last = self.last.clone().ok_or_else(|| Error::Missing {
            what: "training metrics",
            path: self.dir.join(METRICS_FILE),
            expected: "a line for the last step".into(),
            remedy: "train again in another --out".into(),
        })?;
        metadata.l0 = Some(heldout.map_or(last.l0, |report| report.l0));
        metadata.num_dead_features = Some(dead_features as u64);
        metadata.extra.extend(training_metadata(&self.plan));
        io::write(self.dir, &self.dictionary(metadata)?)?;
        io::write_sparsity(self.dir, &self.activity.frequencies())?;
        let Self { plan, scale, resampled, .. } = self;
        Ok(TrainSummary { plan, scale, last, heldout, dead_features, resampled })
    }
}

/// What SAELens records about training, under its names.
fn training_metadata(plan: &TrainPlan) -> serde_json::Map<String, serde_json::Value> {
    let details = json!({
        "decoder_init_norm": plan.decoder_init_norm,
        "l1_coefficient": plan.l1_coefficient,
        "lp_norm": 1.0,
        "l1_warm_up_steps": plan.l1_warm_up_steps,
    });
    let entries = [
        ("training_architecture", json!("standard")),
        ("training_architecture_details", details),
        ("n_training_samples", json!(plan.steps * plan.batch_size as u64)),
        ("trained_with", json!(concat!("mechinterp ", env!("CARGO_PKG_VERSION")))),
    ];
    entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}
