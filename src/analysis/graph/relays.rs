//! How changed features reach the model: edits that read where a transcoder reads and write where it writes.

use std::sync::Arc;

use candle_core::{DType, Tensor};

use crate::base::{Context, Result};
use crate::dictionary::{Activation, TranscoderSet};
use crate::model::{HookPoint, Model, Relay};

use super::frozen_run::rows;
use super::intervene::FeatureChange;

/// The changes of one layer's features as they are written to one layer.
#[derive(Debug)]
pub(super) struct Reader {
    pub(super) layer: usize,
    changes: Vec<FeatureChange>,
    /// Distinct features in order of first mention.
    pub(super) features: Vec<u32>,
    /// Their decoder rows to the layer written to, `[k, d]`.
    pub(super) decoder: Tensor,
}

impl Reader {
    pub(super) fn new(
        set: &TranscoderSet,
        layer: usize,
        to: usize,
        changes: &[FeatureChange],
        model: &Model,
    ) -> Result<Self> {
        let features = distinct(changes);
        let rows = set.decoder_rows(layer, to, &features)?;
        let decoder = Tensor::from_vec(rows, (features.len(), set.config().d_model), model.device())
            .during(|| "preparing an intervention".into())?;
        Ok(Self { layer, changes: changes.to_vec(), features, decoder })
    }

    /// The change of activations, `[n, k]`, where `activations` are the current ones at the positions from `offset` on of
    /// `s` each.
    pub(super) fn steps(&self, activations: &[f32], s: usize, offset: usize) -> Vec<f32> {
        let k = self.features.len().max(1);
        let rows = activations.chunks_exact(k).enumerate();
        rows.flat_map(|(row, values)| {
            let position = offset + row % s.max(1);
            self.features
                .iter()
                .zip(values)
                .map(move |(feature, &a)| step(self.changes.iter().filter(|c| c.feature == *feature), position, a))
        })
        .collect()
    }
}

fn distinct(changes: &[FeatureChange]) -> Vec<u32> {
    let mut features = Vec::new();
    for change in changes {
        if !features.contains(&change.feature) {
            features.push(change.feature);
        }
    }
    features
}

/// What `changes` of one feature make of activation `a` at `position`, less `a`.
fn step<'a>(changes: impl Iterator<Item = &'a FeatureChange>, position: usize, a: f32) -> f32 {
    changes.filter(|c| c.positions.contain(position)).fold(a, |value, change| change.op.applied(value)) - a
}

/// Writes the changes of features to one layer, from their current activations.
#[derive(Debug)]
pub(super) struct FeatureRelay {
    pub(super) set: Arc<TranscoderSet>,
    pub(super) readers: Vec<Reader>,
    pub(super) reads: Vec<HookPoint>,
    pub(super) zero_positions: usize,
}

impl Relay for FeatureRelay {
    fn reads(&self) -> &[HookPoint] {
        &self.reads
    }

    fn width(&self) -> usize {
        self.set.config().d_model
    }

    fn describe(&self) -> String {
        let changes = self.readers.iter().flat_map(|reader| &reader.changes);
        changes.map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }

    fn relay(&self, x: &Tensor, read: &[&Tensor], offset: usize) -> Result<Tensor> {
        let (b, s, d) = x.dims3()?;
        let mut sum = x.to_dtype(DType::F32)?.reshape((b * s, d))?;
        for (reader, input) in self.readers.iter().zip(read) {
            let mut activations = activations(&self.set, reader.layer, &rows(input)?, &reader.features)?;
            let k = reader.features.len();
            for (row, values) in activations.chunks_exact_mut(k.max(1)).enumerate() {
                if offset + row % s.max(1) < self.zero_positions {
                    values.fill(0.0);
                }
            }
            let steps = Tensor::from_vec(reader.steps(&activations, s, offset), (b * s, k), x.device())?;
            sum = (sum + steps.matmul(&reader.decoder)?)?;
        }
        Ok(sum.reshape((b, s, d))?.to_dtype(x.dtype())?)
    }
}

/// Activations of `features` `[n, k]` for inputs `x` `[n, d]`. Where features do not compete only theirs are computed.
pub(crate) fn activations(set: &TranscoderSet, layer: usize, x: &[f32], features: &[u32]) -> Result<Vec<f32>> {
    let threshold = |feature: &u32| match set.activation(layer) {
        Ok(Activation::Relu) => Some(0.0),
        Ok(Activation::JumpRelu(jump)) => Some(jump.threshold.get(*feature as usize)?.max(0.0)),
        Ok(Activation::JumpIdentity(jump)) => jump.threshold.get(*feature as usize).copied(),
        _ => None,
    };
    if let Some(thresholds) = features.iter().map(threshold).collect::<Option<Vec<f32>>>() {
        let mut values = set.pre_activations(layer, x, features)?;
        for row in values.chunks_exact_mut(features.len().max(1)) {
            let silent = row.iter_mut().zip(&thresholds).filter(|(pre, threshold)| **pre <= **threshold);
            silent.for_each(|(pre, _)| *pre = 0.0);
        }
        return Ok(values);
    }
    let codes = set.encode(layer, x)?;
    let of = |row: usize, feature: &u32| {
        let (active, values) = codes.row(row);
        active.binary_search(feature).ok().and_then(|i| values.get(i)).copied().unwrap_or_default()
    };
    Ok((0..codes.rows()).flat_map(|row| features.iter().map(move |f| of(row, f))).collect())
}

/// Adds what a linear skip makes of the change of its input.
#[derive(Debug)]
pub(super) struct SkipRelay {
    pub(super) reads: [HookPoint; 1],
    /// The input in the clean run, `[1, s, d]`.
    pub(super) clean: Tensor,
    /// `W_skip^T`
    pub(super) weight: Tensor,
}

impl Relay for SkipRelay {
    fn reads(&self) -> &[HookPoint] {
        &self.reads
    }

    fn width(&self) -> usize {
        self.weight.dims().last().copied().unwrap_or_default()
    }

    fn describe(&self) -> String {
        format!("the change of the linear skip from {}", self.reads[0])
    }

    fn relay(&self, x: &Tensor, read: &[&Tensor], _: usize) -> Result<Tensor> {
        let change = read[0].to_dtype(DType::F32)?.broadcast_sub(&self.clean)?;
        let (b, s, d) = change.dims3()?;
        let added = change.reshape((b * s, d))?.matmul(&self.weight)?.reshape(x.shape())?;
        Ok((x.to_dtype(DType::F32)? + added)?.to_dtype(x.dtype())?)
    }
}
