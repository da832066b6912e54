//! Building a [`Model`] from a checkpoint: the family names the tensors, this assembles them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};

use crate::base::Result;

use super::attention::{Attention, QkNorm};
use super::block::Block;
use super::config::{self, ModelConfig, Position, QkNormScope};
use super::decoder::Model;
use super::experts::Experts;
use super::family::{self, ExpertNames, FusedOrder, LinearOrder, MlpNames, Names, Qkv};
use super::linear::Linear;
use super::mlp::{Dense, Gated, Mlp};
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
        let &ModelConfig { d_model, vocab_size, context_length, embedding, .. } = &config;
        let embed = loader.tensor(names.embed, &[vocab_size, embedding.width])?;
        let pos_embed = match (&config.position, names.pos_embed) {
            (Position::Learned { offset }, Some(name)) => {
                Some(loader.tensor(name, &[context_length + offset, d_model])?)
            }
            _ => None,
        };
        let (mut project_in, mut project_out) = (None, None);
        if embedding.width != d_model {
            project_in = Some(loader.linear("project_in", embedding.width, d_model, false)?);
            project_out = Some(loader.linear("project_out", d_model, embedding.width, false)?);
        }
        let blocks = (0..config.n_layers).map(|layer| loader.block(layer)).collect::<Result<_>>()?;
        let ln_final =
            if config.final_norm { Some(loader.norm(names.ln_final, config.norm, &[d_model])?) } else { None };
        let unembed = loader.unembed(&embed)?;
        Ok(Self { config, embed, project_in, pos_embed, blocks, ln_final, project_out, unembed })
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

    /// The name of a part of block `layer`, without the checkpoint's prefix.
    fn in_block(&self, layer: usize, part: &str) -> String {
        format!("{}{layer}.{part}", self.names.block)
    }

    /// A head of its own wins over tying, whatever config.json says: some files omit `tie_word_embeddings`.
    fn unembed(&self, embed: &Tensor) -> Result<Linear> {
        let shape = [self.config.vocab_size, self.config.embedding.width];
        let named =
            |part: &str| self.names.unembed.iter().map(|n| format!("{n}.{part}")).find(|n| self.weights.contains(n));
        let head = match named("weight") {
            Some(name) => self.weights.get(&name, &shape)?,
            None => embed.clone(),
        };
        let bias = match (self.config.embedding.head_bias, self.names.unembed) {
            (true, [name, ..]) => {
                Some(self.weights.get(&named("bias").unwrap_or_else(|| format!("{name}.bias")), &shape[..1])?)
            }
            _ => None,
        };
        Ok(Linear::new(head.t()?, bias))
    }

    fn block(&self, layer: usize) -> Result<Block> {
        let (names, config) = (self.names, self.config);
        let norm = |part: &str| self.norm(&self.in_block(layer, part), config.norm, &[config.d_model]);
        let ln1 = norm(names.ln1)?;
        let ln2 = match names.ln2 {
            Some(part) => norm(part)?,
            None => ln1.clone(),
        };
        Ok(Block {
            layer,
            layout: config.layout,
            ln1,
            ln1_post: names.ln1_post.map(norm).transpose()?,
            attention: self.attention(layer)?,
            ln2,
            ln2_post: names.ln2_post.map(norm).transpose()?,
            mlp: self.mlp(layer)?,
            residual_multiplier: config.residual_multiplier,
        })
    }

    fn attention(&self, layer: usize) -> Result<Attention> {
        let config = self.config;
        let settings = config.attention;
        let [q, k, v] = self.qkv(layer)?;
        let width = config.n_heads * config.d_head;
        let out =
            self.linear(&self.in_block(layer, self.names.attention_out), width, config.d_model, settings.out_bias)?;
        let divisor = if settings.scale_by_inverse_layer { (layer + 1) as f64 } else { 1.0 };
        Ok(Attention {
            layer,
            heads: config.n_heads,
            kv_heads: config.n_key_value_heads,
            q,
            k,
            v,
            out,
            qk_norm: self.qk_norm(layer)?,
            clip: settings.clip_qkv,
            scale: settings.scale / divisor,
            soft_cap: settings.soft_cap,
            rotation: config.rotation(layer),
            window: config.windows.get(layer).copied().flatten(),
        })
    }

    fn qkv(&self, layer: usize) -> Result<[Linear; 3]> {
        let config = self.config;
        let (d, bias) = (config.d_model, config.attention.qkv_bias);
        let (q_width, kv_width) = (config.n_heads * config.d_head, config.n_key_value_heads * config.d_head);
        match self.names.qkv {
            Qkv::Separate([q, k, v]) => {
                let load = |part: &str, width| self.linear(&self.in_block(layer, part), d, width, bias);
                Ok([load(q, q_width)?, load(k, kv_width)?, load(v, kv_width)?])
            }
            Qkv::Fused(part, order) => {
                let fused = self.linear(&self.in_block(layer, part), d, q_width + 2 * kv_width, bias)?;
                match order {
                    FusedOrder::Blocks => Ok([
                        columns(&fused, 0, q_width)?,
                        columns(&fused, q_width, kv_width)?,
                        columns(&fused, q_width + kv_width, kv_width)?,
                    ]),
                    FusedOrder::Groups => self.ungroup(&fused),
                }
            }
        }
    }

    /// Separates a projection whose output is, per key head, the query heads of its group, the key head and the value
    /// head.
    fn ungroup(&self, fused: &Linear) -> Result<[Linear; 3]> {
        let &ModelConfig { d_model, n_heads, n_key_value_heads: groups, d_head, .. } = self.config;
        let group = n_heads / groups;
        let weight = fused.weight().t()?.contiguous()?.reshape((groups, group + 2, d_head, d_model))?;
        let bias = fused.bias().map(|bias| bias.reshape((groups, group + 2, d_head))).transpose()?;
        let part = |start, heads| -> Result<Linear> {
            let width = groups * heads * d_head;
            let rows = weight.narrow(1, start, heads)?.contiguous()?.reshape((width, d_model))?;
            let bias = bias.as_ref().map(|b| b.narrow(1, start, heads)?.contiguous()?.reshape(width)).transpose()?;
            Ok(Linear::new(rows.t()?, bias))
        };
        Ok([part(0, group)?, part(group, 1)?, part(group + 1, 1)?])
    }

    fn qk_norm(&self, layer: usize) -> Result<Option<QkNorm>> {
        let (Some(settings), Some([q, k])) = (self.config.attention.qk_norm, self.names.qk_norm) else {
            return Ok(None);
        };
        let load = |part: &str, heads: usize| -> Result<Norm> {
            let name = self.in_block(layer, part);
            let d_head = self.config.d_head;
            match settings.scope {
                QkNormScope::Head => self.norm(&name, settings.norm, &[d_head]),
                QkNormScope::Projection => self.norm(&name, settings.norm, &[heads * d_head]),
                QkNormScope::OwnHead => {
                    let weight = |head| self.tensor(&format!("{name}.norms.{head}.weight"), &[d_head]);
                    let weights = (0..heads).map(weight).collect::<Result<Vec<_>>>()?;
                    Norm::new(settings.norm, Some(Tensor::stack(&weights, 0)?), None)
                }
            }
        };
        let (heads, kv_heads) = (self.config.n_heads, self.config.n_key_value_heads);
        Ok(Some(QkNorm { scope: settings.scope, q: load(q, heads)?, k: load(k, kv_heads)? }))
    }

    fn mlp(&self, layer: usize) -> Result<Mlp> {
        let &ModelConfig { d_model, mlp, .. } = self.config;
        let load = |part: &str, d_in, d_out| self.linear(&self.in_block(layer, part), d_in, d_out, mlp.bias);
        let (pre, up, down) = match self.names.mlp {
            MlpNames::Plain { up, down } => (load(up, d_model, mlp.d_mlp)?, None, down),
            MlpNames::Gated { gate, up, down } => {
                (load(gate, d_model, mlp.d_mlp)?, Some(load(up, d_model, mlp.d_mlp)?), down)
            }
            MlpNames::FusedGate { gate_up, down } => {
                let fused = load(gate_up, d_model, 2 * mlp.d_mlp)?;
                (columns(&fused, 0, mlp.d_mlp)?, Some(columns(&fused, mlp.d_mlp, mlp.d_mlp)?), down)
            }
            MlpNames::Experts(names) => return self.experts(layer, names),
        };
        Ok(Mlp::Dense(Dense { layer, activation: mlp.activation, pre, up, down: load(down, mlp.d_mlp, d_model)? }))
    }

    fn experts(&self, layer: usize, names: ExpertNames) -> Result<Mlp> {
        let &ModelConfig { d_model, mlp, .. } = self.config;
        let config::Experts { count, active, normalise, shared_width } = mlp.experts.unwrap_or(config::Experts::ONE);
        let [gate, up, down] = names.projections;
        let gated = |name: &str, width| -> Result<Gated> {
            let load = |part, d_in, d_out| self.linear(&format!("{name}.{part}"), d_in, d_out, false);
            Ok(Gated {
                activation: mlp.activation,
                gate: load(gate, d_model, width)?,
                up: load(up, d_model, width)?,
                down: load(down, width, d_model)?,
            })
        };
        let all = (0..count)
            .map(|e| gated(&self.in_block(layer, &format!("{}.{e}", names.experts)), mlp.d_mlp))
            .collect::<Result<_>>()?;
        let shared = match (shared_width, names.shared) {
            (Some(width), Some([expert, weight])) => Some((
                gated(&self.in_block(layer, expert), width)?,
                self.linear(&self.in_block(layer, weight), d_model, 1, false)?,
            )),
            _ => None,
        };
        let router = self.linear(&self.in_block(layer, names.router), d_model, count, false)?;
        Ok(Mlp::Experts(Experts { layer, router, all, active, normalise, shared }))
    }

    fn linear(&self, name: &str, d_in: usize, d_out: usize, bias: bool) -> Result<Linear> {
        let weight = match self.names.linear_order {
            LinearOrder::OutIn => self.tensor(&format!("{name}.weight"), &[d_out, d_in])?.t()?,
            LinearOrder::InOut => self.tensor(&format!("{name}.weight"), &[d_in, d_out])?,
        };
        let bias = if bias { Some(self.tensor(&format!("{name}.bias"), &[d_out])?) } else { None };
        Ok(Linear::new(weight, bias))
    }

    fn norm(&self, name: &str, kind: config::Norm, shape: &[usize]) -> Result<Norm> {
        let load = |part: &str| self.tensor(&format!("{name}.{part}"), shape);
        let (weight, bias) = match kind {
            config::Norm::LayerNorm { .. } => (Some(load("weight")?), Some(load("bias")?)),
            config::Norm::LayerNormWithoutGain { .. } => (None, None),
            config::Norm::LayerNormWithoutBias { .. } | config::Norm::Rms { .. } | config::Norm::RmsOnePlus { .. } => {
                (Some(load("weight")?), None)
            }
        };
        Norm::new(kind, weight, bias)
    }
}

/// `count` outputs of a fused projection, copied so that the fused one can go.
fn columns(fused: &Linear, start: usize, count: usize) -> Result<Linear> {
    let bias = fused.bias().map(|b| b.narrow(0, start, count)).transpose()?;
    Ok(Linear::new(fused.weight().t()?.narrow(0, start, count)?.contiguous()?.t()?, bias))
}
