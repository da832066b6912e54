//! Which features to look at.

use std::collections::BTreeSet;

use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use super::stats::Summary;
use crate::base::{Error, Result, rng};

/// Where the features come from.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Choice {
    /// All of them.
    #[default]
    All,
    /// A list. Numbers named twice count once.
    Ids(Vec<u32>),
    /// Some of the live features that pass the other conditions, drawn without replacement.
    Random {
        /// How many.
        count: usize,
        /// Seed of the draw.
        seed: u64,
    },
}

/// The order of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SortBy {
    /// Lowest number first.
    Index,
    /// Most frequent first.
    Density,
    /// Largest maximum first.
    Max,
    /// Largest mean activation first.
    Mean,
    /// Largest standard deviation first.
    Std,
    /// Largest skewness first.
    Skewness,
    /// Largest kurtosis first.
    Kurtosis,
}

impl SortBy {
    /// All orders.
    pub const ALL: [Self; 7] =
        [Self::Index, Self::Density, Self::Max, Self::Mean, Self::Std, Self::Skewness, Self::Kurtosis];

    /// As it is typed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Index => "index",
            Self::Density => "density",
            Self::Max => "max",
            Self::Mean => "mean",
            Self::Std => "std",
            Self::Skewness => "skewness",
            Self::Kurtosis => "kurtosis",
        }
    }
}

/// A selection of features.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Query {
    /// Where they come from.
    pub choice: Choice,
    /// The least density.
    pub min_density: Option<f64>,
    /// The greatest density.
    pub max_density: Option<f64>,
    /// Whether they fire at all.
    pub live: Option<bool>,
    /// Only these features, such as those with a label.
    pub among: Option<BTreeSet<u32>>,
    /// The order; a list keeps its own when absent, everything else ascends by number. Ties ascend by number.
    pub sort: Option<SortBy>,
    /// How many to keep, after sorting.
    pub limit: Option<usize>,
}

/// Numbers of the features of `summaries` that `query` selects.
///
/// # Errors
/// `Flag` when a listed number is no feature, or the density bounds exclude everything.
pub fn select(summaries: &[Summary], query: &Query) -> Result<Vec<u32>> {
    let by_number = |id: u32| summaries.binary_search_by_key(&id, |s| s.index).ok().map(|place| &summaries[place]);
    if let (Some(min), Some(max)) = (query.min_density, query.max_density)
        && min > max
    {
        return Err(Error::flag(
            "--min-density",
            format!("at most --max-density, which is {max}"),
            min,
            "swap the bounds",
        ));
    }
    let mut chosen: Vec<&Summary> = match &query.choice {
        Choice::All | Choice::Random { .. } => summaries.iter().collect(),
        Choice::Ids(ids) => {
            let mut seen = BTreeSet::new();
            let distinct = ids.iter().copied().filter(|&id| seen.insert(id));
            distinct.map(|id| by_number(id).ok_or_else(|| out_of_range(id, summaries))).collect::<Result<_>>()?
        }
    };
    chosen.retain(|s| query.min_density.is_none_or(|min| s.density >= min));
    chosen.retain(|s| query.max_density.is_none_or(|max| s.density <= max));
    chosen.retain(|s| query.live.is_none_or(|live| live == (s.count > 0)));
    chosen.retain(|s| query.among.as_ref().is_none_or(|among| among.contains(&s.index)));
    if let Choice::Random { count, seed } = query.choice {
        chosen.retain(|s| s.count > 0);
        let (drawn, _) = chosen.partial_shuffle(&mut rng::stream(seed, "random features"), count);
        chosen = drawn.to_vec();
        chosen.sort_unstable_by_key(|s| s.index);
    }
    if let Some(sort) = query.sort {
        chosen.sort_unstable_by(|a, b| {
            let order = match sort {
                SortBy::Index => std::cmp::Ordering::Equal,
                SortBy::Density => b.density.total_cmp(&a.density),
                SortBy::Max => b.max.abs().total_cmp(&a.max.abs()),
                SortBy::Mean => b.mean.total_cmp(&a.mean),
                SortBy::Std => b.std.total_cmp(&a.std),
                SortBy::Skewness => b.skewness.total_cmp(&a.skewness),
                SortBy::Kurtosis => b.kurtosis.total_cmp(&a.kurtosis),
            };
            order.then(a.index.cmp(&b.index))
        });
    }
    chosen.truncate(query.limit.unwrap_or(usize::MAX));
    Ok(chosen.iter().map(|s| s.index).collect())
}

fn out_of_range(id: u32, summaries: &[Summary]) -> Error {
    let known = match (summaries.first(), summaries.last()) {
        (Some(first), Some(last)) => format!("a feature from {} to {}", first.index, last.index),
        _ => "a feature, of which there are none".into(),
    };
    Error::flag("--feature", known, id, "count features from zero; `--sort max` lists the strongest")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feature 3 is dead.
    fn summaries() -> Vec<Summary> {
        let summary = |(index, (count, max)): (usize, (u64, f32))| Summary {
            index: index as u32,
            density: count as f64 / 100.0,
            count,
            mean: f64::from(max) / 2.0,
            max,
            ..Summary::default()
        };
        [(10, 1.0), (50, 9.0), (10, 3.0), (0, 0.0), (1, 9.0)].into_iter().enumerate().map(summary).collect()
    }

    fn ids(query: &Query) -> Vec<u32> {
        select(&summaries(), query).unwrap()
    }

    #[test]
    fn sorting_filters_and_limits_apply_in_that_order() {
        let by = |sort| Query { sort: Some(sort), ..Query::default() };
        assert_eq!(ids(&by(SortBy::Density)), [1, 0, 2, 4, 3]);
        assert_eq!(ids(&by(SortBy::Max)), [1, 4, 2, 0, 3]);
        assert_eq!(ids(&by(SortBy::Mean)), [1, 4, 2, 0, 3]);
        assert_eq!(ids(&Query::default()), [0, 1, 2, 3, 4]);
        let some = Query { min_density: Some(0.01), max_density: Some(0.1), limit: Some(2), ..by(SortBy::Max) };
        assert_eq!(ids(&some), [4, 2]);
        assert_eq!(ids(&Query { live: Some(false), ..Query::default() }), [3]);
        let among = Some(BTreeSet::from([4, 1]));
        assert_eq!(ids(&Query { live: Some(true), among, ..by(SortBy::Density) }), [1, 4]);
    }

    #[test]
    fn a_list_keeps_its_order_and_a_wrong_number_names_the_range() {
        let listed = |ids: &[u32]| Query { choice: Choice::Ids(ids.to_vec()), ..Query::default() };
        assert_eq!(ids(&listed(&[4, 0, 4])), [4, 0]);
        let error = select(&summaries(), &listed(&[1, 5])).unwrap_err().to_string();
        assert!(error.contains("from 0 to 4") && error.contains('5'), "{error}");
    }

    #[test]
    fn a_random_draw_is_seeded_and_alive() {
        let random = |count, seed| ids(&Query { choice: Choice::Random { count, seed }, ..Query::default() });
        assert_eq!(random(9, 1), [0, 1, 2, 4]);
        assert_eq!(random(2, 1), random(2, 1));
        let draws: BTreeSet<Vec<u32>> = (0..40).map(|seed| random(2, seed)).collect();
        assert_eq!(draws.len(), 6, "every pair of live features comes up");
    }
}
