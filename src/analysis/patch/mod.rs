//! Which parts of a run carry an answer: activations of one run put into another (Vig et al. 2020; Meng et al. 2022;
//! `transformer_lens.patching`), ablations, attention knock-out and path patching.
//!
//! A [`Patcher`] holds the run that is changed, the base. Everything before the change is taken from it, so a patch in
//! layer `l` computes the blocks from `l` on only, many patches as one batch, and the logits of the last position only.
//!
//! | base | values put in | called |
//! | --- | --- | --- |
//! | corrupted prompt | clean run | denoising: what suffices to restore the answer |
//! | clean prompt | corrupted run | noising: what is needed for the answer |
//! | clean prompt | zeros, means, another prompt's values | zero, mean, resample ablation |

pub mod features;
pub mod knock_out;
pub mod metric;
pub mod path;
pub mod replace;
pub mod sweep;
mod trace;

pub use features::FeatureSweep;
pub use knock_out::{KnockOut, KnockOutColumns};
pub use metric::{Baseline, Metric};
pub use path::{PathSettings, Receiver, ReceiverInput};
pub use replace::Replacement;
pub use sweep::{Axis, By, Scope, Sweep};
pub use trace::{Patcher, Trace};

use crate::base::{Error, Result};
use crate::model::{HookPoint, ModelConfig, Site};

/// Checks that two prompts have as many tokens; `describe` shows both tokenisations.
///
/// # Errors
/// `Mismatch`.
pub fn check_aligned(clean: &[u32], corrupt: &[u32], describe: impl Fn(&[u32]) -> String) -> Result<()> {
    if clean.len() == corrupt.len() {
        return Ok(());
    }
    let first = clean.iter().zip(corrupt).position(|(a, b)| a != b).unwrap_or(clean.len().min(corrupt.len()));
    Err(Error::Mismatch {
        what: "the tokens of the clean and the corrupted prompt",
        left: format!("clean {} tokens: {}", clean.len(), describe(clean)),
        right: format!("corrupted {} tokens: {}", corrupt.len(), describe(corrupt)),
        remedy: format!(
            "positions are patched one by one, so both need as many tokens; they part at position {first}; choose \
             words of as many tokens"
        ),
    })
}

/// The sites of a residual stream, of what is added to it, and of heads that sweeps can patch.
pub const SITES: [(&str, Site); 12] = [
    ("resid_pre", Site::ResidPre),
    ("resid_mid", Site::ResidMid),
    ("resid_post", Site::ResidPost),
    ("attn_out", Site::AttnOut),
    ("mlp_out", Site::MlpOut),
    ("attn_added", Site::AttnAdded),
    ("mlp_added", Site::MlpAdded),
    ("z", Site::Z),
    ("q", Site::Q),
    ("k", Site::K),
    ("v", Site::V),
    ("pattern", Site::AttnPattern),
];

/// Whether a site of [`SITES`] has heads.
pub fn has_heads(site: Site) -> bool {
    matches!(site, Site::Z | Site::Q | Site::K | Site::V | Site::AttnPattern)
}

/// Every point of `site` in a model.
///
/// # Errors
/// `Unknown` when the model lacks it, such as `resid_mid` in parallel blocks.
pub fn points(site: Site, layers: &[usize], config: &ModelConfig) -> Result<Vec<HookPoint>> {
    layers.iter().map(|&layer| HookPoint::block(layer, site).check(config)).collect()
}

#[cfg(test)]
mod tests;
