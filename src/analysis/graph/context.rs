//! What attribution holds fixed: one run of a prompt, taken apart at a transcoder set's places.

use candle_core::DType;

use crate::base::{Context as _, Error, Result};
use crate::dictionary::SparseCodes;
use crate::dictionary::set::TranscoderSet;
use crate::model::{HookPlan, HookPoint, Model, ModelConfig, Run, Site};
use crate::ops::{Matrix, gemm};

use super::columns::{ActiveFeature, Columns};
use super::held::HeldNorm;

/// One run of a prompt with everything that its graph holds fixed.
#[derive(Debug)]
pub struct Context {
    /// The prompt.
    pub tokens: Vec<u32>,
    /// Positions from the start whose features and errors are left out.
    pub zero_positions: usize,
    /// Active features by layer, position and number.
    pub features: Vec<ActiveFeature>,
    /// Logits after the last position before any soft cap, divided where the model divides them, `[v]`.
    pub logits: Vec<f32>,
    /// Their probabilities, after any soft cap.
    pub probabilities: Vec<f64>,
    /// What each layer's transcoder reads, `[s, d]`.
    pub inputs: Vec<Vec<f32>>,
    /// What its layer's transcoder leaves over, `[s, d]`; zeros where features are left out.
    pub errors: Vec<Vec<f32>>,
    /// What enters the first block of tokens alone, `[s, d]`.
    pub embedding: Vec<f32>,
    /// And of positions, `[s, d]`, in models that learn them.
    pub position_embedding: Option<Vec<f32>>,
    pub(super) layers: Vec<LayerContext>,
    pub(super) last: Option<HeldNorm>,
    pub(super) columns: Columns,
}

/// What one layer holds fixed.
#[derive(Debug)]
pub(super) struct LayerContext {
    /// Attention from the key's side, `[H, key, query]`.
    pub(super) pattern: Vec<f32>,
    pub(super) ln1: Option<HeldNorm>,
    pub(super) ln2: Option<HeldNorm>,
    pub(super) ln1_post: Option<HeldNorm>,
    pub(super) ln2_post: Option<HeldNorm>,
    /// Where the model clips values: what they are at the limit, `[s, K · h]`; `NaN` inside it.
    pub(super) clipped: Option<Vec<f32>>,
    /// What stands at the output hook without any feature, error or skip, `[s, d]`.
    pub(super) constant: Vec<f32>,
}

impl Context {
    /// Runs `tokens` once. Features and errors at the first `zero_positions` are left out: models put their attention
    /// sink there, and what a transcoder makes of it says nothing (circuit-tracer's `zero_positions`).
    ///
    /// # Errors
    /// `Flag` for fewer than two tokens; `Mismatch` when `set` is another model's; `Unsupported` when it reads or writes
    /// at a place of no linear path.
    pub fn new(model: &Model, set: &TranscoderSet, tokens: &[u32], zero_positions: usize) -> Result<Self> {
        check(model.config(), set)?;
        if tokens.len() < 2 {
            return Err(Error::flag(
                "--prompt",
                "two tokens or more: nothing is traced at the first",
                format!("{} in all", tokens.len()),
                "write more text",
            ));
        }
        let run = model.forward(&model.tokens(&[tokens])?, &plan(model.config(), set))?;
        let (config, s) = (model.config(), tokens.len());
        let zero_positions = zero_positions.min(s - 1);
        let at = |layer, site| values(&run, HookPoint::block(layer, site));
        let of = |site| (0..config.n_layers).map(move |layer| (layer, site));
        let inputs = of(set.config().input).map(|(l, site)| at(l, site)).collect::<Result<Vec<_>>>()?;
        let outputs = of(set.config().output).map(|(l, site)| at(l, site)).collect::<Result<Vec<_>>>()?;
        let codes = inputs.iter().enumerate().map(|(layer, x)| Ok(without(&set.encode(layer, x)?, zero_positions)));
        let codes = codes.collect::<Result<Vec<_>>>()?;
        let mut errors = set.reconstruct(&codes, &inputs)?;
        for (error, y) in errors.iter_mut().zip(&outputs) {
            error.iter_mut().zip(y).for_each(|(error, y)| *error = y - *error);
            error[..zero_positions * config.d_model].fill(0.0);
        }
        let layers = (0..config.n_layers)
            .map(|layer| LayerContext::new(model, set, &run, layer, (&inputs[layer], &outputs[layer]), zero_positions));
        let layers = layers.collect::<Result<_>>()?;
        let features = active(&codes);
        let global = |site| values(&run, HookPoint::global(site));
        let has_positions = Site::PosEmbed.exists_in(config);
        let logits = last_logits(&run, config, s)?;
        Ok(Self {
            tokens: tokens.to_vec(),
            zero_positions,
            columns: Columns::new(&features, config.n_layers, s),
            features,
            probabilities: softmax(&logits, config.embedding.logit_soft_cap),
            logits,
            inputs,
            errors,
            embedding: global(Site::Embed)?,
            position_embedding: has_positions.then(|| global(Site::PosEmbed)).transpose()?,
            layers,
            last: HeldNorm::of(model, &run, HookPoint::global(Site::LnFinalScale))?,
        })
    }

    /// Active features at all positions.
    pub fn active_features(&self) -> usize {
        self.features.len()
    }
}

impl LayerContext {
    fn new(
        model: &Model,
        set: &TranscoderSet,
        run: &Run,
        layer: usize,
        (input, output): (&[f32], &[f32]),
        zero_positions: usize,
    ) -> Result<Self> {
        let (config, point) = (model.config(), |site| HookPoint::block(layer, site));
        let (d, s) = (config.d_model, output.len() / config.d_model.max(1));
        let norm = |site| HeldNorm::of(model, run, point(site));
        let mut constant = set.b_dec(layer)?.repeat(s);
        let untraced = zero_positions * d;
        constant[..untraced].copy_from_slice(&output[..untraced]);
        if let Some(skip) = set.skip(layer)? {
            let x = Matrix::new(&input[..untraced], zero_positions, d);
            let skipped = gemm::multiply(x, Matrix::new(&skip, d, d).t());
            constant.iter_mut().zip(skipped).for_each(|(c, skipped)| *c -= skipped);
        }
        let clipped = |clip: f64| -> Result<Vec<f32>> {
            let v = values(run, point(Site::V))?;
            Ok(v.into_iter().map(|v| if f64::from(v.abs()) < clip { f32::NAN } else { v }).collect())
        };
        Ok(Self {
            pattern: transposed(&values(run, point(Site::AttnPattern))?, s),
            ln1: norm(Site::Ln1Scale)?,
            ln2: norm(Site::Ln2Scale)?,
            ln1_post: norm(Site::Ln1PostScale)?,
            ln2_post: norm(Site::Ln2PostScale)?,
            clipped: config.attention.clip_qkv.map(clipped).transpose()?,
            constant,
        })
    }
}

/// Checks that `set` is this model's, and that what it reads and writes lies on a linear path.
fn check(config: &ModelConfig, set: &TranscoderSet) -> Result<()> {
    set.check_model(config)?;
    let (input, output) = (set.config().input, set.config().output);
    let reads = match input {
        Site::ResidMid | Site::MlpIn | Site::MlpHookIn => true,
        Site::Ln2Normalized => config.layout.norms_inputs(),
        _ => false,
    };
    if !reads || !input.exists_in(config) {
        return Err(Error::Unsupported {
            what: format!("a graph of transcoders that read {}", input.name()),
            why: format!("in this model ({}) it is no input of the MLP", config.family),
            remedy: "use transcoders of mlp.hook_in, ln2.hook_normalized or hook_resid_mid".into(),
        });
    }
    if !matches!(output, Site::MlpOut | Site::MlpHookOut) {
        return Err(Error::Unsupported {
            what: format!("a graph of transcoders that write to {}", output.name()),
            why: "it is no output of the MLP".into(),
            remedy: "use transcoders of hook_mlp_out or mlp.hook_out".into(),
        });
    }
    Ok(())
}

fn plan(config: &ModelConfig, set: &TranscoderSet) -> HookPlan {
    let mut sites = vec![
        Site::AttnPattern,
        Site::Ln1Scale,
        Site::Ln2Scale,
        Site::Ln1PostScale,
        Site::Ln2PostScale,
        set.config().input,
        set.config().output,
    ];
    if config.attention.clip_qkv.is_some() {
        sites.push(Site::V);
    }
    let globals = [Site::Embed, Site::PosEmbed, Site::LnFinalScale, Site::UnembedOut].map(HookPoint::global);
    let blocks = (0..config.n_layers).flat_map(|l| sites.iter().map(move |&site| HookPoint::block(l, site)));
    let points = blocks.chain(globals).filter(|point| point.exists_in(config));
    points.fold(HookPlan::new(), HookPlan::capture)
}

/// The captured values at `point`, flattened, in f32.
pub(super) fn values(run: &Run, point: HookPoint) -> Result<Vec<f32>> {
    let x = run.captured(point)?;
    x.to_dtype(DType::F32).and_then(|x| x.flatten_all()?.to_vec1()).during(|| format!("reading {point}"))
}

/// Logits after the last of `s` positions before any soft cap.
pub(super) fn last_logits(run: &Run, config: &ModelConfig, s: usize) -> Result<Vec<f32>> {
    let divisor = config.embedding.logit_divisor;
    let raw = values(run, HookPoint::global(Site::UnembedOut))?.split_off((s - 1) * config.vocab_size);
    Ok(raw.into_iter().map(|x| (f64::from(x) / divisor) as f32).collect())
}

/// The product of two vectors, summed in f64.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// `codes` with nothing active in the first rows.
pub(super) fn without(codes: &SparseCodes, rows: usize) -> SparseCodes {
    let mut kept = SparseCodes::new(codes.d_sae);
    for row in 0..codes.rows() {
        let (features, values) = if row < rows { (&[][..], &[][..]) } else { codes.row(row) };
        kept.push_row(features, values);
    }
    kept
}

pub(super) fn active(codes: &[SparseCodes]) -> Vec<ActiveFeature> {
    let mut all = Vec::with_capacity(codes.iter().map(SparseCodes::len).sum());
    for (layer, codes) in codes.iter().enumerate() {
        for position in 0..codes.rows() {
            let (features, values) = codes.row(position);
            let pairs = features.iter().zip(values);
            all.extend(pairs.map(|(&feature, &activation)| ActiveFeature { layer, position, feature, activation }));
        }
    }
    all
}

/// The last two axes of `[…, s, s]` exchanged.
fn transposed(pattern: &[f32], s: usize) -> Vec<f32> {
    let mut out = vec![0.0; pattern.len()];
    for (out, head) in out.chunks_exact_mut(s * s).zip(pattern.chunks_exact(s * s)) {
        for query in 0..s {
            for key in 0..s {
                out[key * s + query] = head[query * s + key];
            }
        }
    }
    out
}

pub(super) fn softmax(logits: &[f32], soft_cap: Option<f64>) -> Vec<f64> {
    let capped = logits.iter().map(|x| match soft_cap {
        Some(cap) => (f64::from(*x) / cap).tanh() * cap,
        None => f64::from(*x),
    });
    let capped: Vec<f64> = capped.collect();
    let largest = capped.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = capped.iter().map(|x| (x - largest).exp()).sum();
    capped.into_iter().map(|x| (x - largest).exp() / sum).collect()
}
