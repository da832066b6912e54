//! What there is to find inside the model, and where in a text each of it is active.
//!
//! A sparse dictionary on a middle layer can hold, at a position, what the model has read there and what it has
//! gathered from the positions before. The concepts follow that; each is a function of the tokens up to and
//! including the position, except `next:…`, which is what the model has to predict:
//!
//! | name | active on |
//! | --- | --- |
//! | `country:France`, `city:Paris`, `animal:dog`, … | every word that names that entity, in any language |
//! | `class:city`, … | every word that names an entity of the kind |
//! | `text:French` | positions that the words since the sentence's beginning, or the sentence before, mark as French |
//! | `about:France` | from a word that names the country or a city in it, to the sentence's end or the next such word of another country |
//! | `relation:capital`, … | from a word for the relation ("capital", "capitale") to the sentence's end |
//! | `next:city`, … | positions whose next token names an entity of the kind |

use std::collections::BTreeMap;

use super::entity::{Kind, Lang};
use super::grammar::{capitalise, connectives, pronoun_template, templates};
use super::tokenizer::{BEGIN, END, Vocabulary, words};
use super::world::World;

/// Index of a [`Concept`] in its [`Labeller`].
pub type ConceptId = u32;

/// The family of a concept: the part of its name before the colon, entities' kinds taken together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConceptKind {
    /// One entity, on its own words.
    Entity(Kind),
    /// All entities of a kind.
    Class,
    /// The language of the text.
    Text,
    /// The country that the sentence has last named or implied.
    About,
    /// A relation that the sentence has named.
    Relation,
    /// The kind of entity that the next token names.
    Next,
}

/// Something that positions of a text can be about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Concept {
    /// Such as `about:France`.
    pub name: String,
    /// Its family.
    pub kind: ConceptKind,
    /// The words whose presence makes it active; empty for `text:…` and `next:…`.
    pub words: Vec<String>,
}

/// The concepts active at each position of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labels {
    /// `positions + 1` offsets into `concepts`.
    offsets: Vec<usize>,
    concepts: Vec<ConceptId>,
}

impl Default for Labels {
    fn default() -> Self {
        Self { offsets: vec![0], concepts: Vec::new() }
    }
}

impl Labels {
    /// Number of positions.
    pub fn positions(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Concepts active at a position, ascending.
    pub fn at(&self, position: usize) -> &[ConceptId] {
        &self.concepts[self.offsets[position]..self.offsets[position + 1]]
    }

    fn push(&mut self, mut active: Vec<ConceptId>) {
        active.sort_unstable();
        active.dedup();
        self.concepts.extend(active);
        self.offsets.push(self.concepts.len());
    }
}

/// Words for a relation, in any language. A sentence that holds one is about the relation from there on.
const RELATION_WORDS: &[(&str, &[&str])] = &[
    ("capital", &["capital", "capitale"]),
    ("country", &["country", "pays", "país"]),
    ("language", &["language", "speak", "langue", "parle", "lengua", "habla"]),
    ("currency", &["currency", "pay", "monnaie", "paie", "moneda", "paga"]),
    ("continent", &["continent", "continente"]),
    ("job", &["job", "works", "métier", "travaille", "oficio", "trabaja"]),
    ("home", &["lives", "live", "home", "habite", "vive"]),
    ("animal", &["animal", "keeps", "keep", "possède", "tiene"]),
    ("friend", &["friend", "ami", "amigo"]),
    ("colour", &["colour", "couleur", "color"]),
    ("size", &["size", "taille", "tamaño"]),
    ("opposite", &["opposite", "contraire", "contrario"]),
    ("translation", &["word"]),
    ("sum", &["plus", "sum", "+", "somme", "más", "suma"]),
];

/// Everything that one token says.
#[derive(Debug, Clone, Default)]
struct TokenFacts {
    /// Entity and class concepts.
    own: Vec<ConceptId>,
    /// Classes that the token names, as the `next:…` concepts of the position before.
    next: Vec<ConceptId>,
    about: Option<ConceptId>,
    relation: Option<ConceptId>,
    /// Bit `l` is set when a sentence of language `l` can hold the word; all bits for words of no language.
    languages: u8,
    ends_sentence: bool,
    ends_document: bool,
}

/// Says which concepts are active where.
#[derive(Debug, Clone)]
pub struct Labeller {
    concepts: Vec<Concept>,
    tokens: Vec<TokenFacts>,
    text: [ConceptId; 3],
}

const ANY_LANGUAGE: u8 = 0b111;

impl Labeller {
    /// The concepts of a world, for texts in the vocabulary's tokens.
    pub fn new(world: &World, vocabulary: &Vocabulary) -> Self {
        let mut builder = Builder { concepts: Vec::new(), tokens: vec![TokenFacts::default(); vocabulary.len()] };
        builder.entities(world, vocabulary);
        builder.classes(world, vocabulary);
        let text = Lang::ALL.map(|lang| builder.add(format!("text:{}", lang.name()), ConceptKind::Text, Vec::new()));
        builder.countries(world, vocabulary);
        for &(name, relation_words) in RELATION_WORDS {
            let words = relation_words.iter().map(|&word| word.to_owned()).collect();
            let id = builder.add(format!("relation:{name}"), ConceptKind::Relation, words);
            for token in relation_words.iter().filter_map(|word| vocabulary.id(word)) {
                builder.tokens[token as usize].relation = Some(id);
            }
        }
        builder.languages(world, vocabulary);
        Self { concepts: builder.concepts, tokens: builder.tokens, text }
    }

    /// Every concept; a [`ConceptId`] is an index into this list.
    pub fn concepts(&self) -> &[Concept] {
        &self.concepts
    }

    /// The concept of this name.
    pub fn find(&self, name: &str) -> Option<ConceptId> {
        self.concepts.iter().position(|concept| concept.name == name).map(|id| id as ConceptId)
    }

    /// The concepts active at each token of a sequence. A special token begins the text anew.
    pub fn label(&self, tokens: &[u32]) -> Labels {
        let mut labels = Labels::default();
        self.label_into(tokens, &mut labels);
        labels
    }

    /// As [`Labeller::label`], appended to the positions of `labels`.
    pub fn label_into(&self, tokens: &[u32], labels: &mut Labels) {
        let unknown = TokenFacts { languages: ANY_LANGUAGE, ..TokenFacts::default() };
        let facts = |token: u32| self.tokens.get(token as usize).unwrap_or(&unknown);
        let mut sentence = Sentence::default();
        let mut language = None;
        for (i, &token) in tokens.iter().enumerate() {
            let here = facts(token);
            if here.ends_document {
                (sentence, language) = (Sentence::default(), None);
                labels.push(Vec::new());
                continue;
            }
            sentence.read(here);
            language = sentence.language(language);
            let mut active = here.own.clone();
            active.extend(language.map(|lang: Lang| self.text[lang as usize]));
            active.extend(sentence.about);
            active.extend(&sentence.relations);
            active.extend(tokens.get(i + 1).into_iter().flat_map(|&next| &facts(next).next));
            labels.push(active);
            if here.ends_sentence {
                sentence = Sentence::default();
            }
        }
    }
}

/// What has been read since the sentence began.
#[derive(Debug)]
struct Sentence {
    languages: u8,
    about: Option<ConceptId>,
    relations: Vec<ConceptId>,
}

impl Default for Sentence {
    fn default() -> Self {
        Self { languages: ANY_LANGUAGE, about: None, relations: Vec::new() }
    }
}

impl Sentence {
    fn read(&mut self, token: &TokenFacts) {
        self.languages &= token.languages;
        self.about = token.about.or(self.about);
        self.relations.extend(token.relation);
    }

    /// The one language left, or the one of the text before when it is among those left.
    fn language(&self, before: Option<Lang>) -> Option<Lang> {
        let mut left = Lang::ALL.into_iter().filter(|&lang| self.languages & (1 << lang as u8) != 0);
        match (left.next(), left.next()) {
            (Some(only), None) => Some(only),
            _ => before.filter(|&lang| self.languages & (1 << lang as u8) != 0),
        }
    }
}

struct Builder {
    concepts: Vec<Concept>,
    tokens: Vec<TokenFacts>,
}

impl Builder {
    fn add(&mut self, name: String, kind: ConceptKind, words: Vec<String>) -> ConceptId {
        self.concepts.push(Concept { name, kind, words });
        (self.concepts.len() - 1) as ConceptId
    }

    fn entities(&mut self, world: &World, vocabulary: &Vocabulary) {
        for (id, entity) in world.entities().iter().enumerate() {
            let mut names = entity.names.to_vec();
            names.sort_unstable();
            names.dedup();
            let concept = self.add(world.concept_name(id), ConceptKind::Entity(entity.kind), names.clone());
            for token in names.iter().filter_map(|name| vocabulary.id(name)) {
                self.tokens[token as usize].own.push(concept);
            }
        }
    }

    fn classes(&mut self, world: &World, vocabulary: &Vocabulary) {
        for kind in Kind::ALL {
            let entities = world.entities().iter().filter(|entity| entity.kind == kind);
            let mut names: Vec<String> = entities.flat_map(|entity| entity.names.clone()).collect();
            names.sort_unstable();
            names.dedup();
            let tokens: Vec<u32> = names.iter().filter_map(|name| vocabulary.id(name)).collect();
            let class = self.add(format!("class:{}", kind.name()), ConceptKind::Class, names);
            let next = self.add(format!("next:{}", kind.name()), ConceptKind::Next, Vec::new());
            for token in tokens {
                self.tokens[token as usize].own.push(class);
                self.tokens[token as usize].next.push(next);
            }
        }
    }

    fn countries(&mut self, world: &World, vocabulary: &Vocabulary) {
        let mut names: BTreeMap<usize, Vec<String>> = BTreeMap::new();
        for (id, entity) in world.entities().iter().enumerate() {
            if let Some(country) = world.country_of(id) {
                names.entry(country).or_default().extend(entity.names.clone());
            }
        }
        for (country, mut names) in names {
            names.sort_unstable();
            names.dedup();
            let tokens: Vec<u32> = names.iter().filter_map(|name| vocabulary.id(name)).collect();
            let name = format!("about:{}", world.entities()[country].name(Lang::English));
            let concept = self.add(name, ConceptKind::About, names);
            for token in tokens {
                self.tokens[token as usize].about = Some(concept);
            }
        }
    }

    /// Which languages' templates hold each word. Names say nothing: cities, and words that an English sentence
    /// translates, stand in any language.
    fn languages(&mut self, world: &World, vocabulary: &Vocabulary) {
        for lang in Lang::ALL {
            let joints = connectives(lang).iter().map(|&text| text.to_owned());
            let stated = world.facts().iter().enumerate().flat_map(|(i, fact)| {
                let texts = templates(fact.relation, lang).iter().copied().chain(pronoun_template(fact.relation, lang));
                texts.map(move |template| world.state(i, template, lang))
            });
            for text in joints.chain(stated) {
                for text in [capitalise(&text), text] {
                    for token in words(&text).filter_map(|word| vocabulary.id(word)) {
                        self.tokens[token as usize].languages |= 1 << lang as u8;
                    }
                }
            }
        }
        for (token, word) in self.tokens.iter_mut().zip(vocabulary.words()) {
            if !token.own.is_empty() || token.languages == 0 {
                token.languages = ANY_LANGUAGE;
            }
            token.ends_sentence = word == ".";
        }
        for token in [BEGIN, END].into_iter().filter_map(|word| vocabulary.id(word)) {
            self.tokens[token as usize].ends_document = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label(text: &str) -> Vec<(String, Vec<String>)> {
        let world = World::new(1);
        let vocabulary = Vocabulary::new(&world);
        let labeller = Labeller::new(&world, &vocabulary);
        let labels = labeller.label(&vocabulary.encode(text));
        let names = |i| labels.at(i).iter().map(|&c| labeller.concepts()[c as usize].name.clone()).collect();
        words(text).enumerate().map(|(i, word)| (word.to_owned(), names(i))).collect()
    }

    fn active(labels: &[(String, Vec<String>)], concept: &str) -> Vec<String> {
        labels.iter().filter(|(_, names)| names.iter().any(|n| n == concept)).map(|(word, _)| word.clone()).collect()
    }

    #[test]
    fn a_sentence_is_about_its_country_until_it_ends() {
        let labels = label("The capital of the country where Marseille lies is Paris. The dog is small.");
        assert_eq!(active(&labels, "about:France"), ["Marseille", "lies", "is", "Paris", "."]);
        assert_eq!(active(&labels, "city:Marseille"), ["Marseille"]);
        assert_eq!(active(&labels, "class:city"), ["Marseille", "Paris"]);
        assert_eq!(active(&labels, "next:city"), ["where", "is"]);
        assert_eq!(active(&labels, "relation:capital").len(), 10);
        assert_eq!(active(&labels, "relation:country").first().map(String::as_str), Some("country"));
        assert_eq!(active(&labels, "text:English").len(), labels.len());
    }

    #[test]
    fn the_language_of_a_text_is_known_once_its_words_say_so() {
        let labels = label("La capital de Francia es París. Paris está en Francia. La capital");
        // "La" may be French, but "La capital" is not.
        assert_eq!(active(&labels, "text:Spanish").first().map(String::as_str), Some("capital"));
        assert_eq!(active(&labels, "text:Spanish").len(), labels.len() - 1);
        assert!(active(&labels, "text:French").is_empty());
        assert_eq!(active(&labels, "country:France"), ["Francia", "Francia"]);
    }

    #[test]
    fn a_special_token_begins_the_text_anew() {
        let world = World::new(1);
        let vocabulary = Vocabulary::new(&world);
        let labeller = Labeller::new(&world, &vocabulary);
        let mut tokens = vocabulary.encode("The capital of France");
        tokens.push(vocabulary.id(END).unwrap());
        tokens.extend(vocabulary.encode("is"));
        let labels = labeller.label(&tokens);
        let about = labeller.find("about:France").unwrap();
        assert!(labels.at(3).contains(&about));
        assert!(labels.at(4).is_empty() && !labels.at(5).contains(&about));
    }
}
