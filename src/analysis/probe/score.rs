//! How well a classifier does on texts whose class is known.

use std::cmp::Ordering;

use serde::Serialize;

/// Figures that scikit-learn gives under the same names.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Scores {
    /// Share of texts whose class is right.
    pub accuracy: f64,
    /// Harmonic mean of precision and recall: of the second class where there are two, else the mean over classes.
    pub f1: f64,
    /// The chance that a text of a class ranks above one of another, ties counted half: of the second class where there
    /// are two, else the mean over classes, each against the rest. Absent where a class has no text.
    pub auroc: Option<f64>,
}

impl Scores {
    /// Scores of `outputs` `[n, columns]` against `labels`. With one column the classes are its sign; with one a class
    /// the largest wins. Texts are ranked by the columns as they are.
    pub fn of(outputs: &[f64], columns: usize, labels: &[usize]) -> Self {
        let predicted = predictions(outputs, columns);
        let right = predicted.iter().zip(labels).filter(|(p, l)| p == l).count();
        let classes: Vec<usize> = if columns == 1 { vec![1] } else { (0..columns).collect() };
        let mean = |values: Vec<f64>| values.iter().sum::<f64>() / values.len().max(1) as f64;
        let aurocs: Option<Vec<f64>> = classes
            .iter()
            .enumerate()
            .map(|(column, &class)| {
                let scores: Vec<f64> = outputs.iter().skip(column).step_by(columns.max(1)).copied().collect();
                auroc(&scores, &labels.iter().map(|l| *l == class).collect::<Vec<_>>())
            })
            .collect();
        Self {
            accuracy: right as f64 / labels.len().max(1) as f64,
            f1: mean(classes.iter().map(|&class| f1(&predicted, labels, class)).collect()),
            auroc: aurocs.map(mean),
        }
    }
}

/// The class of every row of `outputs` `[n, columns]`.
pub fn predictions(outputs: &[f64], columns: usize) -> Vec<usize> {
    if columns == 1 {
        return outputs.iter().map(|z| usize::from(*z > 0.0)).collect();
    }
    let largest = |row: &[f64]| {
        let first = |a: &(usize, &f64), b: &(usize, &f64)| a.1.total_cmp(b.1).then(b.0.cmp(&a.0));
        row.iter().enumerate().max_by(first).map_or(0, |(class, _)| class)
    };
    outputs.chunks_exact(columns.max(1)).map(largest).collect()
}

/// The logarithm of the softmax of every row, which ranks texts as their probabilities do; one column stays.
pub fn log_softmax(outputs: &mut [f64], columns: usize) {
    if columns == 1 {
        return;
    }
    for row in outputs.chunks_exact_mut(columns.max(1)) {
        let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total = row.iter().map(|z| (z - largest).exp()).sum::<f64>().ln() + largest;
        for z in row {
            *z -= total;
        }
    }
}

fn f1(predicted: &[usize], labels: &[usize], class: usize) -> f64 {
    let count = |test: &dyn Fn(bool, bool) -> bool| {
        predicted.iter().zip(labels).filter(|(p, l)| test(**p == class, **l == class)).count() as f64
    };
    let both = count(&|p, l| p && l);
    let either = count(&|p, l| p != l);
    if both == 0.0 { 0.0 } else { 2.0 * both / (2.0 * both + either) }
}

/// Mann and Whitney's statistic from mid-ranks.
fn auroc(scores: &[f64], positive: &[bool]) -> Option<f64> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_unstable_by(|&a, &b| scores[a].total_cmp(&scores[b]));
    let (mut rank_sum, mut start) = (0.0, 0);
    for tied in order.chunk_by(|&a, &b| scores[a].partial_cmp(&scores[b]).is_some_and(Ordering::is_eq)) {
        let rank = start as f64 + f64::midpoint(tied.len() as f64, 1.0);
        rank_sum += rank * tied.iter().filter(|&&i| positive[i]).count() as f64;
        start += tied.len();
    }
    let ones = positive.iter().filter(|p| **p).count() as f64;
    let zeros = positive.len() as f64 - ones;
    (ones > 0.0 && zeros > 0.0).then(|| (rank_sum - ones * (ones + 1.0) / 2.0) / (ones * zeros))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_count_half() {
        assert_eq!(auroc(&[0.0, 1.0, 1.0, 2.0], &[false, false, true, true]), Some(0.875));
        assert_eq!(auroc(&[1.0; 4], &[false, true, false, true]), Some(0.5));
        assert_eq!(auroc(&[1.0, 2.0], &[true, true]), None);
    }

    #[test]
    fn scores_of_two_and_of_three_classes() {
        let two = Scores::of(&[-1.0, 2.0, 3.0, -2.0], 1, &[0, 1, 0, 0]);
        assert_eq!((two.accuracy, two.auroc), (0.75, Some(2.0 / 3.0)));
        assert!((two.f1 - 2.0 / 3.0).abs() < 1e-15);
        let outputs = [3.0, 1.0, 0.0, 0.0, 2.0, 1.0, 1.0, 0.0, 0.5];
        let three = Scores::of(&outputs, 3, &[0, 1, 2]);
        assert!((three.accuracy - 2.0 / 3.0).abs() < 1e-15);
        assert!((three.f1 - (2.0 / 3.0 + 1.0 + 0.0) / 3.0).abs() < 1e-15);
        assert_eq!(predictions(&[1.0, 1.0], 2), [0], "of equal outputs the first class");
    }
}
