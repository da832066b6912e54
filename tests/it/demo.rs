//! The built-in model against transformers, on values made by `tests/golden/make_demo.py`.

use std::path::Path;

use candle_core::{DType, Device};
use mechinterp::demo::built_in;
use mechinterp::model::{HookPlan, HookPoint};

use crate::close::Close;

#[test]
fn the_built_in_model_computes_what_transformers_computes() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/demo.safetensors");
    let golden = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    let model = built_in::model(DType::F32, &Device::Cpu).unwrap();
    let tokens = golden["tokens"].to_dtype(DType::U32).unwrap();
    let points: Vec<HookPoint> = golden.keys().filter_map(|key| HookPoint::resolve(key, model.config()).ok()).collect();
    assert_eq!(points.len(), 2 * model.config().n_layers, "every residual stream is in the golden file");
    let plan = points.iter().fold(HookPlan::default().with_logits(), |plan, &point| plan.capture(point));
    let run = model.forward(&tokens, &plan).unwrap();
    Close(1e-4).assert("logits", run.logits().unwrap(), &golden["logits"]);
    for point in points {
        Close(1e-4).assert(&point.to_string(), run.captured(point).unwrap(), &golden[&point.to_string()]);
    }
}
