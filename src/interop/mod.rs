//! The field's dictionary files, read and written. One file a format: pure translation to and from [`Dictionary`].
//!
//! `open` recognises a format by contents, never by the name of a release, and parses strictly: a tensor, key,
//! activation or class that is not known is refused by name, because a dictionary that is read a little wrong still
//! gives plausible numbers. Files are read as data: nothing in a pickle is executed, and nothing is allocated that a
//! file's own length does not account for.
//!
//! | format | files | written |
//! | --- | --- | --- |
//! | SAELens | `cfg.json`, `sae_weights.safetensors` | yes |
//! | `dictionary_learning` | `ae.pt`, `config.json` | yes |
//! | `sparsify` | `MODULE/cfg.json`, `MODULE/sae.safetensors` | yes |
//! | `gemma_scope` | `params.npz` | |
//! | `gemma_scope_2` | `params.safetensors`, `config.json` | |
//! | `llama_scope` | `hyperparams.json`, `checkpoints/final.safetensors`; later `config.json`, `sae_weights.safetensors` | |
//! | `qwen_scope` | `layer{n}.sae.pt` | |
//! | `openai` | `{layer}.pt` | |
//! | `goodfire` | `*.pth`, `*.pt` | |
//! | `circuit_tracer` | `layer_{i}.safetensors`, `config.yaml` | as a set |
//!
//! Transcoders of all layers of a model together are a [`TranscoderSet`](crate::dictionary::TranscoderSet):
//! [`open_set`], [`write_set`].

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::base::rng::Permutation;
use crate::base::{Error, Result};
use crate::dictionary::{Dictionary, io};
use crate::model::HookPoint;

mod circuit_tracer;
mod dictionary_learning;
mod forms;
mod gemma_scope;
mod gemma_scope_2;
mod goodfire;
mod llama_scope;
pub mod neuronpedia;
mod npz;
mod object;
mod openai;
mod place;
mod qwen_scope;
mod recognise;
mod sets;
mod sparsify;
mod tensors;
mod torch_file;

pub use npz::read_npy_vector;
pub use sets::{OpenedSet, SetFormat, is_set, open_set, open_set_with, set_distance, write_set, write_set_in};

/// Whose format a dictionary is stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// SAELens' directory, of version 6 or flat.
    #[serde(rename = "saelens")]
    SaeLens,
    /// `dictionary_learning`.
    DictionaryLearning,
    /// EleutherAI's sparsify.
    Sparsify,
    /// Gemma Scope.
    GemmaScope,
    /// Gemma Scope 2.
    GemmaScope2,
    /// Llama Scope and its R1-distill sets.
    LlamaScope,
    /// Qwen Scope.
    QwenScope,
    /// OpenAI's GPT-2 dictionaries.
    #[serde(rename = "openai")]
    OpenAi,
    /// Goodfire.
    Goodfire,
    /// circuit-tracer's transcoders of one layer.
    CircuitTracer,
}

impl Format {
    /// All formats.
    pub const ALL: [Self; 10] = [
        Self::SaeLens,
        Self::DictionaryLearning,
        Self::Sparsify,
        Self::GemmaScope,
        Self::GemmaScope2,
        Self::LlamaScope,
        Self::QwenScope,
        Self::OpenAi,
        Self::Goodfire,
        Self::CircuitTracer,
    ];
    /// The formats that [`write()`] writes.
    pub const WRITTEN: [Self; 3] = [Self::SaeLens, Self::DictionaryLearning, Self::Sparsify];

    /// The name that flags take.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SaeLens => "saelens",
            Self::DictionaryLearning => "dictionary_learning",
            Self::Sparsify => "sparsify",
            Self::GemmaScope => "gemma_scope",
            Self::GemmaScope2 => "gemma_scope_2",
            Self::LlamaScope => "llama_scope",
            Self::QwenScope => "qwen_scope",
            Self::OpenAi => "openai",
            Self::Goodfire => "goodfire",
            Self::CircuitTracer => "circuit_tracer",
        }
    }

    /// What its makers call it.
    pub const fn title(self) -> &'static str {
        match self {
            Self::SaeLens => "SAELens",
            Self::DictionaryLearning => "dictionary_learning",
            Self::Sparsify => "sparsify",
            Self::GemmaScope => "Gemma Scope",
            Self::GemmaScope2 => "Gemma Scope 2",
            Self::LlamaScope => "Llama Scope",
            Self::QwenScope => "Qwen Scope",
            Self::OpenAi => "OpenAI",
            Self::Goodfire => "Goodfire",
            Self::CircuitTracer => "circuit-tracer",
        }
    }
}

impl std::str::FromStr for Format {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|format| format.name() == s).ok_or_else(|| Error::Unknown {
            kind: "dictionary format",
            found: s.into(),
            nearest: Self::ALL.iter().map(|format| format.name().into()).collect(),
        })
    }
}

/// What only a person knows about a file that does not say it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hints {
    /// Active features a row, for TopK formats whose files leave it out.
    pub k: Option<usize>,
}

/// A dictionary with what its files said beyond it.
#[derive(Debug)]
pub struct Opened {
    /// The dictionary, of raw rows.
    pub dictionary: Dictionary,
    /// The format that was recognised.
    pub format: Format,
    /// The file of its weights.
    pub weights: PathBuf,
    /// What a reader should know: what the files leave open, and what was done about it. Sentences.
    pub notes: Vec<String>,
}

/// Opens a dictionary of any known format: a directory of one, or the file of its weights.
///
/// # Errors
/// `Missing` when nothing is there; `Unknown` when no known format has such files, with what was found; `Malformed`,
/// `Unsupported`, `Mismatch` or `NonFinite` when the files are damaged or mean something that is not computed.
pub fn open(path: &Path) -> Result<Opened> {
    open_with(path, &Hints::default())
}

/// As [`open()`], with what the files leave out.
///
/// # Errors
/// As [`open()`].
pub fn open_with(path: &Path, hints: &Hints) -> Result<Opened> {
    let found = recognise::find(path)?;
    let mut notes = Vec::new();
    let dictionary = found.read(hints, &mut notes)?;
    notes.extend(dictionary.config.notes());
    Ok(Opened { dictionary, format: found.format, weights: found.weights(), notes })
}

/// Says which hook a dictionary is of: a hook point, or a module of Hugging Face's, as its output or with `.input`.
///
/// # Errors
/// `Unknown` when `hook` is neither.
pub fn set_hook(dictionary: &mut Dictionary, hook: &str) -> Result<()> {
    match hook.parse::<HookPoint>() {
        Err(error) if !place::is_module(hook) => return Err(error),
        _ => place::set_module(&mut dictionary.config.metadata, hook),
    }
    Ok(())
}

/// How far apart two dictionaries of the same widths are as functions: the norm of the difference of their
/// reconstructions over the norm of the first one's, on rows near which they have something to do.
///
/// # Errors
/// `Mismatch` when their widths differ.
pub fn distance(a: &Dictionary, b: &Dictionary) -> Result<f64> {
    let x = probe(a);
    let (ours, theirs) = (a.reconstruct(&x)?, b.reconstruct(&x)?);
    let square = |x: f32| f64::from(x).powi(2);
    let apart: f64 = ours.iter().zip(&theirs).map(|(a, b)| square(a - b)).sum();
    let whole: f64 = ours.iter().map(|a| square(*a)).sum();
    Ok(if whole > 0.0 { (apart / whole).sqrt() } else { apart.sqrt() })
}

/// Rows in the directions of a few encoder columns each, long enough to pass the features' own thresholds.
fn probe(dictionary: &Dictionary) -> Vec<f32> {
    const ROWS: u64 = 32;
    const FEATURES: u64 = 8;
    let (d, f) = (dictionary.d_in(), dictionary.d_sae());
    let order = Permutation::new(f as u64, 0, "features of the probe");
    let mut x = vec![0.0; ROWS as usize * d];
    for (row, x) in x.chunks_exact_mut(d).enumerate() {
        for n in 0..FEATURES.min(f as u64) {
            let feature = order.at((row as u64 * FEATURES + n) % f as u64) as usize;
            let column = || dictionary.w_enc.iter().skip(feature).step_by(f);
            let squared: f32 = column().map(|w| w * w).sum();
            let offset = dictionary.b_enc.get(feature).map_or(0.0, |b| b.abs()) + 1.0;
            let scale = (1.0 + n as f32) * offset / squared.max(1e-6);
            x.iter_mut().zip(column()).for_each(|(x, w)| *x += scale * w);
        }
    }
    x
}

/// Writes `dictionary` in `format` into the existing directory `dir`.
///
/// # Errors
/// `Unsupported` with the reason, when the format cannot express the dictionary or is not written at all; `Io` when a
/// file cannot be written.
pub fn write(dir: &Path, dictionary: &Dictionary, format: Format) -> Result<()> {
    match format {
        Format::SaeLens if dictionary.config.transcoder && dictionary.config.architecture.name() == "topk" => {
            Err(Error::Unsupported {
                what: "writing this dictionary as SAELens".into(),
                why: "SAELens has no architecture 'topk' for transcoders, and would not open it".into(),
                remedy: "write it as sparsify, or use it as it is".into(),
            })
        }
        Format::SaeLens => io::write(dir, dictionary),
        Format::DictionaryLearning => dictionary_learning::write(dir, dictionary.clone()),
        Format::Sparsify => sparsify::write(dir, dictionary.clone()),
        _ => Err(Error::Unsupported {
            what: format!("writing dictionaries as {}", format.title()),
            why: "it is a publisher's own format, which is read only".into(),
            remedy: format!("write one of {}", Format::WRITTEN.map(Format::name).join(", ")),
        }),
    }
}

/// A dictionary that `format` has no words for.
fn cannot(format: Format, why: &str) -> Error {
    Error::Unsupported {
        what: format!("writing this dictionary as {}", format.title()),
        why: why.into(),
        remedy: "write it as saelens, which expresses most kinds".into(),
    }
}
