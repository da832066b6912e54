//! What each feature of a dictionary fires on and what it writes.
//!
//! ```text
//! rows ──encode──► index: figures, strongest and drawn examples, sketch     (one pass, all features, resumable)
//! sketches ──────► coactive: features that fire together
//! W_dec W_decᵀ ──► alike: features and neurons that write alike
//! W_dec W_U ─────► logits: promoted and suppressed tokens
//! all of it ─────► findings ──write──► a directory ──open──► records, search, query; no model needed
//! ```

pub mod alike;
mod arrays;
pub mod checkpoint;
pub mod coactive;
pub mod examples;
pub mod findings;
pub mod histogram;
pub mod index;
pub mod labels;
pub mod layered;
pub mod live;
pub mod logits;
pub mod on;
mod open;
pub mod query;
pub mod record;
pub mod search;
pub mod sketch;
pub mod stats;
mod write;

pub use checkpoint::CheckpointPlan;
pub use examples::{Example, Window};
pub use findings::{Findings, IndexText};
pub use histogram::Histogram;
pub use index::{FeatureIndex, IndexSettings};
pub use labels::{Label, Labels};
pub use logits::{LogitEffects, TokenLogit, logit_effects};
pub use on::{FiringFeature, OnText, on_text};
pub use open::IndexFile;
pub use query::{Choice, Query, SortBy, select};
pub use record::{
    AlignmentRecord, CoactiveRecord, ExampleRecord, FeatureRecord, HistogramRecord, IndexHeader, IntervalRecord,
    LogitHistogram, NeighbourRecord, NeuronRecord, TokenRecord,
};
pub use search::{Found, search};

pub use stats::{FeatureStats, Summary};
pub use write::{FEATURES_FILE, HEADER_FILE};
