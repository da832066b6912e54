//! Patching single features: a feature's activation is set to that of the other run, everything else is kept, the
//! dictionary's error included (as Marks et al. 2024, "Sparse Feature Circuits", cut the stream).

use std::collections::BTreeMap;

use serde::Serialize;

use crate::analysis::rewrite::activation_per_row;
use crate::analysis::{Placement, stop_if_cancelled};
use crate::base::{Progress, Result, Unit};
use crate::dictionary::Dictionary;
use crate::model::HookPoint;
use crate::ops::squared_norm;

use super::sweep::check_below;
use super::trace::{Patcher, Trace};

/// The metric where single features are patched.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FeatureSweep {
    /// Where the dictionary sits.
    pub point: HookPoint,
    /// The features whose activations differ most between the runs, in units of what they write.
    pub features: Vec<FeatureRow>,
    /// What no feature explains: the difference of the dictionary's errors.
    pub error: Vec<Option<f64>>,
    /// The metric where the error is patched at all positions.
    pub error_everywhere: f64,
    /// Positions, parallel to the values of rows.
    pub positions: Vec<usize>,
    /// Features whose activations differ at any of the positions.
    pub differing: usize,
}

/// One feature.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FeatureRow {
    /// Its number.
    pub feature: u32,
    /// Its activations in the base run.
    pub base: Vec<f32>,
    /// Its activations in the other run; zeros for an ablation.
    pub source: Vec<f32>,
    /// The metric where it is patched at one position; none where the runs do not differ.
    pub metric: Vec<Option<f64>>,
    /// The metric where it is patched at all positions.
    pub everywhere: f64,
}

/// A dictionary's view of both runs.
struct Both {
    d: usize,
    /// Start of each position's row in the flat values, parallel to the sweep's positions.
    starts: Vec<usize>,
    /// By feature: activations in the base and in the source, parallel to the positions.
    activations: BTreeMap<u32, (Vec<f32>, Vec<f32>)>,
    /// What one unit of activation is worth at each position.
    units: Vec<f32>,
    /// Change of the error at each position, `[d]`.
    errors: Vec<Vec<f32>>,
}

impl Patcher<'_> {
    /// Sets the `n` features that differ most to their activations in `source`, or with no source to zero, one by one.
    ///
    /// # Errors
    /// As [`Placement::of`]; `Flag` for a position the run does not have; as the forward pass.
    pub fn features(
        &self,
        dictionary: &Dictionary,
        source: Option<&Trace>,
        (n, positions): (usize, &[usize]),
        progress: &dyn Progress,
    ) -> Result<FeatureSweep> {
        let placement = Placement::of(dictionary, self.model.config())?;
        check_below("--position", "position of the prompt", positions, self.base.tokens.len())?;
        let both = self.both(dictionary, placement, source, positions)?;
        let chosen = both.most_different(dictionary, n)?;
        progress.begin("features", chosen.len() as u64 + 1, Unit::Items);
        let mut features = Vec::with_capacity(chosen.len());
        for feature in chosen {
            stop_if_cancelled(progress)?;
            let changes = both.changes(dictionary, feature)?;
            let (metric, everywhere) = self.patched_rows(placement.point, &both.starts, &changes)?;
            let (base, source) = both.activations.get(&feature).cloned().unwrap_or_default();
            features.push(FeatureRow { feature, base, source, metric, everywhere });
            progress.advance(1);
        }
        let (error, error_everywhere) = if source.is_some() {
            let changes: Vec<Option<Vec<f32>>> = both.errors.iter().cloned().map(Some).collect();
            self.patched_rows(placement.point, &both.starts, &changes)?
        } else {
            (vec![None; positions.len()], self.base.metric)
        };
        progress.end();
        Ok(FeatureSweep {
            point: placement.point,
            features,
            error,
            error_everywhere,
            positions: positions.to_vec(),
            differing: both.activations.len(),
        })
    }

    /// The metric with each change added at its own position, and with all of them.
    fn patched_rows(
        &self,
        point: HookPoint,
        starts: &[usize],
        changes: &[Option<Vec<f32>>],
    ) -> Result<(Vec<Option<f64>>, f64)> {
        let base = &self.base.at(point)?.data;
        let add = |row: &mut [f32], start: usize, change: &[f32]| {
            row.iter_mut().skip(start).zip(change).for_each(|(x, change)| *x += change);
        };
        let mut rows = Vec::new();
        let mut all = base.clone();
        for (&start, change) in starts.iter().zip(changes) {
            let Some(change) = change else { continue };
            add(&mut all, start, change);
            let mut row = base.clone();
            add(&mut row, start, change);
            rows.push(row);
        }
        rows.push(all);
        let mut found = self.replaced(point, &rows)?.into_iter();
        let metric = changes.iter().map(|change| change.as_ref().and_then(|_| found.next())).collect();
        Ok((metric, found.next().unwrap_or(self.base.metric)))
    }

    fn both(
        &self,
        dictionary: &Dictionary,
        placement: Placement,
        source: Option<&Trace>,
        positions: &[usize],
    ) -> Result<Both> {
        let d = dictionary.d_in();
        let base = self.base.at(placement.point)?;
        let stride: usize = base.shape.iter().skip(2).product();
        let starts: Vec<usize> =
            positions.iter().map(|position| position * stride + placement.head.unwrap_or(0) * d).collect();
        let rows = |data: &[f32]| -> Vec<f32> {
            starts.iter().flat_map(|&start| data.iter().skip(start).take(d).copied()).collect()
        };
        let x = rows(&base.data);
        let codes = dictionary.encode(&x)?;
        let mut activations: BTreeMap<u32, (Vec<f32>, Vec<f32>)> = BTreeMap::new();
        let empty = || (vec![0.0; positions.len()], vec![0.0; positions.len()]);
        for row in 0..codes.rows() {
            let (features, values) = codes.row(row);
            for (&feature, &value) in features.iter().zip(values) {
                activations.entry(feature).or_insert_with(empty).0[row] = value;
            }
        }
        let mut errors = Vec::new();
        if let Some(source) = source {
            let y = rows(&source.at(placement.point)?.data);
            let other = dictionary.encode(&y)?;
            for row in 0..other.rows() {
                let (features, values) = other.row(row);
                for (&feature, &value) in features.iter().zip(values) {
                    activations.entry(feature).or_insert_with(empty).1[row] = value;
                }
            }
            let (ours, theirs) = (dictionary.reconstruct_codes(&x, &codes)?, dictionary.reconstruct_codes(&y, &other)?);
            let change: Vec<f32> = (0..x.len()).map(|i| (y[i] - theirs[i]) - (x[i] - ours[i])).collect();
            errors = change.chunks_exact(d.max(1)).map(<[f32]>::to_vec).collect();
        }
        activations.retain(|_, (a, b)| a != b);
        let units = dictionary.output_scales(&x)?.unwrap_or_else(|| vec![1.0; positions.len()]);
        Ok(Both { d, starts, activations, units, errors })
    }
}

impl Both {
    /// The features whose patch moves the values furthest at any position, furthest first.
    fn most_different(&self, dictionary: &Dictionary, n: usize) -> Result<Vec<u32>> {
        let mut scored = Vec::with_capacity(self.activations.len());
        for (&feature, (base, source)) in &self.activations {
            let row = dictionary.decoder_row(feature)?;
            let written = squared_norm(row).sqrt() / activation_per_row(dictionary, row);
            let change = |i: usize| ((source[i] - base[i]) * self.units[i]).abs();
            let largest = (0..base.len()).map(change).fold(0.0, f32::max);
            scored.push((largest * written, feature));
        }
        scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        Ok(scored.into_iter().take(n).map(|(_, feature)| feature).collect())
    }

    /// What patching `feature` adds at each position.
    fn changes(&self, dictionary: &Dictionary, feature: u32) -> Result<Vec<Option<Vec<f32>>>> {
        let row = dictionary.decoder_row(feature)?;
        let per_row = activation_per_row(dictionary, row);
        let Some((base, source)) = self.activations.get(&feature) else { return Ok(Vec::new()) };
        let change = |i: usize| {
            let step = (source[i] - base[i]) * self.units[i] / per_row;
            (step != 0.0).then(|| row.iter().take(self.d).map(|w| w * step).collect())
        };
        Ok((0..base.len()).map(change).collect())
    }
}
