//! Which thing of the world a transcoder's feature stands for.
//!
//! A feature stands for a country when most of its activation falls where the sentence has named that country or a city
//! in it, and
//!
//! - no single word accounts for nearly all of that: a feature of the word "Marseille" fires in sentences about France
//!   only, and stands for Marseille. (A person or an animal has its own names alone, so that this is left out for them.)
//! - no single thing comes next nearly always: a feature that fires where "Paris" follows stands for the answer, and not
//!   for the country that it was found by.

use std::collections::{BTreeMap, HashMap};

use candle_core::DType;

use crate::analysis::stop_if_cancelled;
use crate::base::{Progress, Result};
use crate::dictionary::TranscoderSet;
use crate::model::{HookPlan, HookPoint, Model};

use super::entity::{EntityId, Kind};
use super::tokenizer::{BEGIN, Vocabulary};
use super::world::World;

/// The least share of a feature's activation in sentences about the thing.
const SHARE: f64 = 0.5;
/// The largest share of that which one word may have, for things of several words.
const ONE_WORD: f64 = 0.8;
/// The largest share of it that may lie where one thing is named next.
const ONE_ANSWER: f64 = 0.8;
/// Positions below which a feature's activation says nothing.
const LEAST_FIRINGS: u32 = 5;
/// Length of the sequences that the text is cut into, and sequences run at once.
const CONTEXT: usize = 64;
const BATCH: usize = 32;

/// Features by what they stand for.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stands {
    by_feature: BTreeMap<(usize, u32), EntityId>,
}

impl Stands {
    /// What the features of `set` stand for, by about `tokens` tokens of text drawn by `seed`.
    ///
    /// # Errors
    /// When the set belongs to another model, and as the forward pass; `Interrupted`.
    pub fn measure(
        model: &Model,
        set: &TranscoderSet,
        world: &World,
        vocabulary: &Vocabulary,
        (tokens, seed): (usize, u64),
        progress: &dyn Progress,
    ) -> Result<Self> {
        let config = model.config();
        set.check_model(config)?;
        let triggers = Triggers::new(world, vocabulary);
        let input = |layer| HookPoint::block(layer, set.config().input);
        let plan = (0..config.n_layers).map(input).fold(HookPlan::new(), HookPlan::capture);
        let text = text(world, vocabulary, tokens, seed);
        let mut masses: HashMap<(usize, u32), Mass> = HashMap::new();
        for batch in text.chunks_exact(CONTEXT).collect::<Vec<_>>().chunks(BATCH) {
            stop_if_cancelled(progress)?;
            let run = model.forward(&model.tokens(batch)?, &plan)?;
            let places: Vec<Place> = batch.iter().flat_map(|sequence| triggers.read(sequence)).collect();
            for layer in 0..config.n_layers {
                let rows = run.captured(input(layer))?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
                let codes = set.encode(layer, &rows)?;
                for (row, place) in places.iter().enumerate().take(codes.rows()) {
                    let (features, values) = codes.row(row);
                    for (&feature, &value) in features.iter().zip(values) {
                        masses.entry((layer, feature)).or_default().add(f64::from(value), place);
                    }
                }
            }
        }
        let stands = |(feature, mass): (&(usize, u32), &Mass)| Some((*feature, mass.stands_for(world)?));
        Ok(Self { by_feature: masses.iter().filter_map(stands).collect() })
    }

    /// What a feature of a layer stands for.
    pub fn of(&self, layer: usize, feature: u32) -> Option<EntityId> {
        self.by_feature.get(&(layer, feature)).copied()
    }

    /// Features that stand for something.
    pub fn len(&self) -> usize {
        self.by_feature.len()
    }

    /// Whether none does.
    pub fn is_empty(&self) -> bool {
        self.by_feature.is_empty()
    }
}

fn text(world: &World, vocabulary: &Vocabulary, tokens: usize, seed: u64) -> Vec<u32> {
    let mut text: Vec<u32> = Vec::new();
    for document in world.documents(seed) {
        if text.len() >= tokens {
            break;
        }
        text.extend(vocabulary.id(BEGIN));
        text.extend(vocabulary.encode(&document));
    }
    text
}

/// A position of a text.
#[derive(Debug, Clone, Default)]
struct Place {
    /// What the sentence has named so far: for each kind the last thing, and the word that named it.
    topics: Vec<(EntityId, u32)>,
    /// What the next word names.
    next: Vec<EntityId>,
}

/// Which things each word names or implies.
struct Triggers {
    /// Countries also by what lies in them.
    of: Vec<Vec<EntityId>>,
    named: Vec<Vec<EntityId>>,
    ends: Vec<bool>,
    kinds: Vec<Kind>,
}

impl Triggers {
    fn new(world: &World, vocabulary: &Vocabulary) -> Self {
        let mut of = vec![Vec::new(); vocabulary.len()];
        let mut named = of.clone();
        for (id, entity) in world.entities().iter().enumerate() {
            let meant = match entity.kind {
                Kind::Person | Kind::Animal | Kind::Adjective => Some(id),
                _ => world.country_of(id),
            };
            for token in entity.names.iter().filter_map(|name| vocabulary.id(name)) {
                of[token as usize].extend(meant);
                if !named[token as usize].contains(&id) {
                    named[token as usize].push(id);
                }
            }
        }
        for things in &mut of {
            things.sort_unstable();
            things.dedup();
        }
        let ends = vocabulary.words().iter().map(|word| word == "." || word.starts_with('<')).collect();
        Self { of, named, ends, kinds: world.entities().iter().map(|entity| entity.kind).collect() }
    }

    fn read(&self, sequence: &[u32]) -> Vec<Place> {
        let mut topics: Vec<(EntityId, u32)> = Vec::new();
        let read = |(i, &token): (usize, &u32)| {
            for &thing in self.of.get(token as usize).into_iter().flatten() {
                topics.retain(|(other, _)| self.kinds[*other] != self.kinds[thing]);
                topics.push((thing, token));
            }
            let next = sequence.get(i + 1).and_then(|&next| self.named.get(next as usize)).cloned();
            let here = Place { topics: topics.clone(), next: next.unwrap_or_default() };
            if self.ends.get(token as usize).is_some_and(|ends| *ends) {
                topics.clear();
            }
            here
        };
        sequence.iter().enumerate().map(read).collect()
    }
}

/// A feature's activation by what the sentence has named.
#[derive(Debug, Clone, Default)]
struct Mass {
    all: f64,
    firings: u32,
    by_word: BTreeMap<(EntityId, u32), f64>,
    by_next: BTreeMap<EntityId, f64>,
}

impl Mass {
    fn add(&mut self, value: f64, place: &Place) {
        self.all += value;
        self.firings += 1;
        for topic in &place.topics {
            *self.by_word.entry(*topic).or_default() += value;
        }
        for thing in &place.next {
            *self.by_next.entry(*thing).or_default() += value;
        }
    }

    fn stands_for(&self, world: &World) -> Option<EntityId> {
        let mut by_thing: BTreeMap<EntityId, (f64, f64)> = BTreeMap::new();
        for ((thing, _), mass) in &self.by_word {
            let (sum, most) = by_thing.entry(*thing).or_default();
            *sum += mass;
            *most = most.max(*mass);
        }
        let (thing, (sum, most)) = by_thing.into_iter().max_by(|a, b| a.1.0.total_cmp(&b.1.0))?;
        let several = world.entities()[thing].kind == Kind::Country;
        let next = self.by_next.values().copied().fold(0.0, f64::max);
        let stands = self.firings >= LEAST_FIRINGS
            && sum >= SHARE * self.all
            && !(several && most > ONE_WORD * sum)
            && next <= ONE_ANSWER * self.all;
        stands.then_some(thing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a feature stands for that is active in sentences about countries, by which words, with what next, how much.
    fn stands(world: &World, parts: &[(&str, u32, Option<&str>, f64)], elsewhere: f64) -> Option<EntityId> {
        let mut mass = Mass { all: elsewhere, firings: 9, ..Mass::default() };
        for (name, word, next, value) in parts {
            let topics = vec![(world.find(Kind::Country, name).unwrap(), *word)];
            let next = next.map(|next| world.find(Kind::City, next).unwrap()).into_iter().collect();
            mass.add(*value, &Place { topics, next });
        }
        mass.stands_for(world)
    }

    #[test]
    fn a_country_has_most_of_the_activation_and_more_than_one_word_and_answer() {
        let world = World::new(3);
        let france = world.find(Kind::Country, "France");
        let of = |parts: &[(&str, u32, f64)], elsewhere| {
            let parts: Vec<_> = parts.iter().map(|&(name, word, value)| (name, word, None, value)).collect();
            stands(&world, &parts, elsewhere)
        };
        assert_eq!(of(&[("France", 1, 3.0), ("France", 2, 2.0)], 1.0), france);
        assert_eq!(of(&[("France", 1, 3.0), ("France", 2, 2.0)], 6.0), None, "more of it is elsewhere");
        assert_eq!(of(&[("France", 1, 9.0), ("France", 2, 1.0)], 0.0), None, "one word has nearly all");
        assert_eq!(of(&[("Japan", 1, 1.0), ("France", 2, 2.0), ("France", 3, 2.0)], 0.0), france);
        let paris = Some("Paris");
        let answer = [("France", 1, paris, 3.0), ("France", 2, paris, 3.0), ("France", 2, None, 1.0)];
        assert_eq!(stands(&world, &answer, 0.0), None, "it is the answer");
        let both = [("France", 1, paris, 3.0), ("France", 2, None, 3.0)];
        assert_eq!(stands(&world, &both, 0.0), france);
    }

    #[test]
    fn a_sentence_is_about_what_it_last_named_until_it_ends() {
        let world = World::new(World::BUILT_IN_SEED);
        let vocabulary = Vocabulary::new(&world);
        let triggers = Triggers::new(&world, &vocabulary);
        let tokens = vocabulary.encode("The capital of the country where Marseille lies is Paris. The dog is small.");
        let france = world.find(Kind::Country, "France").unwrap();
        let about: Vec<bool> =
            triggers.read(&tokens).iter().map(|place| place.topics.iter().any(|(thing, _)| *thing == france)).collect();
        let words: Vec<&str> = tokens.iter().map(|&token| vocabulary.words()[token as usize].as_str()).collect();
        let first = about.iter().position(|about| *about).unwrap();
        assert_eq!(words[first], "Marseille");
        assert_eq!(about.iter().filter(|about| **about).count(), 5);
        assert!(!about[first + 5], "the sentence has ended");
        let paris = world.find(Kind::City, "Paris").unwrap();
        let next: Vec<bool> = triggers.read(&tokens).iter().map(|place| place.next.contains(&paris)).collect();
        assert_eq!(next.iter().position(|next| *next), Some(first + 2));
    }
}
