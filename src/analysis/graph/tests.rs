use std::path::{Path, PathBuf};

use candle_core::{DType, Device};

use super::*;
use crate::base::progress::Silent;
use crate::dictionary::set::{CrossLayer, SetConfig, SetKind, TranscoderSet};
use crate::dictionary::tests::random_transcoder;
use crate::dictionary::{Activation, Architecture};
use crate::model::config::BlockLayout;
use crate::model::{Model, ModelConfig, Site};
use crate::ops::gemm::tests::numbers;

const F: usize = 40;
const TOKENS: [u32; 9] = [3, 9, 21, 17, 8, 30, 12, 5, 9];

fn set_config(config: &ModelConfig, input: Site, output: Site) -> SetConfig {
    SetConfig {
        kind: SetKind::PerLayer,
        model_name: None,
        input,
        output,
        scan: "random".into(),
        n_layers: config.n_layers,
        d_model: config.d_model,
        d_transcoder: F,
    }
}

/// A random set of per-layer transcoders.
pub(crate) fn per_layer(
    config: &ModelConfig,
    arch: Architecture,
    skip: bool,
    input: Site,
    output: Site,
) -> TranscoderSet {
    let d = config.d_model;
    let layer = |layer: usize| {
        let mut dictionary = random_transcoder(arch, d, F, d);
        dictionary.w_enc = numbers(d * F, &format!("w_enc {layer}"));
        dictionary.b_enc = numbers(F, &format!("b_enc {layer}"));
        dictionary.w_dec = numbers(F * d, &format!("w_dec {layer}"));
        dictionary.b_dec = numbers(d, &format!("b_dec {layer}"));
        dictionary.w_skip = skip.then(|| numbers(d * d, &format!("w_skip {layer}")));
        dictionary
    };
    let layers = (0..config.n_layers).map(layer).collect();
    TranscoderSet::from_layers(set_config(config, input, output), layers).unwrap()
}

/// A random cross-layer transcoder.
pub(crate) fn cross_layer(config: &ModelConfig, skip: bool, input: Site, output: Site) -> TranscoderSet {
    let (d, n) = (config.d_model, config.n_layers);
    let layer = |layer: usize| CrossLayer {
        w_enc: numbers(d * F, &format!("w_enc {layer}")),
        b_enc: numbers(F, &format!("b_enc {layer}")),
        w_dec: (layer..n).map(|to| numbers(F * d, &format!("w_dec {layer} {to}"))).collect(),
        b_dec: numbers(d, &format!("b_dec {layer}")),
        activation: Activation::relu(),
        w_skip: skip.then(|| numbers(d * d, &format!("w_skip {layer}"))),
    };
    let config = SetConfig { kind: SetKind::CrossLayer, ..set_config(config, input, output) };
    TranscoderSet::from_cross_layer(config, (0..n).map(layer).collect()).unwrap()
}

fn traced(model: &Model, set: &TranscoderSet, choice: &TargetChoice, settings: &GraphSettings) -> Attribution {
    let context = Context::new(model, set, &TOKENS, settings.zero_positions).unwrap();
    let targets = choice.resolve(model, &context).unwrap();
    attribute(model, set, &context, targets, settings, &Silent).unwrap()
}

fn likeliest() -> TargetChoice {
    TargetChoice::Likeliest { most: 3, probability: 0.95 }
}

fn model_at(dir: PathBuf) -> Model {
    Model::open(&dir.join("config.json"), &[dir.join("model.safetensors")], DType::F32, &Device::Cpu).unwrap()
}

/// Every golden checkpoint, mixtures of experts included.
fn families() -> Vec<(String, Model)> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let dirs = ["models", "mixtures"].into_iter().flat_map(|kind| std::fs::read_dir(golden.join(kind)).unwrap());
    let dirs = dirs.map(|entry| entry.unwrap().path()).filter(|dir| dir.join("model.safetensors").exists());
    let mut dirs: Vec<PathBuf> = dirs.collect();
    dirs.sort();
    dirs.into_iter().map(|dir| (dir.display().to_string(), model_at(dir))).collect()
}

/// Rows sum to what they explain whatever the set reads and writes, and none of them is empty.
fn check_sums(name: &str, model: &Model) {
    let config = model.config();
    let mut inputs = vec![Site::MlpHookIn];
    if Site::ResidMid.exists_in(config) {
        inputs.push(Site::ResidMid);
    }
    if config.layout.norms_inputs() {
        inputs.push(Site::Ln2Normalized);
    }
    let identity = Architecture::JumpIdentity;
    for (i, input) in inputs.into_iter().enumerate() {
        let output = if i % 2 == 0 { Site::MlpHookOut } else { Site::MlpOut };
        let sets = [
            per_layer(config, if i == 0 { identity } else { Architecture::Relu }, i != 1, input, output),
            cross_layer(config, i == 1, input, output),
        ];
        for set in sets {
            let settings = GraphSettings { batch_size: 7, max_feature_nodes: 60, ..GraphSettings::default() };
            let graph = traced(model, &set, &likeliest(), &settings);
            let worst = graph.largest_row_error;
            assert!(worst < 1e-4, "{name}, {}, {}: {worst}", set.config().input.name(), set.config().output.name());
            assert!(graph.features.len() == 60 && graph.active_features > 60, "{name}: {}", graph.active_features);
            assert!(graph.edges() > 500, "{name}: {} edges", graph.edges());
        }
    }
}

#[test]
fn rows_sum_to_what_they_explain_in_every_family() {
    let families = families();
    assert!(families.len() > 50, "{}", families.len());
    let layouts: std::collections::BTreeSet<String> =
        families.iter().map(|(_, model)| format!("{:?}", model.config().layout)).collect();
    assert_eq!(layouts.len(), 6, "{layouts:?}");
    assert!(families.iter().any(|(_, model)| model.config().layout == BlockLayout::StreamNorm));
    for (name, model) in &families {
        check_sums(name, model);
    }
}

#[test]
fn the_batch_size_changes_nothing() {
    let model = crate::analysis::tests::open("gemma2");
    let set = cross_layer(model.config(), true, Site::ResidMid, Site::MlpOut);
    let all = GraphSettings { max_feature_nodes: usize::MAX, ..GraphSettings::default() };
    let whole = traced(&model, &set, &likeliest(), &all);
    let pieces = traced(&model, &set, &likeliest(), &GraphSettings { batch_size: 5, ..all });
    assert_eq!(whole.features, pieces.features);
    let (a, b) = (whole.dense(), pieces.dense());
    let largest = a.iter().fold(0f32, |m, x| m.max(x.abs()));
    assert!(largest > 0.1 && a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-5 * largest));
}

#[test]
fn a_contrast_is_the_difference_of_two_targets() {
    let model = crate::analysis::tests::open("gpt2");
    let set = per_layer(model.config(), Architecture::Relu, true, Site::MlpHookIn, Site::MlpHookOut);
    let settings = GraphSettings::default();
    let both = traced(&model, &set, &TargetChoice::Tokens(vec![7, 11]), &settings);
    let contrast = traced(&model, &set, &TargetChoice::Contrast(7, 11), &settings);
    let (first, second, only) = (both.target_node(0), both.target_node(1), contrast.target_node(0));
    for source in 0..first {
        let difference = both.effect(first, source) - both.effect(second, source);
        assert!((difference - contrast.effect(only, source)).abs() < 1e-4);
    }
    let value = both.targets[0].value - both.targets[1].value;
    assert!((value - contrast.targets[0].value).abs() < 1e-6 && value.abs() > 1e-3);
    assert!(contrast.largest_row_error < 1e-4);
}

#[test]
fn features_are_selected_by_influence_and_pruning_keeps_what_matters() {
    let model = crate::analysis::tests::open("llama");
    let set = per_layer(model.config(), Architecture::Relu, false, Site::MlpHookIn, Site::MlpHookOut);
    let all = GraphSettings { max_feature_nodes: usize::MAX, ..GraphSettings::default() };
    let whole = traced(&model, &set, &likeliest(), &all);
    let some = traced(&model, &set, &likeliest(), &GraphSettings { max_feature_nodes: 80, batch_size: 10, ..all });
    let influence = node_influence(&whole);
    let total: f64 = influence[..whole.features.len()].iter().sum();
    let chosen: f64 =
        whole.features.iter().zip(&influence).filter(|(f, _)| some.features.contains(f)).map(|(_, i)| i).sum();
    assert!(chosen > 0.5 * total && some.features.len() == 80, "{chosen} of {total}");

    let pruned = prune(&whole, &all);
    let kept: f64 = influence.iter().zip(&pruned.nodes).filter(|(_, kept)| **kept).map(|(i, _)| i).sum();
    assert!(kept >= 0.75 * influence.iter().sum::<f64>());
    let nodes = pruned.nodes.iter().filter(|kept| **kept).count();
    assert!(nodes < whole.nodes() && pruned.edges.len() < whole.edges());
    for edge in &pruned.edges {
        assert!(pruned.nodes[edge.source] && pruned.nodes[edge.target]);
        assert_eq!(edge.weight, whole.effect(edge.target, edge.source));
    }
    let (before, after) = (scores(&whole), pruned_scores(&whole, &pruned));
    for score in [before.replacement, before.completeness, after.replacement, after.completeness] {
        assert!((0.0..=1.0).contains(&score), "{before:?} {after:?}");
    }
}

#[test]
fn a_set_of_another_model_and_a_prompt_of_one_token_are_refused() {
    let (model, other) = (crate::analysis::tests::open("llama"), crate::analysis::tests::open("gemma2"));
    let set = per_layer(other.config(), Architecture::Relu, false, Site::MlpHookIn, Site::MlpHookOut);
    assert!(Context::new(&model, &set, &TOKENS, 1).unwrap_err().to_string().contains("width"));
    let set = per_layer(model.config(), Architecture::Relu, false, Site::MlpHookIn, Site::MlpHookOut);
    assert!(Context::new(&model, &set, &[3], 1).unwrap_err().to_string().contains("two tokens"));
    let set = per_layer(model.config(), Architecture::Relu, false, Site::ResidPre, Site::MlpHookOut);
    assert!(Context::new(&model, &set, &TOKENS, 1).unwrap_err().to_string().contains("hook_resid_pre"));
}

#[test]
fn graphs_through_dictionaries_sum_the_better_the_more_steps_there_are() {
    let (model, tokens) = (crate::analysis::tests::open("gpt2"), &TOKENS[..6]);
    let at = |hook: &str| std::sync::Arc::new(crate::analysis::tests::dictionary_at(hook, model.config().d_model, F));
    let both = vec![at("blocks.1.hook_resid_pre"), at("blocks.0.hook_resid_post")];
    let error = Dictionaries::new(both.clone(), model.config()).unwrap_err().to_string();
    assert!(Dictionaries::new(both[..1].to_vec(), model.config()).is_err());
    assert!(error.contains("same layer") || error.contains("one dictionary"), "{error}");
    let dictionaries =
        Dictionaries::new(vec![at("blocks.2.hook_resid_pre"), at("blocks.0.hook_resid_pre")], model.config()).unwrap();
    let about = About { prompt: String::new(), model: String::new(), text: &|token| token.to_string() };
    let settings = GraphSettings { max_feature_nodes: 60, ..GraphSettings::default() };
    let traced = |steps| {
        trace_dictionaries(&model, &dictionaries, tokens, &likeliest(), &settings, steps, &about, &Silent).unwrap()
    };
    let (coarse, fine) = (traced(2), traced(60));
    let errors = [coarse.0.report.largest_row_error, fine.0.report.largest_row_error];
    assert!(errors[1] < 0.02 && errors[1] < errors[0], "{errors:?}");
    let (graph, attribution) = fine;
    assert_eq!(attribution.features.len(), 60);
    let layers: std::collections::BTreeSet<usize> = graph.nodes.iter().filter_map(Node::layer).collect();
    assert_eq!(layers.into_iter().collect::<Vec<_>>(), [0, 2]);
    // Features act on those of the next dictionary and on nothing beyond.
    let target = attribution.target_node(0);
    for (node, feature) in attribution.features.iter().enumerate() {
        assert_eq!(feature.layer == 0, attribution.effect(target, node) == 0.0, "{feature:?}");
    }
    assert_eq!(attribution.effect(target, attribution.token_node(0)), 0.0);
}
