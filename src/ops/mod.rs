//! The few numeric kernels that are ours, each tested against the naive code it must equal.
//!
//! Every kernel cuts its work into pieces of fixed size and reduces them in a fixed order, so the same input gives
//! the same bits on any number of threads.

pub mod attend;
pub mod bf16;
pub mod compact;
pub mod gemm;
pub mod lanes;
pub mod sparse;
pub mod threads;
mod vector;

pub use gemm::Matrix;
pub use sparse::Element;
pub use vector::{AdamStep, Work, adam, add_scaled, dot, dots, squared_norm, widest};
