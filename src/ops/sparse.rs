//! Products of sparse codes with dense matrices. All of them walk contiguous rows of width `d`.
//!
//! | kernel | formula | tasks |
//! | --- | --- | --- |
//! | [`decode_row`] | `y += Σ_p value_p · W[index_p]` | a row |
//! | [`dots_row`] | `out_p = g · W[index_p]` | a row |
//! | [`accumulate`] | `G[f] = Σ_{p of f} a_p · X[row_p]` for two `(a, X)` at once | a feature |
//!
//! They are the decoder, the gradient of the codes, and the gradients of both weight matrices; see Gao et al. 2024,
//! "Scaling and evaluating sparse autoencoders", appendix on kernels.

#![expect(clippy::inline_always, reason = "a body must be inlined to be compiled for its caller's instruction set")]

use super::vector::{add_scaled_inline, add_scaled4_inline, dot_inline, dot4_inline, vectorised};

/// Codes in compressed-row form: row `i` holds `indices[offsets[i]..offsets[i + 1]]`.
#[derive(Debug, Clone, Copy)]
pub struct Pairs<'a> {
    /// `rows + 1` offsets.
    pub offsets: &'a [usize],
    /// Feature of each pair.
    pub indices: &'a [u32],
    /// Value of each pair.
    pub values: &'a [f32],
}

/// The same pairs by feature: feature `f` holds `rows[offsets[f]..offsets[f + 1]]`.
#[derive(Debug, Clone, Copy)]
pub struct Grouped<'a> {
    /// `features + 1` offsets.
    pub offsets: &'a [usize],
    /// Row of each pair.
    pub rows: &'a [u32],
    /// Position of each pair in [`Pairs::values`].
    pub pairs: &'a [u32],
}

/// Row `i` of a row-major matrix of width `d`.
#[inline(always)]
fn row(matrix: &[f32], i: u32, d: usize) -> &[f32] {
    &matrix[i as usize * d..][..d]
}

vectorised! {
    /// `out += Σ_p values[p] · weight[indices[p]]`, with `weight` `[f, d]` and `out` `[d]`.
    pub fn decode_row(out: &mut [f32], indices: &[u32], values: &[f32], weight: &[f32]) {
        let d = out.len();
        let (indices4, values4) = (indices.chunks_exact(4), values.chunks_exact(4));
        let rest = indices4.remainder().iter().zip(values4.remainder());
        for (i, v) in indices4.zip(values4) {
            let rows = [row(weight, i[0], d), row(weight, i[1], d), row(weight, i[2], d), row(weight, i[3], d)];
            add_scaled4_inline(out, [v[0], v[1], v[2], v[3]], rows);
        }
        for (i, v) in rest {
            add_scaled_inline(out, *v, row(weight, *i, d));
        }
    }
}

vectorised! {
    /// `out[p] = gradient · weight[indices[p]]`, with `weight` `[f, d]` and `gradient` `[d]`.
    pub fn dots_row(out: &mut [f32], indices: &[u32], gradient: &[f32], weight: &[f32]) {
        let d = gradient.len();
        let whole = indices.len() - indices.len() % 4;
        for (out, i) in out.chunks_exact_mut(4).zip(indices.chunks_exact(4)) {
            let rows = [row(weight, i[0], d), row(weight, i[1], d), row(weight, i[2], d), row(weight, i[3], d)];
            out.copy_from_slice(&dot4_inline(rows, gradient));
        }
        for (out, i) in out[whole..].iter_mut().zip(&indices[whole..]) {
            *out = dot_inline(row(weight, *i, d), gradient);
        }
    }
}

vectorised! {
    /// `out += Σ_p values[pairs[p]] · x[rows[p]]` over the pairs of one feature, with `x` `[n, d]` and `out` `[d]`.
    pub fn accumulate(out: &mut [f32], rows: &[u32], pairs: &[u32], values: &[f32], x: &[f32]) {
        let d = out.len();
        let value = |pair: u32| values[pair as usize];
        let (rows4, pairs4) = (rows.chunks_exact(4), pairs.chunks_exact(4));
        let rest = rows4.remainder().iter().zip(pairs4.remainder());
        for (r, p) in rows4.zip(pairs4) {
            let a = [value(p[0]), value(p[1]), value(p[2]), value(p[3])];
            add_scaled4_inline(out, a, [row(x, r[0], d), row(x, r[1], d), row(x, r[2], d), row(x, r[3], d)]);
        }
        for (r, p) in rest {
            add_scaled_inline(out, value(*p), row(x, *r, d));
        }
    }
}

/// Appends the positive entries of `pre + bias` to `indices` and `values`, numbered from `first`.
///
/// `indices` and `values` are scratch with room for `pre.len()` more than `filled`; the new fill is returned. No
/// branch depends on the data, so the cost does not depend on the density.
pub fn compact_positive(
    pre: &[f32],
    bias: &[f32],
    first: u32,
    indices: &mut [u32],
    values: &mut [f32],
    filled: usize,
) -> usize {
    let n = pre.len().min(bias.len());
    let (indices, values) = (&mut indices[filled..][..n], &mut values[filled..][..n]);
    let mut kept = 0;
    for i in 0..n {
        let value = pre[i] + bias[i];
        // `kept <= i < n` always; the compiler does not see it, and the check is one predictable compare.
        indices[kept] = first + i as u32;
        values[kept] = value;
        kept += usize::from(value > 0.0);
        if kept == n {
            break;
        }
    }
    filled + kept
}

/// Cuts `data`, which has one value a pair, at the row boundaries that lie `block` rows apart.
pub fn split_by_rows<'a, T>(mut data: &'a mut [T], offsets: &[usize], block: usize) -> Vec<&'a mut [T]> {
    let rows = offsets.len().saturating_sub(1);
    let mut parts = Vec::with_capacity(rows.div_ceil(block.max(1)));
    for first in (0..rows).step_by(block.max(1)) {
        let last = (first + block).min(rows);
        let (part, rest) = data.split_at_mut(offsets[last] - offsets[first]);
        parts.push(part);
        data = rest;
    }
    parts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ops::gemm::tests::numbers;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn sparse_products_equal_the_naive_ones(d in 1usize..70, f in 1usize..20, k in 0usize..19) {
            let k = k.min(f);
            let indices: Vec<u32> = (0..k as u32).collect();
            let (values, weight, g) = (numbers(k, "v"), numbers(f * d, "w"), numbers(d, "g"));
            let mut out = g.clone();
            decode_row(&mut out, &indices, &values, &weight);
            for j in 0..d {
                let naive: f32 = g[j] + (0..k).map(|p| values[p] * weight[p * d + j]).sum::<f32>();
                prop_assert!((out[j] - naive).abs() < 1e-5);
            }
            let mut dots = vec![0.0; k];
            dots_row(&mut dots, &indices, &g, &weight);
            for p in 0..k {
                let naive: f32 = (0..d).map(|j| g[j] * weight[p * d + j]).sum();
                prop_assert!((dots[p] - naive).abs() < 1e-5);
            }
            let reversed: Vec<u32> = indices.iter().rev().copied().collect();
            let mut sum = vec![0.0; d];
            accumulate(&mut sum, &indices, &reversed, &values, &weight);
            for j in 0..d {
                let naive: f32 = (0..k).map(|p| values[k - 1 - p] * weight[p * d + j]).sum();
                prop_assert!((sum[j] - naive).abs() < 1e-5);
            }
        }

        #[test]
        fn compaction_keeps_exactly_the_positive_entries(n in 0usize..80) {
            let (pre, bias) = (numbers(n, "pre"), numbers(n, "bias"));
            let (mut indices, mut values) = (vec![9; n + 2], vec![9.0; n + 2]);
            let end = compact_positive(&pre, &bias, 100, &mut indices, &mut values, 2);
            let kept: Vec<(u32, f32)> = (0..n).map(|i| (100 + i as u32, pre[i] + bias[i])).filter(|p| p.1 > 0.0).collect();
            let got: Vec<(u32, f32)> = indices[2..end].iter().copied().zip(values[2..end].iter().copied()).collect();
            prop_assert_eq!(got, kept);
        }
    }

    #[test]
    fn pairs_are_cut_at_row_boundaries() {
        let mut data: Vec<u32> = (0..10).collect();
        let parts = split_by_rows(&mut data, &[0, 3, 3, 7, 10], 2);
        assert_eq!(parts, [&[0, 1, 2][..], &[3, 4, 5, 6, 7, 8, 9]]);
    }
}
