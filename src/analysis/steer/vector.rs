//! Steering vectors as files: one tensor `vector` `[d]` in safetensors, with where it belongs in the metadata.
//!
//! | metadata | meaning |
//! | --- | --- |
//! | `hook` | the hook point, in TransformerLens' spelling |
//! | `model` | the model it was made with |
//! | `norm` | its length, so that a listing of metadata tells how strong it is |
//! | `method` | how it was made, such as `difference_of_means` |
//!
//! Any other safetensors file serves too: one with a single tensor, or with one named by the hook.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};

use crate::base::artifact::write_atomic;
use crate::base::mapped::MappedBytes;
use crate::base::{Context, Error, Result};
use crate::ops::squared_norm;

const WHAT: &str = "steering vector";
const TENSOR: &str = "vector";

/// Where a vector comes from and belongs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VectorOrigin {
    /// The hook point, as the file spells it.
    pub hook: Option<String>,
    /// The model it was made with.
    pub model: Option<String>,
    /// How it was made.
    pub method: Option<String>,
    /// Whatever else the metadata says.
    pub extra: Vec<(String, String)>,
}

/// A direction to steer along, with its length.
#[derive(Debug, Clone, PartialEq)]
pub struct SteeringVector {
    /// `[d]`
    pub values: Vec<f32>,
    /// Where it comes from and belongs.
    pub origin: VectorOrigin,
}

impl SteeringVector {
    /// Its length.
    pub fn norm(&self) -> f32 {
        squared_norm(&self.values).sqrt()
    }

    /// The same of length one.
    #[must_use]
    pub fn normalized(mut self) -> Self {
        let norm = self.norm();
        if norm > 0.0 {
            self.values.iter_mut().for_each(|x| *x /= norm);
        }
        self
    }

    /// Reads a safetensors file: the tensor named `name` where one is asked for, else `vector`, else the one named as
    /// the metadata's hook, else the only one. Shapes `[d]`, `[1, d]` and the like are vectors.
    ///
    /// # Errors
    /// `Io`; `Malformed` when the file is no safetensors file, or its tensor is no vector; `Unknown` when it has
    /// several tensors and none is the one.
    pub fn read(path: &Path, name: Option<&str>) -> Result<Self> {
        let map = MappedBytes::open(path)?;
        let bad = |found: String| {
            let expected = "a safetensors file with one tensor of one axis";
            Error::malformed(WHAT, path, expected, found, "`steer vector` makes such files; .npy files are read too")
        };
        let (_, header) = safetensors::SafeTensors::read_metadata(&map).map_err(|e| bad(e.to_string()))?;
        let mut metadata: HashMap<String, String> = header.metadata().clone().unwrap_or_default();
        let tensors = safetensors::SafeTensors::deserialize(&map).map_err(|e| bad(e.to_string()))?;
        let names: Vec<&str> = tensors.names();
        let hook = metadata.get("hook").or_else(|| metadata.get("hook_name")).cloned();
        let chosen = match (name, names.as_slice()) {
            (Some(name), _) => names.iter().find(|n| **n == name),
            (None, [only]) => Some(only),
            (None, _) => {
                let known = |wanted: &str| names.iter().find(|name| **name == wanted);
                known(TENSOR).or_else(|| hook.as_deref().and_then(known))
            }
        };
        let chosen = *chosen.ok_or_else(|| Error::Unknown {
            kind: "tensor of the vector file",
            found: name.unwrap_or(TENSOR).into(),
            nearest: names.iter().map(|&name| name.to_owned()).collect(),
        })?;
        let view = tensors.tensor(chosen).map_err(|e| bad(e.to_string()))?;
        let shape = view.shape();
        if shape.iter().filter(|&&n| n != 1).count() > 1 || shape.iter().product::<usize>() == 0 {
            return Err(bad(format!("'{chosen}' of shape {shape:?}")));
        }
        let dtype = DType::try_from(view.dtype()).map_err(|e| bad(e.to_string()))?;
        let values = Tensor::from_raw_buffer(view.data(), dtype, shape, &Device::Cpu)
            .and_then(|t| t.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>())
            .during(|| format!("reading {}", path.display()))?;
        let hook = hook.or_else(|| (chosen != TENSOR && chosen.contains('.')).then(|| chosen.to_owned()));
        for key in ["hook", "hook_name", "norm"] {
            metadata.remove(key);
        }
        let (model, method) = (metadata.remove("model"), metadata.remove("method"));
        let mut extra: Vec<(String, String)> = metadata.into_iter().collect();
        extra.sort();
        Ok(Self { values, origin: VectorOrigin { hook, model, method, extra } })
    }

    /// Writes it.
    ///
    /// # Errors
    /// `Io`.
    pub fn write(&self, path: &Path) -> Result<()> {
        let VectorOrigin { hook, model, method, extra } = &self.origin;
        let named = [("hook", hook), ("model", model), ("method", method)];
        let named = named.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value.clone()?)));
        let norm = ("norm".to_owned(), self.norm().to_string());
        let metadata: HashMap<String, String> = named.chain([norm]).chain(extra.iter().cloned()).collect();
        let tensor = Tensor::from_slice(&self.values, self.values.len(), &Device::Cpu)?;
        let bytes = safetensors::serialize([(TENSOR, &tensor)], Some(metadata));
        let bytes = bytes.map_err(|e| Error::io("write the steering vector", path)(std::io::Error::other(e)))?;
        write_atomic(path, &bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(tensors: &[(&str, Tensor)], metadata: &[(&str, &str)]) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.safetensors");
        let metadata = metadata.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let tensors: Vec<(&str, &Tensor)> = tensors.iter().map(|(name, t)| (*name, t)).collect();
        std::fs::write(&path, safetensors::serialize(tensors, Some(metadata)).unwrap()).unwrap();
        (dir, path)
    }

    fn tensor(values: &[f32]) -> Tensor {
        Tensor::from_slice(values, values.len(), &Device::Cpu).unwrap()
    }

    #[test]
    fn a_vector_returns_from_its_file_with_where_it_belongs() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.safetensors");
        let origin = VectorOrigin {
            hook: Some("blocks.3.hook_resid_post".into()),
            model: Some("m".into()),
            method: Some("difference_of_means".into()),
            extra: vec![("pool".into(), "mean".into())],
        };
        let vector = SteeringVector { values: vec![3.0, 4.0], origin };
        vector.write(&path).unwrap();
        assert_eq!(SteeringVector::read(&path, None).unwrap(), vector);
        assert_eq!((vector.norm(), vector.normalized().values), (5.0, vec![0.6, 0.8]));
    }

    #[test]
    fn files_of_others_are_read_where_it_is_clear_which_tensor_is_meant() {
        let read = |tensors: &[(&str, Tensor)], metadata: &[(&str, &str)], name| {
            let (_dir, path) = stored(tensors, metadata);
            SteeringVector::read(&path, name).map(|v| (v.values, v.origin.hook))
        };
        let row = tensor(&[1.0, 2.0]).unsqueeze(0).unwrap().to_dtype(DType::BF16).unwrap();
        assert_eq!(read(&[("x", row)], &[], None).unwrap(), (vec![1.0, 2.0], None));
        let two = [("blocks.0.hook_resid_post", tensor(&[1.0])), ("b", tensor(&[2.0]))];
        let hook = Some("blocks.0.hook_resid_post".to_owned());
        assert_eq!(read(&two, &[("hook_name", "blocks.0.hook_resid_post")], None).unwrap(), (vec![1.0], hook.clone()));
        assert_eq!(read(&two, &[], Some("blocks.0.hook_resid_post")).unwrap(), (vec![1.0], hook));
        let error = read(&two, &[], None).unwrap_err().to_string();
        assert!(error.contains("blocks.0.hook_resid_post") && error.contains("'vector'"), "{error}");
        let matrix = read(&[("vector", tensor(&[1.0; 6]).reshape((2, 3)).unwrap())], &[], None);
        assert!(matrix.unwrap_err().to_string().contains("[2, 3]"));
    }
}
