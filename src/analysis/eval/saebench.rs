//! SAEBench's result file of its core evaluation, so that a dictionary measured here stands in the same tables and
//! plots (<https://github.com/adamkarvonen/SAEBench>, `evals/core/eval_output.py`, version 0.6.0).
//!
//! Keys and their order are those of `CoreEvalOutput`. SAEBench measures dictionaries whose decoder rows have norm
//! one; fold the norms before [`evaluate`](super::evaluate) for the same `l1`, `encoder_norm` and `encoder_bias`. Where
//! SAEBench writes NaN, which JSON cannot hold, for features that never fire, the file holds 0.

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{Evaluation, FeatureDetail};
use crate::base::{Error, Result};

/// The eval's name.
const EVAL_TYPE_ID: &str = "core";
/// What SAEBench calls dictionaries that are in no release of SAELens.
pub const CUSTOM_SAE: &str = "custom_sae";
/// Figures of ours that SAEBench's categories do not have.
const OWN_FIGURES: [&str; 2] = ["dead_features", "dense_features"];

/// What the file says beside the figures.
#[derive(Debug, Clone, PartialEq)]
pub struct Circumstances {
    /// Name of the dictionary, which SAEBench takes for its release.
    pub name: String,
    /// The dictionary's configuration in SAELens' spelling.
    pub cfg: Value,
    /// The model that was run.
    pub model_name: String,
    /// Number type of the model.
    pub llm_dtype: String,
    /// The text.
    pub dataset: String,
    /// Tokens in a sequence.
    pub context_size: usize,
    /// Sequences whose losses were measured.
    pub model_sequences: u64,
    /// Sequences whose reconstruction was measured.
    pub sequences: u64,
    /// Whether special tokens were left out.
    pub excludes_special_tokens: bool,
    /// A random number that identifies the evaluation.
    pub id: u128,
    /// When it was made, in milliseconds since 1970.
    pub epoch_millis: u64,
}

/// `CoreEvalConfig`. A sequence counts as a batch, so that batches times context are the tokens measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct CoreEvalConfig {
    model_name: String,
    llm_dtype: String,
    batch_size_prompts: u64,
    n_eval_reconstruction_batches: u64,
    n_eval_sparsity_variance_batches: u64,
    dataset: String,
    context_size: usize,
    compute_kl: bool,
    compute_ce_loss: bool,
    compute_l2_norms: bool,
    compute_sparsity_metrics: bool,
    compute_variance_metrics: bool,
    compute_featurewise_density_statistics: bool,
    compute_featurewise_weight_based_metrics: bool,
    exclude_special_tokens_from_reconstruction: bool,
    verbose: bool,
}

/// The contents of the file.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CoreEvalOutput {
    eval_config: CoreEvalConfig,
    eval_id: String,
    datetime_epoch_millis: u64,
    eval_result_metrics: Value,
    eval_result_details: Vec<FeatureDetail>,
    eval_type_id: &'static str,
    sae_bench_commit_hash: &'static str,
    sae_lens_id: &'static str,
    sae_lens_release_id: String,
    sae_lens_version: &'static str,
    sae_cfg_dict: Value,
    eval_result_unstructured: Value,
}

impl CoreEvalOutput {
    /// The file for `evaluation`.
    ///
    /// # Errors
    /// `Unsupported` when a figure that SAEBench requires was not measured.
    pub fn new(evaluation: &Evaluation, about: Circumstances) -> Result<Self> {
        let mut metrics = serde_json::to_value(evaluation.metrics).unwrap_or_default();
        let own = take_own_figures(&mut metrics);
        check_complete(evaluation)?;
        Ok(Self {
            eval_config: CoreEvalConfig {
                model_name: about.model_name,
                llm_dtype: about.llm_dtype,
                batch_size_prompts: 1,
                n_eval_reconstruction_batches: about.model_sequences,
                n_eval_sparsity_variance_batches: about.sequences,
                dataset: about.dataset,
                context_size: about.context_size,
                compute_kl: true,
                compute_ce_loss: true,
                compute_l2_norms: true,
                compute_sparsity_metrics: true,
                compute_variance_metrics: true,
                compute_featurewise_density_statistics: true,
                compute_featurewise_weight_based_metrics: true,
                exclude_special_tokens_from_reconstruction: about.excludes_special_tokens,
                verbose: false,
            },
            eval_id: uuid(about.id),
            datetime_epoch_millis: about.epoch_millis,
            eval_result_metrics: metrics,
            eval_result_details: evaluation.details.clone(),
            eval_type_id: EVAL_TYPE_ID,
            // SAEBench's own word where it did not run from a checkout or SAELens is not there.
            sae_bench_commit_hash: "Unknown",
            sae_lens_id: CUSTOM_SAE,
            sae_lens_release_id: about.name,
            sae_lens_version: "Unknown",
            sae_cfg_dict: about.cfg,
            eval_result_unstructured: json!({
                "evaluated_with": concat!("mechinterp ", env!("CARGO_PKG_VERSION")),
                "other_metrics": own,
                "positions_left_out": evaluation.positions_left_out,
                "all_positions": evaluation.all_positions,
            }),
        })
    }

    /// The name that SAEBench gives the file.
    pub fn file_name(&self) -> String {
        format!("{}_{CUSTOM_SAE}_eval_results.json", self.sae_lens_release_id.replace('/', "_"))
    }
}

fn take_own_figures(metrics: &mut Value) -> Map<String, Value> {
    let misc = metrics.get_mut("misc_metrics").and_then(Value::as_object_mut);
    let taken = misc.into_iter().flat_map(|misc| OWN_FIGURES.map(|name| (name, misc.shift_remove(name))));
    taken.filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}

fn check_complete(evaluation: &Evaluation) -> Result<()> {
    let metrics = &evaluation.metrics;
    let missing = match (metrics.model_behavior_preservation, metrics.misc_metrics.average_max_decoder_cosine_sim) {
        (None, _) => Some(("the model's losses were not measured", "add --model")),
        (_, None) => Some(("cosines between features were not measured", "leave out --no-directions")),
        _ => None,
    };
    let Some((why, remedy)) = missing else { return Ok(()) };
    Err(Error::Unsupported { what: "writing SAEBench's result".into(), why: why.into(), remedy: remedy.into() })
}

/// `bits` as a random UUID (RFC 9562, version 4).
fn uuid(bits: u128) -> String {
    let bits = bits & !(0xf << 76) & !(0b11 << 62) | (0x4 << 76) | (0b10 << 62);
    let hex = format!("{bits:032x}");
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn circumstances() -> Circumstances {
        Circumstances {
            name: "runs/sae".into(),
            cfg: json!({"architecture": "standard"}),
            model_name: "tiny".into(),
            llm_dtype: "float32".into(),
            dataset: "text.jsonl".into(),
            context_size: 9,
            model_sequences: 5,
            sequences: 5,
            excludes_special_tokens: true,
            id: 1,
            epoch_millis: 1_700_000_000_000,
        }
    }

    #[test]
    fn identifiers_are_random_uuids() {
        assert_eq!(uuid(0), "00000000-0000-4000-8000-000000000000");
        assert_eq!(uuid(u128::MAX), "ffffffff-ffff-4fff-bfff-ffffffffffff");
    }
}
