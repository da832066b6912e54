//! The run that is patched, and passes that continue it from where it is changed.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};

use crate::base::{Context, Error, Result};
use crate::model::{Edit, EditOp, HookPlan, HookPoint, Model, Run, Site};

use super::metric::Metric;

/// Positions of all sequences that are computed together, at most, unless one sequence alone has more.
const POSITIONS_AT_ONCE: usize = 1024;

/// The values of one sequence at some points.
#[derive(Debug, Clone)]
pub struct Trace {
    /// The sequence.
    pub tokens: Vec<u32>,
    /// The metric after its last position.
    pub metric: f64,
    pub(super) values: BTreeMap<HookPoint, Values>,
}

/// A captured tensor of one sequence.
#[derive(Debug, Clone)]
pub(super) struct Values {
    /// `[1, …]`
    pub(super) shape: Vec<usize>,
    pub(super) data: Vec<f32>,
}

impl Trace {
    /// Runs `tokens` and keeps the values at `points`.
    ///
    /// # Errors
    /// As [`Model::forward`]; `NonFinite` when the metric is no number.
    pub fn record(model: &Model, tokens: &[u32], metric: Metric, points: &[HookPoint]) -> Result<Self> {
        let last = last_stream(model);
        let plan = points.iter().fold(HookPlan::new().capture(last), |plan, &point| plan.capture(point));
        let run = model.forward(&model.tokens(&[tokens])?, &plan)?;
        let mut values = BTreeMap::new();
        for &point in points {
            let captured = run.captured(point)?;
            values.insert(point, Values { shape: captured.dims().to_vec(), data: host(captured)? });
        }
        let metric = measure(model, run.captured(last)?, metric)?.first().copied().unwrap_or(f64::NAN);
        Ok(Self { tokens: tokens.to_vec(), metric, values })
    }

    pub(super) fn at(&self, point: HookPoint) -> Result<&Values> {
        self.values.get(&point).ok_or_else(|| Error::Unsupported {
            what: format!("reading {point}"),
            why: "the run did not keep it".into(),
            remedy: "record the run with the point".into(),
        })
    }
}

/// A run, and the passes that continue it after a change.
#[derive(Debug)]
pub struct Patcher<'a> {
    pub(super) model: &'a Model,
    pub(super) metric: Metric,
    pub(super) base: Trace,
}

impl<'a> Patcher<'a> {
    /// Runs `tokens`, the sequence to patch, and keeps what patches at `points` need.
    ///
    /// # Errors
    /// As [`Trace::record`].
    pub fn new(model: &'a Model, tokens: &[u32], metric: Metric, points: &[HookPoint]) -> Result<Self> {
        let layers = model.config().n_layers;
        let mut all: Vec<HookPoint> = (0..layers).map(|layer| HookPoint::block(layer, Site::ResidPre)).collect();
        all.extend(points);
        Ok(Self { model, metric, base: Trace::record(model, tokens, metric, &all)? })
    }

    /// The run that is patched.
    pub fn base(&self) -> &Trace {
        &self.base
    }

    /// The metric where the values at `point` are replaced by each of `patched`, whole sequences of values.
    pub(super) fn replaced(&self, point: HookPoint, patched: &[Vec<f32>]) -> Result<Vec<f64>> {
        let layer = point.layer.unwrap_or(0);
        let mut found = Vec::with_capacity(patched.len());
        for batch in patched.chunks(self.rows_at_once()) {
            let values = self.batch(point, batch)?;
            found.extend(match point.site {
                Site::ResidPre => self.continued(layer, &values, HookPlan::new())?,
                Site::ResidPost => self.continued(layer + 1, &values, HookPlan::new())?,
                _ => {
                    let plan = HookPlan::new().edit(Edit::new(point, EditOp::Set(values)));
                    self.continued(layer, &self.stream(layer, batch.len())?, plan)?
                }
            });
        }
        Ok(found)
    }

    /// Sequences of values at `point` as a batch.
    pub(super) fn batch(&self, point: HookPoint, rows: &[Vec<f32>]) -> Result<Tensor> {
        let mut shape = self.base.at(point)?.shape.clone();
        if let Some(b) = shape.first_mut() {
            *b = rows.len();
        }
        Tensor::from_vec(rows.concat(), shape, self.model.device()).during(|| format!("patching {point}"))
    }

    /// `hook_resid_pre` of `layer` in the base run, `b` times.
    pub(super) fn stream(&self, layer: usize, b: usize) -> Result<Tensor> {
        let point = HookPoint::block(layer, Site::ResidPre);
        let one = self.batch(point, std::slice::from_ref(&self.base.at(point)?.data))?;
        one.repeat((b, 1, 1)).during(|| format!("repeating {point}"))
    }

    /// The metric after blocks `layer..` on `stream` under `plan`.
    pub(super) fn continued(&self, layer: usize, stream: &Tensor, plan: HookPlan) -> Result<Vec<f64>> {
        if layer == self.model.config().n_layers {
            return measure(self.model, stream, self.metric);
        }
        let last = last_stream(self.model);
        let run = self.model.forward_from(layer, stream, &plan.capture(last))?;
        measure(self.model, run.captured(last)?, self.metric)
    }

    /// How many sequences run together.
    pub(super) fn rows_at_once(&self) -> usize {
        (POSITIONS_AT_ONCE / self.base.tokens.len().max(1)).max(1)
    }
}

fn last_stream(model: &Model) -> HookPoint {
    HookPoint::block(model.config().n_layers.saturating_sub(1), Site::ResidPost)
}

/// The metric at the last position of the final stream `[b, s, d]`, one a sequence.
pub(super) fn measure(model: &Model, stream: &Tensor, metric: Metric) -> Result<Vec<f64>> {
    let reading = || "reading the answer".to_owned();
    let s = stream.dim(1).during(reading)?;
    let logits = model.read_out(&stream.narrow(1, s.saturating_sub(1), 1).during(reading)?)?;
    let rows = logits.squeeze(1).and_then(|x| x.to_vec2::<f32>()).during(reading)?;
    let found: Vec<f64> = rows.iter().map(|logits| metric.of(logits)).collect();
    if found.iter().all(|m| m.is_finite()) {
        return Ok(found);
    }
    Err(Error::NonFinite {
        what: "the metric of a patched run".into(),
        count: found.iter().filter(|m| !m.is_finite()).count(),
        at: "the last position".into(),
        remedy: "run with --dtype f32; a knocked-out query must keep a key to attend to".into(),
    })
}

/// The values of a capture of one sequence.
pub(super) fn captured_rows(run: &Run, point: HookPoint) -> Result<Vec<Vec<f32>>> {
    let captured = run.captured(point)?;
    let b = captured.dim(0).during(|| format!("reading {point}"))?;
    (0..b).map(|row| host(&captured.narrow(0, row, 1)?)).collect()
}

pub(super) fn host(x: &Tensor) -> Result<Vec<f32>> {
    let values = x.to_dtype(DType::F32).and_then(|x| x.flatten_all()?.to_vec1::<f32>());
    values.during(|| "reading captured values".into())
}
