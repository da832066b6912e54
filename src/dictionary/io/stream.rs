//! Safetensors files written tensor by tensor and block by block, for weights that are not all in memory.

use std::borrow::Cow;
use std::io::{BufWriter, Write};
use std::path::Path;

use serde_json::{Map, json};

use crate::base::artifact::write_atomic_with;
use crate::base::{Error, Result};

/// A tensor of f32 that comes in blocks.
pub(crate) struct Streamed<'a> {
    /// Its name.
    pub(crate) name: String,
    /// Its shape.
    pub(crate) shape: Vec<usize>,
    /// Its numbers, row-major.
    pub(crate) blocks: Box<dyn Iterator<Item = Result<Cow<'a, [f32]>>> + 'a>,
}

impl<'a> Streamed<'a> {
    /// A tensor that is in memory.
    pub(crate) fn whole(name: impl Into<String>, shape: &[usize], values: impl Into<Cow<'a, [f32]>>) -> Self {
        Self { name: name.into(), shape: shape.to_vec(), blocks: Box::new(std::iter::once(Ok(values.into()))) }
    }
}

/// Writes `tensors` as one safetensors file that appears whole or not at all.
///
/// # Errors
/// What a block says; `Io` when the file cannot be written.
pub(crate) fn write_streamed(path: &Path, tensors: Vec<Streamed<'_>>) -> Result<()> {
    let mut failed = None;
    let written = write_atomic_with(path, |file| {
        let mut out = BufWriter::with_capacity(1 << 20, file);
        let done = write_to(&mut out, tensors, &mut failed);
        done.and_then(|()| out.flush())
    });
    match failed {
        Some(error) => Err(error),
        None => written,
    }
}

fn write_to(out: &mut impl Write, tensors: Vec<Streamed<'_>>, failed: &mut Option<Error>) -> std::io::Result<()> {
    let mut header = Map::new();
    let mut start = 0usize;
    for Streamed { name, shape, .. } in &tensors {
        let end = start + shape.iter().product::<usize>() * 4;
        header.insert(name.clone(), json!({ "dtype": "F32", "shape": shape, "data_offsets": [start, end] }));
        start = end;
    }
    let mut header = serde_json::to_vec(&header)?;
    // Numbers that begin at a multiple of 8 can be used where they lie.
    header.resize(header.len().next_multiple_of(8), b' ');
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    for Streamed { name, shape, blocks } in tensors {
        let mut left: usize = shape.iter().product();
        for block in blocks {
            let block = match block {
                Ok(block) => block,
                Err(error) => {
                    *failed = Some(error);
                    return Err(std::io::Error::other("stopped"));
                }
            };
            left = left.checked_sub(block.len()).ok_or_else(|| sizes(&name))?;
            for value in block.iter() {
                out.write_all(&value.to_le_bytes())?;
            }
        }
        if left > 0 {
            return Err(sizes(&name));
        }
    }
    Ok(())
}

fn sizes(name: &str) -> std::io::Error {
    std::io::Error::other(format!("the blocks of '{name}' are not as many numbers as its shape"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::mapped::Mapped;
    use safetensors::Dtype;

    #[test]
    fn blocks_become_a_file_that_reads_back_aligned() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        let b = Streamed {
            name: "b".into(),
            shape: vec![2, 2],
            blocks: Box::new([Ok([3.0, 4.0].as_slice().into()), Ok(vec![5.0, 6.0].into())].into_iter()),
        };
        write_streamed(&path, vec![Streamed::whole("long name", &[2], vec![1.0, 2.0]), b]).unwrap();
        let file = Mapped::open("file", &path).unwrap();
        let place = file.locate("b", Dtype::F32, &[2, 2]).unwrap();
        assert_eq!(file.into_bytes().as_f32(place).unwrap(), [3.0, 4.0, 5.0, 6.0]);
    }

    #[test]
    fn a_block_that_fails_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        let bad = Error::flag("--x", "a", "b", "c");
        let blocks = [Ok(vec![1.0].into()), Err(bad)].into_iter();
        let tensor = Streamed { name: "a".into(), shape: vec![2], blocks: Box::new(blocks) };
        assert!(matches!(write_streamed(&path, vec![tensor]), Err(Error::Flag { .. })));
        assert!(write_streamed(&path, vec![Streamed::whole("a", &[2], vec![1.0])]).is_err());
        assert!(std::fs::read_dir(dir.path()).unwrap().next().is_none());
    }
}
