//! Documents to sequences of one length, as `concat_and_batch_sequences` of SAELens packs them.
//!
//! Every sequence begins with the beginning-of-sequence token under [`BosPolicy::Prepend`]. Where a document begins
//! inside a sequence, a separator precedes it: the beginning-of-sequence token if the tokenizer has one, else the
//! end-of-sequence token. Neither is doubled where the text already begins with it. There is no padding; what is
//! left at the end and fills no sequence is dropped. Documents without tokens leave no trace.

use std::collections::VecDeque;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::corpus::Document;
use super::tokenizer::{BosPolicy, Tokenizer};
use crate::base::{Error, Result};

/// Documents and bytes that are tokenised together, whichever is reached first.
const BATCH_DOCUMENTS: usize = 256;
const BATCH_BYTES: usize = 1 << 20;

/// How documents are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackSettings {
    /// Tokens in a sequence.
    pub context_size: usize,
    /// Whether every sequence begins with the beginning-of-sequence token.
    pub bos: BosPolicy,
}

/// One sequence of tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence {
    /// `context_size` tokens.
    pub tokens: Vec<u32>,
    /// The document of each token, counted over the whole corpus from 0. Tokens that were put before a text belong
    /// to the document that follows them.
    pub documents: Vec<u32>,
}

/// The sequences of a stream of documents, in an order that depends on nothing but the stream and the settings.
/// After an error it ends.
pub struct Packer<'a, D> {
    tokenizer: &'a Tokenizer,
    documents: D,
    settings: PackSettings,
    begin: Option<u32>,
    separator: Option<u32>,
    /// Ordinal and tokens of documents, or pieces of one, that wait; the flag says whether the piece begins one.
    waiting: VecDeque<Piece>,
    current: Sequence,
    last: Option<(usize, u64)>,
    seen: u64,
    failed: bool,
}

struct Piece {
    document: u32,
    begins: bool,
    tokens: std::vec::IntoIter<u32>,
}

impl<'a, D: Iterator<Item = Result<Document>>> Packer<'a, D> {
    /// Packs `documents`.
    ///
    /// # Errors
    /// `Flag` when the context is too short to hold text.
    pub fn new(tokenizer: &'a Tokenizer, documents: D, settings: PackSettings) -> Result<Self> {
        if settings.context_size < 2 {
            return Err(Error::flag(
                "--context-size",
                "at least 2 tokens",
                settings.context_size,
                "use the length the model was trained for or less; 256 is usual",
            ));
        }
        Ok(Self {
            tokenizer,
            documents,
            settings,
            begin: tokenizer.prefix(settings.bos),
            separator: tokenizer.bos_id().or(tokenizer.eos_id()),
            waiting: VecDeque::new(),
            current: empty(settings.context_size),
            last: None,
            seen: 0,
            failed: false,
        })
    }

    /// Goes past the next `n` sequences and returns how many there were. Tokenising again is all it costs, which
    /// is a small part of a percent of running the model.
    ///
    /// # Errors
    /// Whatever reading the documents or tokenising returns.
    pub fn skip_sequences(&mut self, n: u64) -> Result<u64> {
        for done in 0..n {
            match self.next() {
                Some(sequence) => drop(sequence?),
                None => return Ok(done),
            }
        }
        Ok(n)
    }

    /// Tokens at the end that fill no sequence, once the stream has ended.
    pub fn dropped_tokens(&self) -> usize {
        self.current.tokens.len()
    }

    /// Documents read so far, some of them perhaps still waiting.
    pub fn documents_read(&self) -> u64 {
        self.seen
    }

    /// Tokenises the next documents in parallel, keeping their order; false when there are no more.
    fn refill(&mut self) -> Result<bool> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        while batch.len() < BATCH_DOCUMENTS && bytes < BATCH_BYTES {
            let Some(document) = self.documents.next() else { break };
            let document = document?;
            bytes += document.text.len();
            let identity = Some((document.file, document.index));
            let begins = self.last != identity;
            self.last = identity;
            self.seen += u64::from(begins);
            let ordinal = u32::try_from(self.seen - 1).map_err(|_| Error::Unsupported {
                what: "a corpus of more than 4,294,967,295 documents".into(),
                why: "document numbers are stored in 32 bits".into(),
                remedy: "cache it in parts".into(),
            })?;
            batch.push((ordinal, begins, document.text));
        }
        let encode = |(document, begins, text): (u32, bool, String)| {
            let tokens = self.tokenizer.encode(&text, BosPolicy::Never)?.into_iter();
            Ok(Piece { document, begins, tokens })
        };
        let more = !batch.is_empty();
        let pieces: Vec<Piece> = batch.into_par_iter().map(encode).collect::<Result<_>>()?;
        self.waiting.extend(pieces);
        Ok(more)
    }

    /// Moves tokens of the first waiting piece into the current sequence.
    fn take(&mut self, piece: &mut Piece) {
        let Some(&first) = piece.tokens.as_slice().first() else { return };
        let context = self.settings.context_size;
        let prefix = match (self.current.tokens.is_empty(), piece.begins) {
            (true, _) => self.begin,
            (false, true) => self.separator,
            (false, false) => None,
        };
        piece.begins = false;
        let room = context - self.current.tokens.len();
        let tokens = prefix.filter(|&token| token != first).into_iter().chain(piece.tokens.by_ref()).take(room);
        self.current.tokens.extend(tokens);
        self.current.documents.resize(self.current.tokens.len(), piece.document);
    }
}

impl<D: Iterator<Item = Result<Document>>> Iterator for Packer<'_, D> {
    type Item = Result<Sequence>;

    fn next(&mut self) -> Option<Self::Item> {
        let context = self.settings.context_size;
        while !self.failed {
            if self.current.tokens.len() == context {
                return Some(Ok(std::mem::replace(&mut self.current, empty(context))));
            }
            if let Some(mut piece) = self.waiting.pop_front() {
                self.take(&mut piece);
                if piece.tokens.len() > 0 {
                    self.waiting.push_front(piece);
                }
                continue;
            }
            match self.refill() {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => {
                    self.failed = true;
                    return Some(Err(error));
                }
            }
        }
        None
    }
}

fn empty(context: usize) -> Sequence {
    Sequence { tokens: Vec::with_capacity(context), documents: Vec::with_capacity(context) }
}

#[cfg(test)]
mod tests {
    use super::super::tokenizer::tests::byte_tokenizer;
    use super::*;

    const BOS: u32 = 256;

    #[expect(clippy::unnecessary_wraps, reason = "streams of documents are streams of results")]
    fn document(index: u64, text: &str) -> Result<Document> {
        Ok(Document { file: 0, index, text: text.into() })
    }

    fn pack(documents: Vec<Result<Document>>, context_size: usize, bos: BosPolicy) -> (Vec<Sequence>, usize) {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = byte_tokenizer(dir.path());
        let mut packer = Packer::new(&tokenizer, documents.into_iter(), PackSettings { context_size, bos }).unwrap();
        let sequences: Vec<Sequence> = packer.by_ref().map(|s| s.unwrap()).collect();
        let dropped = packer.dropped_tokens();
        (sequences, dropped)
    }

    fn ids(text: &str) -> Vec<u32> {
        text.bytes().map(|b| if b == b'^' { BOS } else { u32::from(b) }).collect()
    }

    fn sequence(text: &str, documents: &[u32]) -> Sequence {
        Sequence { tokens: ids(text), documents: documents.to_vec() }
    }

    fn example() -> Vec<Result<Document>> {
        ["abc", "defgh", "", "ij", "k", "lmnopqr", "st"].iter().zip(0..).map(|(text, i)| document(i, text)).collect()
    }

    /// The sequences of SAELens 6.54's `concat_and_batch_sequences` for the same documents.
    #[test]
    fn packing_equals_saelens_on_an_example() {
        let (sequences, dropped) = pack(example(), 5, BosPolicy::Prepend);
        let expected = [
            sequence("^abc^", &[0, 0, 0, 0, 1]),
            sequence("^defg", &[1, 1, 1, 1, 1]),
            sequence("^h^ij", &[1, 1, 3, 3, 3]),
            sequence("^k^lm", &[4, 4, 5, 5, 5]),
            sequence("^nopq", &[5, 5, 5, 5, 5]),
            sequence("^r^st", &[5, 5, 6, 6, 6]),
        ];
        assert_eq!(sequences, expected);
        assert_eq!(dropped, 0);
        let (sequences, dropped) = pack(example(), 7, BosPolicy::Never);
        let expected = [
            sequence("abc^def", &[0, 0, 0, 1, 1, 1, 1]),
            sequence("gh^ij^k", &[1, 1, 3, 3, 3, 4, 4]),
            sequence("lmnopqr", &[5; 7]),
        ];
        assert_eq!(sequences, expected);
        assert_eq!(dropped, 2);
    }

    #[test]
    fn a_prefix_that_the_text_begins_with_is_not_doubled() {
        let (sequences, _) = pack(vec![document(0, "<s>a"), document(1, "<s>b")], 4, BosPolicy::Prepend);
        assert_eq!(sequences, [sequence("^a^b", &[0, 0, 1, 1])]);
    }

    #[test]
    fn pieces_of_one_document_join_without_a_separator() {
        let pieces = vec![document(0, "ab"), document(0, "cd"), document(1, "ef")];
        let (sequences, dropped) = pack(pieces, 4, BosPolicy::Prepend);
        assert_eq!(sequences, [sequence("^abc", &[0; 4]), sequence("^d^e", &[0, 0, 1, 1])]);
        assert_eq!(dropped, 2);
    }

    #[test]
    fn skipping_equals_dropping_over_many_batches() {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = byte_tokenizer(dir.path());
        let documents = || (0..2000u64).map(|i| document(i, &"x y".repeat(i as usize % 13)));
        let settings = PackSettings { context_size: 11, bos: BosPolicy::Prepend };
        let all: Vec<_> = Packer::new(&tokenizer, documents(), settings).unwrap().map(|s| s.unwrap()).collect();
        assert!(all.len() > 1000 && all.iter().all(|s| s.tokens.len() == 11 && s.documents.len() == 11));
        for n in [0, 1, 700, all.len() as u64] {
            let mut packer = Packer::new(&tokenizer, documents(), settings).unwrap();
            assert_eq!(packer.skip_sequences(n).unwrap(), n);
            assert!(packer.map(|s| s.unwrap()).eq(all[n as usize..].iter().cloned()));
        }
        let mut packer = Packer::new(&tokenizer, documents(), settings).unwrap();
        assert_eq!(packer.skip_sequences(u64::MAX).unwrap(), all.len() as u64);
    }

    #[test]
    fn an_error_of_a_document_ends_the_stream() {
        let bad = Err(Error::flag("--x", "a", "b", "c"));
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = byte_tokenizer(dir.path());
        let settings = PackSettings { context_size: 2, bos: BosPolicy::Never };
        let mut packer = Packer::new(&tokenizer, vec![bad, document(0, "abcd")].into_iter(), settings).unwrap();
        assert!(packer.next().unwrap().is_err() && packer.next().is_none());
        assert!(Packer::new(&tokenizer, std::iter::empty(), PackSettings { context_size: 1, ..settings }).is_err());
    }
}
