//! The axes along which decoder families differ, each a closed enum, checked once.
//!
//! A family file turns `config.json` into this; the decoder reads nothing else.

use serde::Serialize;

use crate::base::{Error, Result};

pub use super::axes::{Activation, BlockLayout, Norm, QkNorm, QkNormScope};
pub use super::rotary::{RopeScaling, Rotary};

/// How the model knows where a token stands.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Position {
    /// A learned vector per position, added to the embedding.
    Learned {
        /// Rows of the table before that of position 0 (2 in OPT).
        offset: usize,
    },
    /// Rotation of queries and keys.
    Rotary {
        /// The distinct rotations of the model.
        rotations: Vec<Rotary>,
        /// The rotation of each layer as an index into `rotations`; none where a layer does not rotate.
        layers: Vec<Option<usize>>,
    },
    /// A bias on attention scores that grows with the key's position, rounded to bfloat16 and divided with the scores
    /// (Falcon; Press et al. 2021, arXiv:2108.12409).
    Alibi,
}

impl Position {
    /// One rotation for all of `n_layers`.
    pub fn rotary(rotary: Rotary, n_layers: usize) -> Self {
        Self::Rotary { rotations: vec![rotary], layers: vec![Some(0); n_layers] }
    }
}

/// The MLP of a block.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Mlp {
    /// Inner width.
    pub d_mlp: usize,
    /// `act(gate(x)) · up(x)` in place of `act(in(x))`.
    pub gated: bool,
    /// The nonlinearity.
    pub activation: Activation,
    /// Whether its projections have biases.
    pub bias: bool,
    /// The mixture, where each position goes through a few MLPs of this kind out of many.
    pub experts: Option<Experts>,
}

/// A mixture of experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Experts {
    /// Experts of a block, `E`.
    pub count: usize,
    /// Experts a position goes through, `k`.
    pub active: usize,
    /// Whether the weights of these are divided by their sum.
    pub normalise: bool,
    /// Inner width of an expert that all positions go through.
    pub shared_width: Option<usize>,
}

impl Experts {
    /// A single expert, which is no mixture.
    pub const ONE: Self = Self { count: 1, active: 1, normalise: false, shared_width: None };
}

/// What happens to queries, keys and scores besides position.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Attention {
    /// Multiplies every score: `1/√d_head` unless the family says otherwise.
    pub scale: f64,
    /// Divides by the layer number, counted from one, as well (GPT-2's `scale_attn_by_inverse_layer_idx`).
    pub scale_by_inverse_layer: bool,
    /// `c · tanh(score / c)` after scaling (Gemma 2).
    pub soft_cap: Option<f64>,
    /// Queries, keys and values are limited to `[−c, c]` (OLMo).
    pub clip_qkv: Option<f64>,
    /// Norm of queries and keys.
    pub qk_norm: Option<QkNorm>,
    /// Biases of the query, key and value projections.
    pub qkv_bias: bool,
    /// Bias of the output projection.
    pub out_bias: bool,
}

impl Attention {
    /// Scores divided by the root of the head's width and nothing else.
    pub fn plain(d_head: usize) -> Self {
        Self {
            scale: 1.0 / (d_head as f64).sqrt(),
            scale_by_inverse_layer: false,
            soft_cap: None,
            clip_qkv: None,
            qk_norm: None,
            qkv_bias: false,
            out_bias: false,
        }
    }
}

/// What happens between tokens and the first block, and between the last norm and logits.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Embedding {
    /// Width of the token table; other than `d_model` where two projections lead in and out (OPT-350m).
    pub width: usize,
    /// Multiplies embeddings, rounded to their number type first.
    pub multiplier: f64,
    /// Whether the head has a bias.
    pub head_bias: bool,
    /// Divides logits (Granite).
    pub logit_divisor: f64,
    /// `c · tanh(logit / c)` at the very end (Gemma 2).
    pub logit_soft_cap: Option<f64>,
}

impl Embedding {
    /// A table of width `d_model` and a head, nothing else.
    pub fn plain(d_model: usize) -> Self {
        Self { width: d_model, multiplier: 1.0, head_bias: false, logit_divisor: 1.0, logit_soft_cap: None }
    }
}

/// Everything the decoder needs to know about a model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelConfig {
    /// `model_type` of the configuration file.
    pub family: &'static str,
    /// Width of the residual stream, `d`.
    pub d_model: usize,
    /// Number of blocks.
    pub n_layers: usize,
    /// Query heads, `H`.
    pub n_heads: usize,
    /// Key and value heads, `K`; divides `n_heads`.
    pub n_key_value_heads: usize,
    /// Width of a head, `h`.
    pub d_head: usize,
    /// Rows of the embedding, `v`.
    pub vocab_size: usize,
    /// Longest sequence the model takes.
    pub context_length: usize,
    /// All norms of the residual stream.
    pub norm: Norm,
    /// Where they stand.
    pub layout: BlockLayout,
    /// Whether a norm stands before the head.
    pub final_norm: bool,
    /// Position scheme.
    pub position: Position,
    /// Per layer, how many positions a query sees, itself included; all where there is none.
    pub windows: Vec<Option<usize>>,
    /// Attention.
    pub attention: Attention,
    /// The MLP.
    pub mlp: Mlp,
    /// Embedding and head.
    pub embedding: Embedding,
    /// Multiplies what attention and MLP add to the stream (Granite).
    pub residual_multiplier: f64,
    /// Beginning-of-sequence token of the configuration file.
    pub bos_token_id: Option<u32>,
    /// End-of-sequence tokens of the configuration file.
    pub eos_token_ids: Vec<u32>,
}

impl ModelConfig {
    /// The rotation of queries and keys in `layer`.
    pub fn rotation(&self, layer: usize) -> Option<usize> {
        match &self.position {
            Position::Rotary { layers, .. } => layers.get(layer).copied().flatten(),
            Position::Learned { .. } | Position::Alibi => None,
        }
    }

    /// Checks that the numbers fit together.
    ///
    /// # Errors
    /// `Unsupported` naming the field that is out of range.
    pub fn validate(self) -> Result<Self> {
        let positive = [
            ("hidden size", self.d_model),
            ("number of layers", self.n_layers),
            ("number of heads", self.n_heads),
            ("number of key-value heads", self.n_key_value_heads),
            ("head width", self.d_head),
            ("vocabulary size", self.vocab_size),
            ("context length", self.context_length),
            ("MLP width", self.mlp.d_mlp),
            ("embedding width", self.embedding.width),
        ];
        if let Some((name, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return Err(bad_shape(format!("a {name} of zero")));
        }
        if !self.n_heads.is_multiple_of(self.n_key_value_heads) {
            return Err(bad_shape(format!("{} heads over {} key-value heads", self.n_heads, self.n_key_value_heads)));
        }
        if self.windows.len() != self.n_layers {
            return Err(bad_shape(format!("{} attention windows in {} layers", self.windows.len(), self.n_layers)));
        }
        if self.windows.contains(&Some(0)) {
            return Err(bad_shape("a sliding window of zero".into()));
        }
        if let Some(experts) = self.mlp.experts
            && !(1..=experts.count).contains(&experts.active)
        {
            return Err(bad_shape(format!("{} active experts of {}", experts.active, experts.count)));
        }
        self.validate_rotations()?;
        Ok(self)
    }

    fn validate_rotations(&self) -> Result<()> {
        let Position::Rotary { rotations, layers } = &self.position else { return Ok(()) };
        if layers.len() != self.n_layers || layers.iter().flatten().any(|&i| i >= rotations.len()) {
            return Err(bad_shape(format!("rotary settings of {} layers in {}", layers.len(), self.n_layers)));
        }
        match rotations.iter().find(|r| r.dims == 0 || r.dims > self.d_head || !r.dims.is_multiple_of(2)) {
            Some(r) => Err(bad_shape(format!("{} rotated values in a head of {}", r.dims, self.d_head))),
            None => Ok(()),
        }
    }
}

fn bad_shape(what: String) -> Error {
    Error::Unsupported {
        what,
        why: "no decoder has that shape".into(),
        remedy: "check config.json against the model's repository".into(),
    }
}
