//! Activation values in the three number types of a cache.

use std::io::{self, Write};

use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::{bf16, f16};
use safetensors::tensor::Dtype;

use crate::base::DtypeChoice;

/// Values converted at once, on the stack.
const CHUNK: usize = 512;

/// The safetensors name of a number type.
pub(super) fn stored_as(dtype: DtypeChoice) -> Dtype {
    match dtype {
        DtypeChoice::F32 => Dtype::F32,
        DtypeChoice::F16 => Dtype::F16,
        DtypeChoice::Bf16 => Dtype::BF16,
    }
}

/// Bytes of one value.
pub(super) fn bytes_per_value(dtype: DtypeChoice) -> usize {
    match dtype {
        DtypeChoice::F32 => 4,
        DtypeChoice::F16 | DtypeChoice::Bf16 => 2,
    }
}

/// A growing tensor in storage precision.
#[derive(Debug)]
pub(super) enum Values {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
}

impl Values {
    pub(super) fn new(dtype: DtypeChoice) -> Self {
        match dtype {
            DtypeChoice::F32 => Self::F32(Vec::new()),
            DtypeChoice::F16 => Self::F16(Vec::new()),
            DtypeChoice::Bf16 => Self::Bf16(Vec::new()),
        }
    }

    /// `n` zeros.
    pub(super) fn zeros(dtype: DtypeChoice, n: usize) -> Self {
        match dtype {
            DtypeChoice::F32 => Self::F32(vec![0.; n]),
            DtypeChoice::F16 => Self::F16(vec![f16::ZERO; n]),
            DtypeChoice::Bf16 => Self::Bf16(vec![bf16::ZERO; n]),
        }
    }

    /// Overwrites the values from `start` with `source`, rounded to nearest even; whether all are finite once stored.
    pub(super) fn set(&mut self, start: usize, source: &[f32]) -> bool {
        let range = start..start + source.len();
        match self {
            Self::F32(values) => {
                values[range].copy_from_slice(source);
                source.iter().all(|x| x.is_finite())
            }
            Self::F16(values) => {
                values[range.clone()].convert_from_f32_slice(source);
                values[range].iter().all(|x| x.is_finite())
            }
            Self::Bf16(values) => {
                values[range.clone()].convert_from_f32_slice(source);
                values[range].iter().all(|x| x.is_finite())
            }
        }
    }

    /// Copies the values from `start` into `out`.
    pub(super) fn get(&self, start: usize, out: &mut [f32]) {
        let range = start..start + out.len();
        match self {
            Self::F32(values) => out.copy_from_slice(&values[range]),
            Self::F16(values) => values[range].convert_to_f32_slice(out),
            Self::Bf16(values) => values[range].convert_to_f32_slice(out),
        }
    }

    pub(super) fn clear(&mut self) {
        match self {
            Self::F32(values) => values.clear(),
            Self::F16(values) => values.clear(),
            Self::Bf16(values) => values.clear(),
        }
    }

    pub(super) fn byte_len(&self) -> usize {
        match self {
            Self::F32(values) => values.len() * 4,
            Self::F16(values) => values.len() * 2,
            Self::Bf16(values) => values.len() * 2,
        }
    }

    /// Appends `source`, rounded to nearest even.
    ///
    /// # Errors
    /// The number of values that are not finite once stored and the index of the first; nothing is appended then.
    pub(super) fn extend(&mut self, source: &[f32]) -> Result<(), (usize, usize)> {
        let before;
        let bad = match self {
            Self::F32(values) => {
                before = values.len();
                values.extend_from_slice(source);
                count_bad(source, |x| !x.is_finite())
            }
            Self::F16(values) => {
                before = values.len();
                values.resize(before + source.len(), f16::ZERO);
                values[before..].convert_from_f32_slice(source);
                count_bad(&values[before..], |x| !x.is_finite())
            }
            Self::Bf16(values) => {
                before = values.len();
                values.resize(before + source.len(), bf16::ZERO);
                values[before..].convert_from_f32_slice(source);
                count_bad(&values[before..], |x| !x.is_finite())
            }
        };
        if bad.is_some() {
            match self {
                Self::F32(values) => values.truncate(before),
                Self::F16(values) => values.truncate(before),
                Self::Bf16(values) => values.truncate(before),
            }
        }
        bad.map_or(Ok(()), Err)
    }

    /// Writes the values, little-endian.
    pub(super) fn write_to(&self, out: &mut impl Write) -> io::Result<()> {
        match self {
            Self::F32(values) => write_chunks(values, out, f32::to_le_bytes),
            Self::F16(values) => write_chunks(values, out, f16::to_le_bytes),
            Self::Bf16(values) => write_chunks(values, out, bf16::to_le_bytes),
        }
    }
}

fn count_bad<T: Copy>(values: &[T], bad: impl Fn(T) -> bool) -> Option<(usize, usize)> {
    let count = values.iter().filter(|&&x| bad(x)).count();
    (count > 0).then(|| (count, values.iter().position(|&x| bad(x)).unwrap_or_default()))
}

/// Writes `values` through a buffer of bytes, so that one call of the system writes many values.
pub(super) fn write_chunks<T: Copy, const N: usize>(
    values: &[T],
    out: &mut impl Write,
    bytes: impl Fn(T) -> [u8; N],
) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(N * 64 * CHUNK);
    for chunk in values.chunks(64 * CHUNK) {
        buffer.clear();
        for &x in chunk {
            buffer.extend_from_slice(&bytes(x));
        }
        out.write_all(&buffer)?;
    }
    Ok(())
}

/// Decodes stored little-endian `bytes` into `out`, which has one place for every value.
pub(super) fn decode(dtype: DtypeChoice, bytes: &[u8], out: &mut [f32]) {
    match dtype {
        DtypeChoice::F32 => {
            for (x, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *x = f32::from_le_bytes(*b);
            }
        }
        DtypeChoice::F16 => {
            decode_halves(bytes, out, |bits, out| bits.reinterpret_cast::<f16>().convert_to_f32_slice(out));
        }
        DtypeChoice::Bf16 => {
            for (x, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *x = f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
            }
        }
    }
}

fn decode_halves(bytes: &[u8], out: &mut [f32], convert: impl Fn(&[u16], &mut [f32])) {
    let mut bits = [0u16; CHUNK];
    for (out, bytes) in out.chunks_mut(CHUNK).zip(bytes.chunks(2 * CHUNK)) {
        let bits = &mut bits[..out.len()];
        for (x, b) in bits.iter_mut().zip(bytes.as_chunks::<2>().0) {
            *x = u16::from_le_bytes(*b);
        }
        convert(bits, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_return_as_the_nearest_of_their_type() {
        let source: Vec<f32> = (0..1300).map(|i| (i as f32 - 650.) * 1.000_123).collect();
        for dtype in [DtypeChoice::F32, DtypeChoice::F16, DtypeChoice::Bf16] {
            let mut values = Values::new(dtype);
            values.extend(&source[..3]).unwrap();
            values.extend(&source[3..]).unwrap();
            let mut bytes = Vec::new();
            values.write_to(&mut bytes).unwrap();
            assert_eq!((bytes.len(), values.byte_len()), (1300 * bytes_per_value(dtype), bytes.len()));
            let mut back = vec![0.; 1300];
            decode(dtype, &bytes, &mut back);
            let nearest = |x: &f32| match dtype {
                DtypeChoice::F32 => *x,
                DtypeChoice::F16 => f16::from_f32(*x).to_f32(),
                DtypeChoice::Bf16 => bf16::from_f32(*x).to_f32(),
            };
            assert_eq!(back, source.iter().map(nearest).collect::<Vec<_>>());
            let mut placed = Values::zeros(dtype, 1310);
            assert!(placed.set(7, &source));
            let mut got = vec![1.; 1302];
            placed.get(6, &mut got);
            assert_eq!((got[0], &got[1..1301], got[1301]), (0., &back[..], 0.));
        }
    }

    #[test]
    fn what_does_not_fit_is_counted_and_not_stored() {
        let mut values = Values::new(DtypeChoice::F16);
        assert_eq!(values.extend(&[1., 65_504., -70_000., 2., 1e9]), Err((2, 2)));
        assert_eq!(values.byte_len(), 0);
        assert!(!Values::zeros(DtypeChoice::F16, 2).set(0, &[1., 70_000.]));
        assert_eq!(Values::new(DtypeChoice::Bf16).extend(&[1., f32::NAN]), Err((1, 1)));
        assert_eq!(Values::new(DtypeChoice::Bf16).extend(&[70_000.]), Ok(()));
        assert_eq!(Values::new(DtypeChoice::F32).extend(&[f32::INFINITY]), Err((1, 0)));
    }
}
