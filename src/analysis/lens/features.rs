//! A logit by the features of a dictionary: what each active one writes, followed to the logit with frozen norms.

use serde::Serialize;

use crate::analysis::Placement;
use crate::analysis::rewrite::activation_per_row;
use crate::base::{Error, Result};
use crate::dictionary::Dictionary;
use crate::model::{HookPoint, Model, ModelConfig, Run, Site};

use super::frozen::{Entry, Frozen, row, wide};

/// An active feature.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct FeaturePart {
    /// Its number.
    pub feature: u32,
    /// Its activation at the position.
    pub activation: f32,
    /// What it contributes to the logit.
    pub value: f64,
}

/// A logit as features, what the dictionary has beside them, and everything that does not pass its hook point. The four
/// sum to the logit.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FeatureAttribution {
    /// Where the dictionary writes.
    pub point: HookPoint,
    /// Active features, largest contribution first.
    pub parts: Vec<FeaturePart>,
    /// The decoder's bias, and a transcoder's skip connection.
    pub bias: f64,
    /// What the dictionary does not reconstruct.
    pub error: f64,
    /// What does not pass the point: other layers, biases.
    pub elsewhere: f64,
}

/// Where a dictionary reads and writes.
pub(super) struct Place {
    read: Placement,
    write: Placement,
}

impl Place {
    pub(super) fn of(dictionary: &Dictionary, config: &ModelConfig) -> Result<Self> {
        let write = Placement::of_output(dictionary, config)?;
        let read = match dictionary.config.metadata.hook_name.as_deref() {
            Some(name) if dictionary.config.transcoder => {
                Placement { point: HookPoint::resolve(name, config)?, head: dictionary.config.metadata.hook_head_index }
            }
            _ => write,
        };
        if Entry::of(write.point.site).is_none() && write.point.site != Site::Z {
            return Err(Error::Unsupported {
                what: format!("attributing a logit to features at {write}"),
                why: "what they write goes through a nonlinearity before the residual stream".into(),
                remedy: "use a dictionary of the residual stream, of attention's or the MLP's output, or of \
                         attn.hook_z"
                    .into(),
            });
        }
        Ok(Self { read, write })
    }

    pub(super) fn points(&self) -> [HookPoint; 2] {
        [self.read.point, self.write.point]
    }

    pub(super) fn attribute(
        &self,
        dictionary: &Dictionary,
        model: &Model,
        run: &Run,
        position: usize,
        frozen: &Frozen<'_>,
        logit: f64,
    ) -> Result<FeatureAttribution> {
        let x = values(run, self.read, position, model.config())?;
        let truth = values(run, self.write, position, model.config())?;
        let codes = dictionary.encode(&x)?;
        let scale = dictionary.output_scales(&x)?.and_then(|scales| scales.first().copied()).unwrap_or(1.0);
        let (features, activations) = codes.row(0);
        let mut parts = Vec::with_capacity(features.len());
        for (&feature, &activation) in features.iter().zip(activations) {
            let direction = dictionary.decoder_row(feature)?;
            let unit = scale * activation / activation_per_row(dictionary, direction);
            let written: Vec<f32> = direction.iter().map(|w| w * unit).collect();
            parts.push(FeaturePart { feature, activation, value: self.score(&written, model, frozen)? });
        }
        parts.sort_by(|a, b| b.value.abs().total_cmp(&a.value.abs()));
        let all: f64 = parts.iter().map(|part| part.value).sum();
        let reconstructed = self.score(&dictionary.reconstruct_codes(&x, &codes)?, model, frozen)?;
        let passing = self.score(&truth, model, frozen)?;
        Ok(FeatureAttribution {
            point: self.write.point,
            parts,
            bias: reconstructed - all,
            error: passing - reconstructed,
            elsewhere: logit - passing,
        })
    }

    fn score(&self, v: &[f32], model: &Model, frozen: &Frozen<'_>) -> Result<f64> {
        let Placement { point, head } = self.write;
        let layer = point.layer.unwrap_or(0);
        if let Some(entry) = Entry::of(point.site) {
            return Ok(frozen.score(layer, entry, wide(v)));
        }
        let (heads, h) = (model.config().n_heads, model.config().d_head);
        let mut z = vec![0.0; heads * h];
        let start = head.unwrap_or(0) * h;
        let slot = z.get_mut(start..start + v.len()).ok_or_else(|| Error::Mismatch {
            what: "dictionary and model",
            left: format!("a dictionary of {}", self.write),
            right: format!("{heads} heads of width {h}"),
            remedy: "use a dictionary that was trained on this model".into(),
        })?;
        slot.copy_from_slice(v);
        let results = model.head_results(layer, &z)?;
        let d = model.config().d_model;
        Ok(results.chunks_exact(d.max(1)).map(|result| frozen.score(layer, Entry::Attention, wide(result))).sum())
    }
}

/// What the run holds at a placement.
fn values(run: &Run, placement: Placement, position: usize, config: &ModelConfig) -> Result<Vec<f32>> {
    let all = row(run, placement.point, position)?;
    let heads = placement.point.site.heads(config);
    Ok(match (placement.head, heads) {
        (Some(head), Some(heads)) => {
            let width = all.len() / heads.max(1);
            all.chunks_exact(width.max(1)).nth(head).map(<[f32]>::to_vec).unwrap_or_default()
        }
        _ => all,
    })
}
