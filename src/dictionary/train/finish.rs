//! From weights in training to a dictionary of raw rows.

use serde_json::{Map, Value, json};

use super::parameters::{Shape, State};
use super::settings::{Method, TrainPlan};
use crate::base::Result;
use crate::dictionary::{Activation, Architecture, Dictionary, DictionaryConfig, Metadata, scale};
use crate::ops::squared_norm;

/// What rows were multiplied by in training.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Scales {
    /// The rows that are encoded.
    pub(super) input: f32,
    /// The rows that a transcoder reconstructs, a factor each layer; empty where those are the rows that are encoded.
    pub(super) outputs: Vec<f32>,
}

impl Scales {
    /// None at all, for a dictionary that writes to `outputs` layers of its own; 0 for an autoencoder.
    pub(super) fn unit(outputs: usize) -> Self {
        Self { input: 1.0, outputs: vec![1.0; outputs] }
    }
}

/// The dictionary that `state`, trained on scaled rows, amounts to for rows as they are. That of a layer of a
/// cross-layer transcoder has decoder rows for all layers that it writes to, one after the other, and its own layer's
/// `b_dec` followed by zeros.
///
/// BatchTopK and Matryoshka become JumpReLU with one threshold, their running one, over activations of unit decoder
/// rows; so a row's features no longer depend on the rest of its batch (Bussmann et al. 2024; SAELens). TopK whose
/// features competed by decoder-norm-weighted values gets unit decoder rows too.
pub(super) fn dictionary(state: &State, plan: &TrainPlan, scales: &Scales, metadata: Metadata) -> Result<Dictionary> {
    let weights = &state.weights;
    let Shape { d_in: d, decoder, features: f, transcoder, skip, .. } = weights.shape;
    let own = |name: &str| -> Vec<f32> {
        weights.own.iter().find(|(own, _)| *own == name).map(|(_, values)| values.clone()).unwrap_or_default()
    };
    let (architecture, activation, unit) = match &plan.method {
        Method::Relu { .. } => (Architecture::Relu, Activation::relu(), false),
        Method::Gated => (Architecture::Gated, Activation::gated(own("r_mag"), own("b_mag")), false),
        Method::JumpRelu { .. } => (Architecture::JumpRelu, Activation::jump_relu(own("threshold")), false),
        Method::TopK { top } => {
            let k = top.k as usize;
            let architecture = Architecture::TopK { k, rescale_acts_by_decoder_norm: false };
            (architecture, Activation::top_k(k, None, decoder), top.rescale_acts_by_decoder_norm)
        }
        Method::BatchTopK { top, .. } | Method::Matryoshka { top, .. } => {
            let threshold = vec![state.threshold as f32; f];
            (Architecture::JumpRelu, Activation::jump_relu(threshold), top.rescale_acts_by_decoder_norm)
        }
    };
    let config = if transcoder {
        DictionaryConfig::transcoder(architecture, d, f, decoder)
    } else {
        DictionaryConfig::new(architecture, d, f)
    };
    let config = DictionaryConfig { metadata, ..config };
    let (mut w_enc, mut b_enc) = (weights.w_enc_by_input(), weights.b_enc.clone());
    let mut w_dec = weights.w_dec.clone();
    if unit {
        let norms: Vec<f32> = weights.decoder_norms().into_iter().map(|norm| norm.max(f32::MIN_POSITIVE)).collect();
        w_enc.chunks_exact_mut(f).for_each(|row| row.iter_mut().zip(&norms).for_each(|(w, n)| *w *= n));
        b_enc.iter_mut().zip(&norms).for_each(|(b, n)| *b *= n);
        w_dec.chunks_exact_mut(decoder).zip(&norms).for_each(|(row, n)| row.iter_mut().for_each(|w| *w /= n));
    }
    let mut b_dec = weights.b_dec.clone();
    b_dec.resize(decoder, 0.0);
    let mut dictionary = Dictionary::new(config, w_enc, b_enc, w_dec, b_dec, activation)?;
    if skip {
        dictionary = dictionary.with_skip(weights.w_skip.clone())?;
    }
    if transcoder {
        fold_both(&mut dictionary, scales, unit);
    } else {
        fold(&mut dictionary, scales.input, unit);
    }
    Ok(dictionary)
}

/// Folds both scales of a transcoder in. Where decoder rows have unit norm they keep it, and each feature's activation
/// takes what they lose.
fn fold_both(dictionary: &mut Dictionary, scales: &Scales, unit: bool) {
    let Scales { input, outputs } = scales;
    let (f, decoder) = (dictionary.d_sae(), dictionary.d_out());
    let width = decoder / outputs.len().max(1);
    for row in dictionary.w_dec.chunks_exact_mut(decoder).chain(dictionary.b_dec.chunks_exact_mut(decoder)) {
        for (block, output) in row.chunks_exact_mut(width).zip(outputs) {
            for w in block {
                *w /= output;
            }
        }
    }
    dictionary.w_enc.iter_mut().for_each(|w| *w *= input);
    if let (Some(w_skip), Some(output)) = (&mut dictionary.w_skip, outputs.first()) {
        for w in w_skip.iter_mut() {
            *w *= input / output;
        }
    }
    if !unit {
        return;
    }
    let norm = |row: &[f32]| squared_norm(row).sqrt().max(f32::MIN_POSITIVE);
    let norms: Vec<f32> = dictionary.w_dec.chunks_exact(decoder).map(norm).collect();
    let multiply = |values: &mut [f32]| values.iter_mut().zip(&norms).for_each(|(v, n)| *v *= n);
    dictionary.w_enc.chunks_exact_mut(f).for_each(multiply);
    multiply(&mut dictionary.b_enc);
    if let Activation::JumpRelu(jump) = &mut dictionary.activation {
        multiply(&mut jump.threshold);
    }
    for (row, norm) in dictionary.w_dec.chunks_exact_mut(decoder).zip(&norms) {
        for w in row.iter_mut() {
            *w /= norm;
        }
    }
}

/// Folds the input scale in. Where decoder rows have unit norm they keep it, and activations take the scale instead:
/// multiplying the pre-activations of all features by one number changes no choice.
fn fold(dictionary: &mut Dictionary, factor: f32, unit: bool) {
    scale::fold(dictionary, factor);
    if !unit {
        return;
    }
    for w in dictionary.w_enc.iter_mut().chain(&mut dictionary.b_enc) {
        *w /= factor;
    }
    dictionary.w_dec.iter_mut().for_each(|w| *w *= factor);
    if let Activation::JumpRelu(jump) = &mut dictionary.activation {
        jump.threshold.iter_mut().for_each(|threshold| *threshold /= factor);
    }
}

/// What SAELens records about training, under its names.
pub(super) fn metadata(plan: &TrainPlan) -> Map<String, Value> {
    let mut details = json!({ "decoder_init_norm": plan.decoder_init_norm });
    if let (Value::Object(details), Value::Object(own)) = (&mut details, own_details(plan)) {
        details.extend(own);
    }
    let entries = [
        ("training_architecture", json!(plan.arch.sae_lens_name())),
        ("training_architecture_details", details),
        ("n_training_samples", json!(plan.steps * plan.batch_size as u64)),
        ("trained_with", json!(concat!("mechinterp ", env!("CARGO_PKG_VERSION")))),
    ];
    entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

fn own_details(plan: &TrainPlan) -> Value {
    let (coefficient, warm_up) = (plan.coefficient, plan.coefficient_warm_up_steps);
    match &plan.method {
        Method::Relu { lp_norm, p_anneal } => json!({
            "l1_coefficient": coefficient,
            "lp_norm": lp_norm,
            "p_end": p_anneal,
            "l1_warm_up_steps": warm_up,
        }),
        Method::Gated => json!({ "l1_coefficient": coefficient, "l1_warm_up_steps": warm_up }),
        Method::TopK { top } => json!(top),
        Method::BatchTopK { top, topk_threshold_lr } => {
            merged(json!(top), json!({ "topk_threshold_lr": topk_threshold_lr }))
        }
        Method::Matryoshka { top, topk_threshold_lr, widths } => {
            merged(json!(top), json!({ "topk_threshold_lr": topk_threshold_lr, "matryoshka_widths": widths }))
        }
        Method::JumpRelu {
            bandwidth,
            init_threshold,
            loss,
            tanh_scale,
            target_l0,
            ste_to_input,
            pre_act_loss_coefficient,
        } => json!({
            "l0_coefficient": coefficient,
            "l0_warm_up_steps": warm_up,
            "jumprelu_bandwidth": bandwidth,
            "jumprelu_init_threshold": init_threshold,
            "jumprelu_sparsity_loss_mode": loss,
            "jumprelu_tanh_scale": tanh_scale,
            "target_l0": target_l0,
            "jumprelu_ste_to_input": ste_to_input,
            "pre_act_loss_coefficient": pre_act_loss_coefficient,
        }),
    }
}

fn merged(mut left: Value, right: Value) -> Value {
    if let (Value::Object(left), Value::Object(right)) = (&mut left, right) {
        left.extend(right);
    }
    left
}
