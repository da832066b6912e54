//! Activations: on disk as a cache, in memory as batches of rows.
//!
//! ```text
//! collect ──► writer ──► cache.json, shard-00000.safetensors … ──► reader ──► filter ──► shuffle
//! model and text to shards                                         mmap       kept rows   RowSource
//!
//! live: model and text to a RowSource through a shuffling buffer in memory
//! ```

pub mod collect;
pub mod filter;
pub mod format;
pub mod live;
pub mod reader;
pub mod shuffle;
pub mod source;
pub mod writer;

mod values;

pub use collect::{CacheJob, CacheSummary, collect};
pub use filter::{FilterReport, FilterSettings, KeptRows};
pub use format::{CacheManifest, CacheSettings, HookEntry, ModelEntry, ShardEntry};
pub use live::{Live, LiveHeldOut, LiveReport, LiveRows, LiveSettings};
pub use reader::CacheReader;
pub use shuffle::{CacheSource, Split};
pub use source::RowSource;
pub use writer::CacheWriter;
