//! GGUF, the file format of llama.cpp and Ollama: metadata, tokenizer and weights of one model in one file. This reads
//! the header; numbers and texts stay in the mapped file until they are asked for.
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>, versions 2 and 3.

use std::collections::BTreeMap;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::base::mapped::MappedBytes;
use crate::base::{Error, Result};

pub use types::TensorType;

mod parse;
mod pre;
pub(super) mod tokenizer;
mod types;

/// What errors call these files.
pub const WHAT: &str = "GGUF file";

/// The remedy for files that break the format.
const DAMAGED: &str = "the file is truncated or corrupt: download or make it again";

/// Whether the file at `path` begins as GGUF files do, whatever its name: Ollama's blobs have no extension.
pub fn is_gguf(path: &Path) -> bool {
    let mut start = [0; 4];
    let read = std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut start));
    read.is_ok() && &start == b"GGUF"
}

/// A metadata value, or where it lies in the file.
#[derive(Debug, Clone, PartialEq)]
enum Value {
    Int(i128),
    Float(f64),
    Bool(bool),
    Text(Range<usize>),
    Array { kind: u32, count: usize, bytes: Range<usize> },
}

/// One tensor of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// How its numbers are stored.
    pub dtype: TensorType,
    /// Row-major shape: the reverse of GGUF's own order.
    pub shape: Vec<usize>,
    /// Where in the file its bytes are.
    range: Range<usize>,
}

impl TensorInfo {
    /// Bytes in the file.
    pub fn bytes(&self) -> usize {
        self.range.len()
    }
}

/// What the header of a file says; offsets are into that file.
#[derive(Debug, Default)]
struct Header {
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, TensorInfo>,
}

/// One open GGUF file.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    map: MappedBytes,
    header: Header,
}

impl Gguf {
    /// Maps `path` and reads its header.
    ///
    /// # Errors
    /// `Io`; `Malformed` when the file is cut off or damaged; `Unsupported` for version 1 and big-endian files.
    pub fn open(path: &Path) -> Result<Self> {
        let map = MappedBytes::open(path)?;
        let header = parse::header(path, &map)?;
        Ok(Self { path: path.into(), map, header })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The keys of the metadata, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.header.metadata.keys().map(String::as_str)
    }

    /// The tensors by GGUF's names, sorted.
    pub fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.header.tensors
    }

    /// The stored bytes of a tensor of this file; they start at a multiple of eight.
    pub fn bytes(&self, tensor: &TensorInfo) -> &[u8] {
        self.at(&tensor.range)
    }

    fn at(&self, range: &Range<usize>) -> &[u8] {
        self.map.get(range.clone()).unwrap_or_default()
    }

    /// The text under `key`, unless it is absent.
    ///
    /// # Errors
    /// `Malformed` when the value has another type.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        self.read(key, "a text", |value| match value {
            Value::Text(range) => std::str::from_utf8(self.at(range)).ok(),
            _ => None,
        })
    }

    /// The non-negative integer under `key`, unless it is absent.
    ///
    /// # Errors
    /// As [`Gguf::text`].
    pub fn usize(&self, key: &str) -> Result<Option<usize>> {
        self.read(key, "a non-negative integer", |value| match value {
            Value::Int(n) => usize::try_from(*n).ok(),
            _ => None,
        })
    }

    /// The number under `key`, unless it is absent.
    ///
    /// # Errors
    /// As [`Gguf::text`].
    pub fn f64(&self, key: &str) -> Result<Option<f64>> {
        self.read(key, "a number", |value| match value {
            Value::Float(x) => Some(*x),
            Value::Int(n) => Some(*n as f64),
            _ => None,
        })
    }

    /// The boolean under `key`, unless it is absent.
    ///
    /// # Errors
    /// As [`Gguf::text`].
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.read(key, "true or false", |value| if let Value::Bool(b) = value { Some(*b) } else { None })
    }

    /// The list of texts under `key`, unless it is absent.
    ///
    /// # Errors
    /// As [`Gguf::text`].
    pub fn texts(&self, key: &str) -> Result<Option<Vec<&str>>> {
        self.read(key, "a list of texts", |value| {
            let Value::Array { kind: parse::TEXT, count, bytes } = value else { return None };
            parse::texts(self.at(bytes), *count)
        })
    }

    /// The list of integers under `key`, unless it is absent.
    ///
    /// # Errors
    /// As [`Gguf::text`].
    pub fn integers(&self, key: &str) -> Result<Option<Vec<i64>>> {
        self.read(key, "a list of integers", |value| {
            self.scalars(value, |n| if let Value::Int(n) = n { i64::try_from(n).ok() } else { None })
        })
    }

    /// The list of floats under `key`, unless it is absent.
    ///
    /// # Errors
    /// As [`Gguf::text`].
    pub fn floats(&self, key: &str) -> Result<Option<Vec<f64>>> {
        self.read(key, "a list of floats", |value| {
            self.scalars(value, |x| if let Value::Float(x) = x { Some(x) } else { None })
        })
    }

    fn scalars<T>(&self, list: &Value, scalar: impl Fn(Value) -> Option<T>) -> Option<Vec<T>> {
        let Value::Array { kind, count, bytes } = list else { return None };
        parse::scalars(*kind, self.at(bytes), *count, scalar)
    }

    /// Whether the value under `key` is a list.
    pub fn is_list(&self, key: &str) -> bool {
        matches!(self.header.metadata.get(key), Some(Value::Array { .. }))
    }

    /// The stored bytes behind every value whose key starts with `prefix`, in the order of the keys: what a hash of
    /// that part of the metadata is made of.
    pub fn raw(&self, prefix: &str) -> Vec<u8> {
        let mut raw = Vec::new();
        for (key, value) in self.header.metadata.iter().filter(|(key, _)| key.starts_with(prefix)) {
            raw.extend_from_slice(format!("{key}\n").as_bytes());
            match value {
                Value::Text(range) | Value::Array { bytes: range, .. } => raw.extend_from_slice(self.at(range)),
                scalar => raw.extend_from_slice(format!("{scalar:?}").as_bytes()),
            }
        }
        raw
    }

    fn read<'a, T>(&'a self, key: &str, expected: &str, f: impl FnOnce(&'a Value) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.header.metadata.get(key) else { return Ok(None) };
        match f(value) {
            Some(read) => Ok(Some(read)),
            None => Err(self.wrong(format!("'{key}' as {expected}"), format!("{value:?}"))),
        }
    }

    /// A value that a whole file would not hold.
    pub fn wrong(&self, expected: impl Into<String>, found: impl Into<String>) -> Error {
        Error::malformed(WHAT, &self.path, expected, found, DAMAGED)
    }

    /// What a whole file would hold and this one lacks.
    pub fn lacks(&self, what: &str) -> Error {
        self.wrong(what, "nothing of that name")
    }
}

#[cfg(test)]
mod tests;
