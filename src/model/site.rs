//! The closed list of places in the forward pass, with name, shape and the models that have them.

use super::config::{BlockLayout, ModelConfig, Position, QkNormScope};
use super::shape::Axes;

macro_rules! sites {
    ($($(#[doc = $doc:literal])+ $variant:ident $name:literal $scope:ident $shape:ident,)*) => {
        /// The closed list of places in the forward pass.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Site { $($(#[doc = $doc])+ $variant,)* }

        impl Site {
            /// All sites in the firing order of a pre-norm block: embeddings, one block, final norm and unembedding.
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

            /// The axes of the tensor; [`Site::axes_in`] for one model.
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

sites! {
    /// Token ids, as whole numbers.
    Tokens "hook_tokens" Embedding Tokens,
    /// Token embedding, scaled and projected to the stream's width as the model does.
    Embed "hook_embed" Embedding Residual,
    /// Learned position embedding.
    PosEmbed "hook_pos_embed" Embedding Residual,
    /// Input of the block.
    ResidPre "hook_resid_pre" Block Residual,
    /// Input of the block once per head, before the norm; an edit reaches that head alone.
    AttnIn "hook_attn_in" Block HeadResidual,
    /// What each head computes its queries from, before the norm.
    QInput "hook_q_input" Block HeadResidual,
    /// What each head computes its keys from, before the norm.
    KInput "hook_k_input" Block KeyHeadResidual,
    /// What each head computes its values from, before the norm.
    VInput "hook_v_input" Block KeyHeadResidual,
    /// Divisor of the block's first norm: before attention; in OLMo 2 on what attention adds.
    Ln1Scale "ln1.hook_scale" Block PositionScale,
    /// The block's first norm after division and before gain and bias.
    Ln1Normalized "ln1.hook_normalized" Block Residual,
    /// Queries after bias and clipping, before their norm and before rotation.
    Q "attn.hook_q" Block QueryHeads,
    /// Keys after bias and clipping, before their norm and before rotation.
    K "attn.hook_k" Block KeyHeads,
    /// Values after bias and clipping.
    V "attn.hook_v" Block KeyHeads,
    /// Divisor of the norm of queries.
    QNormScale "attn.q_norm.hook_scale" Block QueryRowScale,
    /// Queries after division and before the gain of their norm.
    QNormNormalized "attn.q_norm.hook_normalized" Block QueryRows,
    /// Divisor of the norm of keys.
    KNormScale "attn.k_norm.hook_scale" Block KeyRowScale,
    /// Keys after division and before the gain of their norm.
    KNormNormalized "attn.k_norm.hook_normalized" Block KeyRows,
    /// Queries after their norm and rotation.
    RotQ "attn.hook_rot_q" Block QueryHeads,
    /// All keys after their norm and rotation, cached ones included.
    RotK "attn.hook_rot_k" Block AllKeyHeads,
    /// Attention scores after scale, soft cap, position bias and mask; masked entries are negative infinity.
    AttnScores "attn.hook_attn_scores" Block Pattern,
    /// Attention probabilities.
    AttnPattern "attn.hook_pattern" Block Pattern,
    /// Weighted values, per head.
    Z "attn.hook_z" Block QueryHeads,
    /// What each head adds, before the output bias.
    AttnResult "attn.hook_result" Block HeadResidual,
    /// Divisor of the norm after attention.
    Ln1PostScale "ln1_post.hook_scale" Block PositionScale,
    /// Attention's output after the division of its norm and before the gain.
    Ln1PostNormalized "ln1_post.hook_normalized" Block Residual,
    /// Output of attention with its bias; after `ln1_post` where there is one, before `ln1` in OLMo 2.
    AttnOut "hook_attn_out" Block Residual,
    /// What attention really adds to the residual stream.
    AttnAdded "hook_attn_added" Block Residual,
    /// Residual stream between attention and MLP.
    ResidMid "hook_resid_mid" Block Residual,
    /// Residual stream as the MLP's branch reads it, before any norm.
    MlpIn "hook_mlp_in" Block Residual,
    /// Divisor of the block's second norm: before the MLP; in OLMo 2 on what the MLP adds.
    Ln2Scale "ln2.hook_scale" Block PositionScale,
    /// The block's second norm after division and before gain and bias.
    Ln2Normalized "ln2.hook_normalized" Block Residual,
    /// The MLP's true input, after any norm with gain and bias (SAELens and circuit-tracer).
    MlpHookIn "mlp.hook_in" Block Residual,
    /// Probability of each expert, before the choice.
    ExpertWeights "mlp.hook_expert_weights" Block ExpertRows,
    /// The chosen experts, most likely first, as whole numbers.
    ExpertIndices "mlp.hook_expert_indices" Block ActiveExpertRows,
    /// Pre-activation; in gated MLPs the output of the gate projection.
    MlpPre "mlp.hook_pre" Block Inner,
    /// Output of the up projection.
    MlpPreLinear "mlp.hook_pre_linear" Block Inner,
    /// Input of the down projection.
    MlpPost "mlp.hook_post" Block Inner,
    /// The MLP's raw output, before any norm after it (circuit-tracer).
    MlpHookOut "mlp.hook_out" Block Residual,
    /// Divisor of the norm after the MLP.
    Ln2PostScale "ln2_post.hook_scale" Block PositionScale,
    /// The MLP's output after the division of its norm and before the gain.
    Ln2PostNormalized "ln2_post.hook_normalized" Block Residual,
    /// Output of the MLP; after `ln2_post` where there is one, before `ln2` in OLMo 2.
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
    /// Output of the unembedding, before any division or soft cap of the logits.
    UnembedOut "unembed.hook_out" Final Vocabulary,
}

impl Site {
    /// Whether a model of this configuration computes the site in any layer.
    pub fn exists_in(self, config: &ModelConfig) -> bool {
        match self {
            Self::PosEmbed => matches!(config.position, Position::Learned { .. }),
            Self::AttnIn => config.n_heads == config.n_key_value_heads,
            Self::QNormScale | Self::QNormNormalized | Self::KNormScale | Self::KNormNormalized => {
                config.attention.qk_norm.is_some()
            }
            Self::RotQ | Self::RotK => matches!(config.position, Position::Rotary { .. }),
            Self::Ln1PostScale | Self::Ln1PostNormalized | Self::Ln2PostScale | Self::Ln2PostNormalized => {
                config.layout == BlockLayout::PreAndPostNorm
            }
            Self::ResidMid => !config.layout.is_parallel(),
            Self::MlpPre | Self::MlpPost => config.mlp.experts.is_none(),
            Self::MlpPreLinear => config.mlp.gated && config.mlp.experts.is_none(),
            Self::ExpertWeights | Self::ExpertIndices => config.mlp.experts.is_some(),
            Self::LnFinalScale | Self::LnFinalNormalized => config.final_norm,
            _ => true,
        }
    }

    /// Which models have the site, in words; empty where all do.
    pub const fn condition(self) -> &'static str {
        match self {
            Self::PosEmbed => "models with learned positions",
            Self::AttnIn => "models with as many key heads as query heads",
            Self::QNormScale | Self::QNormNormalized | Self::KNormScale | Self::KNormNormalized => {
                "models that normalise queries and keys"
            }
            Self::RotQ | Self::RotK => "rotary models, in layers that rotate",
            Self::Ln1PostScale | Self::Ln1PostNormalized | Self::Ln2PostScale | Self::Ln2PostNormalized => {
                "models with norms before and after attention and MLP"
            }
            Self::ResidMid => "blocks in which the MLP follows attention",
            Self::MlpPre | Self::MlpPost => "blocks with a single MLP",
            Self::MlpPreLinear => "gated MLPs",
            Self::ExpertWeights | Self::ExpertIndices => "mixtures of experts",
            Self::LnFinalScale | Self::LnFinalNormalized => "models with a final norm",
            _ => "",
        }
    }

    /// The last site of a block of this layout that must be computed for this one to have fired.
    pub(super) fn fires_by(self, layout: BlockLayout) -> Self {
        match (layout, self) {
            (BlockLayout::OutputNorm, Self::Ln1Scale | Self::Ln1Normalized) => Self::AttnAdded,
            (BlockLayout::OutputNorm, Self::Ln2Scale | Self::Ln2Normalized) => Self::MlpAdded,
            (BlockLayout::StreamNorm, Self::Ln1Scale | Self::Ln1Normalized) => Self::ResidMid,
            (BlockLayout::StreamNorm, Self::Ln2Scale | Self::Ln2Normalized) => Self::ResidPost,
            _ => self,
        }
    }

    /// The axes in a model. Norms of queries and keys that divide all heads together keep positions and heads apart
    /// differently from those that divide each head.
    pub fn axes_in(self, config: &ModelConfig) -> Axes {
        let together = config.attention.qk_norm.is_some_and(|norm| norm.scope == QkNormScope::Projection);
        match self.axes() {
            Axes::QueryRowScale | Axes::KeyRowScale if together => Axes::PositionScale,
            Axes::QueryRows if together => Axes::QueryProjection,
            Axes::KeyRows if together => Axes::KeyProjection,
            axes => axes,
        }
    }

    /// The tensor's shape for `b` sequences of `s` positions attending to `total` keys.
    pub fn shape(self, config: &ModelConfig, b: usize, s: usize, total: usize) -> Vec<usize> {
        let &ModelConfig { d_model: d, n_heads: heads, n_key_value_heads: kv_heads, d_head: h, .. } = config;
        match self.axes_in(config) {
            Axes::Tokens => vec![b, s],
            Axes::Residual => vec![b, s, d],
            Axes::PositionScale => vec![b, s, 1],
            Axes::QueryHeads => vec![b, s, heads, h],
            Axes::KeyHeads => vec![b, s, kv_heads, h],
            Axes::AllKeyHeads => vec![b, total, kv_heads, h],
            Axes::QueryRowScale => vec![b * s * heads, 1],
            Axes::QueryRows => vec![b * s * heads, h],
            Axes::KeyRowScale => vec![b * s * kv_heads, 1],
            Axes::KeyRows => vec![b * s * kv_heads, h],
            Axes::QueryProjection => vec![b, s, heads * h],
            Axes::KeyProjection => vec![b, s, kv_heads * h],
            Axes::Pattern => vec![b, heads, s, total],
            Axes::HeadResidual => vec![b, s, heads, d],
            Axes::KeyHeadResidual => vec![b, s, kv_heads, d],
            Axes::Inner => vec![b, s, config.mlp.d_mlp],
            Axes::ExpertRows => vec![b * s, config.mlp.experts.map_or(0, |e| e.count)],
            Axes::ActiveExpertRows => vec![b * s, config.mlp.experts.map_or(0, |e| e.active)],
            Axes::Vocabulary => vec![b, s, config.vocab_size],
        }
    }

    /// Values per token when everything but sequences and positions is flattened, as caches and dictionaries see the
    /// site; `None` for names of tokens and experts and for sites whose size depends on the number of positions.
    pub fn width(self, config: &ModelConfig) -> Option<usize> {
        match self.axes() {
            Axes::Tokens | Axes::ActiveExpertRows | Axes::Pattern | Axes::AllKeyHeads => None,
            _ => Some(self.shape(config, 1, 1, 1).iter().product()),
        }
    }

    /// The number of heads on the site's head axis, if it has one.
    pub fn heads(self, config: &ModelConfig) -> Option<usize> {
        match self.axes_in(config) {
            Axes::QueryHeads | Axes::Pattern | Axes::HeadResidual | Axes::QueryRowScale | Axes::QueryRows => {
                Some(config.n_heads)
            }
            Axes::KeyHeads | Axes::AllKeyHeads | Axes::KeyHeadResidual | Axes::KeyRowScale | Axes::KeyRows => {
                Some(config.n_key_value_heads)
            }
            _ => None,
        }
    }
}
