//! Neuronpedia's export layout, which its importer and the world's `exports/` take: one directory a source, JSON lines of
//! the rows of its tables (`utils/neuronpedia-utils/neuronpedia_utils/db_models`, `apps/webapp/prisma/schema.prisma`).
//!
//! Columns that the database fills in by itself, such as times, are left out, so that the same index gives the same
//! bytes. Identifiers are hashes of what they name: importing twice adds nothing.

use std::io::Write;
use std::path::{Path, PathBuf};

use flate2::{Compression, GzBuilder};
use serde::Serialize;
use serde_json::{Value, json};

use super::dashboard::{Activation, Feature};
use super::{Names, Source};
use crate::base::artifact::{write_atomic, write_atomic_with};
use crate::base::progress::Unit;
use crate::base::{Error, Progress, Result};

/// Features of one file, as in Neuronpedia's own exports.
const BATCH: usize = 1024;
/// The user whom imported rows belong to in a fresh installation of Neuronpedia.
pub const CREATOR_ID: &str = "clkht01d40000jv08hvalcvly";
/// The base of identifiers, as in cuid2.
const ALPHABET: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

/// A row of the table of features.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct FeatureRow<'a> {
    model_id: &'a str,
    layer: &'a str,
    index: String,
    creator_id: &'a str,
    source_set_name: &'a str,
    max_act_approx: f64,
    has_vector: bool,
    vector: &'a [f64],
    vector_label: Option<&'a str>,
    vector_default_steer_strength: f64,
    hook_name: Option<&'a str>,
    topk_cos_sim_indices: Vec<u32>,
    topk_cos_sim_values: Vec<f64>,
    #[serde(flatten)]
    tables: Tables<'a>,
}

/// The columns that keep `SAEDashboard`'s names.
#[derive(Debug, Serialize)]
struct Tables<'a> {
    neuron_alignment_indices: &'a [u32],
    neuron_alignment_values: &'a [f64],
    neuron_alignment_l1: &'a [f64],
    correlated_neurons_indices: &'a [u32],
    correlated_neurons_pearson: &'a [f64],
    correlated_neurons_l1: &'a [f64],
    correlated_features_indices: &'a [u32],
    correlated_features_pearson: &'a [f64],
    correlated_features_l1: &'a [f64],
    neg_str: &'a [String],
    neg_values: &'a [f64],
    pos_str: &'a [String],
    pos_values: &'a [f64],
    frac_nonzero: f64,
    freq_hist_data_bar_heights: &'a [f64],
    freq_hist_data_bar_values: &'a [f64],
    logits_hist_data_bar_heights: &'a [f64],
    logits_hist_data_bar_values: &'a [f64],
    decoder_weights_dist: &'a [f64],
}

impl<'a> Tables<'a> {
    fn of(feature: &'a Feature) -> Self {
        Self {
            neuron_alignment_indices: &feature.neuron_alignment_indices,
            neuron_alignment_values: &feature.neuron_alignment_values,
            neuron_alignment_l1: &feature.neuron_alignment_l1,
            correlated_neurons_indices: &feature.correlated_neurons_indices,
            correlated_neurons_pearson: &feature.correlated_neurons_pearson,
            correlated_neurons_l1: &feature.correlated_neurons_l1,
            correlated_features_indices: &feature.correlated_features_indices,
            correlated_features_pearson: &feature.correlated_features_pearson,
            correlated_features_l1: &feature.correlated_features_l1,
            neg_str: &feature.neg_str,
            neg_values: &feature.neg_values,
            pos_str: &feature.pos_str,
            pos_values: &feature.pos_values,
            frac_nonzero: feature.frac_nonzero,
            freq_hist_data_bar_heights: &feature.freq_hist_data_bar_heights,
            freq_hist_data_bar_values: &feature.freq_hist_data_bar_values,
            logits_hist_data_bar_heights: &feature.logits_hist_data_bar_heights,
            logits_hist_data_bar_values: &feature.logits_hist_data_bar_values,
            decoder_weights_dist: &feature.decoder_weights_dist,
        }
    }
}

/// A row of the table of activations.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ActivationRow<'a> {
    id: String,
    tokens: &'a [String],
    index: String,
    layer: &'a str,
    model_id: &'a str,
    max_value: f64,
    max_value_token_index: usize,
    min_value: f64,
    values: &'a [f64],
    creator_id: &'a str,
    data_source: Option<&'a str>,
    data_index: Option<&'a str>,
    dfa_values: [f64; 0],
    dfa_target_index: Option<usize>,
    dfa_max_value: Option<f64>,
    loss_values: [f64; 0],
    logit_contributions: Option<&'a str>,
    bin_min: f64,
    bin_max: f64,
    bin_contains: f64,
    qualifying_token_index: usize,
}

/// Writes the features into `MODEL/LAYER-SET` under `dir` and gives that directory back. Features that never fire are
/// written too, without activations.
///
/// # Errors
/// `Io` when a file cannot be written, `Interrupted`, and whatever reading the index gives.
pub fn write(source: Source<'_>, dir: &Path) -> Result<PathBuf> {
    let Source { header, features, record, dictionary, names, progress } = source;
    let source_id = names.source_id();
    let target = dir.join(&names.model_id).join(&source_id);
    for part in ["features", "activations", "explanations"] {
        let path = target.join(part);
        std::fs::create_dir_all(&path).map_err(Error::io("make the export's directory", &path))?;
    }
    for (file, line) in about(source) {
        write_atomic(&target.join(file), format!("{line}\n").as_bytes())?;
    }
    progress.begin("features", features.len() as u64, Unit::Items);
    for (number, numbers) in features.chunks(BATCH).enumerate() {
        stop_if_cancelled(progress)?;
        let (mut rows, mut activations, mut explanations) = (Lines::new(), Lines::new(), Lines::new());
        for &feature in numbers {
            let record = record(feature)?;
            let nearest = record.nearest.clone();
            for (i, label) in record.labels.iter().enumerate() {
                let made = names.id(&source_id, feature, "explanation", i);
                explanations.push(&json!({
                    "id": made, "modelId": names.model_id, "layer": source_id, "index": feature.to_string(),
                    "description": label.text, "authorId": CREATOR_ID, "typeName": label.method,
                    "explanationModelName": label.model, "notes": label.author.as_ref().map(|a| format!("by {a}")),
                }))?;
            }
            let vector = dictionary.map(|d| d.decoder_row(feature)).transpose()?;
            let dashboard = Feature::new(record, header, vector);
            let cosines: Vec<f32> = nearest.iter().map(|n| n.cosine).collect();
            let max = dashboard.activations.iter().flat_map(|a| &a.values).copied().fold(0.0, f64::max);
            rows.push(&FeatureRow {
                model_id: &names.model_id,
                layer: &source_id,
                index: feature.to_string(),
                creator_id: CREATOR_ID,
                source_set_name: &names.source_set,
                max_act_approx: max,
                has_vector: !dashboard.vector.is_empty(),
                vector: &dashboard.vector,
                vector_label: None,
                vector_default_steer_strength: max,
                hook_name: (!dashboard.vector.is_empty()).then_some(&names.hook_name),
                topk_cos_sim_indices: nearest.iter().map(|n| n.feature).collect(),
                topk_cos_sim_values: super::short_numbers(&cosines),
                tables: Tables::of(&dashboard),
            })?;
            for (i, activation) in dashboard.activations.iter().enumerate() {
                let id = names.id(&source_id, feature, "activation", i);
                activations.push(&activation_row(activation, id, feature, names, &source_id))?;
            }
        }
        for (part, lines) in [("features", rows), ("activations", activations), ("explanations", explanations)] {
            lines.write(&target.join(part).join(format!("batch-{number}.jsonl.gz")))?;
        }
        progress.advance(numbers.len() as u64);
    }
    progress.end();
    Ok(target)
}

fn activation_row<'a>(
    activation: &'a Activation,
    id: String,
    feature: u32,
    names: &'a Names,
    source_id: &'a str,
) -> ActivationRow<'a> {
    let Activation { bin_min, bin_max, bin_contains, tokens, values, qualifying_token_index } = activation;
    let largest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    ActivationRow {
        id,
        tokens,
        index: feature.to_string(),
        layer: source_id,
        model_id: &names.model_id,
        max_value: if values.is_empty() { 0.0 } else { largest },
        max_value_token_index: values.iter().position(|v| v.total_cmp(&largest).is_eq()).unwrap_or_default(),
        min_value: values.iter().copied().reduce(f64::min).unwrap_or_default(),
        values,
        creator_id: CREATOR_ID,
        data_source: None,
        data_index: None,
        dfa_values: [],
        dfa_target_index: None,
        dfa_max_value: None,
        loss_values: [],
        logit_contributions: None,
        bin_min: *bin_min,
        bin_max: *bin_max,
        bin_contains: *bin_contains,
        qualifying_token_index: *qualifying_token_index,
    }
}

impl Names {
    /// An identifier of 25 letters and digits that is always the same for the same thing.
    fn id(&self, source_id: &str, feature: u32, what: &str, number: usize) -> String {
        let name = format!("{}/{source_id}/{feature}/{what}/{number}", self.model_id);
        let hash = blake3::hash(name.as_bytes());
        let digits = hash.as_bytes().iter().take(24).map(|byte| char::from(ALPHABET[usize::from(*byte) % 36]));
        std::iter::once('c').chain(digits).collect()
    }
}

/// The files about the whole, one line each.
fn about(source: Source<'_>) -> [(&'static str, Value); 4] {
    let Source { header, names, .. } = source;
    let Names { model_id, source_set, .. } = names;
    let description = format!("{} features of {}", header.d_sae, names.hook_name);
    let release = json!({
        "name": source_set, "description": description, "descriptionShort": description, "creatorName": "mechinterp",
        "creatorNameShort": "mechinterp", "creatorId": CREATOR_ID, "urls": [], "visibility": "PUBLIC",
    });
    let model = json!({
        "id": model_id, "displayName": model_id, "displayNameShort": model_id, "instruct": model_id.contains("instruct"),
        "creatorId": CREATOR_ID, "owner": "", "visibility": "PUBLIC", "layers": 0, "neuronsPerLayer": 0,
    });
    let set = json!({
        "modelId": model_id, "name": source_set, "description": description, "type": "", "creatorId": CREATOR_ID,
        "creatorName": "mechinterp", "releaseName": source_set, "hasDashboards": true, "visibility": "PUBLIC",
        "urls": [],
    });
    let of = json!({
        "id": names.source_id(), "modelId": model_id, "setName": source_set, "creatorId": CREATOR_ID,
        "hasDashboards": true, "inferenceEnabled": false, "visibility": "PUBLIC", "dataset": header.source,
        "num_prompts": header.sequences, "num_tokens_in_prompt": header.context_size,
    });
    [("release.jsonl", release), ("model.jsonl", model), ("sourceset.jsonl", set), ("source.jsonl", of)]
}

/// JSON lines that are compressed as they are written.
struct Lines(Vec<u8>);

impl Lines {
    fn new() -> Self {
        Self(Vec::new())
    }

    fn push(&mut self, row: &impl Serialize) -> Result<()> {
        serde_json::to_writer(&mut self.0, row).map_err(|e| Error::io("serialise JSON", "-")(e.into()))?;
        self.0.push(b'\n');
        Ok(())
    }

    /// Writes them, or nothing when there are none.
    fn write(&self, path: &Path) -> Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        write_atomic_with(path, |file| {
            let mut out = GzBuilder::new().write(std::io::BufWriter::new(file), Compression::new(5));
            out.write_all(&self.0)?;
            out.finish()?.flush()
        })
    }
}

pub(super) fn stop_if_cancelled(progress: &dyn Progress) -> Result<()> {
    if !progress.cancelled() {
        return Ok(());
    }
    progress.end();
    Err(Error::Interrupted {
        kept: "no complete export was written".into(),
        resume: "run the same command again".into(),
    })
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::interop::neuronpedia::tests::{header, source};

    fn lines(path: PathBuf) -> Vec<Value> {
        let bytes = std::fs::read(&path).unwrap();
        let mut text = String::new();
        if path.extension().unwrap() == "gz" {
            flate2::read::GzDecoder::new(&bytes[..]).read_to_string(&mut text).unwrap();
        } else {
            text = String::from_utf8(bytes).unwrap();
        }
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn a_source_has_every_table() {
        let dir = tempfile::tempdir().unwrap();
        let (header, names) = (header(), Names::of(&header(), None).unwrap());
        let target = write(source(&header, &names), dir.path()).unwrap();
        assert!(target.ends_with("some-model/2-res-2k"));
        for name in ["release", "model", "sourceset", "source"] {
            assert_eq!(lines(target.join(format!("{name}.jsonl"))).len(), 1, "{name}");
        }
        let features = lines(target.join("features/batch-0.jsonl.gz"));
        assert_eq!(
            (features.len(), &features[2]["index"], &features[2]["layer"]),
            (3, &"2".into(), &"2-res-2k".into())
        );
        assert_eq!((&features[0]["maxActApprox"], &features[1]["maxActApprox"]), (&json!(3.0), &json!(0.0)));
        assert_eq!((&features[0]["topkCosSimIndices"], &features[0]["hasVector"]), (&json!([4]), &json!(false)));
        let activations = lines(target.join("activations/batch-0.jsonl.gz"));
        assert_eq!(activations.len(), 10);
        let ids: std::collections::BTreeSet<&str> = activations.iter().map(|a| a["id"].as_str().unwrap()).collect();
        assert!(ids.len() == 10 && ids.iter().all(|id| id.len() == 25 && id.starts_with('c')));
        let first = &activations[0];
        assert_eq!(
            (&first["maxValue"], &first["maxValueTokenIndex"], &first["minValue"]),
            (&json!(3.0), &json!(1), &json!(0.0))
        );
        let explanations = lines(target.join("explanations/batch-0.jsonl.gz"));
        assert_eq!((explanations.len(), &explanations[0]["description"]), (2, &json!("a \"label\"")));
        // Again it is the same to the bit.
        let path = target.join("activations/batch-0.jsonl.gz");
        let before = std::fs::read(&path).unwrap();
        write(source(&header, &names), dir.path()).unwrap();
        assert!(before == std::fs::read(path).unwrap());
    }
}
