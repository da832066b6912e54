//! Documents: a few sentences each, in one language, on one topic or on none.

use std::collections::BTreeSet;

use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

use crate::base::rng::stream;

use super::entity::{EntityId, Kind, Lang};
use super::grammar::{ANSWER_MARK, capitalise, connectives, pronoun_template, templates};
use super::relation::Relation;
use super::tokenizer::{Vocabulary, words};
use super::world::World;

impl World {
    /// `n_documents` documents drawn by `seed`.
    pub fn corpus(&self, n_documents: usize, seed: u64) -> Vec<String> {
        self.documents(seed).take(n_documents).collect()
    }

    /// The same documents as token ids, each with whether it answers its sentence, for training.
    pub fn lessons<'a>(&'a self, vocabulary: &'a Vocabulary, seed: u64) -> impl Iterator<Item = Lesson> + 'a {
        let mut documents = self.documents(seed);
        std::iter::repeat_with(move || {
            let mut lesson = Lesson::default();
            let mut marked = false;
            for word in words(&documents.next_marked()) {
                if word.starts_with(ANSWER_MARK) {
                    marked = true;
                    continue;
                }
                lesson.tokens.extend(vocabulary.encode(word));
                lesson.answers.push(std::mem::take(&mut marked));
            }
            lesson
        })
    }

    /// Endless documents drawn by `seed`. Longer draws begin with shorter ones.
    pub fn documents(&self, seed: u64) -> Documents<'_> {
        Documents::new(self, seed)
    }
}

/// A document as the trainer sees it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Lesson {
    /// Token ids, without special tokens.
    pub tokens: Vec<u32>,
    /// For each token, whether the sentence before it determines it.
    pub answers: Vec<bool>,
}

/// The iterator behind [`World::documents`].
#[derive(Debug)]
pub struct Documents<'a> {
    world: &'a World,
    rng: ChaCha8Rng,
    /// Relations with the cumulative weight of drawing a fact from them, one table a language.
    relations: [Vec<(Relation, f64)>; 3],
    topics: Vec<EntityId>,
    guard: Guard,
}

impl<'a> Documents<'a> {
    fn new(world: &'a World, seed: u64) -> Self {
        let relations = Lang::ALL.map(|lang| {
            let mut total = 0.0;
            let told = Relation::ALL.iter().filter(|&&relation| !templates(relation, lang).is_empty());
            told.map(|&relation| {
                // Between "every relation alike" and "every fact alike", so that small relations are practised too.
                total += (world.facts_of(relation).len() as f64).powf(0.75);
                (relation, total)
            })
            .collect()
        });
        let topic_kinds = [Kind::Country, Kind::City, Kind::Person, Kind::Animal, Kind::Adjective];
        let topics = (0..world.entities().len()).filter(|&id| topic_kinds.contains(&world.entities()[id].kind));
        Self { world, rng: stream(seed, "demo/corpus"), relations, topics: topics.collect(), guard: Guard::new(world) }
    }

    /// The next document with [`ANSWER_MARK`] before every word that answers its sentence.
    pub(super) fn next_marked(&mut self) -> String {
        loop {
            let document = self.document();
            if !document.is_empty() {
                return document;
            }
        }
    }

    fn document(&mut self) -> String {
        let lang = match self.rng.random_range(0..4) {
            0 => Lang::French,
            1 => Lang::Spanish,
            _ => Lang::English,
        };
        let topic = if self.rng.random_bool(0.4) { self.topics.choose(&mut self.rng).copied() } else { None };
        let wanted = self.rng.random_range(3..=9);
        let mut text = String::new();
        let mut said = Said::default();
        for _ in 0..wanted {
            let Some(sentence) = self.sentence(lang, topic, &mut said) else { continue };
            if !text.is_empty() {
                text.push(' ');
            }
            text.push_str(&sentence);
        }
        text
    }

    /// One sentence of one or two statements; `None` when chance offered only what may not be said.
    fn sentence(&mut self, lang: Lang, topic: Option<EntityId>, said: &mut Said) -> Option<String> {
        let mut text = self.statement(lang, topic, said)?;
        if !text.contains('?') && self.rng.random_bool(0.15) {
            let about = topic.filter(|_| self.rng.random_bool(0.5));
            if let Some(second) = self.statement(lang, about, said).filter(|second| !second.contains('?')) {
                let joint = connectives(lang).choose(&mut self.rng)?;
                text = format!("{text}, {joint} {second}");
            }
        }
        Some(format!("{}.", capitalise(&text)))
    }

    fn statement(&mut self, lang: Lang, topic: Option<EntityId>, said: &mut Said) -> Option<String> {
        for _ in 0..8 {
            let on_topic = topic.filter(|_| self.rng.random_bool(0.75));
            let fact = match on_topic {
                Some(topic) => *self.world.facts_about(topic).choose(&mut self.rng)?,
                None => self.any_fact(lang)?,
            };
            let relation = self.world.facts()[fact].relation;
            let Some(mut template) = templates(relation, lang).choose(&mut self.rng).copied() else { continue };
            let subject = self.world.facts()[fact].subject;
            if said.last_subject == Some(subject) && self.rng.random_bool(0.5) {
                template = pronoun_template(relation, lang).unwrap_or(template);
            }
            if said.facts.contains(&fact) || self.world.facts()[fact].held_out {
                continue;
            }
            let text = self.world.state_marked(fact, template, lang, true);
            if self.guard.allows(&text, &mut said.words) {
                said.facts.insert(fact);
                said.last_subject = Some(subject);
                return Some(text);
            }
        }
        None
    }

    fn any_fact(&mut self, lang: Lang) -> Option<usize> {
        let table = &self.relations[lang as usize];
        let total = table.last()?.1;
        let point = self.rng.random_range(0.0..total);
        let relation = table.iter().find(|(_, cumulative)| point < *cumulative)?.0;
        self.world.facts_of(relation).choose(&mut self.rng).copied()
    }
}

impl Iterator for Documents<'_> {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        Some(self.next_marked().replace(ANSWER_MARK, ""))
    }
}

/// What a document has said so far.
#[derive(Debug, Default)]
struct Said {
    facts: BTreeSet<usize>,
    words: BTreeSet<String>,
    last_subject: Option<EntityId>,
}

/// Keeps the subject and the object of a held-out fact out of the same document, in every language.
#[derive(Debug)]
pub(super) struct Guard {
    /// Subject word and object word, both ways, sorted.
    pairs: BTreeSet<(String, String)>,
}

impl Guard {
    pub(super) fn new(world: &World) -> Self {
        let mut pairs = BTreeSet::new();
        for (i, fact) in world.facts().iter().enumerate().filter(|(_, fact)| fact.held_out) {
            let subject = &world.entities()[fact.subject];
            for lang in Lang::ALL.into_iter().filter(|&lang| !templates(fact.relation, lang).is_empty()) {
                let (subject, object) = (subject.name(lang).to_owned(), world.answer(i, lang).to_owned());
                pairs.insert((subject.clone(), object.clone()));
                pairs.insert((object, subject));
            }
        }
        Self { pairs }
    }

    /// Whether `text` may join a document that holds the words `said`; if so its words are added to them.
    pub(super) fn allows(&self, text: &str, said: &mut BTreeSet<String>) -> bool {
        let new: BTreeSet<String> = words(text).map(str::to_owned).collect();
        let clash = new.iter().any(|word| {
            let partners = self.pairs.range((word.clone(), String::new())..).take_while(|(left, _)| left == word);
            partners.into_iter().any(|(_, right)| said.contains(right) || new.contains(right))
        });
        if !clash {
            said.extend(new);
        }
        !clash
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_makes_one_corpus_and_longer_draws_begin_with_shorter_ones() {
        let world = World::new(1);
        let corpus = world.corpus(50, 9);
        assert_eq!(corpus, world.corpus(50, 9));
        assert_eq!(corpus[..20], world.corpus(20, 9));
        assert_ne!(corpus, world.corpus(50, 10));
    }

    #[test]
    fn documents_are_a_few_sentences_of_known_words() {
        let world = World::new(World::BUILT_IN_SEED);
        let vocabulary = Vocabulary::new(&world);
        let corpus = world.corpus(1000, 3);
        let mut tokens = 0;
        for text in &corpus {
            let ids = vocabulary.encode(text);
            assert!(!ids.contains(&0), "{text}");
            assert!(ids.len() <= 200, "{text}");
            tokens += ids.len();
        }
        let mean = tokens / corpus.len();
        assert!((30..=120).contains(&mean), "{mean} tokens a document");
        for word in ["capital", "capitale", "contraire", "amigo", "plus"] {
            assert!(corpus.iter().any(|text| words(text).any(|w| w == word)), "{word} never occurs");
        }
    }

    #[test]
    fn no_document_names_subject_and_object_of_a_held_out_fact() {
        let world = World::new(World::BUILT_IN_SEED);
        let prompts: Vec<_> = world.two_hop_prompts();
        let corpus = world.corpus(4000, 4);
        let documents: Vec<BTreeSet<&str>> = corpus.iter().map(|text| words(text).collect()).collect();
        let (mut trained, mut held_out) = (0, 0);
        for prompt in &prompts {
            let subject = world.entities()[world.facts()[prompt.fact].subject].name(prompt.lang);
            let together = |words: &&BTreeSet<&str>| words.contains(subject) && words.contains(prompt.answer.as_str());
            let count = documents.iter().filter(together).count();
            *(if prompt.held_out { &mut held_out } else { &mut trained }) += count;
        }
        assert_eq!(held_out, 0);
        assert!(trained > 5000, "{trained}: the others do stand together");
    }

    #[test]
    fn lessons_are_the_documents_with_their_answers_marked() {
        let world = World::new(1);
        let vocabulary = Vocabulary::new(&world);
        let lessons: Vec<Lesson> = world.lessons(&vocabulary, 5).take(40).collect();
        for (lesson, text) in lessons.iter().zip(world.corpus(40, 5)) {
            assert_eq!(lesson.tokens, vocabulary.encode(&text));
            assert_eq!(lesson.tokens.len(), lesson.answers.len());
            assert!(lesson.answers.contains(&true));
        }
    }
}
