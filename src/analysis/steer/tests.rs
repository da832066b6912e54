use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::*;
use crate::analysis::rewrite::{FeatureEdit, FeatureOp, FeatureRewrite, activation_per_row};
use crate::analysis::tests::{dictionary_at, dictionary_with, open};
use crate::base::Silent;
use crate::dictionary::tests::architectures;
use crate::dictionary::{Dictionary, NormalizeActivations};
use crate::model::{Positions, Rewrite};
use crate::ops::gemm::tests::numbers;

const HOOK: &str = "blocks.0.hook_resid_post";
fn edit(feature: u32, op: FeatureOp) -> FeatureEdit {
    FeatureEdit { feature, op }
}

fn rewritten(dictionary: &Arc<Dictionary>, edits: &[FeatureEdit], x: &[f32], max_norm: Option<f64>) -> Vec<f32> {
    let d = dictionary.d_in();
    let x = Tensor::from_slice(x, (x.len() / d, d), &Device::Cpu).unwrap();
    let rewrite = FeatureRewrite::new(dictionary, edits, &Device::Cpu).unwrap().max_norm(max_norm);
    rewrite.rewrite(&x).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Activation of `feature` on every row, from the whole code.
fn encoded(dictionary: &Dictionary, x: &[f32], feature: u32) -> Vec<f32> {
    let codes = dictionary.encode(x).unwrap();
    let value = |row: usize| {
        let (features, values) = codes.row(row);
        features.iter().position(|f| *f == feature).map_or(0.0, |p| values[p])
    };
    (0..codes.rows()).map(value).collect()
}

fn assert_near(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len());
    let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
    assert!(worst < 2e-5, "{what}: off by {worst}");
}

#[test]
fn operations_move_the_state_by_the_change_of_activation_along_the_decoder_row() {
    for architecture in architectures() {
        for centered in [true, false] {
            let mut dictionary = dictionary_with(architecture, HOOK, 13, 40);
            dictionary.config.apply_b_dec_to_input = centered;
            let dictionary = Arc::new(dictionary);
            let x = numbers(30 * 13, "x");
            let decoded = |feature: u32, amount: &dyn Fn(usize) -> f32| -> Vec<f32> {
                let row = dictionary.decoder_row(feature).unwrap();
                let norm = activation_per_row(&dictionary, row);
                x.iter().enumerate().map(|(i, x)| x + amount(i / 13) / norm * row[i % 13]).collect()
            };
            let mut active = 0;
            for feature in 0..40 {
                let f = encoded(&dictionary, &x, feature);
                active += f.iter().filter(|f| **f != 0.0).count();
                let norm = activation_per_row(&dictionary, dictionary.decoder_row(feature).unwrap());
                let check = |op, amount: &dyn Fn(usize) -> f32| {
                    let found = rewritten(&dictionary, &[edit(feature, op)], &x, None);
                    assert_near(&found, &decoded(feature, amount), &format!("{architecture:?} {op:?}"));
                };
                check(FeatureOp::Clamp(2.5), &|row| 2.5 - f[row]);
                check(FeatureOp::Scale(3.0), &|row| 2.0 * f[row]);
                check(FeatureOp::Ablate, &|row| -f[row]);
                check(FeatureOp::Add(1.5), &|_| 1.5 * norm);
            }
            assert!(active > 50 && active < 30 * 40);
        }
    }
}

#[test]
fn edits_that_ask_for_the_present_activation_change_nothing() {
    for architecture in architectures() {
        let dictionary = Arc::new(dictionary_with(architecture, HOOK, 13, 40));
        let x = numbers(13, "one row");
        for feature in 0..40 {
            let f = encoded(&dictionary, &x, feature)[0];
            assert_eq!(rewritten(&dictionary, &[edit(feature, FeatureOp::Scale(1.0))], &x, None), x);
            assert_near(&rewritten(&dictionary, &[edit(feature, FeatureOp::Clamp(f))], &x, None), &x, "clamp");
            let ablated = rewritten(&dictionary, &[edit(feature, FeatureOp::Ablate)], &x, None);
            assert_eq!(ablated == x, f == 0.0, "{architecture:?}: ablation changes exactly the active features");
        }
    }
}

#[test]
fn edits_of_a_dictionary_that_normalises_rows_are_worth_the_scale_of_the_row() {
    for kind in [NormalizeActivations::LayerNorm, NormalizeActivations::ConstantNormRescale] {
        for architecture in architectures() {
            let mut dictionary = dictionary_with(architecture, HOOK, 13, 40);
            dictionary.config.normalize_activations = kind;
            let dictionary = Arc::new(dictionary);
            let x: Vec<f32> = numbers(13, "one row").iter().map(|x| x * 3.0 + 0.5).collect();
            let before = dictionary.encode(&x).unwrap();
            let feature = before.features[0];
            // Ablating a feature takes away what it contributes to the reconstruction.
            let mut without = before.clone();
            without.values[0] = 0.0;
            let [with, without] = [&before, &without].map(|codes| dictionary.reconstruct_codes(&x, codes).unwrap());
            let expected: Vec<f32> = (0..13).map(|i| x[i] + without[i] - with[i]).collect();
            let found = rewritten(&dictionary, &[edit(feature, FeatureOp::Ablate)], &x, None);
            assert_near(&found, &expected, &format!("{architecture:?} {kind:?}"));
            assert_ne!(found, x);
        }
    }
}

#[test]
fn several_edits_add_up_and_those_of_one_feature_follow_each_other() {
    let dictionary = Arc::new(dictionary_at(HOOK, 13, 40));
    let x = numbers(8 * 13, "x");
    let (a, b) = (edit(3, FeatureOp::Clamp(4.0)), edit(7, FeatureOp::Scale(-1.0)));
    let both = rewritten(&dictionary, &[a, b], &x, None);
    let (first, second) = (rewritten(&dictionary, &[a], &x, None), rewritten(&dictionary, &[b], &x, None));
    let sum: Vec<f32> = x.iter().zip(first.iter().zip(&second)).map(|(x, (a, b))| a + b - x).collect();
    assert_near(&both, &sum, "two features");
    let twice = [edit(3, FeatureOp::Clamp(4.0)), edit(3, FeatureOp::Scale(0.5)), edit(3, FeatureOp::Add(1.0))];
    let once = rewritten(&dictionary, &[edit(3, FeatureOp::Clamp(3.0))], &x, None);
    assert_near(&rewritten(&dictionary, &twice, &x, None), &once, "one feature");
}

#[test]
fn rows_above_the_norm_limit_stay() {
    let dictionary = Arc::new(dictionary_at(HOOK, 13, 40));
    let mut x = numbers(2 * 13, "x");
    x[..13].iter_mut().for_each(|x| *x *= 1000.0);
    let found = rewritten(&dictionary, &[edit(3, FeatureOp::Clamp(4.0))], &x, Some(50.0));
    assert_eq!(found[..13], x[..13]);
    assert_ne!(found[13..], x[13..]);
}

fn settings(positions: SteerPositions) -> SteerSettings {
    let generate = GenerateSettings { max_new_tokens: 12, temperature: 0.0, top_p: None, seed: 0, stop_tokens: vec![] };
    SteerSettings { positions, generate, top_changes: 5 }
}

/// Greedy generation without a cache.
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
fn cached_steering_equals_recomputation_and_differs_from_no_steering() {
    let prompt = [7u32, 21, 9, 33, 14];
    for name in ["llama", "gpt2"] {
        let model = open(name);
        let config = model.config();
        let (d, d_mlp) = (config.d_model, config.mlp.d_mlp);
        let places =
            [(HOOK, d), ("blocks.1.mlp.hook_post", d_mlp), ("blocks.1.attn.hook_z", config.n_heads * config.d_head)];
        for (hook, width) in places {
            for architecture in architectures() {
                let dictionary = Arc::new(dictionary_with(architecture, hook, width, 60));
                let edits =
                    [edit(5, FeatureOp::Clamp(30.0)), edit(9, FeatureOp::Add(-20.0)), edit(2, FeatureOp::Ablate)];
                for positions in [SteerPositions::All, SteerPositions::Generated] {
                    let settings = settings(positions.clone());
                    let result =
                        steer(&model, &prompt, &Intervention::of_features(&dictionary, &edits), &settings, &Silent)
                            .unwrap();
                    let plan = Intervention::of_features(&dictionary, &edits)
                        .plan(&model, positions.of(0, prompt.len()))
                        .unwrap();
                    let what = format!("{name} {hook} {architecture:?} {positions:?}");
                    assert_eq!(result.steered, recompute(&model, &prompt, &plan, 12), "{what}");
                    assert_eq!(result.unsteered, recompute(&model, &prompt, &HookPlan::new(), 12), "{what}");
                    let same_first = result.steered[0] == result.unsteered[0];
                    assert!(positions == SteerPositions::All || same_first, "{what}: the prompt is not steered");
                    assert!(!result.gained.is_empty() && !result.lost.is_empty(), "{what}");
                    assert_eq!(result.activations.len(), result.compared.len());
                }
            }
        }
    }
}

#[test]
fn probability_changes_are_those_of_the_first_steered_position() {
    let (model, dictionary) = (open("llama"), Arc::new(dictionary_at(HOOK, 24, 60)));
    let prompt = [7u32, 21, 9, 33, 14];
    let edits = [edit(5, FeatureOp::Clamp(30.0))];
    let result = steer(
        &model,
        &prompt,
        &Intervention::of_features(&dictionary, &edits),
        &settings(SteerPositions::All),
        &Silent,
    )
    .unwrap();
    assert_eq!(result.compared, prompt);
    let best = result.gained[0];
    assert!(best.after > best.before && result.lost[0].after < result.lost[0].before && result.gained.len() == 5);
    let rises: Vec<f32> = result.gained.iter().map(|c| c.after - c.before).collect();
    assert!(rises.is_sorted_by(|a, b| a >= b));
    let nothing = [edit(5, FeatureOp::Scale(1.0))];
    let result = steer(
        &model,
        &prompt,
        &Intervention::of_features(&dictionary, &nothing),
        &settings(SteerPositions::All),
        &Silent,
    )
    .unwrap();
    assert!(result.gained.is_empty() && result.lost.is_empty() && result.steered == result.unsteered);
    let result = steer(
        &model,
        &prompt,
        &Intervention::of_features(&dictionary, &edits),
        &settings(SteerPositions::Generated),
        &Silent,
    )
    .unwrap();
    assert_eq!(result.compared[..5], prompt);
    assert_eq!(result.compared[5..], result.unsteered[..1]);
}

#[test]
fn wrong_features_strengths_and_widths_are_errors() {
    let model = open("llama");
    let run = |dictionary: &Arc<Dictionary>, edits: &[FeatureEdit]| {
        steer(&model, &[1, 2], &Intervention::of_features(dictionary, edits), &settings(SteerPositions::All), &Silent)
            .unwrap_err()
            .to_string()
    };
    let dictionary = Arc::new(dictionary_at(HOOK, 24, 60));
    assert!(run(&dictionary, &[edit(60, FeatureOp::Ablate)]).contains("0 to 59"));
    assert!(run(&dictionary, &[edit(1, FeatureOp::Clamp(f32::NAN))]).contains("NaN"));
    assert!(run(&dictionary, &[]).contains("--feature"));
    let narrow = run(&Arc::new(dictionary_at(HOOK, 23, 60)), &[edit(1, FeatureOp::Ablate)]);
    assert!(narrow.contains("d_in 23") && narrow.contains("width 24"), "{narrow}");
    assert!(run(&Arc::new(dictionary_at("blocks.9.hook_resid_post", 24, 60)), &[]).contains("unknown hook point"));
}

#[test]
fn a_cap_holds_activations_down_and_leaves_lower_ones() {
    for architecture in architectures() {
        let dictionary = Arc::new(dictionary_with(architecture, HOOK, 13, 40));
        let x = numbers(20 * 13, "x");
        let mut lowered = 0;
        for feature in 0..40 {
            let f = encoded(&dictionary, &x, feature);
            let cap = f.iter().copied().fold(0.0, f32::max) / 2.0;
            let row = dictionary.decoder_row(feature).unwrap();
            let norm = activation_per_row(&dictionary, row);
            let expected: Vec<f32> =
                x.iter().enumerate().map(|(i, x)| x + (f[i / 13].min(cap) - f[i / 13]) / norm * row[i % 13]).collect();
            let found = rewritten(&dictionary, &[edit(feature, FeatureOp::Cap(cap))], &x, None);
            assert_near(&found, &expected, &format!("{architecture:?} cap"));
            lowered += f.iter().filter(|f| **f > cap).count();
            // Operations after a cap see the capped value; a negative factor turns it into a floor.
            let edits = [FeatureOp::Cap(cap), FeatureOp::Scale(-2.0), FeatureOp::Add(0.5)].map(|op| edit(feature, op));
            let expected: Vec<f32> = x
                .iter()
                .enumerate()
                .map(|(i, x)| {
                    let f = f[i / 13];
                    x + (-2.0 * f.min(cap) + 0.5 * norm - f) / norm * row[i % 13]
                })
                .collect();
            assert_near(&rewritten(&dictionary, &edits, &x, None), &expected, "a chain");
        }
        assert!(lowered > 10, "{architecture:?}: {lowered}");
    }
}

#[test]
fn without_the_error_term_rows_become_reconstructions_of_the_edited_codes() {
    for kind in [NormalizeActivations::None, NormalizeActivations::LayerNorm] {
        for architecture in architectures() {
            let mut dictionary = dictionary_with(architecture, HOOK, 13, 40);
            dictionary.config.normalize_activations = kind;
            let dictionary = Arc::new(dictionary);
            let mut x = numbers(6 * 13, "x");
            x[..13].iter_mut().for_each(|x| *x *= 100.0);
            let codes = dictionary.encode(&x).unwrap();
            let feature = codes.row(2).0[0];
            let mut edited = codes.clone();
            for (f, value) in edited.features.iter().zip(edited.values.iter_mut()) {
                *value *= if *f == feature { 3.0 } else { 1.0 };
            }
            let expected = dictionary.reconstruct_codes(&x, &edited).unwrap();
            let tensor = Tensor::from_slice(&x, (6, 13), &Device::Cpu).unwrap();
            let rewrite =
                FeatureRewrite::new(&dictionary, &[edit(feature, FeatureOp::Scale(3.0))], &Device::Cpu).unwrap();
            let rewrite = rewrite.error_term(false).max_norm(Some(20.0));
            let found: Vec<f32> = rewrite.rewrite(&tensor).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            assert_eq!(found[..13], x[..13], "a row above the limit stays");
            assert_near(&found[13..], &expected[13..], &format!("{architecture:?} {kind:?}"));
        }
    }
}

fn along(op: DirectionOp) -> DirectionEdit {
    let vector = numbers(24, "vector").iter().map(|x| x * 3.0).collect();
    let at = crate::analysis::Placement::at(HOOK.parse().unwrap());
    DirectionEdit { name: "vector v".into(), at, vector, feature: None, op, max_norm: None }
}

#[test]
fn directions_change_the_projection_and_nothing_else() {
    let x = numbers(7 * 24, "x");
    let vector = along(DirectionOp::ProjectOut).vector;
    let norm = vector.iter().map(|v| v * v).sum::<f32>().sqrt();
    let projection = |row: &[f32]| row.iter().zip(&vector).map(|(x, v)| x * v).sum::<f32>() / norm;
    let tensor = Tensor::from_slice(&x, (7, 24), &Device::Cpu).unwrap();
    let cases: [(DirectionOp, &dyn Fn(f32) -> f32); 6] = [
        (DirectionOp::Add(1.5), &|p| p + 1.5 * norm),
        (DirectionOp::Clamp(2.0), &|_| 2.0),
        (DirectionOp::Scale(-3.0), &|p| -3.0 * p),
        (DirectionOp::Scale(1.0), &|p| p),
        (DirectionOp::Cap(0.1), &|p| p.min(0.1)),
        (DirectionOp::ProjectOut, &|_| 0.0),
    ];
    let (mut above, mut below) = (0, 0);
    for (op, target) in cases {
        let found = along(op).rewrite(&Device::Cpu).unwrap().rewrite(&tensor).unwrap();
        let found: Vec<f32> = found.flatten_all().unwrap().to_vec1().unwrap();
        for (before, after) in x.chunks_exact(24).zip(found.chunks_exact(24)) {
            let p = projection(before);
            let expected: Vec<f32> = before.iter().zip(&vector).map(|(x, v)| x + (target(p) - p) * v / norm).collect();
            assert_near(after, &expected, &format!("{op:?}"));
            (above, below) = (above + usize::from(p > 0.1), below + usize::from(p < 0.1));
        }
    }
    assert!(above > 0 && below > 0, "the cap has something to do, and something to leave");
}

#[test]
fn directions_that_do_not_fit_are_errors() {
    let model = open("llama");
    let config = model.config();
    let check = |edit: DirectionEdit| Intervention::of_direction(edit).plan(&model, Positions::All);
    assert!(along(DirectionOp::Add(1.0)).check(config).is_ok());
    let short = DirectionEdit { vector: vec![1.0; 23], ..along(DirectionOp::Add(1.0)) };
    let error = check(short).unwrap_err().to_string();
    assert!(error.contains("23 values") && error.contains("width 24"), "{error}");
    assert!(check(along(DirectionOp::Cap(f32::INFINITY))).unwrap_err().to_string().contains("--strength"));
    let zero = DirectionEdit { vector: vec![0.0; 24], ..along(DirectionOp::Add(1.0)) };
    assert!(check(zero).unwrap_err().to_string().contains("no direction"));
    let broken = DirectionEdit { vector: [vec![f32::NAN], vec![1.0; 23]].concat(), ..along(DirectionOp::Add(1.0)) };
    assert!(matches!(check(broken), Err(crate::base::Error::NonFinite { .. })));
    assert!(Intervention::default().plan(&model, Positions::All).is_err());
}

#[test]
fn measures_of_a_sweep_equal_a_direct_computation() {
    let model = open("llama");
    let dictionary = Arc::new(dictionary_at(HOOK, 24, 60));
    let prompt = vec![7u32, 21, 9, 33, 14];
    let points: Vec<Intervention> = [0.0, 40.0]
        .map(|v| Intervention::of_features(&dictionary, &[edit(5, FeatureOp::Clamp(v))]))
        .into_iter()
        .chain([Intervention::of_direction(along(DirectionOp::Add(6.0)))])
        .collect();
    for (points, direction) in [(&points[..2], false), (&points[2..], true)] {
        let mut found = None;
        sweep(
            &model,
            std::slice::from_ref(&prompt),
            points,
            &settings(SteerPositions::All),
            &Silent,
            |number, texts| {
                assert_eq!(number, 0);
                found = Some(texts.clone());
                Ok(())
            },
        )
        .unwrap();
        let found = found.unwrap();
        let log_probabilities = |tokens: &[u32], plan: &HookPlan| -> Vec<Vec<f32>> {
            let run = model.forward(&model.tokens(&[tokens]).unwrap(), &plan.clone().with_logits()).unwrap();
            candle_nn::ops::log_softmax(&run.logits().unwrap().get(0).unwrap(), 1).unwrap().to_vec2().unwrap()
        };
        assert_eq!(found.unsteered.measures.kl, Some(0.0));
        for (point, text) in std::iter::once(None)
            .chain(points.iter().map(Some))
            .zip(std::iter::once(&found.unsteered).chain(&found.steered))
        {
            let all = [prompt.as_slice(), &text.tokens].concat();
            let clean = log_probabilities(&all, &HookPlan::new());
            let n = text.tokens.len();
            let loss = text.tokens.iter().enumerate().map(|(i, &t)| -f64::from(clean[4 + i][t as usize])).sum::<f64>();
            let perplexity = (loss / n as f64).exp();
            assert!((text.measures.perplexity.unwrap() / perplexity - 1.0).abs() < 1e-5);
            assert_eq!(text.measures.repetition, measure::repetition(&text.tokens));
            let run = model
                .forward(&model.tokens(&[&all]).unwrap(), &HookPlan::new().capture(HOOK.parse().unwrap()))
                .unwrap();
            let rows: Vec<f32> = run.captured(HOOK.parse().unwrap()).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            let values: Vec<f32> = if direction {
                let vector = along(DirectionOp::ProjectOut).vector;
                let norm = vector.iter().map(|v| v * v).sum::<f32>().sqrt();
                let project = |row: &[f32]| row.iter().zip(&vector).map(|(x, v)| x * v).sum::<f32>() / norm;
                rows.chunks_exact(24).map(project).collect()
            } else {
                encoded(&dictionary, &rows, 5)
            };
            let mean = values[5..].iter().map(|v| f64::from(*v)).sum::<f64>() / n as f64;
            assert!((text.measures.concepts[0].unwrap() - mean).abs() < 1e-4, "{:?} {mean}", text.measures);
            let Some(point) = point else { continue };
            let base = [prompt.as_slice(), &found.unsteered.tokens].concat();
            let (p, q) = (
                log_probabilities(&base, &HookPlan::new()),
                log_probabilities(&base, &point.plan(&model, Positions::All).unwrap()),
            );
            let kl = |i: usize| p[i].iter().zip(&q[i]).map(|(p, q)| f64::from(p.exp() * (p - q))).sum::<f64>();
            let kl = (4..4 + found.unsteered.tokens.len()).map(kl).sum::<f64>() / found.unsteered.tokens.len() as f64;
            assert!((text.measures.kl.unwrap() - kl).abs() < 1e-4 * kl.max(1.0), "{:?} {kl}", text.measures);
            assert!(kl > 1e-3 || point.describe()[0].ends_with("to 0"), "a strength that does nothing: {kl}");
        }
    }
}

#[test]
fn a_difference_of_means_points_from_one_set_to_the_other() {
    let model = open("llama");
    let at = crate::analysis::Placement::at(HOOK.parse().unwrap());
    let (up, down) = (vec![vec![1u32, 7, 21], vec![1, 9, 33, 14]], vec![vec![1u32, 40, 3]]);
    let row = |tokens: &[u32], position: usize| -> Vec<f32> {
        let run = model.forward(&model.tokens(&[tokens]).unwrap(), &HookPlan::new().capture(at.point)).unwrap();
        run.captured(at.point).unwrap().get(0).unwrap().get(position).unwrap().to_vec1().unwrap()
    };
    let last = difference_of_means(&model, at, &up, &down, Pool::Last, &Silent).unwrap();
    let (a, b, c) = (row(&up[0], 2), row(&up[1], 3), row(&down[0], 2));
    let expected: Vec<f32> = (0..24).map(|i| f32::midpoint(a[i], b[i]) - c[i]).collect();
    assert_near(&last.vector, &expected, "last");
    let mean = difference_of_means(&model, at, &up[..1], &down, Pool::Mean, &Silent).unwrap();
    let expected: Vec<f32> = (0..24)
        .map(|i| f32::midpoint(row(&up[0], 1)[i], row(&up[0], 2)[i]) - f32::midpoint(row(&down[0], 1)[i], c[i]))
        .collect();
    assert_near(&mean.vector, &expected, "mean");
    assert!(mean.positive > mean.negative && mean.separated > 0.99);
    let same = difference_of_means(&model, at, &up, &up, Pool::Mean, &Silent).unwrap_err().to_string();
    assert!(same.contains("the same mean"), "{same}");
    assert!(
        difference_of_means(&model, at, &up, &[], Pool::Mean, &Silent).unwrap_err().to_string().contains("--negative")
    );
}
