//! Which features fire on a text, where, and how strongly.

use std::collections::BTreeMap;

use candle_core::{DType, Device};
use serde::Serialize;

use super::stats::Summary;
use crate::analysis::Placement;
use crate::analysis::sequences::select_rows;
use crate::base::{Context, Error, Result};
use crate::dictionary::Dictionary;
use crate::model::{HookPlan, Model};

/// A feature on a text.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FiringFeature {
    /// The feature.
    pub feature: u32,
    /// Its strongest activation.
    pub max: f32,
    /// `max` over its strongest activation in the index; absent without an index.
    pub share_of_max: Option<f32>,
    /// Where it is strongest.
    pub position: usize,
    /// Positions where it fires.
    pub count: usize,
    /// Its activation at every position, zero also where a position does not count.
    pub values: Vec<f32>,
}

/// What fires on a text.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OnText {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// Whether each position counts: the first position, special tokens and rows of outlying norm may not.
    pub counted: Vec<bool>,
    /// All that fire, those nearest to their own maximum first where the index is known, else the strongest first.
    pub features: Vec<FiringFeature>,
}

/// Runs `model` on `tokens` up to the hook of `dictionary` and encodes the positions that `counts` accepts, given
/// position, token and norm of the row. `summaries` are those of an index of the same dictionary.
///
/// # Errors
/// As [`Placement::of_input`] where the hook is missing, and whatever the model gives.
pub fn on_text(
    model: &Model,
    dictionary: &Dictionary,
    tokens: &[u32],
    counts: &dyn Fn(usize, u32, f64) -> bool,
    summaries: Option<&[Summary]>,
) -> Result<OnText> {
    let point = Placement::of_input(dictionary, model.config())?.point;
    let plan = HookPlan::new().capture(point);
    let run = model.forward(&model.tokens(&[tokens])?, &plan)?;
    let rows = run.captured(point)?.to_dtype(DType::F32).and_then(|t| t.to_device(&Device::Cpu));
    let rows = rows.and_then(|t| t.flatten_all()?.to_vec1::<f32>()).during(|| format!("fetching {point}"))?;
    let d = dictionary.d_in();
    if rows.len() != tokens.len() * d {
        return Err(Error::Mismatch {
            what: "dictionary and model widths",
            left: format!("{dictionary} with d_in {d}"),
            right: format!("{point} of the model with {} values a position", rows.len() / tokens.len().max(1)),
            remedy: "use the model that the dictionary was trained on".into(),
        });
    }
    let norm = |row: &[f32]| row.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt();
    let counted: Vec<bool> =
        rows.chunks_exact(d).zip(tokens).enumerate().map(|(i, (row, &token))| counts(i, token, norm(row))).collect();
    let places: Vec<u32> = (0..tokens.len() as u32).filter(|&i| counted[i as usize]).collect();
    let codes = dictionary.encode(&select_rows(&rows, d, &places))?;
    let mut values: BTreeMap<u32, Vec<f32>> = BTreeMap::new();
    for (row, &place) in places.iter().enumerate() {
        let (features, activations) = codes.row(row);
        for (&feature, &activation) in features.iter().zip(activations) {
            values.entry(feature).or_insert_with(|| vec![0.0; tokens.len()])[place as usize] = activation;
        }
    }
    let mut features: Vec<FiringFeature> =
        values.into_iter().map(|(feature, values)| firing(feature, values, summaries)).collect();
    let strength = |f: &FiringFeature| f.share_of_max.unwrap_or(f.max.abs());
    features.sort_by(|a, b| strength(b).total_cmp(&strength(a)).then(a.feature.cmp(&b.feature)));
    Ok(OnText { tokens: tokens.to_vec(), counted, features })
}

fn firing(feature: u32, values: Vec<f32>, summaries: Option<&[Summary]>) -> FiringFeature {
    let (mut position, mut max) = (0, 0f32);
    for (i, &value) in values.iter().enumerate() {
        if value.abs() > max.abs() {
            (position, max) = (i, value);
        }
    }
    let own = summaries.and_then(|all| all.get(feature as usize)).map(|summary| summary.max.abs());
    // A feature that the index never saw fire is as surprising as one at its maximum.
    let share_of_max = own.map(|own| if own > 0.0 { max.abs() / own } else { 1.0 });
    let count = values.iter().filter(|value| **value != 0.0).count();
    FiringFeature { feature, max, share_of_max, position, count, values }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::tests::{dictionary_at, open};
    use crate::model::HookPoint;

    #[test]
    fn what_fires_equals_the_codes_of_the_rows_and_is_ranked() {
        let (model, dictionary) = (open("llama"), dictionary_at("blocks.1.hook_resid_post", 24, 60));
        let tokens = [1, 7, 9, 20, 33, 9];
        let counts = |position: usize, _: u32, _: f64| position > 0;
        let found = on_text(&model, &dictionary, &tokens, &counts, None).unwrap();
        let point: HookPoint = "blocks.1.hook_resid_post".parse().unwrap();
        let run = model.forward(&model.tokens(&[tokens]).unwrap(), &HookPlan::new().capture(point)).unwrap();
        let rows = run.captured(point).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let dense = dictionary.encode(&rows).unwrap().to_dense();
        assert!(found.features.len() > 10 && !found.counted[0] && found.counted[5]);
        for f in 0..60 {
            let expected: Vec<f32> = (0..6).map(|p| if p == 0 { 0.0 } else { dense[p * 60 + f] }).collect();
            match found.features.iter().find(|found| found.feature as usize == f) {
                Some(found) => {
                    let close = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-4;
                    assert!(found.values.iter().zip(&expected).all(close));
                    assert!(found.values[found.position] == found.max);
                    assert_eq!(found.count, expected.iter().filter(|v| **v != 0.0).count());
                }
                None => assert!(expected.iter().all(|v| *v == 0.0)),
            }
        }
        assert!(found.features.is_sorted_by(|a, b| a.max >= b.max));
        let mut summaries = vec![Summary { max: 100.0, ..Summary::default() }; 60];
        let weak = found.features[found.features.len() - 1].feature;
        summaries[weak as usize].max = 0.001;
        let ranked = on_text(&model, &dictionary, &tokens, &counts, Some(&summaries)).unwrap();
        assert_eq!(ranked.features[0].feature, weak);
    }
}
