//! Sparse dictionaries: `encode` rows to [`SparseCodes`], `decode` codes to rows, and everything that trains and
//! stores them.

pub mod codes;

pub use codes::SparseCodes;
