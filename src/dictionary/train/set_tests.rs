//! Whole runs of transcoders: known maps are found, across layers where they cross layers; cut-off runs end as whole
//! ones do.

use std::fs;

use candle_core::Device;
use rand::Rng;

use super::tests::{Rows, StopAfter};
use super::*;
use crate::base::rng;
use crate::base::{Artifact, Error, Progress, Result, Silent};
use crate::dictionary::set::SetKind;
use crate::dictionary::{Metadata, io};
use crate::ops::add_scaled;
use crate::ops::gemm::tests::with_threads;
use crate::store::RowSource;

const D: usize = 24;
const FEATURES: usize = 40;
const OUTPUTS: [f32; 2] = [10.0, 30.0];

/// Two layers: inputs hold sparse features; each layer's output is a sum of directions of its own features, and that of
/// the second also one of the first layer's, which its own input does not show. Outputs are ten times as large, those of
/// the second layer thirty times, with a mean, and a linear image of the input where `linear`.
fn world(n: usize, linear: bool) -> Rows {
    let mut random = rng::stream(3, "world");
    let mut directions = |count: usize| -> Vec<Vec<f32>> {
        let row = |_| (0..D).map(|_| random.random_range(-1.0f32..1.0) / 2.5).collect();
        (0..count).map(row).collect()
    };
    let (read, write, later) = (directions(2 * FEATURES), directions(2 * FEATURES), directions(FEATURES));
    let map = directions(D);
    let mut data = vec![Vec::new(); 4];
    let mut random = rng::stream(4, "world");
    for _ in 0..n {
        let mut rows = [vec![0.2; D], vec![3.0; D], vec![-0.1; D], vec![-2.0; D]];
        for f in 0..2 * FEATURES {
            if random.random_bool(0.05) {
                let (layer, size) = (f / FEATURES, random.random_range(2.0f32..6.0));
                add_scaled(&mut rows[2 * layer], size, &read[f]);
                add_scaled(&mut rows[2 * layer + 1], OUTPUTS[layer] * size, &write[f]);
                if layer == 0 {
                    add_scaled(&mut rows[3], OUTPUTS[1] * size, &later[f]);
                }
            }
        }
        if linear {
            for layer in [0, 2] {
                let (input, output) = rows.split_at_mut(layer + 1);
                input[layer].iter().zip(&map).for_each(|(x, row)| add_scaled(&mut output[0], 8.0 * x, row));
            }
        }
        data.iter_mut().zip(rows).for_each(|(data, row)| data.extend(row));
    }
    Rows { data, widths: vec![D; 4], position: 0 }
}

fn settings(arch: TrainArchitecture) -> TrainSettings {
    TrainSettings {
        arch,
        d_sae: Some(64),
        lr: 3e-3,
        batch_size: 256,
        steps: Some(400),
        log_every: 100,
        eval_every: Some(400),
        ..TrainSettings::default()
    }
}

fn of(hook: &str, out: &str) -> Metadata {
    let mut metadata = Metadata { hook_name: Some(hook.into()), ..Metadata::default() };
    metadata.extra.insert("hook_name_out".into(), out.into());
    metadata
}

fn run(source: &mut Rows, each: &TrainSettings, cross_layer: bool, out: &Artifact) -> Result<Vec<TrainedLayer>> {
    run_with(source, each, cross_layer, out, &Silent)
}

fn run_with(
    source: &mut Rows,
    each: &TrainSettings,
    cross_layer: bool,
    out: &Artifact,
    progress: &dyn Progress,
) -> Result<Vec<TrainedLayer>> {
    let data = source.data.iter().map(|data| data[..1000 * D].to_vec()).collect();
    let heldout = Rows { data, widths: source.widths.clone(), position: 0 };
    run_with_heldout(source, Some(heldout), each, cross_layer, out, progress)
}

fn run_with_heldout(
    source: &mut Rows,
    mut heldout: Option<Rows>,
    each: &TrainSettings,
    cross_layer: bool,
    out: &Artifact,
    progress: &dyn Progress,
) -> Result<Vec<TrainedLayer>> {
    let member = |layer: usize| Member {
        name: format!("layer_{layer}"),
        hook: 2 * layer,
        target: Some(2 * layer + 1),
        settings: TrainSettings { seed: layer as u64, ..each.clone() },
        metadata: of(&format!("blocks.{layer}.mlp.hook_in"), &format!("blocks.{layer}.mlp.hook_out")),
    };
    let heldout = heldout.as_mut().map(|heldout| heldout as &mut dyn RowSource);
    let layers = vec![member(0), member(1)];
    train_set(SetRun { source, heldout, layers, cross_layer, device: &Device::Cpu, out, progress })
}

fn explained(layers: &[TrainedLayer]) -> Vec<f64> {
    layers.iter().map(|layer| layer.summary.heldout.unwrap().explained_variance).collect()
}

#[test]
fn features_that_write_to_later_layers_need_a_cross_layer_transcoder() {
    use TrainArchitecture::{BatchTopK, JumpRelu, Relu};
    let tmp = tempfile::tempdir().unwrap();
    let mut source = world(20_000, false);
    let batch_top_k = TrainSettings { k: Some(3.0), ..settings(BatchTopK) };
    let jump = TrainSettings { l0_coefficient: Some(0.3), ..settings(JumpRelu) };
    let relu = TrainSettings { l1_coefficient: Some(0.3), ..settings(Relu) };
    for (name, settings) in [("batchtopk", batch_top_k), ("jumprelu", jump), ("relu", relu)] {
        let [alone, across] = [false, true].map(|cross_layer| {
            let out = Artifact::begin(&tmp.path().join(format!("{name} {cross_layer}")), false).unwrap();
            explained(&run(&mut source, &settings, cross_layer, &out).unwrap())
        });
        println!("{name}: alone {alone:?}, across {across:?}");
        assert!(alone[0] > 0.8 && across[0] > 0.8, "{name}: {alone:?} {across:?}");
        assert!(across[1] > alone[1] + 0.2, "{name}: {alone:?} {across:?}");
    }
}

#[test]
fn a_skip_connection_takes_what_is_linear_and_all_scales_are_folded_in() {
    let tmp = tempfile::tempdir().unwrap();
    let mut source = world(20_000, true);
    let base = TrainSettings { k: Some(3.0), ..settings(TrainArchitecture::BatchTopK) };
    let [without, with] = [false, true].map(|skip| {
        let out = Artifact::begin(&tmp.path().join(format!("skip {skip}")), false).unwrap();
        run(&mut source, &TrainSettings { skip, ..base.clone() }, false, &out).unwrap()
    });
    let (left, right) = (explained(&without), explained(&with));
    println!("without {left:?}, with {right:?}");
    assert!(right[0] > left[0] + 0.02 && right[0] > 0.85, "{left:?} {right:?}");
    for layer in &with {
        let norms = layer.dictionary.w_dec.chunks_exact(D).map(crate::ops::squared_norm);
        assert!(norms.into_iter().all(|norm| (norm - 1.0).abs() < 1e-3), "decoder rows of unit norm");
    }
    // The measured dictionary is the stored one.
    let dir = tmp.path().join("stored");
    fs::create_dir(&dir).unwrap();
    io::write(&dir, &with[0].dictionary).unwrap();
    let stored = io::read(&dir).unwrap();
    assert_eq!((&stored.w_skip, &stored.w_dec), (&with[0].dictionary.w_skip, &with[0].dictionary.w_dec));
    let set = assemble(with, SetKind::PerLayer, "test").unwrap();
    assert!(set.has_skip());
}

#[test]
fn a_set_makes_of_rows_what_was_measured() {
    let tmp = tempfile::tempdir().unwrap();
    let mut source = world(5000, false);
    let short = |arch| TrainSettings { steps: Some(60), eval_every: Some(60), ..settings(arch) };
    let batch_top_k = TrainSettings { k: Some(3.0), ..short(TrainArchitecture::BatchTopK) };
    let jump = short(TrainArchitecture::JumpRelu);
    let runs = [&batch_top_k, &jump].map(|s| [(SetKind::PerLayer, false, s), (SetKind::CrossLayer, true, s)]);
    for (kind, cross_layer, settings) in runs.into_iter().flatten() {
        let out = Artifact::begin(&tmp.path().join(format!("{cross_layer} {:?}", settings.arch)), false).unwrap();
        let layers = run(&mut source, settings, cross_layer, &out).unwrap();
        let measured: Vec<_> = layers.iter().map(|layer| layer.summary.heldout.unwrap().mse).collect();
        let set = assemble(layers, kind, "test").unwrap();
        let inputs: Vec<Vec<f32>> = [0, 2].map(|hook| source.data[hook][..1000 * D].to_vec()).into();
        let codes: Vec<_> = inputs.iter().enumerate().map(|(l, x)| set.encode(l, x).unwrap()).collect();
        let made = set.reconstruct(&codes, &inputs).unwrap();
        for (layer, (made, mse)) in made.iter().zip(measured).enumerate() {
            let target = &source.data[2 * layer + 1][..1000 * D];
            let error: f64 = made.iter().zip(target).map(|(a, b)| f64::from(a - b).powi(2)).sum();
            let off = (error / 1000.0 / mse - 1.0).abs();
            assert!(off < 1e-4, "{kind:?} {:?} layer {layer}: {off}", settings.arch);
        }
    }
}

/// The penalty as it enters the loss, step by step, of the first layer.
fn penalties(dir: &std::path::Path) -> Vec<f64> {
    let text = fs::read_to_string(dir.join("layer_0/metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    lines.map(|line| line["loss"].as_f64().unwrap() - line["mse"].as_f64().unwrap()).collect()
}

#[test]
fn an_annealed_exponent_leaves_the_penalty_where_it_was() {
    let tmp = tempfile::tempdir().unwrap();
    let mut source = world(2000, false);
    let annealed = TrainSettings {
        l1_coefficient: Some(3.0),
        p_end: Some(0.3),
        l1_warm_up_steps: Some(1),
        steps: Some(60),
        lr: 1e-5,
        log_every: 1,
        eval_every: Some(60),
        ..settings(TrainArchitecture::Relu)
    };
    for (cross_layer, skip) in [(false, false), (false, true), (true, false)] {
        let settings = TrainSettings { skip, ..annealed.clone() };
        let out = Artifact::begin(&tmp.path().join(format!("{cross_layer} {skip}")), false).unwrap();
        run(&mut source, &settings, cross_layer, &out).unwrap();
        let found = penalties(out.dir());
        let jump = found[2..].windows(2).map(|pair| (pair[1] / pair[0]).ln().abs()).fold(0.0, f64::max);
        println!("{cross_layer} {skip}: {jump} {found:?}");
        // Weights hardly move, so that only the exponent and other rows could change it.
        assert!(found[2] > 0.0 && jump < 0.15, "{cross_layer} {skip}: {jump} {found:?}");
    }
}

#[test]
fn a_skip_connection_between_other_widths_is_annealed_too() {
    let tmp = tempfile::tempdir().unwrap();
    let data = world(500, false).data;
    for width in [7, D + 6] {
        let wide = |i: usize| data[1][i * D..(i + 1) * D].iter().cycle().take(width).copied();
        let rows = vec![data[0].clone(), (0..500).flat_map(wide).collect()];
        let mut source = Rows { data: rows, widths: vec![D, width], position: 0 };
        let settings = TrainSettings {
            skip: true,
            p_end: Some(0.5),
            steps: Some(20),
            eval_every: Some(20),
            ..settings(TrainArchitecture::Relu)
        };
        let summary = train(TrainRun {
            source: &mut source,
            heldout: None,
            settings: &settings,
            metadata: of("in", "out"),
            device: &Device::Cpu,
            out: &Artifact::begin(&tmp.path().join(width.to_string()), false).unwrap(),
            progress: &Silent,
        });
        assert_eq!(summary.unwrap().last.step, 20);
    }
}

#[test]
fn features_that_begin_at_the_same_rows_come_apart() {
    // 64 features and a source of 8 different rows.
    let tmp = tempfile::tempdir().unwrap();
    let mut source = world(8, false);
    let settings = TrainSettings { steps: Some(5), eval_every: Some(5), ..settings(TrainArchitecture::Relu) };
    let out = Artifact::begin(&tmp.path().join("set"), false).unwrap();
    let layers = run_with_heldout(&mut source, None, &settings, false, &out, &Silent).unwrap();
    for layer in layers {
        let columns = crate::ops::gemm::transposed(&layer.dictionary.w_enc, 64);
        let rows: std::collections::BTreeSet<Vec<u32>> =
            columns.chunks_exact(D).map(|row| row.iter().map(|w| w.to_bits()).collect()).collect();
        assert_eq!(rows.len(), 64);
    }
}

#[test]
fn a_cut_off_set_ends_as_a_whole_one() {
    let tmp = tempfile::tempdir().unwrap();
    let small = |arch| TrainSettings {
        d_sae: Some(100),
        lr: 1e-2,
        batch_size: 16,
        steps: Some(40),
        dead_feature_window: Some(3),
        checkpoint_every: 9,
        log_every: 2,
        eval_every: None,
        ..settings(arch)
    };
    let relu =
        TrainSettings { l1_coefficient: Some(30.0), l1_warm_up_steps: Some(1), ..small(TrainArchitecture::Relu) };
    let batch_top_k = TrainSettings { k: Some(4.0), ..small(TrainArchitecture::BatchTopK) };
    let skip = TrainSettings { skip: true, ..batch_top_k.clone() };
    let runs =
        [("relu", &relu, true), ("batchtopk", &batch_top_k, true), ("skip", &skip, false), ("set", &relu, false)];
    for (name, settings, cross_layer) in runs {
        let whole = Artifact::begin(&tmp.path().join(name), false).unwrap();
        let expected = run(&mut world(2000, false), settings, cross_layer, &whole).unwrap();
        if settings.arch == TrainArchitecture::Relu {
            assert!(expected.iter().all(|layer| layer.summary.resampled > 0), "dead features are part of the test");
        }
        for stop in [17, 3] {
            let path = tmp.path().join(format!("{name} cut at {stop}"));
            let cut = Artifact::begin(&path, false).unwrap();
            let stopped = run_with(&mut world(2000, false), settings, cross_layer, &cut, &StopAfter::new(stop));
            assert!(matches!(stopped, Err(Error::Interrupted { .. })), "{name}");
            drop(cut);
            let resumed = Artifact::begin(&path, true).unwrap();
            let found = with_threads(1, || run(&mut world(2000, false), settings, cross_layer, &resumed)).unwrap();
            for (found, expected) in found.iter().zip(&expected) {
                assert_eq!(found.summary, expected.summary, "{name} cut at {stop}");
                assert_eq!(found.dictionary, expected.dictionary, "{name} cut at {stop}");
            }
        }
    }
}

#[test]
fn what_no_transcoder_has_is_refused_with_its_remedy() {
    let settings = |arch| TrainSettings { arch, ..TrainSettings::default() };
    for arch in [TrainArchitecture::Gated, TrainArchitecture::Matryoshka] {
        let error = settings(arch).plan_transcoder(8, (8, 1), 100).unwrap_err().to_string();
        assert!(error.contains("batchtopk") && error.contains(arch.name()), "{error}");
    }
    let skip = TrainSettings { skip: true, ..settings(TrainArchitecture::Relu) };
    for (wrong, says) in [(skip, "--skip"), (settings(TrainArchitecture::TopK), "batchtopk")] {
        let error = check_cross_layer(&wrong, &Device::Cpu).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    let error = TrainSettings { skip: true, ..TrainSettings::default() }.plan(8, 100).unwrap_err().to_string();
    assert!(error.contains("--hook-out"), "{error}");
}
