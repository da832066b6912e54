//! Where a dictionary comes from: `metadata` of `cfg.json`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The SAELens version whose format is written. Its loader takes files without one as another, older format.
pub const SAE_LENS_VERSION: &str = "6.54.12";

/// Where a dictionary comes from. SAELens treats this object as free-form; the keys that it or we read have fields,
/// and everything else is carried along unchanged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metadata {
    /// The format's version.
    pub sae_lens_version: Option<String>,
    /// The version that trained it, in SAELens' numbering.
    pub sae_lens_training_version: Option<String>,
    /// The model, as its maker calls it.
    pub model_name: Option<String>,
    /// `HookedTransformer` where `hook_name` is TransformerLens', `AutoModelForCausalLM` where it is a module path.
    pub model_class_name: Option<String>,
    /// The hook point whose rows it encodes.
    pub hook_name: Option<String>,
    /// The one head of the hook that it encodes.
    pub hook_head_index: Option<usize>,
    /// Length of the token sequences that it was trained on.
    pub context_size: Option<usize>,
    /// Whether each sequence began with the BOS token.
    pub prepend_bos: Option<bool>,
    /// The training text.
    pub dataset_path: Option<String>,
    /// Mean number of active features at the end of training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub l0: Option<f64>,
    /// Features that were dead at the end of training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_dead_features: Option<u64>,
    /// All other keys.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// Hook points whose values are added to the residual stream, or are it: centring the writing weights centres them.
const CENTERED_HOOKS: &[&str] = &[
    "hook_embed",
    "hook_pos_embed",
    "hook_resid_pre",
    "hook_resid_mid",
    "hook_resid_post",
    "hook_attn_out",
    "hook_mlp_out",
];
/// Parts of the names of models with RMSNorm, whose writing weights TransformerLens does not centre when asked to.
const RMS_NORM_MODELS: &[&str] = &[
    "llama", "gemma", "mistral", "mixtral", "qwen", "qwq", "smollm", "deepseek", "vicuna", "alpaca", "phi-3", "phi-4",
    "yi-", "olmo-2", "olmoe", "granite", "falcon3", "gpt-oss", "apertus",
];

/// Whether a version of SAELens writes the present format.
pub(super) fn is_version_6_or_later(version: Option<&str>) -> bool {
    version.and_then(|v| v.split('.').next()?.parse::<u32>().ok()).is_some_and(|major| major >= 6)
}

impl Metadata {
    /// Whether it names the version of a file in the present format.
    pub(super) fn is_version_6(&self) -> bool {
        is_version_6_or_later(self.sae_lens_version.as_deref())
    }

    /// Whether the hook is the residual stream or is added to it, in a model that is not known to use RMSNorm: where
    /// centring the writing weights changes rows.
    pub(super) fn is_centrable(&self) -> bool {
        let ends_with = |name: &str, of: &&str| name.rsplit('.').next() == Some(of);
        let hook = self.hook_name.as_deref().is_some_and(|name| CENTERED_HOOKS.iter().any(|of| ends_with(name, of)));
        let model = self.model_name.as_deref().unwrap_or_default().to_lowercase();
        hook && !RMS_NORM_MODELS.iter().any(|part| model.contains(part))
    }

    /// `model_from_pretrained_kwargs.center_writing_weights`.
    pub fn centers_writing_weights(&self) -> bool {
        let kwargs = self.extra.get("model_from_pretrained_kwargs");
        kwargs.and_then(|kwargs| kwargs.get("center_writing_weights")).and_then(Value::as_bool) == Some(true)
    }

    /// Whether rows of this hook of this model, with the weights as they are published, need their mean subtracted:
    /// the writing weights were centred, that reaches the hook, and the model is not known to use RMSNorm, where
    /// TransformerLens leaves the weights alone.
    pub fn centers_rows(&self) -> bool {
        self.centers_writing_weights() && self.is_centrable()
    }
}

impl Default for Metadata {
    fn default() -> Self {
        Self {
            sae_lens_version: Some(SAE_LENS_VERSION.into()),
            sae_lens_training_version: None,
            model_name: None,
            model_class_name: None,
            hook_name: None,
            hook_head_index: None,
            context_size: None,
            prepend_bos: None,
            dataset_path: None,
            l0: None,
            num_dead_features: None,
            extra: Map::new(),
        }
    }
}
