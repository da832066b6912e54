//! Features of a transcoder set and what is done to them, as flags name them.

use std::str::FromStr;

use crate::analysis::FeatureOp;
use crate::base::{Error, Result};
use crate::cli::places;
use crate::data::tokenizer::Tokenizer;
use crate::model::Positions;

/// What to do with every feature that brings no value of its own.
#[derive(Debug, Clone, Copy, clap::Args)]
#[command(next_help_heading = "What to do")]
pub(super) struct OperationArgs {
    /// Set activations to V; values of features' own are taken so where nothing else is asked for.
    #[arg(long, value_name = "V", group = "what", allow_negative_numbers = true)]
    set: Option<f32>,
    /// Multiply activations by V, or each by its own value.
    #[arg(long, value_name = "V", group = "what", num_args = 0..=1, default_missing_value = "nan", allow_negative_numbers = true)]
    scale: Option<f32>,
    /// Add V to activations, or to each its own value.
    #[arg(long, value_name = "V", group = "what", num_args = 0..=1, default_missing_value = "nan", allow_negative_numbers = true)]
    add: Option<f32>,
    /// Set activations to zero.
    #[arg(long, group = "what")]
    ablate: bool,
}

/// The operation of a command line.
#[derive(Debug, Clone, Copy)]
pub(super) struct Operation {
    op: fn(f32) -> FeatureOp,
    value: Option<f32>,
    ablate: bool,
    flag: &'static str,
}

impl Operation {
    /// # Errors
    /// `Flag` for values that are no finite numbers.
    pub(super) fn of(args: &OperationArgs) -> Result<Self> {
        let OperationArgs { set, scale, add, ablate } = *args;
        let (op, value, flag): (fn(f32) -> FeatureOp, _, _) = match (scale, add) {
            (Some(v), _) => (FeatureOp::Scale, Some(v), "--scale"),
            (_, Some(v)) => (FeatureOp::Add, Some(v), "--add"),
            _ => (FeatureOp::Clamp, set, "--set"),
        };
        // A flag that stands alone takes the features' own values.
        let value = value.filter(|v| !v.is_nan());
        if let Some(v) = value.filter(|v| !v.is_finite()) {
            return Err(Error::flag(flag, "a finite value", v, "a few times the activation is a usual strength"));
        }
        Ok(Self { op, value, ablate, flag })
    }

    /// What is done to the feature that `text` names, whose own value is `own`.
    ///
    /// # Errors
    /// `Flag` when there is no value, or one that an ablation cannot take.
    pub(super) fn with(self, flag: &'static str, text: &str, own: Option<f32>) -> Result<FeatureOp> {
        match (self.ablate, own.or(self.value)) {
            (true, _) if own.is_some() => {
                let remedy = "leave the value out, or leave out --ablate";
                Err(Error::flag(flag, "a feature without a value beside --ablate", format!("'{text}'"), remedy))
            }
            (true, _) => Ok(FeatureOp::Ablate),
            (false, Some(value)) => Ok((self.op)(value)),
            (false, None) => {
                let expected = format!("a value for '{text}', from {} or its own", self.flag);
                Err(Error::flag(flag, expected, "none", "write :V after it, or use --set V, --scale V or --ablate"))
            }
        }
    }
}

/// A feature as `LAYER/FEATURE[@POSITIONS][:VALUE]`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Named {
    /// As typed.
    pub(super) text: String,
    pub(super) layer: usize,
    pub(super) feature: u32,
    places: Option<String>,
    pub(super) value: Option<f32>,
}

impl Named {
    /// The positions of the prompt `tokens` that it names; all where it names none.
    ///
    /// # Errors
    /// `Flag` for positions outside the prompt and text that is no token of it.
    pub(super) fn positions(&self, tokens: &[u32], tokenizer: &Tokenizer) -> Result<Positions> {
        let Some(places) = &self.places else { return Ok(Positions::All) };
        match places.strip_suffix('+').filter(|start| !start.is_empty()) {
            Some(start) => {
                let found = places::positions("--feature", start, tokens, tokenizer)?;
                Ok(Positions::From(found.first().copied().unwrap_or_default()))
            }
            None => Ok(Positions::List(places::positions("--feature", places, tokens, tokenizer)?)),
        }
    }
}

impl FromStr for Named {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("'{text}' is no feature; expected LAYER/FEATURE, with @POSITION and :VALUE after it");
        let (rest, value) = valued(text);
        let (name, places) = match rest.split_once('@') {
            Some((name, places)) if !places.is_empty() => (name, Some(places.to_owned())),
            Some(_) => return Err(bad()),
            None => (rest, None),
        };
        let (layer, feature) = name.split_once('/').ok_or_else(bad)?;
        let (layer, feature) = (layer.parse().map_err(|_| bad())?, feature.parse().map_err(|_| bad())?);
        if value.is_some_and(|v| !v.is_finite()) {
            return Err(format!("the value of '{text}' is not finite"));
        }
        Ok(Self { text: text.to_owned(), layer, feature, places, value })
    }
}

/// What stands before a colon with a number after it, and the number.
pub(super) fn valued(text: &str) -> (&str, Option<f32>) {
    match text.rsplit_once(':').map(|(rest, value)| (rest, value.parse::<f32>())) {
        Some((rest, Ok(value))) => (rest, Some(value)),
        _ => (text, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::BosPolicy;
    use crate::data::tokenizer::tests::byte_tokenizer;

    fn named(text: &str) -> Named {
        text.parse().unwrap()
    }

    #[test]
    fn features_have_a_layer_and_perhaps_positions_and_a_value() {
        let all = named("3/12");
        assert_eq!((all.layer, all.feature, all.value, all.places), (3, 12, None, None));
        let full = named("0/7@2-4:-1.5");
        assert_eq!((full.layer, full.feature, full.value, full.places.as_deref()), (0, 7, Some(-1.5), Some("2-4")));
        // A colon may be what the position is named by.
        assert_eq!(named("1/2@:").places.as_deref(), Some(":"));
        assert_eq!(named("1/2@::3").places.as_deref(), Some(":"));
        for bad in ["3", "3/", "a/1", "3/x", "3/1@", "3/-1", "1/2:nan", "1/2@3:inf"] {
            assert!(bad.parse::<Named>().is_err(), "{bad}");
        }
    }

    #[test]
    fn positions_are_those_of_the_prompt_or_all_from_one_on() {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = byte_tokenizer(dir.path());
        let tokens = tokenizer.encode("abcab", BosPolicy::Never).unwrap();
        let at = |text: &str| named(text).positions(&tokens, &tokenizer);
        assert_eq!(at("0/1").unwrap(), Positions::All);
        assert_eq!(at("0/1@b").unwrap(), Positions::List(vec![1, 4]));
        assert_eq!(at("0/1@-1:3").unwrap(), Positions::List(vec![4]));
        assert_eq!(at("0/1@2+").unwrap(), Positions::From(2));
        assert!(at("0/1@9").unwrap_err().to_string().contains("0 to 4"));
    }

    #[test]
    fn every_feature_needs_a_value_from_somewhere() {
        let args = |set, scale, add, ablate| Operation::of(&OperationArgs { set, scale, add, ablate });
        let with = |operation: Operation, own| operation.with("--feature", "0/1", own);
        assert_eq!(with(args(Some(2.0), None, None, false).unwrap(), None).unwrap(), FeatureOp::Clamp(2.0));
        assert_eq!(with(args(Some(2.0), None, None, false).unwrap(), Some(3.0)).unwrap(), FeatureOp::Clamp(3.0));
        assert_eq!(with(args(None, None, None, false).unwrap(), Some(3.0)).unwrap(), FeatureOp::Clamp(3.0));
        assert_eq!(with(args(None, Some(f32::NAN), None, false).unwrap(), Some(3.0)).unwrap(), FeatureOp::Scale(3.0));
        assert_eq!(with(args(None, None, Some(-1.0), false).unwrap(), None).unwrap(), FeatureOp::Add(-1.0));
        assert_eq!(with(args(None, None, None, true).unwrap(), None).unwrap(), FeatureOp::Ablate);
        assert!(with(args(None, None, None, true).unwrap(), Some(1.0)).is_err());
        let error = with(args(None, Some(f32::NAN), None, false).unwrap(), None).unwrap_err().to_string();
        assert!(error.contains("--scale") && error.contains("0/1"), "{error}");
        assert!(args(Some(f32::INFINITY), None, None, false).is_err());
    }
}
