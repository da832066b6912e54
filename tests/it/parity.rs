//! Our forward pass against transformers', on tiny checkpoints made by `tests/golden/make_models.py`.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use mechinterp::model::generate::{GenerateSettings, generate};
use mechinterp::model::{Edit, EditOp, HookPlan, HookPoint, Model, Positions, Site};

use crate::close::Close;

const MODELS: [&str; 9] = [
    "gpt2",
    "gpt2-scaled",
    "llama",
    "llama-wide",
    "llama-linear",
    "llama-dynamic",
    "llama-llama3",
    "llama-yarn",
    "llama-longrope",
];

fn dir(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models").join(name)
}

fn open(name: &str) -> Model {
    let mut weights: Vec<PathBuf> = std::fs::read_dir(dir(name))
        .unwrap()
        .flatten()
        .map(|e| e.path())
        .filter(|p| {
            p.file_name().unwrap().to_str().unwrap().starts_with("model") && p.extension().unwrap() == "safetensors"
        })
        .collect();
    weights.sort();
    Model::open(&dir(name).join("config.json"), &weights, DType::F32, &Device::Cpu).unwrap()
}

fn golden(name: &str) -> std::collections::HashMap<String, Tensor> {
    candle_core::safetensors::load(dir(name).join("golden.safetensors"), &Device::Cpu).unwrap()
}

#[test]
fn logits_and_every_hook_equal_transformers() {
    for name in MODELS {
        let (model, golden) = (open(name), golden(name));
        let tokens = golden["tokens"].to_dtype(DType::U32).unwrap();
        let points: Vec<HookPoint> =
            golden.keys().filter_map(|key| HookPoint::resolve(key, model.config()).ok()).collect();
        assert!(points.len() >= 20, "{name}: only {} hook points in the golden file", points.len());
        let plan = points.iter().fold(HookPlan::new().with_logits(), |plan, &p| plan.capture(p));
        let run = model.forward(&tokens, &plan).unwrap();
        Close(1e-4).assert(&format!("{name} logits"), run.logits().unwrap(), &golden["logits"]);
        for point in points {
            let ours = run.captured(point).unwrap();
            Close(1e-4).assert(&format!("{name} {point}"), ours, &golden[&point.to_string()]);
        }
    }
}

#[test]
fn every_hook_point_has_its_documented_shape_and_the_stream_adds_up() {
    for name in MODELS {
        let (model, golden) = (open(name), golden(name));
        let config = model.config().clone();
        let tokens = golden["tokens"].to_dtype(DType::U32).unwrap();
        let points = HookPoint::all(&config);
        let plan = points.iter().fold(HookPlan::new(), |plan, &p| plan.capture(p));
        let run = model.forward(&tokens, &plan).unwrap();
        let (b, s) = tokens.dims2().unwrap();
        for &point in &points {
            assert_eq!(run.captured(point).unwrap().dims(), point.site.shape(&config, b, s, s), "{name} {point}");
        }
        let at = |layer, site| run.captured(HookPoint::block(layer, site)).unwrap();
        for layer in 0..config.n_layers {
            let mid = (at(layer, Site::ResidPre) + at(layer, Site::AttnAdded)).unwrap();
            Close(1e-6).assert("resid_mid", at(layer, Site::ResidMid), &mid);
            let post = (at(layer, Site::ResidMid) + at(layer, Site::MlpAdded)).unwrap();
            Close(1e-6).assert("resid_post", at(layer, Site::ResidPost), &post);
            if layer + 1 < config.n_layers {
                Close(0.0).assert("resid_pre", at(layer + 1, Site::ResidPre), at(layer, Site::ResidPost));
            }
        }
    }
}

#[test]
fn hooked_and_unhooked_passes_agree() {
    for name in MODELS {
        let (model, golden) = (open(name), golden(name));
        let tokens = golden["tokens"].to_dtype(DType::U32).unwrap();
        let plain = model.forward(&tokens, &HookPlan::new().with_logits()).unwrap();
        let plan = HookPoint::all(model.config()).into_iter().fold(HookPlan::new().with_logits(), HookPlan::capture);
        let hooked = model.forward(&tokens, &plan).unwrap();
        Close(1e-5).assert(name, hooked.logits().unwrap(), plain.logits().unwrap());
    }
}

#[test]
fn a_pass_stops_after_the_last_point_it_needs() {
    let model = open("llama");
    let tokens = model.tokens(&[[3u32, 4, 5]]).unwrap();
    let last = HookPoint::block(0, Site::ResidPost);
    // An edit with NaN above the last captured point would poison the result if it were computed.
    let poison = Edit::new(HookPoint::block(1, Site::ResidPre), EditOp::Scale(f64::NAN));
    let run = model.forward(&tokens, &HookPlan::new().capture(last).edit(poison)).unwrap();
    assert!(run.logits.is_none());
    assert!(run.captured(last).unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().is_finite());
}

/// Greedy generation by running the whole sequence again for every token.
fn recompute(model: &Model, prompt: &[u32], plan: &HookPlan, n: usize) -> Vec<u32> {
    let mut tokens = prompt.to_vec();
    for _ in 0..n {
        let run = model.forward(&model.tokens(&[&tokens]).unwrap(), &plan.clone().with_logits()).unwrap();
        let last = run.logits().unwrap().get(0).unwrap().get(tokens.len() - 1).unwrap();
        tokens.push(last.argmax(0).unwrap().to_scalar::<u32>().unwrap());
    }
    tokens.split_off(prompt.len())
}

#[test]
fn cached_generation_equals_recomputation_steered_and_not() {
    for name in MODELS {
        let model = open(name);
        let d = model.config().d_model;
        let prompt = [7u32, 21, 9, 33, 14];
        let direction: Vec<f32> = (0..d).map(|i| if i % 3 == 0 { 4.0 } else { -1.5 }).collect();
        let direction = Tensor::new(direction, &Device::Cpu).unwrap();
        let post = HookPoint::block(0, Site::ResidPost);
        let add = || Edit::new(post, EditOp::Add(direction.clone()));
        let rotary = HookPoint::block(1, Site::RotK).check(model.config()).is_ok();
        let key_site = if rotary { Site::RotK } else { Site::K };
        let plans = [
            HookPlan::new(),
            HookPlan::new().edit(add()),
            HookPlan::new().edit(add().positions(Positions::From(prompt.len()))),
            HookPlan::new().edit(add().positions(Positions::List(vec![2, 6]))),
            HookPlan::new().edit(Edit::new(HookPoint::block(1, key_site), EditOp::Scale(-2.0))),
            HookPlan::new().edit(Edit::new(HookPoint::block(1, Site::Z), EditOp::Ablate).head(1)),
        ];
        let settings =
            GenerateSettings { max_new_tokens: 10, temperature: 0.0, top_p: None, seed: 0, stop_tokens: vec![] };
        let mut texts = Vec::new();
        for plan in &plans {
            let cached = generate(&model, &prompt, plan, &settings, |_| Ok(())).unwrap();
            assert_eq!(cached, recompute(&model, &prompt, plan, 10), "{name} {plan:?}");
            texts.push(cached);
        }
        assert!(texts[1..].iter().any(|t| *t != texts[0]), "{name}: no edit changed anything");
    }
}
