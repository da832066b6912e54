//! All integration tests, in one binary so that candle is linked once.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod bad_input;
mod bf16;
mod cli;
mod close;
mod damage;
mod dashboard;
mod demo;
mod dictionaries;
mod expectations;
mod exports;
mod features;
mod fixture;
mod golden;
mod graph;
mod graph_intervene;
mod graph_page;
mod heads;
mod hook_page;
mod hub;
mod hub_server;
mod identities;
mod interop;
mod kill;
mod layers;
mod lens;
mod pages;
mod parity;
mod passes;
mod patch;
mod probe;
mod real_model;
mod sets;
mod steer;
mod transcoders;
mod weights;
