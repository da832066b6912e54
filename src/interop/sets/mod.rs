//! Transcoder sets: a transcoder for every layer of a model, or one across layers, in the field's directories.
//!
//! | set | files | written |
//! | --- | --- | --- |
//! | circuit-tracer, per layer | `config.yaml`, `layer_{i}.safetensors`, or a list of files | yes |
//! | circuit-tracer, across layers | `config.yaml`, `W_enc_{i}.safetensors`, `W_dec_{i}.safetensors` | yes |
//! | the same, extended | `model_kind: mechinterp_…` with `activation` and `k`, `W_skip_{i}` | yes |
//! | Gemma Scope | `config.yaml` that lists `params.npz` of every layer | |
//! | Gemma Scope 2 | `layer_*_width_16k_l0_small/params.safetensors`; a list; files across layers | |
//! | `SAELens`, sparsify | a folder for each layer's dictionary | yes |
//!
//! A set is opened without reading its weights: headers, biases and thresholds only.

use std::path::{Path, PathBuf};

use crate::base::progress::Silent;
use crate::base::rng::Permutation;
use crate::base::{Error, Progress, Result};
use crate::dictionary::{SetKind, TranscoderSet};

use super::Format;

mod cross_layer;
mod description;
mod folders;
mod reference;
mod write;
pub(super) mod yaml;

pub use write::{SetFormat, write_set, write_set_in};

use description::Description;

const WHAT: &str = "transcoder set";
/// What describes a set; written last, so that a set without one is incomplete.
pub(super) const CONFIG: &str = "config.yaml";

/// Before the kind of a set in circuit-tracer's files that circuit-tracer cannot compute, so that it refuses the set.
const EXTENDED: &str = "mechinterp_";
/// The key of an activation whose features compete, beside `k`; of extended sets only.
const ACTIVATION: &str = "activation";

/// A set with what its files said beyond it.
#[derive(Debug)]
pub struct OpenedSet {
    /// The set, its weights in their files.
    pub set: TranscoderSet,
    /// The format of its layers.
    pub format: Format,
    /// Where it is on this machine.
    pub path: PathBuf,
    /// What a reader should know. Sentences.
    pub notes: Vec<String>,
}

/// Opens a transcoder set of any known format, as [`open_set_with`] without progress.
///
/// # Errors
/// As [`open_set_with`].
pub fn open_set(path: &Path) -> Result<TranscoderSet> {
    Ok(open_set_with(&path.to_string_lossy(), &Silent)?.set)
}

/// Opens a transcoder set: a directory; a path with one `*` for the layers' numbers, where a directory holds several
/// sets; or `org/name[/folder][@revision]` and `hf://org/name[/folder]` on the hub, through its cache.
///
/// # Errors
/// `Missing` when nothing is there, a layer is missing or the set is incomplete; `Malformed`, `Unknown`, `Unsupported`
/// or `Mismatch` when its files are damaged, of different sets, or mean something that is not computed; `Hub` when a
/// download fails.
pub fn open_set_with(reference: &str, progress: &dyn Progress) -> Result<OpenedSet> {
    let path = Path::new(reference);
    if path.is_dir() || folders::is_pattern(path) {
        return open_local(path, progress);
    }
    if path.is_file() {
        return Err(Error::Unsupported {
            what: format!("the file {reference} as a transcoder set"),
            why: "a set is a directory with a transcoder for every layer".into(),
            remedy: "give the directory".into(),
        });
    }
    open_local(&reference::locate(reference, progress)?, progress)
}

/// Whether `path` looks like a transcoder set: a description of one, or layers without it.
pub fn is_set(path: &Path) -> bool {
    let described = path.join(CONFIG).is_file();
    folders::is_pattern(path) || described || description::has_layers(path) || folders::has_layers(path)
}

fn open_local(path: &Path, progress: &dyn Progress) -> Result<OpenedSet> {
    let config = path.join(CONFIG);
    if config.is_file() {
        return Description::read(&config)?.open(progress);
    }
    if description::has_layers(path) {
        return Err(Error::Missing {
            what: "configuration of a transcoder set",
            path: config,
            expected: "it says the hooks and is written last, so the set is incomplete".into(),
            remedy: "download or write the set again; by hand it has the lines model_name, model_kind \
                     (transcoder_set or cross_layer_transcoder), feature_input_hook and feature_output_hook"
                .into(),
        });
    }
    folders::open(path)
}

/// How far apart two sets of the same sizes are as functions: the norm of the difference of their reconstructions over
/// the norm of the first one's, on rows near which a few features of each layer have something to do.
///
/// # Errors
/// `Mismatch` when their sizes differ; `NonFinite`.
pub fn set_distance(a: &TranscoderSet, b: &TranscoderSet) -> Result<f64> {
    let n = a.config().n_layers;
    let inputs = (0..n).map(|layer| probe(a, layer)).collect::<Result<Vec<_>>>()?;
    let reconstruct = |set: &TranscoderSet| {
        let codes = inputs.iter().enumerate().map(|(layer, x)| set.encode(layer, x)).collect::<Result<Vec<_>>>()?;
        set.reconstruct(&codes, &inputs)
    };
    let (ours, theirs) = (reconstruct(a)?, reconstruct(b)?);
    let square = |x: f32| f64::from(x).powi(2);
    let pairs = || ours.iter().flatten().zip(theirs.iter().flatten());
    let (apart, whole): (f64, f64) =
        (pairs().map(|(a, b)| square(a - b)).sum(), pairs().map(|(a, _)| square(*a)).sum());
    Ok(if whole > 0.0 { (apart / whole).sqrt() } else { apart.sqrt() })
}

/// Rows in the directions of one encoder row each, long enough to pass the feature's own threshold.
fn probe(set: &TranscoderSet, layer: usize) -> Result<Vec<f32>> {
    const ROWS: u64 = 8;
    let f = set.config().d_transcoder as u64;
    let order = Permutation::new(f, layer as u64, "features of the probe");
    let features: Vec<u32> = (0..ROWS.min(f)).map(|i| order.at(i) as u32).collect();
    let biases = set.encoder_biases(layer, &features)?;
    let mut rows = set.encoder_rows(layer, &features)?;
    for (row, bias) in rows.chunks_exact_mut(set.config().d_model).zip(&biases) {
        let squared: f32 = row.iter().map(|w| w * w).sum();
        for w in row {
            *w *= 4.0 * (bias.abs() + 1.0) / squared.max(1e-6);
        }
    }
    Ok(rows)
}

/// What a set in `dir` is called where its files do not say: as on the hub where it is in the hub's cache, else by its
/// directory.
fn scan_of(dir: &Path) -> String {
    let parts = super::place::parts(dir);
    let cached = parts.iter().position(|part| part.starts_with("models--"));
    let Some((at, name)) = cached.and_then(|at| Some((at, parts[at].strip_prefix("models--")?))) else {
        return parts.last().cloned().unwrap_or_else(|| "unnamed".into());
    };
    let repo = name.replacen("--", "/", 1);
    // models--org--name/snapshots/commit/folder
    let folder = parts.get(at + 3..).unwrap_or_default().join("/");
    if folder.is_empty() { repo } else { format!("{repo}//{folder}") }
}

/// A layer that a set lacks.
fn missing(layer: usize, path: PathBuf, why: String) -> Error {
    Error::Missing {
        what: "transcoder of a layer",
        path,
        expected: format!("layer {layer} is missing: {why}"),
        remedy: "download or train the transcoder of that layer; a set has one for every layer".into(),
    }
}

/// A set that cannot be, because of its kind.
fn not_a_set(path: &Path, why: String) -> Error {
    Error::Missing {
        what: WHAT,
        path: path.into(),
        expected: why,
        remedy: "give a directory with config.yaml and layer_{i}.safetensors or W_enc_{i}.safetensors \
                 (circuit-tracer), or with a folder for the transcoder of each layer"
            .into(),
    }
}

/// The words of a kind in `config.yaml`.
const fn kind_name(kind: SetKind) -> &'static str {
    match kind {
        SetKind::PerLayer => "transcoder_set",
        SetKind::CrossLayer => "cross_layer_transcoder",
    }
}

#[cfg(test)]
mod tests;
