//! The shapes that hook points have.

use std::fmt;

/// The shape of a site's tensor in the letters of the crate documentation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Axes {
    /// `[b, s]`
    Tokens,
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
    /// `[b·s·H, 1]`
    QueryRowScale,
    /// `[b·s·H, h]`
    QueryRows,
    /// `[b·s·K, 1]`
    KeyRowScale,
    /// `[b·s·K, h]`
    KeyRows,
    /// `[b, s, H·h]`
    QueryProjection,
    /// `[b, s, K·h]`
    KeyProjection,
    /// `[b, H, s, S]`
    Pattern,
    /// `[b, s, H, d]`
    HeadResidual,
    /// `[b, s, K, d]`
    KeyHeadResidual,
    /// `[b, s, m]`
    Inner,
    /// `[b·s, E]`
    ExpertRows,
    /// `[b·s, k]`
    ActiveExpertRows,
    /// `[b, s, v]`
    Vocabulary,
}

impl Axes {
    /// Whether sequences and positions share the first axis with heads, if any.
    pub fn are_rows(self) -> bool {
        matches!(
            self,
            Self::QueryRowScale
                | Self::QueryRows
                | Self::KeyRowScale
                | Self::KeyRows
                | Self::ExpertRows
                | Self::ActiveExpertRows
        )
    }

    /// Whether the values are whole numbers that name something.
    pub fn are_names(self) -> bool {
        matches!(self, Self::Tokens | Self::ActiveExpertRows)
    }
}

impl fmt::Display for Axes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tokens => "[b, s]",
            Self::Residual => "[b, s, d]",
            Self::PositionScale => "[b, s, 1]",
            Self::QueryHeads => "[b, s, H, h]",
            Self::KeyHeads => "[b, s, K, h]",
            Self::AllKeyHeads => "[b, S, K, h]",
            Self::QueryRowScale => "[b·s·H, 1]",
            Self::QueryRows => "[b·s·H, h]",
            Self::KeyRowScale => "[b·s·K, 1]",
            Self::KeyRows => "[b·s·K, h]",
            Self::QueryProjection => "[b, s, H·h]",
            Self::KeyProjection => "[b, s, K·h]",
            Self::Pattern => "[b, H, s, S]",
            Self::HeadResidual => "[b, s, H, d]",
            Self::KeyHeadResidual => "[b, s, K, d]",
            Self::Inner => "[b, s, m]",
            Self::ExpertRows => "[b·s, E]",
            Self::ActiveExpertRows => "[b·s, k]",
            Self::Vocabulary => "[b, s, v]",
        })
    }
}
