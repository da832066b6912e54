//! What is put in place of the base run's values.

use std::borrow::Cow;
use std::collections::BTreeMap;

use rand::seq::SliceRandom;

use crate::analysis::stop_if_cancelled;
use crate::base::rng::stream;
use crate::base::{Error, Progress, Result, Unit};
use crate::model::{HookPoint, Model, Site};

use super::metric::Metric;
use super::trace::{Trace, Values};

/// Values of every point, in the shape of the base run's.
#[derive(Debug)]
pub enum Replacement {
    /// Zeros.
    Zero,
    /// Those of other runs; results are averaged over them.
    Runs(Vec<Trace>),
    /// Averages over other runs.
    Mean(Means),
}

/// Averages of activations.
#[derive(Debug)]
pub struct Means {
    values: BTreeMap<HookPoint, Vec<f32>>,
    /// Runs they were taken over.
    pub runs: usize,
    /// Whether each position has its own average. Otherwise the first position, where models put their attention sink,
    /// has one, and all others share another.
    pub by_position: bool,
}

impl Replacement {
    /// The averages at `points` over `prompts`: position by position where all of them are as long as the base's
    /// `length` (Wang et al. 2022), else over all positions, with the first apart.
    ///
    /// # Errors
    /// `Flag` when there are no prompts; `Unsupported` for attention patterns of prompts of other lengths; as the
    /// forward pass.
    pub fn mean(
        model: &Model,
        prompts: &[Vec<u32>],
        points: &[HookPoint],
        length: usize,
        progress: &dyn Progress,
    ) -> Result<Self> {
        if prompts.is_empty() {
            return Err(Error::flag(
                "--prompts",
                "at least one prompt",
                "none",
                "name a file with a prompt on each line",
            ));
        }
        let by_position = prompts.iter().all(|prompt| prompt.len() == length);
        let pattern = points.iter().find(|point| point.site == Site::AttnPattern);
        if let (Some(point), false) = (pattern, by_position) {
            return Err(Error::Unsupported {
                what: format!("averaging {point} over prompts of several lengths"),
                why: "patterns of different sizes have no average".into(),
                remedy: format!("give prompts of {length} tokens, or ablate another site"),
            });
        }
        let mut sums: BTreeMap<HookPoint, Sum> = BTreeMap::new();
        progress.begin("averages", prompts.len() as u64, Unit::Items);
        for prompt in prompts {
            stop_if_cancelled(progress)?;
            let run = Trace::record(model, prompt, Metric::Logit { target: 0 }, points)?;
            for (point, values) in run.values {
                sums.entry(point).or_default().add(&values, prompt.len(), by_position);
            }
            progress.advance(1);
        }
        progress.end();
        let values = sums.into_iter().map(|(point, sum)| (point, sum.mean(length, by_position))).collect();
        Ok(Self::Mean(Means { values, runs: prompts.len(), by_position }))
    }

    /// Runs on up to `n` of `prompts`, drawn by `seed` among those that are as long as `base` and differ from it. Longer
    /// ones are cut, which changes nothing before the cut.
    ///
    /// # Errors
    /// `Mismatch` when no prompt is long enough; as the forward pass.
    pub fn resample(
        model: &Model,
        prompts: &[Vec<u32>],
        points: &[HookPoint],
        base: &[u32],
        (n, seed): (usize, u64),
    ) -> Result<Self> {
        let cut = prompts.iter().filter_map(|prompt| prompt.get(..base.len()));
        let mut fitting: Vec<&[u32]> = cut.filter(|prompt| *prompt != base).collect();
        if fitting.is_empty() {
            return Err(Error::Mismatch {
                what: "the prompt and those to draw from",
                left: format!("{} tokens", base.len()),
                right: format!("{} prompts, of which none is as long and another", prompts.len()),
                remedy: "give --prompts a file with longer prompts".into(),
            });
        }
        fitting.shuffle(&mut stream(seed, "patch/resample"));
        let runs = fitting.iter().take(n.max(1));
        let runs = runs.map(|prompt| Trace::record(model, prompt, Metric::Logit { target: 0 }, points));
        Ok(Self::Runs(runs.collect::<Result<_>>()?))
    }

    /// The values at `point`, one for each draw.
    pub(super) fn values<'a>(&'a self, point: HookPoint, base: &Values) -> Result<Vec<Cow<'a, [f32]>>> {
        let other_length = |found: usize| Error::Mismatch {
            what: "the patched run and the values put in",
            left: format!("{} values at {point}", base.data.len()),
            right: format!("{found} values"),
            remedy: "use prompts of as many tokens".into(),
        };
        let fitting = |values: &'a [f32]| {
            if values.len() == base.data.len() { Ok(Cow::Borrowed(values)) } else { Err(other_length(values.len())) }
        };
        match self {
            Self::Zero => Ok(vec![vec![0.0; base.data.len()].into()]),
            Self::Runs(runs) => runs.iter().map(|run| fitting(&run.at(point)?.data)).collect(),
            Self::Mean(means) => {
                means.values.get(&point).map_or_else(|| Err(other_length(0)), |values| Ok(vec![fitting(values)?]))
            }
        }
    }
}

/// A running sum of one point's values.
#[derive(Default)]
struct Sum {
    /// Of the first position, or of the whole value.
    first: Vec<f64>,
    first_count: usize,
    rest: Vec<f64>,
    rest_count: usize,
}

impl Sum {
    fn add(&mut self, values: &Values, positions: usize, by_position: bool) {
        let width = values.data.len() / positions.max(1);
        let (first, rest) = values.data.split_at(if by_position { values.data.len() } else { width });
        add_to(&mut self.first, first);
        self.first_count += 1;
        for row in rest.chunks_exact(width.max(1)) {
            add_to(&mut self.rest, row);
            self.rest_count += 1;
        }
    }

    fn mean(self, positions: usize, by_position: bool) -> Vec<f32> {
        let divided =
            |sum: &[f64], n: usize| -> Vec<f32> { sum.iter().map(|x| (x / n.max(1) as f64) as f32).collect() };
        let first = divided(&self.first, self.first_count);
        if by_position {
            return first;
        }
        // Prompts of a single token leave no other average.
        let rest = if self.rest_count == 0 { first.clone() } else { divided(&self.rest, self.rest_count) };
        let others = (1..positions).flat_map(|_| rest.iter().copied());
        first.iter().copied().chain(others).collect()
    }
}

fn add_to(sum: &mut Vec<f64>, values: &[f32]) {
    sum.resize(values.len().max(sum.len()), 0.0);
    sum.iter_mut().zip(values).for_each(|(sum, x)| *sum += f64::from(*x));
}
