//! `--layers 0-5,7`.

use std::ops::RangeInclusive;
use std::str::FromStr;

use crate::base::{Error, Result};

/// Layers by number and range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layers(Vec<RangeInclusive<usize>>);

impl FromStr for Layers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let range = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
            (first <= last).then_some(first..=last)
        };
        let ranges: Option<Vec<_>> = text.split(',').map(range).collect();
        ranges.map(Self).ok_or_else(|| "expected layers such as 0-5,7".into())
    }
}

impl Layers {
    /// The layers, each once, ascending.
    ///
    /// # Errors
    /// `Flag` when a model of `n_layers` lacks one.
    pub(super) fn within(&self, n_layers: usize) -> Result<Vec<usize>> {
        let last = self.0.iter().map(|range| *range.end()).max().unwrap_or_default();
        if last >= n_layers {
            let expected = format!("layers from 0 to {}", n_layers - 1);
            return Err(Error::flag("--layers", expected, last, "the model has no more layers"));
        }
        let mut layers: Vec<usize> = self.0.iter().cloned().flatten().collect();
        layers.sort_unstable();
        layers.dedup();
        Ok(layers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_and_numbers_are_layers_once_each() {
        let layers: Layers = "3,0-2, 2 - 4".parse().unwrap();
        assert_eq!(layers.within(5).unwrap(), [0, 1, 2, 3, 4]);
        assert!(layers.within(4).unwrap_err().to_string().contains("0 to 3"));
        for wrong in ["", "a", "3-1", "1,,2", "-1"] {
            assert!(wrong.parse::<Layers>().is_err(), "{wrong}");
        }
    }
}
