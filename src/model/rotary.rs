//! Settings of rotary position embedding (Su et al. 2021, arXiv:2104.09864) and its scalings for long contexts.

use serde::Serialize;

/// Rotary position embedding, rotating the two halves of a head's first `dims` values against each other.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rotary {
    /// Values of a head that are rotated, an even number; the rest pass as they are.
    pub dims: usize,
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
