//! Whether the built-in model composes: does the way to "the capital of the country where Marseille lies" go through
//! France?
//!
//! Two-hop questions are traced with a transcoder set. Where the model composes, features that stand for the thing in
//! the middle ([`Stands`]) are nodes of the graph, the answer turns when they are taken away, and becomes another one
//! when those of another question are put in their place. Where it has learnt the pair by heart, there is no such node.

use std::sync::Arc;

use rand::seq::SliceRandom;
use serde::Serialize;

use crate::analysis::graph::{About, FrozenRun, Graph, GraphScores, GraphSettings, Hold, TargetChoice, trace};
use crate::analysis::stop_if_cancelled;
use crate::base::rng::stream;
use crate::base::{Progress, Result, Silent};
use crate::dictionary::TranscoderSet;
use crate::model::Model;

use super::entity::{EntityId, Lang};
use super::relation::Relation;
use super::stands::Stands;
use super::tokenizer::{BEGIN, Vocabulary};
use super::world::{Prompt, World};

/// A graph goes through the thing in the middle when at least this share of what reaches the answer does.
pub const THROUGH: f64 = 0.05;
/// Features that are put in another's place get this multiple of their activation: what the graph does not show of the
/// one that was there still speaks for it.
pub const SWAP_STRENGTH: f32 = 2.0;
/// Chains whose middle is a country.
const THROUGH_COUNTRY: [Relation; 4] =
    [Relation::CityCapital, Relation::CityCurrency, Relation::CityLanguage, Relation::CityContinent];
/// Chains whose middle is a person: pairs that were left out of the training text are answered wrongly.
const THROUGH_FRIEND: [Relation; 2] = [Relation::FriendJob, Relation::FriendTown];

/// How much to trace.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ComposeSettings {
    /// Questions of each group.
    pub questions: usize,
    /// Tokens of text that say what features stand for.
    pub tokens: usize,
    /// Seed of questions and text.
    pub seed: u64,
}

impl Default for ComposeSettings {
    fn default() -> Self {
        Self { questions: 24, tokens: 40_000, seed: 1 }
    }
}

/// What came of one group of questions, all answered rightly.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Composed {
    /// Questions traced.
    pub traced: usize,
    /// Those whose graph goes through the thing in the middle.
    pub through: usize,
    /// Mean share of what reaches the answer that comes through it, over all traced.
    pub mean_share: f64,
    /// Of those that go through it, answers that turn when its features are taken away.
    pub turned_without: usize,
    /// The same for as many other features of the same places and like activations.
    pub turned_control: usize,
    /// Questions in which the features of another question's middle were put in its place.
    pub swapped: usize,
    /// Of these, answers that became the other question's.
    pub followed: usize,
    /// Mean scores of the graphs before pruning.
    pub scores: GraphScores,
    /// Mean number of features that have a row in the graphs.
    pub features: f64,
}

/// Both groups, traced with one set.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Compositions {
    /// Features that stand for a thing of the world.
    pub standing: usize,
    /// City to country to what is asked.
    pub country: Composed,
    /// Person to friend to what is asked.
    pub friend: Composed,
}

/// Traces two-hop questions with `set`.
///
/// # Errors
/// When the set belongs to another model, and as [`trace`] and [`FrozenRun::intervene`]; `Interrupted`.
pub fn compositions(
    model: &Model,
    set: &Arc<TranscoderSet>,
    world: &World,
    vocabulary: &Vocabulary,
    settings: ComposeSettings,
    progress: &dyn Progress,
) -> Result<Compositions> {
    let stands = Stands::measure(model, set, world, vocabulary, (settings.tokens, settings.seed), progress)?;
    let tracer = Tracer { model, set, world, vocabulary, stands: &stands, settings, progress };
    Ok(Compositions {
        standing: stands.len(),
        country: tracer.group(&THROUGH_COUNTRY)?,
        friend: tracer.group(&THROUGH_FRIEND)?,
    })
}

struct Tracer<'a> {
    model: &'a Model,
    set: &'a Arc<TranscoderSet>,
    world: &'a World,
    vocabulary: &'a Vocabulary,
    stands: &'a Stands,
    settings: ComposeSettings,
    progress: &'a dyn Progress,
}

/// A traced question.
struct Question<'a> {
    prompt: Prompt,
    answer: u32,
    graph: Graph,
    run: FrozenRun<'a>,
    /// Nodes that stand for the thing in the middle.
    middle: Vec<usize>,
    share: f64,
}

impl<'a> Tracer<'a> {
    fn group(&self, relations: &[Relation]) -> Result<Composed> {
        let mut prompts: Vec<Prompt> = relations
            .iter()
            .flat_map(|&relation| self.world.facts_of(relation))
            .filter_map(|&fact| self.world.prompt(fact, Lang::English))
            .collect();
        prompts.shuffle(&mut stream(self.settings.seed, "demo/compose"));
        let mut questions = Vec::new();
        for prompt in prompts {
            if questions.len() >= self.settings.questions {
                break;
            }
            stop_if_cancelled(self.progress)?;
            let traced = self.question(prompt)?;
            self.progress.advance(traced.is_some().into());
            questions.extend(traced);
        }
        Self::judge(&questions)
    }

    /// Traces a question; `None` when the model answers it wrongly.
    fn question(&self, prompt: Prompt) -> Result<Option<Question<'a>>> {
        let tokens: Vec<u32> =
            self.vocabulary.id(BEGIN).into_iter().chain(self.vocabulary.encode(&prompt.text)).collect();
        let Some(answer) = self.vocabulary.id(&prompt.answer) else { return Ok(None) };
        let run = FrozenRun::new(self.model, self.set, &tokens, 1)?;
        if run.answers(&[], &Hold::Nothing)?.likeliest().0 != answer {
            return Ok(None);
        }
        let text = |token: u32| self.vocabulary.words().get(token as usize).cloned().unwrap_or_default();
        let about = About { prompt: prompt.text.clone(), model: "demo".into(), text: &text };
        let settings = GraphSettings::default();
        let choice = TargetChoice::Tokens(vec![answer]);
        let graph = trace(self.model, self.set, &tokens, &choice, &settings, &about, &Silent)?.graph;
        let middle = match self.middle(&prompt) {
            Some(thing) => graph.features(|layer, feature, _, _| self.stands.of(layer, feature) == Some(thing)),
            None => Vec::new(),
        };
        let share = graph.targets().first().map_or(0.0, |&target| graph.share_through(target, &middle));
        Ok(Some(Question { prompt, answer, graph, run, middle, share }))
    }

    /// The thing in the middle of a two-hop question.
    fn middle(&self, prompt: &Prompt) -> Option<EntityId> {
        let first = *prompt.relation.hops().first()?;
        self.world.object(first, self.world.facts().get(prompt.fact)?.subject)
    }

    fn judge(questions: &[Question<'a>]) -> Result<Composed> {
        let mut found = Composed { traced: questions.len(), ..Composed::default() };
        let n = questions.len().max(1) as f64;
        for (i, question) in questions.iter().enumerate() {
            let Question { graph, run, middle, share, .. } = question;
            found.mean_share += share / n;
            let GraphScores { replacement, completeness } = graph.report.unpruned_scores;
            found.scores.replacement += replacement / n;
            found.scores.completeness += completeness / n;
            found.features += graph.report.selected_features as f64 / n;
            if *share < THROUGH {
                continue;
            }
            found.through += 1;
            let target = graph.targets().first().copied().unwrap_or_default();
            let taken = run.composition(graph, target, middle, &Hold::Nothing)?;
            found.turned_without += usize::from(taken.without.turned());
            found.turned_control += usize::from(taken.control.is_some_and(|control| control.turned()));
            if let Some(other) = Self::partner(questions, i) {
                let changes = graph.swapped(middle, &other.graph, &other.middle, SWAP_STRENGTH);
                found.swapped += 1;
                found.followed += usize::from(run.answers(&changes, &Hold::Nothing)?.likeliest().1 == other.answer);
            }
        }
        Ok(found)
    }

    /// Another question of the same words but for the subject, with another answer, that goes through its middle too.
    fn partner<'q>(questions: &'q [Question<'a>], own: usize) -> Option<&'q Question<'a>> {
        let question = questions.get(own)?;
        let fits = |other: &&Question<'a>| {
            other.prompt.relation == question.prompt.relation
                && other.answer != question.answer
                && other.graph.tokens.len() == question.graph.tokens.len()
                && other.share >= THROUGH
        };
        questions.iter().cycle().skip(own + 1).take(questions.len()).find(fits)
    }
}
