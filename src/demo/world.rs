//! The built-in world: a closed set of facts, each known to the generator and stated in plain sentences.
//!
//! Countries, cities, languages and currencies are real; people, their jobs, towns, animals and friends are drawn
//! by the seed. A tenth of the two-hop facts is held out: no document states them, and no document even names both
//! their subject and their object, so a model that answers them has composed them from one-hop facts.

use std::collections::{BTreeMap, BTreeSet};

use rand::seq::SliceRandom;

use crate::base::rng::stream;

use super::entity::{Entity, EntityId, Kind, Lang};
use super::grammar::{Roles, capitalise, render, templates};
use super::relation::Relation;

mod builder;

use builder::{Builder, compose};

/// People in the world.
const PEOPLE: usize = 48;

/// One fact in a held-out set for every `HELD_OUT_EVERY` two-hop facts of a relation.
const HELD_OUT_EVERY: usize = 10;

/// A statement that the world makes true.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fact {
    /// What it says.
    pub relation: Relation,
    /// Of what.
    pub subject: EntityId,
    /// The second number of a sum.
    pub addend: Option<EntityId>,
    /// The answer.
    pub object: EntityId,
    /// Whether training text never states it.
    pub held_out: bool,
}

/// A question with a one-token answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// The beginning of a sentence.
    pub text: String,
    /// The one word that completes it.
    pub answer: String,
    /// What is asked.
    pub relation: Relation,
    /// Language of the sentence.
    pub lang: Lang,
    /// Whether training text never states the fact.
    pub held_out: bool,
    /// Names of the concepts that the subject expresses, such as `city:Marseille` and `country:France`.
    pub concepts: Vec<String>,
    /// Index of the fact in [`World::facts`].
    pub fact: usize,
}

/// The entities and facts of one seed.
#[derive(Debug, Clone)]
pub struct World {
    pub(super) seed: u64,
    entities: Vec<Entity>,
    facts: Vec<Fact>,
    by_relation: BTreeMap<Relation, Vec<usize>>,
    by_subject: BTreeMap<EntityId, Vec<usize>>,
}

impl World {
    /// The seed of the world that the built-in model was trained on.
    pub const BUILT_IN_SEED: u64 = 1;

    /// The world of `seed`. The same seed gives the same world on every platform.
    pub fn new(seed: u64) -> Self {
        let mut builder = Builder::default();
        builder.geography();
        builder.words();
        builder.people(seed);
        builder.sums();
        let Builder { entities, mut facts, .. } = builder;
        compose(&mut facts);
        let mut world = Self { seed, entities, facts, by_relation: BTreeMap::new(), by_subject: BTreeMap::new() };
        world.hold_out();
        for (i, fact) in world.facts.iter().enumerate() {
            world.by_relation.entry(fact.relation).or_default().push(i);
            world.by_subject.entry(fact.subject).or_default().push(i);
        }
        world
    }

    /// Every entity; an [`EntityId`] is an index into this list.
    pub fn entities(&self) -> &[Entity] {
        &self.entities
    }

    /// Every fact, one-hop facts first.
    pub fn facts(&self) -> &[Fact] {
        &self.facts
    }

    /// Indices of a relation's facts.
    pub fn facts_of(&self, relation: Relation) -> &[usize] {
        self.by_relation.get(&relation).map_or(&[], Vec::as_slice)
    }

    /// Indices of the facts about an entity.
    pub fn facts_about(&self, subject: EntityId) -> &[usize] {
        self.by_subject.get(&subject).map_or(&[], Vec::as_slice)
    }

    /// The object of a one-hop or two-hop relation.
    pub fn object(&self, relation: Relation, subject: EntityId) -> Option<EntityId> {
        self.facts_about(subject).iter().map(|&i| &self.facts[i]).find(|f| f.relation == relation).map(|f| f.object)
    }

    /// The entity of a kind with this English name.
    pub fn find(&self, kind: Kind, english: &str) -> Option<EntityId> {
        self.entities.iter().position(|e| e.kind == kind && e.names[0] == english)
    }

    /// One prompt for every one-hop fact and language that can state it.
    pub fn single_hop_prompts(&self) -> Vec<Prompt> {
        self.prompts(1)
    }

    /// One prompt for every two-hop fact and language that can state it.
    pub fn two_hop_prompts(&self) -> Vec<Prompt> {
        self.prompts(2)
    }

    fn prompts(&self, hops: usize) -> Vec<Prompt> {
        let chosen = self.facts.iter().enumerate().filter(|(_, fact)| fact.relation.hop_count() == hops);
        chosen.flat_map(|(i, _)| Lang::ALL.into_iter().filter_map(move |lang| self.prompt(i, lang))).collect()
    }

    /// The prompt of one fact in one language, when that language states such facts.
    pub fn prompt(&self, fact: usize, lang: Lang) -> Option<Prompt> {
        let Fact { relation, subject, held_out, .. } = *self.facts.get(fact)?;
        let template = templates(relation, lang).first()?;
        let sentence = self.state(fact, template, lang);
        let answer = self.answer(fact, lang).to_owned();
        let text = capitalise(sentence.strip_suffix(&answer)?).trim_end().to_owned();
        Some(Prompt { text, answer, relation, lang, held_out, concepts: self.subject_concepts(subject), fact })
    }

    /// The word that completes the prompt of a fact.
    pub fn answer(&self, fact: usize, lang: Lang) -> &str {
        let Fact { relation, object, .. } = self.facts[fact];
        self.entities[object].name(relation.object_lang(lang))
    }

    /// Fills a template with a fact, without capital letter and full stop.
    pub(super) fn state(&self, fact: usize, template: &str, lang: Lang) -> String {
        self.state_marked(fact, template, lang, false)
    }

    /// As [`World::state`], with the object marked if `mark`.
    pub(super) fn state_marked(&self, fact: usize, template: &str, lang: Lang, mark: bool) -> String {
        let Fact { relation, subject, addend, object, .. } = self.facts[fact];
        let roles = Roles {
            subject: &self.entities[subject],
            addend: addend.map(|id| &self.entities[id]),
            object: &self.entities[object],
            object_lang: relation.object_lang(lang),
            mark,
        };
        render(template, lang, roles)
    }

    /// The country an entity belongs to: itself, or that of a city.
    pub fn country_of(&self, id: EntityId) -> Option<EntityId> {
        match self.entities[id].kind {
            Kind::Country => Some(id),
            Kind::City => self.object(Relation::CityCountry, id),
            _ => None,
        }
    }

    /// `kind:Name` of an entity.
    pub fn concept_name(&self, id: EntityId) -> String {
        let Entity { kind, names, .. } = &self.entities[id];
        format!("{}:{}", kind.name(), names[0])
    }

    /// The answer that `prompt` would have if its subject belonged to `country`: for questions about countries,
    /// and about cities and capitals by way of their country. `None` for other questions.
    pub fn counterfactual(&self, prompt: &Prompt, country: EntityId) -> Option<&str> {
        let about_countries = [Relation::Capital, Relation::Language, Relation::Currency, Relation::Continent];
        let relation = prompt.relation.hops().last().copied().unwrap_or(prompt.relation);
        let object = match relation {
            Relation::CityCountry | Relation::CapitalOf => Some(country),
            _ if about_countries.contains(&relation) => self.object(relation, country),
            _ => None,
        }?;
        Some(self.entities[object].name(prompt.lang))
    }

    fn subject_concepts(&self, subject: EntityId) -> Vec<String> {
        let mut names = vec![self.concept_name(subject)];
        if self.entities[subject].kind == Kind::City {
            names.extend(self.country_of(subject).map(|country| self.concept_name(country)));
        }
        names
    }

    /// Marks every tenth two-hop fact of each relation, drawn by the seed: at most one a country for city
    /// relations, and none whose subject and object are also joined by another fact.
    fn hold_out(&mut self) {
        let mut pairs = BTreeMap::new();
        for fact in &self.facts {
            *pairs.entry((fact.subject, fact.object)).or_insert(0) += 1;
        }
        for &relation in Relation::ALL.iter().filter(|r| r.hop_count() == 2) {
            let mut candidates: Vec<usize> =
                (0..self.facts.len()).filter(|&i| self.facts[i].relation == relation).collect();
            let wanted = candidates.len().div_ceil(HELD_OUT_EVERY);
            candidates.shuffle(&mut stream(self.seed, &format!("demo/held-out/{}", relation.name())));
            let mut groups = BTreeSet::new();
            let mut left = wanted;
            for i in candidates {
                let Fact { subject, object, .. } = self.facts[i];
                let unique = matches!(relation, Relation::OppositeFrench | Relation::OppositeSpanish)
                    || pairs.get(&(subject, object)) == Some(&1);
                let group = if relation == Relation::CityCapital { object } else { subject };
                if left > 0 && unique && groups.insert(group) {
                    self.facts[i].held_out = true;
                    left -= 1;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_makes_one_world() {
        let (first, again, other) = (World::new(1), World::new(1), World::new(2));
        assert_eq!((first.entities(), first.facts()), (again.entities(), again.facts()));
        assert_ne!(first.facts(), other.facts());
    }

    #[test]
    fn two_hop_facts_follow_from_one_hop_facts() {
        let world = World::new(1);
        let mut checked = 0;
        for fact in world.facts() {
            let [first, second] = fact.relation.hops() else { continue };
            let middle = world.object(*first, fact.subject).unwrap();
            assert_eq!(world.object(*second, middle), Some(fact.object), "{fact:?}");
            checked += 1;
        }
        assert!(checked > 1000, "{checked}");
    }

    #[test]
    fn a_tenth_of_every_two_hop_relation_is_held_out_and_nothing_else() {
        let world = World::new(World::BUILT_IN_SEED);
        for &relation in Relation::ALL {
            let facts = world.facts_of(relation);
            let held_out = facts.iter().filter(|&&i| world.facts()[i].held_out).count();
            let wanted = if relation.hop_count() == 2 { facts.len().div_ceil(10) } else { 0 };
            assert_eq!(held_out, wanted, "{}", relation.name());
        }
    }

    #[test]
    fn every_prompt_has_one_answer_of_one_word() {
        let world = World::new(World::BUILT_IN_SEED);
        let (single, two) = (world.single_hop_prompts(), world.two_hop_prompts());
        assert!(single.len() > 2000 && two.len() > 2000, "{} {}", single.len(), two.len());
        let mut answers = BTreeMap::new();
        for prompt in single.iter().chain(&two) {
            assert_eq!(crate::demo::tokenizer::words(&prompt.answer).count(), 1, "{prompt:?}");
            let known = answers.entry(&prompt.text).or_insert(&prompt.answer);
            assert_eq!(*known, &prompt.answer, "{}", prompt.text);
        }
    }

    #[test]
    fn prompts_read_as_people_write() {
        let world = World::new(1);
        let texts: BTreeMap<String, String> = world
            .single_hop_prompts()
            .into_iter()
            .chain(world.two_hop_prompts())
            .map(|prompt| (prompt.text, prompt.answer))
            .collect();
        for (text, answer) in [
            ("The capital of France is", "Paris"),
            ("La capitale de l'Italie est", "Rome"),
            ("La capital de España es", "Madrid"),
            ("Marseille se trouve en", "France"),
            ("The capital of the country where Marseille lies is", "Paris"),
            ("The French word for the opposite of hot is", "froid"),
            ("3 plus 4 is", "7"),
        ] {
            assert_eq!(texts.get(text).map(String::as_str), Some(answer), "{text}");
        }
    }

    #[test]
    fn counterfactual_answers_follow_another_country() {
        let world = World::new(1);
        let japan = world.find(Kind::Country, "Japan").unwrap();
        let answer = |text: &str| {
            let mut prompts = world.single_hop_prompts();
            prompts.extend(world.two_hop_prompts());
            let prompt = prompts.into_iter().find(|prompt| prompt.text == text).unwrap();
            world.counterfactual(&prompt, japan).map(str::to_owned)
        };
        assert_eq!(answer("The capital of France is").as_deref(), Some("Tokyo"));
        assert_eq!(answer("La langue du pays où se trouve Lyon se nomme").as_deref(), Some("japonais"));
        assert_eq!(answer("The opposite of hot is"), None);
    }
}
