//! The features of circuit-tracer's detail panel (`circuit_tracer/frontend/feature_models.py`), one file a feature.
//!
//! A graph whose `scan` is `./data/features/SET` makes the local server of circuit-tracer 0.5 read
//! `features/SET/NUMBER.json` under its graph directory, where `NUMBER` pairs layer and feature into one number. (The
//! page sends paths that begin with `./features/` to a server of Anthropic's.)

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{Source, short_number, short_numbers};
use crate::analysis::feature::FeatureRecord;
use crate::analysis::feature::record::{ExampleRecord, HistogramRecord, TokenRecord};
use crate::base::progress::Unit;
use crate::base::{Error, Result};

/// Tokens of the logit rows.
const LOGITS: usize = 10;
/// Percentiles of a feature's activations.
const PERCENTILES: usize = 100;

/// A feature, with the keys of circuit-tracer's `Model`.
#[derive(Debug, Serialize)]
struct Feature {
    transcoder_id: String,
    index: u32,
    examples_quantiles: Vec<Quantile>,
    top_logits: Vec<String>,
    bottom_logits: Vec<String>,
    act_min: f64,
    act_max: f64,
    quantile_values: Vec<f64>,
    histogram: Vec<f64>,
    activation_frequency: f64,
}

#[derive(Debug, Serialize)]
struct Quantile {
    quantile_name: String,
    examples: Vec<Example>,
}

#[derive(Debug, Serialize)]
struct Example {
    tokens_acts_list: Vec<f64>,
    train_token_ind: usize,
    is_repeated_datapoint: bool,
    tokens: Vec<String>,
}

/// Cantor's pairing of `layer` and `feature`.
pub fn pair(layer: usize, feature: u32) -> u64 {
    let (layer, feature) = (layer as u64, u64::from(feature));
    (layer + feature) * (layer + feature + 1) / 2 + feature
}

/// The layer and feature that [`pair`] joined.
pub fn unpair(z: u64) -> (usize, u32) {
    let triangle = |w: u64| u128::from(w) * (u128::from(w) + 1) / 2;
    let near = ((8.0 * z as f64 + 1.0).sqrt() as u64).saturating_sub(1) / 2;
    // The root of a large number may be off by one.
    let w = (near.saturating_sub(1)..=near + 1).rev().find(|w| triangle(*w) <= u128::from(z)).unwrap_or(near);
    let feature = u128::from(z).saturating_sub(triangle(w)) as u64;
    (w.saturating_sub(feature) as usize, feature as u32)
}

/// Writes every feature into `features/SET` under `dir` and gives that directory back.
///
/// # Errors
/// `Io` when a file cannot be written, `Interrupted`, and whatever reading the index gives.
pub fn write(source: Source<'_>, dir: &Path) -> Result<PathBuf> {
    let Source { features, record, names, progress, .. } = source;
    let target = dir.join("features").join(&names.source_set);
    std::fs::create_dir_all(&target).map_err(Error::io("make the export's directory", &target))?;
    progress.begin("features", features.len() as u64, Unit::Items);
    for &feature in features {
        super::export::stop_if_cancelled(progress)?;
        let value = Feature::new(record(feature)?, &format!("{}/{}", names.model_id, names.source_id()));
        let bytes = serde_json::to_vec(&value).map_err(|e| Error::io("serialise JSON", &target)(e.into()))?;
        let path = target.join(format!("{}.json", pair(names.layer, feature)));
        std::fs::write(&path, &bytes).map_err(Error::io("write the feature", &path))?;
        progress.advance(1);
    }
    progress.end();
    Ok(target)
}

impl Feature {
    fn new(record: FeatureRecord, transcoder_id: &str) -> Self {
        let mut seen = BTreeSet::new();
        let mut quantile = |quantile_name: String, examples: Vec<ExampleRecord>| Quantile {
            quantile_name,
            examples: examples.into_iter().map(|example| one(example, &mut seen)).collect(),
        };
        let (intervals, max) = (record.intervals.len(), f64::from(record.summary.max));
        let mut quantiles = vec![quantile("Top activations".into(), record.examples)];
        for (i, interval) in record.intervals.into_iter().enumerate().filter(|(_, i)| !i.examples.is_empty()) {
            let name = format!(
                "Interval {} of {intervals}: {:.2} to {:.2}, {:.1} % of activations",
                intervals - i,
                interval.from,
                interval.to,
                100.0 * interval.share
            );
            quantiles.push(quantile(name, interval.examples));
        }
        let tokens = |list: Option<Vec<TokenRecord>>| {
            list.unwrap_or_default().into_iter().take(LOGITS).map(|t| t.text).collect()
        };
        Self {
            transcoder_id: transcoder_id.into(),
            index: record.summary.index,
            examples_quantiles: if record.summary.count == 0 { Vec::new() } else { quantiles },
            top_logits: tokens(record.promoted),
            bottom_logits: tokens(record.suppressed),
            act_min: 0.0,
            act_max: short_number(max),
            quantile_values: percentiles(&record.histogram, max),
            histogram: record.histogram.counts.iter().map(|&n| n as f64).collect(),
            activation_frequency: short_number(record.summary.density),
        }
    }
}

fn one(example: ExampleRecord, seen: &mut BTreeSet<Vec<u32>>) -> Example {
    Example {
        tokens_acts_list: short_numbers(&example.values),
        train_token_ind: example.peak,
        is_repeated_datapoint: !seen.insert(example.token_ids),
        tokens: example.tokens,
    }
}

/// The activations below which 1 %, 2 %, … of all lie, as far as the histogram tells.
fn percentiles(histogram: &HistogramRecord, max: f64) -> Vec<f64> {
    let total: u64 = histogram.counts.iter().sum();
    if total == 0 {
        return Vec::new();
    }
    let (mut bin, mut below) = (0, 0.0);
    (1..=PERCENTILES)
        .map(|percent| {
            let wanted = total as f64 * percent as f64 / PERCENTILES as f64;
            while bin + 1 < histogram.counts.len() && below + (histogram.counts[bin] as f64) < wanted {
                below += histogram.counts[bin] as f64;
                bin += 1;
            }
            let inside = (wanted - below) / (histogram.counts[bin] as f64).max(1.0);
            short_number(((bin as f64 + inside.clamp(0.0, 1.0)) * histogram.bin_width).min(max.abs()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::interop::neuronpedia::Names;
    use crate::interop::neuronpedia::tests::{header, source};

    #[test]
    fn a_feature_has_what_the_panel_reads() {
        let dir = tempfile::tempdir().unwrap();
        let (header, names) = (header(), Names::of(&header(), None).unwrap());
        let target = write(source(&header, &names), dir.path()).unwrap();
        let read = |feature| -> Value {
            serde_json::from_slice(&std::fs::read(target.join(format!("{}.json", pair(2, feature)))).unwrap()).unwrap()
        };
        let feature = read(2);
        assert_eq!((&feature["index"], &feature["transcoder_id"]), (&json!(2), &json!("some-model/2-res-2k")));
        let names: Vec<&str> = feature["examples_quantiles"]
            .as_array()
            .unwrap()
            .iter()
            .map(|q| q["quantile_name"].as_str().unwrap())
            .collect();
        assert_eq!(names[0], "Top activations");
        assert_eq!(names[1], "Interval 2 of 2: 1.50 to 3.00, 48.0 % of activations");
        let repeated: Vec<bool> = feature["examples_quantiles"][0]["examples"]
            .as_array()
            .unwrap()
            .iter()
            .map(|e| e["is_repeated_datapoint"].as_bool().unwrap())
            .collect();
        assert_eq!(repeated, [false, true, false]);
        assert_eq!(feature["histogram"], json!([50.0, 40.0, 20.0, 10.0, 4.0, 1.0]));
        assert_eq!(read(1)["examples_quantiles"], json!([]));
    }

    #[test]
    fn layer_and_feature_pair_into_one_number_that_comes_apart_again() {
        for (layer, feature) in [(0usize, 0u32), (2, 1), (25, 16_383), (61, 131_071), (0, 131_071), (125, 4_194_303)] {
            let z = pair(layer, feature);
            // As the page takes it apart.
            let w = (((8 * z + 1) as f64).sqrt() - 1.0) as u64 / 2;
            let y = z - w * (w + 1) / 2;
            assert_eq!(((w - y) as usize, y as u32), (layer, feature));
            assert_eq!(unpair(z), (layer, feature));
        }
    }

    #[test]
    fn percentiles_ascend_to_the_maximum() {
        let histogram = HistogramRecord { bin_width: 0.5, counts: vec![50, 40, 10] };
        let found = percentiles(&histogram, 1.4);
        assert_eq!((found.len(), found[49], found[99]), (100, 0.5, 1.4));
        assert!(found.is_sorted() && found[24] == 0.25 && found[89] == 1.0);
        assert!(percentiles(&HistogramRecord::default(), 0.0).is_empty());
    }
}
