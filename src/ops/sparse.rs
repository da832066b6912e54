//! Products of sparse codes with dense matrices. All of them walk contiguous rows of width `d`.
//!
//! | kernel | formula | tasks |
//! | --- | --- | --- |
//! | [`decode_row`] | `y += Σ_p value_p · W[index_p]` | a row |
//! | [`dots_row`] | `out_p = g · W[index_p]` | a row |
//! //!
//! They are the decoder and the gradient of the codes; with pairs grouped by feature [`decode_row`] gives the gradients
//! of both weight matrices too (Gao et al. 2024, "Scaling and evaluating sparse autoencoders", appendix on kernels).

#![expect(clippy::inline_always, reason = "a body must be inlined to be compiled for its caller's instruction set")]

use super::vector::{add_scaled_inline, add_scaled4_inline, dot_inline, dot4_inline, fetch_row, vectorised};

/// Row `i` of a row-major matrix of width `d`.
#[inline(always)]
fn row<T>(matrix: &[T], i: u32, d: usize) -> &[T] {
    &matrix[i as usize * d..][..d]
}

/// What a matrix of these products is made of: `f32`, or `u16` that holds the bits of a bf16. Sums are f32.
pub trait Element: Copy + Default + Send + Sync + 'static {
    /// The value.
    fn widen(self) -> f32;

    /// Writes `from` in this type, rounded to the nearest.
    fn store(from: &[f32], to: &mut [Self]);

    /// [`decode_row`] with `weight` of this type.
    fn decode_row(out: &mut [f32], indices: &[u32], values: &[f32], weight: &[Self]);

    /// [`dots_row`] with `weight` of this type.
    fn dots_row(out: &mut [f32], indices: &[u32], gradient: &[f32], weight: &[Self]);
}

impl Element for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    fn store(from: &[f32], to: &mut [Self]) {
        to.copy_from_slice(from);
    }

    fn decode_row(out: &mut [f32], indices: &[u32], values: &[f32], weight: &[Self]) {
        decode_row(out, indices, values, weight);
    }

    fn dots_row(out: &mut [f32], indices: &[u32], gradient: &[f32], weight: &[Self]) {
        dots_row(out, indices, gradient, weight);
    }
}

impl Element for u16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self) << 16)
    }

    fn store(from: &[f32], to: &mut [Self]) {
        super::lanes::round(from, to);
    }

    fn decode_row(out: &mut [f32], indices: &[u32], values: &[f32], weight: &[Self]) {
        decode_row_of_bf16(out, indices, values, weight);
    }

    fn dots_row(out: &mut [f32], indices: &[u32], gradient: &[f32], weight: &[Self]) {
        dots_row_of_bf16(out, indices, gradient, weight);
    }
}

/// `out += Σ_p values[p] · weight[indices[p]]`, four rows at a time while the next four are fetched.
#[inline(always)]
fn decode_inline<T: Element>(out: &mut [f32], indices: &[u32], values: &[f32], weight: &[T]) {
    let d = out.len();
    let (fours, rest) = indices.as_chunks::<4>();
    let (value_fours, value_rest) = values.as_chunks::<4>();
    for (at, (i, v)) in fours.iter().zip(value_fours).enumerate() {
        if let Some(next) = fours.get(at + 1) {
            for &i in next {
                fetch_row(row(weight, i, d));
            }
        }
        add_scaled4_inline(out, *v, i.map(|i| row(weight, i, d)));
    }
    for (i, v) in rest.iter().zip(value_rest) {
        add_scaled_inline(out, *v, row(weight, *i, d));
    }
}

/// `out[p] = gradient · weight[indices[p]]`.
#[inline(always)]
fn dots_inline<T: Element>(out: &mut [f32], indices: &[u32], gradient: &[f32], weight: &[T]) {
    let d = gradient.len();
    let (fours, rest) = indices.as_chunks::<4>();
    let (out_fours, out_rest) = out.as_chunks_mut::<4>();
    for (out, i) in out_fours.iter_mut().zip(fours) {
        *out = dot4_inline(i.map(|i| row(weight, i, d)), gradient);
    }
    for (out, i) in out_rest.iter_mut().zip(rest) {
        *out = dot_inline(row(weight, *i, d), gradient);
    }
}

vectorised! {
    /// `out += Σ_p values[p] · weight[indices[p]]`, with `weight` `[f, d]` and `out` `[d]`.
    pub fn decode_row(out: &mut [f32], indices: &[u32], values: &[f32], weight: &[f32]) {
        decode_inline(out, indices, values, weight);
    }
}

vectorised! {
    /// [`decode_row`] with `weight` of bf16 bits.
    pub fn decode_row_of_bf16(out: &mut [f32], indices: &[u32], values: &[f32], weight: &[u16]) {
        decode_inline(out, indices, values, weight);
    }
}

vectorised! {
    /// `out[p] = gradient · weight[indices[p]]`, with `weight` `[f, d]` and `gradient` `[d]`.
    pub fn dots_row(out: &mut [f32], indices: &[u32], gradient: &[f32], weight: &[f32]) {
        dots_inline(out, indices, gradient, weight);
    }
}

vectorised! {
    /// [`dots_row`] with `weight` of bf16 bits.
    pub fn dots_row_of_bf16(out: &mut [f32], indices: &[u32], gradient: &[f32], weight: &[u16]) {
        dots_inline(out, indices, gradient, weight);
    }
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
            let mut halved = vec![0u16; f * d];
            <u16 as Element>::store(&weight, &mut halved);
            let widened: Vec<f32> = halved.iter().map(|w| w.widen()).collect();
            let (mut ours, mut exact) = (g.clone(), g.clone());
            <u16 as Element>::decode_row(&mut ours, &indices, &values, &halved);
            decode_row(&mut exact, &indices, &values, &widened);
            prop_assert_eq!(ours, exact);
            let (mut ours, mut exact) = (vec![0.0; k], vec![0.0; k]);
            <u16 as Element>::dots_row(&mut ours, &indices, &g, &halved);
            dots_row(&mut exact, &indices, &g, &widened);
            prop_assert_eq!(ours, exact);
        }
    }

    #[test]
    fn pairs_are_cut_at_row_boundaries() {
        let mut data: Vec<u32> = (0..10).collect();
        let parts = split_by_rows(&mut data, &[0, 3, 3, 7, 10], 2);
        assert_eq!(parts, [&[0, 1, 2][..], &[3, 4, 5, 6, 7, 8, 9]]);
    }
}
