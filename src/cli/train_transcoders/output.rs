//! What a finished run leaves: the set, its metrics, and nothing of the work.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::base::artifact::write_json;
use crate::base::{Artifact, Error, Result};
use crate::dictionary::train::{METRICS_FILE, SESSIONS_FILE, TrainedLayer, assemble};
use crate::dictionary::{SetKind, TranscoderSet, io};
use crate::interop::{SetFormat, write_set_in};
use crate::model::ModelConfig;

use super::{Args, LayerReport, Place, TRAINING};

/// How each layer's training ended.
const LAYERS_FILE: &str = "layers.json";

/// What the layers of a finished run are.
pub(super) enum Trained {
    /// A set.
    Set(TranscoderSet),
    /// Some layers: a dictionary each.
    Apart(Vec<TrainedLayer>),
}

impl Args {
    /// Puts the trained layers together.
    pub(super) fn assemble(&self, layers: Vec<TrainedLayer>, config: &ModelConfig) -> Result<Trained> {
        if layers.len() != config.n_layers {
            return Ok(Trained::Apart(layers));
        }
        let kind = if self.cross_layer { SetKind::CrossLayer } else { SetKind::PerLayer };
        let scan = self.out.file_name().unwrap_or(self.out.as_os_str()).to_string_lossy();
        Ok(Trained::Set(assemble(layers, kind, &scan)?))
    }
}

/// Writes the trained layers into `artifact`.
pub(super) fn write(artifact: &Artifact, places: &[Place], trained: &Trained, reports: &[LayerReport]) -> Result<()> {
    let dir = artifact.dir();
    join_metrics(dir, places)?;
    if let Some(first) = places.first() {
        copy(&layer_dir(dir, first), dir, SESSIONS_FILE)?;
    }
    write_json(&dir.join(LAYERS_FILE), &reports)?;
    let layers = match trained {
        Trained::Set(set) => return write_set_in(set, dir, SetFormat::best_for(set)),
        Trained::Apart(layers) => layers,
    };
    for (place, TrainedLayer { dictionary, frequencies, .. }) in places.iter().zip(layers) {
        let to = dir.join(format!("layer_{}", place.layer));
        fs::create_dir_all(&to).map_err(Error::io("make the directory of a layer", &to))?;
        io::write(&to, dictionary)?;
        io::write_sparsity(&to, frequencies)?;
    }
    Ok(())
}

/// Removes checkpoints and the layers' own metrics.
pub(super) fn remove_work(artifact: &Artifact) -> Result<()> {
    let work = artifact.dir().join(TRAINING);
    fs::remove_dir_all(&work).map_err(Error::io("remove the checkpoints", &work))
}

fn layer_dir(dir: &Path, place: &Place) -> std::path::PathBuf {
    dir.join(TRAINING).join(format!("layer_{}", place.layer))
}

fn copy(from: &Path, to: &Path, name: &str) -> Result<()> {
    let from = from.join(name);
    fs::copy(&from, to.join(name)).map(drop).map_err(Error::io("copy", &from))
}

/// One `metrics.jsonl` of all layers: their lines step by step, each with its layer.
fn join_metrics(dir: &Path, places: &[Place]) -> Result<()> {
    let mut lines: Vec<(u64, usize, String)> = Vec::new();
    for place in places {
        let path = layer_dir(dir, place).join(METRICS_FILE);
        let text = fs::read_to_string(&path).map_err(Error::io("read the metrics file", &path))?;
        for line in text.lines() {
            let Ok(Value::Object(fields)) = serde_json::from_str(line) else { continue };
            let step = fields.get("step").and_then(Value::as_u64).unwrap_or_default();
            let mut with_layer = serde_json::Map::from_iter([("layer".to_owned(), place.layer.into())]);
            with_layer.extend(fields);
            lines.push((step, place.layer, Value::Object(with_layer).to_string()));
        }
    }
    lines.sort();
    let text: String = lines.into_iter().map(|(_, _, line)| line + "\n").collect();
    let path = dir.join(METRICS_FILE);
    fs::write(&path, text).map_err(Error::io("write the metrics file", &path))
}
