//! The axes along which decoder families differ, each a closed enum, checked once.
//!
//! A family file turns `config.json` into this; the decoder reads nothing else.

use serde::Serialize;

use crate::base::{Error, Result};

/// The kind of norm before attention, before the MLP and at the end.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Norm {
    /// `(x − mean) / sqrt(var + eps) · weight + bias`
    LayerNorm {
        /// Added to the variance.
        eps: f64,
    },
    /// `x / sqrt(mean(x²) + eps) · weight`
    Rms {
        /// Added to the mean square.
        eps: f64,
    },
}

impl Norm {
    /// The constant under the root.
    pub fn eps(self) -> f64 {
        match self {
            Self::LayerNorm { eps } | Self::Rms { eps } => eps,
        }
    }
}

/// How the model knows where a token stands.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Position {
    /// A learned vector per position, added to the embedding.
    Learned,
    /// Rotation of queries and keys.
    Rotary(Rotary),
}

/// Rotary position embedding (Su et al. 2021), rotating the two halves of a head against each other.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rotary {
    /// Base of the geometric sequence of frequencies.
    pub theta: f64,
    /// Change of the frequencies for long contexts.
    pub scaling: RopeScaling,
}

/// The `rope_scaling` variants of Hugging Face configurations (`modeling_rope_utils.py`).
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "rope_type", rename_all = "snake_case")]
pub enum RopeScaling {
    /// Frequencies as they are.
    None,
    /// All frequencies divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// The base grows with the sequence once it passes the trained length (NTK-aware).
    Dynamic {
        /// How far the context is stretched.
        factor: f64,
        /// The trained length.
        max_position_embeddings: usize,
    },
    /// Low frequencies divided, high ones kept, a ramp between (Llama 3.1).
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// The trained length.
        original_max_position_embeddings: usize,
    },
    /// YaRN (Peng et al. 2023): a ramp over dimensions and a temperature on attention.
    Yarn {
        /// How far the context is stretched.
        factor: f64,
        /// Rotations above which a dimension is kept.
        beta_fast: f64,
        /// Rotations below which a dimension is divided.
        beta_slow: f64,
        /// Multiplies cosine and sine.
        attention_factor: f64,
        /// The trained length.
        original_max_position_embeddings: usize,
        /// Whether the ramp's ends are rounded to whole dimensions.
        truncate: bool,
    },
    /// One divisor per frequency, another set past the trained length (Phi-3).
    Longrope {
        /// Divisors up to the trained length.
        short_factor: Vec<f64>,
        /// Divisors past it.
        long_factor: Vec<f64>,
        /// Multiplies cosine and sine.
        attention_factor: f64,
        /// The trained length.
        original_max_position_embeddings: usize,
    },
}

/// The nonlinearity of the MLP, under its Hugging Face name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x · Φ(x)`, exact.
    Gelu,
    /// The tanh approximation: `gelu_new`, `gelu_pytorch_tanh`, `gelu_fast`.
    GeluTanh,
    /// `x · σ(x)`
    Silu,
    /// `max(x, 0)`
    Relu,
}

impl Activation {
    /// The activation called `name` in a Hugging Face configuration.
    ///
    /// # Errors
    /// `Unknown` with the names that are known.
    pub fn from_name(name: &str) -> Result<Self> {
        Ok(match name {
            "gelu" => Self::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Self::GeluTanh,
            "silu" | "swish" => Self::Silu,
            "relu" => Self::Relu,
            _ => {
                return Err(Error::Unknown {
                    kind: "activation function in config.json",
                    found: name.into(),
                    nearest: ["gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "silu", "relu"]
                        .map(String::from)
                        .to_vec(),
                });
            }
        })
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
}

/// What divides attention scores.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct AttentionScale {
    /// Multiplies every score: `1/√d_head` unless the family says otherwise.
    pub factor: f64,
    /// Divides by the layer number, counted from one, as well (GPT-2's `scale_attn_by_inverse_layer_idx`).
    pub by_inverse_layer: bool,
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
    /// All norms.
    pub norm: Norm,
    /// Position scheme.
    pub position: Position,
    /// The MLP.
    pub mlp: Mlp,
    /// Scaling of attention scores.
    pub attention_scale: AttentionScale,
    /// Biases of the query, key and value projections.
    pub qkv_bias: bool,
    /// Bias of attention's output projection.
    pub attention_out_bias: bool,
    /// Beginning-of-sequence token of the configuration file.
    pub bos_token_id: Option<u32>,
    /// End-of-sequence tokens of the configuration file.
    pub eos_token_ids: Vec<u32>,
}

impl ModelConfig {
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
        ];
        if let Some((name, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return Err(bad_shape(format!("a {name} of zero")));
        }
        if !self.n_heads.is_multiple_of(self.n_key_value_heads) {
            return Err(bad_shape(format!("{} heads over {} key-value heads", self.n_heads, self.n_key_value_heads)));
        }
        if matches!(self.position, Position::Rotary(_)) && !self.d_head.is_multiple_of(2) {
            return Err(bad_shape(format!("rotary position embedding on an odd head width of {}", self.d_head)));
        }
        Ok(self)
    }
}

fn bad_shape(what: String) -> Error {
    Error::Unsupported {
        what,
        why: "no decoder has that shape".into(),
        remedy: "check config.json against the model's repository".into(),
    }
}
