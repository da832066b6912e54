//! Where steps run: sparse kernels on the CPU, candle's tensors elsewhere.

use std::borrow::Cow;

use candle_core::Device;

use super::dense::DenseState;
use super::optimiser;
use super::parameters::State;
use super::step::{BatchReport, Workspace};
use crate::base::Result;

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
    pub(super) fn new(state: State, device: &Device) -> Result<Self> {
        if device.is_cpu() {
            let workspace = Workspace::new(state.weights.width, state.weights.features());
            return Ok(Self::Sparse(Box::new((state, workspace))));
        }
        Ok(Self::Dense(device.clone(), Box::new(DenseState::upload(&state, device)?)))
    }

    /// One training step on scaled rows `x`, `[n, d]`; gives the report and the gradients' norm before clipping.
    pub(super) fn step(&mut self, x: &[f32], l1_coefficient: f64, learning_rate: f64) -> Result<(BatchReport, f64)> {
        match self {
            Self::Sparse(both) => {
                let (state, workspace) = both.as_mut();
                let report = workspace.gradients(&state.weights, x, l1_coefficient);
                let norm = optimiser::update(state, &workspace.gradients, learning_rate);
                Ok((report, norm))
            }
            Self::Dense(_, state) => state.step(x, l1_coefficient, learning_rate),
        }
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
