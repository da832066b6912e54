//! A sample of the positions where a feature fires, small and comparable between features.
//!
//! Every position has a random number that all features share; a feature keeps the positions with the smallest ones
//! (bottom-k sampling; Cohen and Kaplan 2007, "Summarizing data using bottom-k sketches"). Two features therefore keep
//! the same positions where both fire, and how many they share tells how often they fire together, without a table of
//! all pairs.

/// Positions kept of each feature. Features that fire less often are known exactly.
pub const SKETCH: usize = 192;
/// Entries collected before the largest are dropped again.
pub(super) const ROOM: usize = 256;

/// The positions of one feature with the smallest numbers, each with its activation.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sketch {
    /// The number of a position in the upper half, the bits of the activation in the lower.
    entries: Vec<u64>,
    /// No position above this number is wanted any more, once some were dropped.
    limit: Option<u32>,
}

/// The finished sketch of one feature.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Sample {
    /// Numbers and activations, ascending by number.
    pub(super) entries: Vec<(u32, f32)>,
    /// Every position with a number below this is in the sample, or does not belong to the feature.
    pub(super) threshold: u64,
    /// The share of the feature's positions that is in the sample.
    pub(super) share: f64,
}

impl Sketch {
    /// What [`Sketch::parts`] gave.
    pub(super) fn from_parts(entries: Vec<u64>, limit: Option<u32>) -> Self {
        Self { entries, limit }
    }

    /// Everything that was kept.
    pub(super) fn parts(&self) -> (&[u64], Option<u32>) {
        (&self.entries, self.limit)
    }

    /// Offers the position of `number`, where the feature has activation `value`.
    pub fn add(&mut self, number: u32, value: f32) {
        if self.limit.is_some_and(|limit| number > limit) {
            return;
        }
        self.entries.push(u64::from(number) << 32 | u64::from(value.to_bits()));
        if self.entries.len() == ROOM {
            self.entries.select_nth_unstable(SKETCH - 1);
            self.entries.truncate(SKETCH);
            self.limit = Some((self.entries[SKETCH - 1] >> 32) as u32);
        }
    }

    /// The sample of a feature that fires on `count` positions: all below the number of the last one kept, which is the
    /// threshold and no member.
    pub(super) fn sample(&self, count: u64) -> Sample {
        let mut entries = self.entries.clone();
        entries.sort_unstable();
        let dropped = self.limit.is_some() || entries.len() > SKETCH;
        entries.truncate(SKETCH);
        let last = if dropped { entries.pop() } else { None };
        Sample {
            share: entries.len() as f64 / count.max(1) as f64,
            threshold: last.map_or(1 << 32, |last| last >> 32),
            entries: entries.iter().map(|e| ((e >> 32) as u32, f32::from_bits(*e as u32))).collect(),
        }
    }
}

/// The number of position `row`: one to one on the lower 32 bits, and without order (the finaliser of `MurmurHash3`).
pub(super) fn number_of(row: u64) -> u32 {
    let mut h = row as u32;
    h = (h ^ (h >> 16)).wrapping_mul(0x85eb_ca6b);
    h = (h ^ (h >> 13)).wrapping_mul(0xc2b2_ae35);
    h ^ (h >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rare_feature_is_known_exactly_and_a_frequent_one_by_the_smallest_numbers() {
        let mut rare = Sketch::default();
        (0..150u64).for_each(|row| rare.add(number_of(row), row as f32));
        let sample = rare.sample(150);
        assert!(sample.entries.len() == 150 && sample.share >= 1.0 && sample.threshold == 1 << 32);
        let mut frequent = Sketch::default();
        (0..50_000u64).for_each(|row| frequent.add(number_of(row), row as f32));
        let sample = frequent.sample(50_000);
        let mut all: Vec<(u32, f32)> = (0..50_000u64).map(|row| (number_of(row), row as f32)).collect();
        all.sort_unstable_by_key(|e| e.0);
        assert_eq!(sample.entries, all[..SKETCH - 1]);
        assert_eq!(sample.threshold, u64::from(all[SKETCH - 1].0));
        let estimate = sample.entries.len() as f64 / sample.threshold as f64 * 2f64.powi(32);
        assert!((estimate / 50_000.0 - 1.0).abs() < 0.25, "{estimate}");
    }

    #[test]
    fn numbers_do_not_repeat() {
        let mut numbers: Vec<u32> = (0..100_000u64).map(number_of).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), 100_000);
    }
}
