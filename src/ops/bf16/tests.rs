//! Every kernel against the naive product, on odd sizes.

use half::bf16;
use proptest::prelude::*;

use super::*;
use crate::ops::gemm::tests::{numbers, with_threads};

fn bits(values: &[f32]) -> Vec<u16> {
    values.iter().map(|&x| bf16::from_f32(x).to_bits()).collect()
}

/// What every kernel must equal: inputs rounded to bf16, sums in f64.
fn naive(a: &[f32], b: &[f32], [m, k, n]: [usize; 3]) -> Vec<f32> {
    let a: Vec<f64> = a.iter().map(|&x| bf16::from_f32(x).to_f64()).collect();
    let b: Vec<f64> = b.iter().map(|&x| bf16::from_f32(x).to_f64()).collect();
    let cell = |i: usize, j: usize| (0..k).map(|p| a[i * k + p] * b[p * n + j]).sum::<f64>() as f32;
    (0..m).flat_map(|i| (0..n).map(move |j| cell(i, j))).collect()
}

fn assert_close(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(1.0f32, |max, x| max.max(x.abs()));
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found - expected).abs() <= 2e-6 * largest, "{what}: {found} for {expected} at {i}");
    }
}

fn transposed(b: &[u16], k: usize, n: usize) -> Vec<u16> {
    (0..n).flat_map(|j| (0..k).map(move |p| b[p * n + j])).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_kernel_equals_the_naive_product(
        m in 1usize..100, k in 0usize..600, n in 1usize..100, add in any::<bool>(), alone in any::<bool>(),
    ) {
        let (a, b, start) = (numbers(m * k, "a"), numbers(k * n, "b"), numbers(m * n, "c"));
        let (lhs, weight) = (Rows::round(&a, m, k), bits(&b));
        let mut expected = naive(&a, &b, [m, k, n]);
        if add {
            expected.iter_mut().zip(&start).for_each(|(x, c)| *x += c);
        }
        for packed in [Packed::from_in_out(&weight, k, n), Packed::from_out_in(&transposed(&weight, k, n), n, k)] {
            for kernel in Kernel::available() {
                let mut out = start.clone();
                let mut go = || multiply_with(kernel, &mut out, &lhs, &packed, add);
                if alone { threads::on_this_thread(go) } else { go() }
                prop_assert!(add || kernel != Kernel::best() || alone || out == product(&lhs, &packed));
                assert_close(&out, &expected, &format!("{kernel:?} [{m}, {k}, {n}]"));
            }
        }
    }

    #[test]
    fn a_gated_product_equals_its_parts(m in 1usize..100, k in 1usize..100, n in 1usize..100) {
        let (a, gate, up) = (numbers(m * k, "a"), numbers(k * n, "gate"), numbers(k * n, "up"));
        let lhs = Rows::round(&a, m, k);
        let (gate_bits, up_bits) = (Packed::from_in_out(&bits(&gate), k, n), Packed::from_in_out(&bits(&up), k, n));
        let silu = |x: f32| x / (1.0 + (-x).exp());
        let shape = [m, k, n];
        let (pre, linear) = (naive(&a, &gate, shape), naive(&a, &up, shape));
        for kernel in Kernel::available() {
            for alone in [false, true] {
                let go = || gated_with(kernel, &lhs, &gate_bits, &up_bits, Activation::Silu);
                let post = if alone { threads::on_this_thread(go) } else { go() };
                let found = post.widen(0..m, 0..n);
                for ((found, pre), linear) in found.iter().zip(&pre).zip(&linear) {
                    let expected = silu(*pre) * linear;
                    prop_assert!((found - expected).abs() <= expected.abs() / 200.0 + 1e-5, "{found} {expected}");
                }
            }
        }
    }
}

#[test]
fn packing_keeps_every_value_where_it_was() {
    let (k, n) = (45, 37);
    let weight: Vec<u16> = (0..k * n).map(|i| i as u16).collect();
    let rows = |values: &[u16], rows, k| {
        let mut out = Rows::unset(rows, k);
        (0..rows).for_each(|i| out.row_mut(i).copy_from_slice(&values[i * k..(i + 1) * k]));
        out
    };
    let columns = transposed(&weight, k, n);
    for packed in [
        Packed::from_in_out(&weight, k, n),
        Packed::from_out_in(&columns, n, k),
        Packed::of(&rows(&weight, k, n)),
        Packed::transposed(&rows(&columns, n, k)),
    ] {
        for (i, j) in (0..k).flat_map(|i| (0..n).map(move |j| (i, j))) {
            assert_eq!(packed.at(i, j), weight[i * n + j], "[{i}, {j}]");
        }
    }
}

#[test]
fn rounding_goes_to_the_nearest_even_and_keeps_what_is_not_a_number() {
    let mut values = numbers(300, "x");
    values.extend([0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN_POSITIVE, 1e-40]);
    values.extend([1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, 1.0 + 1.0 / 256.0 + 1e-6]);
    let rows = Rows::round(&values, 1, values.len());
    assert_eq!(rows.row(0), bits(&values));
    let nan = Rows::round(&[f32::NAN, -f32::NAN], 1, 2);
    assert!(nan.row(0).iter().all(|&b| bf16::from_bits(b).is_nan()));
}

#[test]
fn the_bits_do_not_depend_on_the_threads() {
    let (m, k, n) = (130, 150, 90);
    let lhs = Rows::round(&numbers(m * k, "a"), m, k);
    let rhs = Packed::from_in_out(&bits(&numbers(k * n, "b")), k, n);
    for kernel in Kernel::available() {
        let product = || {
            let mut out = vec![0.0; m * n];
            multiply_with(kernel, &mut out, &lhs, &rhs, false);
            out
        };
        let one = with_threads(1, product);
        assert_eq!(one, with_threads(2, product), "{kernel:?}");
        assert_eq!(one, with_threads(3, product), "{kernel:?}");
        assert!(one.iter().any(|x| *x != 0.0));
    }
}
