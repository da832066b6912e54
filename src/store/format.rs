//! `cache.json`: what a cache holds, where it came from, and which shards are whole.
//!
//! Shard `i` is `shard-0000i.safetensors` with `tokens` u32 `[sequences, s]`, `documents` u32 `[sequences, s]` (which
//! document a token came from) and one tensor `[sequences, s, width]` a hook, named by the hook. A *row* is one
//! token's activations; row number = sequence · s + position, over all shards.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::values::bytes_per_value;
use crate::base::artifact::read_json;
use crate::base::{DtypeChoice, Error, Result};
use crate::data::{BosPolicy, DataFile};

/// The version this program writes and reads.
pub const FORMAT_VERSION: u32 = 1;

/// The manifest's file name.
pub const MANIFEST: &str = "cache.json";

/// A shard holds at most this many tokens unless told otherwise: what a cut-off run loses at most.
const DEFAULT_SHARD_TOKENS: u64 = 1 << 16;

/// And about this many bytes, which the writer keeps in memory.
const DEFAULT_SHARD_BYTES: u64 = 256 << 20;

/// The contents of `cache.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CacheManifest {
    /// [`FORMAT_VERSION`].
    pub format_version: u32,
    /// Whether all that was asked for is there.
    pub complete: bool,
    /// Sequences in the whole shards.
    pub sequences: u64,
    /// Tokens in the whole shards, which is the number of rows.
    pub tokens: u64,
    /// Everything that determines the contents.
    pub settings: CacheSettings,
    /// The whole shards in order; all but the last hold `settings.shard_sequences`.
    pub shards: Vec<ShardEntry>,
}

/// Everything that determines the contents of a cache: the same settings give the same bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CacheSettings {
    /// The model.
    pub model: ModelEntry,
    /// BLAKE3 of `tokenizer.json`.
    pub tokenizer_blake3: String,
    /// The text, in reading order.
    pub data: Vec<DataFile>,
    /// The field or column of the text.
    pub text_field: String,
    /// Which activations.
    pub hooks: Vec<HookEntry>,
    /// Tokens in a sequence, `s`.
    pub context_size: usize,
    /// Whether every sequence begins with the beginning-of-sequence token.
    pub bos: BosPolicy,
    /// Ids of control tokens, ascending.
    pub special_token_ids: Vec<u32>,
    /// Sequences run at once; it may change the last bits of the values.
    pub batch_size: usize,
    /// Sequences in a whole shard.
    pub shard_sequences: u64,
    /// Sequences asked for; all that the text gives when absent.
    pub target_sequences: Option<u64>,
}

/// The model that made the activations.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelEntry {
    /// As the user named it.
    pub name: String,
    /// BLAKE3 of the weights.
    pub weights_blake3: String,
    /// The number type it computed in.
    pub dtype: DtypeChoice,
    /// The kind of device it computed on: "cpu", "cuda", "metal".
    pub device: String,
}

/// One hook point's tensor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HookEntry {
    /// The hook point, which is also the tensor's name.
    pub name: String,
    /// Values in a row.
    pub width: usize,
    /// The stored number type.
    pub dtype: DtypeChoice,
}

/// One whole shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardEntry {
    /// File name.
    pub file: String,
    /// Sequences in it.
    pub sequences: u64,
    /// Rows in it.
    pub rows: u64,
    /// File size.
    pub bytes: u64,
    /// BLAKE3 of the file.
    pub blake3: String,
}

impl CacheManifest {
    /// A cache without shards.
    pub fn new(settings: CacheSettings) -> Self {
        Self { format_version: FORMAT_VERSION, complete: false, sequences: 0, tokens: 0, settings, shards: Vec::new() }
    }

    /// Reads and checks `dir/cache.json`.
    ///
    /// # Errors
    /// `Missing` when there is none, `Malformed` when it is no manifest of this version or contradicts itself.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(MANIFEST);
        if !path.is_file() {
            return Err(missing(dir));
        }
        let json: Value = read_json("activation cache manifest", &path)?;
        let bad = |expected: String, found: String, remedy: &str| {
            Error::malformed("activation cache manifest", &path, expected, found, remedy)
        };
        let version = json.get("format_version").and_then(Value::as_u64);
        if version != Some(u64::from(FORMAT_VERSION)) {
            let found = version.map_or("no format_version".into(), |v| format!("format version {v}"));
            let expected = format!("format version {FORMAT_VERSION}");
            return Err(bad(expected, found, "use the version of mechinterp that wrote it, or cache again"));
        }
        let again = "remove the directory and cache again";
        let manifest: Self =
            serde_json::from_value(json).map_err(|e| bad("the documented keys".into(), e.to_string(), again))?;
        match manifest.contradiction() {
            Some((expected, found)) => Err(bad(expected, found, again)),
            None => Ok(manifest),
        }
    }

    /// The first of the promises between fields that does not hold: what was expected, what was found.
    fn contradiction(&self) -> Option<(String, String)> {
        let settings = &self.settings;
        if settings.context_size == 0 || settings.shard_sequences == 0 || settings.hooks.is_empty() {
            return Some(("at least one hook, token and sequence".into(), "none".into()));
        }
        if let Some(hook) = settings.hooks.iter().find(|h| h.width == 0) {
            return Some((format!("a width of {}", hook.name), "0".into()));
        }
        let last = self.shards.len().saturating_sub(1);
        for (i, shard) in self.shards.iter().enumerate() {
            let whole = shard.sequences == settings.shard_sequences
                || (i == last && (1..settings.shard_sequences).contains(&shard.sequences));
            if !whole || shard.rows != shard.sequences.saturating_mul(settings.context_size as u64) {
                let expected = format!("{} sequences in {}", settings.shard_sequences, shard.file);
                return Some((expected, format!("{} sequences, {} rows", shard.sequences, shard.rows)));
            }
            if shard.file != shard_name(i) {
                return Some((shard_name(i), shard.file.clone()));
            }
        }
        let (sequences, tokens) = self.totals();
        ((self.sequences, self.tokens) != (sequences, tokens)).then(|| {
            (
                format!("{sequences} sequences, {tokens} tokens as its shards say"),
                format!("{}, {}", self.sequences, self.tokens),
            )
        })
    }

    /// Sequences and tokens over all shards.
    pub(super) fn totals(&self) -> (u64, u64) {
        let sum = |count: fn(&ShardEntry) -> u64| self.shards.iter().map(count).fold(0, u64::saturating_add);
        (sum(|s| s.sequences), sum(|s| s.rows))
    }
}

impl CacheSettings {
    /// Bytes of one token over all tensors.
    pub fn bytes_per_token(&self) -> u64 {
        8 + self.hooks.iter().map(|h| (h.width * bytes_per_value(h.dtype)) as u64).sum::<u64>()
    }

    /// Sequences in a shard of about `shard_tokens`, or of a size that bounds memory and the work that a cut-off
    /// run loses; whole batches, so that resuming does not change them.
    pub fn choose_shard_sequences(&self, shard_tokens: Option<u64>) -> u64 {
        let by_bytes = DEFAULT_SHARD_BYTES / self.bytes_per_token();
        let tokens = shard_tokens.unwrap_or_else(|| by_bytes.min(DEFAULT_SHARD_TOKENS));
        let batch = self.batch_size.max(1) as u64;
        (tokens / self.context_size.max(1) as u64 / batch).max(1) * batch
    }

    /// The first setting in which two caches differ: its name and both values. Names of the model and paths of
    /// the data may differ where the contents are the same.
    pub fn difference(&self, other: &Self) -> Option<(String, String, String)> {
        let plain = |settings: &Self| {
            let mut settings = settings.clone();
            settings.model.name.clear();
            settings.data.iter_mut().for_each(|file| file.path.clear());
            serde_json::to_value(settings).unwrap_or_default()
        };
        first_difference("", &plain(self), &plain(other))
    }
}

/// The name of shard `i`.
pub fn shard_name(i: usize) -> String {
    format!("shard-{i:05}.safetensors")
}

fn first_difference(at: &str, left: &Value, right: &Value) -> Option<(String, String, String)> {
    let below = |key: &str| if at.is_empty() { key.to_owned() } else { format!("{at}.{key}") };
    match (left, right) {
        (Value::Object(left), Value::Object(right)) => left
            .iter()
            .find_map(|(key, value)| first_difference(&below(key), value, right.get(key).unwrap_or(&Value::Null))),
        (Value::Array(left), Value::Array(right)) if left.len() == right.len() => left
            .iter()
            .zip(right)
            .enumerate()
            .find_map(|(i, (left, right))| first_difference(&below(&i.to_string()), left, right)),
        _ => (left != right).then(|| (at.to_owned(), left.to_string(), right.to_string())),
    }
}

fn missing(dir: &Path) -> Error {
    let partial = crate::base::artifact::partial_path(dir);
    let remedy = if partial.join(MANIFEST).is_file() {
        format!("{} holds a cut-off run: finish it by running 'cache' with --resume", partial.display())
    } else {
        "make one with 'mechinterp cache', or check the path".into()
    };
    Error::Missing {
        what: "activation cache",
        path: dir.into(),
        expected: format!("a directory with {MANIFEST}"),
        remedy,
    }
}
