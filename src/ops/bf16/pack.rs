//! The two sides of a bf16 product, laid out as the kernels read them.

use std::cell::RefCell;
use std::ops::Range;

use half::bf16;

use super::{BLOCK, Line, TILE, Tile};
use crate::ops::{lanes, threads};

const ZERO: Line = Line([0; BLOCK]);

/// The left-hand side: rows of bf16, padded with zeros to whole lines and whole blocks of 32 rows.
#[derive(Debug, Clone)]
pub struct Rows {
    lines: Vec<Line>,
    height: usize,
    k: usize,
}

thread_local! {
    /// Buffers of rows that are gone: a layer makes the same few again, and fresh memory costs more than the rounding.
    static SPARE: RefCell<Vec<Vec<Line>>> = const { RefCell::new(Vec::new()) };
}

/// Buffers kept a thread.
const SPARES: usize = 4;

impl Drop for Rows {
    fn drop(&mut self) {
        let lines = std::mem::take(&mut self.lines);
        // A thread that ends has no spares any more.
        let _ = SPARE.try_with(|spare| {
            let mut spare = spare.borrow_mut();
            if spare.len() < SPARES {
                spare.push(lines);
            }
        });
    }
}

impl Rows {
    /// `[rows, k]` whose values are whatever a buffer held before, with padding of zeros: whoever makes rows writes
    /// all that its reader will read.
    pub(in crate::ops) fn unset(rows: usize, k: usize) -> Self {
        let stride = k.div_ceil(BLOCK);
        let mut lines = SPARE.with(|spare| spare.borrow_mut().pop()).unwrap_or_default();
        lines.resize(rows.next_multiple_of(BLOCK) * stride, ZERO);
        lines[rows * stride..].fill(ZERO);
        if !k.is_multiple_of(BLOCK) {
            lines.iter_mut().skip(stride - 1).step_by(stride).for_each(|line| line.0[k % BLOCK..].fill(0));
        }
        Self { lines, height: rows, k }
    }

    /// Rounds row-major `[rows, k]` to the nearest bf16, ties to even.
    ///
    /// # Panics
    /// When the length is not `rows * k`: a defect of the caller.
    pub fn round(values: &[f32], rows: usize, k: usize) -> Self {
        assert_eq!(values.len(), rows * k, "a [{rows}, {k}] matrix");
        Self::round_strided(values, rows, k, k)
    }

    /// As [`Rows::round`] of the first `k` values of rows that begin `stride` apart.
    ///
    /// # Panics
    /// When the last row ends outside `values`: a defect of the caller.
    pub fn round_strided(values: &[f32], rows: usize, k: usize, stride: usize) -> Self {
        let mut out = Self::unset(rows, k);
        if k > 0 {
            let lines = out.stride();
            threads::split_mut(&mut out.lines[..rows * lines], lines, |first, piece| {
                for (row, line) in piece.chunks_exact_mut(lines).enumerate() {
                    let start = (first + row) * stride;
                    lanes::round(&values[start..start + k], &mut flat_mut(line)[..k]);
                }
            });
        }
        out
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.height
    }

    /// Width of a row.
    pub fn k(&self) -> usize {
        self.k
    }

    /// The bits of row `i`, padding left out.
    pub fn row(&self, i: usize) -> &[u16] {
        let stride = self.stride();
        &flat(&self.lines[i * stride..(i + 1) * stride])[..self.k]
    }

    /// The bits of row `i`, padding left out.
    pub fn row_mut(&mut self, i: usize) -> &mut [u16] {
        let stride = self.stride();
        &mut flat_mut(&mut self.lines[i * stride..(i + 1) * stride])[..self.k]
    }

    /// Lines of a row.
    pub(super) fn stride(&self) -> usize {
        self.k.div_ceil(BLOCK)
    }

    /// Line `line` of row `row` and all after it, as far as the padding reaches.
    pub(super) fn from(&self, row: usize, line: usize) -> &[Line] {
        &self.lines[row * self.stride() + line..]
    }

    pub(super) fn lines_mut(&mut self) -> &mut [Line] {
        &mut self.lines
    }

    /// `rows` × `k` as f32.
    pub(super) fn widen(&self, rows: Range<usize>, k: Range<usize>) -> Vec<f32> {
        rows.flat_map(|row| self.row(row)[k.clone()].iter().map(|&bits| bf16::from_bits(bits).to_f32())).collect()
    }
}

/// The right-hand side `[k, n]`: for every 16 columns, tiles of 32 × 16 along `k`, padded with zeros.
#[derive(Debug, Clone)]
pub struct Packed {
    tiles: Vec<Tile>,
    k: usize,
    n: usize,
}

impl Packed {
    /// Packs the transpose of `rows`, which is `[n, k]` row-major, as `torch.nn.Linear` stores weights.
    ///
    /// # Panics
    /// When the length is not `n * k`: a defect of the caller.
    pub fn from_out_in(rows: &[u16], n: usize, k: usize) -> Self {
        assert_eq!(rows.len(), n * k, "a [{n}, {k}] matrix");
        Self::pack(k, n, |column, tiles| {
            for (j, row) in rows[column * k..].chunks(k).enumerate().take(TILE.min(n - column)) {
                place_column(tiles, row, j);
            }
        })
    }

    /// Packs `rows`, which is `[k, n]` row-major.
    ///
    /// # Panics
    /// When the length is not `k * n`: a defect of the caller.
    pub fn from_in_out(rows: &[u16], k: usize, n: usize) -> Self {
        assert_eq!(rows.len(), n * k, "a [{k}, {n}] matrix");
        Self::pack(k, n, |column, tiles| {
            let width = TILE.min(n - column);
            place_rows(tiles, k, |i| &rows[i * n + column..i * n + column + width]);
        })
    }

    /// Packs the transpose of `rows`, so that a product with it is one with their dot products.
    pub fn transposed(rows: &Rows) -> Self {
        let n = rows.rows();
        Self::pack(rows.k(), n, |column, tiles| {
            for j in 0..TILE.min(n - column) {
                place_column(tiles, rows.row(column + j), j);
            }
        })
    }

    /// Packs `rows` as they are.
    pub fn of(rows: &Rows) -> Self {
        let n = rows.k();
        Self::pack(rows.rows(), n, |column, tiles| {
            let width = TILE.min(n - column);
            place_rows(tiles, rows.rows(), |i| &rows.row(i)[column..column + width]);
        })
    }

    /// Packs 16 columns at a time by `fill(first column, its tiles)`.
    fn pack(k: usize, n: usize, fill: impl Fn(usize, &mut [Tile]) + Sync) -> Self {
        let k_tiles = k.div_ceil(BLOCK);
        let mut tiles = vec![[ZERO; TILE]; k_tiles * n.div_ceil(TILE)];
        if k_tiles > 0 {
            threads::split_mut(&mut tiles, k_tiles, |first, piece| {
                for (i, tiles) in piece.chunks_exact_mut(k_tiles).enumerate() {
                    fill((first + i) * TILE, tiles);
                }
            });
        }
        Self { tiles, k, n }
    }

    /// Rows of the matrix.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Columns of the matrix.
    pub fn n(&self) -> usize {
        self.n
    }

    /// The tiles of columns `16 index..`.
    pub(super) fn column(&self, index: usize) -> &[Tile] {
        let k_tiles = self.k.div_ceil(BLOCK);
        &self.tiles[index * k_tiles..(index + 1) * k_tiles]
    }

    /// Number of columns of tiles.
    pub(super) fn n_columns(&self) -> usize {
        self.n.div_ceil(TILE)
    }

    /// Tiles `k` of columns `index` and `index + 1`; the last column twice where there is no next one, whose product
    /// is cut off with the block's edge.
    pub(super) fn pair(&self, index: usize, k: Range<usize>) -> [&[Tile]; 2] {
        let right = (index + 1).min(self.n_columns() - 1);
        [&self.column(index)[k.clone()], &self.column(right)[k]]
    }

    /// The bits at row `i`, column `j`.
    pub fn at(&self, i: usize, j: usize) -> u16 {
        assert!(i < self.k && j < self.n, "[{i}, {j}] of [{}, {}]", self.k, self.n);
        self.column(j / TILE)[i / BLOCK][i % BLOCK / 2].0[j % TILE * 2 + i % 2]
    }

    /// The bits of the whole matrix, `[k, n]` row-major.
    pub fn unpack(&self) -> Vec<u16> {
        (0..self.k).flat_map(|i| (0..self.n).map(move |j| self.at(i, j))).collect()
    }

    /// `k` × `columns` as f32, row-major.
    pub(super) fn widen(&self, k: Range<usize>, columns: Range<usize>) -> Vec<f32> {
        k.flat_map(|i| columns.clone().map(move |j| bf16::from_bits(self.at(i, j)).to_f32())).collect()
    }
}

/// Puts `values`, one a `k`, into column `j` of the tiles.
fn place_column(tiles: &mut [Tile], values: &[u16], j: usize) {
    for (tile, values) in tiles.iter_mut().zip(values.chunks(BLOCK)) {
        let (pairs, last) = values.as_chunks::<2>();
        for (line, pair) in tile.iter_mut().zip(pairs) {
            line.0[2 * j] = pair[0];
            line.0[2 * j + 1] = pair[1];
        }
        if let [last] = last {
            tile[pairs.len()].0[2 * j] = *last;
        }
    }
}

/// Puts `row(i)`, one value a column, into the tiles for every `i` below `k`: two rows make the pairs of a line.
fn place_rows<'a>(tiles: &mut [Tile], k: usize, row: impl Fn(usize) -> &'a [u16]) {
    for (i, line) in (0..k).step_by(2).zip(tiles.as_flattened_mut()) {
        if i + 1 < k {
            lanes::interleave(row(i), row(i + 1), &mut line.0);
        } else {
            lanes::interleave(row(i), &[0; TILE], &mut line.0);
        }
    }
}

fn flat(lines: &[Line]) -> &[u16] {
    #[expect(unsafe_code, reason = "lines are arrays without padding")]
    // SAFETY: `Line` is `repr(C)` with one field of 64 bytes, its alignment, so a slice of lines is a slice of 32
    // times as many numbers.
    unsafe {
        std::slice::from_raw_parts(lines.as_ptr().cast(), lines.len() * BLOCK)
    }
}

fn flat_mut(lines: &mut [Line]) -> &mut [u16] {
    #[expect(unsafe_code, reason = "lines are arrays without padding")]
    // SAFETY: as in `flat`; the borrow is exclusive.
    unsafe {
        std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * BLOCK)
    }
}
