//! Memory-mapped files: any file as bytes, and safetensors files whose header is checked at opening and whose tensors
//! are read from the page cache when asked for.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use memmap2::Mmap;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use super::error::{Error, Result};

/// The bytes of one file, read from the page cache when touched.
#[derive(Debug)]
pub struct MappedBytes(Mmap);

impl MappedBytes {
    /// Maps `path`.
    ///
    /// # Errors
    /// `Io` when it cannot be opened or mapped.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io("open the file", path))?;
        #[expect(unsafe_code, reason = "memory mapping; see the invariant below")]
        // SAFETY: the mapping is read-only and private to this struct. Files under it are weights, caches and
        // dictionaries that their writers replace by renaming, never by writing in place; a truncation by a third
        // party would raise SIGBUS, which is the accepted cost of not copying gigabytes.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io("map the file", path))?;
        Ok(Self(map))
    }

    /// The bytes of `range` as numbers in place; `None` where they lie outside of the file, are not aligned as numbers
    /// must be, or the machine has the other byte order.
    pub fn as_f32(&self, range: Range<usize>) -> Option<&[f32]> {
        let bytes = self.get(range)?;
        #[expect(unsafe_code, reason = "numbers in place; see the invariant below")]
        // SAFETY: any four bytes are an f32, and `align_to` gives as the middle only what is aligned; it lives as long
        // as the mapping that it is borrowed from.
        let (before, numbers, after) = unsafe { bytes.align_to::<f32>() };
        (cfg!(target_endian = "little") && before.is_empty() && after.is_empty()).then_some(numbers)
    }

    /// Tells the system in which order the bytes of `range` will be read: in their own, so that it reads ahead, or in
    /// none, so that it reads nothing else.
    pub fn expect(&self, range: Range<usize>, in_order: bool) {
        #[cfg(unix)]
        {
            let advice = if in_order { memmap2::Advice::Sequential } else { memmap2::Advice::Random };
            // A refusal only means that it reads as before.
            let _refused = self.0.advise_range(advice, range.start, range.len());
        }
    }

    /// Takes the file's pages out of this process' memory, for callers that have copied what they need. The bytes stay
    /// readable: they come back from the page cache when touched.
    pub fn release(&self) {
        #[cfg(unix)]
        #[expect(unsafe_code, reason = "memory advice; see the invariant below")]
        // SAFETY: the mapping is of a file and read-only, so dropped pages are read again unchanged; nothing is lost.
        // A refusal only means that the pages stay.
        let _refused = unsafe { self.0.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, 0, self.0.len()) };
    }
}

impl std::ops::Deref for MappedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

/// One open safetensors file.
#[derive(Debug)]
pub struct Mapped {
    path: PathBuf,
    what: &'static str,
    map: MappedBytes,
}

impl Mapped {
    /// Maps `path` and checks its header. `what` names the file in errors: "model weights".
    ///
    /// # Errors
    /// `Io` when it cannot be opened, `Malformed` when it is no safetensors file or is cut off.
    pub fn open(what: &'static str, path: &Path) -> Result<Self> {
        let map = MappedBytes::open(path)?;
        let mapped = Self { path: path.into(), what, map };
        mapped.view()?;
        Ok(mapped)
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file's bytes, for callers that have [located](Mapped::locate) what they want.
    pub fn into_bytes(self) -> MappedBytes {
        self.map
    }

    fn view(&self) -> Result<SafeTensors<'_>> {
        SafeTensors::deserialize(&self.map).map_err(|e| {
            Error::malformed(
                self.what,
                &self.path,
                "a whole safetensors file",
                format!("{} bytes that do not parse ({e})", self.map.len()),
                "the file is truncated or corrupt: download or make it again",
            )
        })
    }

    /// Names, number types and shapes of all tensors, sorted by name.
    ///
    /// # Errors
    /// `Malformed` when the header no longer parses.
    pub fn entries(&self) -> Result<Vec<(String, Dtype, Vec<usize>)>> {
        let view = self.view()?;
        let mut entries: Vec<_> =
            view.iter().map(|(name, t)| (name.to_owned(), t.dtype(), t.shape().to_vec())).collect();
        entries.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(entries)
    }

    /// Runs `f` on the raw view of tensor `name`.
    ///
    /// # Errors
    /// `Malformed` when the tensor is absent, or whatever `f` returns.
    pub fn with<T>(&self, name: &str, f: impl FnOnce(&TensorView<'_>) -> Result<T>) -> Result<T> {
        let view = self.view()?;
        let tensor = view.tensor(name).map_err(|_| {
            Error::malformed(
                self.what,
                &self.path,
                format!("a tensor named '{name}'"),
                format!("{} other tensors", view.len()),
                "the file belongs to another model or format, or was written incompletely",
            )
        })?;
        f(&tensor)
    }

    /// The raw bytes of tensor `name`, little-endian.
    ///
    /// # Errors
    /// As [`Mapped::with`]; also `Malformed` when dtype or shape differ from `dtype` and `shape`.
    pub fn bytes(&self, name: &str, dtype: Dtype, shape: &[usize]) -> Result<&[u8]> {
        Ok(self.at(self.locate(name, dtype, shape)?))
    }

    /// Where in the file the bytes of tensor `name` are, for callers that read it many times with [`Mapped::at`].
    ///
    /// # Errors
    /// As [`Mapped::bytes`].
    pub fn locate(&self, name: &str, dtype: Dtype, shape: &[usize]) -> Result<Range<usize>> {
        let view = self.view()?;
        let tensor = view.tensor(name).map_err(|_| self.absent(name))?;
        if tensor.dtype() != dtype || tensor.shape() != shape {
            return Err(Error::malformed(
                self.what,
                &self.path,
                format!("'{name}' as {dtype:?} {shape:?}"),
                format!("{:?} {:?}", tensor.dtype(), tensor.shape()),
                "the file belongs to another model or was edited; make it again",
            ));
        }
        let data = tensor.data();
        let start = data.as_ptr() as usize - self.map.as_ptr() as usize;
        Ok(start..start + data.len())
    }

    /// The bytes at a place that [`Mapped::locate`] gave, or at a part of one; nothing outside the file.
    pub fn at(&self, range: Range<usize>) -> &[u8] {
        self.map.get(range).unwrap_or_default()
    }

    /// As [`MappedBytes::release`].
    pub fn release(&self) {
        self.map.release();
    }

    /// Bytes in the file.
    pub fn file_len(&self) -> u64 {
        self.map.len() as u64
    }

    /// Tensor `name` copied to `device` as `dtype`.
    ///
    /// # Errors
    /// `Malformed` when it is absent or of a number type that is no float or integer candle knows.
    pub fn tensor(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        self.with(name, |view| {
            let stored = match view.dtype() {
                Dtype::F64 => DType::F64,
                Dtype::F32 => DType::F32,
                Dtype::F16 => DType::F16,
                Dtype::BF16 => DType::BF16,
                Dtype::U32 => DType::U32,
                Dtype::I64 => DType::I64,
                Dtype::U8 => DType::U8,
                other => {
                    return Err(Error::malformed(
                        self.what,
                        &self.path,
                        format!("'{name}' in a float or integer type"),
                        format!("{other:?}"),
                        "convert the file to float32, float16 or bfloat16",
                    ));
                }
            };
            let tensor = Tensor::from_raw_buffer(view.data(), stored, view.shape(), device)?;
            Ok(tensor.to_dtype(dtype)?)
        })
    }

    fn absent(&self, name: &str) -> Error {
        Error::malformed(
            self.what,
            &self.path,
            format!("a tensor named '{name}'"),
            "no such tensor",
            "the file belongs to another model or format, or was written incompletely",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_truncated_file_is_an_error_and_a_whole_one_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        let tensor = Tensor::new(&[[1f32, 2.], [3., 4.]], &Device::Cpu).unwrap();
        candle_core::safetensors::save(&std::collections::HashMap::from([("a", tensor)]), &path).unwrap();
        let mapped = Mapped::open("test file", &path).unwrap();
        let back = mapped.tensor("a", DType::F32, &Device::Cpu).unwrap();
        assert_eq!(back.to_vec2::<f32>().unwrap(), [[1., 2.], [3., 4.]]);
        mapped.release();
        let again = mapped.tensor("a", DType::F32, &Device::Cpu).unwrap();
        assert_eq!(again.to_vec2::<f32>().unwrap(), [[1., 2.], [3., 4.]]);
        assert!(mapped.tensor("b", DType::F32, &Device::Cpu).unwrap_err().to_string().contains("'b'"));
        let whole = std::fs::read(&path).unwrap();
        for cut in [0, 4, 20, whole.len() - 1] {
            std::fs::write(&path, &whole[..cut]).unwrap();
            assert!(Mapped::open("test file", &path).is_err(), "cut at {cut}");
        }
    }
}
