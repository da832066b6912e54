//! Training rows of a cache in a shuffled order, and the rows held out from training in their own order.
//!
//! Every pass visits each kept training row once, in an order that a keyed permutation gives without memory; the
//! place in the stream determines the row, so going on at a position is exact.

use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::filter::KeptRows;
use super::reader::CacheReader;
use super::source::RowSource;
use crate::base::rng::Permutation;
use crate::base::{Error, Result};

/// Which sequences are trained on and which are held out: the last of the cache, whole, never trained on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Split {
    /// Sequences in the cache.
    pub sequences: u64,
    /// How many of them, at the end, are held out.
    pub held_out: u64,
}

/// The share of sequences held out unless told otherwise.
pub const DEFAULT_HELD_OUT: f64 = 0.05;

impl Split {
    /// Holds out the last `fraction` of `sequences`, at least one of them when the fraction is above 0.
    ///
    /// # Errors
    /// `Flag` when the fraction is not in `0..1`, or too large or the cache too small to leave training rows.
    pub fn new(sequences: u64, fraction: f64) -> Result<Self> {
        let held_out = (sequences as f64 * fraction).ceil() as u64;
        if !(0. ..1.).contains(&fraction) || held_out >= sequences {
            return Err(Error::Flag {
                flag: "--held-out",
                expected: "a fraction from 0 up to 1 that leaves sequences to train on".into(),
                found: format!("{fraction} of {sequences} sequences"),
                remedy: "use 0.05, or cache more text".into(),
            });
        }
        Ok(Self { sequences, held_out })
    }

    /// The sequences trained on.
    pub fn training(&self) -> Range<u64> {
        0..self.sequences - self.held_out
    }

    /// The sequences held out.
    pub fn held_out(&self) -> Range<u64> {
        self.sequences - self.held_out..self.sequences
    }
}

/// Kept rows of a range of sequences, pass after pass, for one or several hooks.
#[derive(Debug, Clone)]
pub struct CacheSource {
    reader: Arc<CacheReader>,
    kept: Arc<KeptRows>,
    hooks: Vec<usize>,
    widths: Vec<usize>,
    /// Places among all kept rows.
    places: Range<u64>,
    order: Order,
    position: u64,
}

#[derive(Debug, Clone)]
enum Order {
    Sequential,
    /// The permutation of the pass at hand.
    Shuffled {
        seed: u64,
        pass: u64,
        permutation: Permutation,
    },
}

impl CacheSource {
    /// The kept rows of the training sequences, in another order every pass.
    ///
    /// # Errors
    /// `Malformed` when no row is kept there, `Unknown` when the cache has fewer hooks.
    pub fn training(
        reader: Arc<CacheReader>,
        hooks: &[usize],
        kept: Arc<KeptRows>,
        split: Split,
        seed: u64,
    ) -> Result<Self> {
        let mut source = Self::new(reader, hooks, kept, split.training())?;
        source.order = Order::Shuffled { seed, pass: 0, permutation: permutation(source.rows(), seed, 0) };
        Ok(source)
    }

    /// The kept rows of the held-out sequences, in the order of the text, every pass the same.
    ///
    /// # Errors
    /// As [`CacheSource::training`].
    pub fn held_out(reader: Arc<CacheReader>, hooks: &[usize], kept: Arc<KeptRows>, split: Split) -> Result<Self> {
        Self::new(reader, hooks, kept, split.held_out())
    }

    /// The kept rows of `sequences`, in the order of the text.
    ///
    /// # Errors
    /// As [`CacheSource::training`].
    pub fn new(reader: Arc<CacheReader>, hooks: &[usize], kept: Arc<KeptRows>, sequences: Range<u64>) -> Result<Self> {
        let context = reader.context_size() as u64;
        let places =
            kept.rank(sequences.start.saturating_mul(context))..kept.rank(sequences.end.saturating_mul(context));
        if places.is_empty() || kept.rows() != reader.rows() {
            return Err(Error::malformed(
                "activation cache",
                reader.dir(),
                format!("rows that the filter keeps in sequences {} to {}", sequences.start, sequences.end),
                format!("{} kept of {} rows", places.end - places.start, kept.rows()),
                "cache more text, or switch filters off",
            ));
        }
        let widths = hooks.iter().map(|&hook| Ok(reader.hook_entry(hook)?.width)).collect::<Result<_>>()?;
        Ok(Self { reader, kept, hooks: hooks.to_vec(), widths, places, order: Order::Sequential, position: 0 })
    }

    /// The row of the cache that the stream serves at `position`.
    pub fn row_at(&mut self, position: u64) -> u64 {
        let (pass, place) = (position / self.rows(), position % self.rows());
        let rows = self.rows();
        let place = match &mut self.order {
            Order::Sequential => place,
            Order::Shuffled { seed, pass: current, permutation: order } => {
                if *current != pass {
                    *order = permutation(rows, *seed, pass);
                    *current = pass;
                }
                order.at(place)
            }
        };
        self.kept.select(self.places.start + place).unwrap_or_default()
    }

    /// The cache behind the rows.
    pub fn reader(&self) -> &Arc<CacheReader> {
        &self.reader
    }

    fn check(&self, hook: usize, width: usize, values: &[f32], rows: &[u64]) -> Result<()> {
        let Some(first) = values.iter().position(|x| !x.is_finite()) else { return Ok(()) };
        let row = rows.get(first / width).copied().unwrap_or_default();
        let context = self.reader.context_size() as u64;
        Err(Error::NonFinite {
            what: format!("the cached activations of {}", self.reader.hook_entry(hook)?.name),
            count: values.iter().filter(|x| !x.is_finite()).count(),
            at: format!("sequence {}, position {}", row / context, row % context),
            remedy: "the cache was damaged after it was written: remove it and cache again".into(),
        })
    }
}

fn permutation(rows: u64, seed: u64, pass: u64) -> Permutation {
    Permutation::new(rows, seed, &format!("cache rows, pass {pass}"))
}

impl RowSource for CacheSource {
    fn widths(&self) -> &[usize] {
        &self.widths
    }

    fn rows(&self) -> u64 {
        self.places.end - self.places.start
    }

    fn next_batch(&mut self, n: usize, out: &mut [Vec<f32>]) -> Result<()> {
        let rows: Vec<u64> = (self.position..self.position + n as u64).map(|position| self.row_at(position)).collect();
        for ((&hook, &width), out) in self.hooks.iter().zip(&self.widths).zip(out) {
            self.reader.read_rows(hook, &rows, out)?;
            self.check(hook, width, out, &rows)?;
        }
        self.position += n as u64;
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

#[cfg(test)]
mod tests {
    use super::super::writer::tests::Example;
    use super::*;
    use crate::base::DtypeChoice;

    fn source(example: &Example, seed: u64) -> (CacheSource, Arc<KeptRows>, Split) {
        let reader = Arc::new(example.written());
        let kept = Arc::new(KeptRows::from_fn(reader.rows(), |row| row % 5 != 1));
        let split = Split::new(reader.sequences(), 0.2).unwrap();
        (CacheSource::training(reader, &[0], kept.clone(), split, seed).unwrap(), kept, split)
    }

    fn batch(source: &mut CacheSource, n: usize) -> Vec<Vec<f32>> {
        let mut out = [Vec::new()];
        source.next_batch(n, &mut out).unwrap();
        out[0].chunks(source.widths()[0]).map(<[f32]>::to_vec).collect()
    }

    #[test]
    fn a_pass_serves_every_kept_training_row_once_and_no_held_out_one() {
        let example = Example::new(DtypeChoice::F32, 23);
        let (mut source, kept, split) = source(&example, 3);
        assert_eq!((split.training(), split.held_out()), (0..18, 18..23));
        let context = Example::CONTEXT as u64;
        let expected: Vec<u64> = (0..18 * context).filter(|&row| kept.contains(row)).collect();
        assert_eq!(source.rows(), expected.len() as u64);
        let mut orders = Vec::new();
        for pass in 0..2 {
            let order: Vec<u64> = (0..source.rows()).map(|i| source.row_at(pass * source.rows() + i)).collect();
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, expected);
            assert_ne!(order, expected, "shuffled");
            orders.push(order);
        }
        assert_ne!(orders[0], orders[1], "another order every pass");
        let rows = batch(&mut source, expected.len() + 3);
        for (row, values) in orders.concat().iter().zip(&rows) {
            assert_eq!(values, &example.row((row / context) as usize, (row % context) as usize));
        }
    }

    #[test]
    fn seeking_serves_what_reading_on_would_have() {
        let example = Example::new(DtypeChoice::Bf16, 23);
        let (mut source, ..) = source(&example, 3);
        let n = source.rows() as usize;
        let all = batch(&mut source, 3 * n);
        assert_eq!(source.position(), 3 * n as u64);
        for position in [0, 1, n - 1, n, 2 * n + 7] {
            source.seek(position as u64).unwrap();
            let parts = [batch(&mut source, 5), batch(&mut source, 2)].concat();
            assert_eq!(parts, all[position..position + 7]);
        }
    }

    #[test]
    fn held_out_rows_come_in_the_order_of_the_text() {
        let example = Example::new(DtypeChoice::F32, 23);
        let (source, kept, split) = source(&example, 3);
        let mut held_out = CacheSource::held_out(source.reader().clone(), &[0], kept.clone(), split).unwrap();
        let context = Example::CONTEXT as u64;
        let expected: Vec<u64> = (18 * context..23 * context).filter(|&row| kept.contains(row)).collect();
        let found: Vec<u64> = (0..held_out.rows()).map(|i| held_out.row_at(i)).collect();
        assert_eq!(found, expected);
        for (sequences, fraction) in [(1, 0.05), (10, 1.), (10, -0.1), (10, f64::NAN), (0, 0.)] {
            assert!(Split::new(sequences, fraction).is_err(), "{sequences} {fraction}");
        }
        assert_eq!(Split::new(10, 0.).unwrap().held_out, 0);
    }
}
