//! What the flags come to before anything runs: settings, layers, memory, the record of the run.

use serde_json::json;

use crate::base::{Error, Result, RunRecord};
use crate::dictionary::train::{TrainArchitecture, TrainSettings};
use crate::model::{HookPoint, ModelConfig};

use super::super::places;
use super::super::train_sae::rows::Origin;
use super::super::train_sae::{MANY_ROWS, wanted_rows};
use super::{Args, Place};

/// Held-out rows measured on the way: all layers are encoded each time.
const HELDOUT_ROWS: u64 = 2048;
/// Sets are trained on a million tokens rather than a hundred: many small steps at a high rate explain most then. Of one
/// layer of a real model with 4,096 features, 32 of them active, after 330,000 tokens: 0.34 of the variance with 4,096
/// rows a step at 1e-3, 0.50 at 3e-3; 0.51 with 2,048 rows at 2e-3, 0.52 at 4e-3; 0.51 with 1,024 at 1e-3, at the cost of
/// twice and four times as many updates.
const BATCH_SIZE: usize = 2048;
const LEARNING_RATE: f64 = 3e-3;
/// With 0.01 the threshold lags a hundred steps behind, a tenth of such a run and more.
const THRESHOLD_RATE: f64 = 0.05;
/// Checkpoints on the way, where none are asked for.
const CHECKPOINTS: u64 = 8;
/// Measurements on the way.
const MEASUREMENTS: u64 = 5;

impl Args {
    pub(super) fn settings(&self) -> TrainSettings {
        let rest = TrainSettings {
            arch: TrainArchitecture::BatchTopK,
            seed: self.seed,
            skip: self.skip,
            heldout_rows: HELDOUT_ROWS,
            lr: LEARNING_RATE,
            batch_size: BATCH_SIZE,
            ..TrainSettings::default()
        };
        let mut settings = self.method.settings(self.length.settings(rest));
        let given = self.length.checkpoint_every.is_some();
        if settings.arch == TrainArchitecture::BatchTopK {
            settings.topk_threshold_lr = settings.topk_threshold_lr.or(Some(THRESHOLD_RATE));
        }
        let steps = wanted_rows(&settings).map(|rows| rows / settings.batch_size.max(1) as u64);
        if let (None, Some(steps)) = (settings.eval_every, steps) {
            settings.eval_every = Some((steps / MEASUREMENTS).max(1).next_multiple_of(settings.log_every.max(1)));
        }
        // A step of all layers takes seconds: the default of one dictionary would risk half an hour.
        if let (false, Some(steps)) = (given, steps) {
            settings.checkpoint_every = (steps / CHECKPOINTS).clamp(25, settings.checkpoint_every);
        }
        settings
    }

    /// The hook points of every layer that is to be trained.
    pub(super) fn places(&self, config: &ModelConfig) -> Result<Vec<Place>> {
        let layers = match &self.layers {
            Some(layers) => places::numbers("--layers", layers, config.n_layers)?,
            None => (0..config.n_layers).collect(),
        };
        let point = |layer: usize, name: &str| HookPoint::resolve(&format!("blocks.{layer}.{name}"), config);
        let place = |layer: usize| {
            let (input, output) = (point(layer, &self.input_hook)?, point(layer, &self.output_hook)?);
            if input == output {
                let remedy = "train-sae trains autoencoders";
                return Err(Error::flag("--output-hook", "another hook point than --input-hook", output, remedy));
            }
            Ok(Place { layer, input, output })
        };
        layers.into_iter().map(place).collect()
    }

    /// Checks the settings before anything is left on disk; gives the bytes of weights, gradients and moments.
    pub(super) fn check(&self, settings: &TrainSettings, origin: &Origin<'_>, places: &[Place]) -> Result<u64> {
        let mut bytes = 0;
        for (i, pair) in origin.hooks.chunks_exact(2).enumerate() {
            let [(_, d_in), (name, d_out)] = pair else { continue };
            let targets = if self.cross_layer { places.len() - i } else { 1 };
            if d_in != d_out {
                return Err(Error::flag(
                    "--output-hook",
                    format!("a hook point of the width {d_in} of --input-hook, which sets of transcoders need"),
                    format!("{name}, of width {d_out}"),
                    "train one layer at a time with train-sae --hook-out",
                ));
            }
            let plan = settings.plan_transcoder(*d_in, (*d_out, targets), MANY_ROWS)?;
            bytes += 16 * ((1 + targets) * d_in * plan.d_sae) as u64;
        }
        Ok(bytes)
    }

    /// What the run will take, said before it starts.
    pub(super) fn estimate(&self, origin: &Origin<'_>, bytes: u64, settings: &TrainSettings, layers: usize) -> String {
        let size = |bytes: u64| match bytes as f64 / 1e6 {
            megabytes if megabytes < 999.5 => format!("{megabytes:.0} MB"),
            megabytes => format!("{:.1} GB", megabytes / 1e3),
        };
        let values: usize = origin.hooks.iter().map(|(_, width)| width).sum();
        // One batch is trained on, one waits, one is read. Across layers, what dead features are to learn stands for each
        // layer and all later ones.
        let later = if self.cross_layer { values / 2 * (layers + 1) / 2 } else { 0 };
        let batches = (settings.batch_size * (3 * values + later) * size_of::<f32>()) as u64;
        let kind = if self.cross_layer { "cross-layer transcoder of" } else { "transcoders of" };
        format!(
            "{kind} {layers} layers; memory: {} for weights, gradients and moments, up to {} for rows that wait, {} \
             for batches, beside the model",
            size(bytes),
            size(origin.buffer_bytes()),
            size(batches),
        )
    }

    pub(super) fn record(&self, origin: &Origin<'_>, settings: &TrainSettings) -> RunRecord {
        let mut all = origin.settings();
        if let Some(all) = all.as_object_mut() {
            all.insert("training".into(), json!(settings));
            all.insert("cross_layer".into(), json!(self.cross_layer));
        }
        RunRecord { inputs: origin.inputs.clone(), ..RunRecord::new("train-transcoders", &all, self.seed) }
    }
}
