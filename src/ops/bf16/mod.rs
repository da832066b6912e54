//! Products of bf16 matrices with f32 sums, on AMX tiles, AVX-512 BF16 or any CPU.
//!
//! The right-hand side is packed once ([`Packed`]) into tiles of 32 × 16 that are read from front to back; the
//! left-hand side is rounded to bf16 rows ([`Rows`]). Work is cut into blocks of 32 × 32 outputs. Every output is
//! summed over `k` in one order, whatever the block or the number of threads. Kernels differ from each other in the
//! last bits of f32, and the AMX machine takes the AVX-512 kernel for products of few rows.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::gemm::{self, Matrix};
use super::lanes::{self, Activation};
use super::threads;

mod kernel;
mod pack;

pub use kernel::Kernel;
pub use pack::{Packed, Rows};

use kernel::{Operands, ahead, block, on_tiles, run};

/// Rows and columns of the block that a kernel computes at once, and the `k` of a tile.
const BLOCK: usize = 32;
/// Columns of a tile of the packed side.
const TILE: usize = 16;
/// Tiles of `k` that a panel of 32 columns has at most: 40 KiB, most of a first-level cache.
const K_BLOCK: usize = 20;
/// Rows that go by a panel before the next one: they and their results stay in the second-level cache.
const ROWS: usize = 8 * BLOCK;

/// 32 bf16 numbers as bits: one cache line.
#[repr(C, align(64))]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Line([u16; BLOCK]);

/// 32 of `k` for 16 columns; each line holds a pair of `k` for every column.
type Tile = [Line; TILE];

/// `out = lhs · rhs`, or `out += lhs · rhs` with `add`; `out` is row-major `[rows, n]`.
///
/// # Panics
/// When shapes do not fit together: a defect of the caller.
pub fn multiply(out: &mut [f32], lhs: &Rows, rhs: &Packed, add: bool) {
    multiply_with(Kernel::best(), out, lhs, rhs, add);
}

/// `lhs · rhs`, row-major `[rows, n]`.
///
/// # Panics
/// As [`multiply`].
pub fn product(lhs: &Rows, rhs: &Packed) -> Vec<f32> {
    let count = lhs.rows() * rhs.n();
    let mut out: Vec<f32> = Vec::with_capacity(count);
    fill(Kernel::best(), &mut out.spare_capacity_mut()[..count], lhs, rhs, false);
    #[expect(unsafe_code, reason = "zeroing what is overwritten at once takes longer than some products")]
    // SAFETY: `fill` without `add` writes every element of the slice it is given, which are the first `count`.
    unsafe {
        out.set_len(count);
    }
    out
}

/// [`multiply`] with a kernel that this machine must have.
///
/// # Panics
/// As [`multiply`], and where the machine lacks the kernel.
pub fn multiply_with(kernel: Kernel, out: &mut [f32], lhs: &Rows, rhs: &Packed, add: bool) {
    fill(kernel, as_unset(out), lhs, rhs, add);
}

/// The rows `rows` of `lhs`, which holds the inner indices `k` only, times columns `columns` of `rhs`, on the calling
/// thread: `out`, row-major `[rows, columns]`, is overwritten, or added to with `add`.
///
/// # Panics
/// When shapes do not fit together, or `columns` and `k` do not begin at multiples of 32: a defect of the caller.
pub fn multiply_part(
    out: &mut [f32],
    (lhs, rows): (&Rows, Range<usize>),
    (rhs, columns): (&Packed, Range<usize>),
    k: Range<usize>,
    add: bool,
) {
    let stride = columns.len();
    assert_eq!(out.len(), rows.len() * stride, "a [{}, {stride}] product", rows.len());
    assert_eq!(lhs.k(), k.len(), "the inner width of a product");
    panel(Kernel::best(), as_unset(out), stride, lhs, rhs, Part { rows, columns, k, cut: true }, add);
}

/// A view through which values are only written, or read where they were set before.
pub(super) fn as_unset(out: &mut [f32]) -> &mut [MaybeUninit<f32>] {
    #[expect(unsafe_code, reason = "a float is a float that may be unset")]
    // SAFETY: the types have one layout, and this module only ever writes whole floats through the view.
    unsafe {
        &mut *(std::ptr::from_mut(out) as *mut [MaybeUninit<f32>])
    }
}

/// [`multiply_with`] into memory that may be unset unless `add`; sets all of it.
fn fill(kernel: Kernel, out: &mut [MaybeUninit<f32>], lhs: &Rows, rhs: &Packed, add: bool) {
    let (rows, n) = (lhs.rows(), rhs.n());
    assert_eq!(out.len(), rows * n, "a [{rows}, {n}] product");
    assert_eq!(lhs.k(), rhs.k(), "the inner width of a product");
    if out.is_empty() {
        return;
    }
    let kernel = kernel.for_rows(rows);
    let all = Part { rows: 0..rows, columns: 0..n, k: 0..rhs.k(), cut: false };
    if rows >= 2 * BLOCK || threads::alone() {
        threads::split_mut(out, BLOCK * n, |first, out| {
            let rows = first * BLOCK..first * BLOCK + out.len() / n;
            panel(kernel, out, n, lhs, rhs, Part { rows, ..all.clone() }, add);
        });
        return;
    }
    // Few rows are split by columns: what takes time is reading the right-hand side.
    let parts = threads::map(threads::pieces_of(n, BLOCK, 2 * rhs.k()), |columns| {
        let width = columns.len();
        let mut part = vec![MaybeUninit::uninit(); rows * width];
        if add {
            for (part, out) in part.chunks_exact_mut(width).zip(out.chunks_exact(n)) {
                part.copy_from_slice(&out[columns.clone()]);
            }
        }
        panel(kernel, &mut part, width, lhs, rhs, Part { columns: columns.clone(), ..all.clone() }, add);
        (columns, part)
    });
    for (columns, part) in parts {
        for (part, out) in part.chunks_exact(columns.len()).zip(out.chunks_exact_mut(n)) {
            out[columns.clone()].copy_from_slice(part);
        }
    }
}

/// `act(lhs · gate) ⊙ (lhs · up)`, rounded to bf16; neither product is stored.
///
/// # Panics
/// When shapes do not fit together: a defect of the caller.
pub fn gated(lhs: &Rows, gate: &Packed, up: &Packed, activation: Activation) -> Rows {
    gated_with(Kernel::best(), lhs, gate, up, activation)
}

/// [`gated`] with a kernel that this machine must have.
///
/// # Panics
/// As [`gated`], and where the machine lacks the kernel.
pub fn gated_with(kernel: Kernel, lhs: &Rows, gate: &Packed, up: &Packed, activation: Activation) -> Rows {
    assert_eq!((gate.k(), gate.n()), (up.k(), up.n()), "the shapes of gate and up");
    assert_eq!(lhs.k(), gate.k(), "the inner width of a product");
    let (rows, n) = (lhs.rows(), gate.n());
    let few = rows < 2 * BLOCK && !threads::alone();
    if kernel == Kernel::Portable || few || gate.k() == 0 {
        return gated_columns(kernel.for_rows(rows), lhs, gate, up, activation);
    }
    let kernel = kernel.for_rows(rows);
    let mut post = Rows::unset(rows, n);
    let stride = post.stride();
    threads::split_mut(post.lines_mut(), BLOCK * stride, |first, post| {
        on_tiles(kernel, || {
            for (i, post) in post.chunks_mut(ROWS * stride).enumerate() {
                gated_rows(kernel, post, lhs, first * BLOCK + i * ROWS, [gate, up], activation);
            }
        });
    });
    post
}

/// [`gated`] split by columns.
fn gated_columns(kernel: Kernel, lhs: &Rows, gate: &Packed, up: &Packed, activation: Activation) -> Rows {
    let (rows, n) = (lhs.rows(), gate.n());
    let parts = threads::map(threads::pieces_of(n, BLOCK, 4 * gate.k()), |columns| {
        let side = |rhs: &Packed| {
            let mut out = vec![0.0; rows * columns.len()];
            let part = Part { rows: 0..rows, columns: columns.clone(), k: 0..rhs.k(), cut: false };
            panel(kernel, as_unset(&mut out), columns.len(), lhs, rhs, part, false);
            out
        };
        let mut pre = side(gate);
        lanes::gate(&mut pre, &side(up), activation);
        (columns, pre)
    });
    let mut post = Rows::unset(rows, n);
    for (columns, part) in parts {
        for (i, part) in part.chunks_exact(columns.len()).enumerate() {
            lanes::round(part, &mut post.row_mut(i)[columns.clone()]);
        }
    }
    post
}

/// [`gated`] for the rows from `first` on that `post` has lines for.
fn gated_rows(
    kernel: Kernel,
    post: &mut [Line],
    lhs: &Rows,
    first: usize,
    [gate, up]: [&Packed; 2],
    activation: Activation,
) {
    let stride = gate.n().div_ceil(BLOCK);
    for column in 0..gate.n_columns() {
        let b = [gate.column(column), up.column(column)];
        let after = (column + 1).min(gate.n_columns() - 1);
        let next = [gate.column(after), up.column(after)];
        for (i, post) in post.chunks_mut(BLOCK * stride).enumerate() {
            let row = first + i * BLOCK;
            let height = (lhs.rows() - row).min(BLOCK);
            let operands =
                Operands { a: lhs.from(row, 0), stride: lhs.stride(), rows: height, b, next: ahead(next, i) };
            let mut whole = [[0.0f32; BLOCK]; BLOCK];
            run(kernel, operands, as_unset(whole.as_flattened_mut()), BLOCK, false);
            let products = lanes::gate_block(&whole, activation);
            let half = column % 2 * TILE;
            for (line, product) in post[column / 2..].iter_mut().step_by(stride).zip(&products).take(height) {
                line.0[half..half + TILE].copy_from_slice(product);
            }
        }
    }
}

/// Which part of a product to compute. `columns` and `k` begin at multiples of 32.
#[derive(Debug, Clone)]
pub(super) struct Part {
    pub(super) rows: Range<usize>,
    pub(super) columns: Range<usize>,
    pub(super) k: Range<usize>,
    /// Whether the left side holds the inner indices `k` only, not all of them.
    pub(super) cut: bool,
}

/// Computes `part` of `lhs · rhs` on the calling thread; `out` holds that part only, its rows `stride` floats apart.
///
/// The part of `out` that it sets may be unset before, unless `add`.
pub(super) fn panel(
    kernel: Kernel,
    out: &mut [MaybeUninit<f32>],
    stride: usize,
    lhs: &Rows,
    rhs: &Packed,
    part: Part,
    add: bool,
) {
    let Part { rows, columns, k, cut } = part;
    let before = if cut { k.start } else { 0 };
    assert!(rows.end <= lhs.rows() && columns.end <= rhs.n(), "a part of the whole");
    assert!(k.end <= rhs.k() && k.end - before <= lhs.k(), "inner indices that both sides have");
    assert!(columns.start.is_multiple_of(BLOCK) && k.start.is_multiple_of(BLOCK), "whole tiles before the part");
    assert!(columns.len() <= stride, "rows of {} in a stride of {stride}", columns.len());
    if rows.is_empty() || columns.is_empty() {
        return;
    }
    if k.is_empty() {
        if !add {
            out.chunks_mut(stride).for_each(|row| row[..columns.len()].fill(MaybeUninit::new(0.0)));
        }
        return;
    }
    if kernel == Kernel::Portable {
        return portable(out, stride, lhs, rhs, Part { rows, columns, k, cut }, add);
    }
    let k = k.start / BLOCK..k.end.div_ceil(BLOCK);
    let k_block = k.len().div_ceil(k.len().div_ceil(K_BLOCK));
    on_tiles(kernel, || {
        for first in rows.clone().step_by(ROWS) {
            let rows_here = first..(first + ROWS).min(rows.end);
            for column in columns.clone().step_by(BLOCK) {
                let width = (columns.end - column).min(BLOCK);
                for first_k in k.clone().step_by(k_block) {
                    let b = rhs.pair(column / TILE, first_k..(first_k + k_block).min(k.end));
                    let next = if first_k + k_block < k.end {
                        rhs.pair(column / TILE, first_k + k_block..(first_k + 2 * k_block).min(k.end))
                    } else {
                        let after = if column + BLOCK < rhs.n() { column + BLOCK } else { column };
                        rhs.pair(after / TILE, k.start..(k.start + k_block).min(k.end))
                    };
                    for (i, row) in rows_here.clone().step_by(BLOCK).enumerate() {
                        let operands = Operands {
                            a: lhs.from(row, first_k - before / BLOCK),
                            stride: lhs.stride(),
                            rows: (rows_here.end - row).min(BLOCK),
                            b,
                            next: ahead(next, i),
                        };
                        let at = (row - rows.start) * stride + column - columns.start;
                        block(kernel, operands, &mut out[at..], stride, width, add || first_k > k.start);
                    }
                }
            }
        }
    });
}

/// [`panel`] in f32 by the `gemm` crate, 256 columns at a time.
fn portable(out: &mut [MaybeUninit<f32>], stride: usize, lhs: &Rows, rhs: &Packed, part: Part, add: bool) {
    const COLUMNS: usize = 8 * BLOCK;
    let Part { rows, columns, k, cut } = part;
    let before = if cut { k.start } else { 0 };
    let left = lhs.widen(rows.clone(), k.start - before..k.end - before);
    let left = Matrix::new(&left, rows.len(), k.len());
    for first in columns.clone().step_by(COLUMNS) {
        let width = (columns.end - first).min(COLUMNS);
        let right = rhs.widen(k.clone(), first..first + width);
        let mut product = vec![0.0; rows.len() * width];
        gemm::multiply_here(&mut product, left, Matrix::new(&right, k.len(), width), false);
        let at = first - columns.start;
        for (product, out) in product.chunks_exact(width).zip(out.chunks_mut(stride)) {
            let out = &mut out[at..at + width];
            for (out, &product) in out.iter_mut().zip(product) {
                #[expect(unsafe_code, reason = "adds to what the caller set")]
                // SAFETY: with `add` the output holds values before.
                let before = if add { unsafe { out.assume_init() } } else { 0.0 };
                out.write(before + product);
            }
        }
    }
}

#[cfg(test)]
mod tests;
