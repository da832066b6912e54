//! Sets that a `config.yaml` describes: circuit-tracer's (`circuit_tracer/utils/hf_utils.py`).
//!
//! ```yaml
//! model_name: google/gemma-2-2b
//! model_kind: transcoder_set            # or cross_layer_transcoder
//! feature_input_hook: ln2.hook_normalized
//! feature_output_hook: hook_mlp_out
//! transcoders:                          # optional; the position is the layer
//!   - hf://google/gemma-scope-2b-pt-transcoders/layer_0/width_16k/average_l0_76/params.npz
//! ```
//!
//! circuit-tracer tells the formats of listed files by the name of the repository; here their contents say it.

use std::path::{Path, PathBuf};

use super::super::tensors::Tensors;
use super::super::{Format, circuit_tracer, gemma_scope, gemma_scope_2, recognise};
use super::yaml::Yaml;
use super::{CONFIG, OpenedSet, WHAT, cross_layer, kind_name, missing, not_a_set, reference, scan_of};
use crate::base::{Error, Progress, Result};
use crate::dictionary::set::{Layer, Parts};
use crate::dictionary::{SetConfig, SetKind, TranscoderSet};
use crate::model::hook::Scope;
use crate::model::{HookPoint, Site};

/// What `config.yaml` says.
#[derive(Debug)]
pub(super) struct Description {
    dir: PathBuf,
    kind: SetKind,
    model_name: Option<String>,
    input: Site,
    output: Site,
    scan: Option<String>,
    /// The files of the layers, where they are listed.
    transcoders: Option<Vec<String>>,
}

/// Whether `dir` holds layers of circuit-tracer's.
pub(super) fn has_layers(dir: &Path) -> bool {
    numbered(dir, "layer_").next().is_some() || numbered(dir, "W_enc_").next().is_some()
}

/// The numbers `i` of the files `{prefix}{i}.safetensors`.
fn numbered<'a>(dir: &Path, prefix: &'a str) -> impl Iterator<Item = usize> + use<'a> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(move |entry| {
        entry.file_name().to_str()?.strip_prefix(prefix)?.strip_suffix(".safetensors")?.parse().ok()
    })
}

/// How many files `{prefix}{i}.safetensors` there are, none left out.
///
/// # Errors
/// `Missing`, naming the layer and its file.
pub(super) fn count(dir: &Path, prefix: &str) -> Result<usize> {
    let found: std::collections::BTreeSet<usize> = numbered(dir, prefix).collect();
    let Some(last) = found.last().copied() else {
        return Err(not_a_set(dir, format!("no {prefix}{{i}}.safetensors in it, which {CONFIG} speaks of")));
    };
    match (0..last).find(|layer| !found.contains(layer)) {
        None => Ok(last + 1),
        Some(layer) => {
            let path = dir.join(format!("{prefix}{layer}.safetensors"));
            Err(missing(layer, path, format!("there are files up to layer {last}")))
        }
    }
}

impl Description {
    /// Reads `path`.
    ///
    /// # Errors
    /// `Malformed` without a key; `Unknown` for a kind or a hook that is not known.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let yaml = Yaml::read(path)?;
        let kinds = [SetKind::PerLayer, SetKind::CrossLayer];
        let name = yaml.required("model_kind")?;
        let kind = kinds.into_iter().find(|kind| kind_name(*kind) == name).ok_or_else(|| Error::Unknown {
            kind: "model_kind of a transcoder set",
            found: format!("{name}' in '{}", path.display()),
            nearest: kinds.map(|kind| kind_name(kind).into()).into(),
        })?;
        let text = |key: &str| Ok::<_, Error>(yaml.text(key)?.map(str::to_owned));
        Ok(Self {
            dir: path.parent().unwrap_or(Path::new("")).into(),
            kind,
            model_name: text("model_name")?,
            input: site(&yaml, "feature_input_hook")?,
            output: site(&yaml, "feature_output_hook")?,
            scan: text("scan")?,
            transcoders: yaml.list("transcoders")?.map(<[_]>::to_vec),
        })
    }

    /// The listed files, where they are.
    pub(super) fn transcoders(&self) -> Option<&[String]> {
        self.transcoders.as_deref()
    }

    /// Opens the set.
    ///
    /// # Errors
    /// As [`super::open_set_with`].
    pub(super) fn open(&self, progress: &dyn Progress) -> Result<OpenedSet> {
        let files = self.transcoders.as_ref().map(|listed| reference::resolve(&self.dir, listed, progress));
        let (format, layers) = match (self.kind, files.transpose()?) {
            (SetKind::PerLayer, None) => {
                let n = count(&self.dir, "layer_")?;
                let files: Vec<PathBuf> = (0..n).map(|i| self.dir.join(format!("layer_{i}.safetensors"))).collect();
                per_layer(&files)?
            }
            (SetKind::PerLayer, Some(files)) => per_layer(&files)?,
            (SetKind::CrossLayer, None) => (Format::CircuitTracer, cross_layer::circuit_tracer(&self.dir)?),
            (SetKind::CrossLayer, Some(files)) => (Format::GemmaScope2, cross_layer::gemma_scope_2(&files)?),
        };
        let set = TranscoderSet::from_parts(self.config(&layers)?, layers)?;
        Ok(OpenedSet { set, format, path: self.dir.clone(), notes: Vec::new() })
    }

    fn config(&self, layers: &[Layer]) -> Result<SetConfig> {
        let first = layers.first().ok_or_else(|| not_a_set(&self.dir, "its list of transcoders is empty".into()))?;
        Ok(SetConfig {
            kind: self.kind,
            model_name: self.model_name.clone(),
            input: self.input,
            output: self.output,
            scan: self.scan.clone().unwrap_or_else(|| scan_of(&self.dir)),
            n_layers: layers.len(),
            d_model: first.b_dec.len(),
            d_transcoder: first.encoder.features(),
        })
    }
}

/// The site of a hook's name without its block.
fn site(yaml: &Yaml, key: &str) -> Result<Site> {
    let name = yaml.required(key)?;
    let unknown = |nearest| Error::Unknown {
        kind: "hook of a transcoder set",
        found: format!("{name}' as {key} in '{}", yaml.path().display()),
        nearest,
    };
    match format!("blocks.0.{name}").parse::<HookPoint>() {
        Ok(point) if point.site.scope() == Scope::Block => Ok(point.site),
        Err(Error::Unknown { nearest, .. }) => {
            Err(unknown(nearest.iter().map(|name| name.trim_start_matches("blocks.0.").to_owned()).collect()))
        }
        _ => Err(unknown(vec!["hook_resid_mid".into(), "mlp.hook_in".into(), "hook_mlp_out".into()])),
    }
}

/// A layer a file, each of one format.
fn per_layer(files: &[PathBuf]) -> Result<(Format, Vec<Layer>)> {
    let mut format = Format::CircuitTracer;
    let mut sizes: Option<([usize; 3], &Path)> = None;
    let mut layers = Vec::with_capacity(files.len());
    for (layer, path) in files.iter().enumerate() {
        if !path.exists() {
            return Err(missing(layer, path.clone(), format!("{CONFIG} names this file")));
        }
        let found = recognise::find(path)?;
        format = found.format;
        let mut parts = match found.format {
            Format::CircuitTracer => circuit_tracer::weights(Tensors::safetensors(&found.path)?)?,
            Format::GemmaScope => gemma_scope::weights(&found.path)?,
            Format::GemmaScope2 => gemma_scope_2::weights(Tensors::safetensors(&found.path)?)?,
            _ => found.parts(&mut Vec::new())?,
        };
        // The files of Gemma Scope do not say it, and the set's configuration does.
        parts.config.transcoder = true;
        check_sizes(&parts, path, &mut sizes)?;
        layers.push(parts.layer(layer)?);
    }
    Ok((format, layers))
}

/// Checks that a layer has the sizes of the first, and one width on both sides.
pub(super) fn check_sizes<'a>(parts: &Parts, path: &'a Path, first: &mut Option<([usize; 3], &'a Path)>) -> Result<()> {
    let config = &parts.config;
    let found = [config.d_in, config.d_sae, config.d_out];
    let (expected, other) = *first.get_or_insert((found, path));
    let say = |[d_in, f, d_out]: [usize; 3], path: &Path| {
        format!("{f} features from width {d_in} to {d_out} in {}", path.display())
    };
    if found != expected {
        return Err(Error::Mismatch {
            what: "layers of a transcoder set",
            left: say(expected, other),
            right: say(found, path),
            remedy: "all layers of a set have the same sizes: the files are of different sets".into(),
        });
    }
    if config.d_in != config.d_out {
        return Err(Error::Unsupported {
            what: format!("a {WHAT} with {}", say(found, path)),
            why: "graphs need transcoders that read and write rows of the residual stream's width".into(),
            remedy: "use transcoders of the MLP's input and output".into(),
        });
    }
    Ok(())
}
