//! From rows and classes to a classifier.

use serde::{Deserialize, Serialize};

use super::linear::{Linear, Rows, Scaler, add_scaled, dot};
use super::logistic::{Design, LogisticSettings};

/// How a direction is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Logistic regression with an L2 penalty: the best at telling classes apart.
    Logistic,
    /// From the mean of one class to that of the other; a text belongs to the nearer mean. What classes differ in most,
    /// and what steering wants (Marks and Tegmark 2024, "The Geometry of Truth").
    DifferenceOfMeans,
}

impl Method {
    /// The name that flags and files have.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Logistic => "logistic",
            Self::DifferenceOfMeans => "difference_of_means",
        }
    }
}

/// How to fit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct FitSettings {
    /// Scale each coordinate to mean 0 and deviation 1 before a logistic regression; the penalty then means the same
    /// at every layer.
    pub standardize: bool,
    /// Penalty and limit of logistic regressions.
    #[serde(flatten)]
    pub logistic: LogisticSettings,
}

impl Default for FitSettings {
    fn default() -> Self {
        Self { standardize: true, logistic: LogisticSettings::default() }
    }
}

/// A classifier for raw rows, with the steps it took where there were any.
#[derive(Debug, Clone, PartialEq)]
pub struct Fitted {
    /// The classifier.
    pub linear: Linear,
    /// Steps of the solver.
    pub iterations: Option<usize>,
}

/// Rows to fit on by one method, perhaps for several labels.
#[derive(Debug, Clone)]
pub struct Task {
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    Logistic { design: Design, scaler: Option<Scaler> },
    Means(Rows),
}

impl Task {
    /// Prepares `rows`.
    pub fn new(method: Method, mut rows: Rows, settings: FitSettings) -> Self {
        if method == Method::DifferenceOfMeans {
            return Self { kind: Kind::Means(rows) };
        }
        let scaler = settings.standardize.then(|| Scaler::of(&rows));
        if let Some(scaler) = &scaler {
            scaler.apply(&mut rows);
        }
        Self { kind: Kind::Logistic { design: Design::new(rows, settings.logistic), scaler } }
    }

    /// Fits `labels`, numbers below `classes` that all occur.
    pub fn fit(&self, labels: &[usize], classes: usize) -> Fitted {
        match &self.kind {
            Kind::Means(rows) => Fitted { linear: difference_of_means(rows, labels, classes), iterations: None },
            Kind::Logistic { design, scaler } => {
                let found = design.fit(labels, classes);
                let linear = scaler.as_ref().map_or(found.linear.clone(), |scaler| found.linear.unscaled(scaler));
                Fitted { linear, iterations: Some(found.iterations) }
            }
        }
    }
}

/// Fits `labels`, numbers below `classes` that all occur, on `rows`.
pub fn fit(method: Method, rows: &Rows, labels: &[usize], classes: usize, settings: FitSettings) -> Fitted {
    Task::new(method, rows.clone(), settings).fit(labels, classes)
}

/// Two classes: `w = μ₁ − μ₀`, zero halfway between the means. More: `w_c = μ_c − μ̄` with `μ̄` the mean of the class
/// means, biased so that the largest output is the nearest mean.
fn difference_of_means(rows: &Rows, labels: &[usize], classes: usize) -> Linear {
    let d = rows.width();
    let mut means = vec![0.0; classes * d];
    let mut counts = vec![0usize; classes];
    for (row, &label) in rows.each().zip(labels) {
        add_scaled(&mut means[label * d..][..d], 1.0, row);
        counts[label] += 1;
    }
    for (mean, &count) in means.chunks_exact_mut(d.max(1)).zip(&counts) {
        for m in mean {
            *m /= count.max(1) as f64;
        }
    }
    if let (2, (zero, one)) = (classes, means.split_at(d.min(means.len()))) {
        let weights: Vec<f64> = one.iter().zip(zero).map(|(b, a)| b - a).collect();
        let middle: Vec<f64> = one.iter().zip(zero).map(|(b, a)| f64::midpoint(*a, *b)).collect();
        return Linear { biases: vec![-dot(&weights, &middle)], weights };
    }
    let mut centre = vec![0.0; d];
    means.chunks_exact(d.max(1)).for_each(|mean| add_scaled(&mut centre, 1.0 / classes as f64, mean));
    let biases = means.chunks_exact(d.max(1)).map(|mean| (dot(&centre, &centre) - dot(mean, mean)) / 2.0).collect();
    means.chunks_exact_mut(d.max(1)).for_each(|mean| add_scaled(mean, -1.0, &centre));
    Linear { weights: means, biases }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::Value;

    use super::*;
    use crate::analysis::probe::score::{Scores, log_softmax};

    /// What scikit-learn fitted; `tests/golden/probe/make.py` wrote it.
    fn golden() -> Value {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/probe/sklearn.json");
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    fn numbers(value: &Value) -> Vec<f64> {
        match value {
            Value::Array(parts) => parts.iter().flat_map(numbers).collect(),
            number => vec![number.as_f64().unwrap()],
        }
    }

    #[track_caller]
    fn close(found: &[f64], expected: &Value, tolerance: f64) {
        let expected = numbers(expected);
        assert_eq!(found.len(), expected.len());
        let worst = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(worst < tolerance, "off by {worst}: {found:?} against {expected:?}");
    }

    #[test]
    fn coefficients_and_scores_are_those_of_scikit_learn() {
        let golden = golden();
        let cases = golden["cases"].as_array().unwrap();
        assert!(cases.len() >= 5);
        for case in cases {
            let classes = case["classes"].as_u64().unwrap() as usize;
            let data = &golden["data"][case["data"].as_str().unwrap()];
            let rows = Rows::new(numbers(&data["x"]), data["x"][0].as_array().unwrap().len());
            let labels: Vec<usize> = numbers(&data["y"]).iter().map(|&y| y as usize).collect();
            let settings = FitSettings {
                standardize: case["standardize"].as_bool().unwrap(),
                logistic: LogisticSettings { c: case["c"].as_f64().unwrap(), ..LogisticSettings::default() },
            };
            let found = fit(Method::Logistic, &rows, &labels, classes, settings).linear;
            close(&found.weights, &case["coefficients"], 1e-6);
            close(&found.biases, &case["intercepts"], 1e-6);
            let mut outputs = found.outputs_on(&rows);
            log_softmax(&mut outputs, found.outputs());
            let scores = Scores::of(&outputs, found.outputs(), &labels);
            close(&[scores.accuracy, scores.f1, scores.auroc.unwrap()], &case["scores"], 1e-12);
        }
    }

    #[test]
    fn differences_of_means_are_exact() {
        let golden = golden();
        for (name, classes) in [("two", 2), ("three", 3)] {
            let data = &golden["data"][name];
            let rows = Rows::new(numbers(&data["x"]), data["x"][0].as_array().unwrap().len());
            let labels: Vec<usize> = numbers(&data["y"]).iter().map(|&y| y as usize).collect();
            let found = fit(Method::DifferenceOfMeans, &rows, &labels, classes, FitSettings::default());
            assert_eq!(found.iterations, None);
            close(&found.linear.weights, &data["difference_of_means"], 1e-12);
            let predicted = super::super::score::predictions(&found.linear.outputs_on(&rows), found.linear.outputs());
            let predicted: Vec<f64> = predicted.into_iter().map(|p| p as f64).collect();
            close(&predicted, &data["nearest_mean"], 0.5);
        }
    }
}
