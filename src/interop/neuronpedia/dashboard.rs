//! `SAEDashboard`'s batches (`sae_dashboard.neuronpedia.neuronpedia_dashboard.NeuronpediaDashboardBatch`), which
//! Neuronpedia's `convert-saedashboard-to-neuronpedia-export.py` takes. Keys and their order are `SAEDashboard`'s.

use std::path::Path;

use serde::Serialize;
use serde_json::json;

use super::{Names, Source, short_number, short_numbers};
use crate::analysis::feature::record::{ExampleRecord, TokenRecord};
use crate::analysis::feature::{FeatureRecord, IndexHeader};
use crate::base::Result;
use crate::base::artifact::{write_atomic_with, write_json};
use crate::base::progress::Unit;

/// Features of one file, `SAEDashboard`'s default.
const BATCH: usize = 128;
/// Tokens, neurons and features in the tables.
const LOGITS: usize = 10;
const ROWS: usize = 3;

/// One `batch-N.json`.
#[derive(Debug, Serialize)]
struct Batch<'a> {
    model_id: &'a str,
    layer: usize,
    sae_set: &'a str,
    sae_id_suffix: Option<&'a str>,
    features: Vec<Feature>,
}

/// A feature as `SAEDashboard` writes it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[expect(clippy::struct_field_names, reason = "the names are those of the format")]
pub(super) struct Feature {
    pub(super) feature_index: u32,
    pub(super) neuron_alignment_indices: Vec<u32>,
    pub(super) neuron_alignment_values: Vec<f64>,
    pub(super) neuron_alignment_l1: Vec<f64>,
    pub(super) correlated_neurons_indices: Vec<u32>,
    pub(super) correlated_neurons_l1: Vec<f64>,
    pub(super) correlated_neurons_pearson: Vec<f64>,
    pub(super) correlated_features_indices: Vec<u32>,
    pub(super) correlated_features_l1: Vec<f64>,
    pub(super) correlated_features_pearson: Vec<f64>,
    pub(super) neg_str: Vec<String>,
    pub(super) neg_values: Vec<f64>,
    pub(super) pos_str: Vec<String>,
    pub(super) pos_values: Vec<f64>,
    pub(super) frac_nonzero: f64,
    pub(super) freq_hist_data_bar_values: Vec<f64>,
    pub(super) freq_hist_data_bar_heights: Vec<f64>,
    pub(super) logits_hist_data_bar_heights: Vec<f64>,
    pub(super) logits_hist_data_bar_values: Vec<f64>,
    pub(super) n_prompts_total: u64,
    pub(super) n_tokens_in_prompt: usize,
    pub(super) dataset: String,
    /// Only dictionaries on concatenated heads have one.
    pub(super) decoder_weights_dist: Vec<f64>,
    pub(super) activations: Vec<Activation>,
    pub(super) vector: Vec<f64>,
}

/// An example. Its bin is the interval of activations that it was drawn from; `-1` for the strongest ones.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Activation {
    pub(super) bin_min: f64,
    pub(super) bin_max: f64,
    pub(super) bin_contains: f64,
    pub(super) tokens: Vec<String>,
    pub(super) values: Vec<f64>,
    pub(super) qualifying_token_index: usize,
}

impl Feature {
    /// `record` of the index that `header` is about, with its decoder row.
    pub(super) fn new(record: FeatureRecord, header: &IndexHeader, vector: Option<&[f32]>) -> Self {
        let aligned = || record.alignment.iter().take(ROWS);
        let coactive = || record.coactive.iter().take(ROWS);
        let numbers = |values: &mut dyn Iterator<Item = f32>| short_numbers(&values.collect::<Vec<_>>());
        let (pos_str, pos_values) = tokens(record.promoted.as_deref());
        let (neg_str, neg_values) = tokens(record.suppressed.as_deref());
        let fires = &record.histogram;
        let (logit_heights, logit_values) = record.logit_histogram.as_ref().map_or_else(Default::default, |h| {
            (h.counts.iter().map(|&n| n as f64).collect(), centres(h.start, h.bin_width, h.counts.len()))
        });
        Self {
            feature_index: record.summary.index,
            neuron_alignment_indices: aligned().map(|a| a.coordinate).collect(),
            neuron_alignment_values: numbers(&mut aligned().map(|a| a.value)),
            neuron_alignment_l1: numbers(&mut aligned().map(|a| a.share)),
            correlated_neurons_indices: Vec::new(),
            correlated_neurons_l1: Vec::new(),
            correlated_neurons_pearson: Vec::new(),
            correlated_features_indices: coactive().map(|c| c.feature).collect(),
            correlated_features_l1: numbers(&mut coactive().map(|c| c.cosine)),
            correlated_features_pearson: numbers(&mut coactive().map(|c| c.correlation)),
            neg_str,
            neg_values,
            pos_str,
            pos_values,
            frac_nonzero: short_number(record.summary.density),
            freq_hist_data_bar_values: centres(0.0, fires.bin_width, fires.counts.len()),
            freq_hist_data_bar_heights: fires.counts.iter().map(|&n| n as f64).collect(),
            logits_hist_data_bar_heights: logit_heights,
            logits_hist_data_bar_values: logit_values,
            n_prompts_total: header.sequences,
            n_tokens_in_prompt: header.context_size,
            dataset: header.source.clone().unwrap_or_default(),
            decoder_weights_dist: Vec::new(),
            activations: activations(record),
            vector: vector.map(short_numbers).unwrap_or_default(),
        }
    }
}

fn activations(record: FeatureRecord) -> Vec<Activation> {
    let max = short_number(f64::from(record.summary.max));
    let activation = |example: ExampleRecord, [bin_min, bin_max, bin_contains]: [f64; 3]| Activation {
        bin_min,
        bin_max,
        bin_contains,
        values: short_numbers(&example.values),
        tokens: example.tokens,
        qualifying_token_index: example.peak,
    };
    let mut all: Vec<Activation> = record.examples.into_iter().map(|e| activation(e, [-1.0, max, -1.0])).collect();
    for interval in record.intervals {
        let bin = [interval.from, interval.to, interval.share].map(short_number);
        all.extend(interval.examples.into_iter().map(|e| activation(e, bin)));
    }
    all
}

fn tokens(list: Option<&[TokenRecord]>) -> (Vec<String>, Vec<f64>) {
    let list = list.unwrap_or_default().iter().take(LOGITS);
    list.map(|t| (t.text.clone(), short_number(f64::from(t.effect.logit)))).unzip()
}

fn centres(start: f64, width: f64, bins: usize) -> Vec<f64> {
    (0..bins).map(|i| short_number(start + (i as f64 + 0.5) * width)).collect()
}

/// Writes the live features into the existing directory `dir`; the others are listed in `skipped_indexes.json`.
///
/// # Errors
/// `Io` when a file cannot be written, `Interrupted`, and whatever reading the index gives.
pub fn write(source: Source<'_>, dir: &Path) -> Result<()> {
    let Source { header, features, record, dictionary, names, progress } = source;
    let Names { model_id, layer, source_set, .. } = names;
    let mut skipped = Vec::new();
    progress.begin("features", features.len() as u64, Unit::Items);
    for (number, numbers) in features.chunks(BATCH).enumerate() {
        super::export::stop_if_cancelled(progress)?;
        let mut batch =
            Batch { model_id, layer: *layer, sae_set: source_set, sae_id_suffix: None, features: Vec::new() };
        for &feature in numbers {
            let record = record(feature)?;
            if record.summary.count == 0 {
                skipped.push(feature);
                continue;
            }
            let vector = dictionary.map(|d| d.decoder_row(feature)).transpose()?;
            batch.features.push(Feature::new(record, header, vector));
        }
        write_atomic_with(&dir.join(format!("batch-{number}.json")), |file| {
            serde_json::to_writer(std::io::BufWriter::new(file), &batch).map_err(Into::into)
        })?;
        progress.advance(numbers.len() as u64);
    }
    progress.end();
    let skipped = json!({
        "model_id": model_id,
        "layer": layer.to_string(),
        "sae_set": source_set,
        "log_sparsity": null,
        "skipped_indexes": skipped,
    });
    write_json(&dir.join("skipped_indexes.json"), &skipped)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::interop::neuronpedia::tests::{header, record, source};

    #[test]
    fn batches_hold_live_features_with_bins_and_tables() {
        let dir = tempfile::tempdir().unwrap();
        let (header, names) = (header(), Names::of(&header(), None).unwrap());
        write(source(&header, &names), dir.path()).unwrap();
        let read =
            |name: &str| -> Value { serde_json::from_slice(&std::fs::read(dir.path().join(name)).unwrap()).unwrap() };
        let batch = read("batch-0.json");
        assert_eq!(
            (&batch["model_id"], &batch["layer"], &batch["sae_set"], &batch["sae_id_suffix"]),
            (&"some-model".into(), &2.into(), &"res-2k".into(), &Value::Null)
        );
        assert_eq!(read("skipped_indexes.json")["skipped_indexes"], json!([1]));
        let features = batch["features"].as_array().unwrap();
        assert_eq!(features.iter().map(|f| f["feature_index"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 2]);
        let feature = &features[0];
        assert_eq!(feature["pos_str"].as_array().unwrap().len(), 10);
        assert_eq!(feature["neg_values"], json!([-1.2346]));
        assert_eq!(feature["freq_hist_data_bar_values"], json!([0.25, 0.75, 1.25, 1.75, 2.25, 2.75]));
        assert_eq!(feature["logits_hist_data_bar_values"], json!([-1.25, -0.75, -0.25]));
        assert_eq!(feature["correlated_features_pearson"], json!([0.4]));
        let bins: Vec<Value> = feature["activations"]
            .as_array()
            .unwrap()
            .iter()
            .map(|a| json!([a["bin_min"], a["bin_max"], a["bin_contains"]]))
            .collect();
        assert_eq!(bins[0], json!([-1.0, 3.0, -1.0]));
        assert_eq!((bins.len(), &bins[3], &bins[4]), (5, &json!([1.5, 3.0, 0.48]), &json!([0.0, 1.5, 0.48])));
        for activation in feature["activations"].as_array().unwrap() {
            let list = |key: &str| activation[key].as_array().unwrap().len();
            assert_eq!(list("tokens"), list("values"));
        }
    }

    #[test]
    fn a_decoder_row_goes_with_its_feature() {
        let feature = Feature::new(record(0), &header(), Some(&[0.5, -0.25]));
        assert_eq!(feature.vector, [0.5, -0.25]);
    }
}
