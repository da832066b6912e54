//! The block's MLP: `down(act(in(x)))`, gated `down(act(gate(x)) · up(x))`, or a mixture of gated ones.

use candle_core::Tensor;

use crate::base::Result;
use crate::ops::{bf16, lanes};

use super::config::Activation;
use super::experts::Experts;
use super::hook::{HookPoint, Site};
use super::linear::{Input, Linear};
use super::plain;
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
        let input = Input::new(x);
        let inside = [Site::MlpPre, Site::MlpPreLinear, Site::MlpPost];
        if let Some(up) = &self.up
            && !inside.iter().any(|&site| tap.wants(at(site)))
            && let Some(out) = fused(&input, [&self.pre, up, &self.down], self.activation)?
        {
            return Ok(Some(out));
        }
        let pre = tap.at(at(Site::MlpPre), self.pre.forward_input(&input)?)?;
        let linear = match &self.up {
            Some(up) => Some(tap.at(at(Site::MlpPreLinear), up.forward_input(&input)?)?),
            None => None,
        };
        let post = tap.at(at(Site::MlpPost), activate(&pre, linear.as_ref(), self.activation)?)?;
        if tap.stops_at(self.layer, Site::MlpPost) {
            return Ok(None);
        }
        Ok(Some(self.down.forward(&post)?))
    }
}

impl Gated {
    /// `x` is `[…, d]`, and so is the result.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let input = Input::new(x);
        if let Some(out) = fused(&input, [&self.gate, &self.up, &self.down], self.activation)? {
            return Ok(out);
        }
        let (pre, linear) = (self.gate.forward_input(&input)?, self.up.forward_input(&input)?);
        self.down.forward(&activate(&pre, Some(&linear), self.activation)?)
    }
}

/// A gated MLP without storing what is inside it, where its weights are packed.
fn fused(input: &Input<'_>, [gate, up, down]: [&Linear; 3], activation: Activation) -> Result<Option<Tensor>> {
    let (Some(gate), Some(up)) = (gate.packed_without_bias(), up.packed_without_bias()) else { return Ok(None) };
    let post = bf16::gated(input.rows()?, gate, up, activation);
    down.forward_rows(&post, input.tensor())
}

/// `act(pre)`, times `linear` where there is one.
fn activate(pre: &Tensor, linear: Option<&Tensor>, activation: Activation) -> Result<Tensor> {
    if plain::is_plain(pre) && linear.is_none_or(plain::is_plain) {
        let post = plain::read(pre, |pre| match linear {
            Some(linear) => plain::read(linear, |linear| lanes::activated(pre, Some(linear), activation)),
            None => Ok(lanes::activated(pre, None, activation)),
        })??;
        return plain::tensor(post, pre.dims(), pre);
    }
    let post = match activation {
        Activation::Gelu => pre.gelu_erf()?,
        Activation::GeluTanh => pre.gelu()?,
        // σ(1.702 x) x, by way of silu(1.702 x) = 1.702 x σ(1.702 x).
        Activation::QuickGelu => ((pre * 1.702)?.silu()? / 1.702)?,
        Activation::Silu => pre.silu()?,
        Activation::Relu => pre.relu()?,
    };
    Ok(match linear {
        Some(linear) => (post * linear)?,
        None => post,
    })
}
