//! How long work reports to whoever started it. The library never prints; the command line draws bars.

/// What a progress total counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Tokens of text.
    Tokens,
    /// Optimiser steps.
    Steps,
    /// Bytes.
    Bytes,
    /// Anything else.
    Items,
}

/// Receives progress, warnings and table rows, and tells the work when to stop.
pub trait Progress: Sync {
    /// A phase begins. `total` is in `unit`s.
    fn begin(&self, label: &str, total: u64, unit: Unit);
    /// Sets the position, for work that resumes in the middle.
    fn set(&self, done: u64);
    /// `n` more units are done.
    fn advance(&self, n: u64);
    /// The short changing text beside the bar.
    fn note(&self, text: &str);
    /// A line that stays, such as a row of the training table.
    fn line(&self, text: &str);
    /// Something the user should know although the work goes on.
    fn warn(&self, text: &str);
    /// The phase is over.
    fn end(&self);
    /// Whether the user asked to stop. Long loops look at this between units of work that can be kept.
    fn cancelled(&self) -> bool;
}

/// Reports nothing and never stops.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn begin(&self, _label: &str, _total: u64, _unit: Unit) {}
    fn set(&self, _done: u64) {}
    fn advance(&self, _n: u64) {}
    fn note(&self, _text: &str) {}
    fn line(&self, _text: &str) {}
    fn warn(&self, _text: &str) {}
    fn end(&self) {}
    fn cancelled(&self) -> bool {
        false
    }
}
