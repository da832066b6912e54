//! What a set makes of its codes.

use rayon::prelude::*;

use super::TranscoderSet;
use crate::base::{Error, Result};
use crate::dictionary::SparseCodes;
use crate::ops::sparse;

/// Rows that one decoding task handles.
const TASK_ROWS: usize = 32;

impl TranscoderSet {
    /// The reconstruction of every layer, each `[n, d]`: what its own and, across layers, all earlier features
    /// contribute, `b_dec`, and the linear connection of `inputs`, each `[n, d]` at the input hooks.
    ///
    /// # Errors
    /// `Mismatch` when `codes` and `inputs` are not one a layer with the same rows; `NonFinite` when a weight of the
    /// file is no number.
    pub fn reconstruct(&self, codes: &[SparseCodes], inputs: &[Vec<f32>]) -> Result<Vec<Vec<f32>>> {
        let layers = self.config.n_layers;
        if codes.len() != layers || inputs.len() != layers {
            return Err(Error::Mismatch {
                what: "codes and layers of the set",
                left: format!("codes of {} and inputs of {} layers", codes.len(), inputs.len()),
                right: format!("{self}, of {layers} layers"),
                remedy: "encode every layer first".into(),
            });
        }
        (0..layers).map(|layer| self.reconstruct_layer(layer, codes, &inputs[layer])).collect()
    }

    /// The reconstruction of one layer, `[n, d]`, from the codes of the layers up to it and its own input `x`, `[n, d]`.
    /// Each decoder row of an active feature is read once.
    ///
    /// # Errors
    /// As [`TranscoderSet::reconstruct`]; `Flag` when there is no such layer.
    pub fn reconstruct_layer(&self, layer: usize, codes: &[SparseCodes], x: &[f32]) -> Result<Vec<f32>> {
        self.check_rows(x)?;
        let own = self.layer(layer)?;
        let n = x.len() / self.config.d_model;
        let mut out = own.b_dec.repeat(n);
        let first = (0..=layer).find(|&from| self.writes_to(from).contains(&layer)).unwrap_or(layer);
        for from in first..=layer {
            let codes = codes.get(from).filter(|codes| codes.rows() == n && codes.d_sae == self.config.d_transcoder);
            let codes = codes.ok_or_else(|| Error::Mismatch {
                what: "rows and their codes",
                left: format!("{n} rows at layer {layer}"),
                right: format!("no codes of as many rows over {} features of layer {from}", self.config.d_transcoder),
                remedy: "reconstruct from the codes of this set and these rows".into(),
            })?;
            self.add_decoded(from, layer, codes, &mut out)?;
        }
        own.add_skip(x, &mut out)?;
        Ok(out)
    }

    /// Adds what the features of layer `from` write to layer `to`, without any bias, to `out`, `[n, d]`.
    ///
    /// # Errors
    /// `Mismatch` when `out` has other rows than `codes`; `Flag` when `from` does not write to `to`; `NonFinite`.
    pub fn add_decoded(&self, from: usize, to: usize, codes: &SparseCodes, out: &mut [f32]) -> Result<()> {
        let d = self.config.d_model;
        if out.len() != codes.rows() * d {
            return Err(Error::Mismatch {
                what: "rows and their codes",
                left: format!("{} values of width {d}", out.len()),
                right: format!("codes of {} rows", codes.rows()),
                remedy: "decode into as many rows as were encoded".into(),
            });
        }
        self.check_features(&codes.features)?;
        let mut active = codes.features.clone();
        active.sort_unstable();
        active.dedup();
        let rows = self.decoder_rows(from, to, &active)?;
        let place = |feature: &u32| active.partition_point(|known| known < feature) as u32;
        out.par_chunks_mut(d * TASK_ROWS).enumerate().for_each(|(block, out)| {
            for (i, out) in out.chunks_exact_mut(d).enumerate() {
                let (features, values) = codes.row(block * TASK_ROWS + i);
                let features: Vec<u32> = features.iter().map(place).collect();
                sparse::decode_row(out, &features, values, &rows);
            }
        });
        Ok(())
    }
}
