//! Attribution graphs against circuit-tracer's, made by `tests/golden/graph/make_graphs.py`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use mechinterp::analysis::graph::{
    About, Attribution, Context, GraphSettings, Pruned, TargetChoice, attribute, node_influence, prune, scores, trace,
};
use mechinterp::base::progress::Silent;
use mechinterp::dictionary::{Activation, Architecture, Dictionary, DictionaryConfig, TranscoderSet};
use mechinterp::interop::open_set;
use mechinterp::model::Model;
use serde_json::{Value, json};

use crate::fixture::{Cli, copy_tree};
use crate::steer::checkpoint;

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/graph").join(path)
}

/// What circuit-tracer gave for one model, by name.
struct Reference(HashMap<String, Tensor>);

impl Reference {
    fn open(model: &str) -> Self {
        Self(candle_core::safetensors::load(golden(model).join("graphs.safetensors"), &Device::Cpu).unwrap())
    }

    fn values(&self, name: &str) -> Vec<f64> {
        let values = self.0.get(name).unwrap_or_else(|| panic!("{name}"));
        values.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    fn numbers(&self, name: &str) -> Vec<usize> {
        self.values(name).into_iter().map(|x| x as usize).collect()
    }
}

fn model(name: &str) -> Model {
    let dir = golden(name);
    Model::open(&dir.join("config.json"), &[dir.join("model.safetensors")], DType::F32, &Device::Cpu).unwrap()
}

const CHOICE: TargetChoice = TargetChoice::Likeliest { most: 3, probability: 0.8 };

fn settings(limited: bool) -> GraphSettings {
    let (batch_size, max_feature_nodes) = if limited { (5, 30) } else { (64, usize::MAX) };
    let base = GraphSettings { node_threshold: 0.9, edge_threshold: 0.95, ..GraphSettings::default() };
    GraphSettings { batch_size, max_feature_nodes, ..base }
}

fn graph(model: &Model, set: &TranscoderSet, tokens: &[u32], settings: &GraphSettings) -> (Context, Attribution) {
    let context = Context::new(model, set, tokens, settings.zero_positions).unwrap();
    let targets = CHOICE.resolve(model, &context).unwrap();
    let graph = attribute(model, set, &context, targets, settings, &Silent).unwrap();
    (context, graph)
}

/// The largest difference, relative to the largest value.
fn distance(ours: &[f64], theirs: &[f64]) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    let largest = theirs.iter().fold(0f64, |m, x| m.max(x.abs()));
    assert!(largest > 0.0);
    ours.iter().zip(theirs).fold(0f64, |m, (a, b)| m.max((a - b).abs())) / largest
}

fn compare(reference: &Reference, key: &str, active: usize, graph: &Attribution, pruned: &Pruned) {
    let of = |name: &str| reference.values(&format!("{key}.{name}"));
    assert_eq!(active, of("active")[0] as usize, "{key}: active features");
    let ours: Vec<usize> = graph.features.iter().flat_map(|f| [f.layer, f.position, f.feature as usize]).collect();
    assert_eq!(ours, reference.numbers(&format!("{key}.selected")), "{key}: selected features");
    let activations: Vec<f64> = graph.features.iter().map(|f| f64::from(f.activation)).collect();
    assert!(distance(&activations, &of("activations")) < 1e-5, "{key}: activations");
    let tokens: Vec<usize> = graph.targets.iter().map(|target| target.token as usize).collect();
    assert_eq!(tokens, reference.numbers(&format!("{key}.targets")), "{key}: targets");
    let probabilities: Vec<f64> = graph.targets.iter().map(|target| target.probability).collect();
    assert!(distance(&probabilities, &of("probabilities")) < 1e-5, "{key}: probabilities");

    let (n, sources) = (graph.nodes(), graph.target_node(0));
    let dense = graph.dense();
    let rows: Vec<usize> = (0..graph.features.len()).chain(sources..n).collect();
    let theirs = of("adjacency");
    let mut edges = 0;
    for (&row, theirs) in rows.iter().zip(theirs.chunks_exact(sources)) {
        let largest = theirs.iter().fold(0f64, |m, x| m.max(x.abs()));
        for (column, &their) in theirs.iter().enumerate() {
            let our = f64::from(dense[row * n + column]);
            // A sum that all but cancels is known to the precision of its parts.
            let near = (our - their).abs() <= 1e-3 * their.abs() + 1e-5 * largest;
            assert!(near, "{key}: {column} → {row} is {our}, there {their}");
            edges += usize::from(their != 0.0);
        }
    }
    assert_eq!(edges, graph.edges(), "{key}: edges that are not zero");
    assert!(edges > 400, "{key}: {edges}");

    assert!(distance(&node_influence(graph), &of("influence")) < 1e-4, "{key}: influence");
    assert!(
        distance(&pruned.cumulative[..sources], &of("cumulative")[..sources]) < 1e-4,
        "{key}: cumulative influence"
    );
    let nodes: Vec<usize> = pruned.nodes.iter().map(|kept| usize::from(*kept)).collect();
    assert_eq!(nodes, reference.numbers(&format!("{key}.nodes")), "{key}: kept nodes");
    let mut kept = vec![0; rows.len() * sources];
    for edge in &pruned.edges {
        let row = rows.iter().position(|&row| row == edge.target).unwrap();
        kept[row * sources + edge.source] = 1;
    }
    assert!(kept.contains(&1) && nodes.contains(&0));
    assert_eq!(kept, reference.numbers(&format!("{key}.edges")), "{key}: kept edges");
    let found = scores(graph);
    assert!(distance(&[found.replacement, found.completeness], &of("scores")) < 1e-4, "{key}: {found:?}");
    assert!(graph.largest_row_error < 1e-4, "{key}: {}", graph.largest_row_error);
}

fn compare_all(name: &str) {
    let (reference, model) = (Reference::open(name), model(name));
    let tokens: Vec<u32> = reference.numbers("tokens").into_iter().map(|t| t as u32).collect();
    for (set, limited) in
        [("jumprelu", false), ("jumprelu", true), ("skip", false), ("cross-layer", false), ("cross-layer", true)]
    {
        let transcoders = open_set(&golden("sets").join(set)).unwrap();
        let settings = settings(limited);
        let (context, graph) = graph(&model, &transcoders, &tokens, &settings);
        let key = if limited { format!("{set}-limited") } else { set.to_owned() };
        compare(&reference, &key, context.active_features(), &graph, &prune(&graph, &settings));
    }
}

#[test]
fn graphs_of_a_llama_are_those_of_circuit_tracer() {
    compare_all("llama");
}

#[test]
fn graphs_of_a_gemma_2_are_those_of_circuit_tracer() {
    compare_all("gemma2");
}

#[test]
fn a_traced_graph_has_every_kept_node_once_and_its_edges_between_them() {
    let (model, set) = (model("llama"), open_set(&golden("sets/jumprelu")).unwrap());
    let about = About { prompt: "p".into(), model: "m".into(), text: &|token| format!("<{token}>") };
    let tokens = [1, 9, 21, 17, 8, 30];
    let traced = trace(&model, &set, &tokens, &CHOICE, &settings(false), &about, &Silent).unwrap();
    let graph = traced.graph;
    let ids: std::collections::BTreeSet<String> = graph.nodes.iter().map(|node| node.id(graph.n_layers)).collect();
    assert_eq!(ids.len(), graph.nodes.len());
    assert!(graph.edges.iter().all(|edge| edge.source.max(edge.target) < graph.nodes.len()));
    assert_eq!((graph.token_texts[1].as_str(), graph.n_layers), ("<9>", 4));
    let Attribution { largest_row_error, .. } = traced.attribution;
    assert!((graph.report.largest_row_error - largest_row_error).abs() < 1e-12);
    assert!(graph.report.unpruned.1 > graph.edges.len() && graph.scores.replacement > 0.0);
}

/// A directory with a model whose tokens are words, and two transcoder sets: its own and one of another width.
fn commands() -> Cli {
    let cli = Cli::new();
    checkpoint(&cli, "gemma2");
    let target = cli.path("llama");
    copy_tree(&golden("llama"), &target);
    std::fs::remove_file(target.join("graphs.safetensors")).unwrap();
    let word = |i: u32| if i == 1 { "<s>".to_owned() } else { format!("w{i}") };
    let vocab: serde_json::Map<String, Value> = (0..40).map(|i| (word(i), i.into())).collect();
    let special = json!([{"id": 1, "content": "<s>", "special": true, "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false}]);
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": special, "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "w0"},
    });
    std::fs::write(target.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    copy_tree(&golden("sets"), &cli.path("sets"));
    cli
}

#[test]
fn the_command_traces_a_prompt_and_writes_a_graph_that_it_reads_again() {
    let cli = commands();
    let line =
        "graph --model llama --transcoders sets/jumprelu --tokens 1,9,21,17,8,30 --max-logits 3 --logit-prob 0.8";
    let graph =
        cli.run(&format!("{line} --node-threshold 0.9 --edge-threshold 0.95 --out g.json --verify --json")).json();
    let reference = Reference::open("llama");
    let ours = &graph["report"]["unpruned_scores"];
    let scores = [ours["replacement"].as_f64().unwrap(), ours["completeness"].as_f64().unwrap()];
    assert!(distance(&scores, &reference.values("jumprelu.scores")) < 1e-4);
    let kept = reference.values("jumprelu.nodes").into_iter().filter(|kept| *kept > 0.0).count();
    assert_eq!(graph["nodes"].as_array().unwrap().len(), kept);
    assert!(graph["verification"]["effects"].as_u64().unwrap() > 0);
    let text = cli.run(line).ok();
    let line = "graph --model llama --transcoders sets/jumprelu --tokens 1,9,21,17,8,30";
    assert!(text.contains("w9") && text.contains("replacement"), "{text}");
    assert!(cli.run("graph show g.json").ok().contains("w9"));
    let contrast = cli.run(&format!("{line} --target w7 --against w11 --json")).json();
    let targets: Vec<&Value> =
        contrast["nodes"].as_array().unwrap().iter().filter(|node| node["kind"] == "target").collect();
    assert_eq!((targets.len(), &targets[0]["token"], &targets[0]["against"]), (1, &json!(7), &json!(11)));
}

#[test]
fn prompts_targets_and_sets_that_do_not_fit_are_refused_with_the_reason() {
    let cli = commands();
    let llama = "graph --model llama --transcoders sets/jumprelu";
    let run = |line: String| cli.run(&line);
    run(format!("{llama} --tokens 1")).error(&["two tokens", "1 in all"]);
    run(format!("{llama} --tokens 1,40")).error(&["token id 40", "vocabulary of 40"]);
    cli.run_with(&format!("{llama} --prompt w9 --target"), "w3 w4").error(&["--target", "2 tokens", "w3"]);
    run(format!("{llama} --prompt w9 --against w3")).error(&["--target"]);
    run(format!("{llama} --prompt w9 --target w3 --target w4 --against w5")).error(&["--against", "a single --target"]);
    run(format!("{llama} --prompt w9 --target w3 --target w3")).error(&["the same token twice"]);
    run(format!("{llama} --prompt w9 --node-threshold 2")).error(&["--node-threshold", "0 to 1"]);
    run(format!("{llama} --prompt w9 --batch-size 0")).error(&["--batch-size", "1 or more"]);
    run(format!("{llama} --prompt w9 --batch-size 99999999999999")).error(&["fits into memory", "GB"]);
    run(format!("{llama} --prompt w9 --max-logits 3 --target w3")).error(&["--max-logits", "--target"]);
    run(format!("{llama} --prompt w9 --picture-nodes 3 --html x.html")).error(&["--svg", "--dot"]);
    run(format!("{llama} --prompt w9 --out x --html x")).error(&["--html", "no other flag"]);
    run(format!("{llama} --prompt w9 --out graph-metadata.json")).error(&["graph-metadata.json", "list of all graphs"]);
    run(format!("{llama} --prompt w9 --out nowhere/g.json")).error(&["nowhere"]);
    run("graph --model gemma2 --transcoders sets/jumprelu --prompt w9".into()).error(&["layers", "width"]);
    std::fs::remove_file(cli.path("sets/jumprelu/layer_2.safetensors")).unwrap();
    run(format!("{llama} --prompt w9")).error(&["layer"]);
}

#[test]
fn graphs_through_autoencoders_join_the_streams_of_two_layers() {
    let cli = commands();
    for (name, hook) in [("low", "blocks.1.hook_resid_pre"), ("high", "blocks.3.hook_resid_pre")] {
        write_autoencoder(&cli, name, hook);
    }
    let line = "graph --model llama --tokens 1,9,21,17 --max-feature-nodes 20";
    let graph = cli.run(&format!("{line} --sae low high --json")).json();
    let layers: std::collections::BTreeSet<u64> =
        graph["nodes"].as_array().unwrap().iter().filter_map(|node| node["layer"].as_u64()).collect();
    assert_eq!(layers.into_iter().collect::<Vec<_>>(), [1, 3]);
    cli.run(&format!("{line} --sae low")).error(&["two layers or more"]);
    cli.run(&format!("{line} --sae low low")).error(&["same layer"]);
    cli.run(&format!("{line} --sae low high --steps 0")).error(&["--steps"]);
    cli.run(&format!("{line} --sae low high --verify")).error(&["--verify", "--transcoders"]);
    cli.run(line).error(&["--transcoders"]);
}

/// A random autoencoder of the golden models' stream.
fn write_autoencoder(cli: &Cli, name: &str, hook: &str) {
    let (d, f) = (24, 32);
    let numbers = |n: usize, seed: usize| -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.5 - 1.0).map(|x| x / 4.0).collect()
    };
    let mut config = DictionaryConfig::new(Architecture::Relu, d, f);
    config.metadata.hook_name = Some(hook.into());
    let seed = name.len();
    let (w_enc, w_dec) = (numbers(d * f, seed), numbers(f * d, seed + 1));
    let (b_enc, b_dec) = (numbers(f, seed + 2), numbers(d, seed + 3));
    let dictionary = Dictionary::new(config, w_enc, b_enc, w_dec, b_dec, Activation::relu()).unwrap();
    std::fs::create_dir(cli.path(name)).unwrap();
    mechinterp::dictionary::io::write(&cli.path(name), &dictionary).unwrap();
}
