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

    /// Head `i` of the output from input `i`: `x` is `[b, s, heads, in]`, the result `[b, s, heads, out / heads]`.
    pub(crate) fn forward_per_head(&self, x: &Tensor) -> Result<Tensor> {
        let (b, s, heads, d_in) = x.dims4()?;
        let weight = self.weight.contiguous()?.reshape((d_in, heads, ()))?.transpose(0, 1)?.contiguous()?; // n,in,h
        let x = x.permute((2, 0, 1, 3))?.contiguous()?.reshape((heads, b * s, d_in))?;
        let y = x.matmul(&weight)?.reshape((heads, b, s, ()))?.permute((1, 2, 0, 3))?.contiguous()?;
        Ok(match &self.bias {
            Some(bias) => y.broadcast_add(&bias.reshape((heads, ()))?)?,
            None => y,
        })
    }

    /// What each head's slice of the input contributes, without bias: `x` is `[b, s, heads, in / heads]`, the result
    /// `[b, s, heads, out]`.
    pub(crate) fn contributions(&self, x: &Tensor) -> Result<Tensor> {
        let (b, s, heads, d_head) = x.dims4()?;
        let d = self.weight.dim(1)?;
        let weight = self.weight.contiguous()?.reshape((heads, d_head, d))?;
        let x = x.permute((2, 0, 1, 3))?.contiguous()?.reshape((heads, b * s, d_head))?;
        let y = x.matmul(&weight)?.reshape((heads, b, s, d))?;
        Ok(y.permute((1, 2, 0, 3))?.contiguous()?)
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

/// `factor · x`
#[expect(clippy::float_cmp, reason = "one is exact in a configuration and stands for no multiplication at all")]
pub(super) fn scaled(x: Tensor, factor: f64) -> Result<Tensor> {
    Ok(if factor == 1.0 { x } else { (x * factor)? })
}
