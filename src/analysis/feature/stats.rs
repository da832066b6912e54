//! Streaming statistics of one feature: how often, how strongly and where it fires.
//!
//! Strong means of large absolute value: features of some architectures fire in both directions.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// Bins of a [`Histogram`].
pub const BINS: usize = 64;

/// Counts of activations in `BINS` bins of equal width over `[0, range)`, where `range` is the smallest power of two
/// above the largest value.
///
/// The range is not known before the last value, so it grows: when a value does not fit, neighbouring bins are added
/// in pairs and the range doubles. Bounds are powers of two times small integers, exact in floating point, so the
/// result is the one that a second pass with the final range would give. Between half and all of the bins are used.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Histogram {
    /// `log2` of the range.
    exponent: i32,
    /// Empty before the first value.
    counts: Vec<u64>,
}

impl Histogram {
    /// Counts `value`, which is not zero, by its absolute value.
    pub fn add(&mut self, value: f32) {
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
            self.exponent += 1;
        }
        let bin = (f64::from(value.abs()) / self.bin_width()) as usize;
        self.counts[bin.min(BINS - 1)] += 1;
    }

    /// Width of a bin; bin `i` counts values in `[i, i + 1) · bin_width`.
    pub fn bin_width(&self) -> f64 {
        2f64.powi(self.exponent) / BINS as f64
    }

    /// Counts up to the last bin that is not empty.
    pub fn counts(&self) -> &[u64] {
        let used = self.counts.iter().rposition(|&count| count > 0).map_or(0, |last| last + 1);
        &self.counts[..used]
    }
}

/// The smallest `e` with `|value| < 2^e`, for values that are not zero; subnormal ones count as the smallest normal number.
fn exponent_above(value: f32) -> i32 {
    ((value.to_bits() >> 23) & 0xff).max(1) as i32 - 126
}

/// One position where a feature fires strongly.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    /// Activation at the position.
    pub value: f32,
    /// The sequence.
    pub sequence: u64,
    /// The position in it.
    pub position: u32,
    /// The document that the position's token came from.
    pub document: u32,
    /// Position of the window's first token.
    pub start: u32,
    /// Tokens of the window.
    pub tokens: Vec<u32>,
    /// Activations of the feature on them; zero also where the filter leaves a position out.
    pub values: Vec<f32>,
}

/// The positions shown around a peak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// Tokens before it.
    pub before: usize,
    /// Tokens after it.
    pub after: usize,
}

impl Window {
    /// The window around `position` in a sequence of `length` positions.
    pub fn around(self, position: usize, length: usize) -> Range<usize> {
        position.saturating_sub(self.before)..(position + self.after + 1).min(length)
    }
}

/// The position and activation of each firing of one feature in one sequence, positions ascending.
pub type Firings = Vec<(u32, f32)>;

/// The `k` strongest firings of a sequence of `length` positions, strongest first, leaving out every position inside
/// the window of one already taken. Of equal values the earlier position wins.
pub fn strongest_apart(firings: &[(u32, f32)], k: usize, window: Window, length: usize) -> Firings {
    let mut order = firings.to_vec();
    order.sort_unstable_by(|a, b| b.1.abs().total_cmp(&a.1.abs()).then(a.0.cmp(&b.0)));
    let mut taken: Firings = Vec::new();
    for (position, value) in order {
        if taken.len() == k {
            break;
        }
        let inside = |peak: &(u32, f32)| window.around(peak.0 as usize, length).contains(&(position as usize));
        if !taken.iter().any(inside) {
            taken.push((position, value));
        }
    }
    taken
}

/// Everything one pass learns about a feature.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct FeatureStats {
    /// Counted positions where it fires.
    pub count: u64,
    /// Sequences in which it fires.
    pub sequences: u64,
    /// Sum of its activations.
    pub sum: f64,
    /// Its strongest activation.
    pub max: f32,
    /// Its activations.
    pub histogram: Histogram,
    /// The strongest examples so far, strongest first.
    pub examples: Vec<Example>,
}

impl FeatureStats {
    /// Counts one firing.
    pub fn add(&mut self, value: f32) {
        self.count += 1;
        self.sum += f64::from(value);
        if value.abs() > self.max.abs() {
            self.max = value;
        }
        self.histogram.add(value);
    }

    /// Whether an example of `value` would be among the `k` strongest. Examples arrive in the order of their rows, so
    /// one that only equals the weakest kept is the later and loses.
    pub fn admits(&self, value: f32, k: usize) -> bool {
        k > 0 && (self.examples.len() < k || self.examples.last().is_some_and(|last| value.abs() > last.value.abs()))
    }

    /// Puts an admitted example in its place and drops the weakest when there are more than `k`.
    pub fn insert(&mut self, example: Example, k: usize) {
        let key = |e: &Example| (e.sequence, e.position);
        let stronger = |kept: &Example| kept.value.abs().total_cmp(&example.value.abs());
        let place = self.examples.partition_point(|kept| stronger(kept).then(key(&example).cmp(&key(kept))).is_gt());
        self.examples.insert(place, example);
        self.examples.truncate(k);
    }

    /// The figures of feature `index` over `rows` counted positions.
    pub fn summary(&self, index: u32, rows: u64) -> Summary {
        Summary {
            index,
            density: self.count as f64 / rows.max(1) as f64,
            count: self.count,
            mean: if self.count == 0 { 0.0 } else { self.sum / self.count as f64 },
            max: self.max,
            ..Summary::default()
        }
    }
}

/// The figures by which features are found and sorted.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Summary {
    /// Number of the feature.
    pub index: u32,
    /// Share of counted positions where it fires.
    pub density: f64,
    /// Counted positions where it fires.
    pub count: u64,
    /// Sequences in which it fires.
    pub sequences: u64,
    /// Mean activation where it fires.
    pub mean: f64,
    /// Standard deviation of its activations where it fires, over their number.
    pub std: f64,
    /// Third standardised moment of its activations where it fires; 0 where they are all alike.
    pub skewness: f64,
    /// Fourth standardised moment less 3; 0 where they are all alike.
    pub kurtosis: f64,
    /// Weakest activation where it fires.
    pub min: f32,
    /// Strongest activation.
    pub max: f32,
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
            let used = histogram.counts().len();
            assert_eq!(histogram.counts(), &direct[..used]);
            assert_eq!(histogram.counts().iter().sum::<u64>(), values.len() as u64);
        }
    }

    #[test]
    fn bounds_and_extremes_fall_into_bins() {
        assert_eq!((exponent_above(1.0), exponent_above(0.99), exponent_above(2.0), exponent_above(3.9)), (1, 0, 2, 2));
        for value in [f32::MIN_POSITIVE / 4.0, f32::MIN_POSITIVE, 1.0, f32::MAX] {
            let mut histogram = Histogram::default();
            histogram.add(value);
            assert_eq!(histogram.counts().iter().sum::<u64>(), 1);
        }
        assert!(Histogram::default().counts().is_empty());
    }

    #[test]
    fn features_that_fire_in_both_directions_are_ranked_by_size() {
        let mut stats = FeatureStats::default();
        for (position, value) in [(0, 1.0f32), (1, -3.0), (2, 2.0)] {
            stats.add(value);
            let example =
                Example { value, sequence: 0, position, document: 0, start: 0, tokens: vec![], values: vec![] };
            if stats.admits(value, 2) {
                stats.insert(example, 2);
            }
        }
        assert_eq!((stats.max, stats.count), (-3.0, 3));
        assert_eq!(stats.examples.iter().map(|e| e.value).collect::<Vec<_>>(), [-3.0, 2.0]);
        let mut sizes = Histogram::default();
        for value in [1.0, 3.0, 2.0] {
            sizes.add(value);
        }
        assert_eq!(stats.histogram, sizes);
        let window = Window { before: 0, after: 0 };
        assert_eq!(strongest_apart(&[(0, 1.0), (1, -3.0)], 1, window, 4), [(1, -3.0)]);
    }

    #[test]
    fn neighbours_of_a_peak_give_way_and_equal_values_keep_their_order() {
        let window = Window { before: 2, after: 1 };
        let firings = [(0, 1.0), (2, 5.0), (3, 4.0), (4, 4.0), (6, 4.0), (9, 0.5)];
        assert_eq!(strongest_apart(&firings, 9, window, 10), [(2, 5.0), (4, 4.0), (6, 4.0), (9, 0.5)]);
        assert_eq!(strongest_apart(&firings, 2, window, 10), [(2, 5.0), (4, 4.0)]);
    }
}
