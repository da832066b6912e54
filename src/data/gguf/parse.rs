//! Reading a GGUF header from bytes that may be cut off or damaged: every length is checked against what is left
//! before anything is allocated for it.

use std::ops::Range;
use std::path::Path;

use crate::base::{Error, Result};

use super::{DAMAGED, Header, TensorInfo, TensorType, Value, WHAT};

/// The number of the text type.
pub(super) const TEXT: u32 = 8;
const ARRAY: u32 = 9;
/// `GGML_MAX_DIMS`.
const MOST_DIMENSIONS: u32 = 4;
/// The default of `general.alignment`, which the format wants to be a multiple of eight.
const ALIGNMENT: usize = 32;
const LEAST_ALIGNMENT: usize = 8;

/// What of the header could not be read.
struct Damaged(String);

type Read<T> = std::result::Result<T, Damaged>;

/// Reads the header of the GGUF file `path` with contents `file`.
pub(super) fn header(path: &Path, file: &[u8]) -> Result<Header> {
    let unsupported = |why: &str| Error::Unsupported {
        what: format!("the GGUF file {}", path.display()),
        why: why.into(),
        remedy: "convert the model again with a current llama.cpp".into(),
    };
    if let Some(version) = file.get(4..8).and_then(|v| Some(u32::from_le_bytes(v.try_into().ok()?))) {
        match version {
            2 | 3 => {}
            1 => return Err(unsupported("it has version 1 of the format, which was replaced in 2023")),
            v if v.swap_bytes() <= 3 => return Err(unsupported("its numbers are stored big-endian")),
            v => return Err(unsupported(&format!("it has version {v} of the format; 2 and 3 are known"))),
        }
    }
    let mut reader = Reader { file, at: 4 };
    reader.header().map_err(|Damaged(found)| Error::malformed(WHAT, path, "a whole GGUF file", found, DAMAGED))
}

/// The texts of an array that was checked before.
pub(super) fn texts(bytes: &[u8], count: usize) -> Option<Vec<&str>> {
    let mut reader = Reader { file: bytes, at: 0 };
    let mut texts = Vec::with_capacity(count);
    for _ in 0..count {
        let range = reader.text().ok()?;
        texts.push(std::str::from_utf8(bytes.get(range)?).ok()?);
    }
    Some(texts)
}

/// The scalars of an array that was checked before.
pub(super) fn scalars<T>(kind: u32, bytes: &[u8], count: usize, scalar: impl Fn(Value) -> Option<T>) -> Option<Vec<T>> {
    let mut reader = Reader { file: bytes, at: 0 };
    (0..count).map(|_| scalar(reader.value(kind).ok()?)).collect()
}

/// Bytes of a scalar of a metadata type.
fn width(kind: u32) -> Option<usize> {
    Some(match kind {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        10..=12 => 8,
        _ => return None,
    })
}

struct Reader<'a> {
    file: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn header(&mut self) -> Read<Header> {
        self.u32("the version")?;
        let tensors = self.length("the number of tensors")?;
        let entries = self.length("the number of metadata entries")?;
        let mut header = Header::default();
        for n in 0..entries {
            let key = self.name().map_err(|Damaged(why)| Damaged(format!("metadata entry {n} with {why}")))?;
            let value = self.u32("its type").and_then(|kind| self.value(kind));
            let value = value.map_err(|Damaged(why)| Damaged(format!("metadata '{key}' with {why}")))?;
            header.metadata.insert(key, value);
        }
        let mut infos = Vec::new();
        for n in 0..tensors {
            let name = self.name().map_err(|Damaged(why)| Damaged(format!("tensor {n} with {why}")))?;
            let info = self.tensor().map_err(|Damaged(why)| Damaged(format!("tensor '{name}' with {why}")))?;
            infos.push((name, info));
        }
        let alignment = match header.metadata.get("general.alignment") {
            Some(Value::Int(n)) => usize::try_from(*n).unwrap_or_default(),
            _ => ALIGNMENT,
        };
        if alignment == 0 || alignment % LEAST_ALIGNMENT != 0 {
            return Err(Damaged(format!("'general.alignment' of {alignment}, which is no multiple of 8")));
        }
        let data = self.at.checked_next_multiple_of(alignment).unwrap_or(usize::MAX);
        for (name, (dtype, shape, offset)) in infos {
            let range = dtype.size(&shape).and_then(|size| {
                let start = data.checked_add(usize::try_from(offset).ok()?)?;
                Some(start..start.checked_add(size)?)
            });
            let Some(range) = range.filter(|range| range.end <= self.file.len()) else {
                let len = self.file.len();
                return Err(Damaged(format!("{len} bytes, too few for '{name}' of type {} {shape:?}", dtype.name)));
            };
            if range.start % LEAST_ALIGNMENT != 0 {
                return Err(Damaged(format!("'{name}' at byte {}, which is no multiple of 8", range.start)));
            }
            header.tensors.insert(name, TensorInfo { dtype, shape, range });
        }
        Ok(header)
    }

    fn take(&mut self, len: usize, what: &str) -> Read<&'a [u8]> {
        let end = self.at.checked_add(len);
        match end.and_then(|end| self.file.get(self.at..end)) {
            Some(bytes) => {
                self.at += len;
                Ok(bytes)
            }
            None => Err(Damaged(format!("{what} past the end of the file"))),
        }
    }

    /// A little-endian unsigned integer of at most eight bytes.
    fn unsigned(&mut self, len: usize, what: &str) -> Read<u64> {
        Ok(self.take(len, what)?.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
    }

    fn u32(&mut self, what: &str) -> Read<u32> {
        Ok(self.unsigned(4, what)? as u32)
    }

    fn length(&mut self, what: &str) -> Read<usize> {
        let length = self.unsigned(8, what)?;
        usize::try_from(length).map_err(|_| Damaged(format!("{what} of {length}")))
    }

    fn text(&mut self) -> Read<Range<usize>> {
        let len = self.length("a text")?;
        let start = self.at;
        self.take(len, "a text")?;
        Ok(start..self.at)
    }

    fn name(&mut self) -> Read<String> {
        let range = self.text()?;
        let name = self.file.get(range).and_then(|bytes| std::str::from_utf8(bytes).ok());
        name.map(str::to_owned).ok_or_else(|| Damaged("a name that is no UTF-8".into()))
    }

    fn value(&mut self, kind: u32) -> Read<Value> {
        if kind == TEXT {
            return Ok(Value::Text(self.text()?));
        }
        if kind == ARRAY {
            return self.array();
        }
        let len = width(kind).ok_or_else(|| Damaged(format!("a value of the unknown type {kind}")))?;
        let bits = self.unsigned(len, "a value")?;
        let unused = 64 - 8 * len as u32;
        Ok(match kind {
            6 => Value::Float(f64::from(f32::from_bits(bits as u32))),
            12 => Value::Float(f64::from_bits(bits)),
            7 => Value::Bool(bits != 0),
            1 | 3 | 5 | 11 => Value::Int(i128::from((bits << unused) as i64 >> unused)),
            _ => Value::Int(i128::from(bits)),
        })
    }

    fn array(&mut self) -> Read<Value> {
        let kind = self.u32("the type of a list")?;
        let count = self.length("the length of a list")?;
        let start = self.at;
        if kind == TEXT {
            for _ in 0..count {
                self.text()?;
            }
        } else {
            // Lists of lists are in the format, but no model has any.
            let len = width(kind).ok_or_else(|| Damaged(format!("a list of the unknown type {kind}")))?;
            self.take(len.saturating_mul(count), "a list")?;
        }
        Ok(Value::Array { kind, count, bytes: start..self.at })
    }

    fn tensor(&mut self) -> Read<(TensorType, Vec<usize>, u64)> {
        let dimensions = self.u32("its number of dimensions")?;
        if dimensions > MOST_DIMENSIONS {
            return Err(Damaged(format!("{dimensions} dimensions")));
        }
        let mut shape = (0..dimensions).map(|_| self.length("a dimension")).collect::<Read<Vec<_>>>()?;
        shape.reverse();
        let id = self.u32("its type")?;
        let dtype = TensorType::from_id(id).ok_or_else(|| Damaged(format!("the unknown type {id}")))?;
        Ok((dtype, shape, self.unsigned(8, "its offset")?))
    }
}
