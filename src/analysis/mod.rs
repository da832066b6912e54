//! What the features of a dictionary mean and do: top examples, statistics, the tokens they write, evaluation,
//! steering, and probes. Everything here returns data; the command line renders it.

pub mod eval;
pub mod feature;
pub mod graph;
pub mod heads;
pub mod lens;
pub mod patch;
mod placement;
pub mod probe;
pub mod rewrite;
pub mod sequences;
pub mod sources;
pub mod steer;

pub use placement::Placement;
pub use rewrite::{FeatureEdit, FeatureOp, FeatureRewrite};
pub use sequences::{SequenceBatch, SequenceSource};
pub use sources::{CacheSequences, LiveSequences};
pub use steer::{DirectionEdit, DirectionOp, Intervention, SteerPositions, SteerResult, SteerSettings, steer};

use crate::base::{Error, Progress, Result};

/// Ends the phase with `Interrupted` when the user asked to stop work that leaves nothing behind.
pub(crate) fn stop_if_cancelled(progress: &dyn Progress) -> Result<()> {
    if !progress.cancelled() {
        return Ok(());
    }
    progress.end();
    Err(Error::Interrupted { kept: "nothing was written".into(), resume: "run the same command again".into() })
}

#[cfg(test)]
pub(crate) mod tests {
    use crate::dictionary::{Architecture, Dictionary, DictionaryConfig};
    pub(crate) use crate::model::tests::open;
    use crate::ops::gemm::tests::numbers;

    /// A random dictionary of `architecture` at `hook`.
    pub(crate) fn dictionary_with(architecture: Architecture, hook: &str, d: usize, f: usize) -> Dictionary {
        let w_dec = numbers(f * d, "w_dec");
        let activation = crate::dictionary::tests::activation(architecture, f, &w_dec, d);
        let mut config = DictionaryConfig::new(architecture, d, f);
        config.metadata.hook_name = Some(hook.into());
        let bias = |name| numbers(if name == "b_enc" { f } else { d }, name);
        Dictionary::new(config, numbers(d * f, "w_enc"), bias("b_enc"), w_dec, bias("b_dec"), activation).unwrap()
    }

    /// A random ReLU dictionary at `hook`.
    pub(crate) fn dictionary_at(hook: &str, d: usize, f: usize) -> Dictionary {
        dictionary_with(Architecture::Relu, hook, d, f)
    }
}
