//! The same function in other weights, for formats that cannot say how ours computes it.

use crate::dictionary::{Activation, Architecture, Dictionary};

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

/// Moves decoder norms from the competition between features into the weights: `W_enc·n`, `b_enc·n`, `W_dec/n`, so that
/// activations, which carry the norm, stay the same numbers.
pub(super) fn fold_competing_norms(dictionary: &mut Dictionary) {
    let Architecture::TopK { k, rescale_acts_by_decoder_norm: true } = dictionary.config.architecture else { return };
    let (d_out, d_sae) = (dictionary.d_out(), dictionary.d_sae());
    let norm = |row: &[f32]| row.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>().sqrt();
    let norms: Vec<f64> = dictionary.w_dec.chunks_exact(d_out).map(norm).collect();
    for row in dictionary.w_enc.chunks_exact_mut(d_sae).chain(std::iter::once(dictionary.b_enc.as_mut_slice())) {
        row.iter_mut().zip(&norms).for_each(|(w, norm)| *w = (f64::from(*w) * norm) as f32);
    }
    for (row, norm) in dictionary.w_dec.chunks_exact_mut(d_out).zip(&norms).filter(|(_, norm)| **norm > 0.0) {
        for w in row {
            *w = (f64::from(*w) / norm) as f32;
        }
    }
    dictionary.config.architecture = Architecture::TopK { k, rescale_acts_by_decoder_norm: false };
    dictionary.activation = Activation::top_k(k, None, d_out);
}
