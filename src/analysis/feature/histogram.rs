//! Counts of activations in bins, and the ten intervals that examples are drawn from.

/// Bins that are counted.
pub const BINS: usize = 128;
/// Intervals from zero to the maximum.
pub const INTERVALS: usize = 10;

/// Counts of activations in `BINS` bins of equal width over `[0, range)`, where `range` is the smallest power of two
/// above the largest absolute value.
///
/// The range is not known before the last value, so it grows: when a value does not fit, neighbouring bins are added
/// in pairs and the range doubles. Bounds are powers of two times small integers, exact in floating point, so the
/// result is the one that a second pass with the final range would give. Between half and all of the bins are used.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Histogram {
    /// `log2` of the range.
    exponent: i32,
    /// Bins up to the last that is not empty.
    used: usize,
    /// Empty before the first value.
    counts: Vec<u64>,
}

impl Histogram {
    /// What [`Histogram::parts`] gave.
    pub(super) fn from_parts(exponent: i32, counts: Vec<u64>) -> Self {
        let used = counts.iter().rposition(|&count| count > 0).map_or(0, |last| last + 1);
        Self { exponent, used, counts }
    }

    /// The exponent of the range, and the counts of all bins or none.
    pub(super) fn parts(&self) -> (i32, &[u64]) {
        (self.exponent, &self.counts)
    }

    /// Counts `value`, which is not zero, by its absolute value; true when the largest value fell into a higher bin
    /// than before or the bins changed, so that the intervals moved.
    pub fn add(&mut self, value: f32) -> bool {
        let needed = exponent_above(value);
        if self.counts.is_empty() {
            self.counts = vec![0; BINS];
            self.exponent = needed;
        }
        while self.exponent < needed {
            for i in 0..BINS / 2 {
                self.counts[i] = self.counts[2 * i] + self.counts[2 * i + 1];
            }
            self.counts[BINS / 2..].fill(0);
            self.used = self.used.div_ceil(2);
            self.exponent += 1;
        }
        let bin = self.bin(value);
        self.counts[bin] += 1;
        let moved = bin >= self.used;
        self.used = self.used.max(bin + 1);
        moved
    }

    /// Width of a bin; bin `i` counts values in `[i, i + 1) · bin_width`.
    pub fn bin_width(&self) -> f64 {
        2f64.powi(self.exponent) / BINS as f64
    }

    /// Counts up to the last bin that is not empty.
    pub fn counts(&self) -> &[u64] {
        &self.counts[..self.used]
    }

    /// Half as many bins of twice the width.
    pub fn halved(&self) -> (f64, Vec<u64>) {
        (2.0 * self.bin_width(), self.counts().chunks(2).map(|pair| pair.iter().sum()).collect())
    }

    fn bin(&self, value: f32) -> usize {
        ((f64::from(value.abs()) / self.bin_width()) as usize).min(BINS - 1)
    }

    /// The bin at which interval `i` of [`INTERVALS`] begins: the one nearest to `i` tenths of the bins in use, so that
    /// counts of intervals are exact.
    fn bound(&self, i: usize) -> usize {
        (2 * i * self.used + INTERVALS) / (2 * INTERVALS)
    }

    /// The interval of an activation that was counted.
    pub fn interval(&self, value: f32) -> usize {
        let bin = self.bin(value);
        let mut i = (bin * INTERVALS / self.used.max(1)).min(INTERVALS - 1);
        while i + 1 < INTERVALS && self.bound(i + 1) <= bin {
            i += 1;
        }
        while i > 0 && self.bound(i) > bin {
            i -= 1;
        }
        i
    }

    /// Upper bound and count of interval `i`.
    pub fn interval_count(&self, i: usize) -> (f64, u64) {
        let (from, to) = (self.bound(i), self.bound(i + 1));
        (to as f64 * self.bin_width(), self.counts.get(from..to).unwrap_or_default().iter().sum())
    }
}

/// The smallest `e` with `|value| < 2^e`, for values that are not zero; subnormal ones count as the smallest normal number.
pub(super) fn exponent_above(value: f32) -> i32 {
    ((value.to_bits() >> 23) & 0xff).max(1) as i32 - 126
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grown_histogram_equals_one_with_the_final_range() {
        let values: Vec<f32> = (1..500u32).map(|i| (i * 7919 % 500) as f32 * 0.013 + 1e-4).collect();
        for values in [values.clone(), values.iter().rev().copied().collect(), values[..3].to_vec()] {
            let mut histogram = Histogram::default();
            for &value in &values {
                histogram.add(value);
            }
            let max = values.iter().fold(0f32, |m, v| m.max(*v));
            let range = histogram.bin_width() * BINS as f64;
            assert!(f64::from(max) < range && f64::from(max) >= range / 2.0);
            let mut direct = vec![0u64; BINS];
            for value in &values {
                direct[(f64::from(*value) / (range / BINS as f64)) as usize] += 1;
            }
            assert_eq!(histogram.counts(), &direct[..histogram.counts().len()]);
            assert_eq!(histogram.counts().iter().sum::<u64>(), values.len() as u64);
            let (width, halves) = histogram.halved();
            assert!(halves.iter().sum::<u64>() == values.len() as u64 && width == 2.0 * histogram.bin_width());
            let (exponent, counts) = histogram.parts();
            assert_eq!(Histogram::from_parts(exponent, counts.to_vec()), histogram);
        }
    }

    #[test]
    fn intervals_are_about_a_tenth_each_and_count_every_value_once() {
        let mut histogram = Histogram::default();
        let values: Vec<f32> = (1..2000).map(|i| i as f32 * 0.0037).collect();
        for &value in &values {
            histogram.add(value);
        }
        let (mut from, max, mut total) = (0.0, f64::from(values[values.len() - 1]), 0);
        for i in 0..INTERVALS {
            let (to, count) = histogram.interval_count(i);
            let inside = values.iter().filter(|&&v| f64::from(v) >= from && f64::from(v) < to);
            assert_eq!(count, inside.clone().count() as u64, "interval {i}");
            assert!(inside.clone().all(|&v| histogram.interval(v) == i));
            assert!((to - from) / max > 0.08 && (to - from) / max < 0.12, "interval {i} from {from} to {to}");
            total += count;
            from = to;
        }
        assert!(total == values.len() as u64 && from >= max);
    }

    #[test]
    fn bounds_and_extremes_fall_into_bins() {
        assert_eq!((exponent_above(1.0), exponent_above(0.99), exponent_above(2.0), exponent_above(3.9)), (1, 0, 2, 2));
        for value in [f32::MIN_POSITIVE / 4.0, f32::MIN_POSITIVE, 1.0, f32::MAX] {
            let mut histogram = Histogram::default();
            histogram.add(value);
            assert_eq!(histogram.counts().iter().sum::<u64>(), 1);
            assert_eq!((0..INTERVALS).map(|i| histogram.interval_count(i).1).sum::<u64>(), 1);
            assert_eq!(histogram.interval_count(histogram.interval(value)).1, 1);
        }
        assert!(Histogram::default().counts().is_empty());
        assert!(Histogram::default().halved().1.is_empty());
    }
}
