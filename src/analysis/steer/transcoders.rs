//! Turning features of a transcoder set while a model writes: read where each layer's transcoder reads, written where it
//! writes.

use std::sync::Arc;

use crate::analysis::Placement;
use crate::analysis::graph::{FeatureChange, check_changes, live_plan};
use crate::analysis::rewrite::FeatureEdit;
use crate::base::Result;
use crate::dictionary::TranscoderSet;
use crate::model::{HookPlan, HookPoint, Model, Positions};

/// Edits of features of a transcoder set. What the transcoders do not reconstruct is kept: the output of an MLP changes
/// by the change of activations times the decoder rows, in every layer that a feature writes to.
#[derive(Debug, Clone)]
pub struct TranscoderEdits {
    /// The set.
    pub set: Arc<TranscoderSet>,
    /// The layer that a feature reads, and what to do with it.
    pub edits: Vec<(usize, FeatureEdit)>,
    /// Positions from the start that stay as they are: the attention sink, on which activations mean nothing.
    pub untouched: usize,
}

impl TranscoderEdits {
    /// `plan` with the edits at `positions`.
    ///
    /// # Errors
    /// As [`live_plan`].
    pub(super) fn extend(&self, plan: HookPlan, model: &Model, positions: &Positions) -> Result<HookPlan> {
        let positions = match positions {
            Positions::All => Positions::From(self.untouched),
            Positions::From(start) => Positions::From(self.untouched.max(*start)),
            Positions::List(list) => Positions::List(list.iter().copied().filter(|p| *p >= self.untouched).collect()),
        };
        live_plan(plan, &self.set, &self.changes(&positions), self.untouched, model)
    }

    /// Checks that the set has the features.
    ///
    /// # Errors
    /// As [`check_changes`].
    pub fn check(&self) -> Result<()> {
        check_changes(&self.changes(&Positions::All), &self.set)
    }

    fn changes(&self, positions: &Positions) -> Vec<FeatureChange> {
        let change = |&(layer, FeatureEdit { feature, op }): &(usize, FeatureEdit)| FeatureChange {
            layer,
            feature,
            positions: positions.clone(),
            op,
        };
        self.edits.iter().map(change).collect()
    }

    /// What each edit does, in words.
    pub(super) fn describe(&self) -> Vec<String> {
        self.changes(&Positions::All).iter().map(ToString::to_string).collect()
    }

    /// Where the features of a layer are read.
    pub(super) fn read_at(&self, layer: usize) -> Placement {
        Placement::at(HookPoint::block(layer, self.set.config().input))
    }
}
