//! Hugging Face module names as spellings of hook points: `model.layers.6` is what that module outputs.
//!
//! sparsify, delphi, `dictionary_learning` and nnsight name activations by module; Gemma Scope 2 adds `.output`. Which
//! point a module's value is depends on the layout: `post_attention_layernorm` feeds the MLP in Llama and closes
//! attention in Gemma 2. A module whose value has no TransformerLens name is no spelling of anything.

use super::config::{BlockLayout, ModelConfig};
use super::hook::{HookPoint, Site};

/// Modules that only contain others.
const CONTAINERS: [&str; 5] = ["model", "transformer", "gpt_neox", "decoder", "language_model"];
const ATTENTION: [&str; 4] = ["self_attn", "attn", "attention", "self_attention"];

/// `[container.]layers.N`, whose meaning is the same in every model.
pub(super) fn block_output(name: &str) -> Option<HookPoint> {
    match in_block(&parts(name))? {
        (layer, []) => Some(HookPoint::block(layer, Site::ResidPost)),
        _ => None,
    }
}

/// The point that `name` denotes in a model.
pub(super) fn point(name: &str, config: &ModelConfig) -> Option<HookPoint> {
    let (name, input) = match name.rsplit_once('.') {
        Some((module, "input")) => (module, true),
        Some((module, "output")) => (module, false),
        _ => (name, false),
    };
    let parts = parts(name);
    let side = if input { Side::Input } else { Side::Output };
    match in_block(&parts) {
        Some((layer, rest)) => Some(HookPoint::block(layer, block_site(rest, side, config)?)),
        None => outside(&parts, side, config),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Input,
    Output,
}

/// The parts of a module name without its containers.
fn parts(name: &str) -> Vec<&str> {
    name.split('.').skip_while(|part| CONTAINERS.contains(part)).collect()
}

/// Layer number and what stands after it.
fn in_block<'a, 'b>(parts: &'b [&'a str]) -> Option<(usize, &'b [&'a str])> {
    match parts {
        ["layers" | "h", layer, rest @ ..] => Some((layer.parse().ok()?, rest)),
        _ => None,
    }
}

fn outside(parts: &[&str], side: Side, config: &ModelConfig) -> Option<HookPoint> {
    // Gemma 3's embedding scales by itself; elsewhere a factor comes after the module.
    let plain = config.embedding.width == config.d_model
        && ((config.embedding.multiplier - 1.0).abs() < f64::EPSILON || config.family == "gemma3_text");
    let site = match (parts, side) {
        (["embed_tokens" | "wte" | "embed_in" | "word_embeddings"], Side::Output) if plain => Site::Embed,
        (["wpe" | "embed_positions"], Side::Output) => Site::PosEmbed,
        (["norm" | "ln_f" | "final_layer_norm" | "final_layernorm"], Side::Input) => {
            return Some(HookPoint::block(config.n_layers - 1, Site::ResidPost));
        }
        (["norm" | "ln_f" | "final_layer_norm" | "final_layernorm"], Side::Output) => Site::UnembedIn,
        (["lm_head" | "embed_out"], Side::Input) if config.embedding.width == config.d_model => Site::UnembedIn,
        (["lm_head" | "embed_out"], Side::Output) => Site::UnembedOut,
        _ => return None,
    };
    Some(HookPoint::global(site))
}

fn block_site(parts: &[&str], side: Side, config: &ModelConfig) -> Option<Site> {
    use Side::{Input, Output};
    let layout = config.layout;
    let mlp = if layout == BlockLayout::PreAndPostNorm { Site::MlpHookOut } else { Site::MlpOut };
    match (parts, side) {
        ([], Input) => Some(Site::ResidPre),
        ([], Output) => Some(Site::ResidPost),
        // GPT-Neo nests attention in attention.
        ([outer, "attention", rest @ ..] | [outer, rest @ ..], _) if ATTENTION.contains(outer) => {
            attention_site(rest, side, config)
        }
        (["mlp"], Input) => Some(Site::MlpHookIn),
        (["mlp", "up_proj"], Output) => Some(Site::MlpPreLinear),
        (["mlp", "gate_proj" | "c_fc" | "fc1" | "dense_h_to_4h"] | ["fc1"], Output) => Some(Site::MlpPre),
        (["mlp", "down_proj" | "c_proj" | "fc2" | "dense_4h_to_h"] | ["fc2"], Input) => Some(Site::MlpPost),
        (["mlp" | "fc2"] | ["mlp", "down_proj" | "c_proj" | "fc2" | "dense_4h_to_h"], Output) => Some(mlp),
        ([norm], _) => norm_site(norm, side, layout),
        _ => None,
    }
}

/// `parts` inside the attention module.
fn attention_site(parts: &[&str], side: Side, config: &ModelConfig) -> Option<Site> {
    use Side::{Input, Output};
    // The hooks are behind the clipping, which is outside the projections.
    let unclipped = config.attention.clip_qkv.is_none();
    match (parts, side) {
        ([], Input) => (!config.layout.norms_inputs()).then_some(Site::ResidPre),
        (["o_proj" | "c_proj" | "dense" | "out_proj"], Input) => Some(Site::Z),
        // Between attention and its own norm Gemma has no named point.
        ([] | ["o_proj" | "c_proj" | "dense" | "out_proj"], Output) => {
            (config.layout != BlockLayout::PreAndPostNorm).then_some(Site::AttnOut)
        }
        (["q_proj"], Output) if unclipped => Some(Site::Q),
        (["k_proj"], Output) if unclipped => Some(Site::K),
        (["v_proj"], Output) if unclipped => Some(Site::V),
        _ => None,
    }
}

fn norm_site(norm: &str, side: Side, layout: BlockLayout) -> Option<Site> {
    match layout {
        BlockLayout::PreNorm | BlockLayout::Parallel | BlockLayout::ParallelSharedNorm => match (norm, side) {
            ("input_layernorm" | "ln_1" | "self_attn_layer_norm" | "ln_attn", Side::Input) => Some(Site::ResidPre),
            ("post_attention_layernorm" | "ln_2" | "final_layer_norm" | "ln_mlp", Side::Input) => {
                Some(if layout.is_parallel() { Site::ResidPre } else { Site::ResidMid })
            }
            ("post_attention_layernorm" | "ln_2" | "final_layer_norm" | "ln_mlp", Side::Output) => {
                Some(Site::MlpHookIn)
            }
            _ => None,
        },
        BlockLayout::PreAndPostNorm => match (norm, side) {
            ("input_layernorm", Side::Input) => Some(Site::ResidPre),
            ("post_attention_layernorm", Side::Output) => Some(Site::AttnOut),
            ("pre_feedforward_layernorm", Side::Input) => Some(Site::ResidMid),
            ("pre_feedforward_layernorm", Side::Output) => Some(Site::MlpHookIn),
            ("post_feedforward_layernorm", Side::Input) => Some(Site::MlpHookOut),
            ("post_feedforward_layernorm", Side::Output) => Some(Site::MlpOut),
            _ => None,
        },
        BlockLayout::OutputNorm => match (norm, side) {
            ("post_attention_layernorm", Side::Input) => Some(Site::AttnOut),
            ("post_attention_layernorm", Side::Output) => Some(Site::AttnAdded),
            ("post_feedforward_layernorm", Side::Input) => Some(Site::MlpOut),
            ("post_feedforward_layernorm", Side::Output) => Some(Site::MlpAdded),
            _ => None,
        },
        BlockLayout::StreamNorm => match (norm, side) {
            ("self_attn_layer_norm", Side::Output) => Some(Site::ResidMid),
            ("final_layer_norm", Side::Output) => Some(Site::ResidPost),
            _ => None,
        },
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use super::*;
    use crate::model::family;

    fn resolved(config: Value, name: &str) -> Option<String> {
        let (config, _) = family::parse(&config, Path::new("config.json")).unwrap();
        HookPoint::resolve(name, &config).ok().map(|point| point.to_string())
    }

    fn sized(model_type: &str) -> Value {
        json!({"model_type": model_type, "vocab_size": 8, "hidden_size": 32, "intermediate_size": 8, "ffn_dim": 8,
               "num_hidden_layers": 8, "num_layers": 8, "num_attention_heads": 2, "num_heads": 2, "num_key_value_heads": 1,
               "n_embd": 32, "n_layer": 8, "n_head": 2})
    }

    #[test]
    fn a_block_is_called_alike_in_all_families() {
        let names = [
            ("llama", "model.layers.6"),
            ("gpt2", "transformer.h.6"),
            ("gpt2", "h.6"),
            ("gpt_neox", "gpt_neox.layers.6.output"),
            ("opt", "model.decoder.layers.6"),
            ("gemma3_text", "model.language_model.layers.6"),
            ("gemma2", "layers.6"),
        ];
        for (family, name) in names {
            assert_eq!(resolved(sized(family), name).unwrap(), "blocks.6.hook_resid_post", "{name}");
            assert_eq!(name.trim_end_matches(".output").parse::<HookPoint>().unwrap().layer, Some(6));
        }
    }

    #[test]
    fn one_module_name_is_another_point_in_another_layout() {
        let name = "model.layers.3.post_attention_layernorm";
        let points = [
            ("llama", "blocks.3.mlp.hook_in"),
            ("gemma2", "blocks.3.hook_attn_out"),
            ("olmo2", "blocks.3.hook_attn_added"),
        ];
        for (family, point) in points {
            assert_eq!(resolved(sized(family), name).unwrap(), point, "{family}");
        }
        assert_eq!(resolved(sized("gemma2"), "model.layers.3.mlp").unwrap(), "blocks.3.mlp.hook_out");
        assert_eq!(resolved(sized("llama"), "model.layers.3.mlp").unwrap(), "blocks.3.hook_mlp_out");
        assert_eq!(resolved(sized("llama"), "model.layers.3.self_attn").unwrap(), "blocks.3.hook_attn_out");
        assert_eq!(resolved(sized("gemma2"), "model.layers.3.self_attn"), None);
    }

    #[test]
    fn inputs_have_names_of_their_own() {
        let points = [
            ("llama", "model.layers.3.self_attn.o_proj.input", "blocks.3.attn.hook_z"),
            ("gpt_neo", "transformer.h.3.attn.attention.out_proj.input", "blocks.3.attn.hook_z"),
            ("opt", "model.decoder.layers.3.fc2.input", "blocks.3.mlp.hook_post"),
            ("gemma2", "model.layers.3.pre_feedforward_layernorm.output", "blocks.3.mlp.hook_in"),
            ("gpt2", "transformer.ln_f.input", "blocks.7.hook_resid_post"),
            ("llama", "model.norm", "unembed.hook_in"),
        ];
        for (family, name, point) in points {
            assert_eq!(resolved(sized(family), name).unwrap(), point, "{name}");
        }
        for name in ["model.layers.3.banana", "banana.layers.3", "model.layers.8", "model.layers.3.mlp.act_fn"] {
            assert_eq!(resolved(sized("llama"), name), None, "{name}");
        }
    }
}
