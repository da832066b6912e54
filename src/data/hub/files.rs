//! Some files of a model repository that is no model: sets of transcoders, dictionaries.

use std::path::PathBuf;

use super::{Hub, HubName, HubSettings, RepoKind};
use crate::base::{Error, Progress, Result};

/// The local directory of `repo` at `revision`, with those of its files that `wanted` picks by name downloaded; `what`
/// names them in errors. Without a network or offline it is what the cache holds, which may be less than is wanted.
///
/// # Errors
/// `Flag` when `repo` is no `org/name`; `Missing` when the cache holds nothing of it offline; `Hub` when the download
/// fails and the cache holds nothing, or no file is picked.
pub fn locate_files(
    settings: &HubSettings,
    repo: &str,
    revision: &str,
    what: &str,
    wanted: &dyn Fn(&str) -> bool,
    progress: &dyn Progress,
) -> Result<PathBuf> {
    let name = HubName::parse("SET", &format!("{repo}@{revision}"))?;
    let mut hub = Hub::new(settings, &name, RepoKind::Model, progress)?;
    let cached = hub.snapshot();
    if settings.offline {
        return cached.ok_or_else(|| hub.offline(what));
    }
    let listing = match (hub.pin(), cached) {
        (Ok(listing), _) => listing,
        (Err(error @ Error::Hub { .. }), Some(dir)) => {
            hub.warn_unasked(&error);
            return Ok(dir);
        }
        (Err(error), _) => return Err(error),
    };
    let names = listing.ok_or_else(|| hub.lacks("list of its files"))?;
    for file in names.iter().filter(|file| wanted(file)) {
        hub.fetch(file)?.ok_or_else(|| hub.lacks(file))?;
    }
    hub.commit()?;
    hub.pinned().ok_or_else(|| hub.lacks(what))
}
