//! The members of a zip archive. `torch.save` stores tensors in one, uncompressed and aligned, so that they can be
//! mapped (`caffe2/serialize/inline_container.cc`); NumPy's `.npz` files are archives of `.npy` files, stored or
//! deflated. Format: PKWARE APPNOTE 4.3.6, with zip64.
//!
//! An archive says itself how large its members are, so what it says is believed only as far as its own length makes
//! it likely ([`MOST_INFLATION`]); nothing is allocated before that.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Read;
use std::ops::Range;

use flate2::read::DeflateDecoder;

const END: &[u8] = b"PK\x05\x06";
const END_64: &[u8] = b"PK\x06\x06";
const LOCATOR_64: &[u8] = b"PK\x06\x07";
const DIRECTORY_ENTRY: &[u8] = b"PK\x01\x02";
const LOCAL_ENTRY: &[u8] = b"PK\x03\x04";
const END_LEN: usize = 22;
const LONGEST_COMMENT: usize = 0xffff;
const STORED: u16 = 0;
const DEFLATED: u16 = 8;

/// How many times its compressed length a member may have, beyond [`SMALL`]. Weights shrink by a tenth; a bomb grows
/// a thousandfold.
pub const MOST_INFLATION: u64 = 16;
/// Members up to this many bytes may shrink by any factor: a bias of zeros does.
pub const SMALL: u64 = 1 << 22;

/// One member of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    method: u16,
    crc: u32,
    /// Its bytes in the archive, as they are stored.
    pub range: Range<usize>,
    /// Bytes when read.
    pub size: u64,
}

impl Member {
    /// Whether its bytes stand in the archive as they are.
    pub fn is_stored(&self) -> bool {
        self.method == STORED
    }

    /// The contents, borrowed where they are stored, checked against the member's checksum.
    ///
    /// # Errors
    /// What is wrong, as words that follow "found".
    pub fn read<'a>(&self, archive: &'a [u8]) -> Result<Cow<'a, [u8]>, String> {
        let bytes = self.prefix(archive, self.size)?;
        if bytes.len() as u64 != self.size {
            return Err(format!("{} bytes where its directory says {}", bytes.len(), self.size));
        }
        let mut crc = flate2::Crc::new();
        crc.update(&bytes);
        if crc.sum() != self.crc {
            return Err("contents that do not have their checksum".into());
        }
        Ok(bytes)
    }

    /// The first `len` bytes of the contents, or all where there are fewer; the checksum says nothing about them.
    ///
    /// # Errors
    /// What is wrong, as words that follow "found".
    pub fn prefix<'a>(&self, archive: &'a [u8], len: u64) -> Result<Cow<'a, [u8]>, String> {
        let stored = archive.get(self.range.clone()).unwrap_or_default();
        let len = len.min(self.size);
        match self.method {
            STORED => Ok(stored.get(..len as usize).unwrap_or(stored).into()),
            DEFLATED => {
                let likely = SMALL.max((stored.len() as u64).saturating_mul(MOST_INFLATION));
                if len > likely {
                    let (whole, packed) = (self.size, stored.len());
                    return Err(format!("a member that claims to unpack from {packed} bytes to {whole}"));
                }
                let mut bytes = Vec::with_capacity(len as usize);
                let inflated = DeflateDecoder::new(stored).take(len).read_to_end(&mut bytes);
                inflated.map_err(|e| format!("compressed contents that do not unpack ({e})"))?;
                Ok(bytes.into())
            }
            method => Err(format!("compression method {method}, where 0 (none) and 8 (deflate) are read")),
        }
    }
}

/// Little-endian reads that end in `None` instead of a panic past the end.
#[derive(Clone, Copy)]
struct At<'a>(&'a [u8]);

impl<'a> At<'a> {
    fn bytes(self, at: usize, len: usize) -> Option<&'a [u8]> {
        self.0.get(at..at.checked_add(len)?)
    }

    fn u16(self, at: usize) -> Option<u16> {
        Some(u16::from_le_bytes(self.bytes(at, 2)?.try_into().ok()?))
    }

    fn u32(self, at: usize) -> Option<u32> {
        Some(u32::from_le_bytes(self.bytes(at, 4)?.try_into().ok()?))
    }

    fn u64(self, at: usize) -> Option<u64> {
        Some(u64::from_le_bytes(self.bytes(at, 8)?.try_into().ok()?))
    }

    fn starts(self, at: usize, signature: &[u8]) -> bool {
        self.bytes(at, signature.len()) == Some(signature)
    }
}

/// Every member of the archive `file`, by name.
///
/// # Errors
/// What is wrong, as words that follow "found": the archive is cut off or damaged.
pub fn members(file: &[u8]) -> Result<BTreeMap<String, Member>, String> {
    let zip = At(file);
    let (mut at, count) = directory(zip).ok_or("no zip directory at its end, as a cut-off file has none")?;
    let mut members = BTreeMap::new();
    for n in 0..count {
        let entry = entry(zip, at).ok_or_else(|| format!("a damaged zip directory at entry {n}"))?;
        let range = local_data(zip, &entry).ok_or_else(|| format!("'{}' cut off or damaged", entry.name))?;
        let Entry { name, method, crc, size, packed, next, .. } = entry;
        if method == STORED && size != packed {
            return Err(format!("'{name}' with {packed} bytes where it says {size}"));
        }
        members.insert(name, Member { method, crc, range, size });
        at = next;
    }
    Ok(members)
}

/// Offset of the central directory and its number of entries.
fn directory(zip: At<'_>) -> Option<(usize, usize)> {
    let last = zip.0.len().checked_sub(END_LEN)?;
    let first = last.saturating_sub(LONGEST_COMMENT);
    let end = (first..=last).rev().find(|&at| zip.starts(at, END))?;
    let locator = end.checked_sub(20).filter(|&at| zip.starts(at, LOCATOR_64));
    let (offset, count) = if let Some(locator) = locator {
        let end_64 = usize::try_from(zip.u64(locator + 8)?).ok().filter(|&at| zip.starts(at, END_64))?;
        (zip.u64(end_64.checked_add(48)?)?, zip.u64(end_64.checked_add(32)?)?)
    } else {
        (u64::from(zip.u32(end + 16)?), u64::from(zip.u16(end + 10)?))
    };
    Some((usize::try_from(offset).ok()?, usize::try_from(count).ok()?))
}

struct Entry {
    name: String,
    method: u16,
    crc: u32,
    size: u64,
    packed: u64,
    local: u64,
    next: usize,
}

fn entry(zip: At<'_>, at: usize) -> Option<Entry> {
    if !zip.starts(at, DIRECTORY_ENTRY) {
        return None;
    }
    let [name_len, extra_len, comment_len] = [zip.u16(at + 28)?, zip.u16(at + 30)?, zip.u16(at + 32)?].map(usize::from);
    let name = String::from_utf8(zip.bytes(at + 46, name_len)?.to_vec()).ok()?;
    let mut wide = Wide { extra: At(zip.bytes(at + 46 + name_len, extra_len)?), at: None };
    // The order of the wide fields is fixed: size, compressed size, offset.
    let size = wide.field(zip.u32(at + 24)?)?;
    let packed = wide.field(zip.u32(at + 20)?)?;
    let local = wide.field(zip.u32(at + 42)?)?;
    let next = at + 46 + name_len + extra_len + comment_len;
    Some(Entry { name, method: zip.u16(at + 10)?, crc: zip.u32(at + 16)?, size, packed, local, next })
}

/// The zip64 extra field, whose 8-byte values stand in for 4-byte ones of all ones.
struct Wide<'a> {
    extra: At<'a>,
    at: Option<usize>,
}

impl Wide<'_> {
    fn field(&mut self, narrow: u32) -> Option<u64> {
        if narrow != u32::MAX {
            return Some(u64::from(narrow));
        }
        let at = match self.at {
            Some(at) => at,
            None => self.first()?,
        };
        self.at = Some(at + 8);
        self.extra.u64(at)
    }

    fn first(&self) -> Option<usize> {
        let mut at = 0;
        loop {
            let (id, len) = (self.extra.u16(at)?, usize::from(self.extra.u16(at + 2)?));
            if id == 1 {
                return Some(at + 4);
            }
            at += 4 + len;
        }
    }
}

fn local_data(zip: At<'_>, entry: &Entry) -> Option<Range<usize>> {
    let at = usize::try_from(entry.local).ok().filter(|&at| zip.starts(at, LOCAL_ENTRY))?;
    let start = at + 30 + usize::from(zip.u16(at + 26)?) + usize::from(zip.u16(at + 28)?);
    let end = start.checked_add(usize::try_from(entry.packed).ok()?)?;
    (end <= zip.0.len()).then_some(start..end)
}
