//! What each feature of a dictionary fires on and what it writes.
//!
//! ```text
//! cache ──encode──► index: density, mean, max, histogram, top examples   (one pass, all features)
//! W_dec W_U ──────► logits: promoted and suppressed tokens
//! index ──────────► query: which features to show
//! ```

pub mod index;
pub mod labels;
pub mod logits;
pub mod query;
pub mod record;
pub mod stats;

pub use index::{FeatureIndex, IndexSettings};
pub use labels::Label;
pub use logits::{LogitEffects, TokenLogit, logit_effects};
pub use query::{Choice, Query, SortBy, select};
pub use record::{
    AlignmentRecord, CoactiveRecord, ExampleRecord, FeatureRecord, HistogramRecord, IndexFile, IndexHeader,
    IntervalRecord, LogitHistogram, NeighbourRecord, NeuronRecord, TokenRecord,
};
pub use stats::{Example, FeatureStats, Histogram, Summary};
