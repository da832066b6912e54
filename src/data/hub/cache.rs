//! One repository in the cache of `huggingface_hub`, so that files which Python downloaded are found here and the
//! other way round.
//!
//! ```text
//! models--org--name/refs/main                          a commit
//! models--org--name/blobs/ETAG[.incomplete]            contents
//! models--org--name/snapshots/COMMIT/config.json       → ../../blobs/ETAG
//! .locks/models--org--name/ETAG.lock                   held while ETAG is written
//! ```

use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::name::{HubName, RepoKind};
use crate::base::artifact::write_atomic;
use crate::base::{Error, Progress, Result};

/// A second look at a lock that another process holds comes after this.
const LOCK_POLL: Duration = Duration::from_millis(100);

/// Where the files of one repository lie.
#[derive(Debug, Clone)]
pub(super) struct RepoCache {
    root: PathBuf,
    folder: String,
}

impl RepoCache {
    pub(super) fn new(root: &Path, kind: RepoKind, name: &HubName) -> Self {
        Self { root: root.into(), folder: format!("{}--{}", kind.plural(), name.repo.replace('/', "--")) }
    }

    fn dir(&self) -> PathBuf {
        self.root.join(&self.folder)
    }

    /// The commit that a branch or tag had when it was last fetched.
    pub(super) fn commit_of(&self, revision: &str) -> Option<String> {
        let text = fs::read_to_string(self.dir().join("refs").join(revision)).ok()?;
        Some(text.trim().to_owned()).filter(|commit| !commit.is_empty())
    }

    /// Records the commit of a branch or tag.
    pub(super) fn set_commit(&self, revision: &str, commit: &str) -> Result<()> {
        if self.commit_of(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.dir().join("refs").join(revision);
        make_parent(&path)?;
        write_atomic(&path, commit.as_bytes())
    }

    /// The directory of a commit's files.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.dir().join("snapshots").join(commit)
    }

    /// The file of a commit, if it is there whole: links are made only to finished blobs.
    pub(super) fn file(&self, commit: &str, name: &str) -> Option<PathBuf> {
        Some(self.snapshot(commit).join(name)).filter(|path| path.is_file())
    }

    pub(super) fn blob(&self, etag: &str) -> Result<PathBuf> {
        let path = self.dir().join("blobs").join(etag);
        make_parent(&path)?;
        Ok(path)
    }

    /// Makes the finished `blob` the file `name` of `commit`.
    pub(super) fn link(&self, blob: &Path, commit: &str, name: &str) -> Result<PathBuf> {
        let path = self.snapshot(commit).join(name);
        make_parent(&path)?;
        let up = name.split('/').count() + 1;
        let target: PathBuf = std::iter::repeat_n(Path::new(".."), up)
            .chain(["blobs".as_ref()])
            .chain(blob.file_name().map(Path::new))
            .collect();
        if path.symlink_metadata().is_ok() && !path.exists() {
            fs::remove_file(&path).map_err(Error::io("replace a dangling link in the hub cache", &path))?;
        }
        match symlink(&target, &path) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(path),
            // Some file systems know no links; `huggingface_hub` then keeps the file itself here as well.
            Err(_) => {
                fs::rename(blob, &path).map_err(Error::io("move the download into its snapshot", &path)).map(|()| path)
            }
            Ok(()) => Ok(path),
        }
    }

    /// Waits until no other process downloads `etag`, and keeps others waiting until the result is dropped; `None`
    /// when the user stops the wait.
    pub(super) fn lock(&self, etag: &str, progress: &dyn Progress) -> Result<Option<File>> {
        let path = self.root.join(".locks").join(&self.folder).join(format!("{etag}.lock"));
        make_parent(&path)?;
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(Error::io("open the lock of a download", &path))?;
        let mut told = false;
        loop {
            match file.try_lock() {
                // File systems without locks leave the guarantee to the user, as `huggingface_hub` does.
                Ok(()) | Err(TryLockError::Error(_)) => return Ok(Some(file)),
                Err(TryLockError::WouldBlock) => {}
            }
            if progress.cancelled() {
                return Ok(None);
            }
            if !told {
                progress.warn(&format!("another process downloads the same file; waiting for {}", path.display()));
                told = true;
            }
            std::thread::sleep(LOCK_POLL);
        }
    }
}

fn make_parent(path: &Path) -> Result<()> {
    let parent = path.parent().unwrap_or(path);
    fs::create_dir_all(parent).map_err(Error::io("make a directory of the hub cache", parent))
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(windows)]
fn symlink(target: &Path, link: &Path) -> std::io::Result<()> {
    std::os::windows::fs::symlink_file(target, link)
}

#[cfg(not(any(unix, windows)))]
fn symlink(_target: &Path, _link: &Path) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}
