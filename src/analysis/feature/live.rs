//! Text that a model reads once, without rows of outlying norm.
//!
//! The median norm that the rule multiplies is exact over a cache, which can be read twice. A running model is asked
//! once, so the limit is the one that the dictionary was trained under, or comes from the first sequences.

use std::ops::Range;

use rayon::prelude::*;

use crate::analysis::sequences::{SequenceBatch, SequenceSource};
use crate::base::Result;

/// Sequences whose norms give the median.
const SAMPLED: u64 = 32;

/// A source whose rows above a norm do not count.
pub struct NormLimit<'a> {
    of: &'a dyn SequenceSource,
    limit: Option<f64>,
}

impl<'a> NormLimit<'a> {
    /// Leaves out rows of `of` above `own`, else above `multiple` of the median norm of its first sequences; without
    /// `multiple` none.
    ///
    /// # Errors
    /// Whatever reading gives.
    pub fn new(of: &'a dyn SequenceSource, own: Option<f64>, multiple: Option<f32>) -> Result<Self> {
        let limit = match (multiple, own) {
            (None, _) => None,
            (Some(_), Some(own)) => Some(own),
            (Some(multiple), None) => median_norm(of)?.map(|median| f64::from(multiple) * median),
        };
        Ok(Self { of, limit })
    }

    /// The norm above which rows do not count.
    pub fn limit(&self) -> Option<f64> {
        self.limit
    }
}

/// The median norm of the rows that count in the first sequences.
fn median_norm(source: &dyn SequenceSource) -> Result<Option<f64>> {
    let mut batch = SequenceBatch::default();
    source.read(0..SAMPLED.min(source.sequences()), true, &mut batch)?;
    let rows = batch.rows.chunks_exact(source.width().max(1)).zip(&batch.kept);
    let norms: Vec<f64> = rows.filter(|(_, kept)| **kept).map(|(row, _)| norm(row)).collect();
    Ok(median(norms))
}

/// The middle one; of an even number the upper of the two.
pub(super) fn median(mut values: Vec<f64>) -> Option<f64> {
    let middle = values.len() / 2;
    (!values.is_empty()).then(|| *values.select_nth_unstable_by(middle, f64::total_cmp).1)
}

/// The Euclidean norm.
pub(super) fn norm(row: &[f32]) -> f64 {
    row.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt()
}

impl SequenceSource for NormLimit<'_> {
    fn width(&self) -> usize {
        self.of.width()
    }

    fn context_size(&self) -> usize {
        self.of.context_size()
    }

    fn sequences(&self) -> u64 {
        self.of.sequences()
    }

    fn read(&self, range: Range<u64>, with_rows: bool, batch: &mut SequenceBatch) -> Result<()> {
        self.of.read(range, with_rows, batch)?;
        if let Some(limit) = self.limit.filter(|_| with_rows) {
            let rows = batch.rows.par_chunks_exact(self.of.width().max(1));
            rows.zip(&mut batch.kept).for_each(|(row, kept)| *kept &= norm(row) <= limit);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::feature::index::tests::source;

    #[test]
    fn rows_above_the_limit_do_not_count() {
        let source = source(6, 60);
        let kept = |own, multiple| {
            let limited = NormLimit::new(&source, own, multiple).unwrap();
            let mut batch = SequenceBatch::default();
            limited.read(0..60, true, &mut batch).unwrap();
            let above = |(row, _): &(&[f32], &bool)| limited.limit().is_some_and(|limit| norm(row) > limit);
            let kept_above = batch.rows.chunks_exact(6).zip(&batch.kept).filter(above).filter(|(_, kept)| **kept);
            assert_eq!(kept_above.count(), 0);
            batch.kept.iter().filter(|kept| **kept).count()
        };
        let all = source.all.kept.iter().filter(|kept| **kept).count();
        assert_eq!((kept(Some(0.1), None), kept(Some(1e9), Some(1.0))), (all, all));
        let (half, fewer) = (kept(None, Some(1.0)), kept(Some(0.5), Some(1.0)));
        assert!(half < all * 3 / 4 && half > all / 4 && fewer < half, "{fewer}, {half} of {all}");
    }
}
