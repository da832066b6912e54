//! Sets that are a directory with a dictionary for each layer: SAELens' and sparsify's folders, those of Gemma Scope 2.
//! Which layer and hooks a dictionary is of is what the dictionary says, whatever its folder is called.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::super::tensors::{Tensors, listed};
use super::super::{Format, recognise};
use super::description::check_sizes;
use super::{OpenedSet, WHAT, cross_layer, missing, not_a_set, scan_of};
use crate::base::{Error, Result};
use crate::dictionary::set::Parts;
use crate::dictionary::{SetConfig, SetKind, TranscoderSet};
use crate::model::{HookPoint, Site};

/// Directories with more entries hold something else.
const MOST_ENTRIES: usize = 4096;

/// A dictionary of one layer, with where it belongs.
struct Found {
    path: PathBuf,
    format: Format,
    parts: Parts,
    input: Site,
    output: Site,
}

/// Whether the last part of `path` has a `*` in place of the layers' numbers.
pub(super) fn is_pattern(path: &Path) -> bool {
    split(path).is_some_and(|(dir, _, _)| dir.is_dir())
}

/// `dir/before*after`, taken apart.
fn split(path: &Path) -> Option<(&Path, &str, &str)> {
    let (before, after) = path.file_name()?.to_str()?.split_once('*')?;
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Some((dir, before, after))
}

/// Whether a folder's name is `before`, digits, `after`.
pub(super) fn matches(name: &str, before: &str, after: &str) -> bool {
    let number = name.strip_prefix(before).and_then(|rest| rest.strip_suffix(after));
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}

/// Whether at least two folders of `dir` hold dictionaries.
pub(super) fn has_layers(dir: &Path) -> bool {
    let Ok(folders) = folders(dir) else { return false };
    folders.iter().filter(|folder| recognise::find(&inner(folder)).is_ok()).take(2).count() == 2
}

/// Opens the set in the folders of `path`, or in those that match it.
pub(super) fn open(path: &Path) -> Result<OpenedSet> {
    let (dir, star) = match split(path) {
        Some((dir, before, after)) if dir.is_dir() => (dir, Some((before, after))),
        _ => (path, None),
    };
    let named = |name: Option<&std::ffi::OsStr>| {
        let name = name.and_then(std::ffi::OsStr::to_str).unwrap_or_default();
        star.is_none_or(|(before, after)| matches(name, before, after))
    };
    if let Some(files) = files_across_layers(dir, |path| named(path.file_name()) || named(path.file_stem()))? {
        return across_layers(dir, &files);
    }
    let mut notes = Vec::new();
    let mut layers: BTreeMap<usize, Found> = BTreeMap::new();
    for folder in folders(dir)?.into_iter().filter(|folder| named(folder.file_name())) {
        let Some((layer, found)) = read(&folder, &mut notes)? else { continue };
        if let Some(other) = layers.insert(layer, found) {
            return Err(several(dir, layer, &other.path, &folder));
        }
    }
    let Some((&last, _)) = layers.last_key_value() else {
        return Err(not_a_set(path, "no folder in it holds a dictionary".into()));
    };
    if let Some(layer) = (0..last).find(|layer| !layers.contains_key(layer)) {
        let why = format!("no folder holds its transcoder, and there are some up to layer {last}");
        return Err(missing(layer, path.into(), why));
    }
    assemble(dir, path, layers, notes)
}

fn assemble(dir: &Path, path: &Path, layers: BTreeMap<usize, Found>, notes: Vec<String>) -> Result<OpenedSet> {
    let mut sizes = None;
    let n_layers = layers.len();
    for found in layers.values() {
        check_sizes(&found.parts, &found.path, &mut sizes)?;
    }
    let first = layers.values().next().ok_or_else(|| not_a_set(dir, "no layer".into()))?;
    let format = first.format;
    let (input, output, at) = (first.input, first.output, first.path.clone());
    let config = SetConfig {
        kind: SetKind::PerLayer,
        model_name: first.parts.config.metadata.model_name.clone(),
        input,
        output,
        scan: scan_of(path),
        n_layers,
        d_model: first.parts.config.d_in,
        d_transcoder: first.parts.config.d_sae,
    };
    let mut built = Vec::with_capacity(n_layers);
    for (layer, found) in layers {
        let model = &found.parts.config.metadata.model_name;
        let say = |input: Site, output: Site, model: &Option<String>, path: &Path| {
            let model = model.as_deref().unwrap_or("an unnamed model");
            format!("{} to {} of {model} in {}", input.name(), output.name(), path.display())
        };
        if (found.input, found.output, model) != (input, output, &config.model_name) {
            return Err(Error::Mismatch {
                what: "layers of a transcoder set",
                left: say(input, output, &config.model_name, &at),
                right: say(found.input, found.output, model, &found.path),
                remedy: "all layers of a set have the same hooks and model: keep each set in a directory of its own"
                    .into(),
            });
        }
        built.push(found.parts.layer(layer)?);
    }
    let set = TranscoderSet::from_parts(config, built)?;
    Ok(OpenedSet { set, format, path: path.into(), notes })
}

/// The dictionary in a folder; `None` where there is none.
fn read(folder: &Path, notes: &mut Vec<String>) -> Result<Option<(usize, Found)>> {
    let found = match recognise::find(&inner(folder)) {
        Err(Error::Missing { .. }) => return Ok(None),
        other => other?,
    };
    let mut own = Vec::new();
    let parts = found.parts(&mut own)?;
    let metadata = &parts.config.metadata;
    let output = metadata.extra.get("hook_name_out").and_then(serde_json::Value::as_str);
    let (Some(input), Some(output)) = (metadata.hook_name.as_deref(), output) else {
        return Err(Error::Unsupported {
            what: format!("the dictionary {} in a transcoder set", folder.display()),
            why: if parts.config.transcoder {
                "it does not say which hook it reads and which it writes".into()
            } else {
                "it is an autoencoder, whose output is its input".to_owned()
            },
            remedy: "keep only transcoders in the set's directory, each naming both hooks".into(),
        });
    };
    let (Some(from), Some(to)) = (point(input), point(output)) else {
        return Err(Error::Unknown {
            kind: "hook of a transcoder",
            found: format!("{input}' to '{output}' in '{}", folder.display()),
            nearest: vec!["blocks.0.mlp.hook_in".into(), "blocks.0.hook_mlp_out".into(), "layers.0.mlp".into()],
        });
    };
    if from.0 != to.0 {
        return Err(Error::Unsupported {
            what: format!("the transcoder {} in a set", folder.display()),
            why: format!("it reads {input} and writes {output}, in another layer"),
            remedy: "use transcoders of one layer each".into(),
        });
    }
    for note in own {
        if !notes.contains(&note) {
            notes.push(note);
        }
    }
    let path = found.weights();
    Ok(Some((from.0, Found { path, format: found.format, parts, input: from.1, output: to.1 })))
}

/// Layer and site of a hook or of an MLP module, whose output is taken before any norm behind it.
fn point(hook: &str) -> Option<(usize, Site)> {
    if let Ok(HookPoint { layer: Some(layer), site }) = hook.parse() {
        return Some((layer, site));
    }
    let (module, site) = match hook.strip_suffix(".input") {
        Some(module) => (module, Site::MlpHookIn),
        None => (hook, Site::MlpHookOut),
    };
    let (blocks, layer) = module.strip_suffix(".mlp")?.rsplit_once('.')?;
    (blocks.ends_with("layers") || blocks.ends_with('h')).then_some((layer.parse().ok()?, site))
}

/// The folders of `dir`, by name.
fn folders(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir).map_err(Error::io("list the directory", dir))?;
    let paths = entries.flatten().take(MOST_ENTRIES).map(|entry| entry.path());
    let mut folders: Vec<PathBuf> = paths.filter(|path| path.is_dir()).collect();
    folders.sort();
    Ok(folders)
}

/// The folder itself, or the only one in the only one in it, as in `layer_0/width_16k/average_l0_76`.
fn inner(folder: &Path) -> PathBuf {
    let mut dir = folder.to_owned();
    for _ in 0..4 {
        let mut entries = std::fs::read_dir(&dir).into_iter().flatten().flatten();
        match (entries.next(), entries.next()) {
            (Some(only), None) if only.path().is_dir() => dir = only.path(),
            _ => break,
        }
    }
    dir
}

/// The chosen files of a cross-layer transcoder of Gemma Scope 2 in `dir`, by layer.
fn files_across_layers(dir: &Path, chosen: impl Fn(&Path) -> bool) -> Result<Option<Vec<PathBuf>>> {
    let entries = std::fs::read_dir(dir).map_err(Error::io("list the directory", dir))?;
    let mut paths: Vec<PathBuf> = entries.flatten().take(MOST_ENTRIES).map(|entry| entry.path()).collect();
    paths.sort();
    let mut files: BTreeMap<usize, PathBuf> = BTreeMap::new();
    for path in paths.into_iter().filter(|path| chosen(path)) {
        let number = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| {
            let digits = stem.trim_end_matches(|c: char| c.is_ascii_digit()).len();
            let after = stem.split_once("layer_").map(|(_, after)| after);
            let leading = after.map(|after| after.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default());
            leading.unwrap_or(&stem[digits..]).parse::<usize>().ok()
        });
        let Some(number) = number.filter(|_| path.extension().is_some_and(|e| e == "safetensors")) else { continue };
        let file = Tensors::safetensors(&path)?;
        if file.contains("w_dec")
            && file.shape("w_dec")?.len() == 3
            && let Some(other) = files.insert(number, path.clone())
        {
            return Err(several(dir, number, &other, &path));
        }
    }
    let Some((&last, _)) = files.last_key_value() else { return Ok(None) };
    match (0..last).find(|layer| !files.contains_key(layer)) {
        Some(layer) => Err(missing(layer, dir.into(), format!("there are files up to layer {last}"))),
        None => Ok(Some(files.into_values().collect())),
    }
}

/// Gemma Scope 2's own hooks: the MLP's input behind its norm, and what the MLP adds.
fn across_layers(dir: &Path, files: &[PathBuf]) -> Result<OpenedSet> {
    let layers = cross_layer::gemma_scope_2(files)?;
    let first = layers.first().ok_or_else(|| not_a_set(dir, "no layer".into()))?;
    let config = SetConfig {
        kind: SetKind::CrossLayer,
        model_name: None,
        input: Site::MlpHookIn,
        output: Site::MlpOut,
        scan: scan_of(dir),
        n_layers: layers.len(),
        d_model: first.b_dec.len(),
        d_transcoder: first.encoder.features(),
    };
    let notes = vec![
        "its files name neither hooks nor model; Gemma Scope 2's cross-layer transcoders read mlp.hook_in and write \
         hook_mlp_out"
            .into(),
    ];
    let set = TranscoderSet::from_parts(config, layers)?;
    Ok(OpenedSet { set, format: Format::GemmaScope2, path: dir.into(), notes })
}

/// Several transcoders of one layer.
fn several(dir: &Path, layer: usize, a: &Path, b: &Path) -> Error {
    let name = |path: &Path| {
        let inside = path.strip_prefix(dir).unwrap_or(path);
        inside.components().next().map_or_else(String::new, |part| part.as_os_str().to_string_lossy().into_owned())
    };
    let (a, b) = (name(a), name(b));
    let star = b.replacen(&layer.to_string(), "*", 1);
    Error::Unsupported {
        what: format!("the {WHAT} {}", dir.display()),
        why: format!("it holds several transcoders of layer {layer}: {}", listed([a.as_str(), &b].into_iter())),
        remedy: format!("name one set, with a star for the layer: '{}'", dir.join(star).display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hooks_and_modules_name_layers() {
        assert_eq!(point("blocks.3.ln2.hook_normalized"), Some((3, Site::Ln2Normalized)));
        assert_eq!(point("layers.12.mlp.input"), Some((12, Site::MlpHookIn)));
        assert_eq!(point("model.layers.12.mlp"), Some((12, Site::MlpHookOut)));
        assert_eq!(point("transformer.h.0.mlp"), Some((0, Site::MlpHookOut)));
        assert!(point("layers.x.mlp").is_none() && point("layers.3.mlp.act").is_none() && point("3.mlp").is_none());
    }

    #[test]
    fn a_star_stands_for_a_number() {
        assert!(matches("layer_12_width_16k_l0_small", "layer_", "_width_16k_l0_small"));
        assert!(!matches("layer_12_width_16k_l0_small_affine", "layer_", "_width_16k_l0_small"));
        assert!(!matches("layer__width_16k", "layer_", "_width_16k") && !matches("layer_x", "layer_", ""));
        assert_eq!(split(Path::new("a/layer_*_x")), Some((Path::new("a"), "layer_", "_x")));
        assert!(split(Path::new("a/layer_3_x")).is_none());
    }
}
