//! Where steps run: sparse kernels on the CPU, candle's tensors elsewhere.

use std::borrow::Cow;

use candle_core::Device;

use super::dense::DenseState;
use super::optimiser;
use super::parameters::State;
use super::settings::TrainPlan;
use super::step::cross::Layer;
use super::step::{self, BatchReport, StepInput, Workspace};
use crate::base::{Error, Result};
use crate::ops::threads;

/// Moves the threshold that replaces batch-wide selection after training towards the least activation of a batch. The
/// first batch sets it, so that it is not low for the first hundreds of steps, as SAELens' is, which starts at 0.
fn follow_threshold(plan: &TrainPlan, least: Option<f32>, threshold: &mut f64) {
    if let (Some(rate), Some(least)) = (plan.method.threshold_rate(), least) {
        let least = f64::from(least);
        *threshold = if *threshold == 0.0 { least } else { (1.0 - rate) * *threshold + rate * least };
    }
}

/// The training state with what advances it.
#[derive(Debug)]
pub(super) enum Engine {
    /// On the CPU.
    Sparse(Box<(State, Workspace)>),
    /// On a GPU.
    Dense(Device, Box<DenseState>),
}

impl Engine {
    /// Takes `state` to `device`.
    pub(super) fn new(state: State, plan: &TrainPlan, device: &Device) -> Result<Self> {
        if device.is_cpu() {
            let workspace = Workspace::new(&state.weights, plan.dtype);
            return Ok(Self::Sparse(Box::new((state, workspace))));
        }
        Ok(Self::Dense(device.clone(), Box::new(DenseState::upload(&state, device)?)))
    }

    /// One training step; gives the report and the gradients' norm before clipping.
    pub(super) fn step(
        &mut self,
        plan: &TrainPlan,
        input: StepInput<'_>,
        learning_rate: f64,
    ) -> Result<(BatchReport, f64)> {
        match self {
            Self::Sparse(both) => {
                let (state, workspace) = both.as_mut();
                let report = threads::in_pool(|| {
                    let report = workspace.gradients(state, plan, input);
                    optimiser::update(state, &workspace.gradients, report.squared_gradient.sqrt(), learning_rate);
                    report
                });
                follow_threshold(plan, report.least, &mut state.threshold);
                let norm = report.squared_gradient.sqrt();
                Ok((report, norm))
            }
            Self::Dense(_, state) => {
                let report = state.step(plan, input, learning_rate)?;
                follow_threshold(plan, report.least, &mut state.threshold);
                let norm = report.squared_gradient.sqrt();
                Ok((report, norm))
            }
        }
    }

    /// What the coefficient of the penalty is multiplied by, so that an annealed exponent leaves the penalty as it was.
    pub(super) fn penalty_scale(&self) -> f64 {
        match self {
            Self::Sparse(both) => both.0.penalty_scale,
            Self::Dense(_, state) => state.penalty_scale,
        }
    }

    /// The layer of a cross-layer transcoder that this is, for the step that all layers take together.
    ///
    /// # Errors
    /// `Unsupported` on a GPU.
    pub(super) fn layer<'a>(&'a mut self, plan: &'a TrainPlan, input: StepInput<'a>) -> Result<Layer<'a>> {
        match self {
            Self::Sparse(both) => {
                let (state, workspace) = both.as_mut();
                Ok(Layer { state, workspace, plan, input })
            }
            Self::Dense(..) => Err(Error::Unsupported {
                what: "training cross-layer transcoders on a GPU".into(),
                why: "their step is written for the CPU".into(),
                remedy: "add --device cpu".into(),
            }),
        }
    }

    /// Takes the step whose gradients [`Engine::layer`] was filled with.
    pub(super) fn update(&mut self, plan: &TrainPlan, report: &BatchReport, learning_rate: f64) {
        if let Self::Sparse(both) = self {
            let (state, workspace) = both.as_mut();
            let norm = report.squared_gradient.sqrt();
            threads::in_pool(|| optimiser::update(state, &workspace.gradients, norm, learning_rate));
            follow_threshold(plan, report.least, &mut state.threshold);
        }
    }

    /// Before the penalty's exponent moves from `before`: changes its coefficient so that the penalty of this batch
    /// stays what it was (Karvonen et al. 2024, p-annealing).
    pub(super) fn anneal(&mut self, input: StepInput<'_>, before: f64) -> Result<()> {
        if (before - input.exponent).abs() < f64::EPSILON {
            return Ok(());
        }
        let state = self.state()?;
        let size = |exponent| step::penalty(&state, input.x, exponent);
        let (old, new) = (size(before), size(input.exponent));
        if old > 0.0 && new > 0.0 {
            self.edit(|state| state.penalty_scale *= old / new)?;
        }
        Ok(())
    }

    /// The state in this machine's memory.
    pub(super) fn state(&self) -> Result<Cow<'_, State>> {
        match self {
            Self::Sparse(both) => Ok(Cow::Borrowed(&both.0)),
            Self::Dense(_, state) => Ok(Cow::Owned(state.download()?)),
        }
    }

    /// Changes the state between steps.
    pub(super) fn edit<T>(&mut self, change: impl FnOnce(&mut State) -> T) -> Result<T> {
        match self {
            Self::Sparse(both) => Ok(change(&mut both.0)),
            Self::Dense(device, dense) => {
                let mut state = dense.download()?;
                let result = change(&mut state);
                **dense = DenseState::upload(&state, device)?;
                Ok(result)
            }
        }
    }
}
