//! Everything that is changed while a model writes, and what of it can be read from hidden states.

use std::sync::Arc;

use crate::analysis::Placement;
use crate::analysis::graph::activations;
use crate::analysis::rewrite::{FeatureEdit, FeatureRewrite};
use crate::base::{Error, Result};
use crate::dictionary::{Dictionary, TranscoderSet};
use crate::model::{EditOp, HookPlan, Model, ModelConfig, Positions};
use crate::ops::squared_norm;

use super::direction::DirectionEdit;
use super::transcoders::TranscoderEdits;

/// Edits of one dictionary's features.
#[derive(Debug, Clone)]
pub struct FeatureEdits {
    /// The dictionary.
    pub dictionary: Arc<Dictionary>,
    /// What to do with which feature.
    pub edits: Vec<FeatureEdit>,
    /// Whether what the dictionary does not reconstruct is kept; see [`FeatureRewrite::error_term`].
    pub error_term: bool,
    /// Positions whose activation has a larger norm stay as they are; see [`FeatureRewrite::max_norm`].
    pub max_norm: Option<f64>,
}

/// What is changed while a model writes: features of a dictionary first, then directions in their order, then features
/// of transcoders.
#[derive(Debug, Clone, Default)]
pub struct Intervention {
    /// Edits of features.
    pub features: Option<FeatureEdits>,
    /// Edits of features of a transcoder set.
    pub transcoders: Option<TranscoderEdits>,
    /// Edits along directions.
    pub directions: Vec<DirectionEdit>,
}

impl Intervention {
    /// Edits of features with the error term kept, at all positions.
    pub fn of_features(dictionary: &Arc<Dictionary>, edits: &[FeatureEdit]) -> Self {
        let features = FeatureEdits {
            dictionary: Arc::clone(dictionary),
            edits: edits.to_vec(),
            error_term: true,
            max_norm: None,
        };
        Self { features: Some(features), ..Self::default() }
    }

    /// One edit along a direction.
    pub fn of_direction(edit: DirectionEdit) -> Self {
        Self { directions: vec![edit], ..Self::default() }
    }

    /// The plan that applies it at `positions` of a text.
    ///
    /// # Errors
    /// As [`Placement::of`], [`FeatureRewrite::new`] and [`DirectionEdit::check`]; `Flag` when there is nothing to
    /// change.
    pub fn plan(&self, model: &Model, positions: Positions) -> Result<HookPlan> {
        let mut plan = HookPlan::new();
        let mut apply = |at: Placement, op| plan = plan.clone().edit(at.edit(op).positions(positions.clone()));
        if let Some(FeatureEdits { dictionary, edits, error_term, max_norm }) = &self.features {
            let placement = Placement::of(dictionary, model.config())?;
            let rewrite = FeatureRewrite::new(dictionary, edits, model.device())?;
            apply(placement, EditOp::Rewrite(Arc::new(rewrite.error_term(*error_term).max_norm(*max_norm))));
        } else if self.directions.is_empty() && self.transcoders.is_none() {
            return Err(Error::flag("--feature", "something to change", "nothing", "name a --feature or a --vector"));
        }
        for edit in &self.directions {
            edit.check(model.config())?;
            apply(edit.at, EditOp::Rewrite(Arc::new(edit.rewrite(model.device())?)));
        }
        match &self.transcoders {
            Some(transcoders) => transcoders.extend(plan, model, &positions),
            None => Ok(plan),
        }
    }

    /// What each edit does, in words.
    pub fn describe(&self) -> Vec<String> {
        let features = self.features.iter().flat_map(|features| &features.edits).map(ToString::to_string);
        let transcoders = self.transcoders.iter().flat_map(TranscoderEdits::describe);
        features.chain(transcoders).chain(self.directions.iter().map(ToString::to_string)).collect()
    }

    /// What each edit turns, in the order of [`Intervention::describe`].
    ///
    /// # Errors
    /// As [`Placement::of`].
    pub fn concepts(&self, config: &ModelConfig) -> Result<Vec<Concept>> {
        let mut concepts = Vec::new();
        if let Some(FeatureEdits { dictionary, edits, max_norm, .. }) = &self.features {
            let at = Placement::of(dictionary, config)?;
            concepts.extend(edits.iter().map(|edit| Concept {
                name: format!("feature {}", edit.feature),
                at,
                reading: Reading::Feature(Arc::clone(dictionary), edit.feature),
                max_norm: *max_norm,
            }));
        }
        if let Some(transcoders) = &self.transcoders {
            concepts.extend(transcoders.edits.iter().map(|&(layer, FeatureEdit { feature, .. })| Concept {
                name: format!("feature {layer}/{feature}"),
                at: transcoders.read_at(layer),
                reading: Reading::Transcoder(Arc::clone(&transcoders.set), layer, feature),
                max_norm: None,
            }));
        }
        concepts.extend(self.directions.iter().map(|edit| {
            let norm = squared_norm(&edit.vector).sqrt();
            let (name, reading) = match &edit.feature {
                Some((dictionary, feature)) => {
                    (format!("feature {feature}"), Reading::Feature(Arc::clone(dictionary), *feature))
                }
                None => (edit.name.clone(), Reading::Projection(edit.vector.iter().map(|x| x / norm).collect())),
            };
            Concept { name, at: edit.at, reading, max_norm: edit.max_norm }
        }));
        Ok(concepts)
    }
}

/// Something that hidden states have more or less of: a feature's activation, or the projection on a direction.
#[derive(Debug, Clone)]
pub struct Concept {
    /// What it is: "feature 12".
    pub name: String,
    /// Where it is read.
    pub at: Placement,
    reading: Reading,
    /// Rows of a larger norm have none: the dictionary never saw such rows.
    max_norm: Option<f64>,
}

#[derive(Debug, Clone)]
enum Reading {
    Feature(Arc<Dictionary>, u32),
    Transcoder(Arc<TranscoderSet>, usize, u32),
    Projection(Vec<f32>),
}

impl Concept {
    /// Whether it is a feature's activation, which is never negative by itself and zero most of the time.
    pub fn is_feature(&self) -> bool {
        matches!(self.reading, Reading::Feature(..) | Reading::Transcoder(..))
    }

    /// How much each of `rows`, `[n, d]`, has of it: `[n]`.
    ///
    /// # Errors
    /// `Mismatch` when `rows` are not whole.
    pub fn read(&self, rows: &[f32]) -> Result<Vec<f32>> {
        let (d, mut values) = match &self.reading {
            Reading::Feature(dictionary, feature) => {
                (dictionary.d_in(), dictionary.feature_activations(rows, &[*feature])?)
            }
            Reading::Transcoder(set, layer, feature) => {
                (set.config().d_model, activations(set, *layer, rows, &[*feature])?)
            }
            Reading::Projection(unit) => {
                let project = |row: &[f32]| row.iter().zip(unit).map(|(x, u)| x * u).sum();
                (unit.len(), rows.chunks_exact(unit.len().max(1)).map(project).collect())
            }
        };
        if let Some(limit) = self.max_norm {
            for (row, value) in rows.chunks_exact(d.max(1)).zip(&mut values) {
                if f64::from(squared_norm(row)).sqrt() > limit {
                    *value = 0.0;
                }
            }
        }
        Ok(values)
    }
}
