//! Hook points: every place in the forward pass that can be read or changed, under its TransformerLens name.
//!
//! A point is a layer and a [`Site`]; global sites have no layer. Names, shapes and meanings are those of
//! TransformerLens' `HookedTransformer` (`transformer_lens/components`), so a name always denotes the same tensor
//! there and here. `hook_attn_added` and `hook_mlp_added` are ours: what is really added to the residual stream,
//! which differs from `hook_attn_out` and `hook_mlp_out` in models that normalise a block's output afterwards.

use std::fmt;
use std::str::FromStr;

use crate::base::nearest::nearest;
use crate::base::{Error, Result};

use super::config::{ModelConfig, Position};

macro_rules! sites {
    ($($(#[doc = $doc:literal])+ $variant:ident $name:literal $scope:ident $shape:ident,)*) => {
        /// The closed list of places in the forward pass.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Site { $($(#[doc = $doc])+ $variant,)* }

        impl Site {
            /// All sites in firing order: embeddings, one block, final norm and unembedding.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The name without the `blocks.N.` prefix.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            /// What the tensor is, in a sentence: the documentation of the variant.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+).trim_ascii()),* }
            }

            /// Whether the site exists once a layer or once a model.
            pub const fn scope(self) -> Scope {
                match self { $(Self::$variant => Scope::$scope),* }
            }

            /// The axes of the tensor.
            pub const fn axes(self) -> Axes {
                match self { $(Self::$variant => Axes::$shape),* }
            }
        }
    };
}

/// Whether a site belongs to a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Before the first block.
    Embedding,
    /// In every block.
    Block,
    /// After the last block.
    Final,
}

/// The shape of a site's tensor in the letters of the crate documentation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Axes {
    /// `[b, s, d]`
    Residual,
    /// `[b, s, 1]`
    PositionScale,
    /// `[b, s, H, h]`
    QueryHeads,
    /// `[b, s, K, h]`
    KeyHeads,
    /// `[b, S, K, h]`
    AllKeyHeads,
    /// `[b, H, s, S]`
    Pattern,
    /// `[b, s, H, d]`
    HeadResidual,
    /// `[b, s, m]`
    Inner,
    /// `[b, s, v]`
    Vocabulary,
}

sites! {
    /// Token embedding, scaled as the model scales it.
    Embed "hook_embed" Embedding Residual,
    /// Learned position embedding; absent in rotary models.
    PosEmbed "hook_pos_embed" Embedding Residual,
    /// Input of the block.
    ResidPre "hook_resid_pre" Block Residual,
    /// Divisor of the norm before attention.
    Ln1Scale "ln1.hook_scale" Block PositionScale,
    /// Input of attention after division and before gain and bias.
    Ln1Normalized "ln1.hook_normalized" Block Residual,
    /// Queries after bias, before rotation.
    Q "attn.hook_q" Block QueryHeads,
    /// Keys after bias, before rotation.
    K "attn.hook_k" Block KeyHeads,
    /// Values after bias.
    V "attn.hook_v" Block KeyHeads,
    /// Queries after rotation; rotary models only.
    RotQ "attn.hook_rot_q" Block QueryHeads,
    /// All keys after rotation, cached ones included; rotary models only.
    RotK "attn.hook_rot_k" Block AllKeyHeads,
    /// Scaled and masked attention scores; masked entries are negative infinity.
    AttnScores "attn.hook_attn_scores" Block Pattern,
    /// Attention probabilities.
    AttnPattern "attn.hook_pattern" Block Pattern,
    /// Weighted values, per head.
    Z "attn.hook_z" Block QueryHeads,
    /// What each head adds, before the output bias.
    AttnResult "attn.hook_result" Block HeadResidual,
    /// Output of attention with its bias.
    AttnOut "hook_attn_out" Block Residual,
    /// What attention really adds to the residual stream.
    AttnAdded "hook_attn_added" Block Residual,
    /// Residual stream between attention and MLP.
    ResidMid "hook_resid_mid" Block Residual,
    /// Residual stream that enters the MLP's norm.
    MlpIn "hook_mlp_in" Block Residual,
    /// Divisor of the norm before the MLP.
    Ln2Scale "ln2.hook_scale" Block PositionScale,
    /// Input of the MLP after division and before gain and bias.
    Ln2Normalized "ln2.hook_normalized" Block Residual,
    /// The MLP's true input, after gain and bias (SAELens and circuit-tracer).
    MlpHookIn "mlp.hook_in" Block Residual,
    /// Pre-activation; in gated MLPs the output of the gate projection.
    MlpPre "mlp.hook_pre" Block Inner,
    /// Gated MLPs only: output of the up projection.
    MlpPreLinear "mlp.hook_pre_linear" Block Inner,
    /// Input of the down projection.
    MlpPost "mlp.hook_post" Block Inner,
    /// The MLP's raw output, before any norm after it (circuit-tracer).
    MlpHookOut "mlp.hook_out" Block Residual,
    /// Output of the MLP.
    MlpOut "hook_mlp_out" Block Residual,
    /// What the MLP really adds to the residual stream.
    MlpAdded "hook_mlp_added" Block Residual,
    /// Output of the block.
    ResidPost "hook_resid_post" Block Residual,
    /// Divisor of the final norm.
    LnFinalScale "ln_final.hook_scale" Final PositionScale,
    /// Final residual stream after division and before gain and bias.
    LnFinalNormalized "ln_final.hook_normalized" Final Residual,
    /// Input of the unembedding.
    UnembedIn "unembed.hook_in" Final Residual,
    /// Logits, before any soft cap.
    UnembedOut "unembed.hook_out" Final Vocabulary,
}

impl Site {
    /// Whether a model of this configuration computes the site at all.
    pub fn exists_in(self, config: &ModelConfig) -> bool {
        match self {
            Self::PosEmbed => matches!(config.position, Position::Learned),
            Self::RotQ | Self::RotK => matches!(config.position, Position::Rotary(_)),
            Self::MlpPreLinear => config.mlp.gated,
            _ => true,
        }
    }

    /// The tensor's shape for `b` sequences of `s` positions attending to `total` keys.
    pub fn shape(self, config: &ModelConfig, b: usize, s: usize, total: usize) -> Vec<usize> {
        let (heads, kv_heads, d_head) = (config.n_heads, config.n_key_value_heads, config.d_head);
        match self.axes() {
            Axes::Residual => vec![b, s, config.d_model],
            Axes::PositionScale => vec![b, s, 1],
            Axes::QueryHeads => vec![b, s, heads, d_head],
            Axes::KeyHeads => vec![b, s, kv_heads, d_head],
            Axes::AllKeyHeads => vec![b, total, kv_heads, d_head],
            Axes::Pattern => vec![b, heads, s, total],
            Axes::HeadResidual => vec![b, s, heads, config.d_model],
            Axes::Inner => vec![b, s, config.mlp.d_mlp],
            Axes::Vocabulary => vec![b, s, config.vocab_size],
        }
    }

    /// Values per token when the axes after `s` are flattened, as caches and dictionaries see the site;
    /// `None` for sites whose size depends on the number of positions.
    pub fn width(self, config: &ModelConfig) -> Option<usize> {
        match self.axes() {
            Axes::Pattern | Axes::AllKeyHeads => None,
            _ => Some(self.shape(config, 1, 1, 1).iter().product()),
        }
    }
}

impl fmt::Display for Axes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Residual => "[b, s, d]",
            Self::PositionScale => "[b, s, 1]",
            Self::QueryHeads => "[b, s, H, h]",
            Self::KeyHeads => "[b, s, K, h]",
            Self::AllKeyHeads => "[b, S, K, h]",
            Self::Pattern => "[b, H, s, S]",
            Self::HeadResidual => "[b, s, H, d]",
            Self::Inner => "[b, s, m]",
            Self::Vocabulary => "[b, s, v]",
        })
    }
}

/// One place in one model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HookPoint {
    /// The block, for block sites.
    pub layer: Option<usize>,
    /// The place in it.
    pub site: Site,
}

impl HookPoint {
    /// A site of block `layer`.
    pub const fn block(layer: usize, site: Site) -> Self {
        Self { layer: Some(layer), site }
    }

    /// A site outside the blocks.
    pub const fn global(site: Site) -> Self {
        Self { layer: None, site }
    }

    /// Every point of a model, in firing order.
    pub fn all(config: &ModelConfig) -> Vec<Self> {
        let of = |scope| Site::ALL.iter().copied().filter(move |s| s.scope() == scope && s.exists_in(config));
        let mut points: Vec<Self> = of(Scope::Embedding).map(Self::global).collect();
        for layer in 0..config.n_layers {
            points.extend(of(Scope::Block).map(|site| Self::block(layer, site)));
        }
        points.extend(of(Scope::Final).map(Self::global));
        points
    }

    /// Checks that the point exists in a model.
    ///
    /// # Errors
    /// `Unknown` with the nearest points that do exist.
    pub fn check(self, config: &ModelConfig) -> Result<Self> {
        let in_range = self.layer.is_none_or(|layer| layer < config.n_layers);
        if in_range && self.site.exists_in(config) {
            return Ok(self);
        }
        let known = Self::all(config);
        Err(Error::Unknown {
            kind: "hook point of this model",
            found: self.to_string(),
            nearest: nearest(&self.to_string(), known.iter().map(ToString::to_string), 4),
        })
    }

    /// Parses `name` and checks it against a model. Hugging Face module names (`model.layers.6`,
    /// `transformer.h.6.mlp`) are spellings of the points whose values those modules output.
    ///
    /// # Errors
    /// `Unknown` with the nearest points of the model.
    pub fn resolve(name: &str, config: &ModelConfig) -> Result<Self> {
        match name.parse::<Self>() {
            Ok(point) => point.check(config),
            Err(_) => Err(Error::Unknown {
                kind: "hook point",
                found: name.into(),
                nearest: nearest(name, Self::all(config).iter().map(ToString::to_string), 4),
            }),
        }
    }
}

impl fmt::Display for HookPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(layer) = self.layer {
            write!(f, "blocks.{layer}.")?;
        }
        f.write_str(self.site.name())
    }
}

impl FromStr for HookPoint {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let unknown = || Error::Unknown {
            kind: "hook point",
            found: s.into(),
            nearest: nearest(s, Site::ALL.iter().map(|&site| example_name(site)), 4),
        };
        if let Some((layer, rest)) = s.strip_prefix("blocks.").and_then(|rest| rest.split_once('.')) {
            let layer = layer.parse().map_err(|_| unknown())?;
            let site = find(Scope::Block, rest).ok_or_else(unknown)?;
            return Ok(Self::block(layer, site));
        }
        if let Some(site) = find(Scope::Embedding, s).or_else(|| find(Scope::Final, s)) {
            return Ok(Self::global(site));
        }
        from_module_name(s).ok_or_else(unknown)
    }
}

impl serde::Serialize for HookPoint {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for HookPoint {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        name.parse().map_err(serde::de::Error::custom)
    }
}

fn find(scope: Scope, name: &str) -> Option<Site> {
    Site::ALL.iter().copied().find(|s| s.name() == name && (s.scope() == Scope::Block) == (scope == Scope::Block))
}

fn example_name(site: Site) -> String {
    match site.scope() {
        Scope::Block => HookPoint::block(0, site).to_string(),
        _ => HookPoint::global(site).to_string(),
    }
}

/// `[prefix.]layers.N[.mlp|.self_attn]`, with or without the base model's prefix.
fn from_module_name(name: &str) -> Option<HookPoint> {
    let mut parts = name.split('.').peekable();
    while let Some(part) = parts.next() {
        if matches!(part, "layers" | "h") {
            let layer = parts.next()?.parse().ok()?;
            let rest: Vec<&str> = parts.collect();
            let site = match rest.as_slice() {
                [] => Site::ResidPost,
                ["mlp"] => Site::MlpOut,
                ["self_attn" | "attn" | "attention" | "self_attention"] => Site::AttnOut,
                _ => return None,
            };
            return Some(HookPoint::block(layer, site));
        }
        if !matches!(part, "model" | "transformer" | "gpt_neox" | "decoder" | "language_model") {
            return None;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_print_as_they_parse() {
        for &site in Site::ALL {
            let point = match site.scope() {
                Scope::Block => HookPoint::block(11, site),
                _ => HookPoint::global(site),
            };
            assert_eq!(point.to_string().parse::<HookPoint>().unwrap(), point);
        }
    }

    #[test]
    fn every_site_says_what_it_is() {
        assert_eq!(Site::Z.meaning(), "Weighted values, per head.");
        for &site in Site::ALL {
            let meaning = site.meaning();
            assert!(meaning.ends_with('.') && !meaning.contains("  "), "{site:?}: {meaning}");
        }
    }

    #[test]
    fn module_names_are_spellings_of_points() {
        let post = HookPoint::block(6, Site::ResidPost);
        for name in ["model.layers.6", "transformer.h.6", "gpt_neox.layers.6", "layers.6"] {
            assert_eq!(name.parse::<HookPoint>().unwrap(), post, "{name}");
        }
        assert_eq!("h.3.mlp".parse::<HookPoint>().unwrap(), HookPoint::block(3, Site::MlpOut));
        assert!("model.layers.6.banana".parse::<HookPoint>().is_err());
        assert!("banana.layers.6".parse::<HookPoint>().is_err());
    }

    #[test]
    fn a_typo_lists_the_nearest_names() {
        let error = "blocks.3.hook_resid_pots".parse::<HookPoint>().unwrap_err().to_string();
        assert!(error.contains("hook_resid_post"), "{error}");
    }
}
