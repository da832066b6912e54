//! Llama Scope (He et al. 2024) and the sets that followed it in its makers' later format.
//!
//! `hyperparams.json` and `checkpoints/final.safetensors`; the R1-distill sets have `config.json` and
//! `sae_weights.safetensors`. Tensors are those of two Linear layers, `encoder.weight` `[f, d]` and `decoder.weight`
//! `[d, f]`, with `log_jumprelu_threshold` `[f]` in the later format.
//!
//! Dictionaries are trained on rows scaled to a mean norm of `√d`: with `s_in = √d / norm_in`, `s_out = √d / norm_out`
//! of `dataset_average_activation_norm` the raw row `x` is encoded as `s_in·x`, and what comes out is `s_out·y`.
//! Folding that gives `W_enc·s_in`, `W_dec/s_out`, `b_dec/s_out`; the factors that SAELens keeps beside its table of
//! releases are these, `√d / norm_in`. Activations keep the size they had in training, as in SAELens.
//!
//! `jump_relu_threshold` is compared in the library that wrote it (Language-Model-SAEs, `from_config`) after it has
//! divided activations by `s_in`, multiplied `W_dec` by `s_in/s_out`, and moved the norms of its rows to the
//! activations, so in training's units it is `θ·s_out / ‖W_dec,f‖`. SAELens leaves the norm out, which is the same where
//! rows have norm 1 already; without `sparsity_include_decoder_norm` both have `θ·s_in`. `log_jumprelu_threshold` is in
//! training's units, and is compared with activations times norms under the same setting.

use std::path::Path;

use serde_json::Value;

use super::object::Object;
use super::place;
use super::tensors::Tensors;
use crate::base::{Error, Result};
use crate::dictionary::{Activation, Architecture, Dictionary, DictionaryConfig};
use crate::ops::squared_norm;

/// The configuration of the first format.
pub(super) const HYPERPARAMETERS: &str = "hyperparams.json";

/// Training settings, of which none changes what the dictionary computes.
const TRAINING: &[&str] = &[
    "device",
    "seed",
    "dtype",
    "sae_pretrained_name_or_path",
    "strict_loading",
    "bias_init_method",
    "decoder_exactly_fixed_norm",
    "init_decoder_norm",
    "init_encoder_norm",
    "init_encoder_with_decoder_transpose",
    "lp",
    "l1_coefficient",
    "l1_coefficient_warmup_steps",
    "k_warmup_steps",
    "use_batch_norm_mse",
    "use_ghost_grads",
    "tp_size",
    "ddp_size",
    "jumprelu_threshold_grad_scale",
    "jumprelu_threshold_window",
    "force_unit_decoder_norm",
    "promote_act_fn_dtype",
    "exp_name",
    "exp_series",
    "exp_result_path",
];

/// What a configuration says about computing.
#[derive(Debug)]
struct Settings {
    d: usize,
    d_sae: Option<usize>,
    hook_in: String,
    hook_out: String,
    decoder_bias: bool,
    subtract: bool,
    with_norms: bool,
    /// The scalar threshold of the first format.
    threshold: f64,
    top_k: Option<usize>,
    function: String,
    /// `norm_activation` is `dataset-wise`.
    scaled: bool,
    /// `dataset_average_activation_norm`, by hook or by `in` and `out`.
    norms: Option<serde_json::Map<String, Value>>,
}

/// Reads a dictionary whose configuration is `config` and whose weights are `weights`.
pub(super) fn read(config: &Path, weights: &Path) -> Result<Dictionary> {
    let mut json = Object::read(config)?;
    let settings = Settings::take(&mut json)?;
    json.finish()?;
    let mut file = Tensors::safetensors(weights)?;
    let [d_sae, d] = file.matrix("encoder.weight")?;
    if d != settings.d || settings.d_sae.is_some_and(|expected| expected != d_sae) {
        return Err(Error::Mismatch {
            what: "dictionary configuration and weights",
            left: format!("d_model {}, d_sae {:?} in {}", settings.d, settings.d_sae, config.display()),
            right: format!("encoder.weight of {} with shape {:?}", weights.display(), [d_sae, d]),
            remedy: "the two files belong to different dictionaries: download both again".into(),
        });
    }
    let mut w_enc = file.take_transposed("encoder.weight", [d_sae, d])?;
    let b_enc = file.take("encoder.bias", &[d_sae])?;
    let mut w_dec = file.take_transposed("decoder.weight", [d, d_sae])?;
    let mut b_dec = if settings.decoder_bias { file.take("decoder.bias", &[d])? } else { vec![0.0; d] };
    let logs = file.contains("log_jumprelu_threshold").then(|| file.take("log_jumprelu_threshold", &[d_sae]));
    let logs = logs.transpose()?;
    let scales = settings.scales(&mut file, config)?;
    file.finish()?;
    let norms: Vec<f64> = w_dec.chunks_exact(d).map(|row| f64::from(squared_norm(row)).sqrt()).collect();
    let activation = settings.activation(logs, &norms, scales, &w_dec, config)?;
    let [scale_in, scale_out] = scales;
    for w in &mut w_enc {
        *w = (f64::from(*w) * scale_in) as f32;
    }
    for w in w_dec.iter_mut().chain(&mut b_dec) {
        *w = (f64::from(*w) / scale_out) as f32;
    }
    let architecture = match activation {
        Activation::TopK(_) => Architecture::TopK {
            k: settings.top_k.unwrap_or_default(),
            rescale_acts_by_decoder_norm: settings.with_norms,
        },
        Activation::JumpRelu(_) => Architecture::JumpRelu,
        _ => Architecture::Relu,
    };
    let mut shape = DictionaryConfig::new(architecture, d, d_sae);
    shape.apply_b_dec_to_input = settings.subtract && settings.decoder_bias;
    settings.describe(&mut shape, config);
    Dictionary::new(shape, w_enc, b_enc, w_dec, b_dec, activation)
}

impl Settings {
    fn take(json: &mut Object) -> Result<Self> {
        let d = json.size("d_model")?;
        let expansion: Option<usize> = json.take("expansion_factor")?;
        let d_sae: Option<usize> = json.take("d_sae")?;
        let hook_in: String = json.require("hook_point_in")?;
        let hook_out: Option<String> = json.take("hook_point_out")?;
        let settings = Self {
            d,
            d_sae: d_sae.or_else(|| expansion.and_then(|n| n.checked_mul(d))),
            hook_out: hook_out.unwrap_or_else(|| hook_in.clone()),
            hook_in,
            decoder_bias: json.take("use_decoder_bias")?.unwrap_or(true),
            // Absent in the format's own writers only where it was off.
            subtract: json.take("apply_decoder_bias_to_pre_encoder")?.unwrap_or(false),
            with_norms: json.take("sparsity_include_decoder_norm")?.unwrap_or(true),
            threshold: json.take("jump_relu_threshold")?.unwrap_or(0.0),
            top_k: json.take("top_k")?,
            function: json.take::<String>("act_fn")?.unwrap_or_else(|| "jumprelu".into()).to_lowercase(),
            scaled: match json.take::<String>("norm_activation")?.as_deref() {
                None | Some("dataset-wise") => true,
                Some("none" | "inference") => false,
                Some(other) => return Err(json.refuse("norm_activation", other, "rows are scaled one by one in it")),
            },
            norms: json.take("dataset_average_activation_norm")?,
        };
        if json.take("use_glu_encoder")? == Some(true) {
            return Err(json.refuse("use_glu_encoder", true, "encoders with a gated linear unit are not computed"));
        }
        match json.take::<String>("sae_type")?.as_deref() {
            None | Some("sae") => {}
            Some(other) => return Err(json.refuse("sae_type", other, "only single dictionaries are read")),
        }
        json.ignore(TRAINING);
        Ok(settings)
    }

    /// `√d / norm` at the input and at the output. The norms are in the configuration or among the tensors.
    fn scales(&self, file: &mut Tensors, path: &Path) -> Result<[f64; 2]> {
        let mut norms = [None; 2];
        for (norm, (side, hook)) in norms.iter_mut().zip([("in", &self.hook_in), ("out", &self.hook_out)]) {
            let table = self.norms.as_ref();
            *norm = table.and_then(|table| table.get(side).or_else(|| table.get(hook))).and_then(Value::as_f64);
            let name = format!("dataset_average_activation_norm.{hook}");
            if file.contains(&name) {
                *norm = file.take(&name, &[])?.first().map(|&norm| f64::from(norm));
            }
        }
        if !self.scaled {
            return Ok([1.0; 2]);
        }
        let [input, output] = norms;
        let output = output.or(input.filter(|_| self.hook_in == self.hook_out));
        let scale = |norm: Option<f64>| norm.filter(|n| n.is_normal() && *n > 0.0).map(|n| (self.d as f64).sqrt() / n);
        match (scale(input), scale(output)) {
            (Some(input), Some(output)) => Ok([input, output]),
            _ => Err(Error::malformed(
                "dictionary configuration",
                path,
                "'dataset_average_activation_norm' with a positive norm for each hook",
                format!("{input:?} at {} and {output:?} at {}", self.hook_in, self.hook_out),
                "without the norms the scale of the rows it was trained on is not known: use the whole release",
            )),
        }
    }

    fn activation(
        &self,
        logs: Option<Vec<f32>>,
        norms: &[f64],
        [scale_in, scale_out]: [f64; 2],
        w_dec: &[f32],
        path: &Path,
    ) -> Result<Activation> {
        let unsupported = |why: &str| Error::Unsupported {
            what: format!("act_fn '{}' in {}", self.function, path.display()),
            why: why.into(),
            remedy: "known are relu, topk and jumprelu".into(),
        };
        // A feature without a direction writes nothing, whatever its threshold.
        let of_norm = |threshold: f64, norm: f64| match norm {
            _ if !self.with_norms => threshold as f32,
            0.0 => f32::MAX,
            _ => (threshold / norm) as f32,
        };
        match (self.function.as_str(), logs) {
            ("jumprelu", Some(logs)) => {
                let thresholds = logs.iter().zip(norms).map(|(log, norm)| of_norm(f64::from(*log).exp(), *norm));
                Ok(Activation::jump_relu(thresholds.collect()))
            }
            // Dictionaries that were trained with TopK get a threshold for inference, and use it from then on.
            ("jumprelu" | "topk", None) if self.function == "jumprelu" || self.threshold > 0.0 => {
                let threshold = self.threshold * if self.with_norms { scale_out } else { scale_in };
                Ok(Activation::jump_relu(norms.iter().map(|norm| of_norm(threshold, *norm)).collect()))
            }
            ("topk", None) => match self.top_k {
                Some(k) if (1..=norms.len()).contains(&k) => {
                    Ok(Activation::top_k(k, self.with_norms.then_some(w_dec), self.d))
                }
                _ => Err(unsupported("'top_k' is not between 1 and the number of features")),
            },
            ("relu", None) => Ok(Activation::relu()),
            (_, Some(_)) => Err(unsupported("the weights have a 'log_jumprelu_threshold'")),
            _ => Err(unsupported("this version does not know it")),
        }
    }

    fn describe(&self, config: &mut DictionaryConfig, path: &Path) {
        let metadata = &mut config.metadata;
        place::set_hook(metadata, self.hook_in.clone());
        metadata.prepend_bos = Some(true);
        metadata.context_size = Some(1024);
        let parts = place::parts(path);
        metadata.model_name = if parts.iter().any(|part| part.contains("R1-Distill")) {
            Some("deepseek-ai/DeepSeek-R1-Distill-Llama-8B".into())
        } else if parts.iter().any(|part| part.contains("Llama3_1-8B")) {
            Some("meta-llama/Llama-3.1-8B".into())
        } else {
            None
        };
        if metadata.model_name.is_some() {
            metadata.dataset_path = Some("cerebras/SlimPajama-627B".into());
        }
        if self.hook_in != self.hook_out {
            place::set_output(config, &self.hook_out);
        }
    }
}
