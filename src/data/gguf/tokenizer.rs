//! A tokenizer out of GGUF metadata: byte-level BPE (`gpt2`) and `sentencepiece`'s BPE (`llama`), as the `tokenizer.json`
//! of the same model has them.

use serde_json::{Value, json};
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::{AddedToken, DecoderWrapper, NormalizerWrapper, PreTokenizerWrapper};

use crate::base::{Error, Result};

use super::Gguf;
use super::pre::Pre;

/// `llama_token_type`.
const NORMAL: i64 = 1;
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const UNUSED: i64 = 5;
const BYTE: i64 = 6;

/// A tokenizer with what metadata says about its special tokens.
pub(in crate::data) struct Built {
    pub(in crate::data) inner: tokenizers::Tokenizer,
    pub(in crate::data) bos: Option<u32>,
    pub(in crate::data) eos: Option<u32>,
    pub(in crate::data) adds_bos: bool,
}

/// The tokenizer in the metadata of `gguf`.
///
/// # Errors
/// `Malformed` when lists are missing or do not belong together, `Unknown` or `Unsupported` for kinds of tokenizers
/// that cannot be rebuilt.
pub(in crate::data) fn build(gguf: &Gguf) -> Result<Built> {
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let tokens = gguf.texts(&key("tokens"))?.ok_or_else(|| gguf.lacks("'tokenizer.ggml.tokens'"))?;
    let types = gguf.integers(&key("token_type"))?.unwrap_or_else(|| vec![NORMAL; tokens.len()]);
    if types.len() != tokens.len() {
        let found = format!("{} tokens and {} types", tokens.len(), types.len());
        return Err(gguf.wrong("a type for every token", found));
    }
    let pieces = Pieces { gguf, tokens, types };
    let kind = gguf.text(&key("model"))?.ok_or_else(|| gguf.lacks("'tokenizer.ggml.model'"))?;
    let (mut inner, adds_bos) = match kind {
        "gpt2" => pieces.byte_level()?,
        "llama" => pieces.sentence_piece()?,
        _ => {
            return Err(Error::Unknown {
                kind: "tokenizer in the GGUF file ('tokenizer.ggml.model')",
                found: kind.to_owned(),
                nearest: vec!["gpt2".into(), "llama".into()],
            });
        }
    };
    inner.add_tokens(pieces.added()?).map_err(|e| pieces.failed(&*e))?;
    let id = |name: &str| -> Result<Option<u32>> {
        let id = gguf.usize(&key(name))?.filter(|&id| id < pieces.tokens.len());
        Ok(id.and_then(|id| u32::try_from(id).ok()))
    };
    let adds_bos = gguf.bool(&key("add_bos_token"))?.unwrap_or(adds_bos);
    Ok(Built { inner, bos: id("bos_token_id")?, eos: id("eos_token_id")?, adds_bos })
}

/// The token lists of one file.
struct Pieces<'a> {
    gguf: &'a Gguf,
    tokens: Vec<&'a str>,
    types: Vec<i64>,
}

impl<'a> Pieces<'a> {
    /// Tokens with their ids, without the fillers that converters put in unused rows of the embedding.
    fn vocab(&self) -> impl Iterator<Item = (&'a str, u32)> {
        let filler = |id: usize, token: &str| self.types.get(id) == Some(&UNUSED) && token.starts_with("[PAD");
        let tokens = self.tokens.iter().enumerate().filter(move |(id, token)| !filler(*id, token));
        tokens.map(|(id, &token)| (token, id as u32))
    }

    /// Tokens that are looked for in text before it is cut: special ones, and those that a user added.
    fn added(&self) -> Result<Vec<AddedToken>> {
        // The one setting of added tokens that metadata cannot say: Phi-3's swallow the spaces behind them
        // (`llama_vocab::impl::load`).
        let name = self.gguf.text("general.name")?.unwrap_or_default().to_lowercase();
        let swallow = name.contains("phi-3") || name.contains("phi3");
        let swallows = |token: &str| swallow && !["<unk>", "<s>", "<|endoftext|>"].contains(&token);
        let typed = self.tokens.iter().zip(&self.types);
        let added = typed.filter(|(token, kind)| !token.is_empty() && [UNKNOWN, CONTROL, USER_DEFINED].contains(kind));
        let token = |(token, kind): (&&str, &i64)| {
            AddedToken::from(*token, *kind != USER_DEFINED).normalized(false).rstrip(swallows(token))
        };
        Ok(added.map(token).collect())
    }

    fn byte_level(&self) -> Result<(tokenizers::Tokenizer, bool)> {
        let pre = Pre::of(self.gguf)?;
        let key = "tokenizer.ggml.merges";
        let merges = self.gguf.texts(key)?.ok_or_else(|| self.gguf.lacks("'tokenizer.ggml.merges'"))?;
        let pair = |merge: &&str| merge.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned()));
        let pairs: Option<Merges> = merges.iter().map(pair).collect();
        let pairs = pairs.ok_or_else(|| self.gguf.wrong(format!("two parts in every entry of '{key}'"), "one"))?;
        let vocab: Vocab = self.vocab().map(|(token, id)| (token.to_owned(), id)).collect();
        let model = BPE::builder().vocab_and_merges(vocab, pairs).ignore_merges(pre.ignore_merges).build();
        let mut inner = tokenizers::Tokenizer::new(model.map_err(|e| self.failed(&*e))?);
        let level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        let composed = pre.composes.then(|| json!({"type": "NFC"}));
        self.pipeline(&mut inner, composed, Some(pre.json), level)?;
        Ok((inner, pre.adds_bos))
    }

    fn sentence_piece(&self) -> Result<(tokenizers::Tokenizer, bool)> {
        let gguf = self.gguf;
        let scores = gguf.floats("tokenizer.ggml.scores")?.ok_or_else(|| gguf.lacks("'tokenizer.ggml.scores'"))?;
        if scores.len() != self.tokens.len() {
            let found = format!("{} tokens and {} scores", self.tokens.len(), scores.len());
            return Err(gguf.wrong("a score for every token", found));
        }
        let vocab: Vocab = self.vocab().map(|(token, id)| (token.to_owned(), id)).collect();
        let merges = merges(&self.tokens, &scores, &vocab);
        let unknown = gguf.usize("tokenizer.ggml.unknown_token_id")?.and_then(|id| self.tokens.get(id));
        let mut model =
            BPE::builder().vocab_and_merges(vocab, merges).fuse_unk(true).byte_fallback(self.types.contains(&BYTE));
        if let Some(unknown) = unknown {
            model = model.unk_token((*unknown).to_owned());
        }
        let mut inner = tokenizers::Tokenizer::new(model.build().map_err(|e| self.failed(&*e))?);
        let replace = |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
        let (space, mark) = (" ", "\u{2581}");
        let mut decoders = vec![replace(mark, space), json!({"type": "ByteFallback"}), json!({"type": "Fuse"})];
        let (normalizer, pre) = if gguf.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true) {
            // As the Llama 2 conversion of transformers: a space before the text, taken off again by decoding.
            decoders.push(json!({"type": "Strip", "content": space, "start": 1, "stop": 0}));
            let steps = [json!({"type": "Prepend", "prepend": mark}), replace(space, mark)];
            (json!({"type": "Sequence", "normalizers": steps}), None)
        } else {
            // As the Gemma conversion.
            let split = json!({"type": "Split", "pattern": {"String": space}, "behavior": "MergedWithPrevious", "invert": false});
            (replace(space, mark), Some(split))
        };
        self.pipeline(&mut inner, Some(normalizer), pre, json!({"type": "Sequence", "decoders": decoders}))?;
        Ok((inner, true))
    }

    /// Puts the steps around the model, each as in a `tokenizer.json`.
    fn pipeline(
        &self,
        inner: &mut tokenizers::Tokenizer,
        normalizer: Option<Value>,
        pre_tokenizer: Option<Value>,
        decoder: Value,
    ) -> Result<()> {
        fn step<T: serde::de::DeserializeOwned>(pieces: &Pieces<'_>, json: Value) -> Result<T> {
            serde_json::from_value(json).map_err(|e| pieces.failed(&e))
        }
        let normalizer: Option<NormalizerWrapper> = normalizer.map(|json| step(self, json)).transpose()?;
        let pre_tokenizer: Option<PreTokenizerWrapper> = pre_tokenizer.map(|json| step(self, json)).transpose()?;
        inner.with_normalizer(normalizer).map_err(|e| self.failed(&*e))?;
        inner.with_pre_tokenizer(pre_tokenizer);
        inner.with_decoder(Some(step::<DecoderWrapper>(self, decoder)?));
        Ok(())
    }

    fn failed(&self, error: &dyn std::fmt::Display) -> Error {
        self.gguf.wrong("a tokenizer in the metadata", error.to_string())
    }
}

/// The merges that a vocabulary with scores implies: every way to put a piece together from two, the best scores
/// first (`generate_merges` of `transformers/convert_slow_tokenizer.py`).
fn merges(tokens: &[&str], scores: &[f64], vocab: &Vocab) -> Merges {
    let mut all = Vec::new();
    for (token, &score) in tokens.iter().zip(scores) {
        let first = all.len();
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if let (Some(&l), Some(&r)) = (vocab.get(left), vocab.get(right)) {
                all.push(((l, r), left, right, score));
            }
        }
        all.get_mut(first..).unwrap_or_default().sort_by_key(|(ids, ..)| *ids);
    }
    // Stable, as Python's: among equal scores the order above stays.
    all.sort_by(|a, b| {
        let lengths = |m: &(_, &str, &str, f64)| (m.1.chars().count(), m.2.chars().count());
        b.3.total_cmp(&a.3).then_with(|| lengths(b).cmp(&lengths(a)))
    });
    all.into_iter().map(|(_, left, right, _)| (left.to_owned(), right.to_owned())).collect()
}
