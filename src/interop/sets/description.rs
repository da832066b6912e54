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
use super::{
    ACTIVATION, CONFIG, EXTENDED, OpenedSet, WHAT, cross_layer, kind_name, missing, not_a_set, reference, scan_of,
};
use crate::base::{Error, Progress, Result};
use crate::dictionary::set::{Layer, Parts};
use crate::dictionary::{Activation, Architecture, SetConfig, SetKind, TranscoderSet};
use crate::model::hook::Scope;
use crate::model::{HookPoint, Site};

/// What `config.yaml` says.
#[derive(Debug)]
pub(super) struct Description {
    dir: PathBuf,
    kind: SetKind,
    /// Whether the set is of the extension.
    extended: bool,
    /// The activation whose features compete, and its `k`.
    competing: Option<(String, usize)>,
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
        let (extended, bare) = name.strip_prefix(EXTENDED).map_or((false, name), |bare| (true, bare));
        let kind = kinds.into_iter().find(|kind| kind_name(*kind) == bare).ok_or_else(|| Error::Unknown {
            kind: "model_kind of a transcoder set",
            found: format!("{name}' in '{}", path.display()),
            nearest: kinds.map(|kind| kind_name(kind).into()).into(),
        })?;
        let text = |key: &str| Ok::<_, Error>(yaml.text(key)?.map(str::to_owned));
        Ok(Self {
            extended,
            competing: if extended { competing(&yaml)? } else { None },
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
                self.per_layer(&files)?
            }
            (SetKind::PerLayer, Some(files)) => self.per_layer(&files)?,
            (SetKind::CrossLayer, None) => {
                let mut layers = cross_layer::circuit_tracer(&self.dir, self.extended)?;
                for Layer { encoder, b_dec, .. } in &mut layers {
                    if let Some((_, activation)) = self.competing(encoder.features(), b_dec.len())? {
                        encoder.activation = activation;
                    }
                }
                (Format::CircuitTracer, layers)
            }
            (SetKind::CrossLayer, Some(files)) => (Format::GemmaScope2, cross_layer::gemma_scope_2(&files)?),
        };
        let set = TranscoderSet::from_parts(self.config(&layers)?, layers)?;
        Ok(OpenedSet { set, format, path: self.dir.clone(), notes: Vec::new() })
    }

    /// A layer a file, each of one format.
    fn per_layer(&self, files: &[PathBuf]) -> Result<(Format, Vec<Layer>)> {
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
            let (f, d) = (parts.config.d_sae, parts.config.d_out);
            if let Some((architecture, activation)) = self.competing(f, d)? {
                (parts.config.architecture, parts.activation) = (architecture, activation);
            }
            check_sizes(&parts, path, &mut sizes)?;
            layers.push(parts.layer(layer)?);
        }
        Ok((format, layers))
    }

    /// The activation of an extended set whose features compete.
    fn competing(&self, f: usize, d: usize) -> Result<Option<(Architecture, Activation)>> {
        let Some((name, k)) = &self.competing else { return Ok(None) };
        let (k, rescale_acts_by_decoder_norm) = (*k, false);
        let fits = k <= f && (name != "groupmax" || f.is_multiple_of(k));
        let found = match name.as_str() {
            "topk" => (Architecture::TopK { k, rescale_acts_by_decoder_norm }, Activation::top_k(k, None, d)),
            "abstopk" => (Architecture::AbsTopK { k, rescale_acts_by_decoder_norm }, Activation::abs_top_k(k, None, d)),
            "groupmax" => (Architecture::GroupMax { k }, Activation::group_max(k, f)),
            _ => {
                return Err(Error::Unknown {
                    kind: "activation of a transcoder set",
                    found: format!("{name}' in '{}", self.dir.join(CONFIG).display()),
                    nearest: ["topk", "abstopk", "groupmax"].map(str::to_owned).into(),
                });
            }
        };
        if fits {
            return Ok(Some(found));
        }
        Err(Error::Mismatch {
            what: "configuration and layers of a transcoder set",
            left: format!("{name} with k {k} in {}", self.dir.join(CONFIG).display()),
            right: format!("{f} features a layer"),
            remedy: "the files are of different sets: write or copy the set again".into(),
        })
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

/// `activation` and `k` of an extended set.
fn competing(yaml: &Yaml) -> Result<Option<(String, usize)>> {
    let Some(name) = yaml.text(ACTIVATION)? else { return Ok(None) };
    let k = yaml.required("k")?;
    let k =
        k.parse().ok().filter(|k| *k > 0).ok_or_else(|| yaml.wrong("a positive integer as 'k'".into(), k.into()))?;
    Ok(Some((name.into(), k)))
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
