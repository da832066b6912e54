//! JSON configurations, taken key by key. A key that nobody asked for is refused by name: it may change what the
//! dictionary computes.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::base::artifact::read_json;
use crate::base::{Error, Result};

const WHAT: &str = "dictionary configuration";
/// A configuration is a few kilobytes; a larger file is none.
const LARGEST: u64 = 1 << 22;

/// The keys of one JSON object that were not taken yet.
#[derive(Debug, Clone)]
pub(super) struct Object {
    path: PathBuf,
    /// Where in the file it is, as `trainer.`; empty for the whole.
    within: String,
    left: Map<String, Value>,
}

impl Object {
    /// Reads the file `path`.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let size = std::fs::metadata(path).map_err(Error::io("read the configuration", path))?.len();
        if size > LARGEST {
            return Err(malformed(path, "a configuration of a few kilobytes".into(), format!("{size} bytes")));
        }
        Ok(Self { path: path.into(), within: String::new(), left: read_json(WHAT, path)? })
    }

    /// The value of `key`; `None` where it is absent or null.
    ///
    /// # Errors
    /// `Malformed` when it is of another type.
    pub(super) fn take<T: DeserializeOwned>(&mut self, key: &str) -> Result<Option<T>> {
        match self.left.remove(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => serde_json::from_value(value.clone())
                .map(Some)
                .map_err(|e| self.wrong(key, format!("a value of its type ({e})"), &value)),
        }
    }

    /// The value of `key`, which must be there.
    ///
    /// # Errors
    /// `Malformed` when it is absent or of another type.
    pub(super) fn require<T: DeserializeOwned>(&mut self, key: &str) -> Result<T> {
        self.take(key)?.ok_or_else(|| {
            let keys: Vec<&str> = self.left.keys().map(String::as_str).take(12).collect();
            malformed(&self.path, format!("'{}{key}'", self.within), format!("the keys {}", keys.join(", ")))
        })
    }

    /// A positive integer.
    ///
    /// # Errors
    /// `Malformed` when it is absent or something else.
    pub(super) fn size(&mut self, key: &str) -> Result<usize> {
        match self.require(key)? {
            0 => Err(self.wrong(key, "a positive integer".into(), &0.into())),
            size => Ok(size),
        }
    }

    /// The object at `key`.
    ///
    /// # Errors
    /// `Malformed` when it is something else.
    pub(super) fn object(&mut self, key: &str) -> Result<Option<Self>> {
        let left: Option<Map<String, Value>> = self.take(key)?;
        Ok(left.map(|left| Self { path: self.path.clone(), within: format!("{}{key}.", self.within), left }))
    }

    /// Keys that say how it was trained and nothing about what it computes.
    pub(super) fn ignore(&mut self, keys: &[&str]) {
        self.left.retain(|key, _| !keys.contains(&key.as_str()));
    }

    /// Refuses what was not taken.
    ///
    /// # Errors
    /// `Unsupported` with the first key.
    pub(super) fn finish(self) -> Result<()> {
        let Some((key, value)) = self.left.iter().next() else { return Ok(()) };
        let value: String = value.to_string().chars().take(60).collect();
        Err(Error::Unsupported {
            what: format!("the key '{}{key}' ({value}) of {}", self.within, self.path.display()),
            why: "it may change what the dictionary computes, and this version does not know it".into(),
            remedy: "remove it if it is harmless".into(),
        })
    }

    /// A value that is known and not computed.
    pub(super) fn refuse(&self, key: &str, found: impl std::fmt::Display, why: &str) -> Error {
        Error::Unsupported {
            what: format!("'{}{key}' {found} in {}", self.within, self.path.display()),
            why: why.into(),
            remedy: "use another dictionary of this release".into(),
        }
    }

    /// A value that makes no sense.
    pub(super) fn wrong(&self, key: &str, expected: String, found: &Value) -> Error {
        let found: String = found.to_string().chars().take(60).collect();
        malformed(&self.path, format!("'{}{key}' as {expected}", self.within), found)
    }
}

fn malformed(path: &Path, expected: String, found: String) -> Error {
    Error::malformed(WHAT, path, expected, found, "copy or make the dictionary again")
}
