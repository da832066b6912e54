//! Look inside language models: cache what flows through them, train sparse dictionaries on it, read what every
//! feature means, clamp features while the model writes.
//!
//! ```text
//!   data ──► model ──► store ──► dictionary ──► analysis
//!   text     hooks     cache     SAE            features, steering, evaluation
//! ```
//!
//! Shape letters used in every doc comment:
//!
//! | letter | axis |
//! | --- | --- |
//! | `b` | batch: sequences or rows |
//! | `s`, `S` | query and key positions |
//! | `d` | residual-stream width, `d_model` |
//! | `m` | inner width of the MLP, `d_mlp` |
//! | `H`, `K` | attention heads, key-value heads |
//! | `h` | width of one head, `d_head` |
//! | `v` | vocabulary |
//! | `E`, `k` | experts of a mixture, those a position goes through |
//! | `f` | dictionary features, `d_sae` |
//!
//! Layers, each using only those before it: [`base`], [`ops`], [`data`], [`model`], [`store`], [`dictionary`],
//! [`analysis`], [`interop`], [`demo`], [`web`], [`cli`].
#![cfg_attr(test, allow(clippy::float_cmp, reason = "tests compare exactly reproducible numbers"))]

pub mod analysis;
pub mod base;
pub mod cli;
pub mod data;
pub mod demo;
pub mod dictionary;
pub mod interop;
pub mod model;
pub mod ops;
pub mod store;
pub mod web;
