//! Reads a finished cache through memory maps: by row, by sequence, or in order.

use std::ops::Range;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use safetensors::tensor::Dtype;

use super::format::{CacheManifest, CacheSettings, HookEntry, MANIFEST, ShardEntry};
use super::values::{bytes_per_value, decode, stored_as};
use crate::base::artifact::hash_file;
use crate::base::mapped::Mapped;
use crate::base::nearest::nearest;
use crate::base::{Error, Progress, Result, Unit};
use crate::model::HookPoint;

const WHAT: &str = "activation cache shard";
const AGAIN: &str = "the shard is damaged: remove the cache directory and cache again";

/// An open cache.
#[derive(Debug)]
pub struct CacheReader {
    dir: PathBuf,
    manifest: CacheManifest,
    hash: String,
    shards: Vec<Shard>,
}

#[derive(Debug)]
struct Shard {
    map: Mapped,
    tokens: Range<usize>,
    documents: Range<usize>,
    hooks: Vec<Range<usize>>,
}

impl CacheReader {
    /// Opens the cache in `dir` and checks that every shard is there with the size and tensors it should have.
    /// Contents are checked by [`CacheReader::verify`].
    ///
    /// # Errors
    /// `Missing` when there is no cache or a shard is absent; `Malformed` when the cache was cut off or a shard is.
    pub fn open(dir: &Path) -> Result<Self> {
        let manifest = CacheManifest::read(dir)?;
        if !manifest.complete || manifest.sequences == 0 {
            return Err(Error::malformed(
                "activation cache",
                dir.join(MANIFEST),
                "a complete cache with at least one sequence",
                format!("a cut-off one with {} sequences", manifest.sequences),
                "finish it by running 'cache' again with --resume",
            ));
        }
        let hash = hash_file(&dir.join(MANIFEST))?;
        let open = |entry| Shard::open(dir, entry, &manifest.settings);
        let shards = manifest.shards.iter().map(open).collect::<Result<_>>()?;
        Ok(Self { dir: dir.into(), manifest, hash, shards })
    }

    /// Hashes every shard and compares with the manifest.
    ///
    /// # Errors
    /// `Malformed` naming the first shard that changed.
    pub fn verify(&self, progress: &dyn Progress) -> Result<()> {
        progress.begin("checking the cache", self.manifest.shards.iter().map(|s| s.bytes).sum(), Unit::Bytes);
        let checked = self.manifest.shards.par_iter().try_for_each(|shard| {
            let path = self.dir.join(&shard.file);
            let found = hash_file(&path)?;
            progress.advance(shard.bytes);
            if found == shard.blake3 {
                return Ok(());
            }
            let expected = format!("contents with BLAKE3 {}", shard.blake3);
            Err(Error::malformed(WHAT, path, expected, found, AGAIN))
        });
        progress.end();
        checked
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// All of `cache.json`.
    pub fn manifest(&self) -> &CacheManifest {
        &self.manifest
    }

    /// What determined the contents.
    pub fn settings(&self) -> &CacheSettings {
        &self.manifest.settings
    }

    /// BLAKE3 of `cache.json`, which covers the shards through their checksums.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// Number of sequences.
    pub fn sequences(&self) -> u64 {
        self.manifest.sequences
    }

    /// Tokens in a sequence, `s`.
    pub fn context_size(&self) -> usize {
        self.manifest.settings.context_size
    }

    /// Number of rows: sequences · s.
    pub fn rows(&self) -> u64 {
        self.manifest.tokens
    }

    /// The number of the hook called `name`, in either spelling of hook points; without a name the only one.
    ///
    /// # Errors
    /// `Unknown` with the nearest names; `Flag` when there are several and none is named.
    pub fn hook(&self, name: Option<&str>) -> Result<usize> {
        let hooks = &self.manifest.settings.hooks;
        let Some(name) = name else {
            if hooks.len() == 1 {
                return Ok(0);
            }
            let names: Vec<&str> = hooks.iter().map(|h| h.name.as_str()).collect();
            return Err(Error::flag(
                "--hook",
                "one hook of the cache",
                "none",
                format!("name one of: {}", names.join(", ")),
            ));
        };
        let canonical = name.parse::<HookPoint>().map_or_else(|_| name.to_owned(), |point| point.to_string());
        hooks.iter().position(|h| h.name == canonical).ok_or_else(|| Error::Unknown {
            kind: "hook of this cache",
            found: name.into(),
            nearest: nearest(&canonical, hooks.iter().map(|h| &h.name), 6),
        })
    }

    /// Name, width and number type of hook number `hook`.
    ///
    /// # Errors
    /// `Unknown` when the cache has fewer hooks.
    pub fn hook_entry(&self, hook: usize) -> Result<&HookEntry> {
        self.manifest.settings.hooks.get(hook).ok_or_else(|| Error::Unknown {
            kind: "hook number of this cache",
            found: hook.to_string(),
            nearest: self.manifest.settings.hooks.iter().map(|h| h.name.clone()).collect(),
        })
    }

    /// The tokens of a sequence, `[s]`.
    ///
    /// # Errors
    /// `Flag` when the cache has fewer sequences.
    pub fn tokens(&self, sequence: u64) -> Result<Vec<u32>> {
        let (shard, local) = self.place(sequence)?;
        Ok(integers(shard, &shard.tokens, local, self.context_size()))
    }

    /// The document of every token of a sequence, `[s]`.
    ///
    /// # Errors
    /// As [`CacheReader::tokens`].
    pub fn documents(&self, sequence: u64) -> Result<Vec<u32>> {
        let (shard, local) = self.place(sequence)?;
        Ok(integers(shard, &shard.documents, local, self.context_size()))
    }

    /// Overwrites `out` with the activations of `rows`, `[rows.len(), width]`, read in parallel.
    ///
    /// # Errors
    /// `Flag` when a row is out of range.
    pub fn read_rows(&self, hook: usize, rows: &[u64], out: &mut Vec<f32>) -> Result<()> {
        let entry = self.hook_entry(hook)?;
        let context = self.context_size() as u64;
        if let Some(row) = rows.iter().find(|&&row| row >= self.rows()) {
            return Err(self.outside(row / context));
        }
        let bytes = entry.width * bytes_per_value(entry.dtype);
        let per_shard = self.manifest.settings.shard_sequences.saturating_mul(context);
        out.clear();
        out.resize(rows.len() * entry.width, 0.);
        out.par_chunks_exact_mut(entry.width).with_min_len(64).zip(rows).for_each(|(out, row)| {
            let shard = &self.shards[(row / per_shard) as usize];
            let start = shard.hooks[hook].start + (row % per_shard) as usize * bytes;
            decode(entry.dtype, shard.map.at(start..start + bytes), out);
        });
        Ok(())
    }

    /// Overwrites `out` with the activations of consecutive sequences, `[sequences, s, width]`.
    ///
    /// # Errors
    /// `Flag` when the range is out of range.
    pub fn read_sequences(&self, hook: usize, sequences: Range<u64>, out: &mut Vec<f32>) -> Result<()> {
        let entry = self.hook_entry(hook)?;
        let values = self.context_size() * entry.width;
        let bytes = values * bytes_per_value(entry.dtype);
        let count = sequences.end.saturating_sub(sequences.start) as usize;
        if sequences.end > self.sequences() {
            return Err(self.outside(sequences.end - 1));
        }
        out.clear();
        out.resize(count * values, 0.);
        for (sequence, out) in sequences.zip(out.chunks_exact_mut(values)) {
            let (shard, local) = self.place(sequence)?;
            let start = shard.hooks[hook].start + local * bytes;
            decode(entry.dtype, shard.map.at(start..start + bytes), out);
        }
        Ok(())
    }

    fn place(&self, sequence: u64) -> Result<(&Shard, usize)> {
        let per_shard = self.manifest.settings.shard_sequences;
        let shard = usize::try_from(sequence / per_shard).ok().and_then(|i| self.shards.get(i));
        match shard.filter(|_| sequence < self.sequences()) {
            Some(shard) => Ok((shard, (sequence % per_shard) as usize)),
            None => Err(self.outside(sequence)),
        }
    }

    fn outside(&self, sequence: u64) -> Error {
        Error::Flag {
            flag: "sequence",
            expected: format!("less than {}", self.sequences()),
            found: sequence.to_string(),
            remedy: format!("the cache {} holds no more", self.dir.display()),
        }
    }
}

impl Shard {
    fn open(dir: &Path, entry: &ShardEntry, settings: &CacheSettings) -> Result<Self> {
        let path = dir.join(&entry.file);
        if !path.is_file() {
            return Err(Error::Missing {
                what: WHAT,
                path,
                expected: format!("{} sequences as {MANIFEST} says", entry.sequences),
                remedy: "remove the cache directory and cache again".into(),
            });
        }
        let found = std::fs::metadata(&path).map_err(Error::io("look at the shard", &path))?.len();
        if found != entry.bytes {
            let expected = format!("{} bytes", entry.bytes);
            return Err(Error::malformed(WHAT, path, expected, format!("{found} bytes"), AGAIN));
        }
        let map = Mapped::open(WHAT, &path)?;
        let plane = [entry.sequences as usize, settings.context_size];
        let locate =
            |hook: &HookEntry| map.locate(&hook.name, stored_as(hook.dtype), &[plane[0], plane[1], hook.width]);
        let hooks = settings.hooks.iter().map(locate).collect::<Result<_>>()?;
        let tokens = map.locate("tokens", Dtype::U32, &plane)?;
        let documents = map.locate("documents", Dtype::U32, &plane)?;
        Ok(Self { map, tokens, documents, hooks })
    }
}

fn integers(shard: &Shard, tensor: &Range<usize>, sequence: usize, context: usize) -> Vec<u32> {
    let start = tensor.start + sequence * context * 4;
    let bytes = shard.map.at(start..start + context * 4);
    bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect()
}
