//! Building a [`Model`] from a checkpoint: the family names the tensors, this assembles them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};

use crate::base::Result;

use super::attention::Attention;
use super::config::{self, ModelConfig, Position};
use super::decoder::{BlockWeights, Model};
use super::family::{self, LinearOrder, Names, Qkv};
use super::linear::Linear;
use super::mlp::Mlp;
use super::norm::Norm;
use super::weights::{self, Weights};

impl Model {
    /// Opens a checkpoint: its `config.json` and its weight files, or a GGUF file as both.
    ///
    /// # Errors
    /// As [`family::parse`], [`Weights::open`] and [`Model::new`].
    pub fn open(config: &Path, files: &[PathBuf], dtype: DType, device: &Device) -> Result<Self> {
        let json = weights::read_config(config)?;
        let (model_config, names) = family::parse(&json, config)?;
        Self::new(model_config, &names, &Weights::open(files, dtype, device)?)
    }

    /// Builds a model over tensors in memory, under the names a checkpoint of that `config.json` would use. Variables
    /// stay variables, so gradients reach them.
    ///
    /// # Errors
    /// As [`family::parse`] and [`Model::new`].
    pub fn from_tensors(
        config: &serde_json::Value,
        tensors: HashMap<String, Tensor>,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let (model_config, names) = family::parse(config, Path::new("config.json"))?;
        Self::new(model_config, &names, &Weights::from_tensors(tensors, dtype, device))
    }

    /// Assembles the model that `config` describes out of `weights`.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape than `config` says.
    pub fn new(config: ModelConfig, names: &Names, weights: &Weights) -> Result<Self> {
        let prefix = names.prefix_in(weights);
        let loader = Loader { config: &config, names, weights, prefix };
        let embed = loader.tensor(names.embed, &[config.vocab_size, config.d_model])?;
        let pos_embed = match (&config.position, names.pos_embed) {
            (Position::Learned, Some(name)) => Some(loader.tensor(name, &[config.context_length, config.d_model])?),
            _ => None,
        };
        let blocks = (0..config.n_layers).map(|layer| loader.block(layer)).collect::<Result<_>>()?;
        let ln_final = loader.norm(names.ln_final)?;
        // A head of its own wins over tying, whatever config.json says: some files omit `tie_word_embeddings`.
        let head = if weights.contains(names.unembed) {
            weights.get(names.unembed, &[config.vocab_size, config.d_model])?
        } else {
            embed.clone()
        };
        let unembed = Linear::new(head.t()?, None);
        Ok(Self { config, embed, pos_embed, blocks, ln_final, unembed })
    }
}

struct Loader<'a> {
    config: &'a ModelConfig,
    names: &'a Names,
    weights: &'a Weights,
    prefix: &'static str,
}

impl Loader<'_> {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.weights.get(&format!("{}{name}", self.prefix), shape)
    }

    fn block(&self, layer: usize) -> Result<BlockWeights> {
        let &ModelConfig { d_model, mlp, attention_out_bias, .. } = self.config;
        let name = |part: &str| format!("{}{layer}.{part}", self.names.block);
        let [q, k, v] = self.qkv(layer)?;
        let out_width = self.config.n_heads * self.config.d_head;
        let out = self.linear(&name(self.names.attention_out), out_width, d_model, attention_out_bias)?;
        let attention = Attention { layer, q, k, v, out };
        let pre_name = self.names.mlp_gate.filter(|_| mlp.gated).unwrap_or(self.names.mlp_up);
        let pre = self.linear(&name(pre_name), d_model, mlp.d_mlp, mlp.bias)?;
        let up =
            if mlp.gated { Some(self.linear(&name(self.names.mlp_up), d_model, mlp.d_mlp, mlp.bias)?) } else { None };
        let down = self.linear(&name(self.names.mlp_down), mlp.d_mlp, d_model, mlp.bias)?;
        Ok(BlockWeights {
            ln1: self.norm(&name(self.names.ln1))?,
            attention,
            ln2: self.norm(&name(self.names.ln2))?,
            mlp: Mlp { layer, activation: mlp.activation, pre, up, down },
        })
    }

    fn qkv(&self, layer: usize) -> Result<[Linear; 3]> {
        let config = self.config;
        let d = config.d_model;
        let (q_width, kv_width) = (config.n_heads * config.d_head, config.n_key_value_heads * config.d_head);
        match self.names.qkv {
            Qkv::Separate(parts) => {
                let load = |part: &str, width| {
                    self.linear(&format!("{}{layer}.{part}", self.names.block), d, width, config.qkv_bias)
                };
                Ok([load(parts[0], q_width)?, load(parts[1], kv_width)?, load(parts[2], kv_width)?])
            }
            Qkv::Fused(part) => {
                let total = q_width + 2 * kv_width;
                let fused = self.linear(&format!("{}{layer}.{part}", self.names.block), d, total, config.qkv_bias)?;
                let slice = |start, width| -> Result<Linear> {
                    let bias = fused.bias().map(|b| b.narrow(0, start, width)).transpose()?;
                    Ok(Linear::new(fused.weight().narrow(1, start, width)?.contiguous()?, bias))
                };
                Ok([slice(0, q_width)?, slice(q_width, kv_width)?, slice(q_width + kv_width, kv_width)?])
            }
        }
    }

    fn linear(&self, name: &str, d_in: usize, d_out: usize, bias: bool) -> Result<Linear> {
        let name = format!("{}{name}", self.prefix);
        let weight = match self.names.linear_order {
            LinearOrder::OutIn => self.weights.get(&format!("{name}.weight"), &[d_out, d_in])?.t()?,
            LinearOrder::InOut => self.weights.get(&format!("{name}.weight"), &[d_in, d_out])?,
        };
        let bias = if bias { Some(self.weights.get(&format!("{name}.bias"), &[d_out])?) } else { None };
        Ok(Linear::new(weight, bias))
    }

    fn norm(&self, name: &str) -> Result<Norm> {
        let d = self.config.d_model;
        let weight = self.tensor(&format!("{name}.weight"), &[d])?;
        let bias = match self.config.norm {
            config::Norm::LayerNorm { .. } => Some(self.tensor(&format!("{name}.bias"), &[d])?),
            config::Norm::Rms { .. } => None,
        };
        Ok(Norm::new(self.config.norm, weight, bias))
    }
}
