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
mod mixtral;
mod olmo;
mod olmo2;
mod olmoe;
mod opt;
mod phi;
mod phi3;
mod qwen2;
mod qwen2_moe;
mod qwen3;
mod qwen3_moe;
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
    /// A mixture of gated MLPs.
    Experts(ExpertNames),
    /// Gate and up in one tensor, the gate first.
    FusedGate {
        /// Both projections in.
        gate_up: &'static str,
        /// The projection out.
        down: &'static str,
    },
}

/// The names of a mixture of experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertNames {
    /// The projection to the experts' weights.
    pub router: &'static str,
    /// What stands before an expert's number.
    pub experts: &'static str,
    /// Gate, up and down of one expert.
    pub projections: [&'static str; 3],
    /// The shared expert and the projection to its weight.
    pub shared: Option<[&'static str; 2]>,
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
    "mixtral" mixtral::parse,
    "qwen2_moe" qwen2_moe::parse,
    "qwen3_moe" qwen3_moe::parse,
    "olmoe" olmoe::parse,
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
    if fields.get("layer_types").is_some() && config.windows.iter().all(Option::is_none) {
        // Types that do not read the field have layers that are all alike.
        let n_layers = config.n_layers;
        if layers::sliding(&fields, n_layers, |_| false)?.contains(&true) {
            return Err(fields.unsupported("layer_types", "models of this type do not slide"));
        }
    }
    Ok((config.validate()?, names))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn with(model_type: &str, patch: Value) -> Result<(ModelConfig, Names)> {
        let mut config = json!({
            "model_type": model_type, "vocab_size": 8, "hidden_size": 64, "intermediate_size": 8, "ffn_dim": 8,
            "num_hidden_layers": 4, "num_layers": 4, "num_attention_heads": 4, "num_heads": 4,
            "num_key_value_heads": 2, "n_embd": 64, "n_layer": 4, "n_head": 4,
        });
        let object = config.as_object_mut().unwrap();
        object.extend(patch.as_object().unwrap().clone());
        if model_type == "gemma3" {
            let text = json!({"text_config": object});
            object.extend(text.as_object().unwrap().clone());
        }
        parse(&config, Path::new("config.json"))
    }

    #[test]
    fn every_family_parses_from_its_sizes() {
        for family in KNOWN {
            let (config, _) = with(family, json!({})).unwrap_or_else(|e| panic!("{family}: {e}"));
            assert_eq!((config.d_model, config.n_layers, config.n_heads), (64, 4, 4), "{family}");
            assert!(with(family, json!({"pretraining_tp": 2, "attention_dropout": 0.1})).is_ok(), "{family}");
        }
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        let nested = json!({"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4},
                                                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}});
        let (sliding, few, chunked) = (["sliding_attention"; 4], ["full_attention"; 3], ["chunked_attention"; 4]);
        let cases = [
            ("llama", json!({"rope_scaling": {"rope_type": "banana", "factor": 2.0}}), "banana"),
            ("llama", json!({"hidden_act": "banana"}), "banana"),
            ("llama", json!({"quantization_config": {"quant_method": "gptq"}}), "quantization_config"),
            ("llama", json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor"),
            ("llama", json!({"layer_types": sliding}), "layer_types"),
            ("llama", nested, "rope_parameters"),
            ("gpt2", json!({"add_cross_attention": true}), "add_cross_attention"),
            ("gpt_neo", json!({"attention_types": [[["global", "banana"], 2]]}), "banana"),
            ("gpt_neo", json!({"attention_types": [[["global", "local"], 3]]}), "attention_types"),
            ("mistral", json!({"layer_types": sliding}), "layer_types"),
            ("qwen2", json!({"layer_types": sliding}), "sliding_window"),
            ("qwen3", json!({"layer_types": few}), "layer_types"),
            ("gemma2", json!({"layer_types": chunked}), "chunked_attention"),
            ("gemma3_text", json!({"use_bidirectional_attention": true}), "use_bidirectional_attention"),
            ("gemma3_text", json!({"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}), "sliding_attention"),
            (
                "phi3",
                json!({"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}}),
                "factor",
            ),
            ("phi3", json!({"partial_rotary_factor": 0.2}), "rotated"),
            ("falcon", json!({"new_decoder_architecture": true, "parallel_attn": false}), "parallel_attn"),
            ("falcon", json!({"num_ln_in_parallel_attn": 2}), "num_ln_in_parallel_attn"),
            ("falcon", json!({"multi_query": false, "num_kv_heads": 2}), "num_kv_heads"),
            ("smollm3", json!({"no_rope_layers": [1, 0]}), "no_rope_layers"),
            ("starcoder2", json!({"mlp_type": "gated"}), "mlp_type"),
            ("mamba", json!({}), "mamba"),
        ];
        for (family, patch, needle) in cases {
            let error = with(family, patch.clone()).expect_err(&format!("{family} {patch}")).to_string();
            assert!(error.contains(needle), "{family} {patch}: {error}");
        }
    }
}
