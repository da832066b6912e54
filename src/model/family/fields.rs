//! Strict reading of `config.json` fields.

use std::path::Path;

use serde_json::{Map, Value};

use crate::base::{Error, Result};

/// A JSON object with the path that errors name.
pub(super) struct Fields<'a> {
    object: &'a Map<String, Value>,
    path: &'a Path,
}

impl<'a> Fields<'a> {
    pub(super) fn new(value: &'a Value, path: &'a Path) -> Result<Self> {
        match value.as_object() {
            Some(object) => Ok(Self { object, path }),
            None => Err(Error::malformed(
                "model configuration",
                path,
                "a JSON object",
                "another JSON value",
                "download config.json again",
            )),
        }
    }

    /// The field, unless it is absent or null.
    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    /// The object itself.
    pub(super) fn object_map(&self) -> &'a Map<String, Value> {
        self.object
    }

    pub(super) fn path(&self) -> &'a Path {
        self.path
    }

    pub(super) fn object(&self, key: &str) -> Result<Option<Fields<'a>>> {
        self.get(key).map(|value| Fields::new(value, self.path)).transpose()
    }

    pub(super) fn string(&self, key: &str) -> Result<String> {
        self.read(key, "a string", |v| v.as_str().map(str::to_owned))
    }

    pub(super) fn usize(&self, key: &str) -> Result<usize> {
        self.read(key, "a non-negative integer", |v| v.as_u64().and_then(|n| usize::try_from(n).ok()))
    }

    pub(super) fn f64(&self, key: &str) -> Result<f64> {
        self.read(key, "a number", Value::as_f64)
    }

    pub(super) fn usize_or(&self, key: &str, default: usize) -> Result<usize> {
        if self.get(key).is_some() { self.usize(key) } else { Ok(default) }
    }

    pub(super) fn f64_or(&self, key: &str, default: f64) -> Result<f64> {
        if self.get(key).is_some() { self.f64(key) } else { Ok(default) }
    }

    pub(super) fn string_or(&self, key: &str, default: &str) -> Result<String> {
        if self.get(key).is_some() { self.string(key) } else { Ok(default.to_owned()) }
    }

    pub(super) fn bool_or(&self, key: &str, default: bool) -> Result<bool> {
        if self.get(key).is_some() { self.read(key, "true or false", Value::as_bool) } else { Ok(default) }
    }

    /// The number, or nothing where the field is absent or null.
    pub(super) fn f64_option(&self, key: &str) -> Result<Option<f64>> {
        self.get(key).map(|_| self.f64(key)).transpose()
    }

    /// The integer, or nothing where the field is absent or null.
    pub(super) fn usize_option(&self, key: &str) -> Result<Option<usize>> {
        self.get(key).map(|_| self.usize(key)).transpose()
    }

    /// Whether the field is there, null or not: classes have defaults for absent fields that null overrides.
    pub(super) fn names(&self, key: &str) -> bool {
        self.object.contains_key(key)
    }

    pub(super) fn string_list(&self, key: &str) -> Result<Vec<String>> {
        self.read(key, "a list of strings", |v| v.as_array()?.iter().map(|s| s.as_str().map(str::to_owned)).collect())
    }

    /// Zeros and ones, or false and true.
    pub(super) fn flag_list(&self, key: &str) -> Result<Vec<bool>> {
        let flag = |v: &Value| v.as_bool().or_else(|| v.as_u64().map(|n| n != 0));
        self.read(key, "a list of zeros and ones", |v| v.as_array()?.iter().map(flag).collect())
    }

    /// Fails when the field is set, saying why it cannot be honoured.
    ///
    /// # Errors
    /// `Unsupported`.
    pub(super) fn refuse(&self, key: &str, why: &str) -> Result<()> {
        match self.get(key) {
            None => Ok(()),
            Some(_) => Err(self.unsupported(key, why)),
        }
    }

    /// The error for a field whose value cannot be honoured.
    pub(super) fn unsupported(&self, key: &str, why: &str) -> Error {
        let value = self.get(key).map_or("null".to_owned(), ToString::to_string);
        let value: String = value.chars().take(60).collect();
        Error::Unsupported {
            what: format!("'{key}': {value} in {}", self.path.display()),
            why: why.into(),
            remedy: "use another checkpoint of the model".into(),
        }
    }

    pub(super) fn f64_list(&self, key: &str) -> Result<Vec<f64>> {
        self.read(key, "a list of numbers", |v| v.as_array()?.iter().map(Value::as_f64).collect())
    }

    /// A token id, or the list of them that `eos_token_id` may be.
    pub(super) fn token_ids(&self, key: &str) -> Vec<u32> {
        let id = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
        match self.get(key) {
            Some(Value::Array(list)) => list.iter().filter_map(id).collect(),
            Some(value) => id(value).into_iter().collect(),
            None => Vec::new(),
        }
    }

    fn read<T>(&self, key: &str, expected: &str, f: impl FnOnce(&Value) -> Option<T>) -> Result<T> {
        let found = match self.get(key) {
            Some(value) => match f(value) {
                Some(read) => return Ok(read),
                None => format!("{value}"),
            },
            None => "no such field".into(),
        };
        Err(Error::malformed(
            "model configuration",
            self.path,
            format!("'{key}' as {expected}"),
            found,
            "the file does not describe a model of this type; download it again",
        ))
    }
}
