//! Output directories that appear whole or not at all.
//!
//! Work happens in `NAME.partial` beside the final `NAME`, under a lock that dies with the process. Finishing
//! writes `run.json`, syncs, and renames. A cut-off run leaves `NAME.partial`, which `--resume` takes up.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::{Error, Result};

/// What `run.json` records beside every artefact.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunRecord {
    /// The subcommand.
    pub command: String,
    /// The version of this program.
    pub version: String,
    /// Every setting after defaults were filled in.
    pub settings: serde_json::Value,
    /// The seed of all random streams.
    pub seed: u64,
    /// Inputs by role, each with a content hash.
    pub inputs: Vec<InputRecord>,
}

/// One input of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputRecord {
    /// "model", "data", "cache".
    pub role: String,
    /// As the user named it.
    pub name: String,
    /// BLAKE3 of the contents, hexadecimal.
    pub blake3: String,
}

impl RunRecord {
    /// A record of `command` with `settings`, no inputs yet.
    pub fn new(command: &str, settings: &impl Serialize, seed: u64) -> Self {
        Self {
            command: command.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            settings: serde_json::to_value(settings).unwrap_or_default(),
            seed,
            inputs: Vec::new(),
        }
    }
}

/// An output directory under construction.
#[derive(Debug)]
pub struct Artifact {
    target: PathBuf,
    partial: PathBuf,
    _lock: File,
    resumed: bool,
    arguments: Vec<String>,
}

impl Artifact {
    /// Starts, or with `resume` continues, the directory `target`.
    ///
    /// # Errors
    /// `OutputInUse` when `target` exists, when another process works on it, or when left-over work exists and
    /// `resume` is false; `Io` when the directory cannot be made. With `resume` and nothing to continue it starts
    /// afresh, so that the same command line can be repeated until it succeeds.
    pub fn begin(target: &Path, resume: bool) -> Result<Self> {
        Self::open(target, resume, "run the same command with --resume, or remove that directory")
    }

    /// Starts the directory `target` for work that is done again rather than continued.
    ///
    /// # Errors
    /// As [`Artifact::begin`] without `resume`.
    pub fn begin_new(target: &Path) -> Result<Self> {
        Self::open(target, false, "remove that directory if nothing in it is wanted, or choose another --out")
    }

    /// Removes the directory and everything in it, as after a refusal that should leave nothing behind.
    pub fn discard(self) {
        // What cannot be removed does no harm.
        drop(fs::remove_dir_all(&self.partial));
    }

    fn open(target: &Path, resume: bool, remedy: &str) -> Result<Self> {
        if target.exists() {
            return Err(Error::OutputInUse {
                path: target.into(),
                state: "already exists",
                remedy: "choose another --out, or remove it first".into(),
            });
        }
        let partial = partial_path(target);
        let found = partial.is_dir();
        if !found {
            fs::create_dir_all(&partial).map_err(Error::io("make the output directory", &partial))?;
        }
        let lock_path = partial.join(".lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(Error::io("open the lock file", &lock_path))?;
        if let Err(fs::TryLockError::WouldBlock) = lock.try_lock() {
            return Err(Error::OutputInUse {
                path: target.into(),
                state: "is being written by another process",
                remedy: "wait for it, or choose another --out".into(),
            });
        }
        let has_work = found && has_entries(&partial)?;
        if has_work && !resume {
            return Err(Error::OutputInUse {
                path: partial,
                state: "holds the work of a cut-off run",
                remedy: remedy.into(),
            });
        }
        Ok(Self { target: target.into(), partial, _lock: lock, resumed: has_work, arguments: Vec::new() })
    }

    /// The same, made by this command line.
    #[must_use]
    pub fn with_arguments(self, arguments: impl IntoIterator<Item = String>) -> Self {
        Self { arguments: arguments.into_iter().collect(), ..self }
    }

    /// The command line that makes it, where it was given.
    pub fn arguments(&self) -> &[String] {
        &self.arguments
    }

    /// The directory to write into until [`Artifact::finish`].
    pub fn dir(&self) -> &Path {
        &self.partial
    }

    /// Where the finished directory will be.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Whether earlier work was found.
    pub fn resumed(&self) -> bool {
        self.resumed
    }

    /// Writes `run.json` and moves the directory to its final name.
    ///
    /// # Errors
    /// `Io` when writing or renaming fails; the partial directory then stays.
    pub fn finish(self, record: &RunRecord) -> Result<()> {
        write_json(&self.partial.join("run.json"), record)?;
        let lock = self.partial.join(".lock");
        fs::remove_file(&lock).map_err(Error::io("remove the lock file", &lock))?;
        sync_dir(&self.partial);
        fs::rename(&self.partial, &self.target).map_err(Error::io("rename the finished directory", &self.target))?;
        if let Some(parent) = self.target.parent() {
            sync_dir(parent);
        }
        Ok(())
    }
}

/// `NAME.partial` beside `target`.
pub fn partial_path(target: &Path) -> PathBuf {
    let mut name = target.file_name().unwrap_or_default().to_os_string();
    name.push(".partial");
    target.with_file_name(name)
}

fn has_entries(dir: &Path) -> Result<bool> {
    let entries = fs::read_dir(dir).map_err(Error::io("list the output directory", dir))?;
    Ok(entries.flatten().any(|e| e.file_name() != ".lock"))
}

/// Writes `bytes` to `path` so that a reader sees the old file or the new one, never a part.
///
/// # Errors
/// `Io` when the disk is full or the directory is not writable.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomic_with(path, |file| file.write_all(bytes))
}

/// As [`write_atomic`], with the contents streamed by `fill`.
///
/// # Errors
/// `Io` when the disk is full or the directory is not writable; the temporary file is removed.
pub fn write_atomic_with(path: &Path, fill: impl FnOnce(&mut File) -> std::io::Result<()>) -> Result<()> {
    if fs::metadata(path).is_ok_and(|found| !found.is_file() && !found.is_dir()) {
        // A rename would replace a pipe or device such as /dev/null by a file.
        let written = OpenOptions::new().write(true).open(path).and_then(|mut file| fill(&mut file));
        return written.map_err(Error::io("write to", path));
    }
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".tmp");
    let temporary = path.with_file_name(name);
    let written = File::create(&temporary).and_then(|mut file| {
        fill(&mut file)?;
        file.sync_all()
    });
    if let Err(source) = written.and_then(|()| fs::rename(&temporary, path)) {
        drop(fs::remove_file(&temporary));
        return Err(Error::Io { action: "write the file", path: path.into(), source });
    }
    Ok(())
}

/// Writes `value` as indented JSON, atomically.
///
/// # Errors
/// As [`write_atomic`].
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut bytes = serde_json::to_vec_pretty(value).map_err(|e| Error::Io {
        action: "serialise JSON",
        path: path.into(),
        source: e.into(),
    })?;
    bytes.push(b'\n');
    write_atomic(path, &bytes)
}

/// Reads `path` as JSON of type `T`. `what` names the file in errors.
///
/// # Errors
/// `Io` when it cannot be read, `Malformed` when it does not parse as `T`.
pub fn read_json<T: serde::de::DeserializeOwned>(what: &'static str, path: &Path) -> Result<T> {
    let bytes = fs::read(path).map_err(Error::io("read the JSON file", path))?;
    serde_json::from_slice(&bytes).map_err(|e| {
        Error::malformed(what, path, "valid JSON with the documented keys", e.to_string(), "make the file again")
    })
}

/// Directories are synced where the platform allows it; the rename is atomic either way.
fn sync_dir(dir: &Path) {
    if let Ok(file) = File::open(dir) {
        drop(file.sync_all());
    }
}

/// BLAKE3 of a file's contents, hexadecimal.
///
/// # Errors
/// `Io` when the file cannot be read.
pub fn hash_file(path: &Path) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    let mut file = File::open(path).map_err(Error::io("open the file", path))?;
    std::io::copy(&mut file, &mut hasher).map_err(Error::io("read the file", path))?;
    Ok(hasher.finalize().to_hex().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> RunRecord {
        RunRecord::new("test", &serde_json::json!({"a": 1}), 3)
    }

    #[test]
    fn a_finished_directory_appears_under_its_name_with_its_record() {
        let tmp = tempfile::tempdir().unwrap();
        let target = tmp.path().join("out");
        let artifact = Artifact::begin(&target, false).unwrap();
        fs::write(artifact.dir().join("part"), "x").unwrap();
        assert!(!target.exists());
        assert!(matches!(Artifact::begin(&target, true), Err(Error::OutputInUse { .. })), "locked");
        artifact.finish(&record()).unwrap();
        assert!(target.join("run.json").exists() && target.join("part").exists());
        assert!(matches!(Artifact::begin(&target, true), Err(Error::OutputInUse { .. })), "exists");
    }

    #[cfg(unix)]
    #[test]
    fn devices_are_written_to_and_not_replaced() {
        use std::os::unix::fs::FileTypeExt;
        write_atomic(Path::new("/dev/null"), b"x").unwrap();
        assert!(fs::metadata("/dev/null").unwrap().file_type().is_char_device());
    }

    #[test]
    fn cut_off_work_is_taken_up_only_when_asked() {
        let tmp = tempfile::tempdir().unwrap();
        let target = tmp.path().join("out");
        let artifact = Artifact::begin(&target, false).unwrap();
        fs::write(artifact.dir().join("part"), "x").unwrap();
        drop(artifact);
        let error = Artifact::begin(&target, false).unwrap_err().to_string();
        assert!(error.contains("--resume"), "{error}");
        assert!(Artifact::begin(&target, true).unwrap().resumed());
    }
}
