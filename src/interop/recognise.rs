//! Which format files are of, by what is in them: names of files in a directory, first bytes and names of tensors in a
//! file.

use std::fs;
use std::path::{Path, PathBuf};

use super::tensors::{Tensors, listed};
use super::{Format, Hints};
use super::{circuit_tracer, dictionary_learning, gemma_scope, gemma_scope_2, goodfire, llama_scope};
use super::{openai, qwen_scope, sparsify};
use crate::base::mapped::MappedBytes;
use crate::base::{Error, Result};
use crate::dictionary::set::Parts;
use crate::dictionary::{Dictionary, io};
use crate::model::weights::pytorch::archive::Archive;

const WHAT: &str = "dictionary";
/// Directories with more entries hold something else.
const MOST_ENTRIES: usize = 4096;

/// Files of a recognised format.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) format: Format,
    /// The directory, or the file of weights where the format has one.
    pub(super) path: PathBuf,
}

impl Found {
    /// The file of the weights.
    pub(super) fn weights(&self) -> PathBuf {
        match self.format {
            Format::SaeLens => self.path.join(io::WEIGHTS_FILE),
            Format::Sparsify => self.path.join(sparsify::FILE),
            Format::LlamaScope => llama_files(&self.path).map_or_else(|| self.path.clone(), |(_, weights)| weights),
            _ => self.path.clone(),
        }
    }

    /// The dictionary with its weights left in the file, where the format allows that.
    pub(super) fn parts(&self, notes: &mut Vec<String>) -> Result<Parts> {
        let path = &self.path;
        match self.format {
            Format::SaeLens => io::read_parts(path),
            Format::Sparsify => sparsify::read(path, notes),
            Format::GemmaScope => gemma_scope::read(path, notes),
            Format::GemmaScope2 => gemma_scope_2::read(path, notes),
            Format::CircuitTracer => circuit_tracer::read(Tensors::safetensors(path)?, notes),
            _ => Ok(Parts::of(self.read(&Hints::default(), notes)?)),
        }
    }

    /// Reads the dictionary.
    pub(super) fn read(&self, hints: &Hints, notes: &mut Vec<String>) -> Result<Dictionary> {
        let path = &self.path;
        match self.format {
            Format::SaeLens => io::read(path),
            Format::Sparsify => sparsify::read(path, notes)?.dictionary(),
            Format::GemmaScope => gemma_scope::read(path, notes)?.dictionary(),
            Format::GemmaScope2 => gemma_scope_2::read(path, notes)?.dictionary(),
            Format::LlamaScope => {
                let (config, weights) = llama_files(path).ok_or_else(|| nothing(path, "the files are gone"))?;
                llama_scope::read(&config, &weights)
            }
            Format::CircuitTracer => circuit_tracer::read(Tensors::safetensors(path)?, notes)?.dictionary(),
            Format::DictionaryLearning | Format::OpenAi | Format::Goodfire | Format::QwenScope => {
                let map = MappedBytes::open(path)?;
                let archive = Archive::read(path, &map)?;
                let (file, others) = Tensors::torch(path, map, archive.root())?;
                match self.format {
                    Format::OpenAi => openai::read(file, others, notes),
                    Format::DictionaryLearning => {
                        let config = dictionary_learning::config_of(path);
                        dictionary_learning::read(file, others, config.as_deref(), notes)
                    }
                    _ if !others.is_empty() => {
                        let found = format!("also {}", listed(others.keys().copied()));
                        Err(super::tensors::damaged(path, "a dict of tensors", found))
                    }
                    Format::Goodfire => goodfire::read(file, notes),
                    _ => qwen_scope::read(file, hints.k, notes),
                }
            }
        }
    }
}

/// Finds the dictionary at `path`.
pub(super) fn find(path: &Path) -> Result<Found> {
    if path.is_dir() {
        return directory(path);
    }
    if path.is_file() {
        return file(path);
    }
    Err(Error::Missing {
        what: WHAT,
        path: path.into(),
        expected: "a dictionary's directory or file of weights".into(),
        remedy: "check the path, or train a dictionary with `train-sae`".into(),
    })
}

fn directory(dir: &Path) -> Result<Found> {
    let has = |name: &str| dir.join(name).is_file();
    let mut found: Vec<(Format, PathBuf)> = Vec::new();
    let mut add = |format, path: PathBuf| found.push((format, path));
    if has(sparsify::CONFIG) && has(sparsify::FILE) {
        add(Format::Sparsify, dir.into());
    }
    if has(io::CONFIG_FILE) && has(io::WEIGHTS_FILE) {
        add(Format::SaeLens, dir.into());
    } else if llama_files(dir).is_some() {
        add(Format::LlamaScope, dir.into());
    }
    if has(dictionary_learning::FILE) {
        add(Format::DictionaryLearning, dir.join(dictionary_learning::FILE));
    }
    if has(gemma_scope::FILE) {
        add(Format::GemmaScope, dir.join(gemma_scope::FILE));
    }
    if has(gemma_scope_2::FILE) {
        add(Format::GemmaScope2, dir.join(gemma_scope_2::FILE));
    }
    // Reading says what is missing.
    if found.is_empty() && has(io::CONFIG_FILE) && has(io::SPARSITY_FILE) {
        found.push((Format::SaeLens, dir.into()));
    }
    match found.len() {
        0 => below(dir),
        1 => found.pop().map(|(format, path)| Found { format, path }).ok_or_else(|| nothing(dir, "")),
        _ => {
            let formats: Vec<&str> = found.iter().map(|(format, _)| format.title()).collect();
            Err(Error::Unsupported {
                what: format!("the directory {}", dir.display()),
                why: format!("it holds the files of several dictionaries: {}", formats.join(" and ")),
                remedy: "put each into a directory of its own, or name the file of weights".into(),
            })
        }
    }
}

/// A directory without a format's own file names: the one file in it, or the one dictionary's folder.
fn below(dir: &Path) -> Result<Found> {
    let entries = fs::read_dir(dir).map_err(Error::io("list the directory", dir))?;
    let mut entries: Vec<PathBuf> = entries.flatten().take(MOST_ENTRIES).map(|entry| entry.path()).collect();
    entries.sort();
    let is = |path: &Path, names: &[&str]| {
        path.is_file() && path.extension().is_some_and(|e| names.iter().any(|name| e.eq_ignore_ascii_case(name)))
    };
    let weights: Vec<&PathBuf> = entries.iter().filter(|path| is(path, &["pt", "pth", "npz", "safetensors"])).collect();
    let folders: Vec<&PathBuf> = entries
        .iter()
        .filter(|path| path.join(sparsify::FILE).is_file() || path.join(io::WEIGHTS_FILE).is_file())
        .collect();
    let names = |paths: &[&PathBuf]| {
        let names: Vec<_> = paths.iter().map(|path| path.file_name().unwrap_or_default().to_string_lossy()).collect();
        listed(names.iter().map(AsRef::as_ref))
    };
    match (weights.as_slice(), folders.as_slice()) {
        ([], [folder]) => directory(folder),
        ([weights], []) => file(weights),
        ([], []) => {
            let all: Vec<&PathBuf> = entries.iter().collect();
            Err(nothing(dir, &format!("it holds {}", names(&all))))
        }
        (weights, folders) => {
            Err(nothing(dir, &format!("it holds several: {}; name one of them", names(&[weights, folders].concat()))))
        }
    }
}

/// `hyperparams.json` or `config.json`, and the weights of it.
fn llama_files(dir: &Path) -> Option<(PathBuf, PathBuf)> {
    let file = |names: &[&str]| names.iter().map(|name| dir.join(name)).find(|path| path.is_file());
    let weights = file(&[io::WEIGHTS_FILE, "checkpoints/pruned.safetensors", "checkpoints/final.safetensors"])?;
    Some((file(&[llama_scope::HYPERPARAMETERS, "config.json"])?, weights))
}

fn file(path: &Path) -> Result<Found> {
    let name = path.file_name().unwrap_or_default();
    let dir = path.parent().unwrap_or(Path::new(""));
    // Files that mean nothing without the one beside them.
    if name == io::WEIGHTS_FILE || name == sparsify::FILE || name == io::CONFIG_FILE {
        return directory(if dir.as_os_str().is_empty() { Path::new(".") } else { dir });
    }
    if dir.ends_with("checkpoints")
        && dir.parent().is_some_and(|above| above.join(llama_scope::HYPERPARAMETERS).is_file())
    {
        return Ok(Found { format: Format::LlamaScope, path: dir.parent().unwrap_or(dir).into() });
    }
    let format = if is_zip(path)? { archive(path)? } else { safetensors(path)? };
    Ok(Found { format, path: path.into() })
}

/// Whether a file is an archive or, as the oldest of torch's, begins with a pickle; reading says what is wrong then.
fn is_zip(path: &Path) -> Result<bool> {
    use std::io::Read;
    let file = fs::File::open(path).map_err(Error::io("open the dictionary", path))?;
    let mut start = Vec::with_capacity(4);
    file.take(4).read_to_end(&mut start).map_err(Error::io("read the dictionary", path))?;
    Ok(start.starts_with(b"PK") || start.starts_with(&[0x80, 2]))
}

fn archive(path: &Path) -> Result<Format> {
    let map = MappedBytes::open(path)?;
    if let Ok(members) = crate::base::zip::members(&map)
        && !members.is_empty()
        && members.keys().all(|name| name.strip_suffix(".npy").is_some())
    {
        return Ok(Format::GemmaScope);
    }
    let archive = Archive::read(path, &map)?;
    let (file, others) = Tensors::torch(path, map, archive.root())?;
    let names: Vec<&str> = file.names().collect();
    let has = |name: &str| names.contains(&name);
    if has("encoder_linear.weight") {
        Ok(Format::Goodfire)
    } else if has("pre_bias") && has("latent_bias") {
        Ok(Format::OpenAi)
    } else if others.contains_key("ae") || dictionary_learning::is_state_dict(&names) {
        Ok(Format::DictionaryLearning)
    } else if names == ["W_dec", "W_enc", "b_dec", "b_enc"] {
        torch_of_four(&file)
    } else if dictionary_learning::config_of(path).is_some() {
        // Its own reader says what differs from the class that the configuration names.
        Ok(Format::DictionaryLearning)
    } else {
        Err(unknown(path, &names))
    }
}

/// `W_enc`, `W_dec` and two biases: which way round tells Qwen Scope from files in SAELens' names.
fn torch_of_four(file: &Tensors) -> Result<Format> {
    let [f, d] = file.matrix("W_enc")?;
    if file.shape("b_enc")? == [f] && file.shape("b_dec")? == [d] {
        return Ok(Format::QwenScope);
    }
    Err(Error::Unsupported {
        what: format!("the dictionary {}", file.path().display()),
        why: "it holds SAELens' tensors in a file of torch, without the cfg.json that says what they mean".into(),
        remedy: "save it with SAELens: SAE.save_model(dir)".into(),
    })
}

fn safetensors(path: &Path) -> Result<Format> {
    let file = Tensors::safetensors(path)?;
    let names: Vec<&str> = file.names().collect();
    let has = |name: &str| names.contains(&name);
    if has("w_enc") && has("w_dec") {
        return Ok(Format::GemmaScope2);
    }
    if names.iter().any(|name| name.starts_with("W_enc_") || name.starts_with("W_dec_")) {
        return Err(Error::Unsupported {
            what: format!("the cross-layer transcoder {}", path.display()),
            why: "each of its features writes to several layers".into(),
            remedy: "give its whole directory to a command that takes a transcoder set".into(),
        });
    }
    if has("W_enc") && has("W_dec") {
        let [f, d] = file.matrix("W_enc")?;
        if file.shape("b_enc")? == [f] && file.shape("W_dec")?.first() == Some(&f) {
            return Ok(Format::CircuitTracer);
        }
        return Err(Error::Missing {
            what: "dictionary configuration",
            path: path.with_file_name(io::CONFIG_FILE),
            expected: format!("weights {:?} with SAELens' names mean nothing without it", [f, d]),
            remedy: "keep cfg.json beside the weights".into(),
        });
    }
    Err(unknown(path, &names))
}

fn unknown(path: &Path, names: &[&str]) -> Error {
    let formats: Vec<String> = Format::ALL.iter().map(|format| format.title().into()).collect();
    Error::Unknown {
        kind: "kind of dictionary",
        found: format!("{}' with the tensors '{}", path.display(), listed(names.iter().copied())),
        nearest: formats,
    }
}

fn nothing(dir: &Path, found: &str) -> Error {
    Error::Missing {
        what: WHAT,
        path: dir.into(),
        expected: format!("no known format has such files; {found}"),
        remedy: format!("formats that are read: {}", Format::ALL.map(Format::title).join(", ")),
    }
}
