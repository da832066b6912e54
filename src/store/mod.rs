//! Activations: on disk as a cache, in memory as batches of rows.

pub mod source;

pub use source::RowSource;
