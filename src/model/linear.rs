//! `y = x Wᵀ + b`

use candle_core::Tensor;

use crate::base::Result;

/// A linear map whose weight is held as `[in, out]`.
#[derive(Debug, Clone)]
pub(crate) struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// `weight` is `[in, out]`, in any memory order.
    pub(crate) fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight, bias }
    }

    /// `x` is `[b, s, in]`, the result `[b, s, out]`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (b, s, d_in) = x.dims3()?;
        let y = x.reshape((b * s, d_in))?.matmul(&self.weight)?;
        let y = match &self.bias {
            Some(bias) => y.broadcast_add(bias)?,
            None => y,
        };
        Ok(y.reshape((b, s, ()))?)
    }

    /// The `[in, out]` weight.
    pub(crate) fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// The `[out]` bias.
    pub(crate) fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }
}
