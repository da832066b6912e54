//! What a dictionary is, apart from its numbers: the contents of `cfg.json` in SAELens' version 6 spelling.

use serde::{Deserialize, Serialize};

use super::metadata::Metadata;

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

    /// What it is and where it belongs, in one line.
    pub fn summary(&self) -> String {
        let metadata = &self.metadata;
        let kind = if self.transcoder { " transcoder" } else { "" };
        let sizes = format!("{}{kind}, {} features of width {}", self.architecture.name(), self.d_sae, self.d_in);
        let hook = metadata.hook_name.as_ref().map(|hook| format!(" at {hook}"));
        let model = metadata.model_name.as_ref().map(|model| format!(" of {model}"));
        let bos = metadata.prepend_bos.map(|bos| if bos { ", BOS first" } else { ", no BOS" }.to_owned());
        let context = metadata.context_size.map(|size| format!(", context {size}"));
        let normalized = (self.normalize_activations != NormalizeActivations::None)
            .then(|| format!(", rows normalised by {}", self.normalize_activations.name()));
        let centered = self.center_input.then(|| ", rows centred".to_owned());
        [Some(sizes), hook, model, bos, context, normalized, centered].into_iter().flatten().collect()
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
        } else if !self.metadata.is_version_6()
            && self.metadata.is_centrable()
            && !self.metadata.extra.contains_key("model_from_pretrained_kwargs")
        {
            notes.push(format!(
                "{self} is of the time before SAELens 6 and does not say whether its model's writing weights were \
                 centred, as was TransformerLens' default: rows are used as they are; where that reconstructs badly, \
                 set model_from_pretrained_kwargs.center_writing_weights to true in cfg.json"
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
