//! The one interface between activations and whoever learns from them: rows in a resumable shuffled order.

use crate::base::Result;

/// Activation rows for training, in an order that a position can resume exactly. A source serves one hook or several,
/// which then have their rows of the same tokens at the same positions.
pub trait RowSource: Send {
    /// Values in a row of each hook.
    fn widths(&self) -> &[usize];

    /// Rows in one pass over the data.
    fn rows(&self) -> u64;

    /// Rows from the beginning that can be read a second time at little cost, for estimates before training.
    fn cheap_rows(&self) -> u64 {
        self.rows()
    }

    /// Overwrites `out`, one buffer a hook, with the next `n` rows, row-major `[n, width]`, starting another pass in
    /// another order when one ends.
    ///
    /// # Errors
    /// When the data cannot be read or holds NaN or infinity.
    fn next_batch(&mut self, n: usize, out: &mut [Vec<f32>]) -> Result<()>;

    /// Rows served since the beginning, over all passes.
    fn position(&self) -> u64;

    /// Continues as if `position` rows had been served.
    ///
    /// # Errors
    /// When the source cannot go there.
    fn seek(&mut self, position: u64) -> Result<()>;
}
