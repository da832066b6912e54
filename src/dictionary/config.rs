//! What a dictionary is, apart from its numbers: the contents of `cfg.json` in SAELens' version 6 spelling.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The SAELens version whose format is written. Its loader takes files without one as another, older format.
pub const SAE_LENS_VERSION: &str = "6.54.12";

/// How pre-activations become activations: the closed list, each with its own parameters and nothing else. Whether a
/// dictionary is a transcoder ([`DictionaryConfig::transcoder`]) or has a skip connection is a separate question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// ReLU.
    Relu,
    /// The `k` largest of each row, negative ones set to zero.
    TopK {
        /// Active features a row.
        k: usize,
        /// Whether pre-activations compete multiplied by their decoder norms.
        rescale_acts_by_decoder_norm: bool,
    },
    /// The `k` of largest absolute value in each row, with their signs.
    AbsTopK {
        /// Active features a row.
        k: usize,
        /// Whether pre-activations compete multiplied by their decoder norms.
        rescale_acts_by_decoder_norm: bool,
    },
    /// ReLU, then a threshold a feature: negative values never pass.
    JumpRelu,
    /// A threshold a feature and no ReLU: a negative threshold passes negative values (circuit-tracer's JumpReLU).
    JumpIdentity,
    /// A gate decides which features are active, a magnitude how much; both from one product.
    Gated,
    /// The largest of each of `k` groups of neighbouring features, negative ones set to zero (sparsify's `groupmax`).
    GroupMax {
        /// Groups, so at most `k` features are active a row.
        k: usize,
    },
}

impl Architecture {
    /// Its name: SAELens' where SAELens has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Relu => "standard",
            Self::TopK { .. } => "topk",
            Self::AbsTopK { .. } => "abstopk",
            Self::JumpRelu => "jumprelu",
            Self::JumpIdentity => "jumprelu without ReLU",
            Self::Gated => "gated",
            Self::GroupMax { .. } => "groupmax",
        }
    }

    /// Whether activations are pre-activations times the norm of the feature's decoder row.
    pub const fn activations_carry_decoder_norm(self) -> bool {
        matches!(
            self,
            Self::TopK { rescale_acts_by_decoder_norm: true, .. }
                | Self::AbsTopK { rescale_acts_by_decoder_norm: true, .. }
        )
    }
}

/// How a hook's tensor becomes rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReshapeActivations {
    /// The last axis is the row.
    #[default]
    None,
    /// The last two axes, heads and head width, are the row, heads first.
    HookZ,
}

/// What happens to a row before the encoder, and is undone after the decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormalizeActivations {
    /// Nothing.
    #[default]
    None,
    /// Rows were scaled to a mean norm of `√d_in` in training by one factor that was not folded into the weights and
    /// is not stored: encoding raw rows gives activations of the wrong size until [`super::scale::fold`] is called.
    ExpectedAverageOnlyIn,
    /// Each row is scaled to the norm `√d_in`.
    ConstantNormRescale,
    /// Each row is brought to mean 0 and standard deviation 1.
    LayerNorm,
}

impl NormalizeActivations {
    /// SAELens' name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::ExpectedAverageOnlyIn => "expected_average_only_in",
            Self::ConstantNormRescale => "constant_norm_rescale",
            Self::LayerNorm => "layer_norm",
        }
    }
}

/// Sizes, architecture and provenance of a dictionary.
#[derive(Debug, Clone, PartialEq)]
pub struct DictionaryConfig {
    /// How pre-activations become activations.
    pub architecture: Architecture,
    /// Width of the rows that go in.
    pub d_in: usize,
    /// Number of features, `f`.
    pub d_sae: usize,
    /// Width of the rows that come out; `d_in` except in transcoders.
    pub d_out: usize,
    /// Whether the rows that come out are another hook's than those that go in, whatever the widths.
    pub transcoder: bool,
    /// Whether `b_dec` is subtracted before the encoder; never in a transcoder.
    pub apply_b_dec_to_input: bool,
    /// What happens to a row first.
    pub normalize_activations: NormalizeActivations,
    /// Whether the mean of each row is subtracted before anything else, for dictionaries that were trained on a model
    /// whose writing weights had been centred (TransformerLens' `center_writing_weights`).
    pub center_input: bool,
    /// How the hook's tensor becomes rows.
    pub reshape_activations: ReshapeActivations,
    /// Where it comes from.
    pub metadata: Metadata,
}

impl DictionaryConfig {
    /// An autoencoder of `architecture` with no provenance.
    pub fn new(architecture: Architecture, d_in: usize, d_sae: usize) -> Self {
        Self {
            architecture,
            d_in,
            d_sae,
            d_out: d_in,
            transcoder: false,
            apply_b_dec_to_input: true,
            normalize_activations: NormalizeActivations::None,
            center_input: false,
            reshape_activations: ReshapeActivations::None,
            metadata: Metadata::default(),
        }
    }

    /// A transcoder of `architecture` from rows of `d_in` to rows of `d_out`, with no provenance.
    pub fn transcoder(architecture: Architecture, d_in: usize, d_sae: usize, d_out: usize) -> Self {
        Self { d_out, transcoder: true, apply_b_dec_to_input: false, ..Self::new(architecture, d_in, d_sae) }
    }

    /// What a user should know before trusting the numbers, each a sentence; usually none.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.normalize_activations == NormalizeActivations::ExpectedAverageOnlyIn {
            notes.push(format!(
                "{self} was trained on rows of mean norm √d_in ({}), and the factor is not in its files: raw rows give \
                 activations of the wrong size; put the factor, the release's norm_scaling_factor, under \"metadata\" \
                 in cfg.json and it is folded into the weights",
                self.normalize_activations.name()
            ));
        }
        if self.center_input {
            notes.push(format!(
                "{self} was trained on a model with centred writing weights: the mean of each row is subtracted first"
            ));
        } else if self.metadata.centers_writing_weights() {
            notes.push(format!(
                "{self} names center_writing_weights, which changes nothing at this hook of this model: rows are used \
                 as they are"
            ));
        }
        notes
    }
}

impl std::fmt::Display for DictionaryConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.metadata.hook_name {
            Some(hook) => write!(f, "the dictionary of {hook}"),
            None => write!(f, "the {} dictionary", self.architecture.name()),
        }
    }
}

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

impl Metadata {
    /// `model_from_pretrained_kwargs.center_writing_weights`.
    pub fn centers_writing_weights(&self) -> bool {
        let kwargs = self.extra.get("model_from_pretrained_kwargs");
        kwargs.and_then(|kwargs| kwargs.get("center_writing_weights")).and_then(Value::as_bool) == Some(true)
    }

    /// Whether rows of this hook of this model, with the weights as they are published, need their mean subtracted:
    /// the writing weights were centred, that reaches the hook, and the model is not known to use RMSNorm, where
    /// TransformerLens leaves the weights alone.
    pub fn centers_rows(&self) -> bool {
        let ends_with = |name: &str, of: &&str| name.rsplit('.').next() == Some(of);
        let hook = self.hook_name.as_deref().is_some_and(|name| CENTERED_HOOKS.iter().any(|of| ends_with(name, of)));
        let model = self.model_name.as_deref().unwrap_or_default().to_lowercase();
        self.centers_writing_weights() && hook && !RMS_NORM_MODELS.iter().any(|part| model.contains(part))
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
