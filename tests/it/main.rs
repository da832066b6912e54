//! All integration tests, in one binary so that candle is linked once.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod close;
mod layers;
mod parity;
