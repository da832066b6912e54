//! Feature indexes of all layers of a transcoder set, and graphs that take names and examples from them.

use serde_json::Value;

use crate::fixture::Cli;

#[test]
fn all_layers_are_indexed_at_once_and_name_the_features_of_a_graph() {
    let cli = Cli::new();
    cli.write_world(300);
    let text = "--model demo --data world.jsonl";
    cli.run(&format!(
        "train-transcoders {text} --context-size 32 --model-batch-size 4 --d-sae 96 --steps 20 --batch-size 128 --k 8 \
         --eval-tokens 256 --out set"
    ))
    .ok();
    let line = format!("features --transcoders set {text} --tokens 4k --out indexes");
    cli.run(&line).ok();
    // As a run that was cut off before its last layer leaves it.
    std::fs::rename(cli.path("indexes"), cli.path("indexes.partial")).unwrap();
    let last = std::fs::read_dir(cli.path("indexes.partial")).unwrap().count() - 2;
    std::fs::remove_dir_all(cli.path(&format!("indexes.partial/layer_{last}"))).unwrap();
    let first = std::fs::metadata(cli.path("indexes.partial/layer_0/run.json")).unwrap().modified().unwrap();
    cli.run(&line).error(&["indexes.partial", "--resume"]);
    cli.run(&format!("{line} --resume --top-k 7")).error(&["top_k", "cut-off run"]);
    let resumed = cli.run(&format!("{line} --resume --json"));
    assert!(resumed.stderr.contains("1 layers in one pass"), "{}", resumed.stderr);
    let shown = resumed.json();
    assert_eq!(std::fs::metadata(cli.path("indexes/layer_0/run.json")).unwrap().modified().unwrap(), first);
    let dirs = shown["written"].as_array().unwrap();
    assert!(dirs.len() > 1 && dirs.iter().all(|dir| cli.path(dir.as_str().unwrap()).join("index.json").exists()));
    // A layer by itself comes out the same.
    cli.run(&format!("features --sae set/layer_1.safetensors {text} --tokens 4k --out one")).ok();
    let feature = |index: &str, id: u64| -> Value {
        cli.run(&format!("features --index {index} --feature {id} --json")).json()["features"][0].clone()
    };
    let live = (0..96).find(|&id| feature("one", id)["count"].as_u64() > Some(3)).expect("a feature that fires");
    let (alone, together) = (feature("one", live), feature("indexes/layer_1", live));
    let [a, b] = [&alone, &together].map(|f| f["count"].as_u64().unwrap());
    assert!(a.abs_diff(b) * 20 <= a, "{a} {b}");
    let near = |key: &str| (alone[key].as_f64().unwrap() - together[key].as_f64().unwrap()).abs() < 0.05;
    assert!(near("max") && alone["promoted"][0]["token"] == together["promoted"][0]["token"], "{alone} {together}");

    let line = "graph --model demo --transcoders set --labels indexes --out graph.json --html page.html --prompt";
    let shown = cli.run_with(line, "the capital of France is").ok();
    assert!(shown.contains("replacement ") && shown.contains("strongest path to"), "{shown}");
    let graph: Value = serde_json::from_slice(&std::fs::read(cli.path("graph.json")).unwrap()).unwrap();
    let nodes = graph["nodes"].as_array().unwrap();
    let mut features = nodes.iter().filter(|n| n["feature_type"] == "cross layer transcoder");
    assert!(features.clone().count() > 3);
    assert!(features.any(|n| n["clerp"].as_str().unwrap().contains('“')), "features have names");
    let scan = graph["metadata"]["scan"].as_str().unwrap();
    let dir = cli.path(scan.strip_prefix("./data/").unwrap());
    let read = nodes.iter().filter(|n| dir.join(format!("{}.json", n["feature"])).exists()).count();
    assert!(read > 3, "features lie beside the graph");
    assert!(std::fs::read_to_string(cli.path("page.html")).unwrap().contains("id=\"block-f0\""));

    cli.run("features --transcoders set --model demo --out x").error(&["--data"]);
    cli.run(&format!("features --transcoders set {text} --layers 99 --out x")).error(&["--layers"]);
    for flag in ["--feature 3", "--sort max", "--limit 3", "--random 2", "--hook x", "--checkpoint-every 3"] {
        cli.run(&format!("features --transcoders set {text} --out x {flag}")).error(&[flag.split(' ').next().unwrap()]);
    }
    cli.run(&format!("features --transcoders set --sae set {text} --out x")).error(&["--sae"]);
}
