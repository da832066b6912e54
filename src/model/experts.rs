//! A mixture of gated MLPs (Shazeer et al. 2017, arXiv:1701.06538): each position goes through the few experts that its
//! router finds most likely.
//!
//! ```text
//! p = softmax(x W_router)                       over all experts, in f32
//! y = Σ over the k largest p_e:  p_e · down_e(act(gate_e(x)) · up_e(x))
//! ```
//!
//! The weights of the k may be divided by their sum. A shared expert is added for every position, times a sigmoid.

use candle_core::{D, DType, Tensor};

use crate::base::Result;

use super::hook::{HookPoint, Site};
use super::linear::Linear;
use super::mlp::Gated;
use super::tap::Tap;

/// The experts of one block.
#[derive(Debug, Clone)]
pub(crate) struct Experts {
    pub(super) layer: usize,
    pub(super) router: Linear,
    pub(super) all: Vec<Gated>,
    /// Experts a position goes through.
    pub(super) active: usize,
    /// Whether the weights of these are divided by their sum.
    pub(super) normalise: bool,
    /// An expert for every position and the projection to its weight.
    pub(super) shared: Option<(Gated, Linear)>,
}

impl Experts {
    /// As [`super::mlp::Mlp::forward`], before `mlp.hook_out`.
    pub(super) fn forward(&self, x: &Tensor, tap: &mut Tap<'_>) -> Result<Option<Tensor>> {
        let at = |site| HookPoint::block(self.layer, site);
        let (b, s, d) = x.dims3()?;
        let logits = self.router.forward(x)?.to_dtype(DType::F32)?;
        let probabilities = tap.at(at(Site::ExpertWeights), candle_nn::ops::softmax(&logits, D::Minus1)?)?;
        let order = probabilities.contiguous()?.arg_sort_last_dim(false)?;
        let chosen = order.narrow(D::Minus1, 0, self.active)?.contiguous()?; // b,s,k
        let weights = probabilities.contiguous()?.gather(&chosen, D::Minus1)?;
        let weights = if self.normalise { weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)? } else { weights };
        let chosen = tap.at(at(Site::ExpertIndices), chosen)?;
        if tap.stops_at(self.layer, Site::ExpertIndices) {
            return Ok(None);
        }
        let rows = x.reshape((b * s, d))?;
        let weights = weights.to_dtype(x.dtype())?.flatten_all()?;
        let y = self.mixture(&rows, &chosen.flatten_all()?.to_vec1::<u32>()?, &weights)?.reshape((b, s, d))?;
        Ok(Some(match &self.shared {
            Some((expert, gate)) => {
                (y + expert.forward(x)?.broadcast_mul(&candle_nn::ops::sigmoid(&gate.forward(x)?)?)?)?
            }
            None => y,
        }))
    }

    /// What the chosen experts make of `rows` `[n, d]`. `chosen` and `weights` `[n · k]` are parallel.
    fn mixture(&self, rows: &Tensor, chosen: &[u32], weights: &Tensor) -> Result<Tensor> {
        let d = rows.dim(1)?;
        let mut y = rows.zeros_like()?;
        for (e, expert) in self.all.iter().enumerate() {
            let places: Vec<u32> = (0..chosen.len()).filter(|&i| chosen[i] as usize == e).map(|i| i as u32).collect();
            if places.is_empty() {
                continue;
            }
            let n = places.len();
            let positions: Vec<u32> = places.iter().map(|&place| place / self.active as u32).collect();
            let positions = Tensor::from_vec(positions, n, rows.device())?;
            let places = Tensor::from_vec(places, n, rows.device())?;
            let out = expert.forward(&rows.index_select(&positions, 0)?.unsqueeze(0)?)?.reshape((n, d))?;
            let out = out.broadcast_mul(&weights.index_select(&places, 0)?.unsqueeze(1)?)?;
            y = y.index_add(&positions, &out, 0)?;
        }
        Ok(y)
    }
}
