//! A dictionary given to another model, hook, BOS rule or scaling than it was made for.

use std::path::Path;

use serde_json::Value;

use crate::fixture::{Cli, HOOK, trained};

/// A copy of the trained dictionary whose `cfg.json` has another value at `pointer`.
fn patched(pointer: &str, value: Value) -> Cli {
    let cli = Cli::new();
    let path = cli.copy(&trained().path("sae"), "sae").join("cfg.json");
    set(&path, pointer, value);
    cli
}

fn set(path: &Path, pointer: &str, value: Value) {
    let mut json: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    *json.pointer_mut(pointer).unwrap() = value;
    std::fs::write(path, json.to_string()).unwrap();
}

/// Every command that takes a dictionary and a cache or model refuses, and goes on with a warning when forced.
#[track_caller]
fn refused(cli: &Cli, line: &str, needles: &[&str]) {
    cli.run(line).error(&[needles, &["--force"]].concat());
    let forced = cli.run(&format!("{line} --force"));
    assert!(forced.stderr.contains("going on as told"), "{}", forced.stderr);
    forced.ok();
}

fn on_cache(command: &str) -> String {
    format!("{command} --sae sae --cache {}", trained().path("acts").display())
}

const STEER: &str = "steer --model demo --sae sae --feature 1:2 --max-new-tokens 1 --prompt The";

#[test]
fn another_model_is_refused_by_name() {
    let cli = patched("/metadata/model_name", "openai-community/gpt2".into());
    refused(&cli, &on_cache("eval --no-directions"), &["openai-community/gpt2", "'demo'", "acts"]);
    refused(&cli, &on_cache("features --limit 1"), &["openai-community/gpt2", "'demo'", "acts"]);
    refused(&cli, STEER, &["openai-community/gpt2", "--model demo"]);
    cli.write_world(100);
    refused(&cli, "eval --no-directions --sae sae --model demo --data world.jsonl --tokens 1k", &["gpt2"]);
}

#[test]
fn a_model_of_an_unknown_name_is_a_warning() {
    let cli = patched("/metadata/model_name", "somewhere/my-model".into());
    let ended = cli.run(STEER);
    assert!(ended.stderr.contains("my-model") && ended.stderr.contains("cannot be told"), "{}", ended.stderr);
    ended.ok();
    let same = trained().run(STEER);
    assert!(!same.stderr.contains("warning"), "{}", same.stderr);
    assert!(same.stderr.contains("160 features") && same.stderr.contains(HOOK), "{}", same.stderr);
}

#[test]
fn another_hook_of_the_same_width_is_refused() {
    let cli = Cli::new();
    cli.copy(&trained().path("sae"), "sae");
    let line = on_cache("eval --no-directions --hook blocks.2.hook_mlp_out");
    refused(&cli, &line, &[HOOK, "blocks.2.hook_mlp_out", "--hook"]);
    let line = on_cache("features --limit 1 --hook blocks.2.hook_mlp_out");
    refused(&cli, &line, &[HOOK, "blocks.2.hook_mlp_out", "--hook"]);
}

#[test]
fn another_bos_rule_is_refused_and_prompts_follow_the_dictionary() {
    let cli = patched("/metadata/prepend_bos", false.into());
    refused(&cli, &on_cache("eval --no-directions"), &["no BOS", "BOS at the start"]);
    let compared = |cli: &Cli, line: &str| cli.run(&format!("{line} --json")).json()["result"]["compared"].clone();
    let without = compared(&cli, STEER);
    let trained = trained();
    refused(trained, &format!("{STEER} --no-bos"), &["BOS at the start", "no BOS", "--no-bos"]);
    let with = compared(trained, STEER);
    assert_eq!(with.as_array().unwrap().len(), without.as_array().unwrap().len() + 1);
    assert_eq!(without, compared(trained, &format!("{STEER} --no-bos --force")));
}

#[test]
fn a_scaling_that_is_not_in_the_files_is_refused_until_it_is_given() {
    let cli = patched("/normalize_activations", "expected_average_only_in".into());
    refused(&cli, &on_cache("eval --no-directions"), &["expected_average_only_in", "norm_scaling_factor"]);
    refused(&cli, STEER, &["norm_scaling_factor"]);
    let path = cli.path("sae/cfg.json");
    let mut json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    json["metadata"]["norm_scaling_factor"] = 1.5.into();
    std::fs::write(&path, json.to_string()).unwrap();
    cli.run(STEER).ok();
}

#[test]
fn centred_rows_are_refused_to_a_model_that_cannot_be_centred() {
    let cli = Cli::new();
    let path = cli.copy(&trained().path("sae"), "sae").join("cfg.json");
    let mut json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    json["metadata"]["model_from_pretrained_kwargs"] = serde_json::json!({"center_writing_weights": true});
    std::fs::write(&path, json.to_string()).unwrap();
    refused(&cli, STEER, &["RMSNorm", "center_writing_weights"]);
}
