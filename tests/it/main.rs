//! All integration tests, in one binary so that candle is linked once.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod bad_input;
mod cli;
mod close;
mod demo;
mod fixture;
mod kill;
mod layers;
mod parity;
mod real_model;
mod weights;
