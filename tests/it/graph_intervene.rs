//! Interventions on transcoder features against circuit-tracer, with goldens of `tests/golden/make_interventions.py`.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::safetensors::load;
use candle_core::{Device, Tensor};
use mechinterp::analysis::FeatureOp;
use mechinterp::analysis::graph::{FeatureChange, FrozenRun, Hold, live_plan};
use mechinterp::dictionary::{
    Activation, Architecture, CrossLayer, Dictionary, DictionaryConfig, SetConfig, SetKind, TranscoderSet,
};
use mechinterp::model::generate::{GenerateSettings, generate};
use mechinterp::model::{HookPlan, Model, Positions, Site};
use safetensors::SafeTensors;
use serde_json::Value;

use crate::close::Close;
use crate::golden::open;

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
        let plain = generate(model, &prompt, &Default::default(), &settings, |_| Ok(())).unwrap();
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
