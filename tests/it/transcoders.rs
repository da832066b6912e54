//! Transcoders through the command line: sets of all layers, across layers, one alone; what is written, read and
//! measured; cut-off runs; wrong flags.

use std::collections::BTreeSet;
use std::path::Path;

use mechinterp::dictionary::{SetKind, io};
use mechinterp::interop::open_set;
use serde_json::Value;

use crate::fixture::{Cli, HOOK, contents};
use crate::kill::{assert_same_files, kill_ten_times};

const TEXT: &str = "--model demo --data world.jsonl --context-size 32 --model-batch-size 4";
const SMALL: &str = "--d-sae 96 --steps 30 --batch-size 128 --log-every 5 --checkpoint-every 10 --eval-tokens 512";

fn with_world() -> Cli {
    let cli = Cli::new();
    cli.write_world(400);
    cli
}

fn names(dir: &Path) -> BTreeSet<String> {
    contents(dir).keys().map(|name| name.display().to_string()).collect()
}

/// The layers of the built-in model.
fn layers(cli: &Cli) -> usize {
    cli.run("info demo --json").json()["config"]["n_layers"].as_u64().unwrap() as usize
}

#[test]
fn a_set_of_all_layers_is_trained_written_read_and_measured() {
    let cli = with_world();
    let n = layers(&cli);
    let report = cli.run(&format!("train-transcoders {TEXT} {SMALL} --k 8 --skip --out set --json")).json();
    let trained = report["layers"].as_array().unwrap();
    assert_eq!(trained.len(), n);
    assert!(trained.iter().all(|layer| layer["plan"]["transcoder"]["skip"] == true));
    let replacement = &report["replacement"];
    let number = |value: &Value| value.as_f64().unwrap();
    assert!(number(&replacement["replaced"]["ce_loss"]) > number(&replacement["clean_ce_loss"]));
    assert!(number(&replacement["layers"][0]["explained_variance"]) > 0.0);
    let expected = ["config.yaml", "layers.json", "metrics.jsonl", "replacement.json", "run.json"];
    let mut expected: BTreeSet<String> = expected.map(String::from).into();
    expected.extend((0..n).map(|layer| format!("layer_{layer}.safetensors")));
    assert_eq!(names(&cli.path("set")), expected);
    let set = open_set(&cli.path("set")).unwrap();
    assert_eq!((set.config().kind, set.config().n_layers, set.config().d_transcoder), (SetKind::PerLayer, n, 96));
    assert!(set.has_skip());
    let lines = std::fs::read_to_string(cli.path("set/metrics.jsonl")).unwrap();
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), n * 6);
    assert_eq!((&lines[0]["step"], &lines[n]["step"], &lines[1]["layer"]), (&5.into(), &10.into(), &1.into()));
    let line = "eval --transcoders set --model demo --data world.jsonl --tokens 1k";
    let measured = cli.run(&format!("{line} --json")).json();
    assert_eq!(measured["layers"].as_array().unwrap().len(), n);
    for flag in ["--keep-first-position", "--held-out 0.5", "--no-directions", "--model-sequences 3"] {
        cli.run(&format!("{line} {flag}")).error(&["--transcoders", flag.split(' ').next().unwrap()]);
    }
    let table = cli.run(line).ok();
    for expected in ["explained variance", "all layers replaced", "all layers at their means", "same top token"] {
        assert!(table.contains(expected), "{expected}: {table}");
    }
}

#[test]
fn a_cross_layer_transcoder_is_trained_written_read_and_measured() {
    let cli = with_world();
    let n = layers(&cli);
    let table = cli.run(&format!("train-transcoders --cross-layer {TEXT} {SMALL} --k 8 --out clt")).ok();
    assert!(table.contains("all layers replaced") && table.contains("wrote clt"), "{table}");
    let files = names(&cli.path("clt"));
    for layer in 0..n {
        for tensor in ["W_enc", "W_dec"] {
            assert!(files.contains(&format!("{tensor}_{layer}.safetensors")), "{files:?}");
        }
    }
    let set = open_set(&cli.path("clt")).unwrap();
    assert_eq!(set.config().kind, SetKind::CrossLayer);
    assert_eq!(set.writes_to(1), 1..n);
    let stored: Value = serde_json::from_slice(&std::fs::read(cli.path("clt/replacement.json")).unwrap()).unwrap();
    assert_eq!(stored["layers"].as_array().unwrap().len(), n);
}

#[test]
fn sets_killed_ten_times_equal_uninterrupted_ones() {
    let flags = "--d-sae 96 --steps 60 --batch-size 64 --log-every 1 --checkpoint-every 6 --dead-feature-window 10 \
                 --eval-tokens 256 --buffer-rows 2k";
    for (seed, more) in [(8, "--k 4 --skip"), (9, "--arch jumprelu --cross-layer")] {
        let (whole, cut) = (with_world(), with_world());
        let line = format!("train-transcoders {TEXT} {flags} {more} --out set");
        whole.run(&format!("{line} --threads 1")).ok();
        let log = cut.path("set.partial/training/layer_1/metrics.jsonl");
        let killed = kill_ten_times(&cut, &line, seed, &log);
        assert!(killed.iter().filter(|&&n| n > 0 && n < 60).count() >= 4, "killed after {killed:?} of 60 steps");
        assert_same_files(&cut.path("set"), &whole.path("set"));
    }
}

#[test]
fn a_set_of_topk_is_one_that_graph_reads_and_circuit_tracer_refuses() {
    let cli = with_world();
    cli.run(&format!("train-transcoders {TEXT} {SMALL} --arch topk --k 4 --out set")).ok();
    let text = std::fs::read_to_string(cli.path("set/config.yaml")).unwrap();
    assert!(text.contains("model_kind: mechinterp_transcoder_set"), "{text}");
    let line = "graph --model demo --transcoders set --verify --json --prompt";
    let graph = cli.run_with(line, "the capital of France is").json();
    assert!(graph["report"]["active_features"].as_u64().unwrap() > 8, "{graph}");
    assert!(graph["report"]["largest_row_error"].as_f64().unwrap() < 1e-4);
    assert!(graph["verification"]["largest_edge_error"].as_f64().unwrap() < 1e-3);
}

#[test]
fn without_held_out_text_the_set_is_written_and_not_measured() {
    let cli = with_world();
    let report = cli.run(&format!("train-transcoders {TEXT} {SMALL} --k 4 --held-out 0 --out set --json")).json();
    assert!(report["replacement"].is_null() && report["layers"][0]["heldout"].is_null(), "{report}");
    assert!(open_set(&cli.path("set")).is_ok());
}

#[test]
fn a_converted_set_leaves_the_work_of_another_run_alone() {
    let cli = with_world();
    cli.run(&format!("train-transcoders {TEXT} {SMALL} --k 4 --out set")).ok();
    std::fs::create_dir_all(cli.path("other.partial/training")).unwrap();
    cli.write("other.partial/training/step", "1");
    cli.run("convert --set set --to saelens --out other").error(&["other.partial", "cut-off run"]);
    assert!(cli.path("other.partial/training/step").exists());
    cli.run("convert --set set --to saelens --out own").ok();
}

#[test]
fn some_layers_become_dictionaries_of_their_own() {
    let cli = with_world();
    cli.run(&format!("train-transcoders {TEXT} {SMALL} --arch topk --k 4 --layers 0,2-3 --out some")).ok();
    for layer in [0, 2, 3] {
        let dictionary = io::read(&cli.path(&format!("some/layer_{layer}"))).unwrap();
        let metadata = &dictionary.config.metadata;
        assert_eq!(metadata.hook_name.as_deref(), Some(format!("blocks.{layer}.mlp.hook_in").as_str()));
        assert_eq!(metadata.extra["hook_name_out"], format!("blocks.{layer}.mlp.hook_out"));
        assert!(dictionary.config.transcoder);
    }
    assert!(!cli.path("some/layer_1").exists() && !cli.path("some/config.yaml").exists());
}

#[test]
fn one_transcoder_is_trained_from_two_hooks_of_a_cache() {
    let cli = with_world();
    cli.run(&format!(
        "cache --model demo --data world.jsonl --hook {HOOK} --hook blocks.2.hook_mlp_out --context-size 32 --tokens 4k \
         --out acts"
    ))
    .ok();
    let line = format!("train-sae --cache acts --hook {HOOK} --d-sae 96 --steps 40 --batch-size 128 --arch batchtopk");
    let report = cli.run(&format!("{line} --k 8 --hook-out blocks.2.hook_mlp_out --skip --out one --json")).json();
    assert!(report["heldout"]["explained_variance"].as_f64().unwrap() > 0.0, "{report}");
    let dictionary = io::read(&cli.path("one")).unwrap();
    assert!(dictionary.config.transcoder && dictionary.w_skip.is_some());
    assert_eq!(dictionary.config.metadata.extra["hook_name_out"], "blocks.2.hook_mlp_out");
    cli.run(&format!("{line} --hook-out {HOOK} --out two")).error(&["--hook-out", "another hook point"]);
    cli.run(&format!("{line} --skip --out two")).error(&["--skip", "--hook-out"]);
    cli.run(&format!("{line} --hook-out blocks.2.hook_mlp_ot --out two")).error(&["hook_mlp_ot", "hook_mlp_out"]);
    assert!(!cli.path("two.partial").exists());
}

#[test]
fn wrong_flags_of_sets_are_errors_before_anything_is_computed() {
    let cli = with_world();
    let line = format!("train-transcoders {TEXT} {SMALL} --out set");
    cli.run(&format!("{line} --layers 0-99")).error(&["--layers", "99"]);
    cli.run(&format!("{line} --layers 3-1")).error(&["--layers"]);
    cli.run(&format!("{line} --layers some")).error(&["--layers", "numbers"]);
    cli.run(&format!("{line} --cross-layer --skip")).error(&["--cross-layer", "--skip"]);
    cli.run(&format!("{line} --cross-layer --arch topk")).error(&["--arch", "batchtopk"]);
    cli.run(&format!("{line} --arch gated")).error(&["--arch", "gated", "batchtopk"]);
    cli.run(&format!("{line} --output-hook mlp.hook_in")).error(&["--output-hook", "train-sae"]);
    cli.run(&format!("{line} --output-hook mlp.hook_post")).error(&["--output-hook", "width"]);
    cli.run(&format!("{line} --input-hook mlp.hook_inn")).error(&["mlp.hook_inn", "mlp.hook_in"]);
    assert!(!cli.path("set.partial").exists() && !cli.path("set").exists());
}
