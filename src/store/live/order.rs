//! The order in which streamed rows are served: a pure function of the seed, the number of rows in every chunk, and
//! the position.
//!
//! ```text
//! chunk          0    1    2    3    4        a chunk: consecutive sequences
//!                │╲╲  │╲╲  │╲╲  │╲╲  │        its rows are dealt at random into `SPREAD` equal parts;
//! window         └──────── 2 ───┴ 3 ─┴ 4      part j of chunk c goes to window c + j
//! ```
//!
//! so a window mixes rows of `SPREAD` chunks, and is served in a random order of its own. Windows before the
//! `SPREAD`-th chunk are joined into one, as are those after the last chunk, so that every pass holds each row once
//! and begins and ends as mixed as its middle. At most `SPREAD` chunks are needed at a time: text that is no longer
//! is shuffled as a whole.

use std::ops::Range;

use crate::base::rng::Permutation;

/// Windows over which the rows of a chunk are spread.
pub(super) const SPREAD: usize = 8;

/// The order of all passes over chunks of known sizes.
#[derive(Debug, Clone)]
pub(super) struct Order {
    seed: u64,
    /// Rows of each chunk. At least one is not zero.
    chunks: Vec<u64>,
    /// Rows of a pass.
    rows: u64,
}

/// Rows that are shuffled together, and served in turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Window {
    /// Which pass over the text.
    pub(super) pass: u64,
    /// The last chunk it needs, which is also its number.
    pub(super) last_chunk: usize,
    /// The stream's position of its first row.
    pub(super) start: u64,
    /// Rows in it.
    pub(super) rows: u64,
}

impl Order {
    /// The order of chunks with these numbers of rows.
    pub(super) fn new(seed: u64, chunks: Vec<u64>) -> Self {
        let rows = chunks.iter().sum();
        Self { seed, chunks, rows }
    }

    /// Chunks of a pass.
    pub(super) fn chunks(&self) -> usize {
        self.chunks.len()
    }

    /// Rows of a pass.
    pub(super) fn rows(&self) -> u64 {
        self.rows
    }

    /// Whether one window holds a whole pass.
    pub(super) fn whole_pass_in_a_window(&self) -> bool {
        self.chunks.len() <= SPREAD
    }

    /// The number of the first window of a pass.
    fn first_window(&self) -> usize {
        SPREAD.min(self.chunks.len()) - 1
    }

    /// The window that part `part` of chunk `chunk` goes to.
    pub(super) fn window_of(&self, chunk: usize, part: usize) -> usize {
        (chunk + part).clamp(self.first_window(), self.chunks.len() - 1)
    }

    /// Rows of part `part` of chunk `chunk`.
    fn part(&self, chunk: usize, part: usize) -> u64 {
        let range = part_range(self.chunks[chunk], part);
        range.end - range.start
    }

    /// Rows of a window.
    fn window_rows(&self, window: usize) -> u64 {
        let from = (window + 1).saturating_sub(SPREAD);
        let parts = (from..=window).flat_map(|chunk| (0..SPREAD).map(move |part| (chunk, part)));
        parts.filter(|&(c, p)| self.window_of(c, p) == window).map(|(c, p)| self.part(c, p)).sum()
    }

    /// The window that serves `position`.
    pub(super) fn window_at(&self, position: u64) -> Window {
        let (pass, place) = (position / self.rows, position % self.rows);
        let mut start = pass * self.rows;
        let mut last_chunk = self.first_window();
        loop {
            let rows = self.window_rows(last_chunk);
            if place < start - pass * self.rows + rows || last_chunk + 1 == self.chunks.len() {
                return Window { pass, last_chunk, start, rows };
            }
            start += rows;
            last_chunk += 1;
        }
    }

    /// The first chunk of which `window` holds rows.
    pub(super) fn first_chunk(window: &Window) -> usize {
        (window.last_chunk + 1).saturating_sub(SPREAD)
    }

    /// The order of the rows of `window`, which are numbered chunk after chunk and part after part.
    pub(super) fn within(&self, window: &Window) -> Permutation {
        let Window { pass, last_chunk, rows, .. } = window;
        Permutation::new(*rows, self.seed, &format!("streamed rows, pass {pass}, window {last_chunk}"))
    }

    /// Deals the rows of a chunk: where row number `i` goes is in [`Deal::place`].
    pub(super) fn deal(&self, pass: u64, chunk: usize) -> Deal {
        let rows = self.chunks[chunk];
        // Where one window holds everything, its rows are those of every pass.
        let pass = if self.whole_pass_in_a_window() { 0 } else { pass };
        let permutation = Permutation::new(rows, self.seed, &format!("streamed rows, pass {pass}, chunk {chunk}"));
        Deal { permutation, rows }
    }
}

/// Where the rows of a chunk go.
pub(super) struct Deal {
    permutation: Permutation,
    rows: u64,
}

impl Deal {
    /// Part, and place in it, of row `i` of the chunk.
    pub(super) fn place(&self, i: u64) -> (usize, usize) {
        let place = self.permutation.at(i);
        // The quotient is the part, or a little less where bounds are rounded down.
        let mut part = (place * SPREAD as u64 / self.rows) as usize;
        while place >= part_range(self.rows, part).end {
            part += 1;
        }
        (part, (place - part_range(self.rows, part).start) as usize)
    }

    /// Rows of the chunk.
    pub(super) fn rows(&self) -> u64 {
        self.rows
    }

    /// Rows of each part.
    pub(super) fn parts(&self) -> [usize; SPREAD] {
        std::array::from_fn(|part| {
            let range = part_range(self.rows, part);
            (range.end - range.start) as usize
        })
    }
}

/// The places of part `part` among the `rows` of a chunk.
fn part_range(rows: u64, part: usize) -> Range<u64> {
    let at = |part: usize| rows * part as u64 / SPREAD as u64;
    at(part)..at(part + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Chunk and row of everything that is served in `range`.
    fn served(order: &Order, range: Range<u64>) -> Vec<(u64, usize, u64)> {
        let mut all = Vec::new();
        for position in range {
            let window = order.window_at(position);
            let mut members = Vec::new();
            for chunk in Order::first_chunk(&window)..=window.last_chunk {
                let deal = order.deal(window.pass, chunk);
                for part in (0..SPREAD).filter(|&part| order.window_of(chunk, part) == window.last_chunk) {
                    let mut rows: Vec<(usize, u64)> = (0..order.chunks[chunk])
                        .filter_map(|row| Some(deal.place(row)).filter(|p| p.0 == part).map(|p| (p.1, row)))
                        .collect();
                    rows.sort_unstable();
                    assert_eq!(rows.len(), deal.parts()[part]);
                    members.extend(rows.into_iter().map(|(_, row)| (window.pass, chunk, row)));
                }
            }
            assert_eq!(members.len() as u64, window.rows);
            all.push(members[order.within(&window).at(position - window.start) as usize]);
        }
        all
    }

    #[test]
    fn every_pass_serves_each_row_once() {
        for chunks in [vec![5], vec![3, 0, 4], vec![20; 8], vec![16; 9], vec![17, 30, 2, 0, 9, 40, 11, 12, 13, 14, 15]]
        {
            let order = Order::new(3, chunks.clone());
            let rows = order.rows();
            let passes: Vec<_> = (0..2).map(|pass| served(&order, pass * rows..(pass + 1) * rows)).collect();
            for (pass, found) in (0..).zip(&passes) {
                let mut sorted = found.clone();
                sorted.sort_unstable();
                let all = chunks.iter().enumerate().flat_map(|(c, &n)| (0..n).map(move |row| (pass, c, row)));
                assert_eq!(sorted, all.collect::<Vec<_>>(), "{chunks:?}");
            }
            let rows_of = |pass: &[(u64, usize, u64)]| pass.iter().map(|r| (r.1, r.2)).collect::<Vec<_>>();
            assert!(rows < 6 || rows_of(&passes[0]) != rows_of(&passes[1]), "another order every pass");
        }
    }

    #[test]
    fn windows_mix_chunks_and_never_need_more_than_the_spread() {
        let order = Order::new(1, vec![800; 30]);
        let mut position = 0;
        let mut windows = 0;
        while position < order.rows() {
            let window = order.window_at(position);
            assert!(window.rows <= 800 * SPREAD as u64 && window.rows >= 800, "{window:?}");
            assert!(window.last_chunk + 1 - Order::first_chunk(&window) == SPREAD);
            position = window.start + window.rows;
            windows += 1;
        }
        assert_eq!((position, windows), (order.rows(), 30 - SPREAD + 1));
        let middle = order.window_at(order.rows() / 2);
        assert_eq!(middle.rows, 800);
    }
}
