//! One file a family: `config.json` to [`ModelConfig`], checkpoint names to ours. No maths.

use std::path::Path;

use serde_json::Value;

use crate::base::{Error, Result};

use super::config::ModelConfig;
use super::weights::Weights;

mod fields;
mod gpt2;
mod llama;
mod rope;

use fields::Fields;

/// How a checkpoint stores linear weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinearOrder {
    /// `[out, in]`, as `torch.nn.Linear`.
    OutIn,
    /// `[in, out]`, as GPT-2's `Conv1D`.
    InOut,
}

/// How a checkpoint stores the query, key and value projections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Qkv {
    /// Three tensors.
    Separate([&'static str; 3]),
    /// One tensor: all queries, then all keys, then all values.
    Fused(&'static str),
}

/// The names of a family's tensors. Names inside a block follow `block` and the layer number.
#[derive(Debug, Clone, Copy)]
pub struct Names {
    /// What may stand before every name but the head's; the first that fits is used.
    pub prefixes: &'static [&'static str],
    /// Token embedding.
    pub embed: &'static str,
    /// Learned positions.
    pub pos_embed: Option<&'static str>,
    /// What stands before a layer number, with its dot.
    pub block: &'static str,
    /// Norm before attention.
    pub ln1: &'static str,
    /// Query, key and value projections.
    pub qkv: Qkv,
    /// Attention's output projection.
    pub attention_out: &'static str,
    /// Norm before the MLP.
    pub ln2: &'static str,
    /// Gate projection of gated MLPs.
    pub mlp_gate: Option<&'static str>,
    /// Up projection, or the only input projection.
    pub mlp_up: &'static str,
    /// Down projection.
    pub mlp_down: &'static str,
    /// Final norm.
    pub ln_final: &'static str,
    /// The head, when it is not tied; full name with `.weight`.
    pub unembed: &'static str,
    /// Order of linear weights.
    pub linear_order: LinearOrder,
}

impl Names {
    /// The prefix under which `weights` holds the embedding; the first one when none fits, for the error message.
    pub(super) fn prefix_in(&self, weights: &Weights) -> &'static str {
        let fits = |prefix: &&&str| weights.contains(&format!("{prefix}{}", self.embed));
        self.prefixes.iter().find(fits).or(self.prefixes.first()).copied().unwrap_or_default()
    }
}

/// The `model_type`s that can be opened.
pub const KNOWN: &[&str] = &["gpt2", "llama"];

/// Reads a parsed `config.json`. `path` is named in errors.
///
/// # Errors
/// `Unknown` for a `model_type` that cannot be opened, `Malformed` for missing or ill-typed fields, `Unsupported`
/// for a setting whose meaning is not known.
pub fn parse(config: &Value, path: &Path) -> Result<(ModelConfig, Names)> {
    let fields = Fields::new(config, path)?;
    let model_type = fields.string("model_type")?;
    let (config, names) = match model_type.as_str() {
        "gpt2" => gpt2::parse(&fields)?,
        "llama" => llama::parse(&fields)?,
        _ => {
            return Err(Error::Unknown {
                kind: "model_type in config.json",
                found: model_type,
                nearest: KNOWN.iter().map(|&k| k.to_owned()).collect(),
            });
        }
    };
    Ok((config.validate()?, names))
}
