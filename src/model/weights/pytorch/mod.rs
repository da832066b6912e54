//! PyTorch's `.bin` files: a zip archive with a pickle that describes tensors and one member of raw numbers for each
//! storage. The pickle is read as data (see [`pickle`]), the storages stay in the page cache until a tensor of theirs
//! is asked for. Layout: `torch/serialization.py` and `torch/_utils.py` (`_rebuild_tensor_v2`).

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};

use crate::base::mapped::MappedBytes;
use crate::base::{Context, Error, Result};

use super::Entry;
use pickle::{Id, Object, Objects, Refusal};

mod pickle;
mod zip;

#[cfg(test)]
mod tests;

const WHAT: &str = "PyTorch weights";
const REMEDY: &str = "use a safetensors version of the model; if you trust the file, make one with Python: \
    safetensors.torch.save_file(torch.load('IN', weights_only=True), 'model.safetensors')";

/// One tensor: a view of a storage.
#[derive(Debug)]
struct View {
    /// The storage class, such as `HalfStorage`.
    class: String,
    /// Bytes of the storage in the file.
    storage: Range<usize>,
    /// First element.
    offset: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

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

impl View {
    /// The elements in row-major order: borrowed where the view is contiguous, gathered where it is not. `None` when
    /// the view leaves its storage.
    fn bytes<'a>(&self, file: &'a [u8], width: usize) -> Option<std::borrow::Cow<'a, [u8]>> {
        let storage = file.get(self.storage.clone())?;
        let count = self.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
        if count == 0 {
            return Some(vec![].into());
        }
        let span = self
            .shape
            .iter()
            .zip(&self.strides)
            .try_fold(0usize, |sum, (&d, &stride)| sum.checked_add(d.checked_sub(1)?.checked_mul(stride)?))?;
        let end = self.offset.checked_add(span)?.checked_add(1)?.checked_mul(width)?;
        let elements = storage.get(self.offset.checked_mul(width)?..end)?;
        let contiguous = self
            .shape
            .iter()
            .zip(&self.strides)
            .rev()
            .try_fold(1usize, |expected, (&d, &stride)| (d == 1 || stride == expected).then_some(expected * d));
        if contiguous.is_some() {
            return Some(elements.into());
        }
        let mut gathered = Vec::with_capacity(count.checked_mul(width)?);
        let mut index = vec![0; self.shape.len()];
        for _ in 0..count {
            let at: usize = index.iter().zip(&self.strides).map(|(i, stride)| i * stride).sum();
            gathered.extend_from_slice(elements.get(at * width..(at + 1) * width)?);
            for (i, &d) in index.iter_mut().zip(&self.shape).rev() {
                *i += 1;
                if *i < d {
                    break;
                }
                *i = 0;
            }
        }
        Some(gathered.into())
    }
}

/// The tensors that the file `path` with contents `file` describes, by name.
fn table(path: &Path, file: &[u8]) -> Result<BTreeMap<String, View>> {
    if file.starts_with(&[0x80]) {
        return Err(unsupported(path, "it is in the format of torch before 1.6, which is no zip archive"));
    }
    let members = zip::members(file).map_err(|found| damaged(path, found))?;
    let pickle = members.iter().find(|(name, _)| name.ends_with("/data.pkl") || *name == "data.pkl");
    let Some((name, pickle)) = pickle else {
        return Err(damaged(path, format!("a zip archive without data.pkl, of {} members", members.len())));
    };
    let folder = name.strip_suffix("data.pkl").unwrap_or_default();
    let order = members.get(&format!("{folder}byteorder")).and_then(|range| file.get(range.clone()));
    if order.is_some_and(|order| order != b"little") {
        return Err(unsupported(path, "its numbers are stored big-endian"));
    }
    let objects = Objects::read(file.get(pickle.clone()).unwrap_or_default()).map_err(|refusal| match refusal {
        Refusal::Damaged(found) => damaged(path, found),
        Refusal::Calls(name) => {
            unsupported(path, &format!("Python would call {name} on opening it, which weights never need"))
        }
    })?;
    let Object::Dict(items) = objects.get(objects.root) else {
        return Err(damaged(path, "a pickle of something else than a dict from names to tensors".into()));
    };
    let mut views = BTreeMap::new();
    for &(key, value) in items {
        let (Some(name), Some(arguments)) = (objects.text(key), tensor_arguments(&objects, value)) else {
            continue;
        };
        let find = |member: &str| members.get(&format!("{folder}data/{member}")).cloned();
        let view = view(&objects, arguments, find)
            .ok_or_else(|| damaged(path, format!("'{name}' with a description that is none of a tensor")))?;
        views.insert(name.to_owned(), view);
    }
    if views.is_empty() {
        return Err(damaged(path, "a dict without tensors at its top".into()));
    }
    Ok(views)
}

/// The arguments of `_rebuild_tensor_v2` behind a value, through the wrappers of parameters and tensor subclasses.
fn tensor_arguments(objects: &Objects, value: Id) -> Option<&[Id]> {
    let (mut function, mut arguments) = objects.call(value)?;
    if function == "torch._tensor._rebuild_from_type_v2" {
        function = objects.global(*arguments.first()?)?;
        arguments = objects.tuple(*arguments.get(2)?)?;
    }
    if function == "torch._utils._rebuild_parameter" {
        (function, arguments) = objects.call(*arguments.first()?)?;
    }
    matches!(function, "torch._utils._rebuild_tensor_v2" | "torch._utils._rebuild_tensor").then_some(arguments)
}

/// `(storage, storage_offset, size, stride, …)`, where the storage is `("storage", class, key, location, numel)`.
fn view(objects: &Objects, arguments: &[Id], find: impl Fn(&str) -> Option<Range<usize>>) -> Option<View> {
    let &[storage, offset, shape, strides, ..] = arguments else { return None };
    let Object::Persistent(storage) = *objects.get(storage) else { return None };
    let &[_, class, member, ..] = objects.tuple(storage)? else { return None };
    let class = objects.global(class)?.rsplit('.').next()?.to_owned();
    let (shape, strides) = (objects.ints(shape)?, objects.ints(strides)?);
    let view = View { class, storage: find(objects.text(member)?)?, offset: objects.int(offset)?, shape, strides };
    (view.shape.len() == view.strides.len()).then_some(view)
}

fn number_type(class: &str) -> Option<DType> {
    Some(match class {
        "DoubleStorage" => DType::F64,
        "FloatStorage" => DType::F32,
        "HalfStorage" => DType::F16,
        "BFloat16Storage" => DType::BF16,
        "LongStorage" => DType::I64,
        "IntStorage" => DType::I32,
        "ShortStorage" => DType::I16,
        "ByteStorage" | "BoolStorage" => DType::U8,
        _ => return None,
    })
}

fn damaged(path: &Path, found: String) -> Error {
    let expected = "a whole file of torch.save";
    Error::malformed(WHAT, path, expected, found, "the file is truncated or corrupt: download or make it again")
}

fn unsupported(path: &Path, why: &str) -> Error {
    Error::Unsupported { what: format!("the PyTorch file {}", path.display()), why: why.into(), remedy: REMEDY.into() }
}
