//! The block's MLP: `down(act(in(x)))`, gated `down(act(gate(x)) · up(x))`, or a mixture of gated ones.

use candle_core::Tensor;

use crate::base::Result;

use super::config::Activation;
use super::experts::Experts;
use super::hook::{HookPoint, Site};
use super::linear::Linear;
use super::tap::Tap;

/// The MLP of one block.
#[derive(Debug, Clone)]
pub(crate) enum Mlp {
    /// One MLP for every position.
    Dense(Dense),
    /// A few of many for each position.
    Experts(Experts),
}

/// An MLP that every position goes through.
#[derive(Debug, Clone)]
pub(crate) struct Dense {
    pub(super) layer: usize,
    pub(super) activation: Activation,
    /// The projection under the nonlinearity: `gate` in gated MLPs, else the only input projection.
    pub(super) pre: Linear,
    /// The linear branch of gated MLPs.
    pub(super) up: Option<Linear>,
    pub(super) down: Linear,
}

/// A gated MLP without hook points.
#[derive(Debug, Clone)]
pub(crate) struct Gated {
    pub(super) activation: Activation,
    pub(super) gate: Linear,
    pub(super) up: Linear,
    pub(super) down: Linear,
}

impl Mlp {
    /// `x` is the MLP's input `[b, s, d]`; the result is its raw output, `None` when the plan ends inside.
    pub(super) fn forward(&self, x: &Tensor, tap: &mut Tap<'_>) -> Result<Option<Tensor>> {
        let (layer, out) = match self {
            Self::Dense(dense) => (dense.layer, dense.forward(x, tap)?),
            Self::Experts(experts) => (experts.layer, experts.forward(x, tap)?),
        };
        out.map(|out| tap.at(HookPoint::block(layer, Site::MlpHookOut), out)).transpose()
    }
}

impl Dense {
    fn forward(&self, x: &Tensor, tap: &mut Tap<'_>) -> Result<Option<Tensor>> {
        let at = |site| HookPoint::block(self.layer, site);
        let pre = tap.at(at(Site::MlpPre), self.pre.forward(x)?)?;
        let mut post = activate(&pre, self.activation)?;
        if let Some(up) = &self.up {
            let linear = tap.at(at(Site::MlpPreLinear), up.forward(x)?)?;
            post = (post * linear)?;
        }
        let post = tap.at(at(Site::MlpPost), post)?;
        if tap.stops_at(self.layer, Site::MlpPost) {
            return Ok(None);
        }
        Ok(Some(self.down.forward(&post)?))
    }
}

impl Gated {
    /// `x` is `[b, s, d]`, and so is the result.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.down.forward(&(activate(&self.gate.forward(x)?, self.activation)? * self.up.forward(x)?)?)
    }
}

fn activate(x: &Tensor, activation: Activation) -> Result<Tensor> {
    Ok(match activation {
        Activation::Gelu => x.gelu_erf()?,
        Activation::GeluTanh => x.gelu()?,
        // σ(1.702 x) x, by way of silu(1.702 x) = 1.702 x σ(1.702 x).
        Activation::QuickGelu => ((x * 1.702)?.silu()? / 1.702)?,
        Activation::Silu => x.silu()?,
        Activation::Relu => x.relu()?,
    })
}
