//! Streaming statistics of one feature: how often, how strongly and where it fires.
//!
//! Strong means of large absolute value: features of some architectures fire in both directions.

use serde::{Deserialize, Serialize};

use super::examples::Examples;
use super::histogram::Histogram;
use super::sketch::Sketch;

/// Everything one pass learns about a feature.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct FeatureStats {
    /// Counted positions where it fires.
    pub count: u64,
    /// Sequences in which it fires.
    pub sequences: u64,
    /// Sums of the first four powers of its activations.
    pub sums: [f64; 4],
    /// Its weakest activation.
    pub min: f32,
    /// Its strongest activation.
    pub max: f32,
    /// Its activations.
    pub histogram: Histogram,
    /// The strongest positions, and positions drawn from every interval.
    pub examples: Examples,
    /// Some of the positions where it fires, the same as those of other features where both fire.
    pub sketch: Sketch,
}

impl FeatureStats {
    /// Counts one firing; true when the bounds of its intervals moved.
    pub fn add(&mut self, value: f32) -> bool {
        self.count += 1;
        let x = f64::from(value);
        let square = x * x;
        let powers = [x, square, square * x, square * square];
        self.sums.iter_mut().zip(powers).for_each(|(sum, power)| *sum += power);
        if self.count == 1 || value.abs() < self.min.abs() {
            self.min = value;
        }
        if value.abs() > self.max.abs() {
            self.max = value;
        }
        self.histogram.add(value)
    }

    /// The figures of feature `index` over `rows` counted positions.
    pub fn summary(&self, index: u32, rows: u64) -> Summary {
        let (mean, std, skewness, kurtosis) = moments(self.count, self.sums);
        Summary {
            index,
            density: self.count as f64 / rows.max(1) as f64,
            count: self.count,
            sequences: self.sequences,
            mean,
            std,
            skewness,
            kurtosis,
            min: self.min,
            max: self.max,
        }
    }
}

/// Mean, standard deviation, skewness and excess kurtosis from the sums of the first four powers of `count` numbers.
fn moments(count: u64, sums: [f64; 4]) -> (f64, f64, f64, f64) {
    if count == 0 {
        return (0.0, 0.0, 0.0, 0.0);
    }
    let [m1, m2, m3, m4] = sums.map(|sum| sum / count as f64);
    let variance = m2 - m1 * m1;
    // Numbers that are all alike leave nothing but rounding.
    if variance <= 1e-12 * m2 {
        return (m1, 0.0, 0.0, 0.0);
    }
    let third = m3 - 3.0 * m1 * m2 + 2.0 * m1.powi(3);
    let fourth = m4 - 4.0 * m1 * m3 + 6.0 * m1 * m1 * m2 - 3.0 * m1.powi(4);
    (m1, variance.sqrt(), third / variance.powf(1.5), fourth / (variance * variance) - 3.0)
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
    fn moments_equal_those_of_the_centred_numbers() {
        let values: Vec<f32> = (0..400).map(|i| 3.0 + ((i * 7919 % 400) as f32 / 40.0).powi(2)).collect();
        let mut stats = FeatureStats::default();
        for &value in &values {
            stats.add(value);
        }
        let n = values.len() as f64;
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
        let central = |k| values.iter().map(|&v| (f64::from(v) - mean).powi(k)).sum::<f64>() / n;
        let std = central(2).sqrt();
        let summary = stats.summary(7, 1000);
        let expected = [mean, std, central(3) / std.powi(3), central(4) / std.powi(4) - 3.0];
        let found = [summary.mean, summary.std, summary.skewness, summary.kurtosis];
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-9 * expected.abs().max(1.0), "{found} against {expected}");
        }
        assert_eq!((summary.min, summary.density), (3.0, 0.4));
    }

    #[test]
    fn equal_numbers_have_no_spread_and_a_silent_feature_no_figures() {
        let mut stats = FeatureStats::default();
        assert_eq!(stats.summary(0, 10), Summary::default());
        for _ in 0..5 {
            stats.add(0.1);
        }
        let summary = stats.summary(0, 10);
        assert_eq!((summary.std, summary.skewness, summary.kurtosis), (0.0, 0.0, 0.0));
        assert!((summary.mean - 0.1).abs() < 1e-8);
    }

    #[test]
    fn a_feature_that_fires_in_both_directions_is_measured_by_size() {
        let mut stats = FeatureStats::default();
        for value in [1.0, -3.0, 2.0] {
            stats.add(value);
        }
        assert_eq!((stats.min, stats.max, stats.count), (1.0, -3.0, 3));
    }
}
