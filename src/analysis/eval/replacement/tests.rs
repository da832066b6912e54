use super::*;
use crate::analysis::tests::open;
use crate::base::Silent;
use crate::dictionary::set::{CrossLayer, SetConfig, SetKind};
use crate::dictionary::{Activation, Architecture, Dictionary, DictionaryConfig};
use crate::model::{EditOp, HookPlan, HookPoint, Site};
use crate::ops::gemm::tests::numbers;

fn text() -> ReplacementText {
    let sequence = |s: u32| (0..10).map(|i| (i * i + 7 * s + 5) % 48).collect();
    let kept = |_| (0..10).map(|i| i > 0).collect();
    ReplacementText {
        sequences: (0..4).map(sequence).collect(),
        kept: (0..4).map(kept).collect(),
        ignored_targets: BTreeSet::from([21]),
    }
}

fn config(model: &Model, kind: SetKind, f: usize) -> SetConfig {
    SetConfig {
        kind,
        model_name: None,
        input: Site::MlpHookIn,
        output: Site::MlpHookOut,
        scan: "test".into(),
        n_layers: model.config().n_layers,
        d_model: model.config().d_model,
        d_transcoder: f,
    }
}

/// Transcoders with random weights of a size that matters.
fn random(model: &Model, f: usize, b_enc: f32) -> TranscoderSet {
    let d = model.config().d_model;
    let layer = |i: usize| {
        let config = DictionaryConfig::transcoder(Architecture::Relu, d, f, d);
        let named = |len: usize, name: &str| numbers(len, &format!("{name} {i}"));
        let w_dec = named(f * d, "w_dec").iter().map(|w| w * 0.3).collect();
        Dictionary::new(config, named(d * f, "w_enc"), vec![b_enc; f], w_dec, named(d, "b_dec"), Activation::relu())
            .unwrap()
    };
    let layers = (0..model.config().n_layers).map(layer).collect();
    TranscoderSet::from_layers(config(model, SetKind::PerLayer, f), layers).unwrap()
}

/// The same features as a cross-layer transcoder that writes nothing to later layers, or the same to all.
fn across(model: &Model, f: usize, later: f32) -> TranscoderSet {
    let (d, n) = (model.config().d_model, model.config().n_layers);
    let layer = |i: usize| {
        let named = |len: usize, name: &str| numbers(len, &format!("{name} {i}"));
        let decoder = |to: usize| {
            let factor = if to == 0 { 0.3 } else { later };
            named(f * d, "w_dec").iter().map(|w| w * factor).collect()
        };
        CrossLayer {
            w_enc: named(d * f, "w_enc"),
            b_enc: vec![0.1; f],
            w_dec: (0..n - i).map(decoder).collect(),
            b_dec: named(d, "b_dec"),
            activation: Activation::relu(),
            w_skip: None,
        }
    };
    TranscoderSet::from_cross_layer(config(model, SetKind::CrossLayer, f), (0..n).map(layer).collect()).unwrap()
}

fn measured(set: &TranscoderSet, model: &Model) -> ReplacementReport {
    replacement(set, model, &text(), &Silent).unwrap()
}

#[test]
fn losses_equal_a_direct_computation_with_edits_by_hand() {
    let model = open("llama");
    let set = random(&model, 20, 0.1);
    let report = measured(&set, &model);
    let text = text();
    let points = |layer| [Site::MlpHookIn, Site::MlpHookOut].map(|site| HookPoint::block(layer, site));
    let (mut clean, mut replaced, mut targets, mut agree) = (0.0, 0.0, 0, 0);
    for tokens in &text.sequences {
        let mut plan = HookPlan::new().with_logits();
        // Layer by layer: the outputs of the layers before are in place when the next input is read.
        for layer in 0..model.config().n_layers {
            let [input, output] = points(layer);
            let run = model.forward(&model.tokens(&[tokens]).unwrap(), &plan.clone().capture(input).capture(output));
            let run = run.unwrap();
            let x: Vec<f32> = run.captured(input).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            let y = run.captured(output).unwrap();
            let codes: Vec<SparseCodes> = (0..=layer).map(|_| set.encode(layer, &x).unwrap()).collect();
            let mut made = set.reconstruct_layer(layer, &codes, &x).unwrap();
            let d = set.config().d_model;
            made[..d].copy_from_slice(&y.flatten_all().unwrap().to_vec1::<f32>().unwrap()[..d]);
            let made = candle_core::Tensor::from_vec(made, y.dims(), y.device()).unwrap();
            plan = plan.edit(crate::model::Edit::new(output, EditOp::Set(made)));
        }
        let logits = |plan: &HookPlan| -> Vec<Vec<f32>> {
            let run = model.forward(&model.tokens(&[tokens]).unwrap(), plan).unwrap();
            run.logits().unwrap().get(0).unwrap().to_vec2().unwrap()
        };
        let (before, after) = (logits(&HookPlan::new().with_logits()), logits(&plan));
        let loss = |row: &[f32], target: u32| {
            let sum: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
            sum.ln() - f64::from(row[target as usize])
        };
        let top = |row: &[f32]| (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
        for i in 1..10 {
            agree += u64::from(top(&before[i]) == top(&after[i]));
            if let Some(&target) = tokens.get(i + 1).filter(|token| **token != 21) {
                clean += loss(&before[i], target);
                replaced += loss(&after[i], target);
                targets += 1;
            }
        }
    }
    assert_eq!((report.positions, report.targets), (36, targets));
    let near = |a: f64, b: f64| (a - b).abs() < 1e-4;
    assert!(near(report.clean_ce_loss, clean / targets as f64));
    assert!(near(report.replaced.ce_loss, replaced / targets as f64), "{} {replaced}", report.replaced.ce_loss);
    assert!(near(report.replaced.top1_agreement, agree as f64 / 36.0));
    assert!((report.replaced.ce_loss - report.clean_ce_loss).abs() > 0.01 && report.replaced.kl_divergence > 0.01);
}

#[test]
fn silent_transcoders_are_no_better_than_their_biases_and_all_features_are_dead() {
    let model = open("llama");
    let report = measured(&random(&model, 20, -1e6), &model);
    for layer in &report.layers {
        assert_eq!((layer.l0, layer.dead_features), (0.0, 20));
        assert!(layer.explained_variance < 0.0 && layer.normalized_mse > 0.5, "{layer:?}");
        assert!(layer.ablated.kl_divergence < layer.replaced.kl_divergence, "the mean is the best constant");
    }
}

#[test]
fn a_cross_layer_transcoder_without_later_writes_is_the_per_layer_set() {
    let model = open("llama");
    let alone = measured(&random(&model, 20, 0.1), &model);
    assert_eq!(measured(&across(&model, 20, 0.0), &model), alone);
    let more = measured(&across(&model, 20, 0.2), &model);
    assert_eq!(more.layers[0], alone.layers[0], "nothing is written to the first layer");
    assert!((more.layers[1].normalized_mse - alone.layers[1].normalized_mse).abs() > 1e-3);
    assert_eq!(more.ablated, alone.ablated);
}

#[test]
fn another_models_set_and_a_text_without_positions_are_refused() {
    let model = open("llama");
    let other = open("gpt2");
    let set = random(&model, 8, 0.0);
    if (other.config().n_layers, other.config().d_model) != (model.config().n_layers, model.config().d_model) {
        assert!(replacement(&set, &other, &text(), &Silent).is_err());
    }
    let nothing = ReplacementText { kept: vec![vec![false; 10]; 4], ..text() };
    let error = replacement(&set, &model, &nothing, &Silent).unwrap_err().to_string();
    assert!(error.contains("no position counts"), "{error}");
}
