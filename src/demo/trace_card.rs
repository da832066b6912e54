//! What transcoders and graphs are worth in the built-in world: the second half of `demo`'s score card.

use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

use crate::analysis::eval::replacement::ReplacementReport;
use crate::base::{Error, Progress, Result, Unit};
use crate::dictionary::TranscoderSet;
use crate::model::Model;

use super::compose::{ComposeSettings, Compositions, compositions};
use super::tokenizer::Vocabulary;
use super::world::World;

/// One transcoder set.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SetCard {
    /// The model on its reconstructions.
    pub replacement: ReplacementReport,
    /// Two-hop questions traced with it.
    pub compositions: Compositions,
}

/// Transcoders of single layers and a cross-layer transcoder, trained alike.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TraceCard {
    /// One transcoder a layer.
    pub per_layer: SetCard,
    /// The cross-layer transcoder.
    pub cross_layer: SetCard,
    /// What was traced.
    pub settings: ComposeSettings,
}

/// A set and what was measured of it when it was trained.
pub type Trained = (Arc<TranscoderSet>, ReplacementReport);

/// Reads the measurement that training leaves beside a set.
///
/// # Errors
/// When the file is missing or is no such measurement.
pub fn read_replacement(path: &Path) -> Result<ReplacementReport> {
    let bytes = std::fs::read(path).map_err(Error::io("read the replacement metrics", path))?;
    serde_json::from_slice(&bytes).map_err(|e| {
        Error::malformed(
            "replacement metrics",
            path,
            "what train-transcoders writes",
            e.to_string(),
            "train the set again",
        )
    })
}

impl TraceCard {
    /// Traces the world's questions with both sets.
    ///
    /// # Errors
    /// As [`compositions`].
    pub fn measure(
        model: &Model,
        [per_layer, cross_layer]: [Trained; 2],
        settings: ComposeSettings,
        progress: &dyn Progress,
    ) -> Result<Self> {
        let world = World::new(World::BUILT_IN_SEED);
        let vocabulary = Vocabulary::new(&world);
        progress.begin("tracing two-hop questions", 4 * settings.questions as u64, Unit::Items);
        let card = |(set, replacement): Trained| -> Result<SetCard> {
            let compositions = compositions(model, &set, &world, &vocabulary, settings, progress)?;
            Ok(SetCard { replacement, compositions })
        };
        let cards = card(per_layer).and_then(|per_layer| Ok((per_layer, card(cross_layer)?)));
        progress.end();
        let (per_layer, cross_layer) = cards?;
        Ok(Self { per_layer, cross_layer, settings })
    }
}
