//! What weights say about directions of the residual stream, without running the model.

use candle_core::{DType, Tensor};

use super::config::BlockLayout;
use super::decoder::Model;
use super::mlp::Mlp;
use crate::base::Result;

impl Model {
    /// Directions `x` `[n, d]` as the final norm passes them on when its divisor is held at one: centred where the norm
    /// centres, times its gain. As they are where there is no final norm.
    ///
    /// # Errors
    /// When `x` has another width.
    pub fn through_final_norm(&self, x: &Tensor) -> Result<Tensor> {
        self.ln_final.as_ref().map_or_else(|| Ok(x.clone()), |norm| norm.linear_part(x))
    }

    /// The direction that each neuron of the MLP of block `layer` adds to the residual stream, `[d_mlp, d]` in f32: its
    /// row of `W_out`, through the norm of the MLP's output where there is one, its divisor held at one. `None` where
    /// the block has no such MLP (a mixture of experts) or was not opened.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn neuron_outputs(&self, layer: usize) -> Result<Option<Tensor>> {
        let Some(block) = self.blocks.get(layer) else { return Ok(None) };
        let Mlp::Dense(dense) = &block.mlp else { return Ok(None) };
        let mut rows = dense.down.weight(self.dtype())?.to_dtype(DType::F32)?;
        let own = (block.layout == BlockLayout::OutputNorm).then_some(&block.ln2);
        for norm in block.ln2_post.iter().chain(own) {
            rows = norm.linear_part(&rows)?;
        }
        Ok(Some(rows))
    }
}
