//! How well a dictionary's features match the concepts of the world.
//!
//! A feature *fires* where its activation exceeds a threshold. For a concept, precision and recall compare the
//! positions where the feature fires with those where the concept is active, and
//! `F1 = 2 · precision · recall / (precision + recall)`. [`match_concepts`] picks for every concept the feature and
//! threshold of the best F1; the maximum over thousands of features flatters, so the figure to report is
//! [`Match::measure`] on text that had no part in the choice.

use crate::dictionary::SparseCodes;

use super::concepts::{ConceptId, Labels};

/// Thresholds that are tried, as fractions of the feature's largest activation. Zero means "active at all".
pub const THRESHOLDS: [f32; 5] = [0.0, 0.1, 0.2, 0.35, 0.5];

/// Agreement of two sets of positions.
#[derive(Debug, Clone, Copy, PartialEq, Default, serde::Serialize)]
pub struct Agreement {
    /// Positions where the feature fires and the concept is active.
    pub both: u64,
    /// Positions where the feature fires.
    pub fired: u64,
    /// Positions where the concept is active.
    pub active: u64,
}

impl Agreement {
    /// Fraction of firings on which the concept is active; 0 without firings.
    pub fn precision(&self) -> f64 {
        ratio(self.both, self.fired)
    }

    /// Fraction of the concept's positions on which the feature fires; 0 when there are none.
    pub fn recall(&self) -> f64 {
        ratio(self.both, self.active)
    }

    /// Harmonic mean of precision and recall.
    pub fn f1(&self) -> f64 {
        ratio(2 * self.both, self.fired + self.active)
    }
}

pub(super) fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// The feature that fits a concept best.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Match {
    /// The concept.
    pub concept: ConceptId,
    /// The feature.
    pub feature: u32,
    /// The feature fires where its activation exceeds this.
    pub threshold: f32,
    /// The feature's largest activation on the text of the choice: a strength to clamp it to.
    pub max_activation: f32,
    /// Mean activation where feature and concept are both active.
    pub mean_activation: f32,
    /// Agreement on the text of the choice.
    pub agreement: Agreement,
}

impl Match {
    /// Agreement of the same feature and threshold on another text.
    pub fn measure(&self, codes: &SparseCodes, labels: &Labels) -> Agreement {
        let mut agreement = Agreement::default();
        for row in 0..codes.rows().min(labels.positions()) {
            let (features, values) = codes.row(row);
            let fires = features.binary_search(&self.feature).is_ok_and(|i| values[i] > self.threshold);
            let active = labels.at(row).binary_search(&self.concept).is_ok();
            agreement.both += u64::from(fires && active);
            agreement.fired += u64::from(fires);
            agreement.active += u64::from(active);
        }
        agreement
    }
}

/// The best feature of every concept that is active on at least `min_active` positions; row `i` of `codes` belongs
/// to position `i` of `labels`. Concepts whose best F1 is zero are left out. Ties go to the lower feature.
///
/// Besides its inputs it holds a few numbers a concept: features are taken one at a time.
pub fn match_concepts(codes: &SparseCodes, labels: &Labels, n_concepts: usize, min_active: u64) -> Vec<Match> {
    let rows = codes.rows().min(labels.positions());
    let mut active = vec![0u64; n_concepts];
    for &concept in (0..rows).flat_map(|row| labels.at(row)) {
        active[concept as usize] += 1;
    }
    let by_feature = codes.by_feature();
    let mut best: Vec<Option<Match>> = vec![None; n_concepts];
    let mut tally = Tally::new(n_concepts);
    for feature in 0..codes.d_sae {
        let (positions, pairs) = by_feature.feature(feature);
        let firing = positions.iter().zip(pairs).map(|(&row, &pair)| (row as usize, codes.values[pair as usize]));
        let firing = firing.filter(|&(row, _)| row < rows);
        let max = firing.clone().map(|(_, value)| value).fold(0.0, f32::max);
        if max <= 0.0 {
            continue;
        }
        tally.clear();
        firing.for_each(|(row, value)| tally.count(value, value / max, labels.at(row)));
        tally.update(feature as u32, max, &active, min_active, &mut best);
    }
    best.into_iter().flatten().collect()
}

/// Counts of one feature against every concept it meets.
struct Tally {
    /// Firings above each threshold.
    fired: [u64; THRESHOLDS.len()],
    /// For each concept, firings above each threshold where the concept is active.
    both: Vec<[u64; THRESHOLDS.len()]>,
    /// For each concept, the sum of activations where it is active.
    sum: Vec<f64>,
    /// Concepts met, each once.
    met: Vec<ConceptId>,
}

impl Tally {
    fn new(n_concepts: usize) -> Self {
        Self {
            fired: [0; THRESHOLDS.len()],
            both: vec![[0; THRESHOLDS.len()]; n_concepts],
            sum: vec![0.0; n_concepts],
            met: Vec::new(),
        }
    }

    fn clear(&mut self) {
        self.fired = [0; THRESHOLDS.len()];
        for concept in self.met.drain(..) {
            self.both[concept as usize] = [0; THRESHOLDS.len()];
            self.sum[concept as usize] = 0.0;
        }
    }

    fn count(&mut self, value: f32, fraction: f32, concepts: &[ConceptId]) {
        let above = THRESHOLDS.iter().filter(|&&threshold| fraction > threshold).count();
        for fired in &mut self.fired[..above] {
            *fired += 1;
        }
        for &concept in concepts {
            let both = &mut self.both[concept as usize];
            if both[0] == 0 {
                self.met.push(concept);
            }
            for count in &mut both[..above] {
                *count += 1;
            }
            self.sum[concept as usize] += f64::from(value);
        }
    }

    fn update(&self, feature: u32, max: f32, active: &[u64], min_active: u64, best: &mut [Option<Match>]) {
        for &concept in &self.met {
            let c = concept as usize;
            if active[c] < min_active {
                continue;
            }
            for (i, &fraction) in THRESHOLDS.iter().enumerate() {
                let agreement = Agreement { both: self.both[c][i], fired: self.fired[i], active: active[c] };
                if agreement.f1() > best[c].map_or(0.0, |found| found.agreement.f1()) {
                    best[c] = Some(Match {
                        concept,
                        feature,
                        threshold: fraction * max,
                        max_activation: max,
                        mean_activation: (self.sum[c] / self.both[c][0] as f64) as f32,
                        agreement,
                    });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::{Labeller, Vocabulary, World};

    /// Features that copy concepts: feature `c` fires on concept `c`, noisily for odd `c`.
    fn copied(labels: &Labels, n_concepts: usize) -> SparseCodes {
        let mut codes = SparseCodes::new(n_concepts);
        for row in 0..labels.positions() {
            let mut pairs: Vec<(u32, f32)> = labels.at(row).iter().map(|&c| (c, 2.0)).collect();
            let noisy = (row as u32 % n_concepts as u32) | 1;
            if (noisy as usize) < n_concepts && !labels.at(row).contains(&noisy) {
                pairs.push((noisy, 0.3));
            }
            pairs.sort_unstable_by_key(|pair| pair.0);
            let (features, values): (Vec<u32>, Vec<f32>) = pairs.into_iter().unzip();
            codes.push_row(&features, &values);
        }
        codes
    }

    #[test]
    fn features_that_copy_concepts_are_found_at_the_right_threshold() {
        let world = World::new(3);
        let vocabulary = Vocabulary::new(&world);
        let labeller = Labeller::new(&world, &vocabulary);
        let mut labels = Labels::default();
        for text in world.corpus(60, 5) {
            labeller.label_into(&vocabulary.encode(&text), &mut labels);
        }
        let n = labeller.concepts().len();
        let codes = copied(&labels, n);
        let matches = match_concepts(&codes, &labels, n, 5);
        assert!(matches.len() > 50, "{}", matches.len());
        for found in &matches {
            assert_eq!(found.agreement.f1(), 1.0, "{found:?}");
            assert_eq!(found.measure(&codes, &labels), found.agreement);
        }
        let country = labeller.find("class:country").unwrap();
        let found = matches.iter().find(|m| m.concept == country).unwrap();
        assert!((found.mean_activation - 2.0).abs() < 1e-6 && found.max_activation == 2.0);
    }
}
