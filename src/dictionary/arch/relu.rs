//! ReLU: `z = max(pre, 0)` (SAELens `standard`).

use crate::dictionary::encoder::Scratch;
use crate::ops::sparse;

/// The positive entries.
pub(super) fn emit(product: &[f32], bias: &[f32], first: u32, scratch: &mut Scratch) -> usize {
    sparse::compact_positive(product, bias, first, &mut scratch.features, &mut scratch.values, 0)
}
