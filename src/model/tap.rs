//! The one call that the forward pass makes at a hook point: edit, then capture.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};

use crate::base::{Context, Error, Result};

use super::hook::{Axes, HookPoint, Site};
use super::plan::{Edit, EditOp, ResolvedPlan, Stop};

/// The state of hooks during one forward pass.
pub(super) struct Tap<'a> {
    plan: &'a ResolvedPlan,
    captures: BTreeMap<HookPoint, Tensor>,
    /// Position of the pass's first token in its sequence.
    offset: usize,
}

impl<'a> Tap<'a> {
    pub(super) fn new(plan: &'a ResolvedPlan, offset: usize) -> Self {
        Self { plan, captures: BTreeMap::new(), offset }
    }

    /// Passes `x` through the point: returns it edited, keeps a copy when the plan captures it.
    pub(super) fn at(&mut self, point: HookPoint, x: Tensor) -> Result<Tensor> {
        let mut x = x;
        if let Some(edits) = self.plan.edits.get(&point) {
            for edit in edits {
                x = apply(edit, &x, self.offset)?;
            }
        }
        if self.plan.captures.contains(&point) {
            self.captures.insert(point, x.clone());
        }
        Ok(x)
    }

    /// Whether the point is captured or edited, for values that only hooks need.
    pub(super) fn wants(&self, point: HookPoint) -> bool {
        self.plan.captures.contains(&point) || self.plan.edits.contains_key(&point)
    }

    /// Whether nothing after `site` of block `layer` is needed.
    pub(super) fn stops_at(&self, layer: usize, site: Site) -> bool {
        self.plan.stop <= Stop::Block(layer, site)
    }

    pub(super) fn stop(&self) -> Stop {
        self.plan.stop
    }

    pub(super) fn into_captures(self) -> BTreeMap<HookPoint, Tensor> {
        self.captures
    }
}

/// Applies one edit to `x`, whose position axis starts at `offset` of the sequence.
fn apply(edit: &Edit, x: &Tensor, offset: usize) -> Result<Tensor> {
    let axes = edit.at.site.axes();
    let position_axis = if axes == Axes::Pattern { 2 } else { 1 };
    // Keys of all positions are on the axis of a rotated-key site, so it starts at the sequence's start.
    let offset = if axes == Axes::AllKeyHeads { 0 } else { offset };
    let positions: Vec<bool> = (0..x.dim(position_axis)?).map(|i| edit.positions.contain(offset + i)).collect();
    if !positions.iter().any(|&touched| touched) {
        return Ok(x.clone());
    }
    let edited = compute(edit, x, axes).map_err(|error| match error {
        Error::Tensor { source, .. } => Error::Tensor { action: format!("editing {}", edit.at), source },
        other => other,
    })?;
    let head_axis = match axes {
        Axes::Pattern => Some(1),
        Axes::QueryHeads | Axes::KeyHeads | Axes::AllKeyHeads | Axes::HeadResidual => Some(2),
        _ => None,
    };
    let mut mask: Option<Tensor> = None;
    if positions.iter().any(|&touched| !touched) {
        mask = Some(axis_mask(&positions, position_axis, x)?);
    }
    if let (Some(head), Some(axis)) = (edit.head, head_axis) {
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

/// A mask of `x`'s shape that is one where `chosen` is true along `axis`.
fn axis_mask(chosen: &[bool], axis: usize, x: &Tensor) -> Result<Tensor> {
    let values: Vec<u8> = chosen.iter().map(|&c| u8::from(c)).collect();
    let mut shape = vec![1; x.rank()];
    shape[axis] = values.len();
    Ok(Tensor::from_vec(values, shape, x.device())?.broadcast_as(x.shape())?.contiguous()?)
}

/// The edited values at every position and head.
fn compute(edit: &Edit, x: &Tensor, axes: Axes) -> Result<Tensor> {
    let like_x = |t: &Tensor| -> Result<Tensor> { Ok(t.to_device(x.device())?.to_dtype(x.dtype())?) };
    // A vector for the whole site covers the head axis too; one for a single head does not.
    let expand = |t: &Tensor| -> Result<Tensor> {
        let t = like_x(t)?;
        if t.rank() > 1 {
            return Ok(t.broadcast_as(x.shape())?.contiguous()?);
        }
        let shape: Vec<usize> = match (axes, edit.head) {
            (Axes::QueryHeads | Axes::KeyHeads | Axes::HeadResidual, None) => vec![1, 1, x.dim(2)?, x.dim(3)?],
            (Axes::QueryHeads | Axes::KeyHeads | Axes::HeadResidual, Some(_)) => vec![1, 1, 1, x.dim(3)?],
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
            let along = if edit.head.is_none() && x.rank() == 4 { along.sum_keepdim(2)? } else { along };
            (x - unit.broadcast_mul(&along)?)?
        }
        EditOp::Rewrite(rewrite) => {
            let rows = x.elem_count() / rewrite.width();
            rewrite.rewrite(&x.reshape((rows, rewrite.width()))?)?.reshape(x.shape())?
        }
    })
}
