//! What a graph explains: logits less the mean of the vocabulary's, or the difference of two.

use crate::base::{Error, Result};
use crate::model::Model;

use super::context::Context;

/// Which logits are explained.
#[derive(Debug, Clone, PartialEq)]
pub enum TargetChoice {
    /// The likeliest tokens, until their probabilities sum to `probability`.
    Likeliest {
        /// Tokens at most.
        most: usize,
        /// The sum.
        probability: f64,
    },
    /// These tokens.
    Tokens(Vec<u32>),
    /// The logit of the first token less that of the second.
    Contrast(u32, u32),
}

/// One target, before the final norm.
#[derive(Debug, Clone, PartialEq)]
pub struct Target {
    /// The token; the first of a contrast.
    pub token: u32,
    /// The token whose logit is subtracted.
    pub against: Option<u32>,
    /// Its probability, and 1 for a contrast: its weight among the targets.
    pub probability: f64,
    /// What is explained, in logits before any soft cap.
    pub value: f64,
    /// What makes it of the final norm's output, `[d]`.
    pub(super) direction: Vec<f32>,
    /// What biases of the unembedding add.
    pub(super) constant: f64,
}

impl TargetChoice {
    /// The targets after the prompt's last position. Logits are less the mean of the vocabulary's, as circuit-tracer
    /// takes them: what moves all of them alike moves no probability.
    ///
    /// # Errors
    /// `Flag` for no or the same token twice; `Mismatch` for a token outside the vocabulary.
    pub fn resolve(&self, model: &Model, context: &Context) -> Result<Vec<Target>> {
        self.resolve_among(model, &context.logits, &context.probabilities)
    }

    /// The same among the logits and probabilities of the vocabulary.
    pub(super) fn resolve_among(&self, model: &Model, logits: &[f32], probabilities: &[f64]) -> Result<Vec<Target>> {
        let tokens = self.tokens(probabilities)?;
        let found = model.logit_directions(&tokens)?;
        let logit = |token: u32| f64::from(logits[token as usize]);
        let rows: Vec<&[f32]> = found.rows.chunks_exact(model.config().d_model).collect();
        if let (Self::Contrast(..), [a, b]) = (self, tokens.as_slice()) {
            return Ok(vec![Target {
                token: *a,
                against: Some(*b),
                probability: 1.0,
                value: logit(*a) - logit(*b),
                direction: less(rows[0], rows[1]),
                constant: found.constants[0] - found.constants[1],
            }]);
        }
        let mean = logits.iter().map(|x| f64::from(*x)).sum::<f64>() / logits.len().max(1) as f64;
        let target = |(i, &token): (usize, &u32)| Target {
            token,
            against: None,
            probability: probabilities[token as usize],
            value: logit(token) - mean,
            direction: less(rows[i], &found.mean),
            constant: found.constants[i] - found.mean_constant,
        };
        Ok(tokens.iter().enumerate().map(target).collect())
    }

    fn tokens(&self, probabilities: &[f64]) -> Result<Vec<u32>> {
        let (flag, tokens) = match self {
            Self::Likeliest { most, probability } => {
                return likeliest(probabilities, *most, *probability);
            }
            Self::Tokens(tokens) => ("--target", tokens.clone()),
            Self::Contrast(token, against) => ("--against", vec![*token, *against]),
        };
        let mut distinct = tokens.clone();
        distinct.sort_unstable();
        distinct.dedup();
        if distinct.is_empty() || distinct.len() < tokens.len() {
            let found = if distinct.is_empty() { "none" } else { "the same token twice" };
            return Err(Error::flag(flag, "distinct tokens", found, "name each token once"));
        }
        Ok(tokens)
    }
}

/// The likeliest tokens, until their probabilities sum to `enough`.
fn likeliest(probabilities: &[f64], most: usize, enough: f64) -> Result<Vec<u32>> {
    if most == 0 {
        return Err(Error::flag("--max-logits", "1 or more", most, "leave it out for 10"));
    }
    if !(enough > 0.0 && enough <= 1.0) {
        return Err(Error::flag("--logit-prob", "more than 0, at most 1", enough, "leave it out for 0.95"));
    }
    let mut order: Vec<u32> = (0..probabilities.len() as u32).collect();
    let descending = |a: &u32, b: &u32| probabilities[*b as usize].total_cmp(&probabilities[*a as usize]);
    let most = most.min(order.len());
    if most < order.len() {
        order.select_nth_unstable_by(most, descending);
        order.truncate(most);
    }
    order.sort_by(|a, b| descending(a, b).then(a.cmp(b)));
    let mut sum = 0.0;
    let needed = order.iter().position(|&token| {
        sum += probabilities[token as usize];
        sum >= enough
    });
    order.truncate(needed.map_or(most, |last| last + 1));
    Ok(order)
}

fn less(a: &[f32], b: &[f32]) -> Vec<f32> {
    a.iter().zip(b).map(|(a, b)| a - b).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_taken_until_they_are_likely_enough() {
        let probabilities = [0.05, 0.5, 0.2, 0.25];
        assert_eq!(likeliest(&probabilities, 10, 0.7).unwrap(), [1, 3]);
        assert_eq!(likeliest(&probabilities, 10, 0.8).unwrap(), [1, 3, 2]);
        assert_eq!(likeliest(&probabilities, 2, 0.99).unwrap(), [1, 3]);
        assert_eq!(likeliest(&probabilities, 4, 1.0).unwrap(), [1, 3, 2, 0]);
        assert!(likeliest(&probabilities, 0, 0.9).unwrap_err().to_string().contains("--max-logits"));
        assert!(likeliest(&probabilities, 1, f64::NAN).unwrap_err().to_string().contains("--logit-prob"));
    }
}
