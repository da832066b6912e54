//! The one call that the forward pass makes at a hook point: edit, then capture.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};

use crate::base::{Context, Error, Result};

use super::hook::{Axes, HookPoint, Site};
use super::plan::{Edit, EditOp, ResolvedPlan, Stop};
use super::relay::Relay;

/// The state of hooks during one forward pass.
pub(super) struct Tap<'a> {
    plan: &'a ResolvedPlan,
    captures: BTreeMap<HookPoint, Tensor>,
    /// Values that edits at later points read.
    relayed: BTreeMap<HookPoint, Tensor>,
    /// Position of the pass's first token in its sequence.
    offset: usize,
    /// Positions that are computed a second time, of which nothing is captured.
    skipped: usize,
}

impl<'a> Tap<'a> {
    /// For a pass whose first token stands at `offset` and whose first `skipped` ones were seen before.
    pub(super) fn new(plan: &'a ResolvedPlan, offset: usize, skipped: usize) -> Self {
        Self { plan, captures: BTreeMap::new(), relayed: BTreeMap::new(), offset, skipped }
    }

    /// Passes `x` through the point: returns it edited, keeps a copy when the plan captures it.
    pub(super) fn at(&mut self, point: HookPoint, x: Tensor) -> Result<Tensor> {
        let x = self.edited(point, x)?;
        if self.plan.captures.contains(&point) {
            self.captures.insert(point, kept(point.site.axes(), &x, self.skipped)?);
        }
        if self.plan.relayed.contains(&point) {
            self.relayed.insert(point, x.clone());
        }
        Ok(x)
    }

    /// `x` with the point's edits, not captured.
    pub(super) fn edited(&self, point: HookPoint, x: Tensor) -> Result<Tensor> {
        let mut x = x;
        for edit in self.plan.edits.get(&point).into_iter().flatten() {
            x = self.apply(edit, &x)?;
        }
        Ok(x)
    }

    /// Whether the point is captured or edited, for values that only hooks need.
    pub(super) fn wants(&self, point: HookPoint) -> bool {
        let plan = self.plan;
        plan.captures.contains(&point) || plan.edits.contains_key(&point) || plan.relayed.contains(&point)
    }

    /// Whether nothing after `site` of block `layer` is needed.
    pub(super) fn stops_at(&self, layer: usize, site: Site) -> bool {
        self.plan.stop <= Stop::Block(layer, site)
    }

    pub(super) fn stop(&self) -> Stop {
        self.plan.stop
    }

    /// From here on the pass computes only the last of its `s` positions.
    pub(super) fn only_last(&mut self, s: usize) {
        self.offset += s - 1;
        self.skipped = 0;
    }

    pub(super) fn into_captures(self) -> BTreeMap<HookPoint, Tensor> {
        self.captures
    }

    /// Applies one edit to `x`.
    fn apply(&self, edit: &Edit, x: &Tensor) -> Result<Tensor> {
        let axes = edit.at.site.axes();
        let position_axis = if axes == Axes::Pattern { 2 } else { 1 };
        // Keys of all positions are on the axis of a rotated-key site, so it starts at the sequence's start.
        let offset = if axes == Axes::AllKeyHeads { 0 } else { self.offset };
        let positions: Vec<bool> = (0..x.dim(position_axis)?).map(|i| edit.positions.contain(offset + i)).collect();
        if !positions.iter().any(|&touched| touched) {
            return Ok(x.clone());
        }
        let edited = self.compute(edit, x).map_err(|error| match error {
            Error::Tensor { source, .. } => Error::Tensor { action: format!("editing {}", edit.at), source },
            other => other,
        })?;
        let mut mask: Option<Tensor> = None;
        if positions.iter().any(|&touched| !touched) {
            mask = Some(axis_mask(&positions, position_axis, x)?);
        }
        if let Some(head) = edit.head {
            let axis = if axes == Axes::Pattern { 1 } else { 2 };
            let heads: Vec<bool> = (0..x.dim(axis)?).map(|i| i == head).collect();
            let head_mask = axis_mask(&heads, axis, x)?;
            mask = Some(match mask {
                Some(mask) => (mask.to_dtype(DType::F32)? * head_mask.to_dtype(DType::F32)?)?.to_dtype(DType::U8)?,
                None => head_mask,
            });
        }
        match mask {
            Some(mask) => mask.where_cond(&edited, x).during(|| format!("editing {}", edit.at)),
            None => Ok(edited),
        }
    }

    /// The edited values at every position and head.
    fn compute(&self, edit: &Edit, x: &Tensor) -> Result<Tensor> {
        let like_x = |t: &Tensor| -> Result<Tensor> { Ok(t.to_device(x.device())?.to_dtype(x.dtype())?) };
        // A vector for the whole site covers the head axis too; one for a single head does not.
        let expand = |t: &Tensor| -> Result<Tensor> {
            let t = like_x(t)?;
            let shape: Vec<usize> = match (t.rank(), x.rank()) {
                // Rows, documented in one axis.
                (2, 3 | 4) => x.dims().to_vec(),
                // The whole stream, for a copy of it per head.
                (3, 4) => vec![t.dim(0)?, t.dim(1)?, 1, t.dim(2)?],
                (2.., _) => t.dims().to_vec(),
                (_, 4) if edit.head.is_none() && t.elem_count() != x.dim(3)? => vec![1, 1, x.dim(2)?, x.dim(3)?],
                (_, 4) => vec![1, 1, 1, x.dim(3)?],
                _ => vec![1, 1, t.elem_count()],
            };
            Ok(t.reshape(shape)?.broadcast_as(x.shape())?.contiguous()?)
        };
        Ok(match &edit.op {
            EditOp::Set(t) => expand(t)?,
            EditOp::Add(t) => (x + expand(t)?)?,
            EditOp::Scale(factor) => (x * *factor)?,
            EditOp::Ablate => x.zeros_like()?,
            EditOp::ProjectOut(v) => {
                let v = v.to_dtype(DType::F32)?;
                let unit = v.broadcast_div(&v.sqr()?.sum_all()?.sqrt()?)?;
                let unit = expand(&unit)?;
                let axis = x.rank() - 1;
                let along = (x * &unit)?.sum_keepdim(axis)?;
                let along = if v.elem_count() > x.dim(axis)? { along.sum_keepdim(2)? } else { along };
                (x - unit.broadcast_mul(&along)?)?
            }
            EditOp::Rewrite(rewrite) => {
                let rows = x.elem_count() / rewrite.width();
                rewrite.rewrite(&x.reshape((rows, rewrite.width()))?)?.reshape(x.shape())?
            }
            EditOp::Relay(relay) => self.relay(relay.as_ref(), x)?,
        })
    }

    /// The change that `relay` makes of `x` and of what was seen at the points it reads.
    fn relay(&self, relay: &dyn Relay, x: &Tensor) -> Result<Tensor> {
        let read = relay.reads().iter().map(|point| {
            self.relayed.get(point).ok_or_else(|| Error::Unsupported {
                what: relay.describe(),
                why: format!("the pass did not come through {point}"),
                remedy: "begin the pass before it".into(),
            })
        });
        relay.relay(x, &read.collect::<Result<Vec<_>>>()?, self.offset)
    }
}

/// What a capture keeps of `x`: not the first `skipped` positions, and norms of heads, which are computed on
/// `[b, s, heads, h]`, as rows.
fn kept(axes: Axes, x: &Tensor, skipped: usize) -> Result<Tensor> {
    let position_axis = if axes == Axes::Pattern { 2 } else { 1 };
    let x = match axes {
        _ if skipped == 0 => x.clone(),
        Axes::AllKeyHeads => x.clone(),
        _ => x.narrow(position_axis, skipped, x.dim(position_axis)? - skipped)?.contiguous()?,
    };
    // Norms of whole projections have the axes of the stream.
    let whole =
        matches!(axes, Axes::QueryRowScale | Axes::QueryRows | Axes::KeyRowScale | Axes::KeyRows) && x.rank() == 3;
    Ok(if axes.are_rows() && !whole { x.flatten(0, x.rank() - 2)? } else { x })
}

/// A mask of `x`'s shape that is one where `chosen` is true along `axis`.
fn axis_mask(chosen: &[bool], axis: usize, x: &Tensor) -> Result<Tensor> {
    let values: Vec<u8> = chosen.iter().map(|&c| u8::from(c)).collect();
    let mut shape = vec![1; x.rank()];
    shape[axis] = values.len();
    Ok(Tensor::from_vec(values, shape, x.device())?.broadcast_as(x.shape())?.contiguous()?)
}
