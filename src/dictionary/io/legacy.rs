//! The flat `cfg.json` from before SAELens 6, in which the dictionary, the model and the training share one object.
//!
//! Rules are those of `handle_pre_6_0_config` and `read_sae_components_from_disk` in
//! `sae_lens/loading/pretrained_sae_loaders.py`, but what SAELens drops without a word (an activation function that is
//! neither ReLU nor TopK, an unknown key) is refused by name.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::config::{malformed, optional, unknown_key};
use super::tensors::Weights;
use super::{MAKE_AGAIN, WEIGHTS};
use crate::base::{Error, Result};
use crate::dictionary::Metadata;

/// Old spellings.
const RENAMED: &[(&str, &str)] = &[
    ("hook_point", "hook_name"),
    ("hook_point_head_index", "hook_head_index"),
    ("activation_fn_str", "activation_fn"),
];
/// Keys of version 6 that mean the same here.
const SAME: &[&str] = &[
    "architecture",
    "d_in",
    "d_sae",
    "d_out",
    "dtype",
    "device",
    "apply_b_dec_to_input",
    "normalize_activations",
    "reshape_activations",
    "rescale_acts_by_decoder_norm",
    "k",
];
/// Keys that version 6 keeps under `metadata` (`LLM_METADATA_KEYS`), and the factor that this program reads there.
const METADATA: &[&str] = &[
    "model_name",
    "hook_name",
    "model_class_name",
    "hook_head_index",
    "model_from_pretrained_kwargs",
    "prepend_bos",
    "exclude_special_tokens",
    "neuronpedia_id",
    "context_size",
    "seqpos_slice",
    "dataset_path",
    "sae_lens_version",
    "sae_lens_training_version",
    "hook_name_out",
    "hook_head_index_out",
    "hf_hook_name",
    "hf_hook_name_out",
    "norm_scaling_factor",
];
/// Everything else in the configurations of SAELens 1 to 5 and its predecessor: training, logging, data.
const HARMLESS: &str = "metadata activation_fn activation_fn_kwargs finetuning_scaling_factor \
    act_store_device adam_beta1 adam_beta2 autocast autocast_lm b_dec_init_method begin_batch_token \
    begin_sequence_token buffer_size_gb cached_activations_path checkpoint_path column_name compile_llm compile_sae \
    data_dir data_files dataset_name dataset_trust_remote_code dead_feature_estimation_method dead_feature_threshold \
    dead_feature_window decoder_heuristic_init decoder_heuristic_init_norm decoder_orthogonal_init \
    eval_batch_size_prompts eval_every_n_wandb_logs expansion_factor feature_reinit_scale feature_resampling_method \
    feature_sampling_window finetuning_method finetuning_tokens from_pretrained_path ghost_grads hf_is_private_repo \
    hf_num_shards hf_repo_id hf_revision hook_eval hook_layer hook_point_eval hook_point_layer \
    init_encoder_as_decoder_transpose is_dataset_tokenized jumprelu_bandwidth jumprelu_init_threshold l1_coefficient \
    l1_warm_up_steps llm_compilation_mode log_activations_store_to_wandb log_optimizer_state_to_wandb log_to_wandb \
    lp_norm lr lr_decay_steps lr_end lr_scheduler_name lr_warm_up_steps model_batch_size model_kwargs \
    model_training_steps mse_loss_normalization n_batches_in_buffer n_checkpoints n_eval_batches n_eval_seqs \
    n_restart_cycles n_shuffles_final n_shuffles_in_entire_dir n_shuffles_with_last_section \
    new_cached_activations_path noise_scale normalize_sae_decoder num_proc pretokenize_batch_size resample_batches \
    resume run_name sae_compilation_mode save_path scale_sparsity_penalty_by_decoder_norm seed \
    sequence_separator_token shuffle shuffle_every_n_buffers split store_batch_size store_batch_size_prompts streaming \
    tokenizer_name tokens_per_buffer total_training_steps total_training_tokens train_batch_size \
    train_batch_size_tokens training_tokens use_cached_activations use_ghost_grads verbose wandb_entity wandb_id \
    wandb_log_frequency wandb_project";

/// The flat configuration in version 6's shape.
///
/// # Errors
/// `Unsupported` for a key or activation function that is not known, `Malformed` for values of the wrong kind.
pub(super) fn upgrade(cfg: Map<String, Value>, path: &Path) -> Result<Map<String, Value>> {
    let rename = |key: String| match RENAMED.iter().find(|(old, _)| *old == key) {
        Some((_, new)) => (*new).to_owned(),
        None => key,
    };
    let mut flat: Map<String, Value> = cfg.into_iter().map(|(key, value)| (rename(key), value)).collect();
    let known = |key: &str| SAME.contains(&key) || METADATA.contains(&key) || HARMLESS.split(' ').any(|k| k == key);
    if let Some(key) = flat.keys().find(|key| !known(key)) {
        return Err(unknown_key(key, path));
    }
    set_activation_function(&mut flat, path)?;
    if !flat.contains_key("reshape_activations") {
        let hook = flat.get("hook_name").and_then(Value::as_str).unwrap_or_default();
        let reshape = if hook.contains("hook_z") { "hook_z" } else { "none" };
        flat.insert("reshape_activations".into(), json!(reshape));
    }
    match flat.get("normalize_activations") {
        Some(Value::Bool(true)) => drop(flat.insert("normalize_activations".into(), json!("expected_average_only_in"))),
        Some(Value::Bool(false) | Value::Null) => drop(flat.remove("normalize_activations")),
        _ => {}
    }
    let mut metadata: Map<String, Value> = optional(&flat, "metadata", path)?.unwrap_or_default();
    metadata.extend(METADATA.iter().filter_map(|key| Some(((*key).to_owned(), flat.remove(*key)?))));
    metadata.entry("prepend_bos").or_insert(json!(true));
    let mut upgraded: Map<String, Value> =
        SAME.iter().filter_map(|key| Some(((*key).to_owned(), flat.remove(*key)?))).collect();
    upgraded.entry("architecture").or_insert(json!("standard"));
    upgraded.insert("metadata".into(), Value::Object(metadata));
    Ok(upgraded)
}

/// Repositories whose files do not say that the model's writing weights were centred; SAELens knows it from its list of
/// releases (`config_overrides` of gpt2-small-res-jb, gpt2-small-res-jb-feature-splitting and gpt2-small-mlp-tm).
const CENTERED_REPOSITORIES: &[&str] = &[
    "jbloom/GPT2-Small-SAEs-Reformatted",
    "jbloom/GPT2-Small-Feature-Splitting-Experiment-Layer-8",
    "tommmcgrath/gpt2-small-mlp-out-saes",
];

/// Adds `center_writing_weights` where `path` lies in a copy of a repository that is known for it and the file itself
/// is silent. Copies are recognised by a directory's name: the repository's, or the hub cache's for it.
pub(super) fn recognise_centring(metadata: &mut Metadata, path: &Path) {
    const KEY: &str = "model_from_pretrained_kwargs";
    let is_copy = |part: &str| {
        let of_repository = |id: &&str| {
            let name = id.rsplit('/').next().unwrap_or(id);
            part.eq_ignore_ascii_case(name) || part.eq_ignore_ascii_case(&format!("models--{}", id.replace('/', "--")))
        };
        CENTERED_REPOSITORIES.iter().any(of_repository)
    };
    if !metadata.extra.contains_key(KEY) && path.components().any(|part| part.as_os_str().to_str().is_some_and(is_copy))
    {
        metadata.extra.insert(KEY.into(), json!({"center_writing_weights": true}));
    }
}

/// TopK was an activation function of the standard architecture.
fn set_activation_function(flat: &mut Map<String, Value>, path: &Path) -> Result<()> {
    let function: Option<String> = optional(flat, "activation_fn", path)?;
    match function.as_deref() {
        None | Some("relu") => Ok(()),
        Some("topk") => {
            let k = flat.get("activation_fn_kwargs").and_then(|kwargs| kwargs.get("k")).or(flat.get("k")).cloned();
            let k = k.ok_or_else(|| {
                malformed(path, "activation_fn_kwargs.k beside activation_fn topk".into(), "none".into())
            })?;
            flat.insert("architecture".into(), json!("topk"));
            flat.insert("k".into(), k);
            Ok(())
        }
        Some(other) => Err(Error::Unsupported {
            what: format!("the activation function '{other}' of {}", path.display()),
            why: "this version computes relu and topk; SAELens 6 would take it for relu without a word".into(),
            remedy: "use another dictionary".into(),
        }),
    }
}

/// Applies `scaling_factor`, `[f]`, of a fine-tuned dictionary: it multiplies activations on their way to the decoder,
/// so it belongs into the decoder's rows. Unless fine-tuning was announced, only ones are accepted, as in SAELens.
///
/// # Errors
/// As reading a tensor; `Malformed` where the factors are not announced.
pub(super) fn apply_scaling_factor(
    weights: &mut Weights,
    announced: bool,
    w_dec: &mut [f32],
    d_out: usize,
    path: &Path,
) -> Result<()> {
    const NAME: &str = "scaling_factor";
    if !weights.has(NAME) {
        return Ok(());
    }
    let factors = weights.read(NAME, &[w_dec.len() / d_out.max(1)])?;
    // The tolerance of torch.allclose.
    if factors.iter().all(|factor| (factor - 1.0).abs() <= 1e-8 + 1e-5) {
        return Ok(());
    }
    if !announced {
        return Err(Error::malformed(
            WEIGHTS,
            path,
            "a scaling_factor of ones, as the configuration has no finetuning_scaling_factor",
            "other factors",
            MAKE_AGAIN,
        ));
    }
    for (row, factor) in w_dec.chunks_exact_mut(d_out.max(1)).zip(&factors) {
        for w in row {
            *w *= factor;
        }
    }
    Ok(())
}
