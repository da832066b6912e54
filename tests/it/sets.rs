//! Transcoder sets through the command line: from directories, folders and the hub, written in other formats.

use std::path::{Path, PathBuf};

use mechinterp::dictionary::SetKind;
use mechinterp::interop;
use serde_json::json;

use crate::fixture::{Cli, copy_tree, end};
use crate::hub_server::{HubServer, Repo};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/sets").join(name)
}

/// The files of a golden set under `prefix`, as a hub has them.
fn files(name: &str, prefix: &str) -> Vec<(String, Vec<u8>)> {
    let dir = golden(name);
    let entries = std::fs::read_dir(&dir).unwrap().flatten().filter(|entry| entry.path().is_file());
    entries
        .map(|entry| {
            let name = entry.file_name().into_string().unwrap();
            (format!("{prefix}{name}"), std::fs::read(entry.path()).unwrap())
        })
        .collect()
}

fn repo(files: &[(String, Vec<u8>)]) -> Repo {
    let files: Vec<(&str, &[u8])> = files.iter().map(|(name, contents)| (name.as_str(), contents.as_slice())).collect();
    Repo::new(&files)
}

#[test]
fn info_says_what_a_set_is() {
    let cli = Cli::new();
    let report = cli.run(&format!("info {} --json", golden("clt-relu").display())).json();
    assert_eq!(report["kind"], json!("cross_layer"));
    assert_eq!((&report["n_layers"], &report["d_transcoder"], &report["d_model"]), (&json!(3), &json!(10), &json!(6)));
    assert_eq!(report["feature_input_hook"], json!("hook_resid_mid"));
    assert_eq!(report["scan"], json!("tiny/clt@v1"));
    assert_eq!(report["weight_bytes"], json!((3 + 6) * 10 * 6 * 4));
    let text = cli.run(&format!("info {}", golden("gemma-scope").display())).ok();
    for needle in
        ["per-layer transcoders", "Gemma Scope", "blocks.{0..2}.ln2.hook_normalized", "tiny/model", "1.4 KB in 3 files"]
    {
        assert!(text.contains(needle), "{needle} in {text}");
    }
}

#[test]
fn sets_go_from_one_format_into_another_and_back() {
    let cli = Cli::new();
    let set = golden("plt-relu-skip");
    let there = cli.run(&format!("convert --set {} --to saelens --out folders --json", set.display())).json();
    assert_eq!((&there["from"], &there["to"]), (&json!("circuit_tracer"), &json!("saelens")));
    assert!(there["difference"].as_f64().unwrap() < 1e-6 && there["linear_connection"] == json!(true));
    let record: serde_json::Value =
        serde_json::from_slice(&std::fs::read(cli.path("folders/run.json")).unwrap()).unwrap();
    assert_eq!(record["inputs"].as_array().unwrap().len(), 3);
    assert_eq!(record["inputs"][1]["name"], json!("layer_1.safetensors"));
    // Each folder is a dictionary by itself.
    let layer = interop::open(&cli.path("folders/layer_2")).unwrap().dictionary;
    assert_eq!(layer.config.metadata.hook_name.as_deref(), Some("blocks.2.hook_resid_mid"));
    cli.run("convert --set folders --to circuit_tracer --out back --model-name other/model").ok();
    let (ours, theirs) = (interop::open_set(&cli.path("back")).unwrap(), interop::open_set(&set).unwrap());
    assert!(interop::set_distance(&ours, &theirs).unwrap() < 1e-6);
    assert_eq!(ours.config().model_name.as_deref(), Some("other/model"));
    assert_eq!(ours.config().kind, SetKind::PerLayer);

    cli.run("convert --set folders --to goodfire --out no").error(&["--to", "circuit_tracer, saelens, sparsify"]);
    cli.run("convert --set folders --to saelens --out back").error(&["back already exists"]);
    cli.run("convert --set folders --to sparsify --out no").error(&["topk and groupmax"]);
    cli.run("convert --set nowhere --to saelens --out no").error(&["nowhere", "org/name"]);
    cli.run("convert --to saelens --out no").error(&["--sae", "--set"]);
    let across = golden("clt-relu");
    cli.run(&format!("convert --set {} --to saelens --out no", across.display())).error(&["one layer only"]);
    assert!(!cli.path("no").exists() && !cli.path("no.partial").exists());
}

#[test]
fn a_cut_off_or_mixed_set_is_one_clear_error() {
    let cli = Cli::new();
    copy_tree(&golden("plt-relu-skip"), &cli.path("set"));
    std::fs::rename(cli.path("set/layer_1.safetensors"), cli.path("layer")).unwrap();
    cli.run("info set").error(&["layer 1 is missing", "set/layer_1.safetensors", "up to layer 2"]);
    let bytes = std::fs::read(cli.path("layer")).unwrap();
    cli.write("set/layer_1.safetensors", &bytes[..bytes.len() - 9]);
    cli.run("info set").error(&["layer_1.safetensors", "truncated"]);
    cli.write("set/layer_1.safetensors", &bytes);
    cli.run("info set").ok();
    std::fs::remove_file(cli.path("set/config.yaml")).unwrap();
    cli.run("info set").error(&["config.yaml", "written last", "model_kind"]);
    cli.write("set/config.yaml", "model_kind: transcoder_set\nfeature_input_hook: hook_in\n");
    cli.run("info set").error(&["feature_input_hook", "hook_in"]);
}

#[test]
fn sets_come_from_the_hub_and_then_from_its_cache() {
    let cli = Cli::new();
    let mut own = files("plt-relu-skip", "sub/");
    own.push(("sub/other.bin".into(), vec![0; 100]));
    // A list of files in another repository.
    let layers = files("plt-jumprelu", "deep/");
    let list = [0, 1, 2].map(|i| format!("  - hf://tiny/layers/deep/layer_{i}.safetensors?revision=main\n")).concat();
    let head = "model_kind: transcoder_set\nfeature_input_hook: mlp.hook_in\nfeature_output_hook: mlp.hook_out\n";
    let listed = [("config.yaml".to_owned(), format!("{head}transcoders:\n{list}").into_bytes())];
    let server = HubServer::start(&[
        ("tiny/set", repo(&own)),
        ("tiny/listed", repo(&listed)),
        ("tiny/layers", repo(&layers)),
        ("tiny/none", repo(&[("README.md".into(), b"nothing".to_vec())])),
    ]);
    let run = |line: &str, online: bool| {
        let mut command = cli.command(&format!("{line} --json"));
        command.env("HF_HOME", cli.path("")).env("NO_PROXY", "127.0.0.1");
        if online {
            command.env_remove("HF_HUB_OFFLINE").env("HF_ENDPOINT", &server.endpoint);
        }
        end(command)
    };
    let convert = |set: &str, out: &str, online: bool| {
        run(&format!("convert --set {set} --to circuit_tracer --out {out}"), online)
    };
    let report = convert("tiny/set/sub", "a", true).json();
    assert_eq!((&report["scan"], &report["n_layers"]), (&json!("tiny/plt"), &json!(3)));
    let asked: Vec<String> = server.requests().into_iter().map(|request| request.path).collect();
    assert!(asked.iter().any(|path| path.contains("layer_2")) && !asked.iter().any(|path| path.contains("other")));
    let report = convert("tiny/listed", "b", true).json();
    assert_eq!((&report["scan"], &report["architecture"]), (&json!("tiny/listed"), &json!("jumprelu without ReLU")));
    for (out, set) in [("a", "plt-relu-skip"), ("b", "plt-jumprelu")] {
        let (ours, theirs) = (interop::open_set(&cli.path(out)).unwrap(), interop::open_set(&golden(set)).unwrap());
        assert!(interop::set_distance(&ours, &theirs).unwrap() < 1e-6);
    }
    for (set, layers) in [("tiny/listed", 3), ("tiny/set/sub", 3)] {
        assert_eq!(run(&format!("info {set}"), true).json()["n_layers"], layers);
    }
    run("info tiny/none", true).error(&["tiny/none", "config.json"]);
    server.requests();
    convert("tiny/set/sub", "c", false).ok();
    convert("tiny/listed@main", "d", false).ok();
    assert!(server.requests().is_empty(), "nothing is asked offline");
    convert("tiny/none", "e", true).error(&["tiny/none", "config.yaml"]);
    convert("tiny/absent", "e", false).error(&["tiny/absent"]);
}
