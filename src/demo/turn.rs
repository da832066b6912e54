//! How often turning a concept's feature turns the answer.
//!
//! "The capital of France is" has another answer if the sentence were about Japan, and the world knows which. So a
//! feature that stands for Japan can be put to the test: clamp it, and see whether the model now says Tokyo.

use std::collections::BTreeMap;

use rand::seq::SliceRandom;

use crate::base::Result;
use crate::base::rng::stream;

use super::concepts::Labeller;
use super::entity::{EntityId, Kind, Lang};
use super::relation::Relation;
use super::score::{Match, ratio};
use super::world::{Prompt, World};

/// One attempt to turn an answer by steering.
#[derive(Debug, Clone, PartialEq)]
pub struct Trial<S> {
    /// The question.
    pub prompt: Prompt,
    /// The answer that the steering should bring about ([`super::World::counterfactual`]).
    pub expected: String,
    /// What to do to the model, in the caller's terms.
    pub steer: S,
}

/// What came of the trials.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Turns {
    /// Trials whose unsteered answer was right; only these count.
    pub tried: usize,
    /// Of these, steered answers that differ from the unsteered one.
    pub changed: usize,
    /// Of these, steered answers that are the expected one.
    pub turned: usize,
}

impl Turns {
    /// Fraction of counted trials whose answer became the expected one.
    pub fn turn_rate(&self) -> f64 {
        ratio(self.turned as u64, self.tried as u64)
    }

    /// Fraction of counted trials whose answer became another one.
    pub fn change_rate(&self) -> f64 {
        ratio(self.changed as u64, self.tried as u64)
    }
}

/// Runs every trial. `answer` gives the model's most likely next word, steered or not.
///
/// # Errors
/// The first error of `answer`.
pub fn turn_answers<S>(
    trials: &[Trial<S>],
    mut answer: impl FnMut(&Prompt, Option<&S>) -> Result<String>,
) -> Result<Turns> {
    let mut turns = Turns::default();
    for Trial { prompt, expected, steer } in trials {
        let plain = answer(prompt, None)?;
        if plain != prompt.answer || plain == *expected {
            continue;
        }
        let steered = answer(prompt, Some(steer))?;
        turns.tried += 1;
        turns.changed += usize::from(steered != plain);
        turns.turned += usize::from(steered == *expected);
    }
    Ok(turns)
}

/// Features that move a sentence from one country to another.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CountrySwap {
    /// The feature of the country that the answer should be about: clamp it to [`Match::max_activation`] or a multiple.
    pub to: Match,
    /// The feature of the country that the prompt is about, when one was found: ablate it.
    pub from: Option<Match>,
}

/// English one-hop questions about countries, each with the features that should turn its answer to that of another
/// country. `matches` are those of `about:…` or `country:…` concepts (others are passed over); each country whose
/// feature was found is the target of up to `per_country` trials, drawn by `seed`.
pub fn country_trials(
    world: &World,
    labeller: &Labeller,
    matches: &[Match],
    per_country: usize,
    seed: u64,
) -> Vec<Trial<CountrySwap>> {
    let features = country_features(world, labeller, matches);
    let relations = [Relation::Capital, Relation::Language, Relation::Currency, Relation::Continent];
    let facts = relations.iter().flat_map(|&relation| world.facts_of(relation));
    let mut prompts: Vec<Prompt> = facts.filter_map(|&fact| world.prompt(fact, Lang::English)).collect();
    prompts.shuffle(&mut stream(seed, "demo/country-trials"));
    let mut trials = Vec::new();
    let mut offset = 0;
    for (&country, &to) in &features {
        // Every target begins where the last one stopped, so that all questions get their turn.
        let turned = prompts.iter().cycle().skip(offset).take(prompts.len()).enumerate().filter_map(|(i, prompt)| {
            let expected = world.counterfactual(prompt, country)?;
            (expected != prompt.answer).then(|| (i, prompt, expected.to_owned()))
        });
        let mut last = 0;
        for (i, prompt, expected) in turned.take(per_country) {
            last = i + 1;
            let subject = world.facts()[prompt.fact].subject;
            let steer = CountrySwap { to, from: features.get(&subject).copied() };
            trials.push(Trial { prompt: prompt.clone(), expected, steer });
        }
        offset = (offset + last) % prompts.len().max(1);
    }
    trials
}

/// For each country the feature of sentences about it; where none was found, that of its names.
fn country_features(world: &World, labeller: &Labeller, matches: &[Match]) -> BTreeMap<EntityId, Match> {
    let of = |family: &str| {
        let found = matches.iter().filter_map(|found| {
            let name = &labeller.concepts()[found.concept as usize].name;
            let country = name.strip_prefix(family)?.strip_prefix(':')?;
            Some((world.find(Kind::Country, country)?, *found))
        });
        found.collect::<BTreeMap<EntityId, Match>>()
    };
    let mut features = of("country");
    features.extend(of("about"));
    features
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::Vocabulary;
    use crate::demo::score::Agreement;

    #[test]
    fn turns_count_only_answers_that_were_right_before() {
        let world = World::new(3);
        let prompts = world.single_hop_prompts();
        let trials: Vec<Trial<bool>> = prompts[..4]
            .iter()
            .enumerate()
            .map(|(i, prompt)| Trial { prompt: prompt.clone(), expected: "other".into(), steer: i % 2 == 0 })
            .collect();
        let first = prompts[0].clone();
        let turns = turn_answers(&trials, |prompt, steer| {
            Ok(match steer {
                None if *prompt == first => "wrong".into(),
                Some(true) => "other".into(),
                _ => prompt.answer.clone(),
            })
        })
        .unwrap();
        assert_eq!(turns, Turns { tried: 3, changed: 1, turned: 1 });
    }

    #[test]
    fn country_trials_expect_what_the_other_country_would_answer() {
        let world = World::new(3);
        let labeller = Labeller::new(&world, &Vocabulary::new(&world));
        let found = |name: &str, both| Match {
            concept: labeller.find(name).unwrap(),
            feature: both as u32,
            threshold: 0.0,
            max_activation: 1.0,
            mean_activation: 1.0,
            agreement: Agreement { both, fired: 10, active: 10 },
        };
        let matches =
            [found("about:Japan", 4), found("country:Japan", 9), found("about:Peru", 5), found("class:city", 10)];
        let trials = country_trials(&world, &labeller, &matches, 20, 7);
        assert_eq!(trials.len(), 40);
        for trial in &trials {
            assert_ne!(trial.expected, trial.prompt.answer);
            let country = if trial.steer.to.feature == 4 { "Japan" } else { "Peru" };
            assert!(!trial.prompt.text.contains(country), "{}", trial.prompt.text);
            let known = ["Tokyo", "Japanese", "yen", "Asia", "Lima", "Spanish", "sol", "America"];
            assert!(known.contains(&trial.expected.as_str()), "{}", trial.expected);
        }
        assert!(trials.iter().any(|t| t.expected == "Tokyo") && trials.iter().any(|t| t.expected == "Lima"));
    }
}
