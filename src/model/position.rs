//! Rotary position embedding (Su et al. 2021, arXiv:2104.09864) with the scalings of Hugging Face configurations.
//!
//! `rot(x, p) = x · cos(p ω) + rotate_half(x) · sin(p ω)` with `ω_j = θ^(−2j/h)`, halves of a head rotated against
//! each other. Angles are computed in f32 as the reference implementation does, so that long contexts agree.

use candle_core::{D, DType, Device, Tensor};

use crate::base::Result;

use super::config::{RopeScaling, Rotary};

impl Rotary {
    /// Whether a sequence that grows from `before` to `after` positions turns all of them anew, so that what was
    /// computed for the earlier ones no longer holds.
    pub(crate) fn changes_between(&self, before: usize, after: usize) -> bool {
        match self.scaling {
            RopeScaling::Dynamic { .. } | RopeScaling::Longrope { .. } => {
                self.frequencies(before) != self.frequencies(after)
            }
            RopeScaling::None | RopeScaling::Linear { .. } | RopeScaling::Llama3 { .. } | RopeScaling::Yarn { .. } => {
                false
            }
        }
    }

    /// Frequencies `[dims / 2]` for a sequence of `length` positions, and the factor on cosine and sine.
    pub(crate) fn frequencies(&self, length: usize) -> (Vec<f32>, f64) {
        let dim = self.dims as f64;
        let plain =
            |theta: f64| -> Vec<f64> { (0..self.dims / 2).map(|j| theta.powf(-2.0 * j as f64 / dim)).collect() };
        let (freqs, factor) = match &self.scaling {
            RopeScaling::None => (plain(self.theta), 1.0),
            RopeScaling::Linear { factor } => (plain(self.theta).iter().map(|f| f / factor).collect(), 1.0),
            RopeScaling::Dynamic { factor, max_position_embeddings } => {
                let max = *max_position_embeddings as f64;
                let stretch = factor * (length as f64).max(max) / max - (factor - 1.0);
                (plain(self.theta * stretch.powf(dim / (dim - 2.0))), 1.0)
            }
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                let original = *original_max_position_embeddings as f64;
                let scale = |f: f64| {
                    let wavelength = std::f64::consts::TAU / f;
                    if wavelength > original / low_freq_factor {
                        f / factor
                    } else if wavelength < original / high_freq_factor {
                        f
                    } else {
                        let s = (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                        (1.0 - s) * f / factor + s * f
                    }
                };
                (plain(self.theta).into_iter().map(scale).collect(), 1.0)
            }
            RopeScaling::Yarn { .. } => self.yarn(plain(self.theta), dim),
            RopeScaling::Longrope { short_factor, long_factor, attention_factor, original_max_position_embeddings } => {
                let divisors = if length > *original_max_position_embeddings { long_factor } else { short_factor };
                (plain(self.theta).iter().zip(divisors).map(|(f, ext)| f / ext).collect(), *attention_factor)
            }
        };
        (freqs.into_iter().map(|f| f as f32).collect(), factor)
    }

    /// Peng et al. 2023 (arXiv:2309.00071), section 3.2: interpolation ramps from fast to slow dimensions.
    fn yarn(&self, freqs: Vec<f64>, dim: f64) -> (Vec<f64>, f64) {
        let RopeScaling::Yarn {
            factor,
            beta_fast,
            beta_slow,
            attention_factor,
            original_max_position_embeddings,
            truncate,
        } = &self.scaling
        else {
            return (freqs, 1.0);
        };
        let original = *original_max_position_embeddings as f64;
        let dimension =
            |rotations: f64| dim * (original / (rotations * std::f64::consts::TAU)).ln() / (2.0 * self.theta.ln());
        let (mut low, mut high) = (dimension(*beta_fast), dimension(*beta_slow));
        if *truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(dim - 1.0));
        if (high - low).abs() < f64::EPSILON {
            high += 0.001;
        }
        let scale = |(j, f): (usize, f64)| {
            let ramp = ((j as f64 - low) / (high - low)).clamp(0.0, 1.0);
            f / factor * ramp + f * (1.0 - ramp)
        };
        (freqs.into_iter().enumerate().map(scale).collect(), *attention_factor)
    }

    /// Cosine and sine `[s, dims / 2]` for positions `offset..offset + s` of a sequence that ends there.
    pub(crate) fn table(&self, offset: usize, s: usize, dtype: DType, device: &Device) -> Result<(Tensor, Tensor)> {
        let (freqs, factor) = self.frequencies(offset + s);
        let angles = (offset..offset + s).flat_map(|p| freqs.iter().map(move |f| p as f32 * f));
        let angles = Tensor::from_vec(angles.collect(), (s, freqs.len()), device)?;
        let cos = (angles.cos()? * factor)?.to_dtype(dtype)?;
        let sin = (angles.sin()? * factor)?.to_dtype(dtype)?;
        Ok((cos, sin))
    }
}

/// Rotates the first values of `x` `[b, heads, s, h]`, twice as many as the tables are wide, by tables for the same
/// positions.
pub(crate) fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let (half, d_head) = (cos.dim(D::Minus1)?, x.dim(D::Minus1)?);
    if 2 * half < d_head {
        let rotated = rotate(&x.narrow(D::Minus1, 0, 2 * half)?, cos, sin)?;
        let passed = x.narrow(D::Minus1, 2 * half, d_head - 2 * half)?;
        return Ok(Tensor::cat(&[&rotated, &passed], D::Minus1)?);
    }
    if !x.track_op() {
        return Ok(candle_nn::rotary_emb::rope(&x.contiguous()?, cos, sin)?);
    }
    let (first, second) = (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?);
    let rotated_first = (first.broadcast_mul(cos)? - second.broadcast_mul(sin)?)?;
    let rotated_second = (second.broadcast_mul(cos)? + first.broadcast_mul(sin)?)?;
    Ok(Tensor::cat(&[rotated_first, rotated_second], D::Minus1)?)
}
