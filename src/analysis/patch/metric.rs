//! What is measured after the last position.

use serde::Serialize;

use crate::analysis::lens::log_sum_exp;

/// A number that tells whether the model still gives the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Metric {
    /// The logit of one token less that of another.
    LogitDifference {
        /// The right answer.
        target: u32,
        /// The other answer.
        against: u32,
    },
    /// The logit of a token.
    Logit {
        /// The token.
        target: u32,
    },
    /// The probability of a token.
    Probability {
        /// The token.
        target: u32,
    },
    /// The logarithm of the probability of a token, in nats.
    LogProbability {
        /// The token.
        target: u32,
    },
}

impl Metric {
    /// The tokens it reads.
    pub fn tokens(self) -> Vec<u32> {
        match self {
            Self::LogitDifference { target, against } => vec![target, against],
            Self::Logit { target } | Self::Probability { target } | Self::LogProbability { target } => vec![target],
        }
    }

    /// The value for the logits `[v]` of the last position; NaN for a token outside the vocabulary.
    pub fn of(self, logits: &[f32]) -> f64 {
        let at = |token: u32| logits.get(token as usize).map_or(f64::NAN, |x| f64::from(*x));
        match self {
            Self::LogitDifference { target, against } => at(target) - at(against),
            Self::Logit { target } => at(target),
            Self::Probability { target } => (at(target) - log_sum_exp(logits)).exp(),
            Self::LogProbability { target } => at(target) - log_sum_exp(logits),
        }
    }
}

/// What the metric is without any patch.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Baseline {
    /// In the run that is patched.
    pub base: f64,
    /// In the run whose values are put in.
    pub source: Option<f64>,
}

impl Baseline {
    /// `(m − base) / (source − base)`: 0 where a patch changes nothing, 1 where it does all that the other prompt does.
    /// For denoising 0 is the corrupted and 1 the clean run, as users of TransformerLens normalise it. `None` where
    /// there is no source or both runs measure the same.
    pub fn normalised(self, metric: f64) -> Option<f64> {
        let span = self.source? - self.base;
        (span.abs() > 1e-9).then(|| (metric - self.base) / span)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_what_their_names_say() {
        let logits = [0.0, 3f32.ln(), 0.0, 0.0];
        let (target, against) = (1, 0);
        assert!((Metric::Probability { target }.of(&logits) - 0.5).abs() < 1e-7);
        assert!((Metric::LogProbability { target }.of(&logits) - 0.5f64.ln()).abs() < 1e-7);
        assert!((Metric::LogitDifference { target, against }.of(&logits) - 3f64.ln()).abs() < 1e-7);
        assert!((Metric::Logit { target }.of(&logits) - 3f64.ln()).abs() < 1e-7);
        assert!(Metric::Logit { target: 4 }.of(&logits).is_nan());
    }

    #[test]
    fn the_base_is_zero_and_the_source_one() {
        let baseline = Baseline { base: -2.0, source: Some(6.0) };
        assert_eq!([-2.0, 6.0, 0.0].map(|m| baseline.normalised(m)), [Some(0.0), Some(1.0), Some(0.25)]);
        assert_eq!(Baseline { base: 1.0, source: Some(1.0) }.normalised(2.0), None);
        assert_eq!(Baseline { base: 1.0, source: None }.normalised(2.0), None);
    }
}
