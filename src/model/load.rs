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
use super::linear::{Linear, halved};
use super::mlp::{Dense, Gated, Mlp};
use super::norm::Norm;
use super::plan::{HookPlan, Stop};
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

    /// As [`Model::open`], without the layers and the head that passes with `plan` never reach.
    ///
    /// # Errors
    /// As [`Model::open`] and [`HookPlan::resolve`].
    pub fn open_for(plan: &HookPlan, config: &Path, files: &[PathBuf], dtype: DType, device: &Device) -> Result<Self> {
        let json = weights::read_config(config)?;
        let (model_config, names) = family::parse(&json, config)?;
        let last = plan.resolve(&model_config)?.stop;
        Self::assemble(model_config, &names, &Weights::open(files, dtype, device)?, last)
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
        Self::assemble(config, names, weights, Stop::Never)
    }

    /// As [`Model::new`], up to the part that computes `last`.
    fn assemble(config: ModelConfig, names: &Names, weights: &Weights, last: Stop) -> Result<Self> {
        let prefix = names.prefix_in(weights);
        let packed = weights.dtype() == DType::BF16 && weights.device().is_cpu();
        let loader = Loader { config: &config, names, weights, prefix, packed };
        let dtype = weights.dtype();
        let &ModelConfig { d_model, vocab_size, context_length, embedding, .. } = &config;
        let embed = loader.weight(names.embed, &[vocab_size, embedding.width])?;
        let embed = halved(&embed)?.unwrap_or(embed);
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
        let layers = match last {
            Stop::Embedding => 0,
            Stop::Block(layer, _) => layer + 1,
            Stop::FinalNorm | Stop::Never => config.n_layers,
        };
        let blocks = (0..layers).map(|layer| loader.block(layer)).collect::<Result<_>>()?;
        let norm = || loader.norm(names.ln_final, config.norm, &[d_model]);
        let ln_final = if config.final_norm && last >= Stop::FinalNorm { Some(norm()?) } else { None };
        let unembed = if last == Stop::Never { Some(loader.unembed(&embed)?) } else { None };
        Ok(Self { config, embed, project_in, pos_embed, blocks, ln_final, project_out, unembed, last, dtype })
    }
}

/// A weight `[in, out]` and its bias `[out]`.
type Matrix = (Tensor, Option<Tensor>);

struct Loader<'a> {
    config: &'a ModelConfig,
    names: &'a Names,
    weights: &'a Weights,
    prefix: &'static str,
    /// Whether matrices are bf16 for our kernels and everything else is f32.
    packed: bool,
}

impl Loader<'_> {
    /// A matrix, in the number type of the weights.
    fn weight(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.weights.get(&format!("{}{name}", self.prefix), shape)
    }

    /// A tensor that is added or multiplied by, in the number type of activations.
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.activations(self.weight(name, shape)?)
    }

    fn activations(&self, tensor: Tensor) -> Result<Tensor> {
        Ok(if self.packed { tensor.to_dtype(DType::F32)? } else { tensor })
    }

    /// A map with weight `[in, out]`.
    fn finish(&self, (weight, bias): Matrix) -> Result<Linear> {
        if self.packed { Linear::packed(&weight, bias) } else { Linear::new(weight, bias) }
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
        let own = named("weight").map(|name| self.weights.get(&name, &shape)).transpose()?;
        let bias = match (self.config.embedding.head_bias, self.names.unembed) {
            (true, [name, ..]) => {
                let name = named("bias").unwrap_or_else(|| format!("{name}.bias"));
                Some(self.activations(self.weights.get(&name, &shape[..1])?)?)
            }
            _ => None,
        };
        match own {
            Some(own) => self.finish((own.t()?, bias)),
            None if self.packed => Ok(Linear::packed_when_used(embed.t()?, bias)),
            None => Linear::tied(embed, bias),
        }
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
                let fused = self.matrix(&self.in_block(layer, part), d, q_width + 2 * kv_width, bias)?;
                match order {
                    FusedOrder::Blocks => Ok([
                        self.finish(columns(&fused, 0, q_width)?)?,
                        self.finish(columns(&fused, q_width, kv_width)?)?,
                        self.finish(columns(&fused, q_width + kv_width, kv_width)?)?,
                    ]),
                    FusedOrder::Groups => self.ungroup(&fused),
                }
            }
        }
    }

    /// Separates a projection whose output is, per key head, the query heads of its group, the key head and the value
    /// head.
    fn ungroup(&self, (weight, bias): &Matrix) -> Result<[Linear; 3]> {
        let &ModelConfig { d_model, n_heads, n_key_value_heads: groups, d_head, .. } = self.config;
        let group = n_heads / groups;
        let weight = weight.t()?.contiguous()?.reshape((groups, group + 2, d_head, d_model))?;
        let bias = bias.as_ref().map(|bias| bias.reshape((groups, group + 2, d_head))).transpose()?;
        let part = |start, heads| -> Result<Linear> {
            let width = groups * heads * d_head;
            let rows = weight.narrow(1, start, heads)?.contiguous()?.reshape((width, d_model))?;
            let bias = bias.as_ref().map(|b| b.narrow(1, start, heads)?.contiguous()?.reshape(width)).transpose()?;
            self.finish((rows.t()?, bias))
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
                let fused = self.matrix(&self.in_block(layer, gate_up), d_model, 2 * mlp.d_mlp, mlp.bias)?;
                let half = |start| self.finish(columns(&fused, start, mlp.d_mlp)?);
                (half(0)?, Some(half(mlp.d_mlp)?), down)
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
        self.finish(self.matrix(name, d_in, d_out, bias)?)
    }

    fn matrix(&self, name: &str, d_in: usize, d_out: usize, bias: bool) -> Result<Matrix> {
        let weight = match self.names.linear_order {
            LinearOrder::OutIn => self.weight(&format!("{name}.weight"), &[d_out, d_in])?.t()?,
            LinearOrder::InOut => self.weight(&format!("{name}.weight"), &[d_in, d_out])?,
        };
        let bias = if bias { Some(self.tensor(&format!("{name}.bias"), &[d_out])?) } else { None };
        Ok((weight, bias))
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
fn columns((weight, bias): &Matrix, start: usize, count: usize) -> Result<Matrix> {
    let bias = bias.as_ref().map(|b| b.narrow(0, start, count)).transpose()?;
    Ok((weight.t()?.narrow(0, start, count)?.contiguous()?.t()?, bias))
}
