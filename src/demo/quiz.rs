//! Asking a model every prompt of the world.

use std::collections::BTreeMap;

use candle_core::{D, Tensor};

use crate::base::{Error, Result};
use crate::model::{HookPlan, Model};

use super::relation::Relation;
use super::tokenizer::{BEGIN, Vocabulary};
use super::world::{Prompt, World};

/// Prompts in one forward pass.
const BATCH: usize = 256;

/// Right answers out of questions asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Recall {
    /// Questions whose right answer was the most likely token.
    pub right: usize,
    /// Questions.
    pub asked: usize,
}

impl Recall {
    /// Fraction of right answers; 0 when nothing was asked.
    pub fn accuracy(&self) -> f64 {
        if self.asked == 0 { 0.0 } else { self.right as f64 / self.asked as f64 }
    }

    fn count(&mut self, right: bool) {
        self.right += usize::from(right);
        self.asked += 1;
    }
}

/// How well a model knows the world.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize)]
pub struct Quiz {
    /// One-hop facts.
    pub single_hop: Recall,
    /// All two-hop facts, held-out ones included.
    pub two_hop: Recall,
    /// Two-hop facts that training text states.
    pub two_hop_trained: Recall,
    /// Two-hop facts that training text never states.
    pub two_hop_held_out: Recall,
    /// By relation: trained facts, held-out facts.
    pub by_relation: BTreeMap<&'static str, [Recall; 2]>,
}

/// Asks every prompt of `world`.
///
/// # Errors
/// When the forward pass fails, or the model has another vocabulary.
pub fn quiz(model: &Model, world: &World, vocabulary: &Vocabulary) -> Result<Quiz> {
    let mut prompts = world.single_hop_prompts();
    prompts.extend(world.two_hop_prompts());
    let answers = most_likely(model, vocabulary, &prompts, &HookPlan::default().with_logits())?;
    let mut result = Quiz::default();
    for (prompt, answer) in prompts.iter().zip(answers) {
        let right = answer == prompt.answer;
        let Quiz { single_hop, two_hop, two_hop_trained, two_hop_held_out, by_relation } = &mut result;
        if prompt.relation.hop_count() == 1 {
            single_hop.count(right);
        } else {
            two_hop.count(right);
            if prompt.held_out { two_hop_held_out } else { two_hop_trained }.count(right);
        }
        by_relation.entry(prompt.relation.name()).or_default()[usize::from(prompt.held_out)].count(right);
    }
    Ok(result)
}

/// The most likely next word after each prompt under `plan`, which asks for logits.
///
/// # Errors
/// When the forward pass fails, or the model has another vocabulary.
pub fn most_likely(model: &Model, vocabulary: &Vocabulary, prompts: &[Prompt], plan: &HookPlan) -> Result<Vec<String>> {
    if model.config().vocab_size != vocabulary.len() {
        return Err(Error::Mismatch {
            what: "model and world",
            left: format!("a vocabulary of {}", model.config().vocab_size),
            right: format!("{} words", vocabulary.len()),
            remedy: "ask the built-in model, and the world of the seed that it was trained on".into(),
        });
    }
    let mut by_length: BTreeMap<usize, Vec<(usize, Vec<u32>)>> = BTreeMap::new();
    for (i, prompt) in prompts.iter().enumerate() {
        let mut tokens: Vec<u32> = vocabulary.id(BEGIN).into_iter().collect();
        tokens.extend(vocabulary.encode(&prompt.text));
        by_length.entry(tokens.len()).or_default().push((i, tokens));
    }
    let mut answers = vec![String::new(); prompts.len()];
    for group in by_length.values() {
        for batch in group.chunks(BATCH) {
            let rows: Vec<&[u32]> = batch.iter().map(|(_, tokens)| tokens.as_slice()).collect();
            let run = model.forward(&model.tokens(&rows)?, plan)?;
            for (&(i, _), token) in batch.iter().zip(last_argmax(run.logits()?)?) {
                answers[i].clone_from(&vocabulary.words()[token as usize]);
            }
        }
    }
    Ok(answers)
}

/// The most likely token after the last position of each row of `logits` `[b, s, v]`.
fn last_argmax(logits: &Tensor) -> Result<Vec<u32>> {
    let last = logits.narrow(1, logits.dim(1)? - 1, 1)?.squeeze(1)?;
    Ok(last.argmax(D::Minus1)?.to_vec1()?)
}

impl Relation {
    /// The relation of this name in reports.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|relation| relation.name() == name)
    }
}
