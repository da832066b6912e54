use candle_core::Tensor;

use super::path::parse_receiver;
use super::*;
use crate::analysis::tests::{dictionary_at, open};
use crate::analysis::{FeatureEdit, FeatureOp, FeatureRewrite};
use crate::base::Silent;
use crate::model::{Edit, EditOp, HookPlan, Model, Positions};

const CLEAN: [u32; 6] = [3, 9, 21, 17, 8, 30];
const CORRUPT: [u32; 6] = [3, 9, 14, 17, 25, 30];
const METRIC: Metric = Metric::LogitDifference { target: 7, against: 11 };

fn all_points(model: &Model) -> Vec<HookPoint> {
    let layers: Vec<usize> = (0..model.config().n_layers).collect();
    SITES.iter().filter_map(|(_, site)| points(*site, &layers, model.config()).ok()).flatten().collect()
}

/// The metric of a whole pass.
fn whole(model: &Model, tokens: &[u32], plan: HookPlan) -> f64 {
    let run = model.forward(&model.tokens(&[tokens]).unwrap(), &plan.with_logits()).unwrap();
    let logits = run.logits().unwrap().squeeze(0).unwrap().to_vec2::<f32>().unwrap();
    METRIC.of(logits.last().unwrap())
}

fn captured(model: &Model, tokens: &[u32], point: HookPoint) -> Tensor {
    let run = model.forward(&model.tokens(&[tokens]).unwrap(), &HookPlan::new().capture(point)).unwrap();
    run.captured(point).unwrap().clone()
}

#[track_caller]
fn assert_near(found: Option<f64>, expected: f64, what: &str) {
    let found = found.unwrap();
    assert!((found - expected).abs() < 2e-5, "{what}: {found} for {expected}");
}

#[test]
fn every_patch_equals_a_whole_pass_with_that_edit() {
    for name in ["llama", "gpt2", "gemma2", "olmo2", "gpt_neox"] {
        let model = open(name);
        let config = model.config();
        let all = all_points(&model);
        let source = Trace::record(&model, &CLEAN, METRIC, &all).unwrap();
        let patcher = Patcher::new(&model, &CORRUPT, METRIC, &all).unwrap();
        assert_near(Some(source.metric), whole(&model, &CLEAN, HookPlan::new()), name);
        let replacement = Replacement::Runs(vec![source]);
        let scope = Scope::all(config, CLEAN.len());
        let mut moved = 0;
        for (title, site) in SITES {
            if points(site, &[0], config).is_err() {
                continue;
            }
            let by = if has_heads(site) { By::Head } else { By::Position };
            let sweep = patcher.sweep(site, by, &scope, &replacement, &Silent).unwrap();
            assert_eq!(sweep.rows, Axis::Layer(scope.layers.clone()));
            for (layer, row) in sweep.metric.iter().enumerate() {
                let point = HookPoint::block(layer, site);
                let value = captured(&model, &CLEAN, point);
                for (column, found) in row.iter().enumerate() {
                    let edit = Edit::new(point, EditOp::Set(value.clone()));
                    let edit = match by {
                        By::Position => edit.positions(Positions::List(vec![column])),
                        _ => edit.head(column),
                    };
                    let expected = whole(&model, &CORRUPT, HookPlan::new().edit(edit));
                    assert_near(*found, expected, &format!("{name} {title} {layer} {column}"));
                    moved += usize::from((expected - patcher.base().metric).abs() > 1e-3);
                }
            }
        }
        assert!(moved > 30, "{name}: patches do something");
    }
}

#[test]
fn heads_are_patched_at_single_positions_too() {
    let model = open("llama");
    let all = all_points(&model);
    let replacement = Replacement::Runs(vec![Trace::record(&model, &CLEAN, METRIC, &all).unwrap()]);
    let patcher = Patcher::new(&model, &CORRUPT, METRIC, &all).unwrap();
    let scope = Scope { heads: vec![1, 3], positions: vec![2, 5], ..Scope::all(model.config(), 6) };
    for site in [Site::Z, Site::AttnPattern] {
        let sweep = patcher.sweep(site, By::HeadPosition, &scope, &replacement, &Silent).unwrap();
        assert_eq!(sweep.rows, Axis::LayerHead(vec![(0, 1), (0, 3), (1, 1), (1, 3)]));
        let point = HookPoint::block(1, site);
        let edit = Edit::new(point, EditOp::Set(captured(&model, &CLEAN, point)));
        let edit = edit.head(3).positions(Positions::List(vec![5]));
        assert_near(sweep.metric[3][1], whole(&model, &CORRUPT, HookPlan::new().edit(edit)), "one head, one position");
    }
}

#[test]
fn the_whole_stream_carries_the_whole_answer() {
    let model = open("gpt2");
    let all = all_points(&model);
    let source = Trace::record(&model, &CLEAN, METRIC, &all).unwrap();
    let patcher = Patcher::new(&model, &CORRUPT, METRIC, &all).unwrap();
    let baseline = Baseline { base: patcher.base().metric, source: Some(source.metric) };
    let scope = Scope::all(model.config(), 6);
    let sweep =
        patcher.sweep(Site::ResidPost, By::Position, &scope, &Replacement::Runs(vec![source]), &Silent).unwrap();
    let last = sweep.metric.last().unwrap();
    assert!(
        (baseline.normalised(last[5].unwrap()).unwrap() - 1.0).abs() < 1e-5,
        "the last stream at the last position"
    );
    assert!(last[..5].iter().all(|m| baseline.normalised(m.unwrap()).unwrap().abs() < 1e-5), "and nowhere else");
}

#[test]
fn ablations_put_in_zeros_means_and_other_runs() {
    let model = open("llama");
    let all = all_points(&model);
    let patcher = Patcher::new(&model, &CLEAN, METRIC, &all).unwrap();
    let scope = Scope::all(model.config(), 6);
    let point = HookPoint::block(1, Site::MlpOut);
    let ablate = |replacement: &Replacement| {
        patcher.sweep(Site::MlpOut, By::Position, &scope, replacement, &Silent).unwrap().metric[1][4]
    };
    let at = |op| whole(&model, &CLEAN, HookPlan::new().edit(Edit::new(point, op).positions(Positions::List(vec![4]))));
    assert_near(ablate(&Replacement::Zero), at(EditOp::Ablate), "zero");

    let value = |tokens: &[u32]| captured(&model, tokens, point);
    let same = [CLEAN.to_vec(), CORRUPT.to_vec()];
    let mean = ((value(&CLEAN) + value(&CORRUPT)).unwrap() / 2.0).unwrap();
    let by_position = Replacement::mean(&model, &same, &all, 6, &Silent).unwrap();
    assert!(matches!(&by_position, Replacement::Mean(means) if means.by_position && means.runs == 2));
    assert_near(ablate(&by_position), at(EditOp::Set(mean)), "mean by position");

    let streams: Vec<HookPoint> = all.iter().copied().filter(|p| p.site != Site::AttnPattern).collect();
    let several = [CLEAN.to_vec(), CORRUPT[..4].to_vec()];
    let pooled = Replacement::mean(&model, &several, &streams, 6, &Silent).unwrap();
    let rest = Tensor::cat(&[value(&CLEAN).narrow(1, 1, 5).unwrap(), value(&CORRUPT[..4]).narrow(1, 1, 3).unwrap()], 1);
    let mean = rest.unwrap().mean(1).unwrap().squeeze(0).unwrap();
    assert_near(ablate(&pooled), at(EditOp::Set(mean)), "mean over positions");
    let error = Replacement::mean(&model, &several, &all, 6, &Silent).unwrap_err().to_string();
    assert!(error.contains("hook_pattern") && error.contains("6 tokens"), "{error}");

    let longer = [[CORRUPT.as_slice(), &[5, 6]].concat(), vec![1, 2], CLEAN.to_vec()];
    let drawn = Replacement::resample(&model, &longer, &all, &CLEAN, (4, 0)).unwrap();
    assert!(matches!(&drawn, Replacement::Runs(runs) if runs.len() == 1), "one prompt is long enough and another");
    assert_near(ablate(&drawn), at(EditOp::Set(value(&CORRUPT))), "resample");
    assert!(Replacement::resample(&model, &longer[1..], &all, &CLEAN, (4, 0)).is_err());
}

#[test]
fn patched_features_take_the_other_runs_activation() {
    let model = open("llama");
    let hook = "blocks.0.hook_resid_post";
    let dictionary = std::sync::Arc::new(dictionary_at(hook, 24, 50));
    let point = HookPoint::block(0, Site::ResidPost);
    let source = Trace::record(&model, &CLEAN, METRIC, &[point]).unwrap();
    let patcher = Patcher::new(&model, &CORRUPT, METRIC, &[point]).unwrap();
    let positions: Vec<usize> = (0..6).collect();
    let sweep = patcher.features(&dictionary, Some(&source), (5, &positions), &Silent).unwrap();
    assert!(sweep.features.len() == 5 && sweep.differing > 5);
    let clamped = |feature: u32, position: usize, value: f32| {
        let edit = FeatureEdit { feature, op: FeatureOp::Clamp(value) };
        let rewrite = FeatureRewrite::new(&dictionary, &[edit], model.device()).unwrap();
        let edit = Edit::new(point, EditOp::Rewrite(std::sync::Arc::new(rewrite)));
        HookPlan::new().edit(edit.positions(Positions::List(vec![position])))
    };
    let mut patched = 0;
    for row in &sweep.features {
        assert_eq!(row.metric[0], None, "the first token is the same in both");
        for position in 1..6 {
            let Some(found) = row.metric[position] else { continue };
            let plan = clamped(row.feature, position, row.source[position]);
            assert_near(Some(found), whole(&model, &CORRUPT, plan), "feature");
            patched += 1;
        }
    }
    assert!(patched > 5);
    // The features and the error together are the whole difference.
    let values = |tokens: &[u32]| captured(&model, tokens, point);
    let difference = (values(&CLEAN) - values(&CORRUPT)).unwrap();
    let expected = whole(&model, &CORRUPT, HookPlan::new().edit(Edit::new(point, EditOp::Add(difference))));
    assert!((expected - source.metric).abs() < 2e-5);
    let zeroed = patcher.features(&dictionary, None, (3, &positions), &Silent).unwrap();
    let row = &zeroed.features[0];
    let position = row.metric.iter().position(Option::is_some).unwrap();
    assert_near(row.metric[position], whole(&model, &CORRUPT, clamped(row.feature, position, 0.0)), "ablated feature");
}

#[test]
fn knocked_out_edges_carry_nothing() {
    let model = open("llama");
    let patcher = Patcher::new(&model, &CLEAN, METRIC, &[]).unwrap();
    let settings = |keys: Vec<usize>, columns| KnockOut {
        layers: vec![0, 1],
        window: 1,
        heads: Vec::new(),
        queries: vec![5],
        keys,
        columns,
    };
    // A query that sees itself alone computes what a sequence of that token at that position would.
    let alone =
        patcher.knock_out(&KnockOut { window: 2, ..settings(vec![0, 1, 2, 3, 4], KnockOutColumns::Together) }, &Silent);
    let alone = alone.unwrap();
    assert_eq!(alone.rows, Axis::Window(vec![(0, 1), (1, 1)]));
    let other = Patcher::new(&model, &[1, 2, 4, 5, 6, 30], METRIC, &[]).unwrap();
    let same =
        other.knock_out(&KnockOut { window: 2, ..settings(vec![0, 1, 2, 3, 4], KnockOutColumns::Together) }, &Silent);
    assert_near(alone.metric[0][0], same.unwrap().metric[0][0].unwrap(), "all earlier keys cut in all layers");
    assert!((alone.metric[0][0].unwrap() - patcher.base().metric).abs() > 1e-2);

    let by_key = patcher.knock_out(&settings(vec![2, 4], KnockOutColumns::Keys), &Silent).unwrap();
    assert_eq!(by_key.columns, Axis::Position(vec![2, 4]));
    let by_head = patcher.knock_out(&settings(vec![2], KnockOutColumns::Heads), &Silent).unwrap();
    let scores = HookPoint::block(1, Site::AttnScores);
    let mut mask = vec![0f32; 4 * 36];
    mask[2 * 36 + 5 * 6 + 2] = f32::NEG_INFINITY;
    let mask = Tensor::from_vec(mask, (1, 4, 6, 6), model.device()).unwrap();
    let expected = whole(&model, &CLEAN, HookPlan::new().edit(Edit::new(scores, EditOp::Add(mask))));
    assert_near(by_head.metric[1][2], expected, "one head");
    let error = patcher.knock_out(&settings((0..6).collect(), KnockOutColumns::Together), &Silent).unwrap_err();
    assert!(error.to_string().contains("position 5"), "{error}");
    assert!(patcher.knock_out(&KnockOut { window: 0, ..settings(vec![1], KnockOutColumns::Keys) }, &Silent).is_err());
}

/// Path patching by whole passes.
fn path_by_hand(model: &Model, sender: (usize, Option<usize>), receiver: Receiver, freeze_mlps: bool) -> f64 {
    let layers = model.config().n_layers;
    let mut plan = HookPlan::new();
    for layer in 0..layers {
        let z = HookPoint::block(layer, Site::Z);
        plan = plan.edit(Edit::new(z, EditOp::Set(captured(model, &CLEAN, z))));
        if let (true, (from, Some(head))) = (layer == sender.0, sender) {
            let z = HookPoint::block(from, Site::Z);
            plan = plan.edit(Edit::new(z, EditOp::Set(captured(model, &CORRUPT, z))).head(head));
        }
        let mlp = HookPoint::block(layer, Site::MlpOut);
        let own = sender.1.is_none() && layer == sender.0;
        if own {
            plan = plan.edit(Edit::new(mlp, EditOp::Set(captured(model, &CORRUPT, mlp))));
        } else if freeze_mlps {
            plan = plan.edit(Edit::new(mlp, EditOp::Set(captured(model, &CLEAN, mlp))));
        }
    }
    let point = receiver.point();
    let run = model.forward(&model.tokens(&[CLEAN]).unwrap(), &plan.capture(point)).unwrap();
    let edit = Edit::new(point, EditOp::Set(run.captured(point).unwrap().clone()));
    let edit = match receiver.input {
        ReceiverInput::Query { head } => edit.head(head),
        ReceiverInput::Key { head } | ReceiverInput::Value { head } => {
            edit.head(head / (model.config().n_heads / model.config().n_key_value_heads))
        }
        _ => edit,
    };
    whole(model, &CLEAN, HookPlan::new().edit(edit))
}

#[test]
fn paths_equal_the_three_passes_of_the_paper() {
    for name in ["llama", "gpt2", "gemma2"] {
        let model = open(name);
        let layers = model.config().n_layers;
        let nodes = ["1.2.q", "1.3.k", "1.0.v", "1.mlp", "1.resid_pre", "logits"];
        for (node, freeze_mlps) in nodes.iter().flat_map(|node| [(node, false), (node, true)]) {
            let receiver = parse_receiver(node, layers).unwrap();
            let points = Patcher::path_points(model.config(), &[receiver]);
            let source = Trace::record(&model, &CORRUPT, METRIC, &points).unwrap();
            let patcher = Patcher::new(&model, &CLEAN, METRIC, &points).unwrap();
            let settings = PathSettings {
                layers: vec![0, 1],
                heads: Vec::new(),
                mlps: true,
                positions: (0..6).collect(),
                receivers: vec![receiver],
                freeze_mlps,
            };
            let sweep = patcher.paths(&settings, &source, &Silent).unwrap();
            let heads = model.config().n_heads;
            for (layer, row) in sweep.metric.iter().enumerate() {
                for (column, found) in row.iter().enumerate() {
                    let head = (column < heads).then_some(column);
                    let behind = layer == 1 && !(*node == "logits" || (*node == "1.mlp" && head.is_some()));
                    assert_eq!(found.is_none(), behind, "{name} {node} {layer} {column}");
                    if found.is_some() {
                        let expected = path_by_hand(&model, (layer, head), receiver, freeze_mlps);
                        assert_near(*found, expected, &format!("{name} {node} {layer} {column} {freeze_mlps}"));
                    }
                }
            }
            let moved = sweep.metric.iter().flatten().flatten().filter(|m| (**m - patcher.base().metric).abs() > 1e-4);
            assert!(moved.count() > 0, "{name} {node}");
        }
    }
}

#[test]
fn nodes_that_do_not_exist_are_errors() {
    let model = open("llama");
    for text in ["5", "1.2.x", "a.mlp", "1.2.3.q", ""] {
        assert!(parse_receiver(text, 2).unwrap_err().to_string().contains("5.3.q"), "{text}");
    }
    let all = all_points(&model);
    let patcher = Patcher::new(&model, &CLEAN, METRIC, &all).unwrap();
    let sweep =
        |site, by, scope: &Scope| patcher.sweep(site, by, scope, &Replacement::Zero, &Silent).unwrap_err().to_string();
    let scope = Scope::all(model.config(), 6);
    assert!(sweep(Site::ResidPre, By::Head, &scope).contains("no heads"));
    assert!(sweep(Site::Z, By::Head, &Scope { heads: vec![4], ..scope.clone() }).contains("0 to 3"));
    assert!(sweep(Site::K, By::Head, &Scope { heads: vec![2], ..scope.clone() }).contains("0 to 1"));
    assert!(sweep(Site::Z, By::Head, &Scope { layers: vec![2], ..scope.clone() }).contains("--layer"));
    assert!(sweep(Site::Z, By::Head, &Scope { positions: vec![6], ..scope }).contains("0 to 5"));
    let error = check_aligned(&CLEAN, &CORRUPT[..5], |t| format!("{t:?}")).unwrap_err().to_string();
    assert!(error.contains("clean 6 tokens") && error.contains("position 2"), "{error}");
}
