//! Named tensors of a checkpoint: one safetensors file, shards, or tensors already in memory.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};

use crate::base::mapped::Mapped;
use crate::base::nearest::nearest;
use crate::base::{Context, Error, Result};

/// Where tensors come from.
#[derive(Debug)]
enum Source {
    Files { shards: Vec<Mapped>, index: HashMap<String, usize> },
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
    /// Maps the safetensors files of a checkpoint.
    ///
    /// # Errors
    /// When a file cannot be opened or is no whole safetensors file.
    pub fn open(files: &[PathBuf], dtype: DType, device: &Device) -> Result<Self> {
        let mut shards = Vec::new();
        let mut index = HashMap::new();
        for path in files {
            let shard = Mapped::open("model weights", path)?;
            for (name, _, _) in shard.entries()? {
                index.insert(name, shards.len());
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
        let tensor = match &self.source {
            Source::Files { shards, index } => match index.get(name) {
                Some(&shard) => shards[shard].tensor(name, self.dtype, &self.device)?,
                None => return Err(self.absent(name, index.keys())),
            },
            Source::Memory(tensors) => match tensors.get(name) {
                Some(tensor) => tensor
                    .to_device(&self.device)
                    .and_then(|t| t.to_dtype(self.dtype))
                    .during(|| format!("loading '{name}'"))?,
                None => return Err(self.absent(name, tensors.keys())),
            },
        };
        if tensor.dims() == shape {
            return Ok(tensor);
        }
        Err(Error::malformed(
            "model weights",
            &self.origin,
            format!("'{name}' with shape {shape:?}"),
            format!("{:?}", tensor.dims()),
            "config.json and the weights belong to different models; download both again",
        ))
    }

    fn absent<'a>(&self, name: &str, known: impl Iterator<Item = &'a String>) -> Error {
        let mut known: Vec<&String> = known.collect();
        known.sort();
        let near = nearest(name, known, 2);
        Error::malformed(
            "model weights",
            &self.origin,
            format!("a tensor named '{name}'"),
            if near.is_empty() { "no tensors".into() } else { format!("none; the nearest are {}", near.join(", ")) },
            "the checkpoint is incomplete or of another architecture than config.json says; download it again",
        )
    }
}
