//! How good a dictionary is: reconstruction and sparsity from activations, and what the model loses when it runs on
//! reconstructions.
//!
//! Keys and categories of the result are those of SAEBench's core evaluation; definitions are SAELens'
//! (`sae_lens/evals.py`) and come with the result ([`DEFINITIONS`]).

pub mod language;
pub mod metrics;
pub mod replacement;
pub mod saebench;
mod splice;
pub mod weights;

use serde::Serialize;

pub use language::{LanguageSettings, LanguageSums};
pub use metrics::{Better, CoreMetrics, DEFINITIONS, Definition};

use super::placement::{Placement, check_in_place};
use super::sequences::{SequenceBatch, SequenceSource, batches, check_width, select_rows};
use super::stop_if_cancelled;
use crate::base::progress::Unit;
use crate::base::{Error, Progress, Result};
use crate::dictionary::metrics::Metrics;
use crate::dictionary::{Dictionary, SparseCodes};
use crate::model::Model;

/// How much to evaluate.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EvalSettings {
    /// Sequences for reconstruction and sparsity; all when absent.
    pub max_sequences: Option<u64>,
    /// Sequences for the model's losses, three forward passes each; all when absent.
    pub max_model_sequences: Option<u64>,
    /// Whether to compare every feature's direction with every other's, which costs `f² d`.
    pub feature_directions: bool,
    /// About the model's losses.
    pub language: LanguageSettings,
}

impl Default for EvalSettings {
    fn default() -> Self {
        Self {
            max_sequences: None,
            max_model_sequences: Some(64),
            feature_directions: true,
            language: LanguageSettings::default(),
        }
    }
}

/// The result for one dictionary.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Evaluation {
    /// Over the positions that count.
    #[serde(rename = "eval_result_metrics")]
    pub metrics: CoreMetrics,
    /// Reconstruction and sparsity over every position, where the filter left any out.
    #[serde(rename = "all_positions", skip_serializing_if = "Option::is_none")]
    pub all_positions: Option<CoreMetrics>,
    /// Positions that the filter left out of `metrics`.
    pub positions_left_out: u64,
    /// One entry a feature.
    #[serde(rename = "eval_result_details")]
    pub details: Vec<FeatureDetail>,
}

/// What SAEBench reports of each feature.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct FeatureDetail {
    /// Number of the feature.
    pub index: usize,
    /// Share of counted positions where it fires.
    pub feature_density: f64,
    /// Firings a sequence in which it fires.
    pub consistent_activation_heuristic: f64,
    /// `b_enc`; of gated dictionaries `b_mag`.
    pub encoder_bias: f32,
    /// Norm of its encoder column.
    pub encoder_norm: f32,
    /// Cosine of its encoder column and decoder row.
    pub encoder_decoder_cosine_sim: Option<f32>,
    /// Largest cosine of its decoder row and another's.
    pub max_decoder_cosine_sim: Option<f32>,
    /// Largest cosine of its encoder column and another's.
    pub max_encoder_cosine_sim: Option<f32>,
}

/// Evaluates `dictionary` on `source`, and on `model` when there is one. Memory holds one batch of rows, and the
/// logits of one small batch of sequences.
///
/// # Errors
/// `Mismatch` when widths differ, `Unsupported` when nothing is left to count, `Interrupted` when the user stopped
/// the work, and whatever reading and the model give.
pub fn evaluate(
    dictionary: &Dictionary,
    source: &dyn SequenceSource,
    model: Option<&Model>,
    settings: &EvalSettings,
    progress: &dyn Progress,
) -> Result<Evaluation> {
    check_width(source, dictionary)?;
    check_in_place(dictionary, "evaluation compares what comes out with what went in")?;
    let placement = model.map(|model| Placement::of(dictionary, model.config())).transpose()?;
    let reconstruction = Reconstruction::measure(dictionary, source, settings.max_sequences, progress)?;
    let language = match (model, placement) {
        (Some(model), Some(placement)) => {
            let limit = settings.max_model_sequences;
            Some(language::measure(dictionary, source, model, placement, limit, &settings.language, progress)?)
        }
        _ => None,
    };
    let directions = weights::directions(dictionary, settings.feature_directions, progress)?;
    let Reconstruction { counted, all, sequences_fired } = reconstruction;
    let positions_left_out = all.as_ref().map_or(0, |all| all.rows() - counted.rows());
    let densities = counted.densities();
    let details = directions.details(dictionary, &densities, counted.fired(), &sequences_fired);
    let mut metrics = CoreMetrics::new(&counted);
    metrics.set_directions(&details);
    if let Some(sums) = &language {
        metrics.set_language(sums);
    }
    Ok(Evaluation { metrics, all_positions: all.as_ref().map(CoreMetrics::new), positions_left_out, details })
}

/// The sums over rows.
struct Reconstruction {
    counted: Metrics,
    /// Over all positions, when some do not count.
    all: Option<Metrics>,
    /// Sequences in which each feature fires on a counted position.
    sequences_fired: Vec<u64>,
}

impl Reconstruction {
    fn measure(
        dictionary: &Dictionary,
        source: &dyn SequenceSource,
        limit: Option<u64>,
        progress: &dyn Progress,
    ) -> Result<Self> {
        let new = || Metrics::new(dictionary.d_out(), dictionary.d_sae());
        let (mut counted, mut all, mut any_left_out) = (new(), new(), false);
        let mut fired = Fired::new(dictionary.d_sae());
        let ranges: Vec<_> = batches(source, limit).collect();
        let total = ranges.last().map_or(0, |last| last.end) * source.context_size() as u64;
        progress.begin("reconstruction", total, Unit::Tokens);
        let mut batch = SequenceBatch::default();
        for range in ranges {
            stop_if_cancelled(progress)?;
            source.read(range, true, &mut batch)?;
            let codes = dictionary.encode(&batch.rows)?;
            let reconstructed = dictionary.reconstruct_codes(&batch.rows, &codes)?;
            all.add(&batch.rows, &reconstructed, &codes)?;
            let places = batch.kept_places();
            let rows = select_rows(&batch.rows, source.width(), &places);
            if places.len() == batch.tokens.len() {
                counted.add(&rows, &reconstructed, &codes)?;
                fired.add(&codes, &places, &batch);
            } else {
                any_left_out = true;
                let codes = select(&codes, &places);
                counted.add(&rows, &select_rows(&reconstructed, dictionary.d_out(), &places), &codes)?;
                fired.add(&codes, &places, &batch);
            }
            progress.advance(batch.tokens.len() as u64);
        }
        progress.end();
        if counted.rows() == 0 {
            return Err(Error::Unsupported {
                what: "evaluating on these activations".into(),
                why: "the filter leaves no position to count".into(),
                remedy: "use more text, or keep outliers and special tokens".into(),
            });
        }
        Ok(Self { counted, all: any_left_out.then_some(all), sequences_fired: fired.sequences })
    }
}

/// The codes of some rows.
fn select(codes: &SparseCodes, rows: &[u32]) -> SparseCodes {
    let mut selected = SparseCodes::new(codes.d_sae);
    for &row in rows {
        let (features, values) = codes.row(row as usize);
        selected.push_row(features, values);
    }
    selected
}

/// In how many sequences each feature fired.
struct Fired {
    sequences: Vec<u64>,
    /// The last sequence that counted, plus one.
    last: Vec<u64>,
}

impl Fired {
    fn new(d_sae: usize) -> Self {
        Self { sequences: vec![0; d_sae], last: vec![0; d_sae] }
    }

    fn add(&mut self, codes: &SparseCodes, places: &[u32], batch: &SequenceBatch) {
        for (row, &place) in places.iter().enumerate() {
            let sequence = batch.first + place as u64 / batch.context_size as u64 + 1;
            for &feature in codes.row(row).0 {
                let last = &mut self.last[feature as usize];
                self.sequences[feature as usize] += u64::from(*last != sequence);
                *last = sequence;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::saebench::CoreEvalOutput;
    use super::*;
    use crate::analysis::sequences::tests::InMemory;
    use crate::analysis::tests::{dictionary_at, open};
    use crate::base::Silent;
    use crate::model::HookPlan;
    use crate::ops::gemm::tests::numbers;

    const HOOK: &str = "blocks.0.hook_resid_post";

    /// Random rows of width 24 in which every first position is an outlier that does not count.
    fn source(sequences: usize) -> InMemory {
        let (s, d) = (9, 24);
        let n = sequences * s;
        let mut rows = numbers(n * d, "rows");
        for row in rows.chunks_exact_mut(s * d) {
            row[..d].iter_mut().for_each(|x| *x = *x * 50.0 + 30.0);
        }
        let tokens = (0..n as u32).map(|i| i * 7 % 48).collect();
        let kept = (0..n).map(|i| i % s != 0).collect();
        let all = SequenceBatch { first: 0, context_size: s, tokens, documents: vec![0; n], kept, rows };
        InMemory { width: d, all }
    }

    /// The keys and types of `value`, an array by its first element, without looking into `opaque` keys.
    fn shape(value: &Value, opaque: &[&str]) -> Value {
        match value {
            Value::Object(map) => {
                let of = |(key, value): (&String, &Value)| {
                    let known = if opaque.contains(&key.as_str()) { "object".into() } else { shape(value, opaque) };
                    (key.clone(), known)
                };
                let mut entries: Vec<(String, Value)> = map.iter().map(of).collect();
                entries.sort_by(|a, b| a.0.cmp(&b.0));
                Value::Object(entries.into_iter().collect())
            }
            Value::Array(values) => Value::Array(values.first().map(|v| shape(v, opaque)).into_iter().collect()),
            Value::Number(n) if n.is_f64() => "number".into(),
            Value::Number(_) => "integer".into(),
            Value::String(_) => "string".into(),
            Value::Bool(_) => "boolean".into(),
            Value::Null => Value::Null,
        }
    }

    /// R² of some rows, in `f64` and two passes.
    fn r_squared(dictionary: &Dictionary, rows: &[f32]) -> f64 {
        let d = dictionary.d_in();
        let n = (rows.len() / d) as f64;
        let reconstructed = dictionary.reconstruct(rows).unwrap();
        let mean: Vec<f64> =
            (0..d).map(|j| rows.chunks_exact(d).map(|row| f64::from(row[j])).sum::<f64>() / n).collect();
        let square = |x: f64| x * x;
        let total: f64 = rows.iter().enumerate().map(|(i, x)| square(f64::from(*x) - mean[i % d])).sum();
        let error: f64 = rows.iter().zip(&reconstructed).map(|(x, y)| square(f64::from(*x) - f64::from(*y))).sum();
        1.0 - error / total
    }

    #[test]
    fn explained_variance_equals_a_direct_computation_with_and_without_outliers() {
        let (dictionary, source) = (dictionary_at(HOOK, 24, 100), source(1000));
        let evaluation = evaluate(&dictionary, &source, None, &EvalSettings::default(), &Silent).unwrap();
        let counted = r_squared(&dictionary, &select_rows(&source.all.rows, 24, &source.all.kept_places()));
        let all = r_squared(&dictionary, &source.all.rows);
        let quality = |metrics: &CoreMetrics| metrics.reconstruction_quality.explained_variance;
        assert!((quality(&evaluation.metrics) - counted).abs() < 1e-9 * counted.abs());
        assert!((quality(&evaluation.all_positions.unwrap()) - all).abs() < 1e-9 * all.abs());
        assert!((counted - all).abs() > 0.1, "the outliers matter: {counted} {all}");
        assert_eq!(evaluation.positions_left_out, 1000);
        assert_eq!(evaluation.metrics.token_stats.total_tokens_eval_sparsity_variance, 8000);
        assert!(evaluation.metrics.model_behavior_preservation.is_none());
    }

    #[test]
    fn details_count_firings_a_sequence() {
        let (dictionary, source) = (dictionary_at(HOOK, 24, 60), source(700));
        let evaluation = evaluate(&dictionary, &source, None, &EvalSettings::default(), &Silent).unwrap();
        let places = source.all.kept_places();
        let rows = select_rows(&source.all.rows, 24, &places);
        let codes = dictionary.encode(&rows).unwrap();
        for detail in &evaluation.details {
            let fires = |row: usize| codes.row(row).0.contains(&(detail.index as u32));
            let fired: Vec<usize> =
                (0..codes.rows()).filter(|&row| fires(row)).map(|row| places[row] as usize / 9).collect();
            let sequences: std::collections::BTreeSet<usize> = fired.iter().copied().collect();
            assert_eq!(detail.feature_density, fired.len() as f64 / codes.rows() as f64);
            let each = fired.len() as f64 / sequences.len().max(1) as f64;
            assert_eq!(detail.consistent_activation_heuristic, each);
        }
        assert!(evaluation.details.iter().any(|d| d.consistent_activation_heuristic > 1.0));
    }

    #[test]
    fn with_a_model_the_result_has_every_category() {
        let model = open("llama");
        let mut source = source(5);
        let batch: Vec<&[u32]> = source.all.tokens.chunks_exact(9).collect();
        let point = HOOK.parse().unwrap();
        let run = model.forward(&model.tokens(&batch).unwrap(), &HookPlan::new().capture(point)).unwrap();
        source.all.rows = run.captured(point).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let dictionary = dictionary_at(HOOK, 24, 100);
        let evaluation = evaluate(&dictionary, &source, Some(&model), &EvalSettings::default(), &Silent).unwrap();
        let json = serde_json::to_value(&evaluation).unwrap();
        let categories = json["eval_result_metrics"].as_object().unwrap();
        assert_eq!(categories.len(), 7);
        assert!(json["eval_result_metrics"]["model_behavior_preservation"]["kl_div_score"].as_f64().unwrap() < 1.0);
        assert_eq!(json["eval_result_metrics"]["token_stats"]["total_tokens_eval_reconstruction"], 40);
        let file = CoreEvalOutput::new(&evaluation, saebench::tests::circumstances()).unwrap();
        assert_eq!(file.file_name(), "runs_sae_custom_sae_eval_results.json");
        let fields: Value =
            serde_json::from_str(include_str!("../../../tests/golden/saebench/core_fields.json")).unwrap();
        assert_eq!(shape(&serde_json::to_value(&file).unwrap(), &["sae_cfg_dict", "eval_result_unstructured"]), fields);
        let other = dictionary_at("blocks.0.mlp.hook_post", 24, 100);
        let error = evaluate(&other, &source, Some(&model), &EvalSettings::default(), &Silent).unwrap_err().to_string();
        assert!(error.contains("d_in 24") && error.contains("width 40"), "{error}");
    }
}
