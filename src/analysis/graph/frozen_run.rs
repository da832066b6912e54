//! A prompt's run, and what of it other runs hold fixed.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::base::{Context, Result};
use crate::dictionary::{SparseCodes, TranscoderSet};
use crate::model::{Edit, EditOp, HookPlan, HookPoint, Model, ModelConfig, Positions, Run, Site};

use super::context::without;

/// What a changed run holds at its values in the clean run, from the freest to the most constrained. The first two and
/// the last are circuit-tracer's `freeze_attention=False`, its default, and its `constrained_layers`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hold {
    /// Nothing: the model as it is.
    Nothing,
    /// Attention patterns.
    #[default]
    Patterns,
    /// Attention patterns and the divisors of norms, which makes everything but MLPs linear.
    PatternsAndNorms,
    /// Attention patterns and the outputs of MLPs in these layers, but for the change of linear skips; where these are
    /// all layers also the divisors of norms. What is left then are direct effects, which is what an edge of a graph is.
    Layers(Range<usize>),
}

impl Hold {
    /// Direct effects alone: everything held but linear paths.
    pub fn everything(config: &ModelConfig) -> Self {
        Self::Layers(0..config.n_layers)
    }

    fn patterns(&self) -> bool {
        *self != Self::Nothing
    }

    fn norms(&self, n_layers: usize) -> bool {
        match self {
            Self::Nothing | Self::Patterns => false,
            Self::PatternsAndNorms => true,
            Self::Layers(range) => range.start == 0 && range.end >= n_layers,
        }
    }

    /// The layers whose MLP outputs are held.
    pub(super) fn layers(&self, n_layers: usize) -> Range<usize> {
        match self {
            Self::Layers(range) => range.start..range.end.min(n_layers),
            _ => 0..0,
        }
    }
}

/// A prompt's run with everything that interventions compare with and hold.
#[derive(Debug)]
pub struct FrozenRun<'a> {
    /// The model.
    pub model: &'a Model,
    /// The transcoders.
    pub set: Arc<TranscoderSet>,
    /// The prompt.
    pub tokens: Vec<u32>,
    /// The first positions, at which features count as absent: 1 where the prompt begins with the
    /// beginning-of-sequence token, at which activations mean nothing (circuit-tracer's `zero_positions`).
    pub zero_positions: usize,
    /// Logits and captures of the clean run.
    pub clean: Run,
    /// Active features by layer, none at zero positions.
    pub codes: Vec<SparseCodes>,
}

impl<'a> FrozenRun<'a> {
    /// Runs `tokens`.
    ///
    /// # Errors
    /// When the set belongs to another model, and as [`Model::forward`].
    pub fn new(model: &'a Model, set: &Arc<TranscoderSet>, tokens: &[u32], zero_positions: usize) -> Result<Self> {
        let config = model.config();
        set.check_model(config)?;
        // As in `Context`: features always count at the last position.
        let zero_positions = zero_positions.min(tokens.len().saturating_sub(1));
        let plan = points(set, config).into_iter().fold(HookPlan::new().with_logits(), HookPlan::capture);
        let clean = model.forward(&model.tokens(&[tokens])?, &plan)?;
        let codes = |layer| {
            let x = rows(clean.captured(input(set, layer))?)?;
            Ok(without(&set.encode(layer, &x)?, zero_positions))
        };
        let codes = (0..config.n_layers).map(codes).collect::<Result<_>>()?;
        Ok(Self { model, set: Arc::clone(set), tokens: tokens.to_vec(), zero_positions, clean, codes })
    }

    /// Number of positions.
    pub fn positions(&self) -> usize {
        self.tokens.len()
    }

    /// The activation of a feature at a position; zero where features do not count.
    pub fn activation(&self, layer: usize, position: usize, feature: u32) -> f32 {
        let codes = self.codes.get(layer).filter(|codes| position < codes.rows());
        let Some((features, values)) = codes.map(|codes| codes.row(position)) else { return 0.0 };
        features.binary_search(&feature).ok().and_then(|i| values.get(i)).copied().unwrap_or_default()
    }

    /// A plan that holds what `hold` says, for passes over the prompt alone or, with a cache, over what follows it, where
    /// nothing is held.
    ///
    /// # Errors
    /// When captures are missing.
    pub fn held(&self, hold: &Hold) -> Result<HookPlan> {
        let config = self.model.config();
        let mut points = Vec::new();
        if hold.patterns() {
            points.extend((0..config.n_layers).map(|layer| HookPoint::block(layer, Site::AttnPattern)));
        }
        if hold.norms(config.n_layers) {
            points.extend(norm_scales(config));
        }
        points.extend(hold.layers(config.n_layers).map(|layer| output(&self.set, layer)));
        let prompt = Positions::List((0..self.positions()).collect());
        points.into_iter().try_fold(HookPlan::new(), |plan, point| {
            let value = self.clean.captured(point)?.clone();
            Ok(plan.edit(Edit::new(point, EditOp::Set(value)).positions(prompt.clone())))
        })
    }
}

/// Everything that a clean run captures: what is held, what features read and where they write, and what is unembedded.
fn points(set: &TranscoderSet, config: &ModelConfig) -> Vec<HookPoint> {
    let layers = 0..config.n_layers;
    let in_blocks = layers.flat_map(|layer| {
        [HookPoint::block(layer, Site::AttnPattern), input(set, layer), output(set, layer)].into_iter()
    });
    let last = HookPoint::global(Site::UnembedIn);
    in_blocks.chain(norm_scales(config)).chain([HookPoint::global(Site::Embed), last]).collect()
}

/// The divisors of all norms of the residual stream.
fn norm_scales(config: &ModelConfig) -> Vec<HookPoint> {
    let sites = [Site::Ln1Scale, Site::Ln2Scale, Site::Ln1PostScale, Site::Ln2PostScale];
    let blocks = (0..config.n_layers).flat_map(|layer| sites.map(|site| HookPoint::block(layer, site)));
    blocks.chain([HookPoint::global(Site::LnFinalScale)]).filter(|point| point.exists_in(config)).collect()
}

/// Where the features of a layer read.
pub(super) fn input(set: &TranscoderSet, layer: usize) -> HookPoint {
    HookPoint::block(layer, set.config().input)
}

/// Where the features of all layers that write to this one write.
pub(super) fn output(set: &TranscoderSet, layer: usize) -> HookPoint {
    HookPoint::block(layer, set.config().output)
}

/// The values of a tensor in f32, row by row.
pub(super) fn rows(x: &Tensor) -> Result<Vec<f32>> {
    let host = x.to_device(&Device::Cpu).and_then(|x| x.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>());
    host.during(|| "reading hidden states".into())
}
