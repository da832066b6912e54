//! `f32` matrix products over slices, on the `gemm` crate that candle uses.
//!
//! The `gemm` crate may split one product differently for different thread counts. Here each call of it is
//! single-threaded and the split over threads is ours, by rows of the output in pieces of [`BLOCK_ROWS`].

use std::ops::Range;

use rayon::prelude::*;

use super::threads;
use super::vector::{dots, dots_of_bf16};

/// Output rows that one task computes: enough work to hide the packing of the right-hand side.
pub const BLOCK_ROWS: usize = 256;

/// A read-only view of `f32`s as a matrix `[rows, cols]` with strides; transposing costs nothing.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Matrix<'a> {
    /// `data` as row-major `[rows, cols]`.
    ///
    /// # Panics
    /// When the length is not `rows * cols`: a defect of the caller, which has checked its widths.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        assert_eq!(data.len(), rows * cols, "a [{rows}, {cols}] matrix");
        Self { data, rows, cols, row_stride: cols, col_stride: 1 }
    }

    /// `[rows, cols]` out of `data`, whose rows begin `stride` apart.
    ///
    /// # Panics
    /// When the last row ends outside `data`: a defect of the caller.
    pub fn strided(data: &'a [f32], rows: usize, cols: usize, stride: usize) -> Self {
        let view = Self { data, rows, cols, row_stride: stride, col_stride: 1 };
        assert!(view.extent() <= data.len(), "a [{rows}, {cols}] matrix with rows {stride} apart in {}", data.len());
        view
    }

    /// The transpose, `[cols, rows]`.
    #[must_use]
    pub fn t(self) -> Self {
        Self { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }

    /// Rows `range` only.
    #[must_use]
    pub fn rows(self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.rows, "rows {range:?} of {}", self.rows);
        let start = (range.start * self.row_stride).min(self.data.len());
        Self { data: &self.data[start..], rows: range.len(), ..self }
    }

    /// Columns `range` only.
    #[must_use]
    pub fn cols(self, range: Range<usize>) -> Self {
        self.t().rows(range).t()
    }

    /// `[rows, cols]`.
    pub fn shape(self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    /// The element at row `i`, column `j`.
    pub fn at(self, i: usize, j: usize) -> f32 {
        assert!(i < self.rows && j < self.cols, "[{i}, {j}] of {:?}", self.shape());
        self.data[i * self.row_stride + j * self.col_stride]
    }

    /// The slots of `data` that the view reaches.
    fn extent(self) -> usize {
        if self.rows == 0 || self.cols == 0 {
            return 0;
        }
        (self.rows - 1) * self.row_stride + (self.cols - 1) * self.col_stride + 1
    }
}

/// `out = lhs · rhs`, or `out += lhs · rhs` with `add`; `out` is row-major. Runs on the calling thread.
///
/// # Panics
/// When shapes do not fit together: a defect of the caller.
pub fn multiply_here(out: &mut [f32], lhs: Matrix, rhs: Matrix, add: bool) {
    let [m, k] = lhs.shape();
    let n = rhs.cols;
    assert_eq!(k, rhs.rows, "{:?} times {:?}", lhs.shape(), rhs.shape());
    assert_eq!(out.len(), m * n, "the product is [{m}, {n}]");
    assert!(lhs.extent() <= lhs.data.len() && rhs.extent() <= rhs.data.len(), "views inside their slices");
    if out.is_empty() {
        return;
    }
    if k == 0 {
        if !add {
            out.fill(0.0);
        }
        return;
    }
    #[expect(unsafe_code, reason = "the gemm crate takes pointers and strides")]
    // SAFETY: the assertions above hold every address of the three matrices inside its slice: `extent` is one past
    // the largest offset that rows and columns reach, strides are non-negative, and `out` is dense [m, n]. `out` is
    // borrowed mutably, so it overlaps neither input.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            n as isize,
            add,
            lhs.data.as_ptr(),
            lhs.col_stride as isize,
            lhs.row_stride as isize,
            rhs.data.as_ptr(),
            rhs.col_stride as isize,
            rhs.row_stride as isize,
            1.0f32,
            1.0f32,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// `lhs · rhs`, row-major, over all threads.
pub fn multiply(lhs: Matrix, rhs: Matrix) -> Vec<f32> {
    let [m, _] = lhs.shape();
    let n = rhs.cols;
    let mut out = vec![0.0; m * n];
    if !out.is_empty() {
        out.par_chunks_mut(BLOCK_ROWS * n).enumerate().for_each(|(block, out)| {
            let first = block * BLOCK_ROWS;
            multiply_here(out, lhs.rows(first..first + out.len() / n), rhs, false);
        });
    }
    out
}

/// `values`, `[rows, cols]`, as `[cols, rows]`.
pub fn transposed(values: &[f32], cols: usize) -> Vec<f32> {
    const BLOCK: usize = 32;
    let rows = values.len() / cols.max(1);
    let mut out = vec![0.0; values.len()];
    for first_row in (0..rows).step_by(BLOCK) {
        for first_col in (0..cols).step_by(BLOCK) {
            for row in first_row..rows.min(first_row + BLOCK) {
                for col in first_col..cols.min(first_col + BLOCK) {
                    out[col * rows + row] = values[row * cols + col];
                }
            }
        }
    }
    out
}

/// Rows up to which [`few_rows`] beats [`multiply`]: such products only read the right-hand side.
pub const FEW_ROWS: usize = 4;

/// `lhs · rhsᵀ` for `rows` rows of `lhs` `[rows, k]` and `rhs` `[n, k]`, both row-major, over all threads.
///
/// # Panics
/// When lengths do not fit together: a defect of the caller.
pub fn few_rows(lhs: &[f32], rhs: &[f32], rows: usize, k: usize) -> Vec<f32> {
    few(lhs, rhs, rows, k, dots)
}

/// As [`few_rows`] with the bits of a bf16 `rhs`: what its values in f32 would give, to the last bit.
///
/// # Panics
/// As [`few_rows`].
pub fn few_rows_of_bf16(lhs: &[f32], rhs: &[u16], rows: usize, k: usize) -> Vec<f32> {
    few(lhs, rhs, rows, k, dots_of_bf16)
}

fn few<T: Sync>(lhs: &[f32], rhs: &[T], rows: usize, k: usize, dots: fn(&[T], &[f32], &mut [f32])) -> Vec<f32> {
    assert_eq!(lhs.len(), rows * k, "a [{rows}, {k}] matrix");
    if k == 0 {
        return Vec::new();
    }
    assert!(rhs.len().is_multiple_of(k), "rows of {k} in {}", rhs.len());
    let n = rhs.len() / k;
    let parts = threads::map(threads::pieces_of(n, 4, k * size_of::<T>()), |columns| {
        let mut part = vec![0.0; rows * columns.len()];
        for (out, left) in part.chunks_exact_mut(columns.len()).zip(lhs.chunks_exact(k)) {
            dots(&rhs[columns.start * k..columns.end * k], left, out);
        }
        part
    });
    let row = |i| parts.iter().flat_map(move |part| &part[i * part.len() / rows..(i + 1) * part.len() / rows]).copied();
    (0..rows).flat_map(row).collect()
}

/// What [`multiply`] must equal.
#[cfg(test)]
pub(crate) fn multiply_naive(lhs: Matrix, rhs: Matrix) -> Vec<f32> {
    let ([m, k], [_, n]) = (lhs.shape(), rhs.shape());
    let cell = |i, j| (0..k).map(|p| f64::from(lhs.at(i, p)) * f64::from(rhs.at(p, j))).sum::<f64>() as f32;
    (0..m).flat_map(|i| (0..n).map(move |j| cell(i, j))).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;
    use rand::Rng;

    use super::*;
    use crate::base::rng;

    pub(crate) fn numbers(n: usize, name: &str) -> Vec<f32> {
        let mut random = rng::stream(1, name);
        (0..n).map(|_| random.random_range(-1.0..1.0)).collect()
    }

    pub(crate) fn with_threads<T: Send>(n: usize, f: impl FnOnce() -> T + Send) -> T {
        rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap().install(f)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn the_product_equals_the_naive_one(m in 0usize..70, k in 0usize..70, n in 0usize..70, flip in 0u8..4) {
            let (a, b) = (numbers(m * k, "a"), numbers(k * n, "b"));
            let lhs = if flip & 1 == 0 { Matrix::new(&a, m, k) } else { Matrix::new(&a, k, m).t() };
            let rhs = if flip & 2 == 0 { Matrix::new(&b, k, n) } else { Matrix::new(&b, n, k).t() };
            let fast = multiply(lhs, rhs);
            let naive = multiply_naive(lhs, rhs);
            for (fast, naive) in fast.iter().zip(&naive) {
                prop_assert!((fast - naive).abs() < 1e-5, "{fast} {naive}");
            }
        }
    }

    #[test]
    fn few_rows_multiply_as_many_do() {
        for (rows, k, n) in [(1, 37, 70), (3, 64, 5), (4, 1, 1)] {
            let (a, b) = (numbers(rows * k, "a"), numbers(n * k, "b"));
            let naive = multiply_naive(Matrix::new(&a, rows, k), Matrix::new(&b, n, k).t());
            let fast = few_rows(&a, &b, rows, k);
            assert_eq!(fast.len(), naive.len());
            assert!(fast.iter().zip(&naive).all(|(f, n)| (f - n).abs() < 1e-5));
            let bits: Vec<u16> = b.iter().map(|x| half::bf16::from_f32(*x).to_bits()).collect();
            let rounded = crate::ops::lanes::widened(&bits);
            assert_eq!(few_rows_of_bf16(&a, &bits, rows, k), few_rows(&a, &rounded, rows, k));
        }
    }

    #[test]
    fn parts_of_a_matrix_multiply_and_add_as_the_whole() {
        let (a, b) = (numbers(7 * 11, "a"), numbers(11 * 5, "b"));
        let (lhs, rhs) = (Matrix::new(&a, 7, 11), Matrix::new(&b, 11, 5));
        let mut out = vec![0.0; 3 * 2];
        multiply_here(&mut out, lhs.rows(2..5).cols(0..4), rhs.rows(0..4).cols(3..5), false);
        multiply_here(&mut out, lhs.rows(2..5).cols(4..11), rhs.rows(4..11).cols(3..5), true);
        let whole = multiply_naive(lhs, rhs);
        for i in 0..3 {
            for j in 0..2 {
                assert!((out[i * 2 + j] - whole[(i + 2) * 5 + j + 3]).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn the_bits_do_not_depend_on_the_threads() {
        let (a, b) = (numbers(600 * 65, "a"), numbers(65 * 129, "b"));
        let product = || multiply(Matrix::new(&a, 600, 65), Matrix::new(&b, 65, 129));
        let one = with_threads(1, product);
        assert_eq!(one, with_threads(2, product));
        assert_eq!(one, with_threads(3, product));
        assert!(one.iter().any(|x| *x != 0.0));
    }
}
