//! Named tensors of a checkpoint: safetensors, PyTorch `.bin` or GGUF, in one file or in shards, or tensors already in
//! memory. Names are Hugging Face's, whatever the format. Files are mapped, and a tensor is read when it is asked for.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};

use crate::base::artifact::read_json;
use crate::base::mapped::Mapped;
use crate::base::nearest::nearest;
use crate::base::{Context, Error, Result};
use crate::data::gguf::{Gguf, is_gguf};

mod gguf;
pub(crate) mod pytorch;

use gguf::GgufFile;
use pytorch::PyTorchFile;

const WHAT: &str = "model weights";

/// What a file says about one tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The name under Hugging Face's conventions.
    pub name: String,
    /// The stored number type: `bf16`, `q4_k`.
    pub dtype: String,
    /// The shape under Hugging Face's conventions.
    pub shape: Vec<usize>,
    /// Bytes in the file.
    pub bytes: u64,
}

/// One weight file.
#[derive(Debug)]
enum Shard {
    Safetensors(Mapped),
    PyTorch(PyTorchFile),
    Gguf(GgufFile),
}

impl Shard {
    /// Opens a file of the format that its first bytes show: GGUF, an archive or a pickle of PyTorch, else safetensors.
    fn open(path: &Path) -> Result<Self> {
        Ok(match magic(path)? {
            [b'G', b'G', b'U', b'F'] => Self::Gguf(GgufFile::open(path)?),
            // The pickle is that of the magic number with which torch began its files before 1.6.
            [b'P', b'K', 3, 4] | [0x80, 2, 0x8a, 0x0a] => Self::PyTorch(PyTorchFile::open(path)?),
            _ => Self::Safetensors(Mapped::open(WHAT, path)?),
        })
    }

    fn entries(&self) -> Result<Vec<Entry>> {
        match self {
            Self::Safetensors(file) => {
                let entry = |(name, dtype, shape): (String, safetensors::Dtype, Vec<usize>)| {
                    let bytes = shape.iter().product::<usize>() as u64 * dtype.bitsize() as u64 / 8;
                    Entry { name, dtype: format!("{dtype:?}").to_lowercase(), shape, bytes }
                };
                Ok(file.entries()?.into_iter().map(entry).collect())
            }
            Self::PyTorch(file) => Ok(file.entries()),
            Self::Gguf(file) => Ok(file.entries()),
        }
    }

    /// A copy of a tensor. The pages it was read from do not stay in memory beside it.
    fn tensor(&self, name: &str, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
        let tensor = self.copy(name, shape, dtype, device);
        match self {
            Self::Safetensors(file) => file.release(),
            Self::PyTorch(file) => file.release(),
            Self::Gguf(file) => file.release(),
        }
        tensor
    }

    fn copy(&self, name: &str, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
        match self {
            Self::Safetensors(file) => {
                let found = file.with(name, |view| Ok(view.shape().to_vec()))?;
                if found != shape {
                    return Err(wrong_shape(file.path(), name, shape, &found));
                }
                file.tensor(name, dtype, device)
            }
            Self::PyTorch(file) => file.tensor(name, shape, dtype, device),
            Self::Gguf(file) => file.tensor(name, shape, dtype, device),
        }
    }
}

/// What the headers of weight files say, in the order of the files, without reading weights.
///
/// # Errors
/// When a file cannot be opened or is not whole.
pub fn entries(files: &[PathBuf]) -> Result<Vec<Entry>> {
    let mut all = Vec::new();
    for path in files {
        all.extend(Shard::open(path)?.entries()?);
    }
    Ok(all)
}

/// The model's `config.json`, or its like out of the metadata of a GGUF file.
///
/// # Errors
/// When the file cannot be read, or a GGUF file holds what is not known.
pub fn read_config(path: &Path) -> Result<serde_json::Value> {
    if is_gguf(path) { gguf::config::of(&Gguf::open(path)?) } else { read_json("model configuration", path) }
}

/// Where tensors come from.
#[derive(Debug)]
enum Source {
    Files { shards: Vec<Shard>, index: HashMap<String, usize> },
    Memory(HashMap<String, Tensor>),
}

/// A checkpoint's tensors, converted to one number type on one device when asked for.
#[derive(Debug)]
pub struct Weights {
    source: Source,
    origin: PathBuf,
    dtype: DType,
    device: Device,
}

impl Weights {
    /// Maps the weight files of a checkpoint.
    ///
    /// # Errors
    /// When a file cannot be opened, is not whole, or holds what cannot be read.
    pub fn open(files: &[PathBuf], dtype: DType, device: &Device) -> Result<Self> {
        let mut shards = Vec::new();
        let mut index = HashMap::new();
        for path in files {
            let shard = Shard::open(path)?;
            for entry in shard.entries()? {
                index.insert(entry.name, shards.len());
            }
            shards.push(shard);
        }
        let origin = files.first().cloned().unwrap_or_default();
        Ok(Self { source: Source::Files { shards, index }, origin, dtype, device: device.clone() })
    }

    /// Takes tensors in memory; they keep their gradients if they are variables of the right type.
    pub fn from_tensors(tensors: HashMap<String, Tensor>, dtype: DType, device: &Device) -> Self {
        Self { source: Source::Memory(tensors), origin: "tensors in memory".into(), dtype, device: device.clone() }
    }

    /// The device tensors are put on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The number type tensors are converted to.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The file that errors name.
    pub fn origin(&self) -> &Path {
        &self.origin
    }

    /// Whether the checkpoint has a tensor of that name.
    pub fn contains(&self, name: &str) -> bool {
        match &self.source {
            Source::Files { index, .. } => index.contains_key(name),
            Source::Memory(tensors) => tensors.contains_key(name),
        }
    }

    /// Tensor `name`, which must have `shape`.
    ///
    /// # Errors
    /// `Malformed` when it is absent or has another shape.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        match &self.source {
            Source::Files { shards, index } => match index.get(name) {
                Some(&shard) => shards[shard].tensor(name, shape, self.dtype, &self.device),
                None => Err(self.absent(name, index.keys())),
            },
            Source::Memory(tensors) => match tensors.get(name) {
                Some(tensor) if tensor.dims() != shape => Err(wrong_shape(&self.origin, name, shape, tensor.dims())),
                Some(tensor) => tensor
                    .to_device(&self.device)
                    .and_then(|t| t.to_dtype(self.dtype))
                    .during(|| format!("loading '{name}'")),
                None => Err(self.absent(name, tensors.keys())),
            },
        }
    }

    fn absent<'a>(&self, name: &str, known: impl Iterator<Item = &'a String>) -> Error {
        let mut known: Vec<&String> = known.collect();
        known.sort();
        let near = nearest(name, known, 2);
        Error::malformed(
            WHAT,
            &self.origin,
            format!("a tensor named '{name}'"),
            if near.is_empty() { "no tensors".into() } else { format!("none; the nearest are {}", near.join(", ")) },
            "the checkpoint is incomplete or of another architecture than config.json says; download it again",
        )
    }
}

/// The first bytes of a file, zero where there are none.
fn magic(path: &Path) -> Result<[u8; 4]> {
    use std::io::Read;
    let file = std::fs::File::open(path).map_err(Error::io("open the model weights", path))?;
    let mut start = Vec::with_capacity(4);
    file.take(4).read_to_end(&mut start).map_err(Error::io("read the model weights", path))?;
    start.resize(4, 0);
    Ok(start.try_into().unwrap_or_default())
}

fn wrong_shape(path: &Path, name: &str, expected: &[usize], found: &[usize]) -> Error {
    Error::malformed(
        WHAT,
        path,
        format!("'{name}' with shape {expected:?}"),
        format!("{found:?}"),
        "config.json and the weights belong to different models; download both again",
    )
}
