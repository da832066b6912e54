//! Held-out rows of a live model, in the order of the text. Those that were asked for once stay in memory, since the
//! same ones are measured again and again.

use std::sync::Arc;

use super::Shared;
use super::chunk::Kept;
use super::text::interrupted;
use crate::base::{Error, Progress, Result};
use crate::data::Sequence;
use crate::store::source::RowSource;
use crate::store::values::Values;

/// Tokens of held-out text that are served at most.
const TOKENS: usize = 1 << 20;

/// Kept rows of the held-out sequences, every pass the same.
pub struct LiveHeldOut<'a> {
    shared: Arc<Shared>,
    progress: &'a dyn Progress,
    /// The sequences, once they were read.
    sequences: Option<Vec<Sequence>>,
    /// How many of them the model has seen.
    computed: usize,
    /// One tensor a hook, `[stored, width]`.
    values: Vec<Values>,
    stored: u64,
    position: u64,
}

impl<'a> LiveHeldOut<'a> {
    pub(super) fn new(shared: Arc<Shared>, progress: &'a dyn Progress) -> Self {
        let values = shared.hooks.widths.iter().map(|_| Values::new(shared.hooks.dtype)).collect();
        Self { shared, progress, sequences: None, computed: 0, values, stored: 0, position: 0 }
    }

    /// How many of the held-out sequences are served.
    fn served(&self) -> usize {
        self.shared.held_out_kept.len().min((TOKENS / self.shared.text.pack.context_size).max(1))
    }

    /// Computes until `rows` rows are stored or no sequence is left.
    fn fill(&mut self, rows: u64) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let first = shared.split.held_out().start;
        let sequences = if let Some(sequences) = self.sequences.take() {
            sequences
        } else {
            let mut packer = shared.text.packer()?;
            packer.skip_sequences(first)?;
            packer.take(self.served()).collect::<Result<_>>()?
        };
        let mut left = sequences[self.computed.min(sequences.len())..].chunks(shared.batch_size);
        while self.stored < rows
            && let Some(batch) = left.next()
        {
            if self.progress.cancelled() {
                return Err(interrupted());
            }
            let number = first + self.computed as u64;
            let computed = shared.hooks.compute(&shared.model, &shared.text, batch, number)?;
            for (row, _) in computed.fates.iter().enumerate().filter(|(_, fate)| **fate == Kept::Yes) {
                shared.hooks.append(&computed, row, &mut self.values)?;
                self.stored += 1;
            }
            self.computed += batch.len();
        }
        self.sequences = Some(sequences);
        if self.stored == 0 {
            return Err(Error::Unsupported {
                what: "measuring on the held-out text".into(),
                why: "the filters leave out every row of it".into(),
                remedy: "use more text, or switch the filters off".into(),
            });
        }
        Ok(())
    }
}

impl RowSource for LiveHeldOut<'_> {
    fn widths(&self) -> &[usize] {
        &self.shared.hooks.widths
    }

    /// Before norms are known: at most so many.
    fn rows(&self) -> u64 {
        self.shared.held_out_kept.iter().take(self.served()).map(|&n| u64::from(n)).sum()
    }

    fn next_batch(&mut self, n: usize, out: &mut [Vec<f32>]) -> Result<()> {
        let end = self.position + n as u64;
        if self.stored < end {
            self.fill(end)?;
        }
        for ((values, &width), out) in self.values.iter().zip(&self.shared.hooks.widths).zip(out) {
            out.clear();
            out.resize(n * width, 0.);
            for (position, row) in (self.position..).zip(out.chunks_exact_mut(width)) {
                values.get((position % self.stored) as usize * width, row);
            }
        }
        self.position = end;
        Ok(())
    }

    fn position(&self) -> u64 {
        self.position
    }

    fn seek(&mut self, position: u64) -> Result<()> {
        self.position = position;
        Ok(())
    }
}
