//! Training of dictionaries, transcoders and cross-layer transcoders, from any [`RowSource`](crate::store::RowSource).
//!
//! One step, with `n` rows `x` of mean norm `√d` ([`super::scale`]):
//!
//! ```text
//! x ──► encoder product, ReLU fused ──► sparse codes ──► decode ──► residual
//!                                            │                        │
//!                          gradients on active pairs only ◄───────────┘
//!                                            │
//!                          clip ──► Adam, one pass over all weights
//! ```
//!
//! Of the five dense products of automatic differentiation only the encoder's remains (`step`); `dense` is the
//! same step written with candle's automatic differentiation, for GPUs and as the twin in tests. A transcoder's residual
//! is that of another hook's rows; the layers of a cross-layer transcoder share one (`step::cross`). Everything random is
//! a named stream of the seed and the step number, so a checkpoint needs no generator state, and a resumed run ends
//! with the same bits as an uninterrupted one.

mod assemble;
mod checkpoint;
mod dead;
mod dense;
mod engine;
mod finish;
mod log;
mod loss;
mod method;
mod operand;
mod optimiser;
mod parameters;
mod resume;
mod rows;
mod run;
mod schedule;
mod sessions;
#[cfg(test)]
mod set_tests;
mod settings;
mod step;
mod sweep;
#[cfg(test)]
mod tests;
mod together;
mod trainer;

pub use assemble::assemble;
pub use log::{METRICS_FILE, MetricsLine};
pub use method::SparsityLoss;
pub use run::{
    Member, MemberEnd, SetRun, SweepRun, TrainRun, TrainSummary, TrainedLayer, check_cross_layer, train, train_set,
    train_sweep,
};
pub use sessions::{SESSIONS_FILE, Session};
pub use settings::{DeadFeatures, DecoderBias, Method, TrainArchitecture, TrainPlan, TrainSettings, TranscoderPlan};
pub use sweep::{SweepEntry, read_sweep};
