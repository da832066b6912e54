//! Documents from text files, in a fixed order and in bounded memory.
//!
//! `.txt`: the file is one document. `.jsonl` (or `.ndjson`): one document a line, in the field `text`.
//! `.parquet`: one document a row, in the column `text`. A text file longer than [`PIECE_BYTES`] arrives as several
//! [`Document`]s with one index, cut after a line; they are tokenised apart and joined without a separator.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::parquet::ParquetTexts;
use crate::base::artifact::hash_file;
use crate::base::{Error, Result};

/// The field or column that holds the text unless another is named.
pub const DEFAULT_TEXT_FIELD: &str = "text";

/// Bytes of a `.txt` file that are read and tokenised at once.
pub const PIECE_BYTES: usize = 1 << 18;

/// One document, or the next piece of a long one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Which file of the corpus.
    pub file: usize,
    /// Which document of that file, from 0; rows and lines without text count too.
    pub index: u64,
    /// The text.
    pub text: String,
}

/// One file of a corpus with its content hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataFile {
    /// The path as it was given.
    pub path: PathBuf,
    /// Size.
    pub bytes: u64,
    /// BLAKE3 of the contents, hexadecimal.
    pub blake3: String,
}

/// The file formats that hold documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Text,
    Jsonl,
    Parquet,
}

impl Format {
    pub(super) fn of(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "txt" => Some(Self::Text),
            "jsonl" | "ndjson" => Some(Self::Jsonl),
            "parquet" => Some(Self::Parquet),
            _ => None,
        }
    }

    pub(super) fn known() -> &'static str {
        ".txt, .jsonl, .ndjson or .parquet"
    }
}

/// Files of documents, checked and hashed.
#[derive(Debug, Clone)]
pub struct Corpus {
    files: Vec<DataFile>,
    text_field: String,
}

impl Corpus {
    /// Checks and hashes `paths`; texts are in the field or column `text_field` of JSONL and parquet.
    ///
    /// # Errors
    /// `Missing`, `Unsupported` for an unknown kind of file, `Malformed` when the first documents cannot be read or
    /// there is no text at all.
    pub fn open(paths: &[PathBuf], text_field: &str) -> Result<Self> {
        let mut files = Vec::with_capacity(paths.len());
        for path in paths {
            if Format::of(path).is_none() {
                return Err(Error::Unsupported {
                    what: format!("the data file {}", path.display()),
                    why: format!("documents are read from files that end in {}", Format::known()),
                    remedy: "decompress or convert it to one of these, and give it that ending".into(),
                });
            }
            let meta = std::fs::metadata(path).map_err(Error::io("read the data file", path))?;
            files.push(DataFile { path: path.clone(), bytes: meta.len(), blake3: hash_file(path)? });
        }
        let corpus = Self { files, text_field: text_field.into() };
        for document in corpus.documents() {
            if !document?.text.trim().is_empty() {
                return Ok(corpus);
            }
        }
        Err(Error::Missing {
            what: "text",
            path: paths.first().cloned().unwrap_or_default(),
            expected: "at least one document that is not empty".into(),
            remedy: "give --data a file with text in it".into(),
        })
    }

    /// The files in reading order.
    pub fn files(&self) -> &[DataFile] {
        &self.files
    }

    /// The field or column of the text.
    pub fn text_field(&self) -> &str {
        &self.text_field
    }

    /// All documents from the beginning, file after file.
    pub fn documents(&self) -> Documents<'_> {
        Documents { corpus: self, next_file: 0, open: None }
    }
}

/// The documents of a [`Corpus`]. After an error it ends.
pub struct Documents<'a> {
    corpus: &'a Corpus,
    next_file: usize,
    open: Option<Reader>,
}

enum Reader {
    Text(TextPieces),
    Jsonl(JsonLines),
    Parquet(Box<ParquetTexts>),
}

impl Iterator for Documents<'_> {
    type Item = Result<Document>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let next = match &mut self.open {
                None => None,
                Some(Reader::Text(reader)) => reader.next().map(|text| text.map(|text| (0, text))),
                Some(Reader::Jsonl(reader)) => reader.next(),
                Some(Reader::Parquet(reader)) => reader.next(),
            };
            match next {
                Some(Ok((index, text))) => return Some(Ok(Document { file: self.next_file - 1, index, text })),
                Some(Err(error)) => return Some(Err(self.stop(error))),
                None => {}
            }
            let file = self.corpus.files.get(self.next_file)?;
            self.next_file += 1;
            match open(&file.path, &self.corpus.text_field) {
                Ok(reader) => self.open = Some(reader),
                Err(error) => return Some(Err(self.stop(error))),
            }
        }
    }
}

impl Documents<'_> {
    fn stop(&mut self, error: Error) -> Error {
        self.open = None;
        self.next_file = self.corpus.files.len();
        error
    }
}

fn open(path: &Path, field: &str) -> Result<Reader> {
    let file = || File::open(path).map_err(Error::io("open the data file", path));
    Ok(match Format::of(path) {
        Some(Format::Parquet) => Reader::Parquet(Box::new(ParquetTexts::open(path, field)?)),
        Some(Format::Jsonl) => Reader::Jsonl(JsonLines {
            path: path.into(),
            field: field.into(),
            input: BufReader::new(file()?),
            line: 0,
            documents: 0,
            offset: 0,
        }),
        _ => Reader::Text(TextPieces {
            path: path.into(),
            input: file()?,
            rest: Vec::new(),
            line: 1,
            offset: 0,
            ended: false,
        }),
    })
}

/// A text file in pieces of at most [`PIECE_BYTES`], each ending after a line where there is one.
struct TextPieces {
    path: PathBuf,
    input: File,
    rest: Vec<u8>,
    line: u64,
    offset: u64,
    ended: bool,
}

impl TextPieces {
    fn next(&mut self) -> Option<Result<String>> {
        while !self.ended && self.rest.len() < PIECE_BYTES {
            let wanted = (PIECE_BYTES - self.rest.len()) as u64;
            match self.input.by_ref().take(wanted).read_to_end(&mut self.rest) {
                Ok(0) => self.ended = true,
                Ok(_) => {}
                Err(e) => return Some(Err(Error::io("read the data file", &self.path)(e))),
            }
        }
        if self.rest.is_empty() {
            return None;
        }
        let tail = self.rest.split_off(if self.ended { self.rest.len() } else { cut(&self.rest) });
        let piece = std::mem::replace(&mut self.rest, tail);
        let start = if self.offset == 0 && piece.starts_with(BOM) { BOM.len() } else { 0 };
        let text = match std::str::from_utf8(&piece[start..]) {
            Ok(text) => text.to_owned(),
            Err(e) => {
                let at = start + e.valid_up_to();
                let line = self.line + count_lines(&piece[..at]);
                return Some(Err(invalid_utf8(&self.path, line, self.offset + at as u64)));
            }
        };
        self.line += count_lines(&piece);
        self.offset += piece.len() as u64;
        Some(Ok(text))
    }
}

const BOM: &[u8] = "\u{feff}".as_bytes();

/// Where to end a piece: after the last line, else after the last space, else between characters.
fn cut(bytes: &[u8]) -> usize {
    let after = |byte: u8| bytes.iter().rposition(|&b| b == byte).map(|at| at + 1);
    after(b'\n').or_else(|| after(b' ')).unwrap_or_else(|| {
        let boundary = (bytes.len().saturating_sub(3)..bytes.len()).rev().find(|&i| bytes[i] & 0xc0 != 0x80);
        boundary.filter(|&i| i > 0).unwrap_or(bytes.len())
    })
}

fn count_lines(bytes: &[u8]) -> u64 {
    bytes.split(|&b| b == b'\n').count() as u64 - 1
}

fn invalid_utf8(path: &Path, line: u64, offset: u64) -> Error {
    Error::malformed(
        "text data",
        path,
        "valid UTF-8",
        format!("an invalid byte on line {line}, at byte offset {offset}"),
        "convert the file to UTF-8, for example with: iconv -f LATIN1 -t UTF-8",
    )
}

/// One JSON object a line.
struct JsonLines {
    path: PathBuf,
    field: String,
    input: BufReader<File>,
    line: u64,
    documents: u64,
    offset: u64,
}

impl JsonLines {
    fn next(&mut self) -> Option<Result<(u64, String)>> {
        let mut bytes = Vec::new();
        loop {
            bytes.clear();
            match self.input.read_until(b'\n', &mut bytes) {
                Ok(0) => return None,
                Ok(_) => {}
                Err(e) => return Some(Err(Error::io("read the data file", &self.path)(e))),
            }
            let start = if self.offset == 0 && bytes.starts_with(BOM) { BOM.len() } else { 0 };
            self.line += 1;
            let offset = self.offset + start as u64;
            self.offset += bytes.len() as u64;
            let line = match std::str::from_utf8(&bytes[start..]) {
                Ok(line) => line,
                Err(e) => return Some(Err(invalid_utf8(&self.path, self.line, offset + e.valid_up_to() as u64))),
            };
            if line.trim().is_empty() {
                continue;
            }
            let index = self.documents;
            self.documents += 1;
            return Some(self.text_of(line).map(|text| (index, text)));
        }
    }

    fn text_of(&self, line: &str) -> Result<String> {
        let bad = |found: String, remedy: String| {
            let expected = format!("on line {} a JSON object with a string '{}'", self.line, self.field);
            Error::malformed("JSONL data", &self.path, expected, found, remedy)
        };
        let mend = "mend or remove that line; each line must be one JSON object";
        let value: serde_json::Value =
            serde_json::from_str(line).map_err(|e| bad(format!("invalid JSON ({e})"), mend.into()))?;
        let serde_json::Value::Object(mut object) = value else {
            return Err(bad("JSON that is no object".into(), mend.into()));
        };
        match object.get_mut(&self.field) {
            Some(serde_json::Value::String(text)) => Ok(std::mem::take(text)),
            Some(_) => Err(bad(
                format!("'{}' that is no string", self.field),
                "name the field that holds the text with --text-field".into(),
            )),
            None => {
                let keys: Vec<&str> = object.keys().map(String::as_str).take(20).collect();
                let keys = if keys.is_empty() { "none".into() } else { keys.join(", ") };
                Err(bad(format!("the keys: {keys}"), "name the field that holds the text with --text-field".into()))
            }
        }
    }
}

#[cfg(test)]
#[path = "corpus_tests.rs"]
mod tests;
