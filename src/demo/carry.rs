//! Where in the model a fact is carried.
//!
//! "The capital of France is" and "The capital of Japan is" differ in one word, so the construction says where the
//! country enters: at that word. Activation patching finds where it stands later: the stream of the one question at
//! one position is put into the run of the other, and the share of the difference between the answers' logits that
//! comes with it is what that position carries ([`crate::analysis::patch`]).

use rand::seq::SliceRandom;
use serde::Serialize;

use crate::analysis::patch::{Baseline, By, Metric, Patcher, Replacement, Scope, Trace};
use crate::base::rng::stream;
use crate::base::{Result, Silent};
use crate::model::{HookPoint, Model, Site};

use super::entity::Lang;
use super::relation::Relation;
use super::tokenizer::{BEGIN, Vocabulary};
use super::world::World;

/// What enters one layer, as mean shares of the fact over the pairs.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct LayerShares {
    /// At the country's word.
    pub country: f64,
    /// At the last word, where the answer is said.
    pub last: f64,
    /// The largest of any other position.
    pub elsewhere: f64,
}

/// Where questions about capitals carry their country.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Carried {
    /// What enters each layer.
    pub layers: Vec<LayerShares>,
    /// Pairs of questions.
    pub pairs: usize,
}

/// Patches `pairs` pairs of questions about capitals, drawn by `seed`.
///
/// # Errors
/// As [`Patcher::new`] and [`Patcher::sweep`].
pub fn carried(model: &Model, world: &World, vocabulary: &Vocabulary, pairs: usize, seed: u64) -> Result<Carried> {
    let mut facts = world.facts_of(Relation::Capital).to_vec();
    facts.shuffle(&mut stream(seed, "demo/carried"));
    let asked: Vec<(Vec<u32>, u32)> = facts
        .iter()
        .filter_map(|&fact| {
            let prompt = world.prompt(fact, Lang::English)?;
            let tokens = vocabulary.id(BEGIN).into_iter().chain(vocabulary.encode(&prompt.text)).collect();
            Some((tokens, vocabulary.id(&prompt.answer)?))
        })
        .collect();
    let mut found = Carried { layers: vec![LayerShares::default(); model.config().n_layers], pairs: 0 };
    for pair in asked.chunks_exact(2).take(pairs) {
        let [(clean, target), (corrupt, against)] = pair else { continue };
        let Some(grid) = shares(model, clean, corrupt, Metric::LogitDifference { target: *target, against: *against })?
        else {
            continue;
        };
        found.pairs += 1;
        let country = clean.iter().zip(corrupt).position(|(a, b)| a != b).unwrap_or_default();
        for (layer, row) in found.layers.iter_mut().zip(grid) {
            for (position, share) in row.iter().enumerate() {
                if position == country {
                    layer.country += share;
                } else if position + 1 == row.len() {
                    layer.last += share;
                } else {
                    layer.elsewhere = layer.elsewhere.max(*share);
                }
            }
        }
    }
    for layer in &mut found.layers {
        layer.country /= found.pairs.max(1) as f64;
        layer.last /= found.pairs.max(1) as f64;
    }
    Ok(found)
}

/// The share that each position of each layer's input restores; `None` for questions of different lengths, or whose
/// answers the model does not tell apart.
fn shares(model: &Model, clean: &[u32], corrupt: &[u32], metric: Metric) -> Result<Option<Vec<Vec<f64>>>> {
    if clean.len() != corrupt.len() {
        return Ok(None);
    }
    let scope = Scope::all(model.config(), clean.len());
    let points: Vec<HookPoint> = scope.layers.iter().map(|&layer| HookPoint::block(layer, Site::ResidPre)).collect();
    let patcher = Patcher::new(model, corrupt, metric, &points)?;
    let source = Trace::record(model, clean, metric, &points)?;
    let baseline = Baseline { base: patcher.base().metric, source: Some(source.metric) };
    let sweep = patcher.sweep(Site::ResidPre, By::Position, &scope, &Replacement::Runs(vec![source]), &Silent)?;
    let row = |row: &Vec<Option<f64>>| row.iter().map(|m| baseline.normalised((*m)?)).collect::<Option<Vec<f64>>>();
    Ok(sweep.metric.iter().map(row).collect())
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::demo::built_in;

    #[test]
    fn a_country_enters_at_its_word_and_ends_at_the_last() {
        let world = World::new(World::BUILT_IN_SEED);
        let model = built_in::model(DType::F32, &Device::Cpu).unwrap();
        let found = carried(&model, &world, &Vocabulary::new(&world), 6, 1).unwrap();
        assert_eq!((found.pairs, found.layers.len()), (6, 4));
        let [first, second, _, last] = found.layers.as_slice() else { panic!("{found:?}") };
        assert!((first.country - 1.0).abs() < 1e-3 && first.last.abs() < 1e-3, "{first:?}");
        assert!(second.country > 0.9, "{second:?}");
        assert!(last.last > 0.3 && last.country < 0.8 && last.elsewhere < 0.2, "{last:?}");
    }
}
