//! Three ways to the same gradients: pairs, tiles, automatic differentiation; and finite differences of the loss.

use super::*;
use crate::base::DtypeChoice;
use crate::dictionary::train::optimiser;
use crate::dictionary::train::settings::{TrainArchitecture, TrainSettings};
use crate::dictionary::train::step::Workspace;
use crate::ops::gemm::tests::{numbers, with_threads};

fn f32_settings(arch: TrainArchitecture) -> TrainSettings {
    TrainSettings { arch, dtype: Some(DtypeChoice::F32), ..TrainSettings::default() }
}

/// Every architecture, with every penalty and every auxiliary loss.
pub(super) fn methods() -> Vec<TrainSettings> {
    use TrainArchitecture::{BatchTopK, Gated, JumpRelu, Matryoshka, Relu, TopK};
    let jump = || TrainSettings {
        jumprelu_init_threshold: Some(0.3),
        jumprelu_bandwidth: Some(0.8),
        ..f32_settings(JumpRelu)
    };
    let top = |arch| TrainSettings { k: Some(3.0), k_aux: Some(4), ..f32_settings(arch) };
    vec![
        f32_settings(Relu),
        TrainSettings { lp_norm: Some(0.7), ..f32_settings(Relu) },
        TrainSettings { p_end: Some(0.2), ..f32_settings(Relu) },
        f32_settings(Gated),
        jump(),
        TrainSettings { jumprelu_ste_to_input: Some(true), ..jump() },
        TrainSettings {
            jumprelu_sparsity_loss_mode: Some(SparsityLoss::Tanh),
            jumprelu_ste_to_input: Some(true),
            pre_act_loss_coefficient: Some(0.3),
            ..jump()
        },
        TrainSettings { jumprelu_sparsity_loss_mode: Some(SparsityLoss::Quadratic), target_l0: Some(2.0), ..jump() },
        top(TopK),
        TrainSettings { rescale_acts_by_decoder_norm: Some(false), ..top(TopK) },
        TrainSettings { k: Some(2.5), ..top(BatchTopK) },
        top(Matryoshka),
    ]
}

/// Odd sizes, a bias everywhere, rows of which only some fire.
fn example(settings: &TrainSettings, d: usize, f: usize, n: usize) -> (TrainPlan, State, Vec<f32>) {
    let settings = TrainSettings { d_sae: Some(f), batch_size: n, steps: Some(10), ..settings.clone() };
    let plan = settings.plan(d, 1000).unwrap();
    let mut weights = Parameters::initial(plan.arch, plan.shape(), 0.5, numbers(d, "b_dec"), 9);
    weights.w_enc = numbers(f * d, "w_enc");
    weights.b_enc = numbers(f, "b_enc");
    for (name, own) in &mut weights.own {
        *own = numbers(f, name).iter().map(|x| if *name == "threshold" { x.abs() } else { *x }).collect();
    }
    (plan, State::new(weights), numbers(n * d, "x").iter().map(|x| x * 3.0).collect())
}

/// The same of a transcoder to rows of width `d_out`, with those rows.
fn transcoder_example(
    settings: &TrainSettings,
    (d, d_out): (usize, usize),
    f: usize,
    n: usize,
) -> (TrainPlan, State, Vec<f32>, Vec<f32>) {
    let settings = TrainSettings { d_sae: Some(f), batch_size: n, steps: Some(10), ..settings.clone() };
    let plan = settings.plan_transcoder(d, (d_out, 1), 1000).unwrap();
    let mut weights = Parameters::initial(plan.arch, plan.shape(), 0.5, numbers(d_out, "b_dec"), 9);
    for (tensor, name) in weights.tensors_mut().into_iter().zip(["w_enc", "b_enc", "w_dec", "b_dec", "own", "skip"]) {
        *tensor = numbers(tensor.len(), name);
    }
    for (_, own) in &mut weights.own {
        for x in own.iter_mut() {
            *x = x.abs();
        }
    }
    let rows = |d: usize, name: &str| numbers(n * d, name).iter().map(|x| x * 3.0).collect();
    (plan, State::new(weights), rows(d, "x"), rows(d_out, "y"))
}

/// Every architecture that transcoders have, with and without a skip connection.
fn transcoder_methods() -> Vec<TrainSettings> {
    let has = |s: &TrainSettings| !matches!(s.arch, TrainArchitecture::Gated | TrainArchitecture::Matryoshka);
    let all = methods().into_iter().filter(has);
    all.flat_map(|s| [s.clone(), TrainSettings { skip: true, ..s }]).collect()
}

fn input<'a>(x: &'a [f32], dead: &'a [u32]) -> StepInput<'a> {
    StepInput { x, target: None, coefficient: 0.7, exponent: 0.8, dead }
}

pub(super) fn close(a: &[f32], b: &[f32], tolerance: f32) -> bool {
    let scale = b.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= tolerance * scale.max(1e-3))
}

pub(super) fn same_figures(ours: &BatchReport, twin: &BatchReport, tolerance: f64) {
    let near = |a: f64, b: f64| (a - b).abs() <= tolerance * (1e-3 + b.abs());
    assert!(near(ours.loss.mse, twin.loss.mse), "{:?} {:?}", ours.loss, twin.loss);
    assert!(near(ours.loss.sparsity, twin.loss.sparsity), "{:?} {:?}", ours.loss, twin.loss);
    assert!(near(ours.loss.auxiliary, twin.loss.auxiliary), "{:?} {:?}", ours.loss, twin.loss);
    assert!(near(ours.l0, twin.l0) && near(ours.squared_gradient, twin.squared_gradient), "{ours:?} {twin:?}");
}

#[test]
fn pairs_and_tiles_equal_automatic_differentiation() {
    for settings in methods() {
        for (d, f, n) in [(7, 13, 5), (19, 300, 131), (33, 64, 300)] {
            let (plan, state, x) = example(&settings, d, f, n);
            let dead: Vec<u32> = (0..f as u32).filter(|f| f % 5 == 2).collect();
            both_ways_equal_the_twin(&plan, &state, input(&x, &dead));
        }
    }
}

#[test]
fn gradients_of_transcoders_equal_automatic_differentiation() {
    for settings in transcoder_methods() {
        for (d, d_out, f, n) in [(7, 5, 13, 5), (19, 24, 300, 131), (33, 33, 64, 300)] {
            let (plan, state, x, y) = transcoder_example(&settings, (d, d_out), f, n);
            let dead: Vec<u32> = (0..f as u32).filter(|f| f % 5 == 2).collect();
            both_ways_equal_the_twin(&plan, &state, StepInput { target: Some(&y), ..input(&x, &dead) });
        }
    }
}

fn both_ways_equal_the_twin(plan: &TrainPlan, state: &State, input: StepInput<'_>) {
    let twin = DenseState::upload(state, &Device::Cpu).unwrap();
    let (expected, tensors) = twin.gradients(plan, input).unwrap();
    let expected_gradients = twin.fetch(&tensors.iter().collect::<Vec<_>>()).unwrap();
    for dense_above in [0.0, 1.0] {
        let mut workspace = Workspace::new(&state.weights, plan.dtype);
        workspace.dense_above = dense_above;
        let report = workspace.gradients(state, plan, input);
        same_figures(&report, &expected, 1e-4);
        assert_eq!(report.fired, expected.fired);
        let pairs = workspace.gradients.tensors().into_iter().zip(expected_gradients.tensors());
        for ((name, _, ours), (_, _, theirs)) in pairs {
            assert!(
                close(ours, theirs, 2e-4),
                "{name} of {:?} with {:?}, {} rows, tiles {}",
                plan.method,
                state.weights.shape,
                input.x.len() / plan.d_in,
                dense_above == 0.0
            );
            assert!(theirs.iter().any(|g| *g != 0.0), "{name} of {:?} has a gradient", plan.method);
        }
    }
}

#[test]
fn gradients_equal_finite_differences() {
    // Straight-through estimators are no derivatives, and the auxiliary reconstruction does not follow the residual.
    let smooth = |s: &&TrainSettings| s.arch != TrainArchitecture::JumpRelu;
    for settings in methods().iter().filter(smooth) {
        let (plan, state, x) = example(settings, 3, 7, 5);
        equal_finite_differences(&plan, state, &x, None);
    }
    for settings in transcoder_methods().iter().filter(smooth) {
        let (plan, state, x, y) = transcoder_example(settings, (3, 4), 7, 5);
        equal_finite_differences(&plan, state, &x, Some(&y));
    }
}

fn equal_finite_differences(plan: &TrainPlan, mut state: State, x: &[f32], y: Option<&[f32]>) {
    let mut workspace = Workspace::new(&state.weights, plan.dtype);
    workspace.gradients(&state, plan, StepInput { target: y, ..input(x, &[]) });
    let gradients = workspace.gradients.clone();
    for (tensor, (name, _, expected)) in gradients.tensors().into_iter().enumerate() {
        for (i, expected) in expected.iter().enumerate() {
            let mut at = |change: f32| {
                let value = state.weights.tensors_mut()[tensor][i];
                state.weights.tensors_mut()[tensor][i] = value + change;
                let moved = state.weights.tensors_mut()[tensor][i] - value;
                let loss = naive(plan, &state, x, y);
                state.weights.tensors_mut()[tensor][i] = value;
                (f64::from(moved), loss)
            };
            let ((up, loss_up), (down, loss_down)) = (at(1e-3), at(-1e-3));
            let difference = (loss_up - loss_down) / (up - down);
            let wrong = (difference - f64::from(*expected)).abs() / (1.0 + difference.abs());
            assert!(wrong < 3e-3, "{name}[{i}] of {:?}: {expected} against {difference}", plan.method);
        }
    }
}

/// The loss from its definition, number by number in `f64`.
fn naive(plan: &TrainPlan, state: &State, x: &[f32], y: Option<&[f32]>) -> f64 {
    let weights = &state.weights;
    let Shape { d_in: d, d_out, transcoder, skip, .. } = weights.shape;
    let f = weights.features();
    let n = x.len() / d;
    let of = |w: &[f32], i: usize| f64::from(w[i]);
    let row = |j: usize| &weights.w_dec[j * d_out..][..d_out];
    let norm = |j: usize| row(j).iter().map(|w| f64::from(*w).powi(2)).sum::<f64>().sqrt();
    let center = |i: usize| if transcoder { 0.0 } else { of(&weights.b_dec, i) };
    let pre = |x: &[f32], j: usize| {
        (0..d).map(|i| (of(x, i) - center(i)) * of(&weights.w_enc, j * d + i)).sum::<f64>() + of(&weights.b_enc, j)
    };
    let targets: Vec<Vec<f64>> = x
        .chunks_exact(d)
        .zip(y.unwrap_or(x).chunks_exact(d_out))
        .map(|(x, y)| {
            let linear = |o: usize| (0..d).map(|i| of(x, i) * of(&weights.w_skip, o * d + i)).sum::<f64>();
            (0..d_out).map(|o| of(y, o) - if skip { linear(o) } else { 0.0 }).collect()
        })
        .collect();
    let pres: Vec<Vec<f64>> = x.chunks_exact(d).map(|x| (0..f).map(|j| pre(x, j)).collect()).collect();
    let error = |y: &[f64], z: &[f64]| -> f64 {
        let off =
            |i: usize| of(&weights.b_dec, i) - y[i] + z.iter().enumerate().map(|(j, z)| z * of(row(j), i)).sum::<f64>();
        (0..d_out).map(|i| off(i).powi(2)).sum()
    };
    let top = plan.method.top();
    let mut chosen = vec![vec![true; f]; n];
    if let Some(top) = &top {
        let key = |b: usize, j: usize| pres[b][j] * if top.rescale { norm(j) } else { 1.0 };
        let least_of = |mut keys: Vec<f64>, count: usize| {
            keys.sort_by(|a, b| b.total_cmp(a));
            keys[count - 1].max(0.0)
        };
        let everywhere = least_of((0..n * f).map(|i| key(i / f, i % f)).collect(), (top.k * n as f64) as usize);
        for (b, chosen) in chosen.iter_mut().enumerate() {
            let least = if top.whole_batch {
                everywhere
            } else {
                least_of((0..f).map(|j| key(b, j)).collect(), top.k as usize)
            };
            for (j, chosen) in chosen.iter_mut().enumerate() {
                *chosen = key(b, j) >= least && key(b, j) > 0.0;
            }
        }
    }
    let mut total = 0.0;
    for (b, y) in targets.iter().enumerate() {
        let z: Vec<f64> = match &plan.method {
            Method::Gated => {
                let (r_mag, b_mag) = (&weights.own[0].1, &weights.own[1].1);
                let magnitude = |j: usize| (pres[b][j] - of(&weights.b_enc, j)) * of(r_mag, j).exp() + of(b_mag, j);
                (0..f).map(|j| if pres[b][j] > 0.0 { magnitude(j).max(0.0) } else { 0.0 }).collect()
            }
            _ => (0..f).map(|j| if chosen[b][j] { pres[b][j].max(0.0) } else { 0.0 }).collect(),
        };
        total += error(y, &z);
        let v: Vec<f64> = (0..f).map(|j| pres[b][j].max(0.0) * norm(j)).collect();
        total += 0.7
            * match &plan.method {
                Method::Relu { p_anneal: Some(_), .. } => v.iter().map(|v| v.powf(0.8)).sum::<f64>(),
                Method::Relu { lp_norm, .. } => v.iter().map(|v| v.powf(*lp_norm)).sum::<f64>().powf(1.0 / lp_norm),
                Method::Gated => v.iter().sum(),
                _ => 0.0,
            };
        if matches!(plan.method, Method::Gated) {
            total += error(y, &pres[b].iter().map(|p| p.max(0.0)).collect::<Vec<_>>());
        }
        for &width in top.iter().flat_map(|top| &top.levels).filter(|&&width| width < f) {
            let part: Vec<f64> = z.iter().enumerate().map(|(j, z)| if j < width { *z } else { 0.0 }).collect();
            total += error(y, &part);
        }
    }
    total / n as f64
}

#[test]
fn both_steps_walk_the_same_path() {
    for settings in methods() {
        let (plan, mut ours, x) = example(&settings, 11, 40, 64);
        let start = ours.weights.w_dec.clone();
        let mut twin = DenseState::upload(&ours, &Device::Cpu).unwrap();
        let mut workspace = Workspace::new(&ours.weights, plan.dtype);
        for step in 1..=4 {
            let learning_rate = 0.003 / f64::from(step);
            let report = workspace.gradients(&ours, &plan, input(&x, &[3, 8]));
            optimiser::update(&mut ours, &workspace.gradients, report.squared_gradient.sqrt(), learning_rate);
            let twin_report = twin.step(&plan, input(&x, &[3, 8]), learning_rate).unwrap();
            same_figures(&report, &twin_report, 5e-3);
        }
        let twin = twin.download().unwrap();
        assert_eq!(ours.step, twin.step);
        for ((name, _, ours), (_, _, twin)) in ours.weights.tensors().into_iter().zip(twin.weights.tensors()) {
            assert!(close(ours, twin, 5e-3), "{name} of {:?}", plan.method);
        }
        assert!(!close(&ours.weights.w_dec, &start, 1e-3), "the weights moved");
    }
}

#[test]
fn bf16_gradients_point_where_those_of_f32_do() {
    for settings in methods() {
        let (plan, state, x) = example(&settings, 40, 200, 150);
        for dense_above in [0.0, 1.0] {
            let [exact, rounded] = [DtypeChoice::F32, DtypeChoice::Bf16].map(|dtype| {
                let mut workspace = Workspace::new(&state.weights, dtype);
                workspace.dense_above = dense_above;
                let report = workspace.gradients(&state, &plan, input(&x, &[3, 8, 100]));
                (report, workspace.gradients)
            });
            assert!((rounded.0.loss.mse / exact.0.loss.mse - 1.0).abs() < 0.02, "{:?}", plan.method);
            for ((name, _, a), (_, _, b)) in rounded.1.tensors().into_iter().zip(exact.1.tensors()) {
                let cosine = crate::ops::dot(a, b) / (crate::ops::dot(a, a) * crate::ops::dot(b, b)).sqrt();
                assert!(cosine > 0.97, "{name} of {:?}: cosine {cosine}", plan.method);
            }
        }
    }
}

#[test]
fn the_bits_do_not_depend_on_the_threads() {
    for settings in methods() {
        for (dense_above, dtype) in
            [(0.0, DtypeChoice::F32), (1.0, DtypeChoice::F32), (0.0, DtypeChoice::Bf16), (1.0, DtypeChoice::Bf16)]
        {
            let run = || {
                let (plan, mut state, x) = example(&settings, 17, 300, 400);
                let mut workspace = Workspace::new(&state.weights, dtype);
                workspace.dense_above = dense_above;
                for _ in 0..2 {
                    let report = workspace.gradients(&state, &plan, input(&x, &[3, 8, 100]));
                    optimiser::update(&mut state, &workspace.gradients, report.squared_gradient.sqrt(), 0.01);
                }
                state
            };
            assert_eq!(with_threads(1, run), with_threads(2, run), "{:?}", settings.arch);
        }
    }
}
