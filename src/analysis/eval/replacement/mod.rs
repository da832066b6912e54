//! What a set of transcoders makes of a model: how well each layer is reconstructed, and what the model loses when it
//! runs on reconstructions, of one layer or of all.
//!
//! ```text
//! alone        ŷ_l from the clean inputs of all layers, against y_l           explained variance, L0, dead features
//! one layer    the model with ŷ_l in place of y_l                             cross-entropy, KL, top-1 agreement
//! all layers   with every ŷ_l, each from the inputs that the earlier ones make
//! ablated      the same with the mean of y_l over the text in its place
//! ```
//!
//! The replacement model of Ameisen et al. 2025 ("Circuit Tracing") with nothing else changed: attention and norms are
//! computed anew. Positions that do not count keep what the model computes there. Losses are in nats a token.

mod pass;
mod scores;

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use self::pass::{Change, Passes};
use self::scores::{Baseline, Sums};
use crate::analysis::stop_if_cancelled;
use crate::base::{Error, Progress, Result, Unit};
use crate::dictionary::metrics::{Metrics, column_sums};
use crate::dictionary::{SparseCodes, TranscoderSet};
use crate::model::Model;
use crate::ops::squared_norm;

/// Bytes that the logits of one pass over a batch may take.
const LOGIT_BYTES: usize = 128 << 20;

/// Text to measure on: sequences of one length, and which positions count.
#[derive(Debug, Clone, Default)]
pub struct ReplacementText {
    /// Tokens, one entry a sequence.
    pub sequences: Vec<Vec<u32>>,
    /// Whether a position counts, for every token of every sequence: first positions and special tokens do not.
    pub kept: Vec<Vec<bool>>,
    /// Tokens whose prediction does not count: the beginning-of-sequence token.
    pub ignored_targets: BTreeSet<u32>,
}

/// What a model loses by a change.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Effect {
    /// Cross-entropy, in nats a token.
    pub ce_loss: f64,
    /// KL divergence of the clean from the changed distribution, in nats a token.
    pub kl_divergence: f64,
    /// Share of positions at which the most likely next token stays.
    pub top1_agreement: f64,
}

/// One layer of a set.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LayerReplacement {
    /// The layer.
    pub layer: usize,
    /// R² of its reconstruction, from clean inputs.
    pub explained_variance: f64,
    /// `E‖ŷ − y‖² / E‖y‖²`, from clean inputs.
    pub normalized_mse: f64,
    /// Mean number of active features.
    pub l0: f64,
    /// Features that were never active.
    pub dead_features: usize,
    /// The model with this layer alone replaced.
    pub replaced: Effect,
    /// The model with the mean of this layer's output in its place.
    pub ablated: Effect,
}

/// What a set makes of a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReplacementReport {
    /// Positions that were replaced and compared.
    pub positions: u64,
    /// Positions whose next token counts for the cross-entropy.
    pub targets: u64,
    /// Cross-entropy of the model as it is.
    pub clean_ce_loss: f64,
    /// The model with all layers replaced.
    pub replaced: Effect,
    /// The model with the means of all layers' outputs in their place.
    pub ablated: Effect,
    /// Share of the loss between `ablated` and the clean model that `replaced` recovers.
    pub ce_loss_score: f64,
    /// The layers.
    pub layers: Vec<LayerReplacement>,
}

/// Measures `set` in `model`. Memory holds one small batch of the hooks of all layers and of logits.
///
/// # Errors
/// `Mismatch` when the set is another model's; `Unsupported` when no position counts; `NonFinite` when logits are not
/// finite; `Interrupted`; whatever reading the set and running the model give.
pub fn replacement(
    set: &TranscoderSet,
    model: &Model,
    text: &ReplacementText,
    progress: &dyn Progress,
) -> Result<ReplacementReport> {
    set.check_model(model.config())?;
    let passes = Passes { set: Arc::new(set.loaded()), model };
    let layers = set.config().n_layers;
    let length = text.sequences.iter().map(Vec::len).max().unwrap_or(0);
    let step = (LOGIT_BYTES / (length * model.config().vocab_size * size_of::<f32>()).max(1)).max(1);
    let tokens: usize = text.sequences.iter().map(Vec::len).sum();
    // The means have to be known before anything is ablated.
    let changes: Vec<Change> = (0..layers)
        .map(Change::Replace)
        .chain([Change::ReplaceAll])
        .chain((0..layers).map(Change::Ablate))
        .chain([Change::AblateAll])
        .collect();
    progress.begin("replacement model", (tokens * (2 + changes.len())) as u64, Unit::Tokens);
    let measured = measure(&passes, text, step, &changes, progress);
    progress.end();
    let (alone, baseline, sums) = measured?;
    if baseline.targets == 0 {
        return Err(Error::Unsupported {
            what: "measuring the replacement model on this text".into(),
            why: "no position counts".into(),
            remedy: "use more text".into(),
        });
    }
    Ok(report(&alone, &baseline, &sums))
}

fn measure(
    passes: &Passes<'_>,
    text: &ReplacementText,
    step: usize,
    changes: &[Change],
    progress: &dyn Progress,
) -> Result<(Vec<Alone>, Baseline, Vec<Sums>)> {
    let mut alone: Vec<Alone> = (0..passes.set.config().n_layers).map(|_| Alone::new(&passes.set)).collect();
    for (sequences, kept) in text.sequences.chunks(step).zip(text.kept.chunks(step)) {
        stop_if_cancelled(progress)?;
        let (inputs, outputs) = passes.activations(sequences, kept)?;
        let codes = (0..).zip(&inputs).map(|(layer, x)| passes.set.encode(layer, x)).collect::<Result<Vec<_>>>()?;
        let made = passes.set.reconstruct(&codes, &inputs)?;
        for (((alone, y), made), codes) in alone.iter_mut().zip(&outputs).zip(&made).zip(&codes) {
            alone.add(y, made, codes)?;
        }
        progress.advance(sequences.iter().map(|s| s.len() as u64).sum());
    }
    let means: Vec<Vec<f32>> = alone.iter().map(Alone::mean).collect();
    let (mut baseline, mut sums) = (Baseline::default(), vec![Sums::default(); changes.len()]);
    for (sequences, kept) in text.sequences.chunks(step).zip(text.kept.chunks(step)) {
        let tokens: u64 = sequences.iter().map(|s| s.len() as u64).sum();
        let clean =
            baseline.add(passes.logits(sequences, kept, None, &means)?, sequences, kept, &text.ignored_targets)?;
        progress.advance(tokens);
        for (change, sums) in changes.iter().zip(&mut sums) {
            stop_if_cancelled(progress)?;
            sums.add(&clean, &passes.logits(sequences, kept, Some(*change), &means)?)?;
            progress.advance(tokens);
        }
    }
    Ok((alone, baseline, sums))
}

fn report(alone: &[Alone], baseline: &Baseline, sums: &[Sums]) -> ReplacementReport {
    let layers = alone.len();
    let effect = |i: usize| sums.get(i).map_or(Sums::default(), |sums| *sums).effect(baseline);
    let layer = |(layer, alone): (usize, &Alone)| {
        let metrics = alone.metrics.report();
        LayerReplacement {
            layer,
            explained_variance: metrics.explained_variance,
            normalized_mse: alone.normalized_mse(),
            l0: metrics.l0,
            dead_features: metrics.dead_features,
            replaced: effect(layer),
            ablated: effect(layers + 1 + layer),
        }
    };
    let (replaced, ablated) = (effect(layers), effect(2 * layers + 1));
    let clean = baseline.ce_loss();
    let way = ablated.ce_loss - clean;
    ReplacementReport {
        positions: baseline.positions,
        targets: baseline.targets,
        clean_ce_loss: clean,
        replaced,
        ablated,
        ce_loss_score: if way.abs() < f64::MIN_POSITIVE { 0.0 } else { (ablated.ce_loss - replaced.ce_loss) / way },
        layers: alone.iter().enumerate().map(layer).collect(),
    }
}

/// Sums over the rows of one layer, reconstructed from clean inputs.
struct Alone {
    metrics: Metrics,
    squared_norm: f64,
    squared_error: f64,
    sum: Vec<f64>,
}

impl Alone {
    fn new(set: &TranscoderSet) -> Self {
        let config = set.config();
        let metrics = Metrics::new(config.d_model, config.d_transcoder);
        Self { metrics, squared_norm: 0.0, squared_error: 0.0, sum: vec![0.0; config.d_model] }
    }

    fn add(&mut self, y: &[f32], made: &[f32], codes: &SparseCodes) -> Result<()> {
        let d = self.sum.len();
        self.metrics.add(y, made, codes)?;
        for (y, made) in y.chunks_exact(d).zip(made.chunks_exact(d)) {
            let error: Vec<f32> = y.iter().zip(made).map(|(y, made)| y - made).collect();
            self.squared_norm += f64::from(squared_norm(y));
            self.squared_error += f64::from(squared_norm(&error));
        }
        self.sum.iter_mut().zip(column_sums(y, d)).for_each(|(sum, part)| *sum += part);
        Ok(())
    }

    fn mean(&self) -> Vec<f32> {
        let n = self.metrics.rows().max(1) as f64;
        self.sum.iter().map(|sum| (sum / n) as f32).collect()
    }

    fn normalized_mse(&self) -> f64 {
        if self.squared_norm > 0.0 { self.squared_error / self.squared_norm } else { 0.0 }
    }
}

#[cfg(test)]
mod tests;
