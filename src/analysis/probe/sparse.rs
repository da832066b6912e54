//! k-sparse probes: logistic regression on the few features whose means differ most between the classes (Gurnee et al.
//! 2023, "Finding Neurons in a Haystack"; SAEBench's sparse probing selects in the same way).

use serde::Serialize;

use super::fit::{FitSettings, Method, fit};
use super::linear::{Linear, Rows};
use crate::dictionary::SparseCodes;

/// A feature that a probe reads.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ChosenFeature {
    /// The class it speaks for or against.
    pub class: usize,
    /// Its number.
    pub feature: u32,
    /// Mean over the texts of the class less the mean over all others.
    pub mean_difference: f64,
    /// What one unit of it adds to the output.
    pub weight: f64,
}

/// A probe of `k` features for each output: one output for two classes, else one a class against the rest.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct SparseFit {
    parts: Vec<(Vec<u32>, Linear)>,
    pub(super) features: Vec<ChosenFeature>,
}

impl SparseFit {
    /// Selects and fits on the texts `train` of `codes`, whose classes are `labels` of all texts.
    pub(super) fn new(
        codes: &SparseCodes,
        train: &[usize],
        labels: &[usize],
        classes: usize,
        k: usize,
        settings: FitSettings,
    ) -> Self {
        let spoken_for = if classes == 2 { 1..2 } else { 0..classes };
        let (mut parts, mut features) = (Vec::new(), Vec::new());
        for class in spoken_for {
            let own = |&i: &usize| labels[i] == class;
            let chosen = most_different(codes, train, own, k);
            let numbers: Vec<u32> = chosen.iter().map(|c| c.0).collect();
            let targets: Vec<usize> = train.iter().map(|i| usize::from(own(i))).collect();
            let rows = gather(codes, train, &numbers);
            let linear = fit(Method::Logistic, &rows, &targets, 2, settings).linear;
            features.extend(chosen.iter().zip(&linear.weights).map(|(&(feature, mean_difference), &weight)| {
                ChosenFeature { class, feature, mean_difference, weight }
            }));
            parts.push((numbers, linear));
        }
        Self { parts, features }
    }

    /// Columns of the outputs.
    pub(super) fn outputs(&self) -> usize {
        self.parts.len()
    }

    /// Outputs on the texts `chosen`, `[n, outputs]`.
    pub(super) fn outputs_on(&self, codes: &SparseCodes, chosen: &[usize]) -> Vec<f64> {
        let columns: Vec<Vec<f64>> =
            self.parts.iter().map(|(numbers, linear)| linear.outputs_on(&gather(codes, chosen, numbers))).collect();
        (0..chosen.len()).flat_map(|i| columns.iter().map(move |column| column[i])).collect()
    }
}

/// The `k` features of largest absolute difference of means, with the difference; of equal ones the lower number.
fn most_different(codes: &SparseCodes, train: &[usize], own: impl Fn(&usize) -> bool, k: usize) -> Vec<(u32, f64)> {
    let mut sums = vec![[0.0f64; 2]; codes.d_sae];
    let mut counts = [0usize; 2];
    for i in train {
        let side = usize::from(own(i));
        counts[side] += 1;
        let (features, values) = codes.row(*i);
        for (&feature, &value) in features.iter().zip(values) {
            sums[feature as usize][side] += f64::from(value);
        }
    }
    let [others, own] = counts.map(|n| n.max(1) as f64);
    let differences = sums.iter().map(|[zero, one]| one / own - zero / others);
    let mut order: Vec<(u32, f64)> = (0..).zip(differences).collect();
    order.sort_by(|a, b| b.1.abs().total_cmp(&a.1.abs()).then(a.0.cmp(&b.0)));
    order.truncate(k);
    order
}

/// The activations of `features` on `texts`, `[n, k]`.
fn gather(codes: &SparseCodes, texts: &[usize], features: &[u32]) -> Rows {
    let mut values = Vec::with_capacity(texts.len() * features.len());
    for &text in texts {
        let (active, activations) = codes.row(text);
        let value = |feature: &u32| active.binary_search(feature).map_or(0.0, |at| f64::from(activations[at]));
        values.extend(features.iter().map(value));
    }
    Rows::new(values, features.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::probe::score::predictions;

    /// Feature 2 fires on class 1 and more strongly on it; feature 5 on class 0; feature 1 on every third text.
    fn codes(labels: &[usize]) -> SparseCodes {
        let mut codes = SparseCodes::new(8);
        for (i, &label) in labels.iter().enumerate() {
            let mut row: Vec<(u32, f32)> = Vec::new();
            if i % 3 == 0 {
                row.push((1, 9.0));
            }
            row.push(if label == 1 { (2, 3.0 + (i % 2) as f32) } else { (5, 1.0) });
            let (features, values): (Vec<u32>, Vec<f32>) = row.into_iter().unzip();
            codes.push_row(&features, &values);
        }
        codes
    }

    #[test]
    fn the_feature_that_tells_classes_apart_is_chosen() {
        let labels: Vec<usize> = (0..48).map(|i| (i / 2) % 2).collect();
        let (codes, all) = (codes(&labels), (0..48).collect::<Vec<_>>());
        let found = SparseFit::new(&codes, &all, &labels, 2, 1, FitSettings::default());
        let [only] = found.features[..] else { panic!("{found:?}") };
        assert_eq!((only.class, only.feature), (1, 2));
        assert!((only.mean_difference - 3.5).abs() < 1e-12 && only.weight > 0.0, "{only:?}");
        assert_eq!(predictions(&found.outputs_on(&codes, &all), found.outputs()), labels);
        let two = SparseFit::new(&codes, &all, &labels, 2, 2, FitSettings::default());
        assert_eq!((two.features[1].feature, two.features[1].weight < 0.0), (5, true));
    }

    #[test]
    fn three_classes_have_a_probe_each() {
        let labels: Vec<usize> = (0..60).map(|i| i % 3).collect();
        let mut codes = SparseCodes::new(4);
        for &label in &labels {
            codes.push_row(&[label as u32 + 1], &[2.0]);
        }
        let all: Vec<usize> = (0..60).collect();
        let found = SparseFit::new(&codes, &all, &labels, 3, 1, FitSettings::default());
        assert_eq!(found.features.iter().map(|f| (f.class, f.feature)).collect::<Vec<_>>(), [(0, 1), (1, 2), (2, 3)]);
        assert_eq!(predictions(&found.outputs_on(&codes, &all), 3), labels);
    }
}
