//! Metadata of one architecture, read by name, and with a record of what was read: a key that nobody knows may change
//! the computation.

use std::cell::RefCell;
use std::collections::BTreeSet;

use crate::base::{Error, Result};
use crate::data::gguf::Gguf;

/// Keys that say nothing about the computation, or what other keys and the tensors say again.
const SILENT: [&str; 6] = [
    "vocab_size",
    "rope.scaling.finetuned",
    "attention.causal",
    "tensor_data_layout",
    "attention.value_length",
    "embedding_length_out",
];

/// The metadata of one architecture, with a record of the keys that were asked for.
pub(super) struct Meta<'a> {
    pub(super) gguf: &'a Gguf,
    pub(super) arch: &'static str,
    used: RefCell<BTreeSet<String>>,
}

impl<'a> Meta<'a> {
    pub(super) fn new(gguf: &'a Gguf, arch: &'static str) -> Self {
        Self { gguf, arch, used: RefCell::default() }
    }

    pub(super) fn key(&self, name: &str) -> String {
        let key = format!("{}.{name}", self.arch);
        self.used.borrow_mut().insert(key.clone());
        key
    }

    /// An integer, or a list of one a layer that are all the same.
    pub(super) fn optional(&self, name: &str) -> Result<Option<usize>> {
        let key = self.key(name);
        if !self.gguf.is_list(&key) {
            return self.gguf.usize(&key);
        }
        let list = self.gguf.integers(&key)?.unwrap_or_default();
        match list.first().and_then(|&first| usize::try_from(first).ok()) {
            Some(first) if list.windows(2).all(|pair| pair.first() == pair.last()) => Ok(Some(first)),
            _ => Err(unsupported(self.gguf, &format!("its layers differ in '{key}'"))),
        }
    }

    pub(super) fn usize(&self, name: &str) -> Result<usize> {
        self.optional(name)?.ok_or_else(|| self.gguf.lacks(&format!("'{}.{name}'", self.arch)))
    }

    pub(super) fn usize_or(&self, name: &str, default: usize) -> Result<usize> {
        Ok(self.optional(name)?.unwrap_or(default))
    }

    pub(super) fn f64(&self, name: &str) -> Result<Option<f64>> {
        // Files hold single precision; what was written as 1e-5 shall read so.
        Ok(self.gguf.f64(&self.key(name))?.map(|x| (x as f32).to_string().parse().unwrap_or(x)))
    }

    pub(super) fn has(&self, tensor: &str) -> bool {
        self.gguf.tensors().contains_key(tensor)
    }

    /// The values of a small tensor of floats.
    pub(super) fn tensor(&self, name: &str) -> Result<Option<Vec<f32>>> {
        let Some(info) = self.gguf.tensors().get(name) else { return Ok(None) };
        let tensor = super::floats(self.gguf, name, info, candle_core::DType::F32)?;
        Ok(Some(tensor.flatten_all()?.to_vec1()?))
    }

    /// Fails when the file has a key of this architecture that nobody asked for: it may change the computation.
    pub(super) fn check_all_used(&self) -> Result<()> {
        let (prefix, used) = (format!("{}.", self.arch), self.used.borrow());
        let silent = |key: &str| key.strip_prefix(&prefix).is_none_or(|name| SILENT.contains(&name));
        match self.gguf.keys().find(|key| !silent(key) && !used.contains(*key)) {
            Some(key) => Err(unsupported(self.gguf, &format!("it sets '{key}', whose meaning is not known here"))),
            None => Ok(()),
        }
    }
}

/// A model that cannot be opened out of its GGUF file.
pub(super) fn unsupported(gguf: &Gguf, why: &str) -> Error {
    Error::Unsupported {
        what: format!("the model in {}", gguf.path().display()),
        why: why.into(),
        remedy: "use the model's Hugging Face directory".into(),
    }
}
