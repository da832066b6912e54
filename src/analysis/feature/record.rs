//! What is said of one feature, and of an index as a whole.

use serde::{Deserialize, Serialize};

use super::index::IndexSettings;
use super::labels::Label;
use super::logits::TokenLogit;
use super::stats::Summary;

/// The version of the files that this program writes.
pub const VERSION: u32 = 2;

/// What the index was made of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct IndexHeader {
    /// [`VERSION`].
    #[serde(default)]
    pub version: u32,
    /// The model, as the dictionary names it.
    pub model_name: Option<String>,
    /// The hook point, as the dictionary names it.
    pub hook_name: Option<String>,
    /// The directory of the dictionary, as it was named.
    #[serde(default)]
    pub dictionary: Option<String>,
    /// What the activations came from: a cache or text, as it was named.
    #[serde(default)]
    pub source: Option<String>,
    /// The MLP whose neurons are compared with the features, as the point where its neurons are read.
    #[serde(default)]
    pub neurons_of: Option<String>,
    /// Tokens of a sequence.
    #[serde(default)]
    pub context_size: usize,
    /// Features in the dictionary.
    pub d_sae: usize,
    /// Features that never fired.
    pub dead_features: usize,
    /// Positions counted.
    pub rows: u64,
    /// Positions that the filter left out.
    pub rows_left_out: u64,
    /// Sequences read.
    pub sequences: u64,
    /// What was kept of each feature.
    pub settings: IndexSettings,
}

/// One feature, readable without the tokenizer.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct FeatureRecord {
    /// Number, density, count and moments.
    #[serde(flatten)]
    pub summary: Summary,
    /// Names it was given; those that people wrote come first.
    pub labels: Vec<Label>,
    /// Activations where it fires.
    pub histogram: HistogramRecord,
    /// Tokens whose logits it raises most, strongest first; absent where it does not write to the residual stream.
    pub promoted: Option<Vec<TokenRecord>>,
    /// Tokens whose logits it lowers most, strongest first.
    pub suppressed: Option<Vec<TokenRecord>>,
    /// As `promoted`, through the gain and the centring of the model's final norm.
    pub promoted_through_norm: Option<Vec<TokenRecord>>,
    /// As `suppressed`, through the gain and the centring of the model's final norm.
    pub suppressed_through_norm: Option<Vec<TokenRecord>>,
    /// Its effects on the logits of all tokens, without the final norm.
    pub logit_histogram: Option<LogitHistogram>,
    /// The largest entries of its decoder row, by absolute value.
    pub alignment: Vec<AlignmentRecord>,
    /// The MLP neurons whose output rows are most alike to its decoder row, by absolute cosine; absent where no MLP
    /// writes what the dictionary decodes.
    pub neurons: Option<Vec<NeuronRecord>>,
    /// The features with the most similar decoder rows, by cosine.
    pub nearest: Vec<NeighbourRecord>,
    /// The features that fire on most of the same positions, by Jaccard index.
    pub coactive: Vec<CoactiveRecord>,
    /// The strongest examples, strongest first.
    pub examples: Vec<ExampleRecord>,
    /// Ten intervals from zero to the maximum, highest first, with examples drawn at random from each.
    pub intervals: Vec<IntervalRecord>,
}

/// Bin `i` counts activations in `[i, i + 1) · bin_width`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct HistogramRecord {
    /// A power of two.
    pub bin_width: f64,
    /// Up to the last bin that is not empty; their sum is the feature's count.
    pub counts: Vec<u64>,
}

/// Bin `i` counts tokens whose effect is in `[start + i · bin_width, start + (i + 1) · bin_width)`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct LogitHistogram {
    /// Lower bound of the first bin.
    pub start: f64,
    /// A power of two.
    pub bin_width: f64,
    /// From the first bin that is not empty to the last; their sum is the size of the vocabulary.
    pub counts: Vec<u64>,
}

/// An entry of the decoder row.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct AlignmentRecord {
    /// Coordinate of the space that the dictionary writes to: a neuron where that is the inside of an MLP.
    pub coordinate: u32,
    /// `W_dec[f][coordinate]`.
    pub value: f32,
    /// Its share of the row's sum of absolute values.
    pub share: f32,
}

/// A neuron that writes where the feature does.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct NeuronRecord {
    /// Number of the neuron in the MLP that [`IndexHeader::neurons_of`] names.
    pub neuron: u32,
    /// Cosine of `W_out[neuron]` and `W_dec[f]`.
    pub cosine: f32,
}

/// A feature that writes alike.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct NeighbourRecord {
    /// The other feature.
    pub feature: u32,
    /// Cosine of the two decoder rows.
    pub cosine: f32,
}

/// A feature that fires on the same positions.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct CoactiveRecord {
    /// The other feature.
    pub feature: u32,
    /// Positions where both fire over positions where one does.
    pub jaccard: f32,
    /// Pearson correlation of the two activations over all positions, zeros included.
    pub correlation: f32,
    /// Cosine of the two activations over all positions.
    pub cosine: f32,
}

/// A tenth of the range of a feature's activations.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct IntervalRecord {
    /// Lower bound, inclusive: a bin bound of the histogram, so that counts are exact.
    pub from: f64,
    /// Upper bound, exclusive; the highest is above the maximum.
    pub to: f64,
    /// Positions whose activation lies between the bounds.
    pub count: u64,
    /// Their share of the positions where the feature fires.
    pub share: f64,
    /// Positions drawn at random from them, in the order of the text.
    pub examples: Vec<ExampleRecord>,
}

/// A token and its direct effect.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// Readable text.
    pub text: String,
    /// Id and effect.
    #[serde(flatten)]
    pub effect: TokenLogit,
}

/// A position where the feature fires strongly, with its surroundings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExampleRecord {
    /// Activation at the position.
    pub value: f32,
    /// The document of the position's token.
    pub document: u32,
    /// The sequence.
    pub sequence: u64,
    /// The position in it.
    pub position: u32,
    /// Where the position is in the lists below.
    pub peak: usize,
    /// Readable tokens of the window.
    pub tokens: Vec<String>,
    /// Their ids.
    pub token_ids: Vec<u32>,
    /// Activations on them; zero also where the filter leaves a position out.
    pub values: Vec<f32>,
}
