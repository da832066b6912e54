//! Everything that is known of all features once the pass over the text is done.

use super::alike::{Aligned, Alike, NeuronAlignment, alignment, nearest_features, neuron_alignment};
use super::coactive::{Coactive, coactive_features};
use super::index::FeatureIndex;
use super::logits::{LogitEffects, logit_effects};
use crate::analysis::sequences::{SequenceBatch, SequenceSource, batches};
use crate::base::{Progress, Result};
use crate::dictionary::Dictionary;
use crate::model::Model;

/// Tokens listed as promoted and as suppressed.
const LOGIT_TOKENS: usize = 10;
/// Features listed as neighbours.
const NEIGHBOURS: usize = 10;
/// Entries of a decoder row, as `sae_vis` lists them.
const ALIGNED: usize = 3;
/// Neurons listed.
const NEURONS: usize = 5;

/// The pass and what follows from it, from the weights and from the model. Lists of all features are by number.
#[derive(Debug, Clone, PartialEq)]
pub struct Findings {
    /// The pass.
    pub index: FeatureIndex,
    /// What features write; `None` without a model, or off the residual stream.
    pub effects: Option<Vec<LogitEffects>>,
    /// Features with similar decoder rows.
    pub nearest: Vec<Vec<Alike>>,
    /// Features that fire together.
    pub coactive: Vec<Vec<Coactive>>,
    /// The largest entries of decoder rows.
    pub alignment: Vec<Vec<Aligned>>,
    /// The neurons that features lean on; `None` without a model, or where no MLP writes there.
    pub neurons: Option<NeuronAlignment>,
    /// The text of the examples.
    pub text: IndexText,
}

impl Findings {
    /// Compares the features of `dictionary` with each other and, where it is given, with the model, after `index` was
    /// made of `source`.
    ///
    /// # Errors
    /// As [`logit_effects`] and [`neuron_alignment`]; `Interrupted` when the user stopped the work; whatever reading
    /// gives.
    pub fn complete(
        index: FeatureIndex,
        dictionary: &Dictionary,
        source: &dyn SequenceSource,
        model: Option<&Model>,
        progress: &dyn Progress,
    ) -> Result<Self> {
        let text = IndexText::collect(&index, source)?;
        let coactive = coactive_features(&index.features, index.rows, NEIGHBOURS, progress)?;
        let nearest = nearest_features(dictionary, NEIGHBOURS, progress)?;
        let (mut effects, mut neurons) = (None, None);
        if let Some(model) = model {
            effects = logit_effects(dictionary, model, LOGIT_TOKENS, progress)?;
            neurons = neuron_alignment(dictionary, model, NEURONS, progress)?;
        }
        let alignment = alignment(dictionary, ALIGNED);
        Ok(Self { index, effects, nearest, coactive, alignment, neurons, text })
    }
}

/// The sequences that hold an example, whole.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IndexText {
    /// Their numbers, ascending.
    pub sequences: Vec<u32>,
    /// Tokens of a sequence.
    pub context_size: usize,
    /// `[sequences, context_size]`.
    pub tokens: Vec<u32>,
    /// The document of each token, `[sequences, context_size]`.
    pub documents: Vec<u32>,
}

impl IndexText {
    /// Reads the text of all examples again, without activations.
    fn collect(index: &FeatureIndex, source: &dyn SequenceSource) -> Result<Self> {
        let mut wanted = vec![false; index.sequences as usize];
        for stats in &index.features {
            for example in stats.examples.top().iter().chain(stats.examples.drawn()) {
                if let Some(wanted) = wanted.get_mut(example.sequence as usize) {
                    *wanted = true;
                }
            }
        }
        let mut text = Self { context_size: index.context_size, ..Self::default() };
        let mut batch = SequenceBatch::default();
        for range in batches(source, index.settings.max_sequences) {
            source.read(range.clone(), false, &mut batch)?;
            for (i, sequence) in range.enumerate() {
                if !wanted.get(sequence as usize).copied().unwrap_or_default() {
                    continue;
                }
                let places = i * index.context_size..(i + 1) * index.context_size;
                text.sequences.push(sequence as u32);
                text.tokens.extend_from_slice(&batch.tokens[places.clone()]);
                text.documents.extend_from_slice(&batch.documents[places]);
            }
        }
        Ok(text)
    }

    /// Which of the sequences `sequence` is.
    pub(super) fn row(&self, sequence: u32) -> usize {
        self.sequences.partition_point(|&other| other < sequence)
    }

    /// The document of `position` in the sequence of row `row`; zero outside.
    pub(super) fn document(&self, row: usize, position: u32) -> u32 {
        self.documents.get(row * self.context_size + position as usize).copied().unwrap_or_default()
    }
}
