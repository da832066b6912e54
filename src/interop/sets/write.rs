//! Writes sets: circuit-tracer's directories, which hold both kinds; SAELens' and sparsify's folders for per-layer ones.
//!
//! circuit-tracer loads what is written where it looks for its own cache: with the directory at `cache/org/name`,
//! `load_transcoder_from_hub("org/name", cache_dir="cache")`.

use std::borrow::Cow;
use std::path::Path;

use super::super::{Format, sparsify};
use super::yaml::written;
use super::{ACTIVATION, CONFIG, EXTENDED, kind_name};
use crate::base::artifact::{Artifact, RunRecord, write_atomic};
use crate::base::{Error, Result};
use crate::dictionary::io::{self, Streamed, write_streamed};
use crate::dictionary::set::{Layer, Rows};
use crate::dictionary::{Activation, SetConfig, SetKind, TranscoderSet};

/// Formats that sets are written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetFormat {
    /// `config.yaml` with `layer_{i}.safetensors`, or `W_enc_{i}.safetensors` and `W_dec_{i}.safetensors`.
    CircuitTracer,
    /// The same files for sets that circuit-tracer cannot compute: features that compete for their places, linear
    /// connections across layers. Their `model_kind` is one that circuit-tracer refuses.
    Extended,
    /// A folder `layer_{i}` for each transcoder, in SAELens' format.
    SaeLens,
    /// A folder for each transcoder, named by its module, in sparsify's format.
    Sparsify,
}

impl SetFormat {
    /// All formats.
    pub const ALL: [Self; 4] = [Self::CircuitTracer, Self::Extended, Self::SaeLens, Self::Sparsify];

    /// The format of the layers.
    pub const fn format(self) -> Format {
        match self {
            Self::CircuitTracer | Self::Extended => Format::CircuitTracer,
            Self::SaeLens => Format::SaeLens,
            Self::Sparsify => Format::Sparsify,
        }
    }

    /// The one whose layers have this format.
    ///
    /// # Errors
    /// `Flag` when sets are not written in it.
    pub fn of(format: Format) -> Result<Self> {
        Self::ALL.into_iter().find(|own| own.format() == format).ok_or_else(|| {
            let names = [Self::CircuitTracer, Self::SaeLens, Self::Sparsify].map(|own| own.format().name()).join(", ");
            Error::flag("--to", format!("one of {names} for a transcoder set"), format.name(), "choose one of them")
        })
    }

    /// circuit-tracer's where it can compute the set, else the extension of it.
    pub fn best_for(set: &TranscoderSet) -> Self {
        if check(set, Self::CircuitTracer).is_ok() { Self::CircuitTracer } else { Self::Extended }
    }
}

/// Writes `set` as circuit-tracer's directory `out`, or as the extension of it where circuit-tracer cannot compute the
/// set; gives which. The directory appears whole or not at all.
///
/// # Errors
/// As [`write_set_in`]; `OutputInUse` when `out` exists.
pub fn write_set(set: &TranscoderSet, out: &Path) -> Result<SetFormat> {
    let artifact = Artifact::begin_new(out)?;
    let format = SetFormat::best_for(set);
    if let Err(error) = write_set_in(set, artifact.dir(), format) {
        artifact.discard();
        return Err(error);
    }
    let settings = serde_json::json!({ "scan": set.config().scan, "to": Format::CircuitTracer });
    artifact.finish(&RunRecord::new("write a transcoder set", &settings, 0))?;
    Ok(format)
}

/// Writes `set` into the existing directory `dir`. One layer is in memory at a time.
///
/// # Errors
/// `Unsupported` with the reason, when the format cannot express the set; `NonFinite` when a weight is no number; `Io`
/// when a file cannot be written.
pub fn write_set_in(set: &TranscoderSet, dir: &Path, format: SetFormat) -> Result<()> {
    check(set, format)?;
    for layer in 0..set.config().n_layers {
        match (format, set.config().kind) {
            (SetFormat::CircuitTracer | SetFormat::Extended, SetKind::PerLayer) => write_layer(set, layer, dir)?,
            (SetFormat::CircuitTracer | SetFormat::Extended, SetKind::CrossLayer) => {
                write_cross_layer(set, layer, dir)?;
            }
            (SetFormat::SaeLens, _) => {
                let own = dir.join(format!("layer_{layer}"));
                std::fs::create_dir_all(&own).map_err(Error::io("make the layer's folder", &own))?;
                io::write(&own, &set.dictionary(layer)?)?;
            }
            (SetFormat::Sparsify, _) => sparsify::write(dir, set.dictionary(layer)?)?,
        }
    }
    if let SetFormat::CircuitTracer | SetFormat::Extended = format {
        // Last: it says that the set is complete.
        write_atomic(&dir.join(CONFIG), description(set, format)?.as_bytes())?;
    }
    Ok(())
}

/// Refuses what the format has no words for before anything is written.
fn check(set: &TranscoderSet, format: SetFormat) -> Result<()> {
    let cannot = |why: String, remedy: &str| Error::Unsupported {
        what: format!("writing {set} as {}", format.format().title()),
        why,
        remedy: remedy.into(),
    };
    let cross_layer = set.config().kind == SetKind::CrossLayer;
    if cross_layer && matches!(format, SetFormat::SaeLens | SetFormat::Sparsify) {
        return Err(cannot("it knows transcoders of one layer only".into(), "write it as circuit_tracer"));
    }
    let layers = || (0..set.config().n_layers).map(|layer| set.activation(layer));
    let first = set.activation(0)?;
    let competes = |activation: Result<&Activation>| activation.is_ok_and(|a| competing(a, set.config()).is_some());
    if format == SetFormat::Extended
        && layers().any(competes)
        && layers().any(|other| other.is_ok_and(|other| other != first))
    {
        return Err(cannot("its layers have different activations or k".into(), "write it as sparsify"));
    }
    if format == SetFormat::SaeLens && layers().any(|layer| matches!(layer, Ok(Activation::TopK(_)))) {
        let why = "SAELens has no architecture 'topk' for transcoders, and would not open it";
        return Err(cannot(why.into(), "write it as sparsify, or use it as it is"));
    }
    if format != SetFormat::CircuitTracer {
        return Ok(());
    }
    for activation in layers() {
        if let Steps::Competing = steps(activation?) {
            let why = "it loads ReLU and a threshold a feature, and these features compete for their places (TopK): \
                       fixed thresholds would be another function";
            let remedy = "train with ReLU, JumpReLU or BatchTopK, whose features each have a threshold; TopK per-layer \
                          transcoders of the MLP's input go into sparsify's folders";
            return Err(cannot(why.into(), remedy));
        }
    }
    if cross_layer && set.has_skip() {
        let why = "its loader reads no linear connection of a cross-layer transcoder and would leave it out silently";
        return Err(cannot(why.into(), "train the cross-layer transcoder without a linear connection"));
    }
    Ok(())
}

/// The name and `k` of an activation whose features compete.
fn competing(activation: &Activation, config: &SetConfig) -> Option<(&'static str, usize)> {
    match activation {
        Activation::TopK(top_k) => Some(("topk", top_k.k())),
        Activation::AbsTopK(top_k) => Some(("abstopk", top_k.k())),
        Activation::GroupMax(group) => Some(("groupmax", config.d_transcoder / (*group).max(1))),
        Activation::Relu | Activation::JumpRelu(_) | Activation::JumpIdentity(_) | Activation::Gated(_) => None,
    }
}

/// How circuit-tracer computes an activation.
enum Steps<'a> {
    /// `max(x, 0)`.
    Relu,
    /// `x · [x > θ]` with a threshold a feature.
    Jump(Cow<'a, [f32]>),
    /// Not feature by feature.
    Competing,
}

fn steps(activation: &Activation) -> Steps<'_> {
    match activation {
        Activation::Relu => Steps::Relu,
        // With the ReLU first a negative threshold passes what zero passes.
        Activation::JumpRelu(jump) => Steps::Jump(jump.threshold.iter().map(|t| t.max(0.0)).collect()),
        Activation::JumpIdentity(jump) => Steps::Jump(jump.threshold.as_slice().into()),
        Activation::TopK(_) | Activation::AbsTopK(_) | Activation::Gated(_) | Activation::GroupMax(_) => {
            Steps::Competing
        }
    }
}

fn description(set: &TranscoderSet, format: SetFormat) -> Result<String> {
    let config = set.config();
    let SetConfig { kind, model_name, input, output, scan, n_layers: _, d_model: _, d_transcoder: _ } = config;
    let extended = if format == SetFormat::Extended { EXTENDED } else { "" };
    let competing = competing(set.activation(0)?, config);
    let lines = [
        model_name.as_ref().map(|name| ("model_name", written(name))),
        Some(("model_kind", format!("{extended}{}", kind_name(*kind)))),
        Some(("feature_input_hook", input.name().to_owned())),
        Some(("feature_output_hook", output.name().to_owned())),
        Some(("scan", written(scan))),
        competing.map(|(name, _)| (ACTIVATION, name.to_owned())),
        competing.map(|(_, k)| ("k", k.to_string())),
    ];
    let lines: Vec<String> = lines.into_iter().flatten().map(|(key, value)| format!("{key}: {value}\n")).collect();
    Ok(lines.concat())
}

/// `layer_{i}.safetensors`.
fn write_layer(set: &TranscoderSet, layer: usize, dir: &Path) -> Result<()> {
    let SetConfig { d_model: d, d_transcoder: f, .. } = *set.config();
    let Layer { encoder, decoders, b_dec, .. } = set.layer(layer)?;
    let mut tensors = vec![
        Streamed::whole("W_enc", &[f, d], encoder.all_rows()?),
        Streamed { name: "W_dec".into(), shape: vec![f, d], blocks: Box::new(rows(decoders)) },
        Streamed::whole("b_enc", &[f], encoder.bias.as_slice()),
        Streamed::whole("b_dec", &[d], b_dec.as_slice()),
    ];
    // circuit-tracer takes all layers to be as the first.
    if set.has_skip() {
        let skip = set.skip(layer)?.unwrap_or_else(|| vec![0.0; d * d]);
        tensors.push(Streamed::whole("W_skip", &[d, d], skip));
    }
    if let Steps::Jump(thresholds) = steps(&encoder.activation) {
        tensors.push(Streamed::whole("activation_function.threshold", &[f], thresholds));
    }
    write_streamed(&dir.join(format!("layer_{layer}.safetensors")), tensors)
}

/// `W_enc_{i}.safetensors` and `W_dec_{i}.safetensors`.
fn write_cross_layer(set: &TranscoderSet, layer: usize, dir: &Path) -> Result<()> {
    let SetConfig { d_model: d, d_transcoder: f, n_layers, .. } = *set.config();
    let Layer { encoder, decoders, b_dec, .. } = set.layer(layer)?;
    let name = |tensor: &str| format!("{tensor}_{layer}");
    let mut tensors = vec![
        Streamed::whole(name("W_enc"), &[f, d], encoder.all_rows()?),
        Streamed::whole(name("b_enc"), &[f], encoder.bias.as_slice()),
        Streamed::whole(name("b_dec"), &[d], b_dec.as_slice()),
    ];
    if let Some(skip) = set.skip(layer)? {
        tensors.push(Streamed::whole(name("W_skip"), &[d, d], skip));
    }
    // Thresholds are in all layers or in none; that of a ReLU is zero.
    let jumps = |layer| set.activation(layer).is_ok_and(|activation| matches!(steps(activation), Steps::Jump(_)));
    if (0..n_layers).any(jumps) {
        let own = match steps(&encoder.activation) {
            Steps::Jump(thresholds) => thresholds,
            Steps::Relu | Steps::Competing => vec![0.0; f].into(),
        };
        tensors.push(Streamed::whole(name("threshold"), &[f], own));
    }
    write_streamed(&dir.join(format!("W_enc_{layer}.safetensors")), tensors)?;
    let shape = vec![f, n_layers - layer, d];
    let decoder = Streamed { name: name("W_dec"), shape, blocks: Box::new(rows(decoders)) };
    write_streamed(&dir.join(format!("W_dec_{layer}.safetensors")), vec![decoder])
}

/// Feature by feature the rows of all targets.
fn rows(decoders: &[Rows]) -> impl Iterator<Item = Result<Cow<'_, [f32]>>> {
    for rows in decoders {
        rows.floats.expect(true);
    }
    let features = decoders.first().map_or(0, |rows| rows.count);
    (0..features).flat_map(move |feature| {
        decoders.iter().map(move |rows| {
            let row = rows.row(feature);
            rows.floats.check(&row)?;
            Ok(row)
        })
    })
}
