//! The path from any part of the residual stream to a logit, with every norm's divisor held at its value in the run.
//!
//! What a block adds may go through norms on the way into the stream (Gemma 2, OLMo 2), be multiplied (Granite), or be
//! normalised together with the stream (OPT-350m). Each step is linear once the divisors are fixed.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};

use crate::base::{Context, Result};
use crate::model::config::BlockLayout;
use crate::model::{FrozenNorm, HookPlan, HookPoint, Model, Run, Site};

/// Where a vector enters the stream of its layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Entry {
    /// The raw output of attention, or a part of it.
    Attention,
    /// `hook_attn_out`
    AttnOut,
    /// `hook_attn_added`, and the stream before attention is added.
    Stream,
    /// The stream between attention and MLP.
    Mid,
    /// The raw output of the MLP.
    Mlp,
    /// `hook_mlp_out`
    MlpOut,
    /// `hook_mlp_added`
    MlpAdded,
    /// The block's output.
    Post,
}

impl Entry {
    /// Where values at `site` enter; `None` where they are not in the stream's coordinates.
    pub(super) fn of(site: Site) -> Option<Self> {
        Some(match site {
            Site::Embed | Site::PosEmbed | Site::ResidPre | Site::AttnAdded => Self::Stream,
            Site::AttnOut => Self::AttnOut,
            Site::ResidMid => Self::Mid,
            Site::MlpHookOut => Self::Mlp,
            Site::MlpOut => Self::MlpOut,
            Site::MlpAdded => Self::MlpAdded,
            Site::ResidPost => Self::Post,
            _ => return None,
        })
    }
}

/// The norms of one run at one position, and what a logit reads.
pub(super) struct Frozen<'a> {
    model: &'a Model,
    norms: BTreeMap<HookPoint, (FrozenNorm, f64)>,
    /// What the input of the unembedding is multiplied with, `[d]`.
    direction: Vec<f64>,
    /// What the logit has of biases alone: of the final norm and of the head.
    pub(super) constant: f64,
}

impl<'a> Frozen<'a> {
    /// The points that a run must capture: the divisors of norms on the path.
    pub(super) fn points(model: &Model) -> Vec<HookPoint> {
        let config = model.config();
        let sites: &[Site] = match config.layout {
            BlockLayout::PreAndPostNorm => &[Site::Ln1PostScale, Site::Ln2PostScale],
            BlockLayout::OutputNorm | BlockLayout::StreamNorm => &[Site::Ln1Scale, Site::Ln2Scale],
            BlockLayout::PreNorm | BlockLayout::Parallel | BlockLayout::ParallelSharedNorm => &[],
        };
        let blocks = (0..config.n_layers).flat_map(|layer| sites.iter().map(move |&s| HookPoint::block(layer, s)));
        blocks.chain([HookPoint::global(Site::LnFinalScale)]).filter(|point| point.exists_in(config)).collect()
    }

    /// Reads the divisors of `run` at `position`. The logit is that of `target`, less that of `against`.
    pub(super) fn new(model: &'a Model, run: &Run, position: usize, target: u32, against: Option<u32>) -> Result<Self> {
        let mut norms = BTreeMap::new();
        for point in Self::points(model) {
            let scale = row(run, point, position)?.first().copied().unwrap_or(1.0);
            if let Some(norm) = model.frozen_norm(point)? {
                norms.insert(point, (norm, f64::from(scale)));
            }
        }
        let (target, mut constant) = model.logit_direction(target)?;
        let mut direction: Vec<f64> = target.into_iter().map(f64::from).collect();
        if let Some(against) = against {
            let (against, less) = model.logit_direction(against)?;
            direction.iter_mut().zip(against).for_each(|(a, b)| *a -= f64::from(b));
            constant -= less;
        }
        if let Some((norm, _)) = norms.get(&HookPoint::global(Site::LnFinalScale))
            && let Some(bias) = &norm.bias
        {
            constant += bias.iter().zip(&direction).map(|(b, w)| f64::from(*b) * w).sum::<f64>();
        }
        Ok(Self { model, norms, direction, constant })
    }

    /// What `v` `[d]`, entering at `entry` of `layer`, contributes to the logit.
    pub(super) fn score(&self, layer: usize, entry: Entry, mut v: Vec<f64>) -> f64 {
        let layout = self.model.config().layout;
        let norm = |v: &mut [f64], layer, site| {
            if let Some((norm, scale)) = self.norms.get(&HookPoint::block(layer, site)) {
                norm.apply(v, *scale);
            }
        };
        let multiplier = self.model.config().residual_multiplier;
        if entry == Entry::Attention {
            norm(&mut v, layer, Site::Ln1PostScale);
        }
        if entry <= Entry::AttnOut {
            if layout == BlockLayout::OutputNorm {
                norm(&mut v, layer, Site::Ln1Scale);
            }
            scale(&mut v, multiplier);
        }
        if entry == Entry::Mlp {
            norm(&mut v, layer, Site::Ln2PostScale);
        }
        if matches!(entry, Entry::Mlp | Entry::MlpOut) {
            if layout == BlockLayout::OutputNorm {
                norm(&mut v, layer, Site::Ln2Scale);
            }
            scale(&mut v, multiplier);
        }
        if layout == BlockLayout::StreamNorm {
            if entry <= Entry::Stream {
                norm(&mut v, layer, Site::Ln1Scale);
            }
            if entry < Entry::Post {
                norm(&mut v, layer, Site::Ln2Scale);
            }
            for later in layer + 1..self.model.config().n_layers {
                norm(&mut v, later, Site::Ln1Scale);
                norm(&mut v, later, Site::Ln2Scale);
            }
        }
        if let Some((last, scale)) = self.norms.get(&HookPoint::global(Site::LnFinalScale)) {
            last.apply(&mut v, *scale);
        }
        v.iter().zip(&self.direction).map(|(x, w)| x * w).sum()
    }

    /// What the biases of norms in `layer` contribute: those that divide attention's part, and those that divide the
    /// MLP's.
    pub(super) fn norm_biases(&self, layer: usize) -> [f64; 2] {
        let multiplier = self.model.config().residual_multiplier;
        let (sites, entries, factor) = match self.model.config().layout {
            BlockLayout::PreAndPostNorm => {
                ([Site::Ln1PostScale, Site::Ln2PostScale], [Entry::AttnOut, Entry::MlpOut], 1.0)
            }
            BlockLayout::OutputNorm => ([Site::Ln1Scale, Site::Ln2Scale], [Entry::Stream, Entry::MlpAdded], multiplier),
            BlockLayout::StreamNorm => ([Site::Ln1Scale, Site::Ln2Scale], [Entry::Mid, Entry::Post], 1.0),
            BlockLayout::PreNorm | BlockLayout::Parallel | BlockLayout::ParallelSharedNorm => return [0.0; 2],
        };
        std::array::from_fn(|i| {
            let norm = self.norms.get(&HookPoint::block(layer, sites[i]));
            let Some(bias) = norm.and_then(|(norm, _)| norm.bias.as_ref()) else { return 0.0 };
            self.score(layer, entries[i], bias.iter().map(|b| f64::from(*b) * factor).collect())
        })
    }
}

fn scale(v: &mut [f64], factor: f64) {
    for x in v {
        *x *= factor;
    }
}

/// The captured values at one position, flattened.
pub(super) fn row(run: &Run, point: HookPoint, position: usize) -> Result<Vec<f32>> {
    let reading = || format!("reading {point}");
    let row = run.captured(point)?.narrow(1, position, 1).during(reading)?;
    row.to_dtype(DType::F32).and_then(|x: Tensor| x.flatten_all()?.to_vec1::<f32>()).during(reading)
}

/// `v` in double precision.
pub(super) fn wide(v: &[f32]) -> Vec<f64> {
    v.iter().map(|x| f64::from(*x)).collect()
}

/// A plan that captures `points` and the logits before any division or soft cap.
pub(super) fn plan(points: impl IntoIterator<Item = HookPoint>) -> HookPlan {
    points
        .into_iter()
        .fold(HookPlan::new().with_logits().capture(HookPoint::global(Site::UnembedOut)), HookPlan::capture)
}
