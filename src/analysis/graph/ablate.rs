//! What a node of a graph adds to the model, and runs without it.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Tensor};

use crate::base::{Context, Error, Result};
use crate::dictionary::SparseCodes;
use crate::model::{Edit, EditOp, HookPlan, HookPoint, Run, Site};

use super::frozen_run::{FrozenRun, Hold, input, output, rows};
use super::replacement::Changes;
use super::types::{Node, NodeKind};

/// What follows when a node is taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Follow {
    /// Linear paths alone: patterns, norms and MLP outputs are held.
    Direct,
    /// Features, in the local replacement model: an MLP's output is that of the clean run and what changed features
    /// change of it. Patterns, norms and errors are held.
    Features,
    /// MLPs. Patterns and norms are held.
    Mlps,
    /// Everything.
    Model,
}

/// Vectors that a node adds: where, at which position, what.
#[derive(Debug, Clone)]
pub(super) struct Contribution {
    /// Index of the node in its graph.
    pub(super) node: usize,
    position: usize,
    vectors: Vec<(HookPoint, Vec<f32>)>,
    /// Layer and number of a feature.
    feature: Option<(usize, u32)>,
}

/// Runs without nodes, one in each row of a batch.
pub(super) struct Without {
    pub(super) run: Run,
    /// By row, features that switched on or off; zero where no feature follows.
    pub(super) switched: Vec<usize>,
}

impl FrozenRun<'_> {
    /// What a node adds to the model: a feature its activation times its decoder rows, an error what the transcoders
    /// leave over, a token its embedding; `None` for targets.
    ///
    /// # Errors
    /// When weights cannot be read; `Mismatch` when the feature has another activation in this run.
    pub(super) fn contribution(&self, index: usize, node: &Node) -> Result<Option<Contribution>> {
        let position = node.position;
        if position >= self.positions() {
            return Err(Error::Mismatch {
                what: "graph and prompt",
                left: format!("{} at position {position} in the graph", node.id(0)),
                right: format!("a prompt of {} tokens", self.positions()),
                remedy: "use the prompt that the graph was made of".into(),
            });
        }
        let of = |vectors, feature| Some(Contribution { node: index, position, vectors, feature });
        Ok(match node.kind {
            NodeKind::Feature { layer, feature, activation, .. } => {
                let found = self.activation(layer, position, feature);
                if (found - activation).abs() > 0.02 * activation.abs().max(1e-3) {
                    return Err(other_graph(node, activation, found));
                }
                let vector = |to| -> Result<_> {
                    let row = self.set.decoder_rows(layer, to, &[feature])?;
                    Ok((output(&self.set, to), row.into_iter().map(|w| w * found).collect()))
                };
                of(self.set.writes_to(layer).map(vector).collect::<Result<_>>()?, Some((layer, feature)))
            }
            NodeKind::Error { layer } => of(vec![(output(&self.set, layer), self.error(layer, position)?)], None),
            NodeKind::Token { .. } => {
                let point = HookPoint::global(Site::Embed);
                of(vec![(point, self.row(point, position)?)], None)
            }
            NodeKind::Target { .. } => None,
        })
    }

    /// The clean run's values at one position.
    pub(super) fn row(&self, point: HookPoint, position: usize) -> Result<Vec<f32>> {
        rows(&self.clean.captured(point)?.narrow(1, position, 1).during(|| format!("reading {point}"))?)
    }

    /// What the transcoders leave over of an MLP's output, `[d]`.
    fn error(&self, layer: usize, position: usize) -> Result<Vec<f32>> {
        let one = |codes: &SparseCodes| {
            let (features, values) = codes.row(position);
            let mut row = SparseCodes::new(codes.d_sae);
            row.push_row(features, values);
            row
        };
        let codes: Vec<SparseCodes> = self.codes.iter().map(one).collect();
        let x = self.row(input(&self.set, layer), position)?;
        let reconstruction = self.set.reconstruct_layer(layer, &codes, &x)?;
        let out = self.row(output(&self.set, layer), position)?;
        Ok(out.into_iter().zip(reconstruction).map(|(y, r)| y - r).collect())
    }

    /// Runs the prompt once for each node, without it. Captured is what features read and what is unembedded.
    ///
    /// # Errors
    /// As [`crate::model::Model::forward`].
    pub(super) fn without(&self, nodes: &[Contribution], follow: Follow) -> Result<Without> {
        let config = self.model.config();
        let layers = 0..config.n_layers;
        let hold = match follow {
            Follow::Direct | Follow::Features => Hold::everything(config),
            Follow::Mlps => Hold::PatternsAndNorms,
            Follow::Model => Hold::Nothing,
        };
        let mut plan = self.held(&hold)?;
        if matches!(follow, Follow::Direct | Follow::Features) {
            plan = self.with_skips(plan, layers.clone())?;
        }
        let mut changes = None;
        if follow == Follow::Features {
            let ablated = nodes.iter().map(|node| node.feature.map(|(layer, f)| (layer, node.position, f)));
            let shared = Arc::new(Changes::new(self, ablated.collect()));
            plan = layers.clone().fold(plan, |plan, to| {
                let relay = shared.clone().written_to(to);
                plan.edit(Edit::new(output(&self.set, to), EditOp::Relay(Arc::new(relay))))
            });
            changes = Some(shared);
        }
        plan = self.subtracting(plan, nodes, follow)?;
        let read = layers.map(|layer| input(&self.set, layer)).chain([HookPoint::global(Site::UnembedIn)]);
        let batch = vec![self.tokens.as_slice(); nodes.len()];
        let run = self.model.forward(&self.model.tokens(&batch)?, &read.fold(plan, HookPlan::capture))?;
        let switched = changes.map_or_else(|| vec![0; nodes.len()], |changes| changes.switched(nodes.len()));
        Ok(Without { run, switched })
    }

    /// The plan that subtracts what each node adds in its row. Features that follow are taken away with the others.
    fn subtracting(&self, plan: HookPlan, nodes: &[Contribution], follow: Follow) -> Result<HookPlan> {
        let (b, s, d) = (nodes.len(), self.positions(), self.model.config().d_model);
        let mut sums: BTreeMap<HookPoint, Vec<f32>> = BTreeMap::new();
        for (row, node) in nodes.iter().enumerate() {
            if follow == Follow::Features && node.feature.is_some() {
                continue;
            }
            for (point, vector) in &node.vectors {
                let sum = sums.entry(*point).or_insert_with(|| vec![0.0; b * s * d]);
                let start = (row * s + node.position) * d;
                if let Some(sum) = sum.get_mut(start..start + d) {
                    sum.iter_mut().zip(vector).for_each(|(sum, v)| *sum -= v);
                }
            }
        }
        sums.into_iter().try_fold(plan, |plan, (point, sum)| {
            let sum = Tensor::from_vec(sum, (b, s, d), self.model.device());
            Ok(plan.edit(Edit::new(point, EditOp::Add(sum.during(|| "preparing an ablation".into())?))))
        })
    }
}

fn other_graph(node: &Node, activation: f32, found: f32) -> Error {
    Error::Mismatch {
        what: "graph and model",
        left: format!("{} with activation {activation} in the graph", node.id(0)),
        right: format!("{found} in this run"),
        remedy: "use the model, the transcoders and the number type that the graph was made with".into(),
    }
}

/// The values of a capture `[b, s, d]` at one position of each row, `[b, d]`.
pub(super) fn at_position(run: &Run, point: HookPoint, position: usize) -> Result<Vec<Vec<f32>>> {
    let x = run.captured(point)?.to_dtype(DType::F32)?;
    let x = x.narrow(1, position, 1).and_then(|x| x.squeeze(1)?.contiguous()?.to_vec2::<f32>());
    x.during(|| format!("reading {point}"))
}
