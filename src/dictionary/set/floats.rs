//! Weights that are read when asked for: numbers in memory, or in a mapped file in the type it stores.

use std::borrow::Cow;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::DType;

use crate::base::mapped::MappedBytes;
use crate::base::{Error, Result};

/// A mapped file of weights, and how many of its bytes were read.
#[derive(Debug)]
pub(crate) struct WeightFile {
    path: PathBuf,
    map: MappedBytes,
    read: AtomicU64,
}

impl WeightFile {
    /// The file at `path`, which `map` maps.
    pub(crate) fn new(path: &Path, map: MappedBytes) -> Arc<Self> {
        Arc::new(Self { path: path.into(), map, read: AtomicU64::new(0) })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of weights that were read so far; what was read twice counts twice.
    pub(crate) fn bytes_read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }
}

/// A tensor's numbers in the order of the file. Copies share them.
#[derive(Debug, Clone)]
pub(crate) struct Floats {
    /// What errors call it.
    name: Arc<str>,
    len: usize,
    store: Store,
}

#[derive(Debug, Clone)]
enum Store {
    Memory(Arc<Vec<f32>>),
    File { file: Arc<WeightFile>, start: usize, number: Number },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Number {
    F64,
    F32,
    F16,
    Bf16,
}

impl Number {
    const fn width(self) -> usize {
        match self {
            Self::F64 => 8,
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

impl Floats {
    /// Numbers in memory.
    pub(crate) fn memory(name: &str, values: Vec<f32>) -> Self {
        Self { name: name.into(), len: values.len(), store: Store::Memory(Arc::new(values)) }
    }

    /// `len` numbers of type `stored` from byte `start` of `file` on; `None` where the type is no float or the file
    /// ends before.
    pub(crate) fn file(name: &str, file: &Arc<WeightFile>, start: usize, stored: DType, len: usize) -> Option<Self> {
        let number = match stored {
            DType::F64 => Number::F64,
            DType::F32 => Number::F32,
            DType::F16 => Number::F16,
            DType::BF16 => Number::Bf16,
            _ => return None,
        };
        let end = len.checked_mul(number.width())?.checked_add(start)?;
        let name = format!("'{name}' of {}", file.path.display()).into();
        (end <= file.map.len()).then(|| Self {
            name,
            len,
            store: Store::File { file: Arc::clone(file), start, number },
        })
    }

    /// The same, called those of a layer where they are in no file.
    pub(super) fn of_layer(self, layer: usize) -> Self {
        match self.store {
            Store::Memory(_) => Self { name: format!("{} of layer {layer}", self.name).into(), ..self },
            Store::File { .. } => self,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The file that they are in.
    pub(crate) fn source(&self) -> Option<&Arc<WeightFile>> {
        match &self.store {
            Store::Memory(_) => None,
            Store::File { file, .. } => Some(file),
        }
    }

    /// Bytes that they take where they are stored.
    pub(crate) fn bytes(&self) -> u64 {
        let width = match &self.store {
            Store::Memory(_) => 4,
            Store::File { number, .. } => number.width(),
        };
        (self.len * width) as u64
    }

    /// The same numbers in memory.
    pub(crate) fn loaded(&self) -> Self {
        let values = self.get(0..self.len).into_owned();
        Self { name: Arc::clone(&self.name), len: self.len, store: Store::Memory(Arc::new(values)) }
    }

    /// All numbers.
    ///
    /// # Errors
    /// `NonFinite`.
    pub(crate) fn whole(&self) -> Result<Cow<'_, [f32]>> {
        let values = self.get(0..self.len);
        self.check(&values)?;
        Ok(values)
    }

    /// Takes the pages of the file out of this process' memory.
    pub(crate) fn release(&self) {
        if let Some(file) = self.source() {
            file.map.release();
        }
    }

    /// Tells the system whether the numbers will be read in order.
    pub(crate) fn expect(&self, in_order: bool) {
        if let Store::File { file, start, .. } = &self.store {
            file.map.expect(*start..*start + self.bytes() as usize, in_order);
        }
    }

    /// All numbers where they can be used in place, counted as `read` of them.
    pub(crate) fn in_place(&self, read: usize) -> Option<&[f32]> {
        match &self.store {
            Store::Memory(values) => Some(values),
            Store::File { file, start, number: Number::F32 } => {
                let values = file.map.as_f32(*start..*start + self.len * 4)?;
                file.read.fetch_add(read as u64 * 4, Ordering::Relaxed);
                Some(values)
            }
            Store::File { .. } => None,
        }
    }

    /// The numbers of `range`, which lies inside of [`Floats::len`].
    pub(crate) fn get(&self, range: Range<usize>) -> Cow<'_, [f32]> {
        let (file, start, number) = match &self.store {
            Store::Memory(values) => return values.get(range).unwrap_or_default().into(),
            Store::File { file, start, number } => (file, start, *number),
        };
        let width = number.width();
        let bytes = start + range.start * width..start + range.end * width;
        file.read.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        if number == Number::F32
            && let Some(values) = file.map.as_f32(bytes.clone())
        {
            return values.into();
        }
        let bytes = file.map.get(bytes).unwrap_or_default();
        match number {
            Number::F64 => numbers(bytes, |b| f64::from_le_bytes(b) as f32),
            Number::F32 => numbers(bytes, f32::from_le_bytes),
            Number::F16 => numbers(bytes, |b| half::f16::from_le_bytes(b).to_f32()),
            Number::Bf16 => numbers(bytes, |b| half::bf16::from_le_bytes(b).to_f32()),
        }
        .into()
    }

    /// Number `i`.
    pub(crate) fn at(&self, i: usize) -> f32 {
        self.get(i..i + 1).first().copied().unwrap_or_default()
    }

    /// Refuses values that are not finite.
    ///
    /// # Errors
    /// `NonFinite`.
    pub(crate) fn check(&self, values: &[f32]) -> Result<()> {
        // A sum of products with zero is NaN as soon as one value is not finite, and needs no branches.
        if values.iter().map(|v| v * 0.0).sum::<f32>() == 0.0 {
            return Ok(());
        }
        Err(Error::NonFinite {
            what: self.name.to_string(),
            count: values.iter().filter(|v| !v.is_finite()).count(),
            at: format!("value {} of what was read", values.iter().position(|v| !v.is_finite()).unwrap_or_default()),
            remedy: "the file is damaged, or the training that made it diverged: use another".into(),
        })
    }
}

fn numbers<const N: usize>(bytes: &[u8], read: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    bytes.as_chunks::<N>().0.iter().map(|&number| read(number)).collect()
}

/// Rows of one width that lie at even distances among the numbers of a tensor.
#[derive(Debug, Clone)]
pub(crate) struct Rows {
    pub(crate) floats: Floats,
    /// Numbers before the first row.
    pub(crate) first: usize,
    /// Numbers from the start of a row to the start of the next.
    pub(crate) stride: usize,
    pub(crate) width: usize,
    pub(crate) count: usize,
}

impl Rows {
    /// The rows of a matrix `[count, width]`.
    pub(crate) fn of_matrix(floats: Floats, width: usize) -> Self {
        let count = floats.len() / width.max(1);
        Self { floats, first: 0, stride: width, width, count }
    }

    /// Row `i`.
    pub(crate) fn row(&self, i: usize) -> Cow<'_, [f32]> {
        let start = self.first + i * self.stride;
        self.floats.get(start..start + self.width)
    }

    /// Rows `rows`, one after the other, `[rows.len(), width]`; nothing else is read.
    ///
    /// # Errors
    /// `NonFinite`.
    pub(crate) fn gather(&self, rows: &[u32]) -> Result<Vec<f32>> {
        let mut out = Vec::with_capacity(rows.len() * self.width);
        for &row in rows {
            out.extend_from_slice(&self.row(row as usize));
        }
        self.floats.check(&out)?;
        Ok(out)
    }

    /// The same rows in memory, and nothing between them.
    pub(crate) fn loaded(&self) -> Self {
        let values: Vec<f32> = (0..self.count).flat_map(|row| self.row(row).into_owned()).collect();
        Self::of_matrix(Floats::memory(&self.floats.name, values), self.width)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers that bf16 and f16 hold exactly, as a file of one type after `skip` other bytes.
    fn stored(dir: &Path, dtype: DType, skip: usize) -> Floats {
        let values: Vec<f32> = (0..24u8).map(|i| f32::from(i) - 3.5).collect();
        let bytes = |v: &f32| match dtype {
            DType::F64 => f64::from(*v).to_le_bytes().to_vec(),
            DType::F16 => half::f16::from_f32(*v).to_le_bytes().to_vec(),
            DType::BF16 => half::bf16::from_f32(*v).to_le_bytes().to_vec(),
            _ => v.to_le_bytes().to_vec(),
        };
        let path = dir.join(format!("{dtype:?}{skip}"));
        let contents: Vec<u8> = vec![0xFF; skip].into_iter().chain(values.iter().flat_map(bytes)).collect();
        std::fs::write(&path, contents).unwrap();
        let file = WeightFile::new(&path, MappedBytes::open(&path).unwrap());
        assert!(Floats::file("w", &file, skip, dtype, 25).is_none(), "the file ends before");
        Floats::file("w", &file, skip, dtype, 24).unwrap()
    }

    #[test]
    fn all_float_types_read_the_same_rows_and_only_them() {
        let dir = tempfile::tempdir().unwrap();
        for dtype in [DType::F32, DType::F64, DType::F16, DType::BF16] {
            for skip in [0, 3, 8] {
                let floats = stored(dir.path(), dtype, skip);
                let rows = Rows { floats: floats.clone(), first: 2, stride: 6, width: 3, count: 4 };
                assert_eq!(rows.gather(&[3, 1]).unwrap(), [16.5, 17.5, 18.5, 4.5, 5.5, 6.5], "{dtype:?} {skip}");
                let file = floats.source().unwrap();
                assert_eq!(file.bytes_read(), 6 * dtype.size_in_bytes() as u64, "{dtype:?} {skip}");
                assert_eq!(floats.in_place(1).is_some(), dtype == DType::F32 && skip != 3);
                let loaded = rows.loaded();
                assert_eq!(loaded.gather(&[3, 1]).unwrap(), rows.gather(&[3, 1]).unwrap());
                assert!(loaded.floats.source().is_none() && floats.loaded().at(23) == 19.5);
            }
        }
    }

    #[test]
    fn values_that_are_not_finite_are_refused() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let rows = Rows::of_matrix(Floats::memory("W_dec", vec![1.0, 2.0, bad, 4.0]), 2);
            assert!(rows.gather(&[0]).is_ok());
            let error = rows.gather(&[0, 1]).unwrap_err().to_string();
            assert!(error.contains("W_dec") && error.contains("value 2"), "{error}");
        }
        assert!(Floats::memory("w", vec![f32::MAX, f32::MIN]).check(&[f32::MAX, f32::MIN]).is_ok());
    }
}
