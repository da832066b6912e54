//! Tolerances, in one place.

use candle_core::{DType, Tensor};

/// How near two tensors must be: largest difference over the reference's largest magnitude.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Close(pub(crate) f64);

impl Close {
    /// Fails unless `ours` equals `reference` up to the tolerance, and unless the reference has something to compare.
    pub(crate) fn assert(self, what: &str, ours: &Tensor, reference: &Tensor) {
        let distance = Self::distance(what, ours, reference);
        assert!(distance <= self.0, "{what}: off by {distance:.3e} of the largest value");
    }

    /// Largest difference over the reference's largest magnitude.
    pub(crate) fn distance(what: &str, ours: &Tensor, reference: &Tensor) -> f64 {
        let flat = |t: &Tensor| t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let (ours, reference) = (flat(ours), flat(reference));
        assert_eq!(ours.len(), reference.len(), "{what}: sizes");
        let largest = reference.iter().fold(0f64, |m, x| m.max(f64::from(x.abs())));
        assert!(largest > 1e-3, "{what}: the reference is all but zero");
        let worst = ours.iter().zip(&reference).fold(0f64, |m, (a, b)| {
            let difference = f64::from((a - b).abs());
            if difference.is_nan() { f64::INFINITY } else { m.max(difference) }
        });
        worst / largest
    }
}
