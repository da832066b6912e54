//! Running the model on reconstructions: an edit that replaces values by what the dictionary makes of them.

use std::fmt;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use crate::base::{Context, Result};
use crate::dictionary::Dictionary;
use crate::model::Rewrite;

/// Replaces rows by their reconstructions, without the error term. Positions that do not count keep their values, as
/// SAELens' mask of special tokens does it.
pub(super) struct Splice {
    pub(super) dictionary: Arc<Dictionary>,
    /// Which positions of the batch to replace, `[sequences · positions]`.
    pub(super) kept: Vec<bool>,
}

impl fmt::Debug for Splice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.describe())
    }
}

impl Rewrite for Splice {
    fn width(&self) -> usize {
        self.dictionary.d_in()
    }

    fn describe(&self) -> String {
        format!("reconstruct with {}", self.dictionary)
    }

    fn rewrite(&self, x: &Tensor) -> Result<Tensor> {
        let reading = || self.describe();
        let (n, d) = x.dims2().during(reading)?;
        let host = x.to_device(&Device::Cpu).and_then(|x| x.to_dtype(DType::F32)).during(reading)?;
        let mut values = host.flatten_all().and_then(|x| x.to_vec1::<f32>()).during(reading)?;
        // A position has several rows where the site has heads and the dictionary encodes one of them.
        let rows_per_position = n / self.kept.len().max(1);
        let kept = |row: usize| self.kept[row / rows_per_position.max(1)];
        let rows: Vec<f32> =
            values.chunks_exact(d).enumerate().filter(|(i, _)| kept(*i)).flat_map(|(_, row)| row.to_vec()).collect();
        let reconstructed = self.dictionary.reconstruct(&rows)?;
        let places = values.chunks_exact_mut(d).enumerate().filter(|(i, _)| kept(*i));
        for ((_, row), new) in places.zip(reconstructed.chunks_exact(d)) {
            row.copy_from_slice(new);
        }
        let made = Tensor::from_vec(values, (n, d), x.device()).and_then(|t| t.to_dtype(x.dtype()));
        made.during(reading)
    }
}
