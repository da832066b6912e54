//! Cross-layer transcoders in files. Decoders of a layer lie feature by feature, and for each feature layer by layer, so
//! that one feature's rows are neighbours.
//!
//! circuit-tracer (`circuit_tracer/transcoder/cross_layer_transcoder.py`): `W_enc_{i}.safetensors` holds `W_enc_{i}`
//! `[f, d]`, `b_enc_{i}`, `b_dec_{i}` and, in all layers or none, `threshold_{i}`; `W_dec_{i}.safetensors` holds
//! `W_dec_{i}` `[f, n − i, d]`, whose slice `j` writes to layer `i + j`.
//!
//! Gemma Scope 2: a file a layer with `w_enc` `[d, f]`, `w_dec` `[f, n, d]`, whose slice `l` writes to layer `l` and
//! which is not used for layers before its own, `b_enc`, `b_dec`, `threshold` and perhaps `affine_skip_connection`
//! `[d, d]`. circuit-tracer 0.5 leaves out the last of these files; here every one is a layer.

use std::path::{Path, PathBuf};

use super::super::circuit_tracer::activation;
use super::super::tensors::Tensors;
use super::{CONFIG, description, missing};
use crate::base::{Error, Result};
use crate::dictionary::Activation;
use crate::dictionary::set::{EncoderWeights, Floats, Layer, Rows, Skip};

const SKIP: &str = "affine_skip_connection";

/// The layers of a directory of circuit-tracer's; with `W_skip_{i}` `[d_out, d_in]` where it is `extended`.
pub(super) fn circuit_tracer(dir: &Path, extended: bool) -> Result<Vec<Layer>> {
    let n = description::count(dir, "W_enc_")?;
    let thresholds = Tensors::safetensors(&dir.join("W_enc_0.safetensors"))?.contains("threshold_0");
    // The first decoder says of how many layers the set was made.
    let path = dir.join("W_dec_0.safetensors");
    if !path.is_file() {
        return Err(missing(0, path, "its decoder has a file of its own".into()));
    }
    if let &[_, targets, _] = Tensors::safetensors(&path)?.shape("W_dec_0")?
        && targets > n
    {
        let path = dir.join(format!("W_enc_{n}.safetensors"));
        return Err(missing(n, path, format!("layer 0 writes to {targets} layers, so as many have encoders")));
    }
    (0..n).map(|layer| circuit_tracer_layer(dir, layer, n, thresholds, extended)).collect()
}

fn circuit_tracer_layer(dir: &Path, layer: usize, n: usize, thresholds: bool, extended: bool) -> Result<Layer> {
    let mut file = Tensors::safetensors(&dir.join(format!("W_enc_{layer}.safetensors")))?;
    let name = |tensor: &str| format!("{tensor}_{layer}");
    let [f, d] = file.matrix(&name("W_enc"))?;
    let encoder = file.floats(&name("W_enc"), &[f, d])?;
    let b_enc = file.take(&name("b_enc"), &[f])?;
    let b_dec = file.take(&name("b_dec"), &[d])?;
    let threshold = thresholds.then(|| file.take(&name("threshold"), &[f])).transpose()?;
    let has_skip = extended && file.contains(&name("W_skip"));
    let skip = has_skip.then(|| file.floats(&name("W_skip"), &[d, d])).transpose()?;
    file.finish()?;
    let path = dir.join(format!("W_dec_{layer}.safetensors"));
    if !path.is_file() {
        return Err(missing(layer, path, "its decoder has a file of its own".into()));
    }
    let mut file = Tensors::safetensors(&path)?;
    let decoder = file.floats(&name("W_dec"), &[f, n - layer, d])?;
    file.finish()?;
    Ok(Layer {
        encoder: EncoderWeights::new(encoder, true, d, b_enc, activation(threshold).1),
        decoders: targets(&decoder, 0, n - layer, [f, d]),
        b_dec,
        skip: skip.map(|weight| Skip { weight, input_first: false }),
    })
}

/// The rows `[f, d]` for each target from `first` on, out of a tensor `[f, all, d]`.
fn targets(decoder: &Floats, first: usize, all: usize, [f, d]: [usize; 2]) -> Vec<Rows> {
    let rows = |target: usize| Rows { floats: decoder.clone(), first: target * d, stride: all * d, width: d, count: f };
    (first..all).map(rows).collect()
}

/// The layers of files of Gemma Scope 2, in order.
pub(super) fn gemma_scope_2(files: &[PathBuf]) -> Result<Vec<Layer>> {
    let n = files.len();
    let layer = |(layer, path): (usize, &PathBuf)| {
        if !path.exists() {
            return Err(missing(layer, path.clone(), format!("{CONFIG} names this file")));
        }
        gemma_scope_2_layer(path, layer, n)
    };
    files.iter().enumerate().map(layer).collect()
}

fn gemma_scope_2_layer(path: &Path, layer: usize, n: usize) -> Result<Layer> {
    let mut file = Tensors::safetensors(path)?;
    let [d, f] = file.matrix("w_enc")?;
    if let &[_, targets, _] = file.shape("w_dec")?
        && targets != n
    {
        return Err(Error::Mismatch {
            what: "layers of a cross-layer transcoder",
            left: format!("{n} files"),
            right: format!("w_dec of {targets} layers in {}", path.display()),
            remedy: "give the files of all layers, in order".into(),
        });
    }
    let encoder = file.floats("w_enc", &[d, f])?;
    let b_enc = file.take("b_enc", &[f])?;
    let decoder = file.floats("w_dec", &[f, n, d])?;
    let b_dec = file.take("b_dec", &[d])?;
    let activation = Activation::jump_relu(file.take("threshold", &[f])?);
    let skip = file.contains(SKIP).then(|| file.floats(SKIP, &[d, d])).transpose()?;
    file.finish()?;
    Ok(Layer {
        encoder: EncoderWeights::new(encoder, false, d, b_enc, activation),
        decoders: targets(&decoder, layer, n, [f, d]),
        b_dec,
        skip: skip.map(|weight| Skip { weight, input_first: true }),
    })
}
