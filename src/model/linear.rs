//! `y = x Wᵀ + b`, in the number type of the tensors or, on the CPU, with bf16 weights and sums in f32.

use std::cell::OnceCell;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use candle_core::{D, DType, Device, Storage, Tensor};
use half::bf16;
use half::slice::HalfFloatSliceExt;
use half::vec::HalfBitsVecExt;

use crate::base::{Context, Result};
use crate::ops::bf16::{Packed, Rows, multiply, product};
use crate::ops::{gemm, lanes};

use super::plain;

/// A linear map from `in` to `out` values.
#[derive(Debug, Clone)]
pub(crate) struct Linear {
    weight: Weight,
    bias: Option<Tensor>,
}

#[derive(Debug, Clone)]
enum Weight {
    /// `[in, out]`, in any memory order.
    Dense(Tensor),
    /// An f32 weight whose values are all bf16's, `[out, in]` in bf16: the same numbers in half the memory.
    Halved(Tensor),
    /// bf16, laid out for the kernel.
    Packed(Arc<Packed>),
    /// A bf16 tensor `[in, out]` that others hold too, packed when first needed.
    Shared(Tensor, Arc<OnceLock<Packed>>),
}

/// Values on their way into one or several linear maps, `[…, in]`; rounded to bf16 once for all of them.
pub(super) struct Input<'a> {
    x: &'a Tensor,
    rounded: OnceCell<Rows>,
}

impl<'a> Input<'a> {
    pub(super) fn new(x: &'a Tensor) -> Self {
        Self { x, rounded: OnceCell::new() }
    }

    /// The values as they came.
    pub(super) fn tensor(&self) -> &Tensor {
        self.x
    }

    fn width(&self) -> Result<usize> {
        Ok(self.x.dim(D::Minus1)?)
    }

    /// The values as rows of bf16.
    pub(super) fn rows(&self) -> Result<&Rows> {
        if let Some(rows) = self.rounded.get() {
            return Ok(rows);
        }
        let width = self.width()?;
        let rows = plain::read(self.x, |x| Rows::round(x, x.len() / width.max(1), width))?;
        Ok(self.rounded.get_or_init(|| rows))
    }
}

impl Linear {
    /// `weight` is `[in, out]`, in any memory order. An f32 weight on the CPU is held as bf16 where that loses nothing:
    /// most checkpoints are bf16.
    pub(crate) fn new(weight: Tensor, bias: Option<Tensor>) -> Result<Self> {
        let weight = match halved(&weight.t()?)? {
            Some(half) => Weight::Halved(half),
            None => Weight::Dense(weight),
        };
        Ok(Self { weight, bias })
    }

    /// A map with the embedding `[out, in]` as its weight, which is held as it is.
    pub(crate) fn tied(embed: &Tensor, bias: Option<Tensor>) -> Result<Self> {
        let halved = embed.dtype() == DType::BF16 && embed.device().is_cpu();
        let weight = if halved { Weight::Halved(embed.clone()) } else { Weight::Dense(embed.t()?) };
        Ok(Self { weight, bias })
    }

    /// As [`Linear::new`] for a bf16 weight on the CPU, which is copied into the kernel's layout; `bias` is f32.
    pub(crate) fn packed(weight: &Tensor, bias: Option<Tensor>) -> Result<Self> {
        Ok(Self { weight: Weight::Packed(Arc::new(pack(weight)?)), bias })
    }

    /// As [`Linear::packed`], but the copy is made at the first product: for weights that may not be needed.
    pub(crate) fn packed_when_used(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight: Weight::Shared(weight, Arc::default()), bias }
    }

    /// The kernel's layout of a weight without bias, for products that bring several maps together.
    pub(super) fn packed_without_bias(&self) -> Option<&Packed> {
        match &self.weight {
            Weight::Packed(packed) if self.bias.is_none() => Some(packed),
            _ => None,
        }
    }

    /// Whether products round their inputs to bf16.
    pub(super) fn is_packed(&self) -> bool {
        matches!(self.weight, Weight::Packed(_) | Weight::Shared(..))
    }

    /// `x` is `[…, in]`, the result `[…, out]`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_input(&Input::new(x))
    }

    /// As [`Linear::forward`], for an input that several maps share.
    pub(super) fn forward_input(&self, input: &Input<'_>) -> Result<Tensor> {
        match &self.weight {
            Weight::Dense(weight) => return self.dense_product(input, weight),
            Weight::Halved(half) => return self.halved_product(input, half),
            Weight::Packed(_) | Weight::Shared(..) => {}
        }
        let y = self.forward_rows(input.rows()?, input.x)?;
        y.ok_or_else(|| candle_core::Error::Msg("a packed product without a packed weight".into()).into())
    }

    /// As [`Linear::forward`] for an input that is rounded already, in the shape of `like` but for the last axis; `None`
    /// where the weight is not packed.
    pub(super) fn forward_rows(&self, rows: &Rows, like: &Tensor) -> Result<Option<Tensor>> {
        let packed = match &self.weight {
            Weight::Dense(_) | Weight::Halved(_) => return Ok(None),
            Weight::Packed(packed) => packed,
            Weight::Shared(weight, packed) => {
                if let Some(packed) = packed.get() {
                    packed
                } else {
                    let made = pack(weight)?;
                    packed.get_or_init(|| made)
                }
            }
        };
        let y = match &self.bias {
            Some(bias) => {
                let mut y = plain::read(bias, |bias| bias.repeat(rows.rows()))?;
                multiply(&mut y, rows, packed, true);
                y
            }
            None => product(rows, packed),
        };
        plain::tensor(y, &shape_with(like, packed.n()), like).map(Some)
    }

    /// The values that the f32 weight would give, widened on the way.
    fn halved_product(&self, input: &Input<'_>, half: &Tensor) -> Result<Tensor> {
        let (n, k) = half.dims2()?;
        let rows = input.x.elem_count() / k.max(1);
        if rows > gemm::FEW_ROWS || !plain::is_plain(input.x) {
            return self.dense_product(input, &widened(half)?.t()?);
        }
        let y = plain::read(input.x, |x| read_bits(half, |bits| gemm::few_rows_of_bf16(x, bits, rows, k)))??;
        self.finish(plain::tensor(y, &[rows, n], input.x)?, input.x, n)
    }

    fn dense_product(&self, input: &Input<'_>, weight: &Tensor) -> Result<Tensor> {
        let x = input.x;
        let width = input.width()?;
        let y = match few_rows(x, weight, width)? {
            Some(y) => y,
            None => x.reshape((x.elem_count() / width.max(1), width))?.matmul(weight)?,
        };
        self.finish(y, x, weight.dim(1)?)
    }

    /// Adds the bias and gives `y` the shape of `like` but for the last axis.
    fn finish(&self, y: Tensor, like: &Tensor, width: usize) -> Result<Tensor> {
        let y = match &self.bias {
            Some(bias) => y.broadcast_add(bias)?,
            None => y,
        };
        Ok(y.reshape(shape_with(like, width))?)
    }

    /// Head `i` of the output from input `i`: `x` is `[b, s, heads, in]`, the result `[b, s, heads, out / heads]`.
    pub(crate) fn forward_per_head(&self, x: &Tensor) -> Result<Tensor> {
        let (b, s, heads, d_in) = x.dims4()?;
        let weight = self.weight(x.dtype())?.contiguous()?.reshape((d_in, heads, ()))?.transpose(0, 1)?.contiguous()?;
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
        let weight = self.weight(x.dtype())?;
        let d = weight.dim(1)?;
        let weight = weight.contiguous()?.reshape((heads, d_head, d))?;
        let x = x.permute((2, 0, 1, 3))?.contiguous()?.reshape((heads, b * s, d_head))?;
        let y = x.matmul(&weight)?.reshape((heads, b, s, d))?;
        Ok(y.permute((1, 2, 0, 3))?.contiguous()?)
    }

    /// The `[in, out]` weight as a tensor of that number type; dense weights are returned as they are.
    pub(crate) fn weight(&self, dtype: DType) -> Result<Tensor> {
        match &self.weight {
            Weight::Dense(weight) => Ok(weight.clone()),
            Weight::Halved(half) => Ok(widened(half)?.t()?),
            Weight::Shared(weight, _) => Ok(weight.to_dtype(dtype)?),
            Weight::Packed(packed) => {
                let values: Vec<bf16> = packed.unpack().into_iter().map(bf16::from_bits).collect();
                let weight = Tensor::from_vec(values, (packed.k(), packed.n()), &Device::Cpu);
                Ok(weight.and_then(|w| w.to_dtype(dtype))?)
            }
        }
    }

    /// The same map, for many calls of [`Self::outputs`]: packed weights are unpacked once.
    pub(super) fn unpacked(&self) -> Result<Self> {
        let mut plain = self.clone();
        if matches!(self.weight, Weight::Packed(_)) {
            plain.weight = Weight::Dense(self.weight(DType::BF16)?);
        }
        Ok(plain)
    }

    /// The rows of weights `[n, in]` that make the outputs in `range`, in f32 where they are held as such.
    pub(super) fn outputs(&self, range: Range<usize>) -> Result<Tensor> {
        let (first, n) = (range.start, range.len());
        Ok(match &self.weight {
            Weight::Halved(half) => widened(&half.narrow(0, first, n)?)?,
            Weight::Dense(weight) | Weight::Shared(weight, _) => weight.narrow(1, first, n)?.t()?.contiguous()?,
            Weight::Packed(_) => self.weight(DType::F32)?.narrow(1, first, n)?.t()?.contiguous()?,
        })
    }

    /// The `[out]` bias.
    pub(crate) fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }
}

/// The shape of `x` with another last axis.
fn shape_with(x: &Tensor, width: usize) -> Vec<usize> {
    let mut shape = x.dims().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = width;
    }
    shape
}

/// A plain matrix in bf16, if that loses nothing.
pub(super) fn halved(x: &Tensor) -> Result<Option<Tensor>> {
    if !plain::is_plain(x) || !x.is_contiguous() {
        return Ok(None);
    }
    let Some(bits) = plain::read(x, lanes::halved)? else { return Ok(None) };
    let values: Vec<bf16> = bits.reinterpret_into();
    Ok(Some(Tensor::from_vec(values, x.dims(), x.device())?))
}

/// A bf16 matrix in f32.
fn widened(half: &Tensor) -> Result<Tensor> {
    plain::tensor(read_bits(half, lanes::widened)?, half.dims(), half)
}

/// Calls `f` with the bits of a contiguous bf16 tensor on the CPU.
fn read_bits<R>(x: &Tensor, f: impl FnOnce(&[u16]) -> R) -> Result<R> {
    let (storage, layout) = x.storage_and_layout();
    let values = match &*storage {
        Storage::Cpu(storage) => storage.as_slice::<bf16>(),
        _ => Err(candle_core::Error::Msg("bf16 weights as bits are for the CPU".into())),
    };
    let values = values.during(|| "reading a weight".into())?;
    Ok(f(values[layout.start_offset()..][..x.elem_count()].reinterpret_cast()))
}

/// Copies a bf16 weight `[in, out]` into the kernel's layout.
fn pack(weight: &Tensor) -> Result<Packed> {
    let (d_in, d_out) = weight.dims2()?;
    // Checkpoints store most weights as [out, in], of which `weight` is a transposed view.
    let out_in = weight.t()?.is_contiguous();
    let weight = if out_in { weight.t()? } else { weight.contiguous()? };
    read_bits(&weight, |bits| {
        if out_in { Packed::from_out_in(bits, d_out, d_in) } else { Packed::from_in_out(bits, d_in, d_out) }
    })
}

/// The product of a few plain rows with a dense weight stored as `[out, in]`, by dot products over all threads; `None`
/// where candle's product is the better way.
fn few_rows(x: &Tensor, weight: &Tensor, width: usize) -> Result<Option<Tensor>> {
    let rows = x.elem_count() / width.max(1);
    let stored = weight.t()?;
    if rows > gemm::FEW_ROWS || !plain::is_plain(x) || !plain::is_plain(&stored) || !stored.is_contiguous() {
        return Ok(None);
    }
    let n = stored.dim(0)?;
    let y = plain::read(x, |x| plain::read(&stored, |w| gemm::few_rows(x, w, rows, width)))??;
    Ok(Some(plain::tensor(y, &[rows, n], x)?))
}

/// `factor · x`
#[expect(clippy::float_cmp, reason = "one is exact in a configuration and stands for no multiplication at all")]
pub(super) fn scaled(x: Tensor, factor: f64) -> Result<Tensor> {
    Ok(if factor == 1.0 { x } else { (x * factor)? })
}
