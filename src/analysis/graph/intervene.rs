//! Changing transcoder features in a run: circuit-tracer's `feature_intervention`.
//!
//! ```text
//! out_l' += Σ_f (target_f(a) − a) W_dec[f → l']        for every layer l' that f writes to
//! ```
//!
//! `a` is the feature's activation: its current one, so that a later feature follows what was done to an earlier one,
//! or where outputs of MLPs are held ([`Hold::Layers`]) that of the clean run, so that nothing follows.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use candle_core::{DType, Tensor};

use crate::analysis::FeatureOp;
use crate::base::{Context, Error, Result};
use crate::dictionary::TranscoderSet;
use crate::model::{Edit, EditOp, HookPlan, Model, Positions, Run};

use super::frozen_run::{FrozenRun, Hold, input, output, rows};
use super::relays::{FeatureRelay, Reader, SkipRelay, activations};

/// What is done to a feature of a layer at some positions. Several changes of one feature at one position apply one
/// after the other.
#[derive(Debug, Clone, PartialEq)]
pub struct FeatureChange {
    /// The layer that the feature reads.
    pub layer: usize,
    /// Its number.
    pub feature: u32,
    /// Where. `From` and `All` reach positions that are generated later, too.
    pub positions: Positions,
    /// What.
    pub op: FeatureOp,
}

impl fmt::Display for FeatureChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { layer, feature, positions, op } = self;
        let name = format!("feature {feature} of layer {layer}");
        match op {
            FeatureOp::Clamp(v) => write!(f, "set {name} to {v}")?,
            FeatureOp::Add(v) => write!(f, "add {v} to {name}")?,
            FeatureOp::Scale(v) => write!(f, "scale {name} by {v}")?,
            FeatureOp::Ablate => write!(f, "ablate {name}")?,
            FeatureOp::Cap(v) => write!(f, "cap {name} at {v}")?,
        }
        match positions {
            Positions::All => Ok(()),
            Positions::From(start) => write!(f, " from position {start} on"),
            Positions::List(list) => {
                let list: Vec<String> = list.iter().map(ToString::to_string).collect();
                write!(f, " at position{} {}", if list.len() == 1 { "" } else { "s" }, list.join(", "))
            }
        }
    }
}

/// Checks that the features exist in a set and strengths are finite.
///
/// # Errors
/// `Flag` naming what is wrong.
pub fn check_changes(changes: &[FeatureChange], set: &TranscoderSet) -> Result<()> {
    let (layers, features) = (set.config().n_layers, set.config().d_transcoder);
    for change in changes {
        if change.layer >= layers || change.feature as usize >= features {
            let expected = format!("layers 0 to {} and features 0 to {}", layers - 1, features.saturating_sub(1));
            let found = format!("{}/{}", change.layer, change.feature);
            return Err(Error::flag("--feature", expected, found, "name a feature as LAYER/FEATURE@POSITION"));
        }
        if let Some(v) = change.op.value().filter(|v| !v.is_finite()) {
            let remedy = "a few times the feature's activation is a usual strength";
            return Err(Error::flag("--feature", "finite strengths", v, remedy));
        }
    }
    Ok(())
}

/// `plan`, and the changes made with current activations, also while text is generated. Features count as absent on the
/// first `zero_positions` positions.
///
/// # Errors
/// As [`check_changes`]; `Flag` when there are none; when weights cannot be read.
pub fn live_plan(
    plan: HookPlan,
    set: &Arc<TranscoderSet>,
    changes: &[FeatureChange],
    zero_positions: usize,
    model: &Model,
) -> Result<HookPlan> {
    check_changes(changes, set)?;
    if changes.is_empty() {
        return Err(Error::flag("--feature", "at least one feature", "none", "name one as LAYER/FEATURE"));
    }
    set.check_model(model.config())?;
    with_relays(plan, set, changes, zero_positions, model)
}

fn with_relays(
    plan: HookPlan,
    set: &Arc<TranscoderSet>,
    changes: &[FeatureChange],
    zero_positions: usize,
    model: &Model,
) -> Result<HookPlan> {
    let mut writers: BTreeMap<usize, Vec<Reader>> = BTreeMap::new();
    for (layer, own) in by_layer(changes) {
        for to in set.writes_to(layer) {
            writers.entry(to).or_default().push(Reader::new(set, layer, to, &own, model)?);
        }
    }
    Ok(writers.into_iter().fold(plan, |plan, (to, readers)| {
        let reads = readers.iter().map(|reader| input(set, reader.layer)).collect();
        let relay = FeatureRelay { set: Arc::clone(set), readers, reads, zero_positions };
        plan.edit(Edit::new(output(set, to), EditOp::Relay(Arc::new(relay))))
    }))
}

fn by_layer(changes: &[FeatureChange]) -> BTreeMap<usize, Vec<FeatureChange>> {
    let mut layers: BTreeMap<usize, Vec<FeatureChange>> = BTreeMap::new();
    for change in changes {
        layers.entry(change.layer).or_default().push(change.clone());
    }
    layers
}

/// A run with features changed.
#[derive(Debug)]
pub struct ChangedRun {
    set: Arc<TranscoderSet>,
    /// Logits, and what features read.
    pub run: Run,
}

impl ChangedRun {
    /// Logits of all positions, `[s, v]`.
    ///
    /// # Errors
    /// When the tensor cannot be read.
    pub fn logits(&self) -> Result<Vec<f32>> {
        rows(self.run.logits()?)
    }

    /// Pre-activations `[s, k]` of some features of a layer.
    ///
    /// # Errors
    /// When weights cannot be read.
    pub fn pre_activations(&self, layer: usize, features: &[u32]) -> Result<Vec<f32>> {
        self.set.pre_activations(layer, &rows(self.run.captured(input(&self.set, layer))?)?, features)
    }

    /// Activations `[s, k]` of some features of a layer, before any change of their own.
    ///
    /// # Errors
    /// When weights cannot be read.
    pub fn activations(&self, layer: usize, features: &[u32]) -> Result<Vec<f32>> {
        activations(&self.set, layer, &rows(self.run.captured(input(&self.set, layer))?)?, features)
    }
}

impl FrozenRun<'_> {
    /// The plan of an intervention on the prompt.
    ///
    /// # Errors
    /// As [`check_changes`]; when weights cannot be read.
    pub fn plan(&self, changes: &[FeatureChange], hold: &Hold) -> Result<HookPlan> {
        check_changes(changes, &self.set)?;
        let held = self.held(hold)?;
        let Hold::Layers(_) = hold else {
            return with_relays(held, &self.set, changes, self.zero_positions, self.model);
        };
        let layers = hold.layers(self.model.config().n_layers);
        let mut plan = self.with_skips(held, layers.clone())?;
        for to in layers {
            if let Some(sum) = self.fixed_steps(changes, to)? {
                plan = plan.edit(Edit::new(output(&self.set, to), EditOp::Add(sum)));
            }
        }
        Ok(plan)
    }

    /// Runs the prompt with features changed; what features of all layers read is captured.
    ///
    /// # Errors
    /// As [`FrozenRun::plan`] and [`Model::forward`].
    pub fn intervene(&self, changes: &[FeatureChange], hold: &Hold) -> Result<ChangedRun> {
        let inputs = (0..self.model.config().n_layers).map(|layer| input(&self.set, layer));
        let plan = inputs.fold(self.plan(changes, hold)?.with_logits(), HookPlan::capture);
        let run = self.model.forward(&self.model.tokens(&[&self.tokens])?, &plan)?;
        Ok(ChangedRun { set: Arc::clone(&self.set), run })
    }

    /// What the changes add to layer `to` when they start from the clean run's activations, `[1, s, d]`; `None` where
    /// nothing.
    fn fixed_steps(&self, changes: &[FeatureChange], to: usize) -> Result<Option<Tensor>> {
        let (s, mut sum) = (self.positions(), None);
        for (layer, own) in by_layer(changes) {
            if !self.set.writes_to(layer).contains(&to) {
                continue;
            }
            let reader = Reader::new(&self.set, layer, to, &own, self.model)?;
            let clean = (0..s).flat_map(|p| reader.features.iter().map(move |&f| self.activation(layer, p, f)));
            let steps = reader.steps(&clean.collect::<Vec<_>>(), s, 0);
            let steps = Tensor::from_vec(steps, (s, reader.features.len()), self.model.device())?;
            let added = steps.matmul(&reader.decoder)?.unsqueeze(0)?;
            sum = Some(match sum {
                Some(sum) => (sum + added)?,
                None => added,
            });
        }
        Ok(sum)
    }

    /// Lets linear skips pass on the change of what they read.
    pub(super) fn with_skips(&self, plan: HookPlan, layers: std::ops::Range<usize>) -> Result<HookPlan> {
        layers.into_iter().try_fold(plan, |plan, layer| {
            let Some(weight) = self.set.skip(layer)? else { return Ok(plan) };
            let d = self.set.config().d_model;
            let weight = Tensor::from_vec(weight, (d, d), self.model.device()).and_then(|w| w.t()?.contiguous());
            let relay = SkipRelay {
                reads: [input(&self.set, layer)],
                clean: self.clean.captured(input(&self.set, layer))?.to_dtype(DType::F32)?,
                weight: weight.during(|| "preparing a linear skip".into())?,
            };
            Ok(plan.edit(Edit::new(output(&self.set, layer), EditOp::Relay(Arc::new(relay)))))
        })
    }
}
