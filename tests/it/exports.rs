//! Indexes in the formats of Neuronpedia, `SAEDashboard` and circuit-tracer; `tests/exports_check.py` opens such files
//! with those programs.

use std::path::Path;

use serde_json::Value;

use crate::fixture::{Cli, trained};

fn json(path: impl AsRef<Path>) -> Value {
    serde_json::from_slice(&std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.as_ref().display())))
        .unwrap()
}

#[test]
fn an_index_is_exported_for_every_program() {
    let cli = Cli::new();
    let (acts, sae) = (trained().path("acts"), trained().path("sae"));
    cli.run(&format!("features --sae {} --cache {} --model demo --out index", sae.display(), acts.display())).ok();
    let line = "features --index index --export";
    cli.run(&format!("{line} saedashboard --sae {} --out dashboard", sae.display())).ok();
    let (batch, skipped) = (json(cli.path("dashboard/batch-0.json")), json(cli.path("dashboard/skipped_indexes.json")));
    let own = json(cli.path("index/index.json"));
    assert_eq!((&batch["layer"], &batch["sae_set"]), (&1.into(), &"res-160".into()));
    let batches = (0..2).map(|i| json(cli.path(&format!("dashboard/batch-{i}.json"))));
    let written: usize = batches.map(|batch| batch["features"].as_array().unwrap().len()).sum();
    assert_eq!(written + skipped["skipped_indexes"].as_array().unwrap().len(), 160);
    assert_eq!(skipped["skipped_indexes"].as_array().unwrap().len() as u64, own["dead_features"].as_u64().unwrap());
    let feature = &batch["features"][0];
    assert!(!feature["vector"].as_array().unwrap().is_empty() && feature["pos_str"].as_array().unwrap().len() == 10);
    // The strongest example is what the index says.
    let id = feature["feature_index"].as_u64().unwrap();
    let record = cli.run(&format!("features --index index --feature {id} --json")).json();
    let max = record["features"][0]["max"].as_f64().unwrap();
    let peak =
        feature["activations"][0]["values"].as_array().unwrap().iter().filter_map(Value::as_f64).fold(0.0, f64::max);
    assert!((peak - max).abs() < 1e-4 * max, "{peak} {max}");

    cli.copy(&cli.path("index"), "other");
    cli.run_with(&format!("features label --index index {id}"), "a name of mine").ok();
    let shown = cli.run(&format!("{line} neuronpedia --export-set res-test --out exports --json")).json();
    assert!(shown["written"][0].as_str().unwrap().ends_with("demo/1-res-test"), "{shown}");
    for name in ["release.jsonl", "model.jsonl", "sourceset.jsonl", "source.jsonl", "features/batch-0.jsonl.gz"] {
        assert!(cli.path("exports/demo/1-res-test").join(name).exists(), "{name}");
    }
    // Names come back from the export as they went.
    cli.run("features labels import --index other exports/demo/1-res-test/explanations/batch-0.jsonl.gz").ok();
    assert!(cli.run("features labels list --index other").ok().contains("a name of mine"));
    cli.run(&format!("{line} circuit-tracer --out graphs")).ok();
    // Layer 1 and feature 0 pair to 1.
    let panel = json(cli.path("graphs/features/res-160/1.json"));
    assert_eq!((&panel["index"], panel["histogram"].is_array()), (&0.into(), true));
}

#[test]
fn what_cannot_be_exported_is_an_error_that_says_why() {
    let cli = Cli::new();
    cli.run("features --index index --export delphi --out x").error(&["--export", "circuit-tracer"]);
    cli.run("features --index index --export neuronpedia").error(&["--out"]);
    cli.run("features --index missing --html page.html").error(&["missing"]);
}
