//! Interventions on transcoder features against circuit-tracer, with goldens of `tests/golden/make_interventions.py`.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::safetensors::load;
use candle_core::{Device, Tensor};
use mechinterp::analysis::graph::{FeatureChange, FrozenRun, Hold, live_plan};
use mechinterp::analysis::steer::TranscoderEdits;
use mechinterp::analysis::{FeatureEdit, FeatureOp, Intervention};
use mechinterp::dictionary::{
    Activation, Architecture, CrossLayer, Dictionary, DictionaryConfig, SetConfig, SetKind, TranscoderSet,
};
use mechinterp::interop::write_set;
use mechinterp::model::generate::{GenerateSettings, generate};
use mechinterp::model::{HookPlan, Model, Positions, Site};
use safetensors::SafeTensors;
use serde_json::Value;

use crate::close::Close;
use crate::fixture::Cli;
use crate::golden::open;
use crate::steer::checkpoint;

const FEATURES: usize = 32;

/// One file of goldens.
struct Golden {
    tensors: HashMap<String, Tensor>,
    metadata: HashMap<String, String>,
}

impl Golden {
    fn read(name: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/intervene/{name}.safetensors"));
        let bytes = std::fs::read(&path).unwrap();
        let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        Self { tensors: load(&path, &Device::Cpu).unwrap(), metadata: metadata.metadata().clone().unwrap() }
    }

    fn values(&self, name: &str) -> Vec<f32> {
        self.tensors[name].flatten_all().unwrap().to_vec1().unwrap()
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_str(&self.metadata[name]).unwrap()
    }

    fn prompt(&self) -> Vec<u32> {
        serde_json::from_value(self.json("prompt")).unwrap()
    }

    fn config(&self, model: &Model, kind: SetKind) -> SetConfig {
        let site = |name: &str| Site::ALL.iter().copied().find(|site| site.name() == name).unwrap();
        SetConfig {
            kind,
            model_name: None,
            input: site(&self.metadata["input"]),
            output: site(&self.metadata["output"]),
            scan: "golden".into(),
            n_layers: model.config().n_layers,
            d_model: model.config().d_model,
            d_transcoder: FEATURES,
        }
    }

    /// `W_enc` as our encoders store it, `[d, f]`.
    fn encoder(&self, prefix: &str) -> Vec<f32> {
        let w = self.tensors[&format!("{prefix}.W_enc")].t().unwrap().contiguous().unwrap();
        w.flatten_all().unwrap().to_vec1().unwrap()
    }

    fn per_layer(&self, model: &Model, set: &str) -> TranscoderSet {
        let d = model.config().d_model;
        let layer = |layer: usize| {
            let of = |name: &str| self.values(&format!("{set}.{layer}.{name}"));
            let (architecture, activation) = match set {
                "skip" => (Architecture::JumpIdentity, Activation::jump_identity(of("threshold"))),
                _ => (Architecture::Relu, Activation::relu()),
            };
            let config = DictionaryConfig::transcoder(architecture, d, FEATURES, d);
            let w_enc = self.encoder(&format!("{set}.{layer}"));
            let plain = Dictionary::new(config, w_enc, of("b_enc"), of("W_dec"), of("b_dec"), activation).unwrap();
            if set == "skip" { plain.with_skip(of("W_skip")).unwrap() } else { plain }
        };
        let layers = (0..model.config().n_layers).map(layer).collect();
        TranscoderSet::from_layers(self.config(model, SetKind::PerLayer), layers).unwrap()
    }

    fn cross_layer(&self, model: &Model) -> TranscoderSet {
        let n = model.config().n_layers;
        let layer = |layer: usize| {
            let of = |name: &str| self.values(&format!("clt.{layer}.{name}"));
            let w_dec = &self.tensors[&format!("clt.{layer}.W_dec")];
            let to = |to: usize| {
                let rows = w_dec.narrow(1, to, 1).unwrap().contiguous().unwrap();
                rows.flatten_all().unwrap().to_vec1().unwrap()
            };
            CrossLayer {
                w_enc: self.encoder(&format!("clt.{layer}")),
                b_enc: of("b_enc"),
                w_dec: (0..n - layer).map(to).collect(),
                b_dec: of("b_dec"),
                activation: Activation::relu(),
                w_skip: None,
            }
        };
        TranscoderSet::from_cross_layer(self.config(model, SetKind::CrossLayer), (0..n).map(layer).collect()).unwrap()
    }

    fn changes(&self, set: &str, prompt: usize) -> Vec<FeatureChange> {
        let one = |case: &Value| {
            let number = |i: usize| case[i].as_u64().map(|n| n as usize);
            let start = number(1).unwrap();
            FeatureChange {
                layer: number(0).unwrap(),
                feature: number(3).unwrap() as u32,
                positions: match number(2) {
                    Some(end) => Positions::List((start..end.min(prompt)).collect()),
                    None => Positions::From(start),
                },
                op: FeatureOp::Clamp(case[4].as_f64().unwrap() as f32),
            }
        };
        self.json(set).as_array().unwrap().iter().map(one).collect()
    }
}

fn each(mut test: impl FnMut(&str, &Golden, &Model, &Arc<TranscoderSet>)) {
    for name in ["llama", "gemma2"] {
        let (golden, model) = (Golden::read(name), open(name));
        for set in ["plt", "skip", "clt"] {
            let transcoders = match set {
                "clt" => golden.cross_layer(&model),
                _ => golden.per_layer(&model, set),
            };
            test(set, &golden, &model, &Arc::new(transcoders));
        }
    }
}

#[test]
fn interventions_do_what_circuit_tracers_do() {
    let mut compared = 0;
    each(|set, golden, model, transcoders| {
        let prompt = golden.prompt();
        let changes = golden.changes(set, prompt.len());
        let run = FrozenRun::new(model, transcoders, &prompt, 1).unwrap();
        let n = model.config().n_layers;
        let clean = run.clean.logits().unwrap();
        Close(1e-4).assert("clean logits", clean, &golden.tensors[&format!("{set}.clean.logits")]);
        let all: Vec<u32> = (0..FEATURES as u32).collect();
        for (case, hold) in [
            ("patterns", Hold::Patterns),
            ("free", Hold::Nothing),
            ("direct", Hold::everything(model.config())),
            ("range", Hold::Layers(0..1)),
        ] {
            let what = format!("{set} {case}");
            let changed = run.intervene(&changes, &hold).unwrap();
            let logits = &golden.tensors[&format!("{set}.{case}.logits")];
            Close(1e-4).assert(&what, changed.run.logits().unwrap(), logits);
            let mut ours = Vec::new();
            for layer in 0..n {
                let mut values = match case {
                    "direct" => changed.pre_activations(layer, &all),
                    _ => changed.activations(layer, &all),
                }
                .unwrap();
                values[..FEATURES].fill(0.0);
                ours.extend(values);
            }
            let ours = Tensor::from_vec(ours, (n, prompt.len(), FEATURES), &Device::Cpu).unwrap();
            Close(1e-4).assert(&what, &ours, &golden.tensors[&format!("{set}.{case}.activations")]);
            compared += 1;
        }
    });
    assert_eq!(compared, 24);
}

#[test]
fn open_ended_interventions_reach_generated_text() {
    let mut different = 0;
    each(|set, golden, model, transcoders| {
        let prompt = golden.prompt();
        let expected: Vec<i64> = golden.tensors[&format!("{set}.greedy")].to_vec1().unwrap();
        let settings = GenerateSettings {
            max_new_tokens: expected.len(),
            temperature: 0.0,
            top_p: None,
            seed: 0,
            stop_tokens: Vec::new(),
        };
        let plan = live_plan(HookPlan::new(), transcoders, &golden.changes(set, prompt.len()), 1, model).unwrap();
        let ours = generate(model, &prompt, &plan, &settings, |_| Ok(())).unwrap();
        assert_eq!(ours.iter().map(|&t| i64::from(t)).collect::<Vec<_>>(), expected, "{set}");
        let plain = generate(model, &prompt, &HookPlan::new(), &settings, |_| Ok(())).unwrap();
        different += usize::from(plain != ours);
    });
    assert!(different > 3, "the interventions change the text");
}

#[test]
fn features_outside_the_set_are_refused() {
    let (golden, model) = (Golden::read("llama"), open("llama"));
    let set = Arc::new(golden.cross_layer(&model));
    let change = |layer, feature, op| FeatureChange { layer, feature, positions: Positions::All, op };
    let refused =
        |changes: &[FeatureChange]| live_plan(HookPlan::new(), &set, changes, 1, &model).unwrap_err().to_string();
    assert!(refused(&[]).contains("at least one feature"));
    assert!(refused(&[change(2, 0, FeatureOp::Ablate)]).contains("layers 0 to 1 and features 0 to 31"));
    assert!(refused(&[change(0, 32, FeatureOp::Ablate)]).contains("0/32"));
    assert!(refused(&[change(0, 1, FeatureOp::Scale(f32::NAN))]).contains("finite"));
    let error =
        live_plan(HookPlan::new(), &set, &[change(0, 1, FeatureOp::Ablate)], 1, &open("gpt2")).unwrap_err().to_string();
    assert!(error.contains("layer") || error.contains("width"), "{error}");
}

#[test]
fn steering_by_transcoders_is_an_intervention_from_the_second_position_on() {
    let (golden, model) = (Golden::read("llama"), open("llama"));
    let set = Arc::new(golden.cross_layer(&model));
    let edits = vec![
        (0, FeatureEdit { feature: 16, op: FeatureOp::Clamp(5.0) }),
        (1, FeatureEdit { feature: 21, op: FeatureOp::Scale(-3.0) }),
    ];
    let transcoders = TranscoderEdits { set: Arc::clone(&set), edits, untouched: 1 };
    let intervention = Intervention { transcoders: Some(transcoders), ..Intervention::default() };
    assert_eq!(
        intervention.describe(),
        ["set feature 16 of layer 0 to 5", "scale feature 21 of layer 1 by -3"].map(str::to_owned)
    );
    let concepts = intervention.concepts(model.config()).unwrap();
    assert_eq!(concepts.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(), ["feature 0/16", "feature 1/21"]);
    assert!(concepts[0].is_feature());
    let prompt = golden.prompt();
    let settings = GenerateSettings { max_new_tokens: 8, temperature: 0.0, top_p: None, seed: 0, stop_tokens: vec![] };
    for (positions, start) in [(Positions::All, 1), (Positions::From(prompt.len()), prompt.len())] {
        let plan = intervention.plan(&model, positions).unwrap();
        let ours = generate(&model, &prompt, &plan, &settings, |_| Ok(())).unwrap();
        let change = |layer, feature, op| FeatureChange { layer, feature, positions: Positions::From(start), op };
        let changes = [change(0, 16, FeatureOp::Clamp(5.0)), change(1, 21, FeatureOp::Scale(-3.0))];
        let plan = live_plan(HookPlan::new(), &set, &changes, 1, &model).unwrap();
        assert_eq!(ours, generate(&model, &prompt, &plan, &settings, |_| Ok(())).unwrap());
        let plain = generate(&model, &prompt, &HookPlan::new(), &settings, |_| Ok(())).unwrap();
        assert_ne!(ours, plain, "from position {start} on");
    }
}

/// A directory with the checkpoint `llama` and the golden sets `plt` and `clt`.
fn prepared() -> (Cli, Golden) {
    let (cli, golden, model) = (Cli::new(), Golden::read("llama"), open("llama"));
    checkpoint(&cli, "llama");
    write_set(&golden.per_layer(&model, "plt"), &cli.path("plt")).unwrap();
    write_set(&golden.cross_layer(&model), &cli.path("clt")).unwrap();
    (cli, golden)
}

/// The golden changes as flags; the golden prompt begins with the model's beginning-of-sequence token.
fn flags(golden: &Golden, set: &str) -> String {
    let changes = golden.changes(set, golden.prompt().len());
    let flag = |change: &FeatureChange| {
        let places = match &change.positions {
            Positions::All => String::new(),
            Positions::From(start) => format!("@{start}+"),
            Positions::List(list) => format!("@{}", list.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")),
        };
        let FeatureChange { layer, feature, op, .. } = change;
        format!(" --feature {layer}/{feature}{places}:{}", op.value().unwrap())
    };
    changes.iter().map(flag).collect()
}

#[test]
fn the_command_shows_what_circuit_tracer_computes() {
    let (cli, golden) = prepared();
    for (set, case, mode) in [
        ("plt", "patterns", ""),
        ("clt", "patterns", ""),
        ("clt", "free", "--open-ended"),
        ("plt", "direct", "--frozen-all"),
        ("clt", "direct", "--frozen-all"),
    ] {
        let line = format!(
            "graph intervene --model llama --transcoders {set} --top 48 --json {mode}{} --prompt",
            flags(&golden, set)
        );
        let report = cli.run_with(&line, "w9 w21 w17 w8 w30").json();
        let logits = &golden.tensors[&format!("{set}.{case}.logits")];
        let expected: Vec<f32> = logits.get(logits.dim(0).unwrap() - 1).unwrap().to_vec1().unwrap();
        let clean = golden.values(&format!("{set}.clean.logits"));
        let answers = report["answers"].as_array().unwrap();
        assert_eq!(answers.len(), 48);
        let mut moved = 0f32;
        for answer in answers {
            let token = answer["token"].as_u64().unwrap() as usize;
            let logit = |i: usize| answer["logit"][i].as_f64().unwrap() as f32;
            assert!((logit(0) - clean[clean.len() - 48 + token]).abs() < 1e-3, "{set} {case}: clean {token}");
            assert!((logit(1) - expected[token]).abs() < 1e-3, "{set} {case}: {token}");
            moved = moved.max((logit(1) - logit(0)).abs());
        }
        assert!(moved > 1e-2, "{set} {case}: nothing moved");
    }
    let line = format!(
        "graph intervene --model llama --transcoders plt --open-ended --max-new-tokens 8{} --prompt",
        flags(&golden, "plt")
    );
    let text = cli.run_with(&line, "w9 w21 w17 w8 w30").ok();
    let tokens: Vec<i64> = golden.tensors["plt.greedy"].to_vec1().unwrap();
    for needle in ["set feature", "held   nothing", "next token", "with the change", &format!("w{}", tokens[0])] {
        assert!(text.contains(needle), "'{needle}' is not in: {text}");
    }
}

#[test]
fn edges_of_a_written_graph_are_direct_effects_that_the_command_measures() {
    let (cli, _) = prepared();
    let everything = "--node-threshold 1 --edge-threshold 1 --max-logits 1 --verify --out graph.json";
    cli.run_with(&format!("graph --model llama --transcoders clt {everything} --prompt"), "w9 w21 w17 w8 w30").ok();
    let graph: Value = serde_json::from_slice(&std::fs::read(cli.path("graph.json")).unwrap()).unwrap();
    let target = graph["nodes"].as_array().unwrap().iter().find(|n| n["feature_type"] == "logit").unwrap();
    let token = target["feature"].as_u64().unwrap();
    let into = graph["links"].as_array().unwrap().iter().filter(|link| link["target"] == target["node_id"]);
    let features = into.filter(|link| {
        let kind = graph["nodes"].as_array().unwrap().iter().find(|n| n["node_id"] == link["source"]).unwrap();
        kind["feature_type"] == "cross layer transcoder"
    });
    let mut checked = 0;
    for link in features.take(4) {
        let id = link["source"].as_str().unwrap();
        let line = format!(
            "graph intervene --model llama --transcoders clt --graph graph.json --node {id} --ablate --frozen-all \
             --top 48 --json"
        );
        let report = cli.run(&line).json();
        let change = |answer: &Value| answer["logit"][0].as_f64().unwrap() - answer["logit"][1].as_f64().unwrap();
        let answers = report["answers"].as_array().unwrap();
        let mean = answers.iter().map(change).sum::<f64>() / answers.len() as f64;
        let own = answers.iter().find(|answer| answer["token"].as_u64() == Some(token)).unwrap();
        let (weight, measured) = (link["weight"].as_f64().unwrap(), change(own) - mean);
        assert!((weight - measured).abs() < 1e-3 * weight.abs().max(1.0), "{id}: {weight} and {measured}");
        assert_eq!(own["target"], true);
        checked += 1;
    }
    assert!(checked > 1, "the target has features as inputs");
    let other = "graph intervene --model llama --transcoders plt --graph graph.json --feature 0/1@2 --ablate";
    cli.run(other).error(&["graph.json", "cross-layer features", "--force"]);
    cli.run(&format!("{other} --force")).ok();
    cli.run(&format!("{other} --force --no-bos")).error(&["--no-bos", "--prompt"]);
    let free = cli.run("graph intervene --model llama --transcoders clt --graph graph.json --node 9_9_9 --ablate");
    free.error(&["--node", "9_9_9", "feature node in the graph"]);
}

#[test]
fn bad_changes_are_refused_with_the_way_out() {
    let (cli, _) = prepared();
    let run = |flags: &str| {
        let line = format!("graph intervene --model llama --transcoders plt {flags} --prompt");
        cli.run_with(&line, "w9 w21 w17 w8 w30")
    };
    run("--feature 0/99@2 --ablate").error(&["0/99", "features 0 to 31"]);
    run("--feature 7/1@2 --ablate").error(&["7/1", "layers 0 to 1"]);
    run("--feature 0/1@9 --ablate").error(&["--feature", "0 to 5"]);
    run("--feature 0/1@nothing --ablate").error(&["nothing", "w21"]);
    run("--feature 0/1@2").error(&["0/1@2", "--ablate"]);
    run("--feature 0/1@2:3 --ablate").error(&["--ablate", "leave the value out"]);
    run("--feature 1 --ablate").error(&["LAYER/FEATURE"]);
    run("--feature 0/1@2 --ablate --open-ended --frozen-all").error(&["--frozen-all"]);
    run("--node 0_1_2 --ablate").error(&["--graph"]);
    checkpoint(&cli, "gemma2");
    let line = "graph intervene --model gemma2 --transcoders plt --feature 0/1@2 --ablate --prompt";
    cli.run_with(line, "w9 w21").error(&["width 24", "width 20"]);
    for (flags, needle) in [
        ("--transcoders plt --feature 3 --clamp 2", "LAYER/ID"),
        ("--transcoders plt --feature 0/3 --strength 2", "--clamp"),
        ("--transcoders plt --feature 0/77 --clamp 2", "features 0 to 31"),
        ("--feature 0/3 --clamp 2", "--sae"),
    ] {
        cli.run_with(&format!("steer --model llama {flags} --prompt"), "w9 w21").error(&[needle]);
    }
    let line = "steer --model llama --transcoders plt --feature 0/1:9 --max-new-tokens 4 --json --prompt";
    let report = cli.run_with(line, "w9 w21 w17 w8 w30").json();
    assert_eq!(report["concepts"][0], "feature 0/1");
    assert_eq!(report["edits"][0], "set feature 1 of layer 0 to 9");
    assert_ne!(report["gained"], Value::Array(Vec::new()));
}
