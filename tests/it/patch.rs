//! Patching against TransformerLens (`tests/golden/make_circuits.py`), on the built-in world, and `patch` as a command.

use candle_core::{DType, Device};
use mechinterp::analysis::patch::path::parse_receiver;
use mechinterp::analysis::patch::{
    Baseline, By, KnockOut, KnockOutColumns, Metric, Patcher, PathSettings, Replacement, SITES, Scope, Sweep, Trace,
    has_heads, points,
};
use mechinterp::base::Silent;
use mechinterp::demo::tokenizer::BEGIN;
use mechinterp::demo::{Lang, Relation, Vocabulary, World, built_in};
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

/// "the capital of A is" against the same of B, with the answers of both: tokens, position of the country, tokens of the
/// answers.
fn capitals(count: usize) -> Vec<([Vec<u32>; 2], usize, [u32; 2])> {
    let world = World::new(World::BUILT_IN_SEED);
    let vocabulary = Vocabulary::new(&world);
    let prompts: Vec<(Vec<u32>, u32)> = world
        .facts_of(Relation::Capital)
        .iter()
        .filter_map(|&fact| world.prompt(fact, Lang::English))
        .map(|prompt| {
            let begin = vocabulary.id(BEGIN).unwrap();
            let text = vocabulary.encode(&prompt.text);
            (std::iter::once(begin).chain(text).collect(), vocabulary.id(&prompt.answer).unwrap())
        })
        .collect();
    let pairs = prompts.iter().zip(prompts.iter().skip(1));
    let same_length = pairs.filter(|(a, b)| a.0.len() == 6 && b.0.len() == 6 && a.1 != b.1);
    let differing = |a: &[u32], b: &[u32]| a.iter().zip(b).position(|(a, b)| a != b).unwrap();
    same_length.take(count).map(|(a, b)| ([a.0.clone(), b.0.clone()], differing(&a.0, &b.0), [a.1, b.1])).collect()
}

#[test]
fn a_fact_of_the_built_in_world_waits_at_the_country_until_the_later_layers_move_it_to_the_end() {
    let model = built_in::model(DType::F32, &Device::Cpu).unwrap();
    let layers = model.config().n_layers;
    let questions = capitals(12);
    assert_eq!(questions.len(), 12);
    for ([clean, corrupt], country, [target, against]) in questions {
        let metric = Metric::LogitDifference { target, against };
        let all = points(Site::ResidPre, &(0..layers).collect::<Vec<_>>(), model.config()).unwrap();
        let end = HookPoint::block(layers - 1, Site::ResidPost);
        let all: Vec<HookPoint> = all.into_iter().chain([end]).collect();
        let source = Trace::record(&model, &clean, metric, &all).unwrap();
        let patcher = Patcher::new(&model, &corrupt, metric, &all).unwrap();
        assert!(source.metric > 4.0 && patcher.base().metric < -4.0, "the model knows both capitals");
        let baseline = Baseline { base: patcher.base().metric, source: Some(source.metric) };
        let replacement = Replacement::Runs(vec![source]);
        let scope = Scope::all(model.config(), clean.len());
        let sweep = patcher.sweep(Site::ResidPre, By::Position, &scope, &replacement, &Silent).unwrap();
        let effect =
            |layer: usize, position: usize| baseline.normalised(sweep.metric[layer][position].unwrap()).unwrap();
        let last = clean.len() - 1;
        assert!(effect(0, country) > 0.99 && effect(1, country) > 0.95, "the country's position carries it all");
        // What the sentence is about is planted at every position after the country, where layer 2 begins.
        let entering = [effect(2, country), effect(2, last)];
        assert!(entering.iter().all(|share| *share > 0.05), "as layer 2 begins both have it: {entering:?}");
        assert!((0.7..1.4).contains(&entering.iter().sum::<f64>()), "and all of it together: {entering:?}");
        assert!(effect(3, last) > 0.9, "layer 2 has moved it to the end: {}", effect(3, last));
        for layer in 0..layers {
            for position in (0..last).filter(|position| *position != country) {
                assert!(effect(layer, position).abs() < 0.15, "nothing else carries it: {layer} {position}");
            }
        }
        let scope = Scope { layers: vec![layers - 1], ..scope };
        let sweep = patcher.sweep(Site::ResidPost, By::Position, &scope, &replacement, &Silent).unwrap();
        assert!((baseline.normalised(sweep.metric[0][last].unwrap()).unwrap() - 1.0).abs() < 1e-4, "it ends there");
    }
}

/// Runs `patch` on two prompts about capitals.
fn ask(cli: &Cli, flags: &str) -> crate::fixture::Ended {
    let mut command = cli.command("patch --model demo --target Paris --against Tokyo");
    command.args(["--clean", "the capital of France is", "--corrupt", "the capital of Japan is"]);
    command.args(flags.split_whitespace());
    end(command)
}

#[test]
fn the_command_finds_the_country_and_shows_it() {
    let cli = Cli::new();
    let shown = ask(&cli, "--site resid_pre,attn_out,mlp_out --html patch.html").ok();
    for expected in
        ["France/Japan", "resid_pre", "mlp_out", "0: as the corrupted run, 1: as the clean run", "strongest"]
    {
        assert!(shown.contains(expected), "'{expected}' is not in {shown}");
    }
    let page = std::fs::read_to_string(cli.path("patch.html")).unwrap();
    assert!(page.matches("role=\"img\"").count() == 3 && page.contains("This page loads nothing."));
    let json = ask(&cli, "--json").json();
    let (result, baseline) = (&json["results"][0], &json["baseline"]);
    assert_eq!((&result["rows"]["axis"], &result["columns"]["axis"]), (&"layer".into(), &"position".into()));
    assert!(result["normalised"][0][4].as_f64().unwrap() > 0.99, "the country's position, {result}");
    assert!(result["normalised"][0][5].as_f64().unwrap().abs() < 0.01);
    // The same numbers come from transformers with a forward pre-hook: 21.94 clean, -19.22 corrupted.
    assert!((baseline["source"].as_f64().unwrap() - 21.94).abs() < 0.02, "{baseline}");
    assert!((baseline["base"].as_f64().unwrap() + 19.22).abs() < 0.02, "{baseline}");
    assert_eq!(json["clean"]["metric"], baseline["source"]);
    let noised = ask(&cli, "--noise --json").json();
    assert_eq!(noised["baseline"]["base"], baseline["source"]);
    assert!(noised["results"][0]["normalised"][0][4].as_f64().unwrap() > 0.99, "needed as well");
}

#[test]
fn every_mode_of_the_command_runs() {
    let cli = Cli::new();
    cli.write("prompts.txt", "the capital of Spain is\nthe capital of Italy is\nthe capital of Peru is\n");
    let modes = [
        ("--site z,pattern", "head"),
        ("--site z --by head-position --layer 2-3 --head 0,1", "2.0"),
        ("--site q,k,v --raw", "v"),
        ("--metric prob", "probability of “ Paris”"),
        ("--ablate zero --site mlp_out", "replaced by zeros"),
        ("--ablate mean --site attn_out --prompts prompts.txt", "averages over 3 prompts, by position"),
        ("--ablate mean --site z", "averages over 2 prompts"),
        ("--ablate resample --prompts prompts.txt --draws 2", "those of 2 other prompts"),
        ("--knock-out", "attention of the clean run cut"),
        ("--knock-out --to France --window 2", "0–1"),
        ("--knock-out --to 4 --per-head", "head"),
        ("--path-to 3.1.q --path-to 3.1.k", "to 3.1.q, 3.1.k"),
        ("--path-to logits --freeze-mlps --noise", "other heads and MLPs frozen"),
    ];
    for (flags, expected) in modes {
        let shown = ask(&cli, flags).ok();
        assert!(shown.contains(expected) && shown.contains("strongest"), "{flags}: '{expected}' is not in {shown}");
        let json = ask(&cli, &format!("{flags} --json")).json();
        assert!(!json["results"].as_array().unwrap().is_empty(), "{flags}");
    }
    let paths = ask(&cli, "--path-to logits").ok();
    assert!(paths.contains("mlp") && !paths.contains("“capital”"), "columns are heads, not positions: {paths}");
    let mut single = cli.command("patch --model demo --target Paris --knock-out --json --prompt");
    single.arg("the capital of France is");
    let json = end(single).json();
    let cut = json["results"][0]["metric"].as_array().unwrap();
    assert!(json["corrupt"].is_null() && cut.len() == 4 && cut[0].as_array().unwrap().len() == 6);
}

#[test]
fn features_of_a_dictionary_are_patched_one_by_one() {
    let shared = trained();
    let json = ask(shared, "--site feature --sae sae --features 4 --json").json();
    let features = &json["results"][0]["features"];
    assert_eq!(features["features"].as_array().unwrap().len(), 4);
    let rows = &json["results"][0]["rows"]["values"];
    assert_eq!(rows[4], "error", "{rows}");
    let shown = ask(shared, "--site feature --sae sae --features 4").ok();
    assert!(shown.contains("features at blocks.1.hook_resid_post") && shown.contains("error"), "{shown}");
    ask(shared, "--site feature --sae sae --features 3 --ablate zero").ok();
    ask(shared, "--site feature --sae sae --ablate mean").error(&["--ablate", "zero or resample"]);
}

#[test]
fn prompts_that_do_not_align_and_places_that_do_not_exist_are_errors() {
    let cli = Cli::new();
    let mut command = cli.command("patch --model demo --target Paris --clean");
    command.args(["the capital of France is", "--corrupt", "the capital of the country where Kyoto lies is"]);
    end(command).error(&["clean 6 tokens", "corrupted 10 tokens", "4:“ France”", "4:“ the”", "position 4"]);
    let wrong: [(&str, &[&str]); 14] = [
        ("--site resid_prr", &["site to patch", "resid_pre"]),
        ("--site feature", &["--sae", "dictionary"]),
        ("--site z --layer 4", &["--layer", "0 to 3"]),
        ("--site z --head 99", &["--head", "0 to 3"]),
        ("--site z --position 6", &["--position", "0 to 5", "“ France”"]),
        ("--site resid_pre --by head", &["no heads", "by position"]),
        ("--path-to 3.x", &["--path-to", "5.3.q"]),
        ("--path-to 9.1.q", &["--path-to", "0 to 3"]),
        ("--path-to 1.99.q", &["--path-to", "0 to 3"]),
        ("--knock-out --to 0,1,2,3,4,5", &["--to", "position 5"]),
        ("--knock-out --from 9", &["--from", "0 to 5"]),
        ("--knock-out --window 0", &["--window", "1 or more"]),
        ("--ablate mean --prompts nowhere.txt", &["nowhere.txt"]),
        ("--html nowhere/x.html", &["nowhere"]),
    ];
    for (flags, needles) in wrong {
        ask(&cli, flags).error(needles);
    }
    let mut command = cli.command("patch --model demo --target Paris,Tokyo --knock-out --prompt");
    command.arg("the capital of France is");
    end(command).error(&["--target", "single token"]);
    let mut command = cli.command("patch --model demo --target Paris --clean");
    command.arg("the capital of France is");
    end(command).error(&["--corrupt", "--ablate"]);
}
