//! The word-level tokenizer of the built-in model, as a Hugging Face `tokenizer.json`.
//!
//! A token is a word, a punctuation mark, or a letter with its apostrophe (French `l'`). Decoding puts the spaces
//! back where people expect them.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::entity::Lang;
use super::grammar::{capitalise, connectives, pronoun_template, templates};
use super::world::World;

/// Stands for a word that the world does not know.
pub const UNKNOWN: &str = "<unk>";
/// Begins a document.
pub const BEGIN: &str = "<s>";
/// Ends a document.
pub const END: &str = "</s>";

/// The pattern of one token, as the regular expression in `tokenizer.json`. [`words`] is the same in code.
const TOKEN_PATTERN: &str = r"\w'|\w+|[^\w\s]";

/// The tokens of a text.
pub fn words(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        rest = rest.trim_start();
        let first = rest.chars().next()?;
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let length = if !is_word(first) {
            first.len_utf8()
        } else if rest[first.len_utf8()..].starts_with('\'') {
            first.len_utf8() + 1
        } else {
            rest.find(|c| !is_word(c)).unwrap_or(rest.len())
        };
        let (word, tail) = rest.split_at(length);
        rest = tail;
        Some(word)
    })
}

/// Words and their ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vocabulary {
    words: Vec<String>,
    ids: BTreeMap<String, u32>,
}

impl Vocabulary {
    /// Every word that a document or a prompt of the world can hold: the special tokens, then the rest sorted.
    pub fn new(world: &World) -> Self {
        let mut found: BTreeSet<String> = [".", ","].map(str::to_owned).into();
        let mut add = |text: &str| {
            found.extend(words(text).map(str::to_owned));
            found.extend(words(&capitalise(text)).next().map(str::to_owned));
            found.extend(words(&capitalise(text)).nth(1).map(str::to_owned));
        };
        for lang in Lang::ALL {
            for text in connectives(lang) {
                words(text).for_each(&mut add);
            }
            for (i, fact) in world.facts().iter().enumerate() {
                for template in templates(fact.relation, lang) {
                    add(&world.state(i, template, lang));
                }
                if let Some(template) = pronoun_template(fact.relation, lang) {
                    add(&world.state(i, template, lang));
                }
            }
        }
        let special = [UNKNOWN, BEGIN, END].map(str::to_owned);
        let words: Vec<String> = special.into_iter().chain(found).collect();
        let ids = words.iter().enumerate().map(|(id, word)| (word.clone(), id as u32)).collect();
        Self { words, ids }
    }

    /// The words in the order of their ids.
    pub fn words(&self) -> &[String] {
        &self.words
    }

    /// Number of words.
    pub fn len(&self) -> usize {
        self.words.len()
    }

    /// Never: the special tokens are always there.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// The id of a word.
    pub fn id(&self, word: &str) -> Option<u32> {
        self.ids.get(word).copied()
    }

    /// Token ids of a text, without special tokens. Words that the world does not know become [`UNKNOWN`].
    pub fn encode(&self, text: &str) -> Vec<u32> {
        words(text).map(|word| self.id(word).unwrap_or(0)).collect()
    }

    /// The contents of `tokenizer.json`.
    pub fn tokenizer_json(&self) -> Value {
        let special = |word: &str| {
            json!({
                "id": self.id(word), "content": word, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true,
            })
        };
        let vocabulary: serde_json::Map<String, Value> =
            self.words.iter().zip(0u32..).map(|(word, id)| (word.clone(), id.into())).collect();
        let replace = |from: &str, to: &str| json!({ "type": "Replace", "pattern": { "String": from }, "content": to });
        json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": [special(UNKNOWN), special(BEGIN), special(END)],
            "normalizer": { "type": "NFC" },
            "pre_tokenizer": {
                "type": "Split", "pattern": { "Regex": TOKEN_PATTERN }, "behavior": "Removed", "invert": true,
            },
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [{ "SpecialToken": { "id": BEGIN, "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }],
                "pair": [
                    { "SpecialToken": { "id": BEGIN, "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } },
                    { "Sequence": { "id": "B", "type_id": 0 } },
                ],
                "special_tokens": { (BEGIN): { "id": BEGIN, "ids": [self.id(BEGIN)], "tokens": [BEGIN] } },
            },
            "decoder": {
                "type": "Sequence",
                "decoders": [
                    { "type": "WordPiece", "prefix": "##", "cleanup": true },
                    { "type": "Fuse" },
                    replace("' ", "'"),
                    replace("¿ ", "¿"),
                ],
            },
            "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": UNKNOWN },
        })
    }

    /// The contents of `tokenizer_config.json` for a model of `context` positions.
    pub fn tokenizer_config_json(&self, context: usize) -> Value {
        json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BEGIN,
            "eos_token": END,
            "unk_token": UNKNOWN,
            "clean_up_tokenization_spaces": false,
            "model_max_length": context,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tokenizer_file_agrees_with_the_vocabulary_and_gives_the_text_back() {
        let world = World::new(World::BUILT_IN_SEED);
        let vocabulary = Vocabulary::new(&world);
        let tokenizer: tokenizers::Tokenizer = vocabulary.tokenizer_json().to_string().parse().unwrap();
        let begin = vocabulary.id(BEGIN).unwrap();
        for text in world.corpus(300, 6) {
            let mut ids = vec![begin];
            ids.extend(vocabulary.encode(&text));
            assert_eq!(tokenizer.encode(text.as_str(), true).unwrap().get_ids(), ids, "{text}");
            assert_eq!(tokenizer.decode(&ids, true).unwrap(), text);
        }
        assert_eq!(tokenizer.encode("The wizard", false).unwrap().get_ids()[1], 0);
    }

    #[test]
    fn prompts_and_answers_are_known_words() {
        let world = World::new(World::BUILT_IN_SEED);
        let vocabulary = Vocabulary::new(&world);
        for prompt in world.single_hop_prompts().into_iter().chain(world.two_hop_prompts()) {
            assert!(!vocabulary.encode(&prompt.text).contains(&0), "{}", prompt.text);
            assert_eq!(vocabulary.encode(&prompt.answer).len(), 1);
            assert!(vocabulary.id(&prompt.answer).is_some(), "{}", prompt.answer);
        }
    }

    #[test]
    fn words_split_as_the_pattern_does() {
        let split: Vec<&str> = words("¿Cuál es? L'opposé, 3 + 14.").collect();
        assert_eq!(split, ["¿", "Cuál", "es", "?", "L'", "opposé", ",", "3", "+", "14", "."]);
    }
}
