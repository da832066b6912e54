//! The score card of `demo`: what no model of unknown contents allows to measure.
//!
//! Features are matched to concepts on one text and judged on another. Steering is judged by questions whose answer
//! the world knows also for another country: its feature is set to the largest activation seen, times a strength, and
//! that of the true country to zero, from the word that names the country to the end of the question: there the sentence
//! is about it.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::DType;
use serde::Serialize;

use crate::analysis::{FeatureEdit, FeatureOp, FeatureRewrite, Placement};
use crate::base::{Progress, Result, Unit, rng};
use crate::dictionary::{Dictionary, SparseCodes};
use crate::model::{EditOp, HookPlan, Model, Positions};

use super::carry::{Carried, carried};
use super::concepts::{Labeller, Labels};
use super::quiz::{Quiz, most_likely, quiz};
use super::score::{Match, match_concepts};
use super::tokenizer::{BEGIN, Vocabulary, words};
use super::turn::{CountrySwap, Turns, country_trials, turn_answers};
use super::world::{Prompt, World};

/// A concept counts as found when its feature's F1 on unseen text is at least this.
pub const FOUND: f64 = 0.9;
/// Concepts rarer than this in either text are left out: their F1 would be noise.
const MIN_ACTIVE: u64 = 20;
/// Length of the sequences that texts are cut into.
const CONTEXT: usize = 64;
/// Pairs of questions that are patched into each other.
const PATCHED_PAIRS: usize = 24;
/// Questions asked for each country that answers are turned to.
const TRIALS: usize = 6;

/// How much to measure, and how hard to steer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct CardSettings {
    /// Tokens of each of the two texts.
    pub tokens: usize,
    /// Clamped features are set to this multiple of their largest activation.
    pub strength: f32,
    /// Seed of texts and trials.
    pub seed: u64,
}

impl Default for CardSettings {
    fn default() -> Self {
        Self { tokens: 40_000, strength: 1.0, seed: 1 }
    }
}

/// A concept and the feature that fits it best.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Found {
    /// Such as `country:France`.
    pub concept: String,
    /// The feature.
    pub feature: u32,
    /// On text that had no part in choosing the feature.
    pub f1: f64,
    /// The feature's largest activation.
    pub max_activation: f32,
}

/// A question whose answer turned.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Turned {
    /// The question.
    pub prompt: String,
    /// The answer it turned to.
    pub answer: String,
    /// What was done to the features.
    pub edits: Vec<FeatureEdit>,
    /// The positions at which it was done.
    pub at: Vec<usize>,
}

/// Concepts of one family.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Family {
    /// Concepts frequent enough to judge.
    pub concepts: usize,
    /// Those with a feature of F1 at least [`FOUND`].
    pub found: usize,
    /// Mean of the best F1.
    pub mean_f1: f64,
}

/// What `demo` measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ScoreCard {
    /// How well the model knows its world.
    pub quiz: Quiz,
    /// Concepts by family.
    pub families: BTreeMap<String, Family>,
    /// Every judged concept, best first.
    pub concepts: Vec<Found>,
    /// Answers turned by setting the feature of another country and zeroing that of the true one.
    pub clamp_and_ablate: Turns,
    /// Answers turned by setting the feature of another country alone.
    pub clamp_alone: Turns,
    /// Where questions about capitals carry their country.
    pub carried: Carried,
    /// One of the answers that turned, when any did.
    pub turned: Option<Turned>,
    /// The settings.
    pub settings: CardSettings,
}

impl ScoreCard {
    /// All families together.
    pub fn all(&self) -> Family {
        let concepts = self.concepts.len();
        let found = self.concepts.iter().filter(|c| c.f1 >= FOUND).count();
        let sum: f64 = self.concepts.iter().map(|c| c.f1).sum();
        Family { concepts, found, mean_f1: sum / concepts.max(1) as f64 }
    }

    /// Measures everything.
    ///
    /// # Errors
    /// As [`Placement::of`] and the forward pass.
    pub fn measure(
        model: &Model,
        dictionary: &Arc<Dictionary>,
        settings: CardSettings,
        progress: &dyn Progress,
    ) -> Result<Self> {
        let world = World::new(World::BUILT_IN_SEED);
        let vocabulary = Vocabulary::new(&world);
        let labeller = Labeller::new(&world, &vocabulary);
        progress.begin("score card", 4, Unit::Items);
        let quiz = quiz(model, &world, &vocabulary)?;
        progress.advance(1);
        let bench = Bench { model, dictionary, world: &world, vocabulary: &vocabulary, labeller: &labeller, settings };
        let matches = bench.matches()?;
        progress.advance(1);
        let concepts = bench.judge(&matches)?;
        progress.advance(1);
        let (clamp_and_ablate, turned) = bench.turns(&matches, true)?;
        let (clamp_alone, _) = bench.turns(&matches, false)?;
        let carried = carried(model, &world, &vocabulary, PATCHED_PAIRS, settings.seed)?;
        progress.end();
        let mut families: BTreeMap<String, Family> = BTreeMap::new();
        for found in &concepts {
            let family = families.entry(found.concept.split(':').next().unwrap_or_default().to_owned()).or_default();
            family.concepts += 1;
            family.found += usize::from(found.f1 >= FOUND);
            family.mean_f1 += found.f1;
        }
        for family in families.values_mut() {
            family.mean_f1 /= family.concepts as f64;
        }
        Ok(Self { quiz, families, concepts, clamp_and_ablate, clamp_alone, carried, turned, settings })
    }
}

/// What all measurements share.
struct Bench<'a> {
    model: &'a Model,
    dictionary: &'a Arc<Dictionary>,
    world: &'a World,
    vocabulary: &'a Vocabulary,
    labeller: &'a Labeller,
    settings: CardSettings,
}

impl Bench<'_> {
    /// The best feature of each concept.
    fn matches(&self) -> Result<Vec<Match>> {
        let (codes, labels) = self.encode(rng_seed(self.settings.seed, "choose"))?;
        Ok(match_concepts(&codes, &labels, self.labeller.concepts().len(), MIN_ACTIVE))
    }

    /// Judges the choice on another text, best first.
    fn judge(&self, matches: &[Match]) -> Result<Vec<Found>> {
        let (codes, labels) = self.encode(rng_seed(self.settings.seed, "judge"))?;
        let mut found: Vec<Found> = matches
            .iter()
            .filter_map(|m| {
                let agreement = m.measure(&codes, &labels);
                (agreement.active >= MIN_ACTIVE).then(|| Found {
                    concept: self.labeller.concepts()[m.concept as usize].name.clone(),
                    feature: m.feature,
                    f1: agreement.f1(),
                    max_activation: m.max_activation,
                })
            })
            .collect();
        found.sort_by(|a, b| b.f1.total_cmp(&a.f1).then_with(|| a.concept.cmp(&b.concept)));
        Ok(found)
    }

    /// Codes and labels of all positions but the first of each sequence.
    fn encode(&self, seed: u64) -> Result<(SparseCodes, Labels)> {
        let placement = Placement::of(self.dictionary, self.model.config())?;
        let plan = HookPlan::new().capture(placement.point);
        let begin = self.vocabulary.id(BEGIN);
        let mut tokens: Vec<u32> = Vec::new();
        for document in self.world.documents(seed) {
            if tokens.len() >= self.settings.tokens {
                break;
            }
            tokens.extend(begin);
            tokens.extend(self.vocabulary.encode(&document));
        }
        let mut codes = SparseCodes::new(self.dictionary.d_sae());
        let mut labels = Labels::default();
        for batch in tokens.chunks_exact(CONTEXT).collect::<Vec<_>>().chunks(64) {
            let run = self.model.forward(&self.model.tokens(batch)?, &plan)?;
            let rows = run.captured(placement.point)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
            let encoded = self.dictionary.encode(&rows)?;
            for row in 0..encoded.rows() {
                let (features, values) = encoded.row(row);
                codes.push_row(features, values);
            }
            for sequence in batch {
                self.labeller.label_into(sequence, &mut labels);
            }
        }
        Ok((codes, labels))
    }

    /// Asks questions about countries with another country's feature on, and with `ablate_own` the own one off.
    fn turns(&self, matches: &[Match], ablate_own: bool) -> Result<(Turns, Option<Turned>)> {
        let trials = country_trials(self.world, self.labeller, matches, TRIALS, self.settings.seed);
        let placement = Placement::of(self.dictionary, self.model.config())?;
        let answer = |prompt: &Prompt, swap: Option<&CountrySwap>| {
            let mut plan = HookPlan::new().with_logits();
            if let Some(swap) = swap {
                let edits = self.edits(swap, ablate_own);
                let rewrite = FeatureRewrite::new(self.dictionary, &edits, self.model.device())?;
                let at = Positions::List(self.about_at(prompt));
                plan = plan.edit(placement.edit(EditOp::Rewrite(Arc::new(rewrite))).positions(at));
            }
            let prompts = std::slice::from_ref(prompt);
            Ok(most_likely(self.model, self.vocabulary, prompts, &plan)?.pop().unwrap_or_default())
        };
        let mut all = Turns::default();
        let mut example = None;
        for trial in &trials {
            let Turns { tried, changed, turned } = turn_answers(std::slice::from_ref(trial), answer)?;
            all.tried += tried;
            all.changed += changed;
            all.turned += turned;
            if turned > 0 && example.is_none() {
                let edits = self.edits(&trial.steer, ablate_own);
                let at = self.about_at(&trial.prompt);
                example = Some(Turned { prompt: trial.prompt.text.clone(), answer: trial.expected.clone(), edits, at });
            }
        }
        Ok((all, example))
    }

    /// The positions, after a beginning-of-sequence token, from the word that names what the prompt asks about.
    fn about_at(&self, prompt: &Prompt) -> Vec<usize> {
        let subject = self.world.facts().get(prompt.fact).and_then(|fact| self.world.entities().get(fact.subject));
        let named = |word: &str| subject.is_some_and(|subject| subject.names.iter().any(|name| name == word));
        words(&prompt.text).enumerate().skip_while(|(_, word)| !named(word)).map(|(i, _)| i + 1).collect()
    }

    fn edits(&self, CountrySwap { to, from }: &CountrySwap, ablate_own: bool) -> Vec<FeatureEdit> {
        let clamp = FeatureOp::Clamp(to.max_activation * self.settings.strength);
        let own = from.filter(|own| ablate_own && own.feature != to.feature);
        let ablate = own.map(|own| FeatureEdit { feature: own.feature, op: FeatureOp::Ablate });
        std::iter::once(FeatureEdit { feature: to.feature, op: clamp }).chain(ablate).collect()
    }
}

/// A seed of its own for each use of chance.
fn rng_seed(seed: u64, name: &str) -> u64 {
    use rand::Rng;
    rng::stream(seed, name).random()
}
