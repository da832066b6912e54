//! Named float tensors in and out of safetensors files.

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device};
use safetensors::tensor::{Dtype, TensorView};

use super::{CONFIG_FILE, MAKE_AGAIN, WEIGHTS, check_finite};
use crate::base::artifact::write_atomic;
use crate::base::mapped::{Mapped, MappedBytes};
use crate::base::{Error, Result};
use crate::dictionary::set::{Floats, WeightFile};

/// A weights file that hands out its tensors by name and remembers which were asked for.
pub(super) struct Weights {
    file: Mapped,
    entries: Vec<(String, Dtype, Vec<usize>)>,
    read: Vec<String>,
    /// The file of the tensors that stay in it.
    lazy: Option<Arc<WeightFile>>,
}

impl Weights {
    /// Opens `path` and checks its header.
    ///
    /// # Errors
    /// `Io` or `Malformed` when it is no whole safetensors file.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = Mapped::open(WEIGHTS, path)?;
        let entries = file.entries()?;
        Ok(Self { file, entries, read: Vec::new(), lazy: None })
    }

    /// Whether there is a tensor `name`.
    pub(super) fn has(&self, name: &str) -> bool {
        self.entries.iter().any(|(found, ..)| found == name)
    }

    /// The values of `name`, which must have `shape`, as f32.
    ///
    /// # Errors
    /// `Malformed` when it is absent, misshapen, or not of a float type; `NonFinite`.
    pub(super) fn read(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        self.check(name, shape)?;
        let values = self.file.tensor(name, DType::F32, &Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?;
        check_finite(name, &values, self.file.path())?;
        self.read.push(name.to_owned());
        Ok(values)
    }

    /// The values of `name`, which must have `shape`, left in the file until they are asked for.
    ///
    /// # Errors
    /// `Malformed` when it is absent, misshapen, or not of a float type.
    pub(super) fn floats(&mut self, name: &str, shape: &[usize]) -> Result<Floats> {
        let dtype = self.check(name, shape)?;
        let stored = match dtype {
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            Dtype::F64 => DType::F64,
            _ => DType::F32,
        };
        let start = self.file.locate(name, dtype, shape)?.start;
        let file = match &self.lazy {
            Some(file) => Arc::clone(file),
            None => WeightFile::new(self.file.path(), MappedBytes::open(self.file.path())?),
        };
        let floats = Floats::file(name, &file, start, stored, shape.iter().product());
        self.lazy = Some(file);
        self.read.push(name.to_owned());
        floats.ok_or_else(|| self.wrong(format!("'{name}' inside of the file"), "less".into(), MAKE_AGAIN.into()))
    }

    /// The number type of `name`, which must have `shape`; of an absent tensor what it should be.
    fn check(&self, name: &str, shape: &[usize]) -> Result<Dtype> {
        let Some((_, dtype, found)) = self.entries.iter().find(|(found, ..)| found == name) else {
            return Ok(Dtype::F32);
        };
        if found != shape {
            return Err(self.wrong(
                format!("'{name}' as {shape:?}, from {CONFIG_FILE}"),
                format!("{found:?}"),
                format!("the weights and {CONFIG_FILE} belong to different dictionaries; {MAKE_AGAIN}"),
            ));
        }
        if !matches!(dtype, Dtype::F16 | Dtype::BF16 | Dtype::F32 | Dtype::F64) {
            return Err(self.wrong(
                format!("'{name}' in float16, bfloat16, float32 or float64"),
                format!("{dtype:?}"),
                "store the weights as floats".into(),
            ));
        }
        Ok(*dtype)
    }

    /// Checks that nothing was left unread: a tensor that nobody asked for means another architecture.
    ///
    /// # Errors
    /// `Malformed`, naming the tensors.
    pub(super) fn finish(self, architecture: &str) -> Result<()> {
        let unread =
            self.entries.iter().map(|(name, ..)| name.as_str()).filter(|name| !self.read.iter().any(|r| r == name));
        let extra: Vec<&str> = unread.collect();
        if extra.is_empty() {
            return Ok(());
        }
        Err(self.wrong(
            format!("the tensors of architecture '{architecture}': {}", self.read.join(", ")),
            format!("also {}", extra.join(", ")),
            format!("the file belongs to another architecture, or {CONFIG_FILE} was edited"),
        ))
    }

    fn wrong(&self, expected: String, found: String, remedy: String) -> Error {
        Error::malformed(WEIGHTS, self.file.path(), expected, found, remedy)
    }
}

/// The values of one tensor to be written.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Values<'a> {
    /// Floats.
    F32(&'a [f32]),
    /// Counts.
    U32(&'a [u32]),
    /// Bytes of text.
    U8(&'a [u8]),
}

impl Values<'_> {
    fn dtype(self) -> Dtype {
        match self {
            Self::F32(_) => Dtype::F32,
            Self::U32(_) => Dtype::U32,
            Self::U8(_) => Dtype::U8,
        }
    }

    fn bytes(self) -> Cow<'static, [u8]> {
        match self {
            Self::F32(values) => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Self::U32(values) => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Self::U8(values) => values.to_vec().into(),
        }
    }
}

/// Writes named tensors as one safetensors file, atomically.
///
/// # Errors
/// `Io` when the file cannot be written.
pub(crate) fn write_tensors(path: &Path, tensors: &[(impl AsRef<str>, Vec<usize>, Values)]) -> Result<()> {
    let failed = |e: safetensors::SafeTensorError| Error::Io {
        action: "serialise tensors",
        path: path.into(),
        source: std::io::Error::other(e),
    };
    let bytes: Vec<Cow<[u8]>> = tensors.iter().map(|(_, _, values)| values.bytes()).collect();
    let views = tensors
        .iter()
        .zip(&bytes)
        .map(|((name, shape, values), bytes)| {
            Ok((name.as_ref(), TensorView::new(values.dtype(), shape.clone(), bytes)?))
        })
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()
        .map_err(failed)?;
    let file = safetensors::serialize(views, None).map_err(failed)?;
    write_atomic(path, &file)
}
