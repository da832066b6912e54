//! The gradients of a batch of rows with respect to the residual stream, none kept that must be zero.

/// Gradients of the rows that have joined the sweep. Attention never looks ahead, so the gradient of a row at position
/// `p` vanishes after `p`: block `q` of the buffer holds position `q` of those rows alone that stand at `q` or later.
#[derive(Debug)]
pub(super) struct Live {
    d: usize,
    /// Rows of the batch with their positions, the latest position first.
    rows: Vec<(usize, usize)>,
    /// Where the block of each position begins, `[s + 1]`.
    starts: Vec<usize>,
    /// The position of every vector in the buffer.
    pub(super) positions: Vec<u32>,
    /// `[n, d]`
    pub(super) g: Vec<f32>,
}

impl Live {
    /// No rows yet, of a prompt of `s` positions.
    pub(super) fn new(s: usize, d: usize) -> Self {
        Self { d, rows: Vec::new(), starts: vec![0; s + 1], positions: Vec::new(), g: Vec::new() }
    }

    /// Vectors in the buffer.
    pub(super) fn len(&self) -> usize {
        self.positions.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The vectors of `position`.
    pub(super) fn block(&self, position: usize) -> std::ops::Range<usize> {
        self.starts[position]..self.starts[position + 1]
    }

    /// Where the block of each position begins, and one more.
    pub(super) fn starts(&self) -> &[usize] {
        &self.starts
    }

    /// The row of the batch, and its position, that comes `i`-th in every block that holds so many.
    pub(super) fn row(&self, i: usize) -> (usize, usize) {
        self.rows[i]
    }

    /// Positions of the prompt.
    pub(super) fn s(&self) -> usize {
        self.starts.len() - 1
    }

    /// Lets `new` rows, `(row of the batch, position)`, join with gradients of zero.
    pub(super) fn admit(&mut self, new: impl IntoIterator<Item = (usize, usize)>) {
        let old: Vec<_> = self.rows.iter().enumerate().map(|(i, &row)| (row, Some(i))).collect();
        let mut rows: Vec<_> = old.into_iter().chain(new.into_iter().map(|row| (row, None))).collect();
        if rows.len() == self.rows.len() {
            return;
        }
        rows.sort_by_key(|&((_, position), _)| std::cmp::Reverse(position));
        let (mut starts, mut positions) = (vec![0], Vec::new());
        for position in 0..self.s() {
            let here = rows.partition_point(|&((_, last), _)| last >= position);
            positions.resize(positions.len() + here, position as u32);
            starts.push(positions.len());
        }
        let d = self.d;
        let mut g = vec![0.0; positions.len() * d];
        for position in 0..self.s() {
            let block = &mut g[starts[position] * d..starts[position + 1] * d];
            for (to, (_, from)) in block.chunks_exact_mut(d.max(1)).zip(&rows) {
                if let Some(from) = from {
                    to.copy_from_slice(&self.g[(self.starts[position] + from) * d..][..d]);
                }
            }
        }
        self.rows = rows.into_iter().map(|(row, _)| row).collect();
        (self.starts, self.positions, self.g) = (starts, positions, g);
    }

    /// The gradient of row `row` of the batch at its own position.
    pub(super) fn own(&mut self, row: usize) -> Option<&mut [f32]> {
        let i = self.rows.iter().position(|&(r, _)| r == row)?;
        let at = self.starts[self.rows[i].1] + i;
        self.g.get_mut(at * self.d..(at + 1) * self.d)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_keep_their_gradients_when_others_join() {
        let mut live = Live::new(4, 1);
        live.admit([(0, 1), (1, 3)]);
        assert_eq!((live.starts(), live.len()), (&[0, 2, 4, 5, 6][..], 6));
        for (i, g) in live.g.iter_mut().enumerate() {
            *g = i as f32;
        }
        live.own(0).unwrap()[0] = 30.0;
        live.admit([(2, 2)]);
        assert_eq!((0..3).map(|i| live.row(i)).collect::<Vec<_>>(), [(1, 3), (2, 2), (0, 1)]);
        assert_eq!(live.g, [0.0, 0.0, 1.0, 2.0, 0.0, 30.0, 4.0, 0.0, 5.0]);
        assert_eq!(live.positions, [0, 0, 0, 1, 1, 1, 2, 2, 3]);
        assert_eq!((live.block(2), live.own(2).map(|g| g[0])), (6..8, Some(0.0)));
    }
}
