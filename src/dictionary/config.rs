//! What a dictionary is, apart from its numbers: the contents of `cfg.json` in SAELens' version 6 spelling.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The SAELens version whose format is written. Its loader takes files without one as another, older format.
pub const SAE_LENS_VERSION: &str = "6.54.12";

/// The closed list of architectures, each with its own parameters and nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "architecture")]
pub enum Architecture {
    /// ReLU.
    #[serde(rename = "standard")]
    Relu,
    /// The `k` largest of each row.
    #[serde(rename = "topk")]
    TopK {
        /// Active features a row.
        k: usize,
        /// Whether pre-activations compete multiplied by their decoder norms.
        #[serde(default)]
        rescale_acts_by_decoder_norm: bool,
    },
    /// A threshold a feature.
    #[serde(rename = "jumprelu")]
    JumpRelu,
}

impl Architecture {
    /// The names that `cfg.json` may hold.
    pub const NAMES: &[&str] = &["standard", "topk", "jumprelu"];

    /// SAELens' name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Relu => "standard",
            Self::TopK { .. } => "topk",
            Self::JumpRelu => "jumprelu",
        }
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
    /// Whether `b_dec` is subtracted before the encoder.
    pub apply_b_dec_to_input: bool,
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
            apply_b_dec_to_input: true,
            reshape_activations: ReshapeActivations::None,
            metadata: Metadata::default(),
        }
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
