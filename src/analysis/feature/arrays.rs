//! Named arrays of one safetensors file, written once and read in place, a row or a range at a time.

use std::collections::BTreeMap;
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::base::mapped::MappedBytes;
use crate::base::{Error, Result};

const WHAT: &str = "feature index";
pub(super) const MAKE_AGAIN: &str = "make the index again with `features --out`";

/// A number that arrays hold.
pub(super) trait Number: Copy {
    const DTYPE: Dtype;
    const BYTES: usize;

    fn write(self, to: &mut Vec<u8>);
    /// `bytes` are `Self::BYTES` many.
    fn read(bytes: &[u8]) -> Self;
}

macro_rules! numbers {
    ($($type:ty => $dtype:ident),+) => {
        $(impl Number for $type {
            const DTYPE: Dtype = Dtype::$dtype;
            const BYTES: usize = size_of::<$type>();

            fn write(self, to: &mut Vec<u8>) {
                to.extend_from_slice(&self.to_le_bytes());
            }

            fn read(bytes: &[u8]) -> Self {
                bytes.try_into().map_or_else(|_| Default::default(), <$type>::from_le_bytes)
            }
        })+
    };
}

numbers!(u8 => U8, u32 => U32, u64 => U64, f32 => F32, f64 => F64);

/// Arrays that are being collected.
#[derive(Debug, Default)]
pub(super) struct ArraysWriter {
    arrays: Vec<(&'static str, Dtype, Vec<usize>, Vec<u8>)>,
}

impl ArraysWriter {
    /// Adds `name` with rows of `columns` numbers, or without rows when there is a single column.
    pub(super) fn add<T: Number>(&mut self, name: &'static str, columns: usize, values: impl IntoIterator<Item = T>) {
        let mut bytes = Vec::new();
        values.into_iter().for_each(|value| value.write(&mut bytes));
        let n = bytes.len() / T::BYTES;
        let shape = if columns == 1 { vec![n] } else { vec![n / columns.max(1), columns] };
        self.arrays.push((name, T::DTYPE, shape, bytes));
    }

    /// The file.
    ///
    /// # Errors
    /// `Io` when the arrays cannot be serialised.
    pub(super) fn finish(self, path: &Path) -> Result<Vec<u8>> {
        let failed = |e: safetensors::SafeTensorError| Error::Io {
            action: "serialise the feature index",
            path: path.into(),
            source: std::io::Error::other(e),
        };
        let views = self
            .arrays
            .iter()
            .map(|(name, dtype, shape, bytes)| Ok((*name, TensorView::new(*dtype, shape.clone(), bytes)?)))
            .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()
            .map_err(failed)?;
        safetensors::serialize(views, None).map_err(failed)
    }
}

enum Bytes {
    Mapped(MappedBytes),
    Owned(Vec<u8>),
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(bytes) => bytes,
            Self::Owned(bytes) => bytes,
        }
    }
}

struct Entry {
    dtype: Dtype,
    columns: usize,
    place: Range<usize>,
}

/// Arrays of a file on disk or in memory.
pub(super) struct Arrays {
    path: PathBuf,
    bytes: Bytes,
    entries: BTreeMap<String, Entry>,
}

impl Arrays {
    /// Maps the file at `path`.
    ///
    /// # Errors
    /// `Io` when it cannot be opened, `Malformed` when it is no whole safetensors file.
    pub(super) fn open(path: &Path) -> Result<Self> {
        Self::parse(path, Bytes::Mapped(MappedBytes::open(path)?))
    }

    /// Takes a file that is in memory; `path` names it in errors.
    ///
    /// # Errors
    /// `Malformed` when it is no whole safetensors file.
    pub(super) fn in_memory(path: &Path, bytes: Vec<u8>) -> Result<Self> {
        Self::parse(path, Bytes::Owned(bytes))
    }

    fn parse(path: &Path, bytes: Bytes) -> Result<Self> {
        let mut entries = BTreeMap::new();
        let start = bytes.as_ptr() as usize;
        let tensors = SafeTensors::deserialize(&bytes).map_err(|e| {
            Error::malformed(WHAT, path, "a whole safetensors file", format!("{} bytes ({e})", bytes.len()), MAKE_AGAIN)
        })?;
        for (name, tensor) in tensors.iter() {
            let first = tensor.data().as_ptr() as usize - start;
            let columns = tensor.shape().get(1..).unwrap_or_default().iter().product();
            let entry = Entry { dtype: tensor.dtype(), columns, place: first..first + tensor.data().len() };
            entries.insert(name.to_owned(), entry);
        }
        Ok(Self { path: path.into(), bytes, entries })
    }

    /// Whether there is an array `name`.
    pub(super) fn has(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// The array `name` of numbers of type `T`.
    ///
    /// # Errors
    /// `Malformed` when it is absent or holds other numbers.
    pub(super) fn get<T: Number>(&self, name: &str) -> Result<Array<'_, T>> {
        let Some(entry) = self.entries.get(name).filter(|entry| entry.dtype == T::DTYPE) else {
            let found = self.entries.get(name).map_or_else(|| "none".to_owned(), |entry| format!("{:?}", entry.dtype));
            return Err(self.malformed(format!("'{name}' of {:?}", T::DTYPE), found));
        };
        let bytes = self.bytes.get(entry.place.clone()).unwrap_or_default();
        Ok(Array { of: self, name: name.to_owned(), columns: entry.columns, bytes, number: std::marker::PhantomData })
    }

    /// An error about the contents.
    pub(super) fn malformed(&self, expected: String, found: String) -> Error {
        Error::malformed(WHAT, &self.path, expected, found, MAKE_AGAIN)
    }
}

impl std::fmt::Debug for Arrays {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Arrays").field("path", &self.path).field("arrays", &self.entries.len()).finish_non_exhaustive()
    }
}

/// One array, read where it lies.
pub(super) struct Array<'a, T> {
    of: &'a Arrays,
    name: String,
    columns: usize,
    bytes: &'a [u8],
    number: std::marker::PhantomData<T>,
}

impl<'a, T: Number> Array<'a, T> {
    /// Numbers in it.
    pub(super) fn len(&self) -> usize {
        self.bytes.len() / T::BYTES
    }

    /// Numbers in a row.
    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    /// Checks that it has `n` numbers.
    ///
    /// # Errors
    /// `Malformed` when it has not.
    pub(super) fn of_length(self, n: usize) -> Result<Self> {
        if self.len() == n {
            return Ok(self);
        }
        Err(self.of.malformed(format!("{n} numbers of '{}'", self.name), self.len().to_string()))
    }

    /// All numbers.
    pub(super) fn iter(&self) -> impl ExactSizeIterator<Item = T> + use<'a, T> {
        self.bytes.chunks_exact(T::BYTES).map(T::read)
    }

    /// The numbers of `range`.
    ///
    /// # Errors
    /// `Malformed` when they end outside the array.
    pub(super) fn range(&self, range: Range<usize>) -> Result<impl ExactSizeIterator<Item = T> + use<'a, T>> {
        let place = range.start.saturating_mul(T::BYTES)..range.end.saturating_mul(T::BYTES);
        match self.bytes.get(place) {
            Some(bytes) => Ok(bytes.chunks_exact(T::BYTES).map(T::read)),
            None => Err(self.of.malformed(format!("numbers {range:?} of '{}'", self.name), self.len().to_string())),
        }
    }

    /// The numbers of row `row`.
    ///
    /// # Errors
    /// `Malformed` when there is no such row.
    pub(super) fn row(&self, row: usize) -> Result<impl ExactSizeIterator<Item = T> + use<'a, T>> {
        self.range(row * self.columns..(row + 1) * self.columns)
    }

    /// The number at `i`.
    ///
    /// # Errors
    /// `Malformed` when there is none.
    pub(super) fn at(&self, i: usize) -> Result<T> {
        self.bytes
            .get(i.saturating_mul(T::BYTES)..i.saturating_add(1).saturating_mul(T::BYTES))
            .map(T::read)
            .ok_or_else(|| self.of.malformed(format!("number {i} of '{}'", self.name), self.len().to_string()))
    }
}

impl<'a> Array<'a, u8> {
    /// All bytes.
    pub(super) fn bytes(&self) -> &'a [u8] {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_read_back_and_what_is_missing_is_named() {
        let mut writer = ArraysWriter::default();
        writer.add("a", 1, [1u64, 2, 3]);
        writer.add("b", 2, [0.5f32, 1.5, 2.5, 3.5]);
        writer.add("text", 1, *b"abc");
        let path = Path::new("some/index.safetensors");
        let bytes = writer.finish(path).unwrap();
        let arrays = Arrays::in_memory(path, bytes.clone()).unwrap();
        assert_eq!(arrays.get::<u64>("a").unwrap().iter().collect::<Vec<_>>(), [1, 2, 3]);
        let b = arrays.get::<f32>("b").unwrap();
        assert_eq!((b.columns(), b.row(1).unwrap().collect::<Vec<_>>()), (2, vec![2.5, 3.5]));
        assert_eq!(arrays.get::<u8>("text").unwrap().bytes(), b"abc");
        assert!(arrays.has("a") && !arrays.has("c"));
        for error in [
            arrays.get::<u32>("a").err(),
            arrays.get::<u32>("c").err(),
            b.row(2).err(),
            b.at(4).err(),
            arrays.get::<f32>("b").unwrap().of_length(5).err(),
        ] {
            let error = error.unwrap().to_string();
            assert!(error.contains("some/index.safetensors") && error.contains("features --out"), "{error}");
        }
        assert!(Arrays::in_memory(path, bytes[..bytes.len() - 1].to_vec()).is_err());
    }
}
