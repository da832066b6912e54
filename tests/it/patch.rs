//! Patching against TransformerLens (`tests/golden/make_circuits.py`), on the built-in world, and `patch` as a command.

use mechinterp::analysis::patch::path::parse_receiver;
use mechinterp::analysis::patch::{
    Baseline, By, KnockOut, KnockOutColumns, Metric, Patcher, PathSettings, Replacement, SITES, Scope, Sweep, Trace,
    has_heads, points,
};
use mechinterp::base::Silent;
use mechinterp::demo::{World, built_in};
use mechinterp::model::{HookPoint, Model, Site};

use crate::fixture::{Cli, end, trained};
use crate::golden::open;
use crate::lens::{CIRCUITS, Circuits, assert_near};

fn all_points(model: &Model) -> Vec<HookPoint> {
    let layers: Vec<usize> = (0..model.config().n_layers).collect();
    SITES.iter().filter_map(|(_, site)| points(*site, &layers, model.config()).ok()).flatten().collect()
}

#[track_caller]
fn compare(sweep: &Sweep, expected: &[Vec<f32>], what: &str) {
    assert_eq!(sweep.metric.len(), expected.len(), "{what}");
    for (i, (row, expected)) in sweep.metric.iter().zip(expected).enumerate() {
        assert_eq!(row.len(), expected.len(), "{what}");
        for (j, (found, expected)) in row.iter().zip(expected).enumerate() {
            assert_near(found.unwrap(), *expected, &format!("{what} {i} {j}"));
        }
    }
}

#[test]
fn patching_both_ways_equals_transformerlens() {
    for name in CIRCUITS {
        let (model, golden) = (open(name), Circuits::open(name));
        let (clean, corrupt, pair) = (golden.ids("clean"), golden.ids("corrupt"), golden.ids("pair"));
        let metric = Metric::LogitDifference { target: pair[0], against: pair[1] };
        let all = all_points(&model);
        let scope = Scope::all(model.config(), clean.len());
        let measured = &golden.rows("metric")[0];
        for (way, base, source, base_metric) in
            [("denoise", &corrupt, &clean, measured[1]), ("noise", &clean, &corrupt, measured[0])]
        {
            let patcher = Patcher::new(&model, base, metric, &all).unwrap();
            assert_near(patcher.base().metric, base_metric, name);
            let replacement = Replacement::Runs(vec![Trace::record(&model, source, metric, &all).unwrap()]);
            let mut compared = 0;
            for (title, site) in SITES {
                let key = format!("{way}.{title}");
                if !golden.has(&key) {
                    continue;
                }
                let by = if has_heads(site) { By::Head } else { By::Position };
                let sweep = patcher.sweep(site, by, &scope, &replacement, &Silent).unwrap();
                compare(&sweep, &golden.rows(&key), &format!("{name} {key}"));
                compared += 1;
            }
            assert_eq!(compared, 9, "{name}");
            if way == "denoise" {
                let sweep = patcher.sweep(Site::Z, By::HeadPosition, &scope, &replacement, &Silent).unwrap();
                compare(&sweep, &golden.rows("denoise.z_by_position"), name);
            }
        }
    }
}

#[test]
fn ablation_knock_out_and_paths_equal_hooks_of_transformerlens() {
    for name in CIRCUITS {
        let (model, golden) = (open(name), Circuits::open(name));
        let (clean, corrupt, pair) = (golden.ids("clean"), golden.ids("corrupt"), golden.ids("pair"));
        let metric = Metric::LogitDifference { target: pair[0], against: pair[1] };
        let layers: Vec<usize> = (0..model.config().n_layers).collect();
        let mlps = points(Site::MlpOut, &layers, model.config()).unwrap();
        let scope = Scope::all(model.config(), clean.len());
        let patcher = Patcher::new(&model, &clean, metric, &mlps).unwrap();
        let both = [clean.clone(), corrupt.clone()];
        let mean = Replacement::mean(&model, &both, &mlps, clean.len(), &Silent).unwrap();
        for (key, replacement) in [("ablate.zero", &Replacement::Zero), ("ablate.mean", &mean)] {
            let sweep = patcher.sweep(Site::MlpOut, By::Position, &scope, replacement, &Silent).unwrap();
            compare(&sweep, &golden.rows(key), &format!("{name} {key}"));
        }
        let last = clean.len() - 1;
        let settings = KnockOut {
            layers: layers.clone(),
            window: 1,
            heads: Vec::new(),
            queries: vec![last],
            keys: (0..last).collect(),
            columns: KnockOutColumns::Keys,
        };
        compare(&patcher.knock_out(&settings, &Silent).unwrap(), &golden.rows("knock_out"), name);
        for (key, node) in [("path.q", "1.2.q"), ("path.logits", "logits")] {
            let receiver = parse_receiver(node, layers.len()).unwrap();
            let points = Patcher::path_points(model.config(), &[receiver]);
            let patcher = Patcher::new(&model, &clean, metric, &points).unwrap();
            let source = Trace::record(&model, &corrupt, metric, &points).unwrap();
            let settings = PathSettings {
                layers: vec![0],
                heads: Vec::new(),
                mlps: false,
                positions: (0..clean.len()).collect(),
                receivers: vec![receiver],
                freeze_mlps: false,
            };
            compare(&patcher.paths(&settings, &source, &Silent).unwrap(), &golden.rows(key), &format!("{name} {key}"));
        }
    }
}
