//! Our forward pass against transformers', for every family.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::Tensor;
use mechinterp::model::family::KNOWN;
use mechinterp::model::{HookPlan, HookPoint, Site};
use serde_json::{Value, json};

use crate::close::Close;
use crate::golden::{Golden, config_json, names, open_with};

/// The families that must open.
const FAMILIES: [&str; 25] = [
    "falcon",
    "gemma",
    "gemma2",
    "gemma3",
    "gemma3_text",
    "gpt2",
    "gpt_neo",
    "gpt_neox",
    "granite",
    "llama",
    "mistral",
    "mixtral",
    "olmo",
    "olmo2",
    "olmoe",
    "opt",
    "phi",
    "phi3",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_moe",
    "smollm3",
    "stablelm",
    "starcoder2",
];

/// Exact and tanh GELU differ by 1e-4 to 9e-4 of the largest logit on models of this size.
const TOLERANCE: f64 = 2e-5;

#[test]
fn every_family_has_two_checkpoints() {
    let mut checkpoints: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for name in names() {
        let family = config_json(&name)["model_type"].as_str().unwrap().to_owned();
        checkpoints.entry(family).or_default().push(name);
    }
    let found: Vec<&str> = checkpoints.keys().map(String::as_str).collect();
    assert_eq!(found, FAMILIES, "families with goldens");
    assert_eq!(KNOWN.iter().copied().collect::<BTreeSet<_>>(), BTreeSet::from(FAMILIES), "families that open");
    let few: Vec<_> = checkpoints.iter().filter(|(_, names)| names.len() < 2).collect();
    assert!(few.is_empty(), "{few:?}");
}

#[test]
fn logits_and_every_hook_equal_transformers() {
    let mut wrong = Vec::new();
    for name in names() {
        let golden = Golden::open(&name);
        let run = golden.run_everything();
        let mut compare = |what: &str, ours: &Tensor, reference: &Tensor| {
            let distance = Close::distance(&format!("{name} {what}"), ours, reference);
            if distance > TOLERANCE {
                wrong.push(format!("{name} {what}: off by {distance:.1e} of the largest value"));
            }
        };
        compare("logits", run.logits().unwrap(), &golden.logits);
        for (hook, reference) in &golden.values {
            let point = HookPoint::resolve(hook, golden.model.config()).unwrap_or_else(|e| panic!("{name}: {e}"));
            compare(hook, run.captured(point).unwrap(), reference);
        }
        // What transformers never holds as a value of its own: the identities test these.
        let seen = |point: &HookPoint| !matches!(point.site, Site::AttnScores | Site::AttnResult);
        for point in HookPoint::all(golden.model.config()).into_iter().filter(seen) {
            assert!(golden.values.contains_key(&point.to_string()), "{name}: no golden value of {point}");
        }
    }
    assert!(wrong.is_empty(), "{} values differ:\n{}", wrong.len(), wrong.join("\n"));
}

/// Each of these settings changes what a checkpoint computes, so that a parser that overlooked it would be noticed.
#[test]
fn a_wrong_setting_is_noticed() {
    let wrong: &[(&str, &str, Value)] = &[
        ("gpt2-scaled", "/scale_attn_by_inverse_layer_idx", json!(false)),
        ("gpt_neo", "/activation_function", json!("gelu")),
        ("gpt_neo-untied", "/attention_types", json!([[["global"], 1], [["local"], 2]])),
        ("gpt_neo-untied", "/window_size", json!(5)),
        ("gpt_neox", "/hidden_act", json!("gelu_new")),
        ("gpt_neox", "/rotary_pct", json!(0.5)),
        ("gpt_neox-sequential", "/use_parallel_residual", json!(true)),
        ("opt-350m", "/activation_function", json!("gelu_new")),
        ("llama-linear", "/rope_scaling/factor", json!(3.0)),
        ("llama-dynamic", "/rope_scaling/factor", json!(3.0)),
        ("llama-llama3", "/rope_scaling/low_freq_factor", json!(2.0)),
        ("llama-v5", "/rope_parameters/high_freq_factor", json!(3.0)),
        ("llama-yarn", "/rope_scaling/beta_fast", json!(0.5)),
        ("llama-longrope", "/rope_scaling/long_factor", json!([2.0, 3.0, 4.0, 6.0])),
        ("mistral", "/sliding_window", json!(6)),
        ("qwen2", "/max_window_layers", json!(2)),
        ("qwen2-yarn", "/use_sliding_window", json!(true)),
        ("qwen2-yarn", "/rope_scaling/factor", json!(4.0)),
        ("qwen3-window", "/layer_types", json!(["full_attention", "sliding_attention"])),
        ("gemma-heads", "/hidden_activation", json!("gelu")),
        ("gemma2", "/attn_logit_softcapping", json!(3.1)),
        ("gemma2", "/final_logit_softcapping", json!(4.1)),
        ("gemma2", "/query_pre_attn_scalar", json!(8)),
        ("gemma2", "/sliding_window", json!(6)),
        ("gemma3_text", "/rope_local_base_freq", json!(11_000.0)),
        ("gemma3_text", "/rope_scaling/factor", json!(4.0)),
        ("gemma3_text", "/sliding_window_pattern", json!(5)),
        ("gemma3_text-v5", "/rope_parameters/sliding_attention/rope_theta", json!(60.0)),
        ("gemma3", "/text_config/sliding_window", json!(6)),
        ("phi-normed", "/rope_parameters/partial_rotary_factor", json!(0.6)),
        ("phi3-long", "/original_max_position_embeddings", json!(14)),
        ("phi3-short", "/original_max_position_embeddings", json!(19)),
        ("olmo", "/clip_qkv", json!(0.9)),
        ("olmo2-grouped", "/rope_scaling/factor", json!(3.0)),
        ("falcon", "/rope_theta", json!(9_000.0)),
        ("falcon-one-norm", "/activation", json!("gelu")),
        ("smollm3", "/no_rope_layer_interval", json!(3)),
        ("smollm3-window", "/no_rope_layers", json!([1, 0, 1])),
        ("smollm3-window", "/rope_scaling/truncate", json!(true)),
        ("smollm3-window", "/rope_scaling/mscale", json!(1.3)),
        ("stablelm-parallel", "/partial_rotary_factor", json!(0.4)),
        ("starcoder2", "/sliding_window", json!(4)),
        ("starcoder2-bare", "/hidden_act", json!("gelu_pytorch_tanh")),
        ("granite", "/residual_multiplier", json!(0.41)),
        ("granite", "/logits_scaling", json!(2.6)),
        ("granite", "/embedding_multiplier", json!(3.1)),
        ("granite", "/attention_multiplier", json!(0.31)),
        ("granite-biased", "/rope_scaling/attention_factor", json!(1.31)),
    ];
    let dir = tempfile::tempdir().unwrap();
    for (name, field, value) in wrong {
        let mut config = config_json(name);
        let (parent, key) = field.rsplit_once('/').unwrap();
        let object = config.pointer_mut(parent).unwrap().as_object_mut().unwrap();
        assert_ne!(object.insert(key.into(), value.clone()).as_ref(), Some(value), "{name} {field}");
        let path = dir.path().join("config.json");
        std::fs::write(&path, config.to_string()).unwrap();
        let golden = Golden::open(name);
        let model = open_with(name, &path).unwrap_or_else(|e| panic!("{name} {field}: {e}"));
        let logits = model.forward(&golden.tokens, &HookPlan::new().with_logits()).unwrap().logits.unwrap();
        let distance = Close::distance(&format!("{name} {field}"), &logits, &golden.logits);
        assert!(distance > 2.0 * TOLERANCE, "{name}: {field} = {value} moves logits by {distance:.1e} only");
    }
}
