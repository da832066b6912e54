//! The skip connection of transcoders: `ŷ = z W_dec + b_dec + x W_skipᵀ` (Paulo et al. 2025, "Transcoders Beat Sparse
//! Autoencoders for Interpretability"). What it gives is taken from the target first, so that the features see an
//! ordinary reconstruction; `∂L/∂W_skip = Gᵀ x` with `G` the gradient by the reconstruction. Two products of `d²` a row,
//! beside `f d` of the encoder.

use std::borrow::Cow;

use rayon::prelude::*;

use super::super::operand::Precision;
use super::super::parameters::{Parameters, Shape};
use super::Batch;
use crate::ops::{Element, squared_norm};

/// Rows of a product that one task computes.
const ROWS: usize = 64;

/// `target − x W_skipᵀ`, with `left` the rows `x`.
pub(super) fn without<'a, E: Precision>(weights: &Parameters, left: &E::Left, target: &'a [f32]) -> Cow<'a, [f32]> {
    let Shape { d_in, d_out, skip, .. } = weights.shape;
    if !skip {
        return target.into();
    }
    let right = E::right_transposed(&weights.w_skip, None, d_out, d_in);
    let mut rest = vec![0.0; target.len()];
    rest.par_chunks_mut(ROWS * d_out).zip(target.par_chunks(ROWS * d_out)).enumerate().for_each(
        |(task, (rest, target))| {
            let rows = task * ROWS..task * ROWS + rest.len() / d_out;
            E::multiply(rest, (left, rows), (&right, 0..d_out), 0..d_in, false);
            rest.iter_mut().zip(target).for_each(|(rest, y)| *rest = y - *rest);
        },
    );
    rest.into()
}

/// Fills the gradient of `W_skip`, where there is one, from `plane`, the gradient by the reconstruction `[n, d_out]`;
/// gives its squared length.
pub(super) fn gradient<E: Precision, P: Element>(batch: &Batch<'_, E>, plane: &[P], gradients: &mut Parameters) -> f64 {
    let Shape { d_in, d_out, skip, .. } = batch.weights.shape;
    if !skip {
        return 0.0;
    }
    let n = batch.n;
    let x: Vec<f32> = batch.centered.par_iter().map(|x| x.widen()).collect();
    let right = E::right(&x, n, d_in);
    let tasks = gradients.w_skip.par_chunks_mut(ROWS * d_in).enumerate();
    let squares: Vec<f64> = tasks
        .map(|(task, out)| {
            let (first, rows) = (task * ROWS, out.len() / d_in);
            let mut columns = vec![0.0; rows * n];
            for (row, values) in plane.chunks_exact(d_out).enumerate() {
                for (i, value) in values[first..first + rows].iter().enumerate() {
                    columns[i * n + row] = value.widen();
                }
            }
            let left = E::left(&columns, rows, n);
            E::multiply(out, (&left, 0..rows), (&right, 0..d_in), 0..n, false);
            f64::from(squared_norm(out))
        })
        .collect();
    squares.iter().sum()
}
