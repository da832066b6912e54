//! Axes that are a choice among a few: norms, where they stand, activations.

use serde::Serialize;

use crate::base::{Error, Result};
pub use crate::ops::lanes::Activation;

/// The kind of the norms in the residual stream.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Norm {
    /// `(x − mean) / sqrt(var + eps) · weight + bias`
    LayerNorm {
        /// Added to the variance.
        eps: f64,
    },
    /// `(x − mean) / sqrt(var + eps) · weight`
    LayerNormWithoutBias {
        /// Added to the variance.
        eps: f64,
    },
    /// `(x − mean) / sqrt(var + eps)`
    LayerNormWithoutGain {
        /// Added to the variance.
        eps: f64,
    },
    /// `x / sqrt(mean(x²) + eps) · weight`
    Rms {
        /// Added to the mean square.
        eps: f64,
    },
    /// `x / sqrt(mean(x²) + eps) · (1 + weight)`, the gain in f32 (Gemma).
    RmsOnePlus {
        /// Added to the mean square.
        eps: f64,
    },
}

impl Norm {
    /// The constant under the root.
    pub fn eps(self) -> f64 {
        match self {
            Self::LayerNorm { eps }
            | Self::LayerNormWithoutBias { eps }
            | Self::LayerNormWithoutGain { eps }
            | Self::Rms { eps }
            | Self::RmsOnePlus { eps } => eps,
        }
    }

    /// Whether the mean is subtracted.
    pub fn centres(self) -> bool {
        matches!(self, Self::LayerNorm { .. } | Self::LayerNormWithoutBias { .. } | Self::LayerNormWithoutGain { .. })
    }
}

/// Where norms stand in a block and what attention and MLP read. `x` is the residual stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BlockLayout {
    /// `x += Attn(ln1(x)); x += MLP(ln2(x))`
    PreNorm,
    /// `x += ln1_post(Attn(ln1(x))); x += ln2_post(MLP(ln2(x)))` (Gemma 2 and 3)
    PreAndPostNorm,
    /// `x += ln1(Attn(x)); x += ln2(MLP(x))` (OLMo 2)
    OutputNorm,
    /// `x = ln1(x + Attn(x)); x = ln2(x + MLP(x))` (OPT-350m)
    StreamNorm,
    /// `x += Attn(ln1(x)) + MLP(ln2(x))` (GPT-NeoX)
    Parallel,
    /// `x += Attn(ln1(x)) + MLP(ln1(x))` (Phi, Falcon-7B)
    ParallelSharedNorm,
}

impl BlockLayout {
    /// Whether attention and MLP both read the block's input.
    pub fn is_parallel(self) -> bool {
        matches!(self, Self::Parallel | Self::ParallelSharedNorm)
    }

    /// Whether attention and MLP read the stream through a norm.
    pub fn norms_inputs(self) -> bool {
        !matches!(self, Self::OutputNorm | Self::StreamNorm)
    }
}

/// What a norm of queries and keys divides together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum QkNormScope {
    /// Each head by itself, all with the same parameters (Qwen 3, Gemma 3, Phi).
    Head,
    /// Each head by itself with parameters of its own (StableLM).
    OwnHead,
    /// All heads together, before they are separated (OLMo 2).
    Projection,
}

/// Norm of queries and keys before rotation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct QkNorm {
    /// What is divided together.
    pub scope: QkNormScope,
    /// The kind.
    pub norm: Norm,
}

impl Activation {
    /// The activation called `name` in a Hugging Face configuration.
    ///
    /// # Errors
    /// `Unknown` with the names that are known.
    pub fn from_name(name: &str) -> Result<Self> {
        Ok(match name {
            "gelu" | "gelu_python" => Self::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Self::GeluTanh,
            "quick_gelu" => Self::QuickGelu,
            "silu" | "swish" => Self::Silu,
            "relu" => Self::Relu,
            _ => {
                let known = ["gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "quick_gelu", "silu", "relu"];
                return Err(Error::Unknown {
                    kind: "activation function in config.json",
                    found: name.into(),
                    nearest: known.map(String::from).to_vec(),
                });
            }
        })
    }
}
