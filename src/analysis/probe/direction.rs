//! A direction in activation space in a file of its own: what `steer --vector` adds and a monitor watches.
//!
//! A steering vector as `steer` reads and writes them: a safetensors file with the one tensor `vector` `[d]` in f32 and
//! strings beside it in the header. `hook`, `model`, `norm` and `method` are those of every such vector. `kind` is
//! `probe`; `position`, `labels` (JSON), `label`, `bias`, `threshold` and `accuracy` say what it was found on and how to
//! read with it: `vector · x + bias` is above zero, which is `vector · x > threshold`, where `x` is of `label`.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::json;

use super::fit::Method;
use super::pool::Position;
use crate::base::Result;
use crate::base::artifact::write_atomic;
use crate::ops::squared_norm;

/// The tensor's name.
pub const TENSOR: &str = "vector";

/// What a probe's direction is about.
#[derive(Debug, Clone, PartialEq)]
pub struct DirectionSource {
    /// The model, as it was named.
    pub model_name: String,
    /// Where the direction lives.
    pub hook_name: String,
    /// How it was found.
    pub method: Method,
    /// Which positions it was found on.
    pub position: Position,
    /// All classes.
    pub classes: Vec<String>,
    /// The class that it points to.
    pub label: String,
    /// On held-out texts.
    pub accuracy: f64,
}

/// A probe's direction.
#[derive(Debug, Clone, PartialEq)]
pub struct Direction {
    /// `[d]`, in the units of activations.
    pub values: Vec<f32>,
    /// What to add to `direction · x`.
    pub bias: f64,
    /// What it is about.
    pub source: DirectionSource,
}

impl Direction {
    /// Writes it into the file `path`, the same bytes for the same direction.
    ///
    /// # Errors
    /// `Io` when the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let Self { values, bias, source } = self;
        let DirectionSource { model_name, hook_name, method, position, classes, label, accuracy } = source;
        let metadata: BTreeMap<&str, String> = BTreeMap::from([
            ("accuracy", accuracy.to_string()),
            ("bias", bias.to_string()),
            ("hook", hook_name.clone()),
            ("kind", "probe".into()),
            ("label", label.clone()),
            ("labels", json!(classes).to_string()),
            ("method", method.name().into()),
            ("model", model_name.clone()),
            ("norm", squared_norm(values).sqrt().to_string()),
            ("position", position.name().into()),
            ("threshold", (-bias).to_string()),
        ]);
        let offsets = [0, 4 * values.len()];
        let header = json!({
            "__metadata__": metadata,
            (TENSOR): {"dtype": "F32", "shape": [values.len()], "data_offsets": offsets},
        });
        // The library's own writer orders metadata by chance.
        let mut header = header.to_string();
        header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend(values.iter().flat_map(|x| x.to_le_bytes()));
        write_atomic(path, &bytes)
    }
}

#[cfg(test)]
mod tests {
    use safetensors::SafeTensors;

    use super::*;

    #[test]
    fn any_reader_of_safetensors_understands_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let direction = Direction {
            values: vec![0.5, -1.25, 3.0],
            bias: -0.125,
            source: DirectionSource {
                model_name: "demo".into(),
                hook_name: "blocks.1.hook_resid_post".into(),
                method: Method::DifferenceOfMeans,
                position: Position::Last,
                classes: vec!["a \"b\"".into(), "ü".into()],
                label: "ü".into(),
                accuracy: 0.75,
            },
        };
        let path = dir.path().join("d.safetensors");
        direction.write(&path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let metadata = header.metadata().as_ref().unwrap();
        assert_eq!(metadata["hook"], "blocks.1.hook_resid_post");
        assert_eq!((&*metadata["kind"], &*metadata["label"], &*metadata["threshold"]), ("probe", "ü", "0.125"));
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let tensor = file.tensor(TENSOR).unwrap();
        assert_eq!((tensor.shape(), file.len()), (&[3][..], 1));
        assert_eq!(tensor.data()[..4], 0.5f32.to_le_bytes());
    }
}
