//! What a file of `torch.save` holds: a tree of dicts, lists, texts and numbers, with tensors as leaves, read as data.
//! Layout: `torch/serialization.py` and `torch/_utils.py` (`_rebuild_tensor_v2`).

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use candle_core::DType;

use super::pickle::{Id, Object, Objects, Refusal};
use super::{damaged, unsupported};
use crate::base::Result;
use crate::base::zip::{self, Member};

/// Descriptions of tensors are a hundred bytes each; a larger pickle is none of weights, and reading it would take
/// many times its size.
const LONGEST_PICKLE: usize = 1 << 24;

/// One tensor: a view of a storage.
#[derive(Debug, Clone)]
pub(crate) struct View {
    /// The storage class, such as `HalfStorage`.
    pub(crate) class: String,
    /// Bytes of the storage in the file.
    pub(crate) storage: Range<usize>,
    /// First element.
    pub(crate) offset: usize,
    pub(crate) shape: Vec<usize>,
    pub(crate) strides: Vec<usize>,
}

/// The parsed pickle of a file, and where its storages lie.
#[derive(Debug)]
pub(crate) struct Archive {
    objects: Objects,
    members: BTreeMap<String, Member>,
    folder: String,
}

impl Archive {
    /// Reads the table of the file `path` with contents `file`.
    ///
    /// # Errors
    /// `Malformed` when the file is cut off or damaged; `Unsupported` for files of torch before 1.6, compressed or
    /// big-endian ones, and pickles that call functions.
    pub(crate) fn read(path: &Path, file: &[u8]) -> Result<Self> {
        if file.starts_with(&[0x80]) {
            return Err(unsupported(path, "it is in the format of torch before 1.6, which is no zip archive"));
        }
        let members = zip::members(file).map_err(|found| damaged(path, found))?;
        if let Some((name, _)) = members.iter().find(|(_, member)| !member.is_stored()) {
            return Err(damaged(path, format!("'{name}' in compressed form, which torch.save never writes")));
        }
        let pickle = members.iter().find(|(name, _)| name.ends_with("/data.pkl") || *name == "data.pkl");
        let Some((name, pickle)) = pickle else {
            return Err(damaged(path, format!("a zip archive without data.pkl, of {} members", members.len())));
        };
        let folder = name.strip_suffix("data.pkl").unwrap_or_default().to_owned();
        let bytes = |member: &Member| file.get(member.range.clone()).unwrap_or_default();
        if members.get(&format!("{folder}byteorder")).is_some_and(|order| bytes(order) != b"little") {
            return Err(unsupported(path, "its numbers are stored big-endian"));
        }
        let pickle = bytes(pickle);
        if pickle.len() > LONGEST_PICKLE {
            return Err(damaged(path, format!("a description of {} bytes, as no weights need", pickle.len())));
        }
        let objects = Objects::read(pickle).map_err(|refusal| match refusal {
            Refusal::Damaged(found) => damaged(path, found),
            Refusal::Calls(name) => {
                unsupported(path, &format!("Python would call {name} on opening it, which weights never need"))
            }
        })?;
        Ok(Self { objects, members, folder })
    }

    /// The object that the file is of.
    pub(crate) fn root(&self) -> Item<'_> {
        Item { archive: self, id: self.objects.root }
    }
}

/// One object of the tree. Objects may be shared, so the tree is walked and never copied.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Item<'a> {
    archive: &'a Archive,
    id: Id,
}

impl<'a> Item<'a> {
    /// Keys and values of a dict, as they were set.
    pub(crate) fn dict(self) -> Option<impl Iterator<Item = (Self, Self)>> {
        let Object::Dict(items) = self.archive.objects.get(self.id) else { return None };
        let item = move |id| Self { archive: self.archive, id };
        Some(items.iter().map(move |&(key, value)| (item(key), item(value))))
    }

    /// A text.
    pub(crate) fn text(self) -> Option<&'a str> {
        self.archive.objects.text(self.id)
    }

    /// An integer.
    pub(crate) fn int(self) -> Option<i64> {
        if let Object::Int(n) = *self.archive.objects.get(self.id) { Some(n) } else { None }
    }

    /// A float, or an integer as one.
    pub(crate) fn float(self) -> Option<f64> {
        match *self.archive.objects.get(self.id) {
            Object::Float(x) => Some(x),
            Object::Int(n) => Some(n as f64),
            _ => None,
        }
    }

    /// Whether it is None.
    pub(crate) fn is_none(self) -> bool {
        matches!(self.archive.objects.get(self.id), Object::None)
    }

    /// What it is, for error messages.
    pub(crate) fn kind(self) -> &'static str {
        match self.archive.objects.get(self.id) {
            Object::Global(_) => "a class or function",
            Object::Int(_) => "an integer",
            Object::Float(_) => "a float",
            Object::Bool => "a boolean",
            Object::None => "None",
            Object::Text(_) => "a text",
            Object::Tuple(_) => "a tuple",
            Object::List(_) => "a list",
            Object::Dict(_) => "a dict",
            Object::Call(..) if tensor_arguments(&self.archive.objects, self.id).is_some() => "a tensor",
            Object::Call(..) => "an object",
            Object::Persistent(_) => "a storage",
            Object::Other => "bytes",
        }
    }

    /// The tensor, where it is one.
    ///
    /// # Errors
    /// `Malformed` when it is called a tensor and not described as one. `path` names the file.
    pub(crate) fn view(self, path: &Path) -> Result<Option<View>> {
        let Archive { objects, members, folder } = self.archive;
        let Some(arguments) = tensor_arguments(objects, self.id) else { return Ok(None) };
        let find = |member: &str| members.get(&format!("{folder}data/{member}")).map(|member| member.range.clone());
        view(objects, arguments, find)
            .map(Some)
            .ok_or_else(|| damaged(path, "a tensor with a description that is none".into()))
    }
}

impl View {
    /// The elements in row-major order: borrowed where the view is contiguous, gathered where it is not. `None` when
    /// the view leaves its storage.
    pub(crate) fn bytes<'a>(&self, file: &'a [u8], width: usize) -> Option<std::borrow::Cow<'a, [u8]>> {
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

pub(crate) fn number_type(class: &str) -> Option<DType> {
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
