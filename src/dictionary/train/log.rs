//! What a run says about itself: `metrics.jsonl` and the table.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::base::{Error, Result};

/// One line a logged step.
pub const METRICS_FILE: &str = "metrics.jsonl";

/// One line of `metrics.jsonl`: figures of one training batch, of scaled rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MetricsLine {
    /// Steps taken, this one included.
    pub step: u64,
    /// Rows seen.
    pub n_training_samples: u64,
    /// `mse + coefficient · sparsity + auxiliary`.
    pub loss: f64,
    /// Squared error, summed over the width.
    pub mse: f64,
    /// The penalty, without its coefficient: for relu the decoder-norm-weighted sum of activations.
    pub sparsity: f64,
    /// Other terms of the loss, coefficients included: the dead features' reconstruction, the gate's, narrower widths'.
    pub auxiliary: f64,
    /// R² of the batch.
    pub explained_variance: f64,
    /// Mean number of active features.
    pub l0: f64,
    /// Features silent for the whole window.
    pub dead_features: usize,
    /// Features started again so far.
    pub resampled: u64,
    /// Of this step.
    pub learning_rate: f64,
    /// Of this step.
    pub coefficient: f64,
    /// Norm of all gradients before clipping.
    pub grad_norm: f64,
    /// R² on held-out rows, where it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heldout_explained_variance: Option<f64>,
    /// L0 on held-out rows, where it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heldout_l0: Option<f64>,
}

impl MetricsLine {
    /// One line for several that were logged at the same step: means, and the sum of dead and revived features.
    pub(super) fn mean(lines: &[Self]) -> Option<Self> {
        let first = lines.first()?;
        let n = lines.len() as f64;
        let mean = |figure: fn(&Self) -> f64| lines.iter().map(figure).sum::<f64>() / n;
        let known = |figure: fn(&Self) -> Option<f64>| Some(lines.iter().map(figure).sum::<Option<f64>>()? / n);
        Some(Self {
            loss: mean(|line| line.loss),
            mse: mean(|line| line.mse),
            sparsity: mean(|line| line.sparsity),
            auxiliary: mean(|line| line.auxiliary),
            explained_variance: mean(|line| line.explained_variance),
            l0: mean(|line| line.l0),
            dead_features: lines.iter().map(|line| line.dead_features).sum(),
            resampled: lines.iter().map(|line| line.resampled).sum(),
            coefficient: mean(|line| line.coefficient),
            grad_norm: mean(|line| line.grad_norm),
            heldout_explained_variance: known(|line| line.heldout_explained_variance),
            heldout_l0: known(|line| line.heldout_l0),
            ..first.clone()
        })
    }

    pub(super) fn table_head() -> String {
        format!(
            "{:>8} {:>12} {:>8} {:>8} {:>10} {:>7} {:>9}",
            "step", "tokens", "EV (R²)", "L0", "loss", "dead", "tokens/s"
        )
    }

    pub(super) fn table_row(&self, tokens_per_second: f64) -> String {
        let Self { step, n_training_samples, explained_variance, l0, loss, dead_features, .. } = self;
        let heldout = match (self.heldout_explained_variance, self.heldout_l0) {
            (Some(variance), Some(l0)) => format!("   held out: EV {variance:.4}, L0 {l0:.1}"),
            _ => String::new(),
        };
        format!(
            "{step:>8} {n_training_samples:>12} {explained_variance:>8.4} {l0:>8.1} {loss:>10.3} {dead_features:>7} \
             {tokens_per_second:>9.0}{heldout}"
        )
    }
}

/// `metrics.jsonl`, open for appending.
pub(super) struct MetricsLog {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl MetricsLog {
    /// Opens the file and cuts it to its first `bytes`, which the checkpoint knows of.
    pub(super) fn open(dir: &Path, bytes: u64) -> Result<Self> {
        let path = dir.join(METRICS_FILE);
        let open = || {
            let mut file = OpenOptions::new().create(true).truncate(false).write(true).open(&path)?;
            file.set_len(bytes)?;
            file.seek(SeekFrom::End(0))?;
            Ok(file)
        };
        let file = open().map_err(Error::io("open the metrics file", &path))?;
        Ok(Self { path, file, bytes })
    }

    /// The last line, where there is one.
    pub(super) fn last(&self) -> Result<Option<MetricsLine>> {
        let text = std::fs::read_to_string(&self.path).map_err(Error::io("read the metrics file", &self.path))?;
        Ok(text.lines().last().and_then(|line| serde_json::from_str(line).ok()))
    }

    pub(super) fn append(&mut self, line: &MetricsLine) -> Result<()> {
        let mut text = serde_json::to_string(line).map_err(|e| Error::Io {
            action: "serialise metrics",
            path: self.path.clone(),
            source: e.into(),
        })?;
        text.push('\n');
        self.file.write_all(text.as_bytes()).map_err(Error::io("write the metrics file", &self.path))?;
        self.bytes += text.len() as u64;
        Ok(())
    }

    /// Makes everything written so far durable; gives its length.
    pub(super) fn sync(&self) -> Result<u64> {
        self.file.sync_data().map_err(Error::io("write the metrics file", &self.path))?;
        Ok(self.bytes)
    }
}
