//! PyTorch's `.bin` files: a zip archive with a pickle that describes tensors and one member of raw numbers for each
//! storage. The pickle is read as data (see [`pickle`]), the storages stay in the page cache until a tensor of theirs
//! is asked for. Layout: `torch/serialization.py` and `torch/_utils.py` (`_rebuild_tensor_v2`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};

use crate::base::mapped::MappedBytes;
use crate::base::{Context, Error, Result};

use super::Entry;
use archive::{Archive, View, number_type};

pub(crate) mod archive;
mod pickle;

#[cfg(test)]
mod tests;

const WHAT: &str = "PyTorch weights";
const REMEDY: &str = "use a safetensors version of the model; if you trust the file, make one with Python: \
    safetensors.torch.save_file(torch.load('IN', weights_only=True), 'model.safetensors')";

/// One open `.bin` file.
#[derive(Debug)]
pub(super) struct PyTorchFile {
    path: PathBuf,
    map: MappedBytes,
    views: BTreeMap<String, View>,
}

impl PyTorchFile {
    /// Maps `path` and reads its table of tensors.
    ///
    /// # Errors
    /// `Io`; `Malformed` when the file is cut off, damaged or holds no state dict; `Unsupported` for files of torch
    /// before 1.6, compressed or big-endian ones, and pickles that call functions.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let map = MappedBytes::open(path)?;
        let views = table(path, &map)?;
        Ok(Self { path: path.into(), map, views })
    }

    /// Every tensor, sorted by name.
    pub(super) fn entries(&self) -> Vec<Entry> {
        let entry = |(name, view): (&String, &View)| {
            let (dtype, width) = match number_type(&view.class) {
                Some(dtype) => (dtype.as_str().to_owned(), dtype.size_in_bytes() as u64),
                None => (view.class.trim_end_matches("Storage").to_lowercase(), 0),
            };
            let count = view.shape.iter().fold(1u64, |n, &d| n.saturating_mul(d as u64));
            Entry { name: name.clone(), dtype, shape: view.shape.clone(), bytes: count.saturating_mul(width) }
        };
        self.views.iter().map(entry).collect()
    }

    /// As [`MappedBytes::release`].
    pub(super) fn release(&self) {
        self.map.release();
    }

    /// Tensor `name`, which must have `shape`, as `dtype`.
    ///
    /// # Errors
    /// `Malformed` when it has another shape or leaves its storage; `Unsupported` for number types that are no float.
    pub(super) fn tensor(&self, name: &str, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
        let view = self.views.get(name).ok_or_else(|| damaged(&self.path, format!("no tensor named '{name}'")))?;
        if view.shape != shape {
            return Err(super::wrong_shape(&self.path, name, shape, &view.shape));
        }
        let Some(stored) = number_type(&view.class) else {
            return Err(Error::Unsupported {
                what: format!("'{name}' in {}", self.path.display()),
                why: format!("it is stored as {}, which is no number type that weights have", view.class),
                remedy: "save the model in float32, float16 or bfloat16".into(),
            });
        };
        let bytes = view.bytes(&self.map, stored.size_in_bytes()).ok_or_else(|| {
            damaged(&self.path, format!("'{name}' reaching past the end of its {} bytes", view.storage.len()))
        })?;
        let tensor = Tensor::from_raw_buffer(&bytes, stored, shape, device).and_then(|t| t.to_dtype(dtype));
        tensor.during(|| format!("loading '{name}'"))
    }
}

/// The tensors that the file `path` with contents `file` describes, by name.
fn table(path: &Path, file: &[u8]) -> Result<BTreeMap<String, View>> {
    let archive = Archive::read(path, file)?;
    let Some(items) = archive.root().dict() else {
        return Err(damaged(path, "a pickle of something else than a dict from names to tensors".into()));
    };
    let mut views = BTreeMap::new();
    for (key, item) in items {
        let Some(name) = key.text() else { continue };
        if let Some(view) = item.view(path)? {
            views.insert(name.to_owned(), view);
        }
    }
    if views.is_empty() {
        return Err(damaged(path, "a dict without tensors at its top".into()));
    }
    Ok(views)
}

fn damaged(path: &Path, found: String) -> Error {
    let expected = "a whole file of torch.save";
    Error::malformed(WHAT, path, expected, found, "the file is truncated or corrupt: download or make it again")
}

fn unsupported(path: &Path, why: &str) -> Error {
    Error::Unsupported { what: format!("the PyTorch file {}", path.display()), why: why.into(), remedy: REMEDY.into() }
}
