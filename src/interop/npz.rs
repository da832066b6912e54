//! NumPy's `.npz`: a zip archive with one `.npy` file an array, stored or deflated (`numpy/lib/format.py`).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};

use super::tensors::{Header, damaged};
use crate::base::mapped::MappedBytes;
use crate::base::zip::{self, Member};
use crate::base::{Context, Error, Result};

/// An array's header is a hundred bytes; NumPy itself refuses more than 10,000.
const LONGEST_HEADER: u64 = 10_000;
const MAGIC: &[u8] = b"\x93NUMPY";

/// One open `.npz` file.
#[derive(Debug)]
pub(super) struct Npz {
    map: MappedBytes,
    arrays: BTreeMap<String, (Member, Layout)>,
}

/// How an array lies in its member.
#[derive(Debug, Clone, PartialEq)]
struct Layout {
    header: Header,
    /// Bytes before the first number.
    start: usize,
    /// Whether the first axis varies fastest.
    fortran: bool,
}

impl Npz {
    /// Reads the directory and the headers of all arrays.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let map = MappedBytes::open(path)?;
        let mut arrays = BTreeMap::new();
        for (member, entry) in zip::members(&map).map_err(|found| damaged(path, "a whole .npz archive", found))? {
            let Some(name) = member.strip_suffix(".npy") else {
                return Err(damaged(path, "an archive of .npy arrays", format!("'{member}' in it")));
            };
            let wrong = |found: String| damaged(path, &format!("the array '{name}'"), found);
            let start = entry.prefix(&map, LONGEST_HEADER).map_err(wrong)?;
            let layout = Layout::parse(&start).map_err(wrong)?;
            let expected = layout.header.bytes().and_then(|bytes| bytes.checked_add(layout.start as u64));
            if expected != Some(entry.size) {
                let Header { shape, kind, .. } = &layout.header;
                return Err(wrong(format!("{} bytes for {shape:?} of {kind}", entry.size)));
            }
            arrays.insert(name.to_owned(), (entry, layout));
        }
        Ok(Self { map, arrays })
    }

    /// Number type and shape of every array.
    pub(super) fn headers(&self) -> BTreeMap<String, Header> {
        self.arrays.iter().map(|(name, (_, layout))| (name.clone(), layout.header.clone())).collect()
    }

    /// The numbers of an array, row-major.
    pub(super) fn bytes(&self, path: &Path, name: &str) -> Result<Cow<'_, [u8]>> {
        let wrong = |found: String| damaged(path, &format!("the array '{name}'"), found);
        let (member, layout) = self.arrays.get(name).ok_or_else(|| wrong("none".into()))?;
        let all = member.read(&self.map).map_err(wrong)?;
        let numbers: Cow<[u8]> = match all {
            Cow::Borrowed(all) => all.get(layout.start..).unwrap_or_default().into(),
            Cow::Owned(mut all) => {
                all.drain(..layout.start.min(all.len()));
                all.into()
            }
        };
        match *layout.header.shape.as_slice() {
            _ if !layout.fortran => Ok(numbers),
            [] | [_] => Ok(numbers),
            [rows, cols] => Ok(row_major(&numbers, rows, cols, layout.header.width()).into()),
            _ => Err(Error::Unsupported {
                what: format!("'{name}' of {}", path.display()),
                why: format!("it is stored column-major with {} axes", layout.header.shape.len()),
                remedy: "save it with numpy.ascontiguousarray".into(),
            }),
        }
    }

    /// The byte of the file where the numbers of an array begin, where they lie there row-major as they are.
    pub(super) fn place(&self, name: &str) -> Option<usize> {
        let (member, layout) = self.arrays.get(name)?;
        let row_major = !layout.fortran || layout.header.shape.len() < 2;
        (member.is_stored() && row_major).then(|| member.range.start + layout.start)
    }

    /// Gives the array `old` the name `new`.
    pub(super) fn rename(&mut self, old: &str, new: &str) {
        if let Some(array) = self.arrays.remove(old) {
            self.arrays.insert(new.into(), array);
        }
    }

    pub(super) fn release(&self) {
        self.map.release();
    }
}

/// The numbers of a `.npy` file that holds one vector, `[d]` or `[1, d]` and the like.
///
/// # Errors
/// `Io`; `Malformed` when the file is no such array of floats.
pub fn read_npy_vector(path: &Path) -> Result<Vec<f32>> {
    let bad = |found: String| {
        let expected = "an .npy file with one vector of floats";
        Error::malformed("vector", path, expected, found, "write it with numpy.save(path, vector.astype('float32'))")
    };
    let map = MappedBytes::open(path)?;
    let Layout { header, start, .. } = Layout::parse(&map).map_err(bad)?;
    let Header { stored, kind, shape } = &header;
    let numbers = map.get(start..).unwrap_or_default();
    let size = shape.iter().try_fold(1usize, |n, &axis| n.checked_mul(axis)).unwrap_or(usize::MAX);
    if shape.iter().filter(|&&axis| axis != 1).count() > 1 || size == 0 {
        return Err(bad(format!("an array of shape {shape:?}")));
    }
    let dtype = stored.filter(DType::is_float).ok_or_else(|| bad(format!("numbers of {kind}")))?;
    if header.bytes() != Some(numbers.len() as u64) {
        return Err(bad(format!("{} bytes for {size} numbers of {kind}", numbers.len())));
    }
    let vector = Tensor::from_raw_buffer(numbers, dtype, &[size], &Device::Cpu);
    vector.and_then(|t| t.to_dtype(DType::F32)?.to_vec1::<f32>()).during(|| format!("reading {}", path.display()))
}

impl Layout {
    /// Reads an array's header: magic, version, length, and a Python dict of three entries.
    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let rest = bytes.strip_prefix(MAGIC).ok_or("no .npy header")?;
        let (text, start) = match *rest {
            [1, _, a, b, ref rest @ ..] => (rest.get(..usize::from(u16::from_le_bytes([a, b]))), 10),
            [2 | 3, _, a, b, c, d, ref rest @ ..] => (rest.get(..u32::from_le_bytes([a, b, c, d]) as usize), 12),
            [version, ..] => return Err(format!(".npy version {version}, where 1 to 3 are read")),
            [] => return Err("no .npy header".into()),
        };
        let text = text.and_then(|text| std::str::from_utf8(text).ok()).ok_or("a cut-off .npy header")?;
        let (dtype, fortran, shape) = fields(text).ok_or_else(|| format!("the header {}", shortened(text.trim())))?;
        let stored = match dtype {
            "<f4" => Some(DType::F32),
            "<f8" => Some(DType::F64),
            "<f2" => Some(DType::F16),
            "<i8" => Some(DType::I64),
            "<i4" => Some(DType::I32),
            "|u1" => Some(DType::U8),
            _ => None,
        };
        let kind = stored.map_or_else(|| format!("NumPy type '{dtype}'"), |dtype| dtype.as_str().into());
        Ok(Self { header: Header { stored, kind, shape }, start: start + text.len(), fortran })
    }
}

/// The values of `{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }`, in any order.
fn fields(text: &str) -> Option<(&str, bool, Vec<usize>)> {
    let mut rest = text.trim().strip_prefix('{')?.strip_suffix('}')?.trim();
    let (mut dtype, mut fortran, mut shape) = (None, None, None);
    while !rest.is_empty() {
        let (key, after) = rest.strip_prefix('\'')?.split_once('\'')?;
        let value = after.trim_start().strip_prefix(':')?.trim_start();
        let after = match key {
            "descr" => {
                let (found, after) = value.strip_prefix('\'')?.split_once('\'')?;
                dtype = Some(found);
                after
            }
            "fortran_order" => {
                fortran = Some(value.starts_with("True"));
                value.strip_prefix("True").or_else(|| value.strip_prefix("False"))?
            }
            "shape" => {
                let (axes, after) = value.strip_prefix('(')?.split_once(')')?;
                let axes = axes.split(',').map(str::trim).filter(|axis| !axis.is_empty());
                shape = Some(axes.map(|axis| axis.trim_end_matches('L').parse().ok()).collect::<Option<Vec<_>>>()?);
                after
            }
            _ => return None,
        };
        rest = after.trim_start().trim_start_matches(',').trim_start();
    }
    Some((dtype?, fortran?, shape?))
}

fn shortened(text: &str) -> String {
    let short: String = text.chars().take(80).collect();
    if short.len() < text.len() { format!("{short}…") } else { short }
}

/// Column-major `[rows, cols]` elements of `width` bytes as row-major ones.
fn row_major(bytes: &[u8], rows: usize, cols: usize, width: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    for row in 0..rows {
        for col in 0..cols {
            let at = (col * rows + row) * width;
            out.extend_from_slice(bytes.get(at..at + width).unwrap_or_default());
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn npy(header: &str) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend([1, 0]);
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes
    }

    #[test]
    fn headers_are_read_in_any_order_and_strictly() {
        let layout = Layout::parse(&npy("{'shape': (3, 4), 'descr': '<f4', 'fortran_order': True, }\n")).unwrap();
        assert_eq!((layout.header.shape.as_slice(), layout.fortran), (&[3, 4][..], true));
        let layout = Layout::parse(&npy("{'descr': '<i4', 'fortran_order': False, 'shape': (), }  \n")).unwrap();
        assert_eq!((layout.header.shape.len(), layout.header.kind.as_str()), (0, "i32"));
        for bad in [
            "{'descr': '<f4', 'fortran_order': False}",
            "{'descr': '<f4', 'fortran_order': Maybe, 'shape': (3,)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (-3,)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (3,), 'more': 1}",
            "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (3,)}",
            "__import__('os')",
        ] {
            assert!(Layout::parse(&npy(bad)).is_err(), "{bad}");
        }
        let kind = Layout::parse(&npy("{'descr': '>f4', 'fortran_order': False, 'shape': (1,)}")).unwrap().header.kind;
        assert!(kind.contains(">f4"), "{kind}");
    }

    #[test]
    fn columns_become_rows() {
        assert_eq!(row_major(&[1, 4, 2, 5, 3, 6], 2, 3, 1), [1, 2, 3, 4, 5, 6]);
    }
}
