//! Between candle's tensors and the kernels of [`crate::ops`], which work on slices of f32 in main memory.
//!
//! A tensor is plain when it is f32, on the CPU, and nobody differentiates it. Everything else takes candle's own
//! operations.

use candle_core::{DType, Storage, Tensor};

use crate::base::{Context, Result};
use crate::ops::lanes;

/// Whether kernels on slices may replace candle's operations on `x`.
pub(super) fn is_plain(x: &Tensor) -> bool {
    x.device().is_cpu() && x.dtype() == DType::F32 && !x.track_op()
}

/// Calls `f` with the values of a plain tensor in row-major order.
pub(super) fn read<R>(x: &Tensor, f: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let x = x.contiguous()?;
    let (storage, layout) = x.storage_and_layout();
    let values = match &*storage {
        Storage::Cpu(storage) => storage.as_slice::<f32>(),
        _ => Err(candle_core::Error::Msg("a kernel for the CPU was given a tensor of another device".into())),
    };
    let start = layout.start_offset();
    Ok(f(&values.during(|| "reading a tensor's values".into())?[start..start + layout.shape().elem_count()]))
}

/// A tensor of `shape` that takes over `values`.
pub(super) fn tensor(values: Vec<f32>, shape: &[usize], like: &Tensor) -> Result<Tensor> {
    Tensor::from_vec(values, shape, like.device()).during(|| "making a tensor of computed values".into())
}

/// `x + y`. candle's sum wakes all its threads, whatever this one is doing.
pub(super) fn add(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    if !is_plain(x) || !is_plain(y) || x.dims() != y.dims() {
        return Ok((x + y)?);
    }
    tensor(read(x, |x| read(y, |y| lanes::sum_of(x, y)))??, x.dims(), x)
}
