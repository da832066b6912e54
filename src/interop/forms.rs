//! The same function in other weights, for formats that cannot say how ours computes it.

use crate::dictionary::{Activation, Dictionary};

/// Takes `b_dec` off the input, or leaves it on, with `b_enc` made up for it:
/// `(x − b_dec) W + b = x W + (b − b_dec W)`.
pub(super) fn set_subtracts(dictionary: &mut Dictionary, subtracts: bool) {
    if dictionary.config.apply_b_dec_to_input == subtracts {
        return;
    }
    let d_sae = dictionary.d_sae();
    let mut shift = vec![0f64; d_sae];
    for (b, row) in dictionary.b_dec.iter().zip(dictionary.w_enc.chunks_exact(d_sae)) {
        shift.iter_mut().zip(row).for_each(|(shift, w)| *shift += f64::from(*b) * f64::from(*w));
    }
    let sign = if subtracts { 1.0 } else { -1.0 };
    let shifted = |b: f32, shift: f64| (f64::from(b) + sign * shift) as f32;
    dictionary.b_enc.iter_mut().zip(&shift).for_each(|(b, shift)| *b = shifted(*b, *shift));
    if let Activation::Gated(gated) = &dictionary.activation {
        // Both nets of a gated dictionary start from the same product, the magnitude's scaled by exp(r_mag).
        let scaled = gated.b_mag().iter().zip(gated.r_mag()).zip(&shift);
        let b_mag = scaled.map(|((b, r), shift)| shifted(*b, f64::from(*r).exp() * shift)).collect();
        dictionary.activation = Activation::gated(gated.r_mag().to_vec(), b_mag);
    }
    dictionary.config.apply_b_dec_to_input = subtracts;
}
