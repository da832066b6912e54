//! The named tensors of a weight file, whatever holds them, taken one by one. What a reader asks for must be there, of
//! the shape it names, of a float type and finite; what nobody asked for is refused by name at the end, because a
//! tensor that is not understood may change what the dictionary computes.
//!
//! Nothing is allocated that the file's own length does not account for: a shape is believed once its bytes are found.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::DType;
use safetensors::Dtype;

use super::npz::Npz;
use crate::base::mapped::{Mapped, MappedBytes};
use crate::base::{Error, Result};
use crate::dictionary::set::{Floats, WeightFile};
use crate::model::weights::pytorch::archive::{Item, View, number_type};

pub(super) use crate::ops::gemm::transposed;

pub(super) const WHAT: &str = "dictionary weights";
const MAKE_AGAIN: &str = "the file is truncated or corrupt, or not of this format: download or make it again";

/// The number types that are read, under both names.
const NUMBERS: [(Dtype, DType); 7] = [
    (Dtype::F64, DType::F64),
    (Dtype::F32, DType::F32),
    (Dtype::F16, DType::F16),
    (Dtype::BF16, DType::BF16),
    (Dtype::I64, DType::I64),
    (Dtype::I32, DType::I32),
    (Dtype::U8, DType::U8),
];

fn of_candle(dtype: DType) -> Option<Dtype> {
    NUMBERS.iter().find(|(_, number)| *number == dtype).map(|(stored, _)| *stored)
}

/// What a file says about one tensor.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Header {
    /// The number type, where it is one that is read.
    pub(super) stored: Option<DType>,
    /// Its name.
    pub(super) kind: String,
    pub(super) shape: Vec<usize>,
}

impl Header {
    /// Bytes of one number; 1 where the type is unknown.
    pub(super) fn width(&self) -> usize {
        self.stored.map_or(1, |dtype| dtype.size_in_bytes())
    }

    /// Bytes of all numbers; `None` where they are too many to count or their type is unknown.
    pub(super) fn bytes(&self) -> Option<u64> {
        let width = self.stored?.size_in_bytes() as u64;
        self.shape.iter().try_fold(width, |n, &d| n.checked_mul(d as u64))
    }
}

#[derive(Debug)]
enum Source {
    Safetensors(Mapped),
    Npz(Npz),
    Torch { map: MappedBytes, views: BTreeMap<String, View> },
}

/// The tensors of one file that were not taken yet.
#[derive(Debug)]
pub(super) struct Tensors {
    path: PathBuf,
    source: Source,
    left: BTreeMap<String, Header>,
    taken: Vec<String>,
    /// The file of the tensors that stay in it.
    lazy: Option<Arc<WeightFile>>,
}

impl Tensors {
    /// Opens a safetensors file.
    pub(super) fn safetensors(path: &Path) -> Result<Self> {
        let file = Mapped::open(WHAT, path)?;
        let left = file.entries()?.into_iter().map(|(name, dtype, shape)| {
            let stored = NUMBERS.iter().find(|(stored, _)| *stored == dtype).map(|(_, number)| *number);
            (name, Header { stored, kind: format!("{dtype:?}").to_lowercase(), shape })
        });
        let left = left.collect();
        Ok(Self { path: path.into(), source: Source::Safetensors(file), left, taken: Vec::new(), lazy: None })
    }

    /// Opens an `.npz` file.
    pub(super) fn npz(path: &Path) -> Result<Self> {
        let file = Npz::open(path)?;
        let left = file.headers();
        Ok(Self { path: path.into(), source: Source::Npz(file), left, taken: Vec::new(), lazy: None })
    }

    /// The tensors in a dict of a file of `torch.save`, and the other items of the dict, by name.
    pub(super) fn torch<'a>(
        path: &Path,
        map: MappedBytes,
        dict: Item<'a>,
    ) -> Result<(Self, BTreeMap<&'a str, Item<'a>>)> {
        let Some(items) = dict.dict() else {
            return Err(damaged(path, "a dict from names to tensors", dict.kind().into()));
        };
        let (mut views, mut left, mut others) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for (key, item) in items {
            let Some(name) = key.text() else {
                return Err(damaged(path, "a dict with texts as keys", format!("{} as a key", key.kind())));
            };
            if let Some(view) = item.view(path)? {
                let stored = number_type(&view.class);
                let kind = stored.map_or_else(|| view.class.clone(), |dtype| dtype.as_str().into());
                left.insert(name.to_owned(), Header { stored, kind, shape: view.shape.clone() });
                views.insert(name.to_owned(), view);
            } else {
                others.insert(name, item);
            }
        }
        let source = Source::Torch { map, views };
        Ok((Self { path: path.into(), source, left, taken: Vec::new(), lazy: None }, others))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Names that were not taken yet.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.left.keys().map(String::as_str)
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.left.contains_key(name)
    }

    /// Gives tensor `old` the name `new`, where there is one and `new` is free.
    pub(super) fn rename(&mut self, old: &str, new: &str) {
        if self.left.contains_key(new) {
            return;
        }
        if let Some(header) = self.left.remove(old) {
            self.left.insert(new.into(), header);
            self.source.rename(old, new);
        }
    }

    /// The shape of `name`.
    pub(super) fn shape(&self, name: &str) -> Result<&[usize]> {
        self.left.get(name).map(|header| header.shape.as_slice()).ok_or_else(|| self.absent(name))
    }

    /// The two sizes of the matrix `name`, both positive.
    pub(super) fn matrix(&self, name: &str) -> Result<[usize; 2]> {
        match *self.shape(name)? {
            [rows, cols] if rows > 0 && cols > 0 => Ok([rows, cols]),
            ref other => Err(self.wrong(name, "a matrix", format!("shape {other:?}"))),
        }
    }

    /// Tensor `name` of shape `shape`, row-major.
    ///
    /// # Errors
    /// `Malformed` when it is absent, of another shape, no float tensor or larger than the file; `NonFinite` when it
    /// holds NaN or infinity.
    pub(super) fn take(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let header = self.left.get(name).ok_or_else(|| self.absent(name))?;
        if header.shape != shape {
            return Err(self.wrong(name, &format!("shape {shape:?}"), format!("{:?}", header.shape)));
        }
        let bytes = self.bytes(name, header)?;
        let values = match header.stored {
            Some(DType::F32) => numbers(&bytes, f32::from_le_bytes),
            Some(DType::F64) => numbers(&bytes, |b| f64::from_le_bytes(b) as f32),
            Some(DType::F16) => numbers(&bytes, |b| half::f16::from_le_bytes(b).to_f32()),
            Some(DType::BF16) => numbers(&bytes, |b| half::bf16::from_le_bytes(b).to_f32()),
            _ => return Err(self.wrong(name, "floats", header.kind.clone())),
        };
        self.check_finite(name, &values)?;
        self.done(name);
        Ok(values)
    }

    /// The transpose `[cols, rows]` of tensor `name` of shape `[rows, cols]`.
    ///
    /// # Errors
    /// As [`Tensors::take`].
    pub(super) fn take_transposed(&mut self, name: &str, [rows, cols]: [usize; 2]) -> Result<Vec<f32>> {
        Ok(transposed(&self.take(name, &[rows, cols])?, cols))
    }

    /// Tensor `name` of shape `shape`, row-major, left in the file until its numbers are asked for; read where the file
    /// stores it in another order or compressed.
    ///
    /// # Errors
    /// As [`Tensors::take`], but for values that are not finite, which show when they are read. The checksum of an
    /// archive's member is looked at only where it is read here.
    pub(super) fn floats(&mut self, name: &str, shape: &[usize]) -> Result<Floats> {
        let header = self.left.get(name).ok_or_else(|| self.absent(name))?;
        if header.shape != shape {
            return Err(self.wrong(name, &format!("shape {shape:?}"), format!("{:?}", header.shape)));
        }
        let start = match &self.source {
            Source::Safetensors(file) => {
                let stored = header.stored.and_then(of_candle);
                let dtype = stored.ok_or_else(|| self.wrong(name, "floats", header.kind.clone()))?;
                Some(file.locate(name, dtype, shape)?.start)
            }
            Source::Npz(file) => file.place(name),
            Source::Torch { .. } => None,
        };
        let (Some(start), Some(stored)) = (start, header.stored) else {
            return Ok(Floats::memory(&format!("'{name}' of {}", self.path.display()), self.take(name, shape)?));
        };
        let file = match &self.lazy {
            Some(file) => Arc::clone(file),
            None => WeightFile::new(&self.path, MappedBytes::open(&self.path)?),
        };
        let floats = Floats::file(name, &file, start, stored, shape.iter().product())
            .ok_or_else(|| self.wrong(name, "floats", header.kind.clone()))?;
        self.lazy = Some(file);
        self.done(name);
        Ok(floats)
    }

    /// A tensor of integers.
    ///
    /// # Errors
    /// As [`Tensors::take`].
    pub(super) fn take_integers(&mut self, name: &str) -> Result<Vec<i64>> {
        let header = self.left.get(name).ok_or_else(|| self.absent(name))?;
        let bytes = self.bytes(name, header)?;
        let values = match header.stored {
            Some(DType::I64) => numbers(&bytes, i64::from_le_bytes),
            Some(DType::I32) => numbers(&bytes, |b| i64::from(i32::from_le_bytes(b))),
            _ => return Err(self.wrong(name, "integers", header.kind.clone())),
        };
        self.done(name);
        Ok(values)
    }

    /// Leaves `name` out: a tensor that says nothing about what the dictionary computes.
    pub(super) fn ignore(&mut self, name: &str) {
        self.done(name);
    }

    /// Refuses what was not taken.
    ///
    /// # Errors
    /// `Malformed` with the names.
    pub(super) fn finish(self) -> Result<()> {
        if self.left.is_empty() {
            return Ok(());
        }
        let expected = format!("the tensors {}", self.taken.join(", "));
        let found = format!("also {}", listed(self.left.keys().map(String::as_str)));
        let remedy = "the file is of a variant that this version does not know; nothing is guessed about it";
        Err(Error::malformed(WHAT, &self.path, expected, found, remedy))
    }

    fn done(&mut self, name: &str) {
        if self.left.remove(name).is_some() {
            self.taken.push(name.to_owned());
        }
        match &self.source {
            Source::Safetensors(file) => file.release(),
            Source::Npz(file) => file.release(),
            Source::Torch { map, .. } => map.release(),
        }
    }

    fn bytes(&self, name: &str, header: &Header) -> Result<Cow<'_, [u8]>> {
        let expected = header.bytes();
        let bytes = match &self.source {
            Source::Safetensors(file) => {
                let stored = header.stored.and_then(of_candle);
                let dtype = stored.ok_or_else(|| self.wrong(name, "floats", header.kind.clone()))?;
                file.bytes(name, dtype, &header.shape)?.into()
            }
            Source::Npz(file) => file.bytes(&self.path, name)?,
            Source::Torch { map, views } => {
                let view = views.get(name).ok_or_else(|| self.absent(name))?;
                // A view may repeat the numbers of its storage any number of times; weights do not.
                if expected.is_none_or(|bytes| bytes > view.storage.len() as u64) {
                    let found = format!("shape {:?} in {} bytes", view.shape, view.storage.len());
                    return Err(self.wrong(name, "a number for each place", found));
                }
                let past = || self.wrong(name, "numbers inside of its storage", "a place outside".into());
                view.bytes(map, header.width()).ok_or_else(past)?
            }
        };
        if expected != Some(bytes.len() as u64) {
            return Err(self.wrong(
                name,
                &format!("{:?} of {}", header.shape, header.kind),
                format!("{} bytes", bytes.len()),
            ));
        }
        Ok(bytes)
    }

    fn check_finite(&self, name: &str, values: &[f32]) -> Result<()> {
        let Some(first) = values.iter().position(|v| !v.is_finite()) else { return Ok(()) };
        Err(Error::NonFinite {
            what: format!("'{name}' of {}", self.path.display()),
            count: values.iter().filter(|v| !v.is_finite()).count(),
            at: format!("value {first}"),
            remedy: "the file is damaged, or the training that made it diverged: use another".into(),
        })
    }

    fn absent(&self, name: &str) -> Error {
        let found = format!("only {}", listed(self.names()));
        damaged(&self.path, &format!("a tensor '{name}'"), found)
    }

    /// An error about tensor `name`.
    pub(super) fn wrong(&self, name: &str, expected: &str, found: String) -> Error {
        damaged(&self.path, &format!("'{name}' as {expected}"), found)
    }
}

impl Source {
    fn rename(&mut self, old: &str, new: &str) {
        match self {
            Self::Npz(file) => file.rename(old, new),
            Self::Torch { views, .. } => {
                if let Some(view) = views.remove(old) {
                    views.insert(new.into(), view);
                }
            }
            // Names of safetensors files are read as they are.
            Self::Safetensors(_) => {}
        }
    }
}

/// The first names of a list, and how many more there are.
pub(super) fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    const SHOWN: usize = 12;
    let names: Vec<&str> = names.collect();
    let shown = names.iter().take(SHOWN).copied().collect::<Vec<_>>().join(", ");
    match names.len() {
        0 => "nothing".into(),
        n if n > SHOWN => format!("{shown} and {} more", n - SHOWN),
        _ => shown,
    }
}

fn numbers<const N: usize, T>(bytes: &[u8], read: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks::<N>().0.iter().map(|&number| read(number)).collect()
}

/// A file that breaks its format.
pub(super) fn damaged(path: &Path, expected: &str, found: String) -> Error {
    Error::malformed(WHAT, path, expected, found, MAKE_AGAIN)
}
