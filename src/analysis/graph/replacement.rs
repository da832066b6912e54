//! The local replacement model (Ameisen et al. 2025): the output of an MLP is that of the clean run and what changed
//! features change of it; attention patterns, norms and errors are held.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use candle_core::Tensor;

use crate::base::Result;
use crate::dictionary::{SparseCodes, TranscoderSet};
use crate::model::{HookPoint, Relay};

use super::frozen_run::{FrozenRun, input, rows};

/// How activations change in one forward pass of the local replacement model, each layer encoded once and then used for
/// all layers that it writes to. Serves a single pass.
#[derive(Debug)]
pub(super) struct Changes {
    set: Arc<TranscoderSet>,
    clean: Vec<SparseCodes>,
    zero_positions: usize,
    positions: usize,
    /// By row of the batch, the layer, position and number of a feature that is held at zero.
    ablated: Vec<Option<(usize, usize, u32)>>,
    layers: Vec<OnceLock<Layer>>,
}

#[derive(Debug)]
struct Layer {
    /// Current activations less those of the clean run, `[b · s, f]`.
    change: SparseCodes,
    /// By row of the batch.
    switched: Vec<usize>,
}

impl Changes {
    /// `ablated` are features that are held at zero, by row of the batch: layer, position and number.
    pub(super) fn new(run: &FrozenRun<'_>, ablated: Vec<Option<(usize, usize, u32)>>) -> Self {
        Self {
            set: Arc::clone(&run.set),
            clean: run.codes.clone(),
            zero_positions: run.zero_positions,
            positions: run.positions(),
            ablated,
            layers: run.codes.iter().map(|_| OnceLock::new()).collect(),
        }
    }

    /// The edit of the output of layer `to`.
    pub(super) fn written_to(self: Arc<Self>, to: usize) -> Following {
        let from: Vec<usize> = (0..=to).filter(|&from| self.set.writes_to(from).contains(&to)).collect();
        let reads = from.iter().map(|&from| input(&self.set, from)).collect();
        Following { changes: self, from, to, reads }
    }

    /// The change in `layer`, whose features read `x`.
    fn layer(&self, layer: usize, x: &Tensor) -> Result<&Layer> {
        if let Some(known) = self.layers[layer].get() {
            return Ok(known);
        }
        let codes = self.set.encode(layer, &rows(x)?)?;
        let mut found = Layer { change: SparseCodes::new(codes.d_sae), switched: vec![0; self.ablated.len()] };
        for i in 0..codes.rows() {
            let (row, position) = (i / self.positions, i % self.positions);
            let now = if position < self.zero_positions { (&[][..], &[][..]) } else { codes.row(i) };
            let ablated = self.ablated[row].filter(|a| (a.0, a.1) == (layer, position)).map(|a| a.2);
            let (features, values, switched) = difference(now, self.clean[layer].row(position), ablated);
            found.change.push_row(&features, &values);
            found.switched[row] += switched;
        }
        Ok(self.layers[layer].get_or_init(|| found))
    }

    /// By row of the batch, features that switched on or off in any layer.
    pub(super) fn switched(&self, rows: usize) -> Vec<usize> {
        let layers: Vec<&Layer> = self.layers.iter().filter_map(OnceLock::get).collect();
        (0..rows).map(|row| layers.iter().map(|layer| layer.switched[row]).sum()).collect()
    }
}

/// `now − clean` of two sparse rows where they differ, `ablated` counted as zero now; and how many others are zero in
/// exactly one of them.
fn difference(now: (&[u32], &[f32]), clean: (&[u32], &[f32]), ablated: Option<u32>) -> (Vec<u32>, Vec<f32>, usize) {
    let mut values: BTreeMap<u32, (f32, f32)> = BTreeMap::new();
    for (&feature, &a) in clean.0.iter().zip(clean.1) {
        values.entry(feature).or_default().1 = a;
    }
    for (&feature, &a) in now.0.iter().zip(now.1).filter(|(f, _)| Some(**f) != ablated) {
        values.entry(feature).or_default().0 = a;
    }
    let mut switched = 0;
    let (mut features, mut changes) = (Vec::new(), Vec::new());
    for (feature, (now, clean)) in values {
        switched += usize::from((now == 0.0) != (clean == 0.0) && Some(feature) != ablated);
        if (now - clean).abs() > 0.0 {
            features.push(feature);
            changes.push(now - clean);
        }
    }
    (features, changes, switched)
}

/// Adds what changed features change of one layer's output.
#[derive(Debug)]
pub(super) struct Following {
    changes: Arc<Changes>,
    from: Vec<usize>,
    to: usize,
    reads: Vec<HookPoint>,
}

impl Relay for Following {
    fn reads(&self) -> &[HookPoint] {
        &self.reads
    }

    fn width(&self) -> usize {
        self.changes.set.config().d_model
    }

    fn describe(&self) -> String {
        format!("the change of features that write to layer {}", self.to)
    }

    fn relay(&self, x: &Tensor, read: &[&Tensor], _: usize) -> Result<Tensor> {
        let mut sum = rows(x)?;
        for (&from, input) in self.from.iter().zip(read) {
            let layer = self.changes.layer(from, input)?;
            self.changes.set.add_decoded(from, self.to, &layer.change, &mut sum)?;
        }
        Ok(Tensor::from_vec(sum, x.shape(), x.device())?.to_dtype(x.dtype())?)
    }
}
