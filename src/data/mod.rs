//! Text: from a reference to local files, to documents, to tokens, to fixed-length sequences with provenance.

pub mod chat;
mod checkpoint;
pub mod corpus;
pub mod dataset;
pub mod gguf;
pub mod hub;
pub mod pack;
mod parquet;
pub mod tokenizer;

pub use chat::{ChatTemplate, Message};
pub use corpus::{Corpus, DataFile, Document};
pub use dataset::{locate_data, locate_dataset};
pub use hub::{HubSettings, ModelFiles, locate_model};
pub use pack::{PackSettings, Packer, Sequence};
pub use tokenizer::{BosPolicy, SpecialIds, Tokenizer};
