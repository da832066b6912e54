//! Features that fire on the same positions.
//!
//! A table of all pairs has no place at 131,072 features, so pairs are counted over the sketches of the features, which
//! hold the same positions where both fire. Of two features that fire on `a` and `b` positions the one with the lower
//! threshold has all its `n` sampled positions below the other's, so if `s` of them are in both sketches, the two fire
//! together on about `a s / n` positions, and
//!
//! ```text
//! jaccard = (a s / n) / (a + b − a s / n)
//! ```
//! This is exact for features that fire on fewer positions than a sketch holds. Else `s / n` is a share of 191
//! positions drawn at random: off by 0.03 where half are shared, by less elsewhere. Correlation and cosine come from the
//! sum of products over the shared positions in the same way, with exact means and squares.

use rayon::prelude::*;

use super::sketch::Sample;
use super::stats::FeatureStats;
use crate::analysis::stop_if_cancelled;
use crate::base::progress::Unit;
use crate::base::{Progress, Result};

/// Features that one task looks at.
const TASK_FEATURES: usize = 256;

/// A feature that fires where another does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Coactive {
    /// The other feature.
    pub feature: u32,
    /// Positions where both fire over positions where one does.
    pub jaccard: f32,
    /// Pearson correlation of the two activations over all positions.
    pub correlation: f32,
    /// Cosine of the two activations over all positions.
    pub cosine: f32,
}

/// For every feature the `n` others with the largest Jaccard index over `rows` positions. Memory: the sketches once
/// more, and some bytes a feature for each thread.
///
/// # Errors
/// `Interrupted` when the user stopped the work.
pub fn coactive_features(
    features: &[FeatureStats],
    rows: u64,
    n: usize,
    progress: &dyn Progress,
) -> Result<Vec<Vec<Coactive>>> {
    progress.begin("features that fire together", features.len() as u64, Unit::Items);
    let samples: Vec<Sample> = features.par_iter().map(|stats| stats.sketch.sample(stats.count)).collect();
    let positions = Positions::new(&samples);
    let mut all = Vec::with_capacity(features.len());
    for first in (0..features.len()).step_by(TASK_FEATURES * 16) {
        stop_if_cancelled(progress)?;
        let part = first..(first + TASK_FEATURES * 16).min(features.len());
        let pairs = Pairs { features, samples: &samples, positions: &positions, rows: rows.max(1) as f64, n };
        let found = part.clone().into_par_iter().with_min_len(TASK_FEATURES).map_init(
            || Counts { shared: vec![(0, 0.0); features.len()], touched: Vec::new() },
            |counts, feature| pairs.of(feature, counts),
        );
        all.par_extend(found);
        progress.advance(part.len() as u64);
    }
    progress.end();
    Ok(all)
}

/// Who fires on each position of the sketches.
struct Positions {
    /// Number of the position, feature, activation; sorted.
    entries: Vec<(u32, u32, f32)>,
}

impl Positions {
    fn new(samples: &[Sample]) -> Self {
        let mut entries: Vec<(u32, u32, f32)> = Vec::with_capacity(samples.iter().map(|s| s.entries.len()).sum());
        for (feature, sample) in samples.iter().enumerate() {
            entries.extend(sample.entries.iter().map(|&(number, value)| (number, feature as u32, value)));
        }
        entries.par_sort_unstable_by_key(|e| (e.0, e.1));
        Self { entries }
    }

    /// The features whose sketch has position `number`, with their activations there.
    fn at(&self, number: u32) -> impl Iterator<Item = (u32, f32)> + '_ {
        let first = self.entries.partition_point(|e| e.0 < number);
        self.entries[first..].iter().take_while(move |e| e.0 == number).map(|e| (e.1, e.2))
    }
}

/// Shared positions and sums of products of one feature with every other.
struct Counts {
    shared: Vec<(u32, f64)>,
    /// Which of them are not zero.
    touched: Vec<u32>,
}

struct Pairs<'a> {
    features: &'a [FeatureStats],
    samples: &'a [Sample],
    positions: &'a Positions,
    rows: f64,
    n: usize,
}

impl Pairs<'_> {
    fn of(&self, feature: usize, counts: &mut Counts) -> Vec<Coactive> {
        for &(number, value) in &self.samples[feature].entries {
            for (other, activation) in self.positions.at(number) {
                let shared = &mut counts.shared[other as usize];
                if shared.0 == 0 {
                    counts.touched.push(other);
                }
                shared.0 += 1;
                shared.1 += f64::from(value) * f64::from(activation);
            }
        }
        let mut found: Vec<Coactive> = Vec::with_capacity(counts.touched.len());
        for other in counts.touched.drain(..) {
            let shared = std::mem::take(&mut counts.shared[other as usize]);
            if other as usize != feature {
                found.push(self.pair(feature, other, shared));
            }
        }
        let order = |a: &Coactive, b: &Coactive| b.jaccard.total_cmp(&a.jaccard).then(a.feature.cmp(&b.feature));
        if found.len() > self.n {
            found.select_nth_unstable_by(self.n, order);
            found.truncate(self.n);
        }
        found.sort_unstable_by(order);
        found.shrink_to_fit();
        found
    }

    fn pair(&self, feature: usize, other: u32, (shared, products): (u32, f64)) -> Coactive {
        let (a, b) = (&self.features[feature], &self.features[other as usize]);
        let (sample, other_sample) = (&self.samples[feature], &self.samples[other as usize]);
        let share = if sample.threshold <= other_sample.threshold { sample.share } else { other_sample.share };
        let together = (f64::from(shared) / share).min(a.count.min(b.count) as f64);
        let jaccard = together / (a.count as f64 + b.count as f64 - together);
        let squares = (a.sums[1] * b.sums[1]).sqrt();
        let products = (products / share).clamp(-squares, squares);
        let moments = |stats: &FeatureStats| {
            let mean = stats.sums[0] / self.rows;
            (mean, (stats.sums[1] / self.rows - mean * mean).max(0.0).sqrt())
        };
        let ((mean_a, std_a), (mean_b, std_b)) = (moments(a), moments(b));
        let covariance = products / self.rows - mean_a * mean_b;
        let over = |numerator: f64, denominator: f64| {
            if denominator > 0.0 { (numerator / denominator).clamp(-1.0, 1.0) as f32 } else { 0.0 }
        };
        Coactive {
            feature: other,
            jaccard: jaccard as f32,
            correlation: over(covariance, std_a * std_b),
            cosine: over(products, squares),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::sketch::number_of;
    use super::*;
    use crate::base::Silent;

    /// Features over `rows` positions; feature `f` fires where `fires` says, with that activation.
    fn features(count: usize, rows: u64, fires: impl Fn(usize, u64) -> f32) -> Vec<FeatureStats> {
        let one = |f: usize| {
            let mut stats = FeatureStats::default();
            for row in 0..rows {
                let value = fires(f, row);
                if value != 0.0 {
                    stats.add(value);
                    stats.sketch.add(number_of(row), value);
                }
            }
            stats
        };
        (0..count).map(one).collect()
    }

    /// Jaccard index, correlation and cosine over all positions.
    fn exact(rows: u64, a: impl Fn(u64) -> f32, b: impl Fn(u64) -> f32) -> (f64, f64, f64) {
        let (mut both, mut either, mut sums) = (0.0, 0.0, [0.0; 5]);
        for row in 0..rows {
            let (x, y) = (f64::from(a(row)), f64::from(b(row)));
            both += f64::from(u8::from(x != 0.0 && y != 0.0));
            either += f64::from(u8::from(x != 0.0 || y != 0.0));
            sums.iter_mut().zip([x, y, x * x, y * y, x * y]).for_each(|(sum, term)| *sum += term / rows as f64);
        }
        let [x, y, xx, yy, xy] = sums;
        (both / either, (xy - x * y) / ((xx - x * x) * (yy - y * y)).sqrt(), xy / (xx * yy).sqrt())
    }

    fn hash(f: usize, row: u64) -> u64 {
        crate::base::rng::mix(row * 64 + f as u64)
    }

    #[test]
    fn rare_features_are_counted_exactly() {
        let fires = |f: usize, row: u64| {
            let group = row / 40 % 6 == (f / 3) as u64 && row.is_multiple_of(7) && !hash(f, row).is_multiple_of(5);
            if group { 1.0 + (hash(f + 50, row) % 100) as f32 / 50.0 } else { 0.0 }
        };
        let all = features(12, 2000, fires);
        assert!(all.iter().all(|stats| stats.count > 10 && stats.count < 190));
        let found = coactive_features(&all, 2000, 4, &Silent).unwrap();
        for (f, found) in found.iter().enumerate() {
            let mut expected = BTreeMap::new();
            for other in (0..12).filter(|&other| other != f) {
                let (jaccard, correlation, cosine) = exact(2000, |row| fires(f, row), |row| fires(other, row));
                if jaccard > 0.0 {
                    expected.insert(other as u32, (jaccard, correlation, cosine));
                }
            }
            assert_eq!(found.len(), expected.len().min(4));
            assert!(!found.is_empty() && found.is_sorted_by(|a, b| a.jaccard >= b.jaccard));
            for pair in found {
                let (jaccard, correlation, cosine) = expected[&pair.feature];
                assert!((f64::from(pair.jaccard) - jaccard).abs() < 1e-6, "{pair:?} against {jaccard}");
                assert!((f64::from(pair.correlation) - correlation).abs() < 1e-5, "{pair:?} against {correlation}");
                assert!((f64::from(pair.cosine) - cosine).abs() < 1e-5, "{pair:?} against {cosine}");
            }
        }
    }

    #[test]
    fn frequent_features_are_estimated_and_the_closest_comes_first() {
        // Feature 1 follows feature 0 nine times in ten, feature 2 every other time, feature 3 never looks.
        let fires = |f: usize, row: u64| -> f32 {
            let lead = hash(9, row).is_multiple_of(8);
            let follows = |of_ten| if hash(f, row) % 10 < of_ten { lead } else { hash(f + 20, row).is_multiple_of(8) };
            let on = match f {
                0 => lead,
                1 => follows(9),
                2 => follows(5),
                _ => hash(30, row).is_multiple_of(8),
            };
            f32::from(u8::from(on)) * (1.0 + (row % 5) as f32)
        };
        let all = features(4, 60_000, fires);
        let found = coactive_features(&all, 60_000, 3, &Silent).unwrap();
        assert_eq!(found[0].iter().map(|pair| pair.feature).collect::<Vec<_>>(), [1, 2, 3]);
        for pair in &found[0] {
            let (jaccard, correlation, cosine) =
                exact(60_000, |row| fires(0, row), |row| fires(pair.feature as usize, row));
            assert!((f64::from(pair.jaccard) - jaccard).abs() < 0.12, "{pair:?} against {jaccard}");
            assert!((f64::from(pair.correlation) - correlation).abs() < 0.15, "{pair:?} against {correlation}");
            assert!((f64::from(pair.cosine) - cosine).abs() < 0.15, "{pair:?} against {cosine}");
        }
    }
}
