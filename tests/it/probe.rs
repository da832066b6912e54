//! `probe`: what the built-in model knows about countries, and what is no good to learn from.

use std::collections::BTreeSet;

use mechinterp::demo::{Lang, Relation, World};
use serde_json::{Value, json};

use crate::fixture::{Cli, HOOK, trained};

/// Questions in which continent a country lies, in three languages, labelled with the answer.
fn write_continents(cli: &Cli) {
    let world = World::new(World::BUILT_IN_SEED);
    let mut lines = String::new();
    for prompt in world.single_hop_prompts().iter().filter(|prompt| prompt.relation == Relation::Continent) {
        let country = prompt.concepts.iter().find_map(|c| c.strip_prefix("country:")).unwrap();
        let line = json!({"text": prompt.text, "label": world.answer(prompt.fact, Lang::English), "country": country});
        lines += &(line.to_string() + "\n");
    }
    cli.write("continents.jsonl", lines);
}

#[test]
fn the_built_in_model_knows_continents_and_the_control_does_not() {
    let cli = Cli::new();
    write_continents(&cli);
    let sae = cli.copy(&trained().path("sae"), "sae");
    let line =
        "probe --model demo --data continents.jsonl --positive Asia --layers 0,1,2,3 --sae sae --out probes --json";
    let found = cli.run(line).json();
    let best = &found["best_probe"];
    let of = |value: &Value| value.as_f64().unwrap();
    assert!(of(&best["test"]["accuracy"]) > 0.97, "{best}");
    assert!(of(&best["control_accuracy"]) < 0.8 && of(&best["selectivity"]) > 0.15, "{best}");
    assert!(of(&best["test"]["accuracy"]) > of(&found["majority_accuracy"]) + 0.1, "{found}");
    assert_eq!((found["dense"].as_array().unwrap().len(), found["sparse"].as_array().unwrap().len()), (8, 3));
    assert_eq!(found["classes"][1]["label"], "Asia");
    let files: BTreeSet<String> = std::fs::read_dir(cli.path("probes"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    for name in ["best.safetensors", "blocks.2.hook_resid_post.logistic.safetensors", "results.json", "run.json"] {
        assert!(files.contains(name), "{name} is not among {files:?}");
    }
    let file = std::fs::read(cli.path("probes/best.safetensors")).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&file).unwrap();
    let metadata = header.metadata().as_ref().unwrap();
    assert_eq!((metadata["hook"].as_str(), metadata["label"].as_str()), (best["hook"].as_str().unwrap(), "Asia"));
    // The same command finds the same, to the bit.
    cli.run(&line.replace("probes", "again")).ok();
    assert!(file == std::fs::read(cli.path("again/best.safetensors")).unwrap());
    assert!(sae.exists());
}

#[test]
fn groups_held_out_and_many_labels_are_shown_as_a_table() {
    let cli = Cli::new();
    write_continents(&cli);
    let line =
        "probe --model demo --data continents.jsonl --group-field country --layers 2 --position mean --controls 1";
    let shown = cli.run(line).ok();
    for expected in ["“Europe”", "selectivity", "difference of means", "blocks.2.hook_resid_post", "held out"] {
        assert!(shown.contains(expected), "'{expected}' is not in {shown}");
    }
    let one = cli.run(&format!("{line} --hook {HOOK}"));
    one.error(&["--layers", HOOK]);
}

#[test]
fn what_cannot_be_probed_is_an_error_that_says_why() {
    let cli = Cli::new();
    write_continents(&cli);
    cli.write("one.jsonl", "{\"text\": \"France\", \"label\": 1}\n".repeat(9));
    cli.write("few.jsonl", "{\"text\": \"France\", \"label\": 1}\n{\"text\": \"Chad\", \"label\": 0}\n".repeat(3));
    let run = |rest: &str| cli.run(&format!("probe --model demo {rest}"));
    run("--data one.jsonl").error(&["one.jsonl", "two labels", "'1' on all 9 texts"]);
    run("--data few.jsonl").error(&["few.jsonl", "3 texts with the label '0'"]);
    let data = "--data continents.jsonl";
    run(&format!("{data} --label-field continent")).error(&["no 'continent'", "label", "--label-field"]);
    run(&format!("{data} --positive Asai")).error(&["Asai", "Asia"]);
    run(&format!("{data} --layers 40")).error(&["--layers", "40"]);
    run(&format!("{data} --layers first")).error(&["--layers"]);
    run(&format!("{data} --hook hook_resid_pots")).error(&["hook_resid_pots", "hook_resid_post"]);
    run(&format!("{data} --hook attn.hook_pattern --layers 0")).error(&["attn.hook_pattern", "no fixed number"]);
    run(&format!("{data} --c 0")).error(&["--c"]);
    run(&format!("{data} --test-share 1")).error(&["--test-share"]);
    run(&format!("{data} --k 0 --sae x")).error(&["--k"]);
    run("--data missing.jsonl").error(&["missing.jsonl"]);
}
