//! The two sides of a dense product in the precision that a run computes in.

use std::borrow::Cow;
use std::ops::Range;

use rayon::prelude::*;

use crate::ops::bf16::{self, Packed, Rows};
use crate::ops::{Element, Matrix, gemm};

/// What rows, weights and gradients are held in while a step reads them again and again. Sums, gradients of weights
/// and the weights themselves are `f32` in both.
pub(super) trait Precision: Element {
    /// The left side of a product.
    type Left: Sync;
    /// The right side of a product.
    type Right<'a>: Sync;

    /// `values`, row-major `[n, k]`.
    fn left(values: &[f32], n: usize, k: usize) -> Self::Left;

    /// `values`, row-major `[k, n]`, as the right side.
    fn right(values: &[f32], k: usize, n: usize) -> Self::Right<'_>;

    /// The transpose of `values`, row-major `[n, k]`, each row multiplied by its `scale`, as the right side.
    fn right_transposed<'a>(values: &'a [f32], scale: Option<&[f32]>, n: usize, k: usize) -> Self::Right<'a>;

    /// Rows of `left`, which holds the inner range `k` only, times columns of `right`, on the calling thread. Columns
    /// and `k` begin at multiples of 32.
    fn multiply(
        out: &mut [f32],
        left: (&Self::Left, Range<usize>),
        right: (&Self::Right<'_>, Range<usize>),
        k: Range<usize>,
        add: bool,
    );
}

/// The right side of a product in `f32`.
#[derive(Debug, Clone)]
pub(super) struct View<'a> {
    values: Cow<'a, [f32]>,
    rows: usize,
    columns: usize,
    transposed: bool,
}

impl View<'_> {
    fn matrix(&self) -> Matrix<'_> {
        let matrix = Matrix::new(&self.values, self.rows, self.columns);
        if self.transposed { matrix.t() } else { matrix }
    }
}

/// Rows of width `k`, each multiplied by its scale.
fn scaled<'a>(values: &'a [f32], scale: Option<&[f32]>, k: usize) -> Cow<'a, [f32]> {
    let Some(scale) = scale else { return values.into() };
    let mut out = values.to_vec();
    out.par_chunks_exact_mut(k).zip(scale).for_each(|(row, scale)| row.iter_mut().for_each(|x| *x *= scale));
    out.into()
}

impl Precision for f32 {
    type Left = (Vec<f32>, usize);
    type Right<'a> = View<'a>;

    fn left(values: &[f32], _: usize, k: usize) -> Self::Left {
        (values.to_vec(), k)
    }

    fn right(values: &[f32], k: usize, n: usize) -> Self::Right<'_> {
        View { values: values.into(), rows: k, columns: n, transposed: false }
    }

    fn right_transposed<'a>(values: &'a [f32], scale: Option<&[f32]>, n: usize, k: usize) -> Self::Right<'a> {
        View { values: scaled(values, scale, k), rows: n, columns: k, transposed: true }
    }

    fn multiply(
        out: &mut [f32],
        ((values, width), rows): (&Self::Left, Range<usize>),
        (right, columns): (&Self::Right<'_>, Range<usize>),
        k: Range<usize>,
        add: bool,
    ) {
        let left = Matrix::new(values, values.len() / (*width).max(1), *width);
        gemm::multiply_here(out, left.rows(rows), right.matrix().rows(k).cols(columns), add);
    }
}

impl Precision for u16 {
    type Left = Rows;
    type Right<'a> = Packed;

    fn left(values: &[f32], n: usize, k: usize) -> Self::Left {
        Rows::round(values, n, k)
    }

    fn right(values: &[f32], k: usize, n: usize) -> Self::Right<'_> {
        Packed::of(&Rows::round(values, k, n))
    }

    fn right_transposed<'a>(values: &'a [f32], scale: Option<&[f32]>, n: usize, k: usize) -> Self::Right<'a> {
        Packed::transposed(&Rows::round(&scaled(values, scale, k), n, k))
    }

    fn multiply(
        out: &mut [f32],
        left: (&Self::Left, Range<usize>),
        right: (&Self::Right<'_>, Range<usize>),
        k: Range<usize>,
        add: bool,
    ) {
        bf16::multiply_part(out, left, right, k, add);
    }
}
