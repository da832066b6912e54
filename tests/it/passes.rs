//! Passes that compute the same thing another way, in every family: with gradients, in half precision, through inputs
//! of single heads.

use std::collections::BTreeMap;

use candle_core::{D, DType, Device, Tensor, Var};
use mechinterp::model::{Edit, EditOp, HookPlan, HookPoint, Model, Positions, Site};

use crate::close::Close;
use crate::golden::{Golden, config_json, names, weight_files};

/// The weights of a checkpoint as variables.
fn variables(name: &str) -> BTreeMap<String, Var> {
    let files = weight_files(name).into_iter().map(|file| candle_core::safetensors::load(file, &Device::Cpu).unwrap());
    let variable = |value: Tensor| Var::from_tensor(&value.to_dtype(DType::F32).unwrap()).unwrap();
    files.flatten().map(|(tensor, value)| (tensor, variable(value))).collect()
}

fn from_variables(name: &str, variables: &BTreeMap<String, Var>) -> Model {
    let tensors = variables.iter().map(|(n, v)| (n.clone(), v.as_tensor().clone())).collect();
    Model::from_tensors(&config_json(name), tensors, DType::F32, &Device::Cpu).unwrap()
}

/// A number that depends on all logits.
fn loss(model: &Model, tokens: &Tensor) -> Tensor {
    let run = model.forward(tokens, &HookPlan::new().with_logits()).unwrap();
    let logits = run.logits().unwrap();
    let v = logits.dim(D::Minus1).unwrap();
    let weights: Vec<f32> = (0..v).map(|i| ((i * 7 % 11) as f32 - 5.0) / 10.0).collect();
    let weights = Tensor::new(weights, &Device::Cpu).unwrap();
    candle_nn::ops::log_softmax(logits, D::Minus1).unwrap().broadcast_mul(&weights).unwrap().mean_all().unwrap()
}

#[test]
fn gradients_reach_every_weight_and_predict_small_changes() {
    for name in names() {
        let golden = Golden::open(&name);
        let tokens = golden.tokens.narrow(0, 0, 1).unwrap();
        let variables = variables(&name);
        let model = from_variables(&name, &variables);
        let before = loss(&model, &tokens);
        let gradients = before.backward().unwrap();
        let before = f64::from(before.to_scalar::<f32>().unwrap());
        let (mut predicted, mut reached, mut through_experts) = (0.0, 0, false);
        for (tensor, variable) in &variables {
            // Masks that old files carry, and the eyes of multimodal models.
            let unused = ["vision_", "multi_modal", "attn.bias", "attention.bias", "masked_bias", "inv_freq"];
            // No token may go through an expert.
            let used = !unused.iter().any(|part| tensor.contains(part)) && !tensor.contains(".experts.");
            let Some(gradient) = gradients.get(variable) else {
                assert!(!used, "{name}: no gradient reaches {tensor}");
                continue;
            };
            reached += 1;
            through_experts |= tensor.contains(".experts.");
            // A step that lowers the loss, sized so that it is small in every model.
            let squared = f64::from(gradient.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap());
            assert!(squared.is_finite(), "{name}: gradient of {tensor}");
            let rate = 1e-4 / (squared.sqrt() + 1e-6);
            predicted -= rate * squared;
            variable.set(&(variable.as_tensor() - (gradient * rate).unwrap()).unwrap()).unwrap();
        }
        assert!(reached > 10, "{name}: {reached} gradients");
        assert_eq!(through_experts, model.config().mlp.experts.is_some(), "{name}");
        let after = f64::from(loss(&from_variables(&name, &variables), &tokens).to_scalar::<f32>().unwrap());
        let change = after - before;
        assert!((change - predicted).abs() < 0.1 * predicted.abs(), "{name}: {change:.3e}, predicted {predicted:.3e}");
    }
}

/// Editing what one head reads changes that head's projection and leaves the others, and editing what all heads read
/// is editing the stream before the norm.
#[test]
fn inputs_of_single_heads_reach_those_heads_alone() {
    for name in names() {
        let golden = Golden::open(&name);
        let (model, config) = (&golden.model, golden.model.config());
        let d = config.d_model;
        let push: Vec<f32> = (0..d).map(|i| if i % 3 == 0 { 2.0 } else { -0.5 }).collect();
        let push = Tensor::new(push, &Device::Cpu).unwrap();
        let at = |site| HookPoint::block(1, site);
        let sites = [(Site::QInput, Site::Q), (Site::KInput, Site::K), (Site::VInput, Site::V)];
        let plain = golden.run_everything();
        let in_stream = Edit::new(at(Site::ResidPre), EditOp::Add(push.clone()));
        let pushed = sites.iter().fold(HookPlan::new().edit(in_stream), |plan, (_, out)| plan.capture(at(*out)));
        let pushed = model.forward(&golden.tokens, &pushed).unwrap();
        for (input, output) in sites {
            let heads = output.heads(config).unwrap();
            for head in 0..heads {
                let edit = Edit::new(at(input), EditOp::Add(push.clone())).head(head);
                let plan = sites.iter().fold(HookPlan::new().edit(edit), |plan, (_, out)| plan.capture(at(*out)));
                let run = model.forward(&golden.tokens, &plan).unwrap();
                for (_, other) in sites {
                    let (ours, before) = (run.captured(at(other)).unwrap(), plain.captured(at(other)).unwrap());
                    for h in 0..other.heads(config).unwrap() {
                        let (ours, before) = (ours.narrow(2, h, 1).unwrap(), before.narrow(2, h, 1).unwrap());
                        let what = format!("{name} {input:?} {head}, {other:?} {h}");
                        if other == output && h == head {
                            let stream = pushed.captured(at(other)).unwrap().narrow(2, h, 1).unwrap();
                            Close(2e-5).assert(&what, &ours, &stream);
                            assert!(Close::distance(&what, &ours, &before) > 1e-3, "{what}: nothing changed");
                        } else {
                            Close(2e-5).assert(&what, &ours, &before);
                        }
                    }
                }
            }
        }
        if at(Site::AttnIn).exists_in(config) {
            let all = Edit::new(at(Site::AttnIn), EditOp::Add(push.repeat(config.n_heads).unwrap()));
            let plan = sites.iter().fold(HookPlan::new().edit(all), |plan, (_, out)| plan.capture(at(*out)));
            let run = model.forward(&golden.tokens, &plan).unwrap();
            for (_, output) in sites {
                let (ours, stream) = (run.captured(at(output)).unwrap(), pushed.captured(at(output)).unwrap());
                Close(2e-5).assert(&format!("{name} hook_attn_in"), ours, stream);
            }
        }
    }
}

/// What a point captured, put back at the same point, changes nothing; at one position, nothing elsewhere.
#[test]
fn putting_a_value_back_changes_nothing_at_any_point() {
    for name in names() {
        let golden = Golden::open(&name);
        let plain = golden.run_everything();
        for point in HookPoint::all(golden.model.config()) {
            // The same numbers in another order would not do: masked scores are infinite.
            let value = plain.captured(point).unwrap().clone();
            for positions in [Positions::All, Positions::List(vec![1, 3])] {
                let edit = Edit::new(point, EditOp::Set(value.clone())).positions(positions);
                let run = golden.model.forward(&golden.tokens, &HookPlan::new().with_logits().edit(edit)).unwrap();
                Close(1e-5).assert(&format!("{name} {point}"), run.logits().unwrap(), plain.logits().unwrap());
            }
        }
    }
}
