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
        && (config.embedding.multiplier == 1.0 || config.family == "gemma3_text");
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
    let unclipped = config.attention.clip_qkv.is_none();
    // Between attention and its own norm Gemma has no named point.
    let attention = (layout != BlockLayout::PreAndPostNorm).then_some(Site::AttnOut);
    let mlp = if layout == BlockLayout::PreAndPostNorm { Site::MlpHookOut } else { Site::MlpOut };
    match (parts, side) {
        ([], Input) => Some(Site::ResidPre),
        ([], Output) => Some(Site::ResidPost),
        // GPT-Neo nests attention in attention.
        ([a, rest @ ..], _) if ATTENTION.contains(a) => match (rest, side) {
            ([] | ["attention"], Input) => (!layout.norms_inputs()).then_some(Site::ResidPre),
            ([] | ["attention"], Output) => attention,
            (["o_proj" | "c_proj" | "dense" | "out_proj"] | ["attention", "out_proj"], Input) => Some(Site::Z),
            (["o_proj" | "c_proj" | "dense" | "out_proj"] | ["attention", "out_proj"], Output) => attention,
            (["q_proj"] | ["attention", "q_proj"], Output) if unclipped => Some(Site::Q),
            (["k_proj"] | ["attention", "k_proj"], Output) if unclipped => Some(Site::K),
            (["v_proj"] | ["attention", "v_proj"], Output) if unclipped => Some(Site::V),
            _ => None,
        },
        (["mlp"], Input) => Some(Site::MlpHookIn),
        (["mlp"], Output) => Some(mlp),
        (["mlp", "gate_proj"], Output) => Some(Site::MlpPre),
        (["mlp", "up_proj"], Output) => Some(Site::MlpPreLinear),
        (["mlp", "c_fc" | "fc1" | "dense_h_to_4h"] | ["fc1"], Output) => Some(Site::MlpPre),
        (["mlp", "down_proj" | "c_proj" | "fc2" | "dense_4h_to_h"] | ["fc2"], Input) => Some(Site::MlpPost),
        (["mlp", "down_proj" | "c_proj" | "fc2" | "dense_4h_to_h"] | ["fc2"], Output) => Some(mlp),
        ([norm], _) => norm_site(norm, side, layout),
        _ => None,
    }
}

fn norm_site(norm: &str, side: Side, layout: BlockLayout) -> Option<Site> {
    use BlockLayout::{OutputNorm, PreAndPostNorm, StreamNorm};
    use Side::{Input, Output};
    match (norm, layout, side) {
        ("post_attention_layernorm", PreAndPostNorm, Output) => Some(Site::AttnOut),
        ("post_attention_layernorm", OutputNorm, Input) => Some(Site::AttnOut),
        ("post_attention_layernorm", OutputNorm, Output) => Some(Site::AttnAdded),
        ("post_feedforward_layernorm", PreAndPostNorm, Input) => Some(Site::MlpHookOut),
        ("post_feedforward_layernorm", PreAndPostNorm, Output) => Some(Site::MlpOut),
        ("post_feedforward_layernorm", OutputNorm, Input) => Some(Site::MlpOut),
        ("post_feedforward_layernorm", OutputNorm, Output) => Some(Site::MlpAdded),
        ("self_attn_layer_norm", StreamNorm, Output) => Some(Site::ResidMid),
        ("final_layer_norm", StreamNorm, Output) => Some(Site::ResidPost),
        (_, OutputNorm | StreamNorm, _) => None,
        ("input_layernorm" | "ln_1" | "self_attn_layer_norm" | "ln_attn", _, Input) => Some(Site::ResidPre),
        ("pre_feedforward_layernorm", PreAndPostNorm, Input) => Some(Site::ResidMid),
        ("pre_feedforward_layernorm", PreAndPostNorm, Output) => Some(Site::MlpHookIn),
        (_, PreAndPostNorm, _) => None,
        ("post_attention_layernorm" | "ln_2" | "final_layer_norm" | "ln_mlp", _, Input) => {
            Some(if layout.is_parallel() { Site::ResidPre } else { Site::ResidMid })
        }
        ("post_attention_layernorm" | "ln_2" | "final_layer_norm" | "ln_mlp", _, Output) => Some(Site::MlpHookIn),
        _ => None,
    }
}
