//! `docs/hooks.md`: the page about all hook points, written from the table of sites and from the rules for module
//! names, so that it cannot say anything else than the program does.

use std::fmt::Write;

use super::config::{Activation, Attention, BlockLayout, Embedding, Mlp, ModelConfig, Norm, Position};
use super::hook::{HookPoint, Scope, Site};
use super::rotary::{RopeScaling, Rotary};

/// The command that writes the page.
pub const COMMAND: &str = "cargo run --example hook_page > docs/hooks.md";

/// The letters of shapes, in the order of the crate documentation.
pub const LETTERS: [(&str, &str); 11] = [
    ("b", "sequences of the batch"),
    ("s", "query positions"),
    ("S", "key positions: `s`, and the cached ones before them while generating"),
    ("d", "width of the residual stream, `d_model`"),
    ("m", "inner width of the MLP, `d_mlp`"),
    ("H", "attention heads"),
    ("K", "key-value heads; fewer than `H` with grouped-query attention"),
    ("h", "width of one head, `d_head`"),
    ("E", "experts of a block, in mixtures"),
    ("k", "experts that a position goes through"),
    ("v", "vocabulary"),
];

/// The block that examples name, and the number of blocks in the example models.
const EXAMPLE_LAYER: usize = 6;
const EXAMPLE_LAYERS: usize = 8;

/// Module names below the containers (`model.`, `transformer.`, `gpt_neox.`, …) in Llama's spelling.
const MODULES: [&str; 26] = [
    "layers.6.input",
    "layers.6",
    "layers.6.input_layernorm.input",
    "layers.6.self_attn.input",
    "layers.6.self_attn.q_proj",
    "layers.6.self_attn.k_proj",
    "layers.6.self_attn.v_proj",
    "layers.6.self_attn.o_proj.input",
    "layers.6.self_attn.o_proj",
    "layers.6.self_attn",
    "layers.6.post_attention_layernorm.input",
    "layers.6.post_attention_layernorm",
    "layers.6.pre_feedforward_layernorm.input",
    "layers.6.pre_feedforward_layernorm",
    "layers.6.mlp.input",
    "layers.6.mlp.gate_proj",
    "layers.6.mlp.up_proj",
    "layers.6.mlp.down_proj.input",
    "layers.6.mlp.down_proj",
    "layers.6.mlp",
    "layers.6.post_feedforward_layernorm.input",
    "layers.6.post_feedforward_layernorm",
    "norm.input",
    "norm",
    "lm_head.input",
    "lm_head",
];

/// Block layouts by the families that have them.
const LAYOUTS: [(&str, BlockLayout); 4] = [
    ("Llama, Mistral, Qwen, …", BlockLayout::PreNorm),
    ("Gemma 2 and 3", BlockLayout::PreAndPostNorm),
    ("OLMo 2", BlockLayout::OutputNorm),
    ("GPT-NeoX, Phi, …", BlockLayout::Parallel),
];

const INTRODUCTION: &str = "\
A hook point is a place in the forward pass that can be captured (`run`, `cache`) or changed (`steer`, and plans of the
library). Names and meanings are TransformerLens' (`HookedTransformer` 3, weights as they are in the checkpoint, nothing
folded or centred), so a name means the same tensor in both programs. Points of a block are written with its number
before them: `blocks.6.hook_resid_post`. Points that some models lack say so in the column “fires in”; none
needs a switch.

`mechinterp info MODEL --hooks` prints this table for one model, with its numbers in place of the letters. A hook that a
model lacks, or a misspelt one, is an error before anything is computed, with the nearest names that exist.
";

const RELATIONS: &str = "\
- `blocks.{i+1}.hook_resid_pre` = `blocks.{i}.hook_resid_post`, to the bit.
- `hook_resid_mid` = `hook_resid_pre` + `hook_attn_added`, and `hook_resid_post` = `hook_resid_mid` + `hook_mlp_added`;
  in parallel blocks `hook_resid_post` = `hook_resid_pre` + `hook_attn_added` + `hook_mlp_added`. `hook_attn_added` is
  `hook_attn_out` and `hook_mlp_added` is `hook_mlp_out`, but for OLMo 2, whose norms come after those two, and for
  Granite, which multiplies what is added. OPT-350m, which normalises the stream itself, is outside these sums.
- `hook_normalized` × gain (+ bias) is what the norm hands on; `hook_scale` is what it divided by.
- `attn.hook_pattern` = softmax(`attn.hook_attn_scores`); `attn.hook_z` = `attn.hook_pattern` × `attn.hook_v`.
- The sum of `attn.hook_result` over heads, and the output bias, is attention's output before any norm.
- `mlp.hook_post` = activation(`mlp.hook_pre`), times `mlp.hook_pre_linear` in gated MLPs.
";

/// The whole page, as Markdown.
pub fn markdown() -> String {
    let mut page = String::from("# Hook points\n\n");
    let _ = writeln!(page, "<!-- Written by `{COMMAND}`; a test compares it with the program. -->\n");
    page += INTRODUCTION;
    page += "\n| letter | axis |\n| --- | --- |\n";
    for (letter, axis) in LETTERS {
        let _ = writeln!(page, "| `{letter}` | {axis} |");
    }
    page += "\n`run --out` writes every point as `[prompts, positions, …]` in f32: the norms of single heads, whose first \
             axis is `b·s·H`, come out as\n`[prompts, positions, H, …]`, and the choice of experts as `[prompts, \
             positions, …]`. `cache` stores everything after `s` flattened.\n";
    let scopes = [
        ("Before the blocks", Scope::Embedding),
        ("In every block, after `blocks.N.`", Scope::Block),
        ("After the blocks", Scope::Final),
    ];
    for (title, scope) in scopes {
        let _ = writeln!(page, "\n## {title}\n");
        page += "| name | shape | what it is | fires in | elsewhere |\n| --- | --- | --- | --- | --- |\n";
        for &site in Site::ALL.iter().filter(|site| site.scope() == scope) {
            let condition = if site.condition().is_empty() { "all models" } else { site.condition() };
            let (name, axes, meaning, note) = (site.name(), site.axes(), site.meaning(), elsewhere(site));
            let _ = writeln!(page, "| `{name}` | `{axes}` | {meaning} | {condition} | {note} |");
        }
    }
    let _ = write!(page, "\n## What follows from what\n\n{RELATIONS}");
    page += "\n## Hugging Face module names\n\n";
    page += "A module name is a spelling of the point whose value the module returns, or takes where the name ends in \
             `.input`; `.output` may be written too.\nContainers before `layers` may be left out or be those of any \
             family: `model.layers.6`, `transformer.h.6`, `gpt_neox.layers.6`. Families' own\nnames for the parts \
             (`attn`, `attention`, `c_proj`, `dense`, `fc1`, …) are known as well.\n\n";
    module_table(&mut page);
    page
}

/// What TransformerLens, SAELens and circuit-tracer do differently, or use the point for.
const fn elsewhere(site: Site) -> &'static str {
    match site {
        Site::Tokens => "TransformerLens: with `use_hook_tokens` only",
        Site::PosEmbed => "TransformerLens has it in alibi models too, where it never fires",
        Site::AttnIn => "TransformerLens: with `use_attn_in` only",
        Site::QInput | Site::KInput | Site::VInput => "TransformerLens: with `use_split_qkv_input` only",
        Site::ResidPre => "SAELens: `gpt2-small-res-jb`",
        Site::K | Site::V => "grouped heads are not repeated, as in TransformerLens",
        Site::Z => "SAELens: attention SAEs read it with heads flattened",
        Site::AttnResult => "TransformerLens: with `use_attn_result` only",
        Site::AttnAdded | Site::MlpAdded => "not in TransformerLens",
        Site::ResidMid => "absent from TransformerLens' parallel blocks too",
        Site::MlpIn => "TransformerLens: with `use_hook_mlp_in` only; TransformerBridge means `mlp.hook_in` by it",
        Site::MlpHookIn => "SAELens, circuit-tracer: what transcoders read",
        Site::MlpHookOut => "circuit-tracer: what transcoders write",
        Site::MlpOut => "SAELens: MLP SAEs",
        Site::ResidPost => "where most published SAEs read",
        Site::UnembedIn | Site::UnembedOut => "new in TransformerLens 3",
        _ => "",
    }
}

fn module_table(page: &mut String) {
    let heads: Vec<&str> = LAYOUTS.iter().map(|(families, _)| *families).collect();
    let _ = writeln!(page, "| module | {} |", heads.join(" | "));
    let _ = writeln!(page, "| --- |{}", " --- |".repeat(heads.len()));
    for module in MODULES {
        let points = LAYOUTS.map(|(_, layout)| match HookPoint::resolve(module, &example(layout)) {
            Ok(point) => format!("`{}`", at_example(point)),
            Err(_) => "–".into(),
        });
        let _ = writeln!(page, "| `{}` | {} |", module.replace(".6", ".N"), points.join(" | "));
    }
}

/// The point's name with `N` for the example's block.
fn at_example(point: HookPoint) -> String {
    let name = point.site.name();
    match point.layer {
        None => name.into(),
        Some(EXAMPLE_LAYER) => format!("blocks.N.{name}"),
        Some(_) => format!("blocks.LAST.{name}"),
    }
}

/// A gated rotary model with this layout.
fn example(layout: BlockLayout) -> ModelConfig {
    let rotary = Rotary { dims: 2, theta: 1e4, scaling: RopeScaling::None };
    ModelConfig {
        family: "llama",
        d_model: 4,
        n_layers: EXAMPLE_LAYERS,
        n_heads: 2,
        n_key_value_heads: 2,
        d_head: 2,
        vocab_size: 1,
        context_length: 1,
        norm: Norm::Rms { eps: 1e-6 },
        layout,
        final_norm: true,
        position: Position::rotary(rotary, EXAMPLE_LAYERS),
        windows: vec![None; EXAMPLE_LAYERS],
        attention: Attention::plain(2),
        mlp: Mlp { d_mlp: 4, gated: true, activation: Activation::Silu, bias: false, experts: None },
        embedding: Embedding::plain(4),
        residual_multiplier: 1.0,
        bos_token_id: None,
        eos_token_ids: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_site_is_on_the_page_with_a_whole_sentence() {
        let page = markdown();
        for &site in Site::ALL {
            assert!(page.contains(&format!("| `{}` | `{}` |", site.name(), site.axes())), "{site:?}");
            let meaning = site.meaning();
            assert!(meaning.ends_with('.') && !meaning.contains("  ") && !meaning.contains('|'), "{site:?}: {meaning}");
        }
        for letter in Site::ALL.iter().flat_map(|site| site.axes().to_string().chars().collect::<Vec<_>>()) {
            let known = LETTERS.iter().any(|(l, _)| l.starts_with(letter));
            assert!(known || "[], ·1".contains(letter), "the letter {letter} is not explained");
        }
    }

    #[test]
    fn every_module_name_on_the_page_means_something_somewhere() {
        for module in MODULES {
            let known = LAYOUTS.iter().filter(|(_, layout)| HookPoint::resolve(module, &example(*layout)).is_ok());
            assert!(known.count() > 0, "{module}");
        }
    }
}
