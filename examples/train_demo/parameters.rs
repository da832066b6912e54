//! Parameters, their initial values and `AdamW` (Loshchilov and Hutter 2019).

use std::collections::HashMap;
use std::path::Path;

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};
use mechinterp::base::artifact::write_atomic;
use mechinterp::base::rng::stream;
use mechinterp::base::{Error, Result};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::Settings;

const BETAS: (f64, f64) = (0.9, 0.98);
const EPSILON: f32 = 1e-8;
const MAX_GRADIENT_NORM: f64 = 1.0;

/// One named parameter with its Adam moments.
pub(super) struct Parameter {
    name: String,
    pub(super) value: Var,
    first: Vec<f32>,
    second: Vec<f32>,
    decays: bool,
}

/// Parameters in a fixed order, which is also the order of every reduction over them.
pub(super) struct Parameters(pub(super) Vec<Parameter>);

impl Parameters {
    pub(super) fn new(settings: &Settings, vocab: usize, device: &Device) -> Result<Self> {
        let mut rng = stream(settings.seed, "train-demo/initialisation");
        let mut parameters = Vec::new();
        for (name, shape, deviation) in layout(settings, vocab) {
            let value = match deviation {
                Some(deviation) => normal(&mut rng, &shape, deviation, device)?,
                None => Tensor::ones(shape.as_slice(), DType::F32, device)?,
            };
            let (first, second) = (vec![0.0; value.elem_count()], vec![0.0; value.elem_count()]);
            let value = Var::from_tensor(&value)?;
            parameters.push(Parameter { name, value, first, second, decays: deviation.is_some() });
        }
        Ok(Self(parameters))
    }

    pub(super) fn trainable(&self) -> HashMap<String, Tensor> {
        self.0.iter().map(|p| (p.name.clone(), p.value.as_tensor().clone())).collect()
    }

    /// The values as they are stored: in f16.
    pub(super) fn stored(&self) -> Result<HashMap<String, Tensor>> {
        self.0.iter().map(|p| Ok((p.name.clone(), p.value.detach().to_dtype(DType::F16)?))).collect()
    }

    /// One `AdamW` step after clipping the gradient's norm. Plain loops: as tensor operations this would take a dozen
    /// passes over memory.
    pub(super) fn update(&mut self, gradients: &GradStore, lr: f64, weight_decay: f64, step: u64) -> Result<()> {
        let gradient = |p: &Parameter| match gradients.get(p.value.as_tensor()) {
            Some(gradient) => Ok(gradient.flatten_all()?.to_vec1::<f32>()?),
            None => Ok::<_, Error>(vec![0.0; p.first.len()]),
        };
        let gradients = self.0.iter().map(gradient).collect::<Result<Vec<_>>>()?;
        let squared: f64 = gradients.iter().flatten().map(|&g| f64::from(g) * f64::from(g)).sum();
        let clip = (MAX_GRADIENT_NORM / squared.sqrt()).min(1.0) as f32;
        let correction = |beta: f64| 1.0 - beta.powi(step as i32 + 1);
        let (beta1, beta2) = (BETAS.0 as f32, BETAS.1 as f32);
        let rate = (lr / correction(BETAS.0)) as f32;
        let unbias = (1.0 / correction(BETAS.1)) as f32;
        for (Parameter { value, first, second, decays, .. }, gradient) in self.0.iter_mut().zip(gradients) {
            let kept = if *decays { (1.0 - lr * weight_decay) as f32 } else { 1.0 };
            let mut values = value.flatten_all()?.to_vec1::<f32>()?;
            let moments = first.iter_mut().zip(second.iter_mut());
            for ((x, g), (m, v)) in values.iter_mut().zip(gradient).zip(moments) {
                let g = g * clip;
                *m = beta1 * *m + (1.0 - beta1) * g;
                *v = beta2 * *v + (1.0 - beta2) * g * g;
                *x = kept * *x - rate * *m / ((*v * unbias).sqrt() + EPSILON);
            }
            value.set(&Tensor::from_vec(values, value.shape(), value.device())?)?;
        }
        Ok(())
    }

    pub(super) fn save(&self, path: &Path, step: u64) -> Result<()> {
        let mut tensors = HashMap::new();
        for Parameter { name, value, first, second, .. } in &self.0 {
            tensors.insert(name.clone(), value.as_detached_tensor());
            tensors.insert(format!("{name}/first"), Tensor::from_slice(first, first.len(), &Device::Cpu)?);
            tensors.insert(format!("{name}/second"), Tensor::from_slice(second, second.len(), &Device::Cpu)?);
        }
        tensors.insert("step".into(), Tensor::new(&[step as u32], &Device::Cpu)?);
        write_safetensors(path, &tensors)
    }

    pub(super) fn load(&mut self, path: &Path, device: &Device) -> Result<u64> {
        let tensors = candle_core::safetensors::load(path, device)?;
        let get = |name: &str| {
            tensors.get(name).cloned().ok_or_else(|| {
                Error::malformed("checkpoint", path, name, "nothing", "remove the checkpoint and begin again")
            })
        };
        for Parameter { name, value, first, second, .. } in &mut self.0 {
            value.set(&get(name)?)?;
            *first = get(&format!("{name}/first"))?.to_vec1()?;
            *second = get(&format!("{name}/second"))?.to_vec1()?;
        }
        Ok(u64::from(get("step")?.to_vec1::<u32>()?[0]))
    }
}

/// Names, shapes and initial deviations; `None` means a gain of one.
fn layout(settings: &Settings, vocab: usize) -> Vec<(String, Vec<usize>, Option<f64>)> {
    let &Settings { d_model: d, d_mlp: m, layers, .. } = settings;
    let (narrow, residual) = (0.02, 0.02 / (2.0 * layers as f64).sqrt());
    let mut all = vec![("model.embed_tokens.weight".to_owned(), vec![vocab, d], Some(narrow))];
    for layer in 0..layers {
        for (part, shape, deviation) in [
            ("input_layernorm", vec![d], None),
            ("self_attn.q_proj", vec![d, d], Some(narrow)),
            ("self_attn.k_proj", vec![d, d], Some(narrow)),
            ("self_attn.v_proj", vec![d, d], Some(narrow)),
            ("self_attn.o_proj", vec![d, d], Some(residual)),
            ("post_attention_layernorm", vec![d], None),
            ("mlp.gate_proj", vec![m, d], Some(narrow)),
            ("mlp.up_proj", vec![m, d], Some(narrow)),
            ("mlp.down_proj", vec![d, m], Some(residual)),
        ] {
            all.push((format!("model.layers.{layer}.{part}.weight"), shape, deviation));
        }
    }
    all.push(("model.norm.weight".to_owned(), vec![d], None));
    all
}

/// Normal numbers by the Box-Muller transform.
fn normal(rng: &mut ChaCha8Rng, shape: &[usize], deviation: f64, device: &Device) -> Result<Tensor> {
    let draw = |rng: &mut ChaCha8Rng| {
        let (u, v): (f64, f64) = (rng.random(), rng.random());
        (deviation * (-2.0 * (1.0 - u).ln()).sqrt() * (2.0 * std::f64::consts::PI * v).cos()) as f32
    };
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| draw(rng)).collect();
    Ok(Tensor::from_vec(values, shape, device)?)
}

/// Writes tensors with the metadata that transformers wants.
pub(super) fn write_safetensors(path: &Path, tensors: &HashMap<String, Tensor>) -> Result<()> {
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let bytes = safetensors::serialize(tensors, Some(metadata))
        .map_err(|e| Error::io("write tensors", path)(std::io::Error::other(e)))?;
    write_atomic(path, &bytes)
}
