//! One file a family: `config.json` to [`ModelConfig`], checkpoint names to ours. No maths.

use std::path::Path;

use serde_json::Value;

use crate::base::nearest::nearest;
use crate::base::{Error, Result};

use super::config::ModelConfig;
use super::weights::Weights;

mod falcon;
mod fields;
mod gemma;
mod gemma2;
mod gemma3;
mod gpt2;
mod gpt_neo;
mod gpt_neox;
mod granite;
mod layers;
mod llama;
mod llama_like;
mod mistral;
mod olmo;
mod olmo2;
mod opt;
mod phi;
mod phi3;
mod qwen2;
mod qwen3;
mod rope;
mod smollm3;
mod stablelm;
mod starcoder2;

use fields::Fields;

/// How a checkpoint stores linear weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinearOrder {
    /// `[out, in]`, as `torch.nn.Linear`.
    OutIn,
    /// `[in, out]`, as GPT-2's `Conv1D`.
    InOut,
}

/// The order of a fused query, key and value projection's outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FusedOrder {
    /// All queries, then all keys, then all values.
    Blocks,
    /// Per key head: the query heads of its group, the key head, the value head.
    Groups,
}

/// How a checkpoint stores the query, key and value projections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Qkv {
    /// Three tensors.
    Separate([&'static str; 3]),
    /// One tensor.
    Fused(&'static str, FusedOrder),
}

/// How a checkpoint stores the MLP's projections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MlpNames {
    /// In and out.
    Plain {
        /// The projection in.
        up: &'static str,
        /// The projection out.
        down: &'static str,
    },
    /// Gate, up and down.
    Gated {
        /// The projection under the nonlinearity.
        gate: &'static str,
        /// The linear branch.
        up: &'static str,
        /// The projection out.
        down: &'static str,
    },
    /// Gate and up in one tensor, the gate first.
    FusedGate {
        /// Both projections in.
        gate_up: &'static str,
        /// The projection out.
        down: &'static str,
    },
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
    /// The block's first norm.
    pub ln1: &'static str,
    /// Norm after attention, besides `ln1`.
    pub ln1_post: Option<&'static str>,
    /// Query, key and value projections.
    pub qkv: Qkv,
    /// Norms of queries and keys.
    pub qk_norm: Option<[&'static str; 2]>,
    /// Attention's output projection.
    pub attention_out: &'static str,
    /// The block's second norm; none where it shares `ln1`.
    pub ln2: Option<&'static str>,
    /// Norm after the MLP, besides `ln2`.
    pub ln2_post: Option<&'static str>,
    /// The MLP.
    pub mlp: MlpNames,
    /// Final norm.
    pub ln_final: &'static str,
    /// The head, when it is not tied: full names without `.weight`, the first that fits is used.
    pub unembed: &'static [&'static str],
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

macro_rules! families {
    ($($name:literal $parse:path,)*) => {
        /// The `model_type`s that can be opened.
        pub const KNOWN: &[&str] = &[$($name),*];

        fn parser(model_type: &str) -> Option<fn(&Fields<'_>) -> Result<(ModelConfig, Names)>> {
            match model_type {
                $($name => Some($parse),)*
                _ => None,
            }
        }
    };
}

families! {
    "gpt2" gpt2::parse,
    "gpt_neo" gpt_neo::parse,
    "gpt_neox" gpt_neox::parse,
    "opt" opt::parse,
    "llama" llama::parse,
    "mistral" mistral::parse,
    "qwen2" qwen2::parse,
    "qwen3" qwen3::parse,
    "gemma" gemma::parse,
    "gemma2" gemma2::parse,
    "gemma3" gemma3::parse_multimodal,
    "gemma3_text" gemma3::parse,
    "phi" phi::parse,
    "phi3" phi3::parse,
    "olmo" olmo::parse,
    "olmo2" olmo2::parse,
    "falcon" falcon::parse,
    "smollm3" smollm3::parse,
    "stablelm" stablelm::parse,
    "starcoder2" starcoder2::parse,
    "granite" granite::parse,
}

/// Reads a parsed `config.json`. `path` is named in errors.
///
/// # Errors
/// `Unknown` for a `model_type` that cannot be opened, `Malformed` for missing or ill-typed fields, `Unsupported`
/// for a setting whose meaning is not known.
pub fn parse(config: &Value, path: &Path) -> Result<(ModelConfig, Names)> {
    let fields = Fields::new(config, path)?;
    let model_type = fields.string("model_type")?;
    let Some(parse) = parser(&model_type) else {
        return Err(Error::Unknown {
            kind: "model_type in config.json",
            nearest: nearest(&model_type, KNOWN, KNOWN.len()),
            found: model_type,
        });
    };
    fields.refuse("quantization_config", "its weights are stored in another form than number by number")?;
    if fields.bool_or("add_cross_attention", false)? {
        fields.refuse(
            "add_cross_attention",
            "the model attends to an encoder, which a decoder-only pass does not have",
        )?;
    }
    let (config, names) = parse(&fields)?;
    Ok((config.validate()?, names))
}
