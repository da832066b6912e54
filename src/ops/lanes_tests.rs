//! Fused elementwise work against its definitions.

use super::*;

fn worst(xs: &[f32], f: impl Fn(f32) -> f32, exact: impl Fn(f64) -> f64) -> f64 {
    xs.iter().map(|&x| (f64::from(f(x)) - exact(f64::from(x))).abs()).fold(0.0, f64::max)
}

fn points() -> Vec<f32> {
    (-12_000..=12_000).map(|i| i as f32 / 1000.0).collect()
}

/// Complementary error function by its continued fraction or its series, whichever converges.
fn erfc_exact(x: f64) -> f64 {
    if x < 0.0 {
        return 2.0 - erfc_exact(-x);
    }
    if x < 2.5 {
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        return 1.0 - 2.0 / std::f64::consts::PI.sqrt() * sum;
    }
    let tail = (1..=200).rev().fold(0.0, |tail, n| f64::from(n) / 2.0 / (x + tail));
    (-x * x).exp() / std::f64::consts::PI.sqrt() / (x + tail)
}

#[test]
fn exponentials_are_right_to_the_last_bits_and_at_the_ends() {
    let worst = (-87_000..88_000).map(|i| i as f32 / 1000.0).fold(0.0f64, |worst, x| {
        let exact = f64::from(x).exp();
        worst.max((f64::from(exp(x)) / exact - 1.0).abs())
    });
    assert!(worst < 2e-7, "{worst}");
    assert!(exp(f32::NEG_INFINITY) < 2e-38 && exp(0.0) == 1.0 && exp(f32::INFINITY) > 1e38);
    assert!(exp(f32::NAN).is_nan());
}

#[test]
fn activations_equal_their_definitions() {
    let through = |activation| {
        move |x: f32| {
            let mut lanes = [x; 3];
            activate(&mut lanes, activation);
            lanes[2]
        }
    };
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let tanh = |x: f64| 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x)).tanh());
    let xs = points();
    let gelu = worst(&xs, through(Activation::Gelu), |x| 0.5 * x * erfc_exact(-x * std::f64::consts::FRAC_1_SQRT_2));
    assert!(gelu < 2e-6, "{gelu}");
    assert!(worst(&xs, through(Activation::GeluTanh), tanh) < 2e-6);
    assert!(worst(&xs, through(Activation::QuickGelu), |x| x * sigmoid(1.702 * x)) < 2e-6);
    assert!(worst(&xs, through(Activation::Silu), |x| x * sigmoid(x)) < 2e-6);
    assert!(worst(&xs, through(Activation::Relu), |x| x.max(0.0)) == 0.0);
}

#[test]
fn halving_is_exact_or_refused() {
    let exact = [1.0f32, -0.0, 0.15625, f32::INFINITY, 3e38_f32.to_bits().wrapping_shr(16).wrapping_shl(16) as f32];
    let exact: Vec<f32> = exact.iter().map(|x| f32::from_bits(x.to_bits() & 0xffff_0000)).cycle().take(50).collect();
    assert_eq!(widened(&halved(&exact).unwrap()), exact);
    let mut almost = exact;
    almost[49] = 1.0 + f32::EPSILON;
    assert_eq!(halved(&almost), None);
}

#[test]
fn a_gate_multiplies_its_linear_branch() {
    let (mut pre, linear) = (points(), points().iter().map(|x| x * 0.5 - 1.0).collect::<Vec<_>>());
    let expected: Vec<f32> = pre.iter().zip(&linear).map(|(p, l)| act(*p, Activation::GeluTanh) * l).collect();
    gate(&mut pre, &linear, Activation::GeluTanh);
    assert_eq!(pre, expected);
}

#[test]
fn norms_equal_their_definitions() {
    let x: Vec<f32> = (0..45).map(|i| (i as f32 * 1.7).sin() + 0.3).collect();
    let gain: Vec<f32> = (0..45).map(|i| 1.0 + i as f32 / 50.0).collect();
    let bias: Vec<f32> = (0..45).map(|i| i as f32 / 90.0).collect();
    for centre in [false, true] {
        let mut out = vec![0.0; 45];
        norm(&x, &mut out, NormRow { centre, eps: 1e-3, gain: Some(&gain), bias: Some(&bias) });
        let mean = if centre { x.iter().map(|x| f64::from(*x)).sum::<f64>() / 45.0 } else { 0.0 };
        let variance = x.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / 45.0;
        for i in 0..45 {
            let exact = (f64::from(x[i]) - mean) / (variance + 1e-3).sqrt() * f64::from(gain[i]) + f64::from(bias[i]);
            assert!((f64::from(out[i]) - exact).abs() < 1e-5);
        }
    }
}

#[test]
fn heads_turn_by_their_angles_and_keep_what_is_not_rotary() {
    let mut row: Vec<f32> = (0..12).map(|i| i as f32).collect();
    rotate(&mut row, 6, &[0.0, 1.0], &[1.0, 0.0]);
    assert_eq!(row, [-2.0, 1.0, 0.0, 3.0, 4.0, 5.0, -8.0, 7.0, 6.0, 9.0, 10.0, 11.0]);
}

#[test]
fn exponentials_of_a_row_are_relative_to_its_largest() {
    let mut row: Vec<f32> = (0..37).map(|i| (i as f32 * 0.9).cos() * 30.0 + 500.0).collect();
    let largest = row.iter().fold(f32::MIN, |a, &b| a.max(b));
    let exact: Vec<f64> = row.iter().map(|x| f64::from(x - largest).exp()).collect();
    let sum = exponentials(&mut row);
    assert!((f64::from(sum) / exact.iter().sum::<f64>() - 1.0).abs() < 1e-6);
    assert!(row.iter().zip(&exact).all(|(x, e)| (f64::from(*x) - e).abs() < 1e-6));
}

#[test]
fn soft_caps_saturate() {
    let mut x = [0.1, -3.0, 1e6];
    soft_cap(&mut x, 2.0);
    for (x, exact) in x.iter().zip([2.0 * 0.05f32.tanh(), 2.0 * (-1.5f32).tanh(), 2.0]) {
        assert!((x - exact).abs() < 1e-6, "{x} {exact}");
    }
}
