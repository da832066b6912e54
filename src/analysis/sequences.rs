//! Token sequences with their activations, in order. Training wants shuffled rows ([`crate::store::RowSource`]);
//! analysis wants whole sequences, because examples and losses need the tokens around a row.

use std::ops::Range;

use crate::base::{Error, Result};

/// Rows that [`batches`] puts into one batch, so that memory does not depend on the amount of data.
const BATCH_ROWS: usize = 4096;

/// Some consecutive whole sequences, row-major by sequence and position.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SequenceBatch {
    /// Number of the first sequence in its source.
    pub first: u64,
    /// Positions of a sequence.
    pub context_size: usize,
    /// Token ids, `[sequences · context_size]`.
    pub tokens: Vec<u32>,
    /// Document of each token, `[sequences · context_size]`.
    pub documents: Vec<u32>,
    /// Which positions count, `[sequences · context_size]`. Special tokens, first positions and norm outliers do not,
    /// as the source's filter says.
    pub kept: Vec<bool>,
    /// Activations, `[sequences · context_size, width]`.
    pub rows: Vec<f32>,
}

impl SequenceBatch {
    /// Number of sequences.
    pub fn sequences(&self) -> usize {
        self.tokens.len() / self.context_size.max(1)
    }

    /// The places in the batch that count, ascending.
    pub fn kept_places(&self) -> Vec<u32> {
        (0..self.kept.len() as u32).filter(|&i| self.kept[i as usize]).collect()
    }
}

/// The rows of `rows` `[n, width]` at `places`.
pub(crate) fn select_rows(rows: &[f32], width: usize, places: &[u32]) -> Vec<f32> {
    let mut selected = Vec::with_capacity(places.len() * width);
    for &place in places {
        selected.extend_from_slice(&rows[place as usize * width..][..width]);
    }
    selected
}

/// Sequences that can be read in any order, such as an activation cache.
pub trait SequenceSource: Sync {
    /// Values in a row.
    fn width(&self) -> usize;

    /// Positions of a sequence; all have the same.
    fn context_size(&self) -> usize;

    /// Number of sequences.
    fn sequences(&self) -> u64;

    /// Reads the sequences `range` into `batch`, replacing what it held. Without `with_rows` the rows stay empty.
    ///
    /// # Errors
    /// When the data cannot be read or holds NaN or infinity.
    fn read(&self, range: Range<u64>, with_rows: bool, batch: &mut SequenceBatch) -> Result<()>;
}

/// Some consecutive sequences of another source, such as the held-out ones.
pub struct Part<'a> {
    /// All sequences.
    pub of: &'a dyn SequenceSource,
    /// Those that this part has.
    pub range: Range<u64>,
}

impl SequenceSource for Part<'_> {
    fn width(&self) -> usize {
        self.of.width()
    }

    fn context_size(&self) -> usize {
        self.of.context_size()
    }

    fn sequences(&self) -> u64 {
        self.range.end.saturating_sub(self.range.start)
    }

    fn read(&self, range: Range<u64>, with_rows: bool, batch: &mut SequenceBatch) -> Result<()> {
        self.of.read(self.range.start + range.start..self.range.start + range.end, with_rows, batch)
    }
}

/// Cuts the first `limit` sequences of `source`, or all, into ranges of `BATCH_ROWS` rows or little more.
pub(crate) fn batches(source: &dyn SequenceSource, limit: Option<u64>) -> impl Iterator<Item = Range<u64>> {
    let total = limit.map_or(source.sequences(), |limit| limit.min(source.sequences()));
    let step = BATCH_ROWS.div_ceil(source.context_size().max(1)).max(1) as u64;
    (0..total.div_ceil(step)).map(move |i| i * step..((i + 1) * step).min(total))
}

/// Checks that a dictionary's rows have the width of the source's.
pub(crate) fn check_width(source: &dyn SequenceSource, dictionary: &crate::dictionary::Dictionary) -> Result<()> {
    let (d_in, d_out) = (dictionary.d_in(), dictionary.d_out());
    if d_in == source.width() && d_out == source.width() {
        return Ok(());
    }
    Err(Error::Mismatch {
        what: "dictionary and activation widths",
        left: format!("{dictionary} takes rows of {d_in} and gives rows of {d_out} values"),
        right: format!("the activations have rows of {} values", source.width()),
        remedy: "use the activations of the model and hook point that the dictionary was trained on".into(),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Sequences held in memory.
    #[derive(Debug, Clone)]
    pub(crate) struct InMemory {
        pub(crate) width: usize,
        pub(crate) all: SequenceBatch,
    }

    impl SequenceSource for InMemory {
        fn width(&self) -> usize {
            self.width
        }

        fn context_size(&self) -> usize {
            self.all.context_size
        }

        fn sequences(&self) -> u64 {
            self.all.sequences() as u64
        }

        fn read(&self, range: Range<u64>, with_rows: bool, batch: &mut SequenceBatch) -> Result<()> {
            let s = self.all.context_size;
            let positions = range.start as usize * s..range.end as usize * s;
            batch.first = range.start;
            batch.context_size = s;
            batch.tokens = self.all.tokens[positions.clone()].to_vec();
            batch.documents = self.all.documents[positions.clone()].to_vec();
            batch.kept = self.all.kept[positions.clone()].to_vec();
            batch.rows.clear();
            if with_rows {
                let width = self.width;
                batch.rows.extend_from_slice(&self.all.rows[positions.start * width..positions.end * width]);
            }
            Ok(())
        }
    }

    #[test]
    fn a_part_reads_its_own_sequences() {
        let tokens = (0..12).collect();
        let all = SequenceBatch {
            context_size: 2,
            tokens,
            documents: vec![0; 12],
            kept: vec![true; 12],
            rows: vec![0.0; 12],
            ..Default::default()
        };
        let source = InMemory { width: 1, all };
        let part = Part { of: &source, range: 2..5 };
        let mut batch = SequenceBatch::default();
        part.read(1..3, false, &mut batch).unwrap();
        assert_eq!((part.sequences(), batch.first, batch.tokens), (3, 3, vec![6, 7, 8, 9]));
    }

    #[test]
    fn batches_cover_every_sequence_once() {
        let all = SequenceBatch { context_size: 1000, tokens: vec![0; 11_000], ..Default::default() };
        let source = InMemory { width: 1, all };
        assert_eq!(batches(&source, None).collect::<Vec<_>>(), [0..5, 5..10, 10..11]);
        assert_eq!(batches(&source, Some(7)).collect::<Vec<_>>(), [0..5, 5..7]);
    }
}
