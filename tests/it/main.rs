//! All integration tests, in one binary so that candle is linked once.

mod close;
mod layers;
mod parity;
