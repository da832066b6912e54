//! Writes a cache shard by shard: at most one shard in memory, every shard whole or absent, resumable.
//!
//! The order of events is: shard file (temporary, synced, renamed), then `cache.json` naming it. Whatever moment
//! the process dies at, `cache.json` names only whole shards. Resuming verifies those and continues after the last;
//! the settings fix the contents, so the result equals that of an uninterrupted run byte for byte.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use serde_json::{Map, json};

use super::format::{CacheManifest, CacheSettings, MANIFEST, ShardEntry, shard_name};
use super::values::{Values, stored_as, write_chunks};
use crate::base::artifact::{Artifact, RunRecord, hash_file, write_atomic_with, write_json};
use crate::base::{Error, Result};

/// A cache under construction.
#[derive(Debug)]
pub struct CacheWriter {
    artifact: Artifact,
    manifest: CacheManifest,
    /// Sequences in `pending`.
    filled: u64,
    tokens: Vec<u32>,
    documents: Vec<u32>,
    pending: Vec<Values>,
    warnings: Vec<String>,
}

impl CacheWriter {
    /// Starts the cache `target`, or with `resume` goes on with a cut-off one.
    ///
    /// # Errors
    /// `OutputInUse` when `target` exists, is being written, or holds a cut-off run and `resume` is false;
    /// `Mismatch` when that run had other settings; `Malformed` when its manifest cannot be read; `Io`.
    pub fn begin(target: &Path, settings: CacheSettings, resume: bool) -> Result<Self> {
        let artifact = Artifact::begin(target, resume)?;
        let mut warnings = Vec::new();
        let found = artifact.resumed() && artifact.dir().join(MANIFEST).is_file();
        let manifest = if found {
            let mut manifest = CacheManifest::read(artifact.dir())?;
            if let Some((field, before, now)) = manifest.settings.difference(&settings) {
                return Err(Error::Mismatch {
                    what: "cache settings",
                    left: format!("{field} {before} in the cut-off run"),
                    right: format!("{now} now"),
                    remedy: format!(
                        "repeat the first command with --resume, choose another --out, or remove {}",
                        artifact.dir().display()
                    ),
                });
            }
            drop_torn_shards(artifact.dir(), &mut manifest, &mut warnings)?;
            manifest
        } else {
            CacheManifest::new(settings)
        };
        remove_strangers(artifact.dir(), &manifest)?;
        let pending = manifest.settings.hooks.iter().map(|hook| Values::new(hook.dtype)).collect();
        let writer =
            Self { artifact, manifest, filled: 0, tokens: Vec::new(), documents: Vec::new(), pending, warnings };
        // Without a whole shard there is nothing to go on from, so nothing is left that would ask for --resume.
        if writer.manifest.shards.is_empty() {
            drop(fs::remove_file(writer.artifact.dir().join(MANIFEST)));
        } else {
            writer.write_manifest()?;
        }
        Ok(writer)
    }

    /// Sequences that need not be computed again.
    pub fn stored_sequences(&self) -> u64 {
        self.manifest.sequences
    }

    /// What resuming had to mend, for the user.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The manifest as it is on disk.
    pub fn manifest(&self) -> &CacheManifest {
        &self.manifest
    }

    /// The directory that is being written.
    pub fn dir(&self) -> &Path {
        self.artifact.dir()
    }

    /// Appends `n` sequences: `tokens` and `documents` `[n, s]`, and for every hook of the settings, in their order,
    /// its activations `[n, s, width]`. Writes a shard whenever one is full.
    ///
    /// # Errors
    /// `NonFinite` for NaN or infinity, also for a value too large for the stored type; `Mismatch` when the lengths do
    /// not fit together; `Io` when the disk is full. Shards that are already written stay.
    pub fn push(&mut self, tokens: &[u32], documents: &[u32], activations: &[&[f32]]) -> Result<()> {
        let context = self.manifest.settings.context_size;
        self.check_lengths(tokens, documents, activations)?;
        let n = tokens.len() / context;
        let mut done = 0;
        while done < n {
            let room = (self.manifest.settings.shard_sequences - self.filled) as usize;
            let take = room.min(n - done);
            let rows = done * context..(done + take) * context;
            for (i, values) in activations.iter().enumerate() {
                let width = self.manifest.settings.hooks[i].width;
                let part = &values[rows.start * width..rows.end * width];
                if let Err((count, first)) = self.pending[i].extend(part) {
                    return Err(self.not_finite(i, count, first, part[first]));
                }
            }
            self.tokens.extend_from_slice(&tokens[rows.clone()]);
            self.documents.extend_from_slice(&documents[rows]);
            self.filled += take as u64;
            done += take;
            if self.filled == self.manifest.settings.shard_sequences {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Writes what is left as the last shard, marks the cache complete and gives the directory its final name.
    ///
    /// # Errors
    /// `Io`; the partial directory then stays and can be resumed.
    pub fn finish(mut self, record: &RunRecord) -> Result<CacheManifest> {
        if self.filled > 0 {
            self.flush()?;
        }
        self.manifest.complete = true;
        self.write_manifest()?;
        self.artifact.finish(record)?;
        Ok(self.manifest)
    }

    fn check_lengths(&self, tokens: &[u32], documents: &[u32], activations: &[&[f32]]) -> Result<()> {
        let settings = &self.manifest.settings;
        let fits = tokens.len().is_multiple_of(settings.context_size)
            && documents.len() == tokens.len()
            && activations.len() == settings.hooks.len()
            && activations.iter().zip(&settings.hooks).all(|(a, hook)| a.len() == tokens.len() * hook.width);
        if fits {
            return Ok(());
        }
        let lengths: Vec<usize> = activations.iter().map(|a| a.len()).collect();
        Err(Error::Mismatch {
            what: "batch and cache shapes",
            left: format!("{} tokens, {} documents, activations {lengths:?}", tokens.len(), documents.len()),
            right: format!(
                "sequences of {} and widths {:?}",
                settings.context_size,
                settings.hooks.iter().map(|h| h.width).collect::<Vec<_>>()
            ),
            remedy: "this is a defect of the program; please report it".into(),
        })
    }

    fn not_finite(&self, hook: usize, count: usize, first: usize, value: f32) -> Error {
        let settings = &self.manifest.settings;
        let hook = &settings.hooks[hook];
        let row = first / hook.width;
        let sequence = self.manifest.sequences + self.filled + (row / settings.context_size) as u64;
        let at =
            format!("sequence {sequence}, position {}, component {}", row % settings.context_size, first % hook.width);
        let (what, remedy) = if value.is_finite() {
            let remedy =
                format!("{value:e} does not fit {}: store the cache with --dtype bf16 or --dtype f32", hook.dtype);
            (format!("the activations of {} stored as {}", hook.name, hook.dtype), remedy)
        } else {
            let remedy = "run the model in --model-dtype f32 or bf16; if that does not help, its weights are damaged";
            (format!("the activations of {}", hook.name), remedy.into())
        };
        Error::NonFinite { what, count, at, remedy }
    }

    fn flush(&mut self) -> Result<()> {
        let file = shard_name(self.manifest.shards.len());
        let (bytes, blake3) = self.write_shard(&self.artifact.dir().join(&file))?;
        let rows = self.tokens.len() as u64;
        self.manifest.shards.push(ShardEntry { file, sequences: self.filled, rows, bytes, blake3 });
        (self.manifest.sequences, self.manifest.tokens) = self.manifest.totals();
        self.filled = 0;
        self.tokens.clear();
        self.documents.clear();
        self.pending.iter_mut().for_each(Values::clear);
        self.write_manifest()
    }

    fn write_manifest(&self) -> Result<()> {
        write_json(&self.artifact.dir().join(MANIFEST), &self.manifest)
    }

    /// Writes the pending sequences as one safetensors file and returns its size and hash.
    fn write_shard(&self, path: &Path) -> Result<(u64, String)> {
        let header = self.header();
        let mut result = (0, String::new());
        write_atomic_with(path, |file| {
            let mut out = Hashed { file, hasher: blake3::Hasher::new(), bytes: 0 };
            out.write_all(&(header.len() as u64).to_le_bytes())?;
            out.write_all(&header)?;
            write_chunks(&self.tokens, &mut out, u32::to_le_bytes)?;
            write_chunks(&self.documents, &mut out, u32::to_le_bytes)?;
            for values in &self.pending {
                values.write_to(&mut out)?;
            }
            result = (out.bytes, out.hasher.finalize().to_hex().to_string());
            Ok(())
        })?;
        Ok(result)
    }

    /// The JSON header of the safetensors format, padded to eight bytes.
    fn header(&self) -> Vec<u8> {
        let settings = &self.manifest.settings;
        let mut header = Map::new();
        let mut offset = 0;
        let mut add = |name: &str, dtype: String, shape: Vec<usize>, bytes: usize| {
            let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + bytes]});
            header.insert(name.to_owned(), entry);
            offset += bytes;
        };
        let plane = vec![self.filled as usize, settings.context_size];
        for name in ["tokens", "documents"] {
            add(name, "U32".into(), plane.clone(), self.tokens.len() * 4);
        }
        for (hook, values) in settings.hooks.iter().zip(&self.pending) {
            let shape = plane.iter().copied().chain([hook.width]).collect();
            add(&hook.name, format!("{:?}", stored_as(hook.dtype)), shape, values.byte_len());
        }
        let mut bytes = serde_json::Value::Object(header).to_string().into_bytes();
        bytes.resize(bytes.len().next_multiple_of(8), b' ');
        bytes
    }
}

/// Counts and hashes what goes into a file.
struct Hashed<'a> {
    file: &'a mut File,
    hasher: blake3::Hasher,
    bytes: u64,
}

impl Write for Hashed<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let n = self.file.write(buffer)?;
        self.hasher.update(&buffer[..n]);
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Shortens the manifest to the shards before the first that is absent or not what it was when written.
fn drop_torn_shards(dir: &Path, manifest: &mut CacheManifest, warnings: &mut Vec<String>) -> Result<()> {
    let mut whole = 0;
    for shard in &manifest.shards {
        let path = dir.join(&shard.file);
        let size = fs::metadata(&path).map_or(0, |meta| meta.len());
        if size != shard.bytes || hash_file(&path)? != shard.blake3 {
            warnings.push(format!("{} is torn or was changed; it and what follows is computed again", shard.file));
            break;
        }
        whole += 1;
    }
    manifest.shards.truncate(whole);
    manifest.complete = false;
    (manifest.sequences, manifest.tokens) = manifest.totals();
    Ok(())
}

/// Removes shards that the manifest does not name and temporary files, both left by a run that died while writing.
fn remove_strangers(dir: &Path, manifest: &CacheManifest) -> Result<()> {
    let named: HashSet<&str> = manifest.shards.iter().map(|s| s.file.as_str()).collect();
    for entry in fs::read_dir(dir).map_err(Error::io("list the cache", dir))?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let shard = name.starts_with("shard-") && !named.contains(name.as_str());
        if shard || name == format!("{MANIFEST}.tmp") {
            fs::remove_file(entry.path()).map_err(Error::io("remove the unfinished file", entry.path()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "cache_tests.rs"]
pub(super) mod tests;
