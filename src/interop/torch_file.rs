//! Writes a state dict as `torch.save` does: a zip archive of a pickle and one aligned, uncompressed member of numbers
//! for each tensor. `torch.load(path, weights_only=True)` opens it. Layout: `torch/serialization.py`,
//! `caffe2/serialize/inline_container.cc`; pickle opcodes: `CPython`'s `Lib/pickletools.py`; zip: APPNOTE 4.3.

use std::fs::File;
use std::io::{BufWriter, Result as IoResult, Write};
use std::path::Path;

use crate::base::Result;
use crate::base::artifact::write_atomic_with;

/// Where torch's own writer aligns numbers to.
const ALIGNMENT: u64 = 64;
const FOLDER: &str = "ae";
/// From here on a number does not fit in the narrow fields of a zip.
const WIDE: u64 = 0xffff_ffff;

/// The numbers of a tensor.
#[derive(Debug, Clone)]
pub(super) enum Numbers {
    F32(Vec<f32>),
    I32(Vec<i32>),
}

impl Numbers {
    fn class(&self) -> &'static str {
        match self {
            Self::F32(_) => "FloatStorage",
            Self::I32(_) => "IntStorage",
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::I32(values) => values.len(),
        }
    }

    /// Hands over the bytes in blocks.
    fn blocks(&self, mut take: impl FnMut(&[u8]) -> IoResult<()>) -> IoResult<()> {
        const BLOCK: usize = 1 << 14;
        match self {
            Self::F32(values) => values
                .chunks(BLOCK)
                .try_for_each(|block| take(&block.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>())),
            Self::I32(values) => values
                .chunks(BLOCK)
                .try_for_each(|block| take(&block.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>())),
        }
    }
}

/// A named tensor, row-major.
pub(super) type Tensor<'a> = (&'a str, Vec<usize>, Numbers);

/// Writes `tensors` to `path`, whole or not at all.
///
/// # Errors
/// `Io` when the file cannot be written.
pub(super) fn write(path: &Path, tensors: &[Tensor<'_>]) -> Result<()> {
    write_atomic_with(path, |file| {
        let mut zip = Zip { out: BufWriter::new(file), at: 0, entries: Vec::new() };
        zip.bytes("data.pkl", &pickle(tensors))?;
        zip.bytes("byteorder", b"little")?;
        for (i, (_, _, numbers)) in tensors.iter().enumerate() {
            zip.member(&format!("data/{i}"), numbers.len() as u64 * 4, |take| numbers.blocks(take))?;
        }
        zip.bytes("version", b"3\n")?;
        zip.finish()
    })
}

/// An `OrderedDict` from names to calls of `_rebuild_tensor_v2`, protocol 2.
fn pickle(tensors: &[Tensor<'_>]) -> Vec<u8> {
    let mut out = b"\x80\x02ccollections\nOrderedDict\n)R(".to_vec();
    let text = |out: &mut Vec<u8>, text: &str| {
        out.push(b'X');
        out.extend((text.len() as u32).to_le_bytes());
        out.extend(text.as_bytes());
    };
    for (i, (name, shape, numbers)) in tensors.iter().enumerate() {
        text(&mut out, name);
        out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        text(&mut out, "storage");
        out.extend(format!("ctorch\n{}\n", numbers.class()).bytes());
        text(&mut out, &i.to_string());
        text(&mut out, "cpu");
        integer(&mut out, numbers.len());
        out.extend(b"tQK\x00(");
        for &d in shape {
            integer(&mut out, d);
        }
        out.extend(b"t(");
        for axis in 0..shape.len() {
            integer(&mut out, shape.iter().skip(axis + 1).product());
        }
        // No gradient, and no hooks for one.
        out.extend(b"t\x89ccollections\nOrderedDict\n)RtR");
    }
    out.extend(b"u.");
    out
}

fn integer(out: &mut Vec<u8>, n: usize) {
    if let Ok(n) = i32::try_from(n) {
        out.push(b'J');
        out.extend(n.to_le_bytes());
    } else {
        out.extend([0x8a, 8]);
        out.extend((n as u64).to_le_bytes());
    }
}

struct Written {
    name: String,
    crc: u32,
    size: u64,
    at: u64,
}

struct Zip<'a> {
    out: BufWriter<&'a mut File>,
    at: u64,
    entries: Vec<Written>,
}

impl Zip<'_> {
    fn put(&mut self, bytes: &[u8]) -> IoResult<()> {
        self.at += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    fn bytes(&mut self, name: &str, bytes: &[u8]) -> IoResult<()> {
        self.member(name, bytes.len() as u64, |take| take(bytes))
    }

    /// A stored member; `blocks` is called twice, first for the checksum that stands before the contents.
    fn member(
        &mut self,
        name: &str,
        size: u64,
        blocks: impl Fn(&mut dyn FnMut(&[u8]) -> IoResult<()>) -> IoResult<()>,
    ) -> IoResult<()> {
        let mut crc = flate2::Crc::new();
        blocks(&mut |block| {
            crc.update(block);
            Ok(())
        })?;
        let entry = Written { name: format!("{FOLDER}/{name}"), crc: crc.sum(), size, at: self.at };
        let mut extra = wide_fields(&[size, size], size >= WIDE);
        let header = 30 + entry.name.len() as u64;
        let start = self.at + header + extra.len() as u64;
        // torch fills up to the next multiple of 64 with an extra field of its own.
        let padding = (2 * ALIGNMENT - (start + 4) % ALIGNMENT) % ALIGNMENT;
        extra.extend(b"FB");
        extra.extend((padding as u16).to_le_bytes());
        extra.extend(std::iter::repeat_n(b'Z', padding as usize));
        self.put(b"PK\x03\x04\x2d\x00\x00\x00\x00\x00\x00\x00\x21\x00")?;
        let narrow = size.min(WIDE) as u32;
        for field in [entry.crc, narrow, narrow] {
            self.put(&field.to_le_bytes())?;
        }
        self.put(&(entry.name.len() as u16).to_le_bytes())?;
        self.put(&(extra.len() as u16).to_le_bytes())?;
        self.put(entry.name.as_bytes())?;
        self.put(&extra)?;
        blocks(&mut |block| self.put(block))?;
        self.entries.push(entry);
        Ok(())
    }

    /// The directory and its end.
    fn finish(mut self) -> IoResult<()> {
        let (start, count) = (self.at, self.entries.len() as u64);
        for Written { name, crc, size, at } in std::mem::take(&mut self.entries) {
            let wide: Vec<u64> = [size, size, at].into_iter().filter(|n| *n >= WIDE).collect();
            let extra = wide_fields(&wide, !wide.is_empty());
            self.put(b"PK\x01\x02\x2d\x03\x2d\x00\x00\x00\x00\x00\x00\x00\x21\x00")?;
            for field in [crc, size.min(WIDE) as u32, size.min(WIDE) as u32] {
                self.put(&field.to_le_bytes())?;
            }
            self.put(&(name.len() as u16).to_le_bytes())?;
            self.put(&(extra.len() as u16).to_le_bytes())?;
            // No comment, first disk, no attributes.
            self.put(&[0; 10])?;
            self.put(&(at.min(WIDE) as u32).to_le_bytes())?;
            self.put(name.as_bytes())?;
            self.put(&extra)?;
        }
        let length = self.at - start;
        if start + length >= WIDE {
            let end = self.at;
            self.put(b"PK\x06\x06\x2c\x00\x00\x00\x00\x00\x00\x00\x2d\x03\x2d\x00\x00\x00\x00\x00\x00\x00\x00\x00")?;
            for field in [count, count, length, start] {
                self.put(&field.to_le_bytes())?;
            }
            self.put(b"PK\x06\x07\x00\x00\x00\x00")?;
            self.put(&end.to_le_bytes())?;
            self.put(&1u32.to_le_bytes())?;
        }
        self.put(b"PK\x05\x06\x00\x00\x00\x00")?;
        self.put(&(count as u16).to_le_bytes())?;
        self.put(&(count as u16).to_le_bytes())?;
        self.put(&(length.min(WIDE) as u32).to_le_bytes())?;
        self.put(&(start.min(WIDE) as u32).to_le_bytes())?;
        self.put(&[0; 2])?;
        self.out.flush()
    }
}

/// The zip64 extra field.
fn wide_fields(fields: &[u64], needed: bool) -> Vec<u8> {
    let mut out = Vec::new();
    if needed {
        out.extend(1u16.to_le_bytes());
        out.extend((fields.len() as u16 * 8).to_le_bytes());
        for field in fields {
            out.extend(field.to_le_bytes());
        }
    }
    out
}
