//! The files of a model in one directory: which there must be, and what a half-downloaded directory looks like.

use std::path::{Path, PathBuf};

use super::gguf::is_gguf;
use super::hub::ModelFiles;
use crate::base::artifact::read_json;
use crate::base::{Error, Result};

pub(super) const CONFIG: &str = "config.json";
pub(super) const TOKENIZER: &str = "tokenizer.json";
pub(super) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
pub(super) const WEIGHTS: &str = "model.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";
const BIN: &str = "pytorch_model.bin";
const BIN_INDEX: &str = "pytorch_model.bin.index.json";

const PARTIAL_SUFFIXES: [&str; 4] = [".incomplete", ".part", ".crdownload", ".aria2"];

/// The files of the model in `dir`, each present and not empty. `reference` is what the user calls it.
///
/// # Errors
/// `Missing` for an absent file, `Malformed` for an empty or half-downloaded one and for a broken index.
pub(super) fn in_directory(reference: &str, dir: &Path) -> Result<ModelFiles> {
    refuse_partial_downloads(dir)?;
    if let Some(file) = only_gguf(dir)? {
        return gguf_file(reference, &file);
    }
    let required = |name: &str| present(dir, name)?.ok_or_else(|| missing(dir, name));
    let config = required(CONFIG)?;
    let weights = weights(|name| present(dir, name), |name| missing(dir, name))?;
    Ok(ModelFiles {
        dir_or_name: reference.into(),
        config,
        tokenizer: required(TOKENIZER)?,
        tokenizer_config: present(dir, TOKENIZER_CONFIG)?,
        generation_config: present(dir, "generation_config.json")?,
        weights,
    })
}

/// The files of the model in the GGUF file `path`: the file itself for everything, and the parts it was split into.
///
/// # Errors
/// `Missing` when a part is absent.
pub(super) fn gguf_file(reference: &str, path: &Path) -> Result<ModelFiles> {
    let parts = split_of(path).unwrap_or_else(|| vec![path.to_owned()]);
    if let Some(part) = parts.iter().find(|part| !part.is_file()) {
        return Err(Error::Missing {
            what: "part of a GGUF file",
            path: part.clone(),
            expected: format!("all {} parts in one directory", parts.len()),
            remedy: "download the missing part, and name the first one".into(),
        });
    }
    let first = parts.first().cloned().unwrap_or_default();
    Ok(ModelFiles {
        dir_or_name: reference.into(),
        config: first.clone(),
        tokenizer: first,
        tokenizer_config: None,
        generation_config: None,
        weights: parts,
    })
}

/// The parts of a model that llama.cpp split into `NAME-00001-of-00003.gguf` and so on.
pub(super) fn split_of(path: &Path) -> Option<Vec<PathBuf>> {
    let name = path.file_name()?.to_str()?.strip_suffix(".gguf")?;
    let (rest, count) = name.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let digits = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(number) || !digits(count) {
        return None;
    }
    let parts = 1..=count.parse::<usize>().ok()?;
    Some(parts.map(|n| path.with_file_name(format!("{stem}-{n:05}-of-{count}.gguf"))).collect())
}

/// The GGUF file that `dir` holds in place of other weights, or its first part.
fn only_gguf(dir: &Path) -> Result<Option<PathBuf>> {
    let exists = |name: &&str| dir.join(name).exists();
    if [WEIGHTS, INDEX, BIN, BIN_INDEX].iter().any(exists) {
        return Ok(None);
    }
    let files = std::fs::read_dir(dir).map_err(Error::io("list the model directory", dir))?;
    let mut files: Vec<PathBuf> = files.flatten().map(|entry| entry.path()).filter(|path| is_gguf(path)).collect();
    files.sort();
    let Some(first) = files.first() else { return Ok(None) };
    match split_of(first).unwrap_or_else(|| vec![first.clone()]) {
        parts if files.iter().all(|file| parts.contains(file)) => Ok(Some(first.clone())),
        _ => Err(Error::Malformed {
            what: "model directory",
            path: dir.into(),
            expected: "one model".into(),
            found: format!("{} GGUF files and no other weights", files.len()),
            remedy: format!("name one of them, such as {}", first.display()),
        }),
    }
}

/// The weight files of a model in the order of their names: safetensors where the model has them, else PyTorch's.
/// `find` gives the local path of a file, `lacks` the error for one that should be there.
///
/// # Errors
/// Those of `find` and `lacks`; `Malformed` for a broken index.
pub(super) fn weights(
    find: impl Fn(&str) -> Result<Option<PathBuf>>,
    lacks: impl Fn(&str) -> Error,
) -> Result<Vec<PathBuf>> {
    for (index, single) in [(INDEX, WEIGHTS), (BIN_INDEX, BIN)] {
        if let Some(index) = find(index)? {
            return shards_of(&index)?.iter().map(|shard| find(shard)?.ok_or_else(|| lacks(shard))).collect();
        }
        if let Some(file) = find(single)? {
            return Ok(vec![file]);
        }
    }
    Err(lacks(WEIGHTS))
}

/// The distinct shard names in an index file, sorted.
///
/// # Errors
/// `Malformed` when the index is no JSON with a `weight_map`, or names a file outside its directory.
pub(super) fn shards_of(index: &Path) -> Result<Vec<String>> {
    let json: serde_json::Value = read_json("index of the model weights", index)?;
    let bad = |found: String| {
        let expected = "a 'weight_map' from tensor names to file names beside the index";
        Error::malformed("index of the model weights", index, expected, found, "download the model again")
    };
    let map = json.get("weight_map").and_then(|m| m.as_object()).ok_or_else(|| bad("no 'weight_map'".into()))?;
    let mut names = Vec::new();
    for (tensor, file) in map {
        let file = file.as_str().ok_or_else(|| bad(format!("'{tensor}' without a file name")))?;
        if Path::new(file).file_name() != Some(file.as_ref()) {
            return Err(bad(format!("'{file}' for '{tensor}'")));
        }
        names.push(file.to_owned());
    }
    names.sort();
    names.dedup();
    if names.is_empty() {
        return Err(bad("an empty 'weight_map'".into()));
    }
    Ok(names)
}

fn present(dir: &Path, name: &str) -> Result<Option<PathBuf>> {
    let path = dir.join(name);
    match std::fs::metadata(&path) {
        Ok(meta) if meta.is_file() && meta.len() == 0 => Err(Error::malformed(
            "model file",
            &path,
            "a whole file",
            "an empty file, as a download that never began leaves it",
            "remove it and download the model again",
        )),
        Ok(meta) if meta.is_file() => Ok(Some(path)),
        _ => Ok(None),
    }
}

fn missing(dir: &Path, name: &str) -> Error {
    let (what, mut remedy) = match name {
        CONFIG => ("model configuration", "give the directory that holds config.json, tokenizer.json and the weights"),
        TOKENIZER => {
            ("tokenizer", "copy tokenizer.json of the model there; slow tokenizers (vocab.txt, *.model) are not read")
        }
        _ => ("model weights", "download the missing file, or the whole model again"),
    };
    if has_partial(&dir.join(".cache/huggingface/download")).is_some() {
        remedy = "an 'hf download' into this directory was cut off: run it again, it goes on where it stopped";
    }
    Error::Missing {
        what,
        path: dir.join(name),
        expected: format!("{name} in the model directory"),
        remedy: remedy.into(),
    }
}

fn refuse_partial_downloads(dir: &Path) -> Result<()> {
    match has_partial(dir) {
        None => Ok(()),
        Some(path) => Err(Error::malformed(
            "model directory",
            path,
            "only whole files",
            "the rest of a cut-off download",
            "finish the download, or remove that file if the model is whole",
        )),
    }
}

fn has_partial(dir: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(dir).ok()?;
    entries.flatten().map(|entry| entry.path()).find(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        PARTIAL_SUFFIXES.iter().any(|suffix| name.ends_with(suffix))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, contents) in files {
            std::fs::write(dir.path().join(name), contents).unwrap();
        }
        dir
    }

    const INDEX_OF_TWO: &str = r#"{"weight_map": {"a": "b.safetensors", "c": "a.safetensors", "d": "b.safetensors"}}"#;

    #[test]
    fn a_whole_directory_lists_its_shards_in_order() {
        let dir = model(&[
            (CONFIG, "{}"),
            (TOKENIZER, "{}"),
            (INDEX, INDEX_OF_TWO),
            ("a.safetensors", "x"),
            ("b.safetensors", "x"),
        ]);
        let files = in_directory("m", dir.path()).unwrap();
        assert_eq!(files.weights, [dir.path().join("a.safetensors"), dir.path().join("b.safetensors")]);
        assert_eq!(files.tokenizer_config, None);
    }

    #[test]
    fn an_incomplete_directory_names_what_is_missing() {
        let cases: [(&[(&str, &str)], &str); 7] = [
            (&[(TOKENIZER, "{}"), (WEIGHTS, "x")], "config.json"),
            (&[(CONFIG, "{}"), (WEIGHTS, "x")], "tokenizer.json"),
            (&[(CONFIG, "{}"), (TOKENIZER, "{}")], "model.safetensors"),
            (&[(CONFIG, "{}"), (TOKENIZER, "{}"), (BIN_INDEX, INDEX_OF_TWO)], "a.safetensors"),
            (&[(CONFIG, "{}"), (TOKENIZER, "{}"), (INDEX, INDEX_OF_TWO), ("a.safetensors", "x")], "b.safetensors"),
            (&[(CONFIG, "{}"), (TOKENIZER, "{}"), (WEIGHTS, "")], "empty file"),
            (
                &[(CONFIG, "{}"), (TOKENIZER, "{}"), (WEIGHTS, "x"), ("model.safetensors.incomplete", "x")],
                "cut-off download",
            ),
        ];
        for (files, expected) in cases {
            let error = in_directory("m", model(files).path()).unwrap_err().to_string();
            assert!(error.contains(expected), "{expected}: {error}");
        }
    }

    #[test]
    fn safetensors_are_preferred_to_pytorch_files_and_one_file_to_none() {
        let name = |files: &ModelFiles| files.weights[0].file_name().unwrap().to_str().unwrap().to_owned();
        let bin = [(CONFIG, "{}"), (TOKENIZER, "{}"), (BIN, "x")];
        assert_eq!(name(&in_directory("m", model(&bin).path()).unwrap()), BIN);
        let both = [&bin[..], &[(WEIGHTS, "x")]].concat();
        assert_eq!(name(&in_directory("m", model(&both).path()).unwrap()), WEIGHTS);
        let shards = [&bin[..], &[(BIN_INDEX, INDEX_OF_TWO), ("a.safetensors", "x"), ("b.safetensors", "x")]].concat();
        assert_eq!(in_directory("m", model(&shards).path()).unwrap().weights.len(), 2);
    }

    #[test]
    fn a_gguf_file_is_the_whole_model_and_gives_way_to_other_weights() {
        let name = |n| ["x-00001-of-00002.gguf", "x-00002-of-00002.gguf"][n];
        let dir = model(&[("x.gguf", "GGUF"), ("notes.gguf", "not one")]);
        let files = in_directory("m", dir.path()).unwrap();
        assert_eq!(files.config, dir.path().join("x.gguf"));
        assert_eq!((&files.tokenizer, files.weights.as_slice()), (&files.config, [files.config.clone()].as_slice()));

        let dir = model(&[(name(1), "GGUF"), (name(0), "GGUF")]);
        let files = in_directory("m", dir.path()).unwrap();
        assert_eq!(files.weights, [dir.path().join(name(0)), dir.path().join(name(1))]);
        std::fs::remove_file(dir.path().join(name(0))).unwrap();
        let error = in_directory("m", dir.path()).unwrap_err().to_string();
        assert!(error.contains(name(0)), "{error}");

        let error = in_directory("m", model(&[("a.gguf", "GGUF"), ("b.gguf", "GGUF")]).path()).unwrap_err().to_string();
        assert!(error.contains("2 GGUF files") && error.contains("a.gguf"), "{error}");
        let both = model(&[("x.gguf", "GGUF"), (CONFIG, "{}"), (TOKENIZER, "{}"), (WEIGHTS, "x")]);
        assert_eq!(in_directory("m", both.path()).unwrap().weights, [both.path().join(WEIGHTS)]);
    }

    #[test]
    fn an_index_that_leaves_its_directory_is_refused() {
        for bad in [
            r#"{"weight_map": {"a": "../x.safetensors"}}"#,
            r#"{"weight_map": {}}"#,
            "{}",
            "[",
            r#"{"weight_map": {"a": 3}}"#,
        ] {
            let dir = model(&[(CONFIG, "{}"), (TOKENIZER, "{}"), (INDEX, bad)]);
            assert!(matches!(in_directory("m", dir.path()), Err(Error::Malformed { .. })), "{bad}");
        }
    }
}
