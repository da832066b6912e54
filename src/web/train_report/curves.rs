//! The lines of `metrics.jsonl` as curves.

use std::path::Path;

use serde_json::{Map, Value};

use crate::base::{Error, Result};
use crate::web::chart::{Axis, LineChart, Series};
use crate::web::markup::Element;

/// Rows trained on so far: what every curve runs over.
pub(super) const SAMPLES: &str = "n_training_samples";

/// A picture and the keys that it takes, with the names of their lines.
struct Picture {
    title: &'static str,
    label: &'static str,
    axis: Kind,
    keys: &'static [(&'static str, &'static str)],
}

#[derive(Clone, Copy)]
enum Kind {
    /// Between 0 and 1; what lies below is cut off.
    Share,
    /// From zero, logarithmic where the range is wide.
    Positive,
    /// From zero.
    Count,
}

const PICTURES: [Picture; 8] = [
    Picture {
        title: "Explained variance",
        label: "R²",
        axis: Kind::Share,
        keys: &[("explained_variance", "training batch"), ("heldout_explained_variance", "held out")],
    },
    Picture {
        title: "Loss",
        label: "a row of mean norm √width",
        axis: Kind::Positive,
        keys: &[("loss", "loss"), ("mse", "squared error"), (PENALTY, "penalty"), ("auxiliary", "auxiliary")],
    },
    Picture {
        title: "Active features",
        label: "L0, features a row",
        axis: Kind::Positive,
        keys: &[("l0", "training batch"), ("heldout_l0", "held out")],
    },
    Picture { title: "Dead features", label: "features", axis: Kind::Count, keys: &[("dead_features", "dead")] },
    Picture {
        title: "Started again",
        label: "features, in all",
        axis: Kind::Count,
        keys: &[("resampled", "started again")],
    },
    Picture {
        title: "Learning rate",
        label: "of Adam",
        axis: Kind::Count,
        keys: &[("learning_rate", "learning rate")],
    },
    Picture {
        title: "Weight of the penalty",
        label: "coefficient of the sparsity term",
        axis: Kind::Count,
        keys: &[("coefficient", "coefficient")],
    },
    Picture {
        title: "Gradient norm",
        label: "before clipping",
        axis: Kind::Positive,
        keys: &[("grad_norm", "gradient norm")],
    },
];
/// The sparsity term as it enters the loss.
const PENALTY: &str = "coefficient * sparsity";
/// Keys that are shown in another form.
const COVERED: [&str; 3] = ["step", SAMPLES, "sparsity"];

/// The figures of a run over time.
#[derive(Debug, Clone, Default)]
pub(super) struct Curves {
    lines: Vec<Map<String, Value>>,
}

impl Curves {
    /// Reads `metrics.jsonl`; without the file there are no curves. A last line that was cut off is left out.
    pub(super) fn read(path: &Path) -> Result<Self> {
        if !path.exists() {
            return Ok(Self::default());
        }
        let text = std::fs::read_to_string(path).map_err(Error::io("read the metrics file", path))?;
        let (mut lines, count) = (Vec::new(), text.lines().count());
        for (i, line) in text.lines().enumerate() {
            match serde_json::from_str::<Map<String, Value>>(line) {
                Ok(object) => lines.push(object),
                Err(_) if i + 1 == count && !text.ends_with('\n') => {}
                Err(e) => {
                    let found = format!("line {}: {e}", i + 1);
                    let remedy = "remove the line, or the file to do without curves";
                    return Err(Error::malformed("metrics file", path, "a JSON object a line", found, remedy));
                }
            }
        }
        Ok(Self { lines })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// The last value of `key`.
    pub(super) fn last(&self, key: &str) -> Option<f64> {
        self.lines.iter().rev().find_map(|line| line.get(key)?.as_f64())
    }

    /// `key` over the rows seen. Lines without the key are passed over, and null interrupts the curve.
    pub(super) fn points(&self, key: &str) -> Vec<(f64, f64)> {
        let point = |(i, line): (usize, &Map<String, Value>)| {
            let x = line.get(SAMPLES).and_then(Value::as_f64).unwrap_or(i as f64 + 1.0);
            let y = match key {
                PENALTY => number(line, "coefficient")? * number(line, "sparsity")?,
                _ => number(line, key)?,
            };
            Some((x, y))
        };
        self.lines.iter().enumerate().filter_map(point).collect()
    }

    /// All curves, the well-known ones first.
    pub(super) fn charts(&self) -> Vec<Element> {
        let mut charts: Vec<Element> = PICTURES.iter().filter_map(|picture| self.chart(picture)).collect();
        let shown = |key: &str| COVERED.contains(&key) || PICTURES.iter().any(|p| p.keys.iter().any(|k| k.0 == key));
        let mut others: Vec<&String> = self.lines.iter().flat_map(Map::keys).filter(|key| !shown(key)).collect();
        others.sort();
        others.dedup();
        for key in others {
            let points = self.points(key);
            if points.iter().any(|p| p.1.is_finite()) {
                charts.push(over(
                    sentence(key),
                    &key.replace('_', " "),
                    Kind::Positive,
                    vec![Series::new(key, points)],
                ));
            }
        }
        charts
    }

    fn chart(&self, picture: &Picture) -> Option<Element> {
        let series = picture.keys.iter().map(|(key, name)| Series { name: (*name).into(), ..self.series(key) });
        // A term that the method does not have is zero throughout.
        let says = |s: &Series| s.points.iter().any(|p| p.1.is_finite() && p.1 != 0.0);
        let series: Vec<Series> = series.filter(says).collect();
        // A figure that stays at zero stands among the headline figures and needs no picture.
        (!series.is_empty()).then(|| over(picture.title.into(), picture.label, picture.axis, series))
    }

    /// The curve of `key`; where it was measured on some lines only, its points are marked.
    fn series(&self, key: &str) -> Series {
        let points = self.points(key);
        let dots = points.len() * 2 < self.lines.len();
        Series { name: key.into(), points, dots }
    }
}

/// The number under `key`; null, which JSON has in place of numbers that are not finite, is not a number.
fn number(line: &Map<String, Value>, key: &str) -> Option<f64> {
    match line.get(key)? {
        Value::Null => Some(f64::NAN),
        value => value.as_f64(),
    }
}

fn over(title: String, label: &str, kind: Kind, series: Vec<Series>) -> Element {
    let values = || series.iter().flat_map(|s| &s.points).map(|p| p.1);
    let y = match kind {
        Kind::Share => Axis::linear(label).within(0.0, 1.0),
        Kind::Count => Axis::linear(label).including(0.0),
        Kind::Positive => Axis::by_range(label, values()),
    };
    LineChart { title, x: Axis::linear("tokens").including(0.0), y, series }.svg()
}

/// The chart of one figure of several runs.
pub(super) fn overlaid(runs: &[(&str, &Curves)]) -> Vec<Element> {
    let keys = [
        ("heldout_explained_variance", "Explained variance", "R², held out", Kind::Share),
        ("explained_variance", "Explained variance", "R², training batch", Kind::Share),
        ("l0", "Active features", "L0, features a row", Kind::Positive),
        ("mse", "Squared error", "a row of mean norm √width", Kind::Positive),
        ("dead_features", "Dead features", "features", Kind::Count),
    ];
    let chart = |(key, title, label, kind): (&str, &str, &str, Kind)| {
        let series: Vec<Series> =
            runs.iter().map(|(name, c)| Series { name: (*name).into(), ..c.series(key) }).collect();
        let any = series.iter().any(|s| s.points.iter().any(|p| p.1.is_finite()));
        any.then(|| over(title.into(), label, kind, series))
    };
    keys.into_iter().filter_map(chart).collect()
}

/// `grad_norm` as a title: "Grad norm".
fn sentence(key: &str) -> String {
    let mut text = key.replace('_', " ");
    if let Some(first) = text.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::web::markup::tests::well_formed;

    const LINES: &str = "{\"step\":1,\"n_training_samples\":8,\"loss\":3,\"mse\":2,\"sparsity\":4,\"coefficient\":0.25,\"zeal\":1}\n\
                         {\"step\":2,\"n_training_samples\":16,\"loss\":null,\"mse\":1,\"sparsity\":2,\"coefficient\":0.5,\"resampled\":0}\n";

    fn read(text: &str) -> Result<Curves> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        std::fs::write(&path, text).unwrap();
        Curves::read(&path)
    }

    #[test]
    fn curves_follow_the_keys_of_the_file() {
        let curves = read(LINES).unwrap();
        assert_eq!(curves.points(PENALTY), [(8.0, 1.0), (16.0, 1.0)]);
        assert!(curves.points("loss")[1].1.is_nan() && curves.last("loss") == Some(3.0));
        let charts: Vec<String> = curves.charts().iter().map(ToString::to_string).collect();
        for chart in &charts {
            well_formed(chart);
        }
        let titled = |title: &str| charts.iter().any(|c| c.contains(&format!(">{title}</text>")));
        assert!(titled("Loss") && titled("Zeal") && titled("Weight of the penalty") && !titled("Started again"));
        assert_eq!(charts.len(), 3, "{charts:?}");
    }

    #[test]
    fn a_torn_last_line_is_left_out_and_a_damaged_one_is_named() {
        assert_eq!(read(&format!("{LINES}{{\"step\":3,\"lo")).unwrap().lines.len(), 2);
        assert!(read("").unwrap().is_empty());
        let error = read(&format!("nonsense\n{LINES}")).unwrap_err().to_string();
        assert!(error.contains("line 1"), "{error}");
    }
}
