//! Direct logit attribution: the logit of a token as a sum over what wrote to the residual stream (Elhage et al. 2021,
//! "A Mathematical Framework for Transformer Circuits"; `logit_attrs` of TransformerLens).
//!
//! ```text
//! logit_t = Σ_c  (c − mean(c)) / scale · gain · W_U[:, t]   +   bias · W_U[:, t] + b_U[t]
//! ```
//!
//! `c` runs over embeddings, heads, biases and MLPs; the mean is subtracted in LayerNorm models only; `scale` is the
//! divisor of the final norm in this run. Norms between a component and the stream are frozen in the same way. The sum
//! is that of the logit before any soft cap, which is no sum.

use serde::Serialize;

use crate::base::{Context, Error, Result};
use crate::dictionary::Dictionary;
use crate::model::config::BlockLayout;
use crate::model::{HookPoint, Model, ModelConfig, Run, Site};

use super::features::{self, FeatureAttribution};
use super::frozen::{Entry, Frozen, plan, row, wide};

/// What wrote to the residual stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Component {
    /// The token embedding.
    Embedding,
    /// The learned position embedding.
    PositionEmbedding,
    /// A head, without the output bias.
    Head {
        /// Its layer.
        layer: usize,
        /// Its number.
        head: usize,
    },
    /// Biases of attention's output projection and of norms after it.
    AttentionBias {
        /// The layer.
        layer: usize,
    },
    /// The MLP with its biases.
    Mlp {
        /// The layer.
        layer: usize,
    },
    /// The bias of a norm on the stream itself (OPT-350m).
    NormBias {
        /// The layer.
        layer: usize,
    },
    /// The biases of the final norm and of the unembedding.
    Unembedding,
}

impl Component {
    /// The layer, where it has one.
    pub fn layer(self) -> Option<usize> {
        match self {
            Self::Head { layer, .. }
            | Self::AttentionBias { layer }
            | Self::Mlp { layer }
            | Self::NormBias { layer } => Some(layer),
            Self::Embedding | Self::PositionEmbedding | Self::Unembedding => None,
        }
    }

    /// Whether it belongs to a block's attention.
    pub fn is_attention(self) -> bool {
        matches!(self, Self::Head { .. } | Self::AttentionBias { .. })
    }
}

/// A component with what it contributes to the logit, or to the difference of two.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Part {
    /// The component.
    #[serde(flatten)]
    pub component: Component,
    /// Its contribution.
    pub value: f64,
}

/// A logit, or the difference of two, taken apart.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Attribution {
    /// The position that predicts.
    pub position: usize,
    /// The token.
    pub target: u32,
    /// The token whose logit is subtracted.
    pub against: Option<u32>,
    /// What the model computed, before any soft cap.
    pub logit: f64,
    /// The same after the soft cap, in models that have one.
    pub capped: Option<f64>,
    /// Every component, in the order they are computed.
    pub parts: Vec<Part>,
    /// Sum of the parts.
    pub sum: f64,
    /// `logit − sum`: rounding of the forward pass.
    pub discrepancy: f64,
    /// The same logit by the features of a dictionary.
    pub features: Option<FeatureAttribution>,
}

impl Attribution {
    /// Sum of the parts that `choose` chooses.
    pub fn total(&self, choose: impl Fn(Component) -> bool) -> f64 {
        self.parts.iter().filter(|part| choose(part.component)).map(|part| part.value).sum()
    }
}

/// Takes apart the logit of `target`, less that of `against`, at one position of `tokens`; with `dictionary` also by
/// that dictionary's features.
///
/// # Errors
/// `Flag` for a position outside the prompt, `Mismatch` for a token outside the vocabulary; `Unsupported` for a
/// dictionary at a point from which there is no linear path to the logits.
pub fn attribute(
    model: &Model,
    tokens: &[u32],
    position: usize,
    (target, against): (u32, Option<u32>),
    dictionary: Option<&Dictionary>,
) -> Result<Attribution> {
    super::check_positions(&[position], tokens.len())?;
    let config = model.config();
    let mut points = Frozen::points(model);
    points.extend(component_points(config));
    let place = dictionary.map(|dictionary| features::Place::of(dictionary, config)).transpose()?;
    points.extend(place.iter().flat_map(features::Place::points));
    let run = model.forward(&model.tokens(&[tokens])?, &plan(points))?;
    let frozen = Frozen::new(model, &run, position, target, against)?;
    let parts = parts(model, &run, position, &frozen)?;
    let sum: f64 = parts.iter().map(|part| part.value).sum();
    let logit = difference(&run, HookPoint::global(Site::UnembedOut), position, (target, against))?
        / config.embedding.logit_divisor;
    let features = match (dictionary, place) {
        (Some(dictionary), Some(place)) => Some(place.attribute(dictionary, model, &run, position, &frozen, logit)?),
        _ => None,
    };
    Ok(Attribution {
        position,
        target,
        against,
        logit,
        capped: match config.embedding.logit_soft_cap {
            Some(_) => Some(capped(&run, position, (target, against))?),
            None => None,
        },
        parts,
        sum,
        discrepancy: logit - sum,
        features,
    })
}

fn component_points(config: &ModelConfig) -> Vec<HookPoint> {
    let globals = [Site::Embed, Site::PosEmbed].map(HookPoint::global);
    let blocks = (0..config.n_layers).flat_map(|l| [Site::Z, Site::MlpAdded].map(|site| HookPoint::block(l, site)));
    globals.into_iter().chain(blocks).filter(|point| point.exists_in(config)).collect()
}

fn parts(model: &Model, run: &Run, position: usize, frozen: &Frozen<'_>) -> Result<Vec<Part>> {
    let config = model.config();
    let d = config.d_model;
    let at = |point| row(run, point, position);
    let mut parts = Vec::new();
    let mut push = |component, value| parts.push(Part { component, value });
    let embeddings = [(Site::Embed, Component::Embedding), (Site::PosEmbed, Component::PositionEmbedding)];
    for (site, component) in embeddings {
        if HookPoint::global(site).exists_in(config) {
            push(component, frozen.score(0, Entry::Stream, wide(&at(HookPoint::global(site))?)));
        }
    }
    for layer in 0..config.n_layers {
        let results = model.head_results(layer, &at(HookPoint::block(layer, Site::Z))?)?;
        for (head, result) in results.chunks_exact(d.max(1)).enumerate() {
            push(Component::Head { layer, head }, frozen.score(layer, Entry::Attention, wide(result)));
        }
        let [mut attention, mlp] = frozen.norm_biases(layer);
        let own = model.attention_bias(layer)?;
        let mut stream = 0.0;
        if config.layout == BlockLayout::StreamNorm {
            stream = std::mem::take(&mut attention) + mlp;
        }
        let has_bias = own.is_some() || attention != 0.0;
        if let Some(own) = own {
            attention += frozen.score(layer, Entry::Attention, wide(&own));
        }
        if has_bias {
            push(Component::AttentionBias { layer }, attention);
        }
        // What the MLP adds holds the bias of the norm after it already.
        let added = at(HookPoint::block(layer, Site::MlpAdded))?;
        push(Component::Mlp { layer }, frozen.score(layer, Entry::MlpAdded, wide(&added)));
        if stream != 0.0 {
            push(Component::NormBias { layer }, stream);
        }
    }
    if frozen.constant != 0.0 {
        push(Component::Unembedding, frozen.constant);
    }
    Ok(parts)
}

/// The value of `target` less that of `against` in captured logits.
fn difference(run: &Run, point: HookPoint, position: usize, (target, against): (u32, Option<u32>)) -> Result<f64> {
    let logits = row(run, point, position)?;
    pick(&logits, target, against)
}

fn capped(run: &Run, position: usize, (target, against): (u32, Option<u32>)) -> Result<f64> {
    let reading = || "reading logits".to_owned();
    let logits =
        run.logits()?.narrow(1, position, 1).and_then(|x| x.flatten_all()?.to_vec1::<f32>()).during(reading)?;
    pick(&logits, target, against)
}

fn pick(logits: &[f32], target: u32, against: Option<u32>) -> Result<f64> {
    let at = |token: u32| {
        logits.get(token as usize).map(|x| f64::from(*x)).ok_or_else(|| Error::Mismatch {
            what: "token and model",
            left: format!("token id {token}"),
            right: format!("a vocabulary of {}", logits.len()),
            remedy: "use the tokenizer that belongs to the model".into(),
        })
    };
    Ok(at(target)? - against.map(at).transpose()?.unwrap_or(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::tests::{dictionary_at, dictionary_with, open};
    use crate::dictionary::tests::architectures;

    const TOKENS: [u32; 6] = [3, 9, 21, 17, 8, 30];
    const MODELS: [&str; 14] = [
        "llama",
        "gpt2",
        "gemma",
        "gemma2",
        "gemma3_text",
        "olmo2",
        "gpt_neox",
        "phi",
        "falcon",
        "granite",
        "opt",
        "opt-350m",
        "qwen2",
        "stablelm",
    ];

    #[test]
    fn parts_sum_to_the_logit_in_every_layout() {
        for name in MODELS {
            let model = open(name);
            for (position, wanted) in [(5, (7, None)), (2, (11, Some(30)))] {
                let found = attribute(&model, &TOKENS, position, wanted, None).unwrap();
                assert!(found.discrepancy.abs() < 2e-5, "{name}: {} against {}", found.sum, found.logit);
                assert!(found.parts.iter().all(|part| part.value.is_finite()));
                let heads = found.parts.iter().filter(|p| matches!(p.component, Component::Head { .. })).count();
                assert_eq!(heads, model.config().n_layers * model.config().n_heads, "{name}");
                let moved = found.parts.iter().filter(|part| part.value.abs() > 1e-3).count();
                assert!(moved > 5, "{name}: something contributes");
                assert_eq!(found.capped.is_some(), model.config().embedding.logit_soft_cap.is_some());
            }
        }
    }

    #[test]
    fn features_bias_and_error_sum_to_the_logit() {
        for name in ["llama", "gpt2", "gemma2", "olmo2", "opt-350m"] {
            let model = open(name);
            let config = model.config();
            let (d, heads) = (config.d_model, config.n_heads * config.d_head);
            let places = [
                ("blocks.0.hook_resid_post", d),
                ("blocks.1.hook_resid_pre", d),
                ("blocks.1.hook_mlp_out", d),
                ("blocks.0.mlp.hook_out", d),
                ("blocks.1.hook_attn_out", d),
                ("blocks.1.attn.hook_z", heads),
            ];
            for (hook, width) in places {
                for architecture in architectures() {
                    let dictionary = dictionary_with(architecture, hook, width, 40);
                    let found = attribute(&model, &TOKENS, 4, (7, Some(9)), Some(&dictionary)).unwrap();
                    let features = found.features.as_ref().unwrap();
                    let sum = features.parts.iter().map(|part| part.value).sum::<f64>()
                        + features.bias
                        + features.error
                        + features.elsewhere;
                    let what = format!("{name} {hook} {architecture:?}");
                    assert!((sum - found.logit).abs() < 1e-5, "{what}: {sum} against {}", found.logit);
                    assert!(!features.parts.is_empty() && features.parts[0].value != 0.0, "{what}");
                    assert!(features.parts.is_sorted_by(|a, b| a.value.abs() >= b.value.abs()));
                }
            }
        }
        let inside = dictionary_at("blocks.0.mlp.hook_post", open("llama").config().mlp.d_mlp, 40);
        let error = attribute(&open("llama"), &TOKENS, 4, (7, None), Some(&inside)).unwrap_err().to_string();
        assert!(error.contains("mlp.hook_post") && error.contains("residual stream"), "{error}");
    }

    #[test]
    fn a_part_is_what_taking_it_away_from_the_final_stream_changes_under_the_frozen_scale() {
        let model = open("gpt2");
        let found = attribute(&model, &TOKENS, 5, (7, None), None).unwrap();
        let mlp = Component::Mlp { layer: 2 };
        let value = found.total(|component| component == mlp);
        // By hand: centre, divide, gain, column.
        let points = [HookPoint::block(2, Site::MlpAdded), HookPoint::global(Site::LnFinalScale)];
        let run = model.forward(&model.tokens(&[TOKENS]).unwrap(), &plan(points)).unwrap();
        let [added, scale] = points.map(|point| row(&run, point, 5).unwrap());
        let norm = model.frozen_norm(points[1]).unwrap().unwrap();
        let (column, _) = model.logit_direction(7).unwrap();
        let mean = added.iter().sum::<f32>() / added.len() as f32;
        let gain = norm.gain.unwrap();
        let by_hand: f32 = (0..added.len()).map(|i| (added[i] - mean) / scale[0] * gain[i] * column[i]).sum();
        assert!((value - f64::from(by_hand)).abs() < 1e-5 && value.abs() > 1e-3, "{value} {by_hand}");
    }
}
