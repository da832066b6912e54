//! A model's tokenizer: text to ids, ids to text, and the readable piece of one id.
//!
//! The beginning-of-sequence token is ours to place, not the tokenizer's: interpretability tools prepend it by
//! default (`prepend_bos` of SAELens and TransformerLens) also where the tokenizer's own `add_bos_token` is false,
//! because models put their attention sink there. [`BosPolicy`] records the choice.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::gguf::tokenizer::Built;
use super::gguf::{self, Gguf};
use crate::base::artifact::{hash_file, read_json};
use crate::base::{Error, Result};

/// Whether sequences begin with the beginning-of-sequence token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BosPolicy {
    /// Every sequence begins with it, as in SAELens and TransformerLens.
    #[default]
    Prepend,
    /// Sequences hold text only.
    Never,
}

/// Special ids that `config.json` names, for tokenizers whose own configuration does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SpecialIds {
    /// `bos_token_id`.
    pub bos: Option<u32>,
    /// `eos_token_id`, the first when there are several.
    pub eos: Option<u32>,
}

/// A loaded `tokenizer.json`, or its like out of a GGUF file.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    path: PathBuf,
    hash: String,
    alphabet: Alphabet,
    bos: Option<u32>,
    eos: Option<u32>,
    adds_bos: bool,
    special: BTreeSet<u32>,
}

/// How the vocabulary spells bytes that are no readable character.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Alphabet {
    /// GPT-2's 256 printable stand-ins, one a byte.
    ByteLevel,
    /// Google's `sentencepiece`: `▁` for a space, `<0xNN>` for a byte.
    SentencePiece,
    /// Whole words, which decoding joins by spaces; `##` marks the rest of a word, and punctuation takes no space.
    Words,
    /// As it is.
    Plain,
}

impl Tokenizer {
    /// Loads `tokenizer.json`, with the special tokens of `tokenizer_config.json` and those of `fallback` where
    /// that file does not name them, or the tokenizer in the metadata of a GGUF file. Truncation and padding of the
    /// file are switched off.
    ///
    /// # Errors
    /// `Tokenizer` when the file is no tokenizer, `Malformed` when the configuration is no JSON, `Io`; for GGUF files
    /// also `Unknown` and `Unsupported`, for kinds of tokenizers that cannot be rebuilt.
    pub fn load(tokenizer: &Path, config: Option<&Path>, fallback: SpecialIds) -> Result<Self> {
        if gguf::is_gguf(tokenizer) {
            return Self::from_gguf(tokenizer, fallback);
        }
        let bytes = std::fs::read(tokenizer).map_err(Error::io("read the tokenizer", tokenizer))?;
        let failed = |why: String| Error::Tokenizer { action: "load", path: tokenizer.into(), why };
        let mut inner = tokenizers::Tokenizer::from_bytes(&bytes).map_err(|e| failed(e.to_string()))?;
        inner.with_padding(None).with_truncation(None).map_err(|e| failed(e.to_string()))?;
        let config: Value = match config {
            Some(path) => read_json("tokenizer configuration", path)?,
            None => Value::Null,
        };
        let named = |key: &str| {
            let token = config.get(key)?;
            inner.token_to_id(token.as_str().or_else(|| token.get("content")?.as_str())?)
        };
        let (bos, eos) = (named("bos_token").or(fallback.bos), named("eos_token").or(fallback.eos));
        let adds_bos = if let Some(adds) = config.get("add_bos_token").and_then(Value::as_bool) {
            adds
        } else {
            let empty = inner.encode("", true).map_err(|e| failed(e.to_string()))?;
            bos.is_some() && empty.get_ids().first().copied() == bos
        };
        Self::new(inner, tokenizer, hash_file(tokenizer)?, (bos, eos), adds_bos)
    }

    fn from_gguf(path: &Path, fallback: SpecialIds) -> Result<Self> {
        let file = Gguf::open(path)?;
        let Built { inner, bos, eos, adds_bos } = gguf::tokenizer::build(&file)?;
        let hash = blake3::hash(&file.raw("tokenizer.")).to_hex().to_string();
        Self::new(inner, path, hash, (bos.or(fallback.bos), eos.or(fallback.eos)), adds_bos)
    }

    fn new(
        inner: tokenizers::Tokenizer,
        path: &Path,
        hash: String,
        (bos, eos): (Option<u32>, Option<u32>),
        adds_bos: bool,
    ) -> Result<Self> {
        let added = inner.get_added_vocabulary().get_added_tokens_decoder();
        let special =
            added.iter().filter(|(_, token)| token.special).map(|(&id, _)| id).chain(bos).chain(eos).collect();
        let alphabet =
            alphabet_of(&inner).map_err(|why| Error::Tokenizer { action: "load", path: path.into(), why })?;
        Ok(Self { inner, path: path.into(), hash, alphabet, bos, eos, adds_bos, special })
    }

    /// The ids of `text`, after the beginning-of-sequence token when `bos` asks for it and the tokenizer has one.
    ///
    /// # Errors
    /// `Tokenizer` when the tokenizer rejects the text.
    pub fn encode(&self, text: &str, bos: BosPolicy) -> Result<Vec<u32>> {
        let encoded = self.inner.encode_fast(text, false).map_err(|e| self.failed("encode", &*e))?;
        let prefix = self.prefix(bos);
        Ok(prefix.into_iter().chain(encoded.get_ids().iter().copied()).collect())
    }

    /// The text of `ids`, special tokens included.
    ///
    /// # Errors
    /// `Tokenizer` when the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.inner.decode(ids, false).map_err(|e| self.failed("decode", &*e))
    }

    /// The readable text of one token: leading space kept, bytes that are no UTF-8 on their own as `\xNN`.
    /// Ids outside the vocabulary read `<unused N>`.
    pub fn piece(&self, id: u32) -> String {
        match self.piece_bytes(id) {
            None => format!("<unused {id}>"),
            Some(bytes) => readable(&bytes),
        }
    }

    /// The bytes that a token stands for; `None` outside the vocabulary. Joining the bytes of neighbours shows
    /// characters that are spread over several tokens.
    pub fn piece_bytes(&self, id: u32) -> Option<Vec<u8>> {
        let token = self.inner.id_to_token(id)?;
        let added = self.inner.get_added_vocabulary().simple_id_to_token(id).is_some();
        match self.alphabet {
            _ if added => Some(token.into_bytes()),
            Alphabet::Plain => Some(token.into_bytes()),
            Alphabet::Words => Some(match token.strip_prefix("##") {
                Some(rest) => rest.as_bytes().to_vec(),
                None if token.starts_with(char::is_alphanumeric) => format!(" {token}").into_bytes(),
                None => token.into_bytes(),
            }),
            Alphabet::ByteLevel => {
                let mut bytes = Vec::with_capacity(token.len());
                for c in token.chars() {
                    match byte_of(c) {
                        Some(byte) => bytes.push(byte),
                        None => bytes.extend(c.encode_utf8(&mut [0; 4]).bytes()),
                    }
                }
                Some(bytes)
            }
            Alphabet::SentencePiece => {
                let byte = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
                match byte.filter(|hex| hex.len() == 2).and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
                    Some(byte) => Some(vec![byte]),
                    None => Some(token.replace('\u{2581}', " ").into_bytes()),
                }
            }
        }
    }

    /// The id of a token spelled as in the vocabulary.
    pub fn id_of(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The beginning-of-sequence token.
    pub fn bos_id(&self) -> Option<u32> {
        self.bos
    }

    /// The end-of-sequence token.
    pub fn eos_id(&self) -> Option<u32> {
        self.eos
    }

    /// The token that `policy` puts before a sequence, if any.
    pub fn prefix(&self, policy: BosPolicy) -> Option<u32> {
        self.bos.filter(|_| policy == BosPolicy::Prepend)
    }

    /// Whether the tokenizer by itself puts the beginning-of-sequence token before a text.
    pub fn adds_bos(&self) -> bool {
        self.adds_bos
    }

    /// Control tokens: those marked special, and the ends of sequences.
    pub fn special_ids(&self) -> &BTreeSet<u32> {
        &self.special
    }

    /// Number of tokens, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// BLAKE3 of `tokenizer.json`, or of the tokenizer's part of GGUF metadata, hexadecimal.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    fn failed(&self, action: &'static str, error: &(dyn std::error::Error + Send + Sync)) -> Error {
        Error::Tokenizer { action, path: self.path.clone(), why: error.to_string() }
    }
}

/// Reads the kind of vocabulary off the decoder, which is what undoes its spelling.
fn alphabet_of(tokenizer: &tokenizers::Tokenizer) -> std::result::Result<Alphabet, String> {
    let Some(decoder) = tokenizer.get_decoder() else { return Ok(Alphabet::Words) };
    let decoder = serde_json::to_value(decoder).map_err(|e| e.to_string())?;
    let says = |kind: &str| decoders(&decoder).iter().any(|d| d.get("type").and_then(Value::as_str) == Some(kind));
    Ok(if says("ByteLevel") {
        Alphabet::ByteLevel
    } else if says("ByteFallback") || says("Metaspace") {
        Alphabet::SentencePiece
    } else if says("WordPiece") {
        Alphabet::Words
    } else {
        Alphabet::Plain
    })
}

/// The decoder itself, or the members of a sequence.
fn decoders(decoder: &Value) -> Vec<&Value> {
    match decoder.get("decoders").and_then(Value::as_array) {
        Some(members) => members.iter().flat_map(decoders).collect(),
        None => vec![decoder],
    }
}

/// The byte behind one of GPT-2's 256 printable characters (`bytes_to_unicode` of its `encoder.py`): printable
/// Latin-1 characters stand for themselves, the other 68 bytes in order for U+0100 and up.
fn byte_of(c: char) -> Option<u8> {
    let printable = |code: u32| matches!(code, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    match u32::from(c) {
        code if printable(code) => u8::try_from(code).ok(),
        code @ 0x100..=0x143 => (0..=255u8).filter(|&byte| !printable(u32::from(byte))).nth(code as usize - 0x100),
        _ => None,
    }
}

/// Valid UTF-8 as it is, every other byte as `\xNN`.
pub fn readable(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        for byte in chunk.invalid() {
            text.extend(['\\', 'x'].into_iter().chain(hex(*byte)));
        }
    }
    text
}

/// The two hexadecimal digits of a byte.
fn hex(byte: u8) -> impl Iterator<Item = char> {
    [byte >> 4, byte & 15]
        .into_iter()
        .filter_map(|digit| char::from_digit(u32::from(digit), 16))
        .map(|c| c.to_ascii_uppercase())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A byte-level tokenizer without merges whose ids are the bytes' places in the vocabulary, plus `<s>`, `</s>`.
    pub(crate) fn byte_tokenizer(dir: &Path) -> Tokenizer {
        let mut vocab = serde_json::Map::new();
        for byte in 0..=255u8 {
            let c = (0u32..0x200).filter_map(char::from_u32).find(|&c| byte_of(c) == Some(byte)).unwrap();
            vocab.insert(c.to_string(), byte.into());
        }
        let special = |id: u32, content: &str| {
            serde_json::json!({"id": id, "content": content, "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false, "special": true})
        };
        let level = serde_json::json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        let json = serde_json::json!({
            "version": "1.0", "truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
            "padding": null, "added_tokens": [special(256, "<s>"), special(257, "</s>")],
            "normalizer": null, "pre_tokenizer": level, "post_processor": null, "decoder": level,
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": []}
        });
        let path = dir.join("tokenizer.json");
        std::fs::write(&path, json.to_string()).unwrap();
        let config = dir.join("tokenizer_config.json");
        std::fs::write(&config, r#"{"bos_token": {"content": "<s>"}, "eos_token": null, "add_bos_token": false}"#)
            .unwrap();
        Tokenizer::load(&path, Some(&config), SpecialIds { bos: Some(9), eos: Some(257) }).unwrap()
    }

    #[test]
    fn the_configuration_wins_over_the_fallback_and_truncation_is_off() {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = byte_tokenizer(dir.path());
        assert_eq!((tokenizer.bos_id(), tokenizer.eos_id()), (Some(256), Some(257)));
        assert_eq!(tokenizer.special_ids(), &BTreeSet::from([256, 257]));
        assert_eq!((tokenizer.adds_bos(), tokenizer.vocab_size()), (false, 258));
        assert_eq!(tokenizer.encode("abcd", BosPolicy::Prepend).unwrap(), [256, 97, 98, 99, 100]);
        assert_eq!(tokenizer.encode("abcd", BosPolicy::Never).unwrap(), [97, 98, 99, 100]);
        assert_eq!(tokenizer.encode("<s>", BosPolicy::Never).unwrap(), [256], "special tokens in text are read");
    }

    #[test]
    fn text_returns_from_ids_and_pieces_show_spaces_and_lone_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = byte_tokenizer(dir.path());
        let text = "Zo\u{eb} \u{2603}\n\tx";
        let ids = tokenizer.encode(text, BosPolicy::Never).unwrap();
        assert_eq!(ids, text.bytes().map(u32::from).collect::<Vec<_>>());
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        assert_eq!(tokenizer.piece(0x20), " ");
        assert_eq!(tokenizer.piece(0xe2), "\\xE2");
        assert_eq!(tokenizer.piece(256), "<s>");
        assert_eq!(tokenizer.piece(999), "<unused 999>");
        let joined: Vec<u8> = ids.iter().flat_map(|&id| tokenizer.piece_bytes(id).unwrap()).collect();
        assert_eq!(readable(&joined), text);
    }

    #[test]
    fn a_broken_tokenizer_is_an_error_with_its_path() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokenizer.json");
        std::fs::write(&path, "{\"version\": \"1.0\"").unwrap();
        let error = Tokenizer::load(&path, None, SpecialIds::default()).unwrap_err().to_string();
        assert!(error.contains("tokenizer.json"), "{error}");
    }
}
