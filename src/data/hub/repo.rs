//! One revision of one repository: its files by name, from the cache or the hub, all of one commit.

use std::path::PathBuf;

use serde_json::Value;

use super::HubSettings;
use super::cache::RepoCache;
use super::client::{Client, Failure};
use super::download::{Announced, download};
use super::gguf::is_gguf_name;
use super::name::{HubName, RepoKind, is_inside};
use crate::base::nearest::nearest;
use crate::base::{Error, Progress, Result};
use crate::data::checkpoint::{CONFIG, WEIGHTS};

/// One repository of the hub, seen through the cache.
pub(crate) struct Hub<'a> {
    settings: &'a HubSettings,
    name: HubName,
    kind: RepoKind,
    cache: RepoCache,
    client: Client<'a>,
    progress: &'a dyn Progress,
    /// The commit that all files come from, once known.
    commit: Option<String>,
}

impl<'a> Hub<'a> {
    /// # Errors
    /// `Flag` when the settings name no usable server.
    pub(crate) fn new(
        settings: &'a HubSettings,
        name: &HubName,
        kind: RepoKind,
        progress: &'a dyn Progress,
    ) -> Result<Self> {
        Ok(Self {
            settings,
            name: name.clone(),
            kind,
            cache: RepoCache::new(&settings.cache, kind, name),
            client: Client::new(settings, progress)?,
            progress,
            commit: None,
        })
    }

    /// The cached snapshot of the revision, complete or not.
    pub(crate) fn snapshot(&self) -> Option<PathBuf> {
        let commit = self.cache.commit_of(&self.name.revision);
        let commit = commit.or_else(|| self.name.is_commit().then(|| self.name.revision.clone()))?;
        Some(self.cache.snapshot(&commit)).filter(|dir| dir.is_dir())
    }

    /// The cached files of the commit that was pinned, once one was fetched.
    pub(crate) fn pinned(&self) -> Option<PathBuf> {
        Some(self.cache.snapshot(self.commit.as_deref()?)).filter(|dir| dir.is_dir())
    }

    /// Whether what the cache holds for the revision may be out of date.
    pub(crate) fn may_have_moved(&self) -> bool {
        !self.name.is_commit()
    }

    /// Says that the cached copy is used because the hub could not be asked about the revision.
    pub(crate) fn warn_unasked(&self, error: &Error) {
        let why = match error {
            Error::Hub { why, .. } => why.clone(),
            other => other.to_string(),
        };
        self.progress.warn(&format!(
            "using the cached copy of {}@{} without asking the hub whether it is current ({why}); HF_HUB_OFFLINE=1 \
             does not ask",
            self.name.repo, self.name.revision
        ));
    }

    /// Asks the hub for the commit behind the revision and for its file names; `None` when the server knows no
    /// listings, as plain mirrors do.
    pub(crate) fn pin(&mut self) -> Result<Option<Vec<String>>> {
        let HubSettings { endpoint, .. } = self.settings;
        let HubName { repo, revision, .. } = &self.name;
        let url = format!("{endpoint}/api/{}/{repo}/revision/{}", self.kind.plural(), escaped(revision, false));
        match self.client.json(&url) {
            Ok(info) => {
                let commit = info.get("sha").and_then(Value::as_str).map(str::to_owned);
                self.commit = Some(self.checked_commit(commit)?);
                let files = info.get("siblings").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
                let names = files.iter().filter_map(|file| file.get("rfilename")?.as_str());
                Ok(Some(names.filter(|name| is_inside(name)).map(str::to_owned).collect()))
            }
            Err(failure) if failure.status() == Some(404) && failure.code().is_empty() => {
                let subset = self.name.subset.as_deref().filter(|subset| is_gguf_name(subset));
                let head =
                    self.announced(subset.unwrap_or(CONFIG), revision).map_err(|failure| match failure.status() {
                        Some(404) => self.no_revision(&failure),
                        _ => self.explain("the list of files", failure),
                    })?;
                self.commit = Some(self.checked_commit(head.commit)?);
                Ok(None)
            }
            Err(failure) => Err(self.explain("the list of files", failure)),
        }
    }

    fn checked_commit(&self, commit: Option<String>) -> Result<String> {
        let usable = |commit: &String| !commit.is_empty() && commit.chars().all(|c| c.is_ascii_alphanumeric());
        commit.filter(usable).ok_or_else(|| {
            let why = "the server names no commit, so it is neither a Hugging Face hub nor a mirror of one";
            self.explain("the list of files", Failure::Strange(why.into()))
        })
    }

    /// The local path of file `name`, downloading it if need be; `None` when the repository has no such file.
    pub(crate) fn fetch(&self, name: &str) -> Result<Option<PathBuf>> {
        let Some(commit) = self.commit.as_deref().filter(|_| is_inside(name)) else { return Ok(None) };
        if let Some(path) = self.cache.file(commit, name) {
            return Ok(Some(path));
        }
        match self.fetch_new(name, commit) {
            Ok(path) => Ok(Some(path)),
            Err(failure) if failure.status() == Some(404) => Ok(None),
            Err(failure) => Err(self.explain(name, failure)),
        }
    }

    fn fetch_new(&self, name: &str, commit: &str) -> Result<PathBuf, Failure> {
        let announced = self.announced(name, commit)?;
        let _lock = self.cache.lock(&announced.etag, self.progress)?.ok_or(Failure::Stopped)?;
        // The process that held the lock before may have done the work.
        if let Some(path) = self.cache.file(commit, name) {
            return Ok(path);
        }
        let blob = self.cache.blob(&announced.etag)?;
        if !blob.is_file() {
            download(&self.client, &self.url(name, commit), &announced, &blob, name, self.progress)?;
        }
        Ok(self.cache.link(&blob, commit, name)?)
    }

    fn announced(&self, name: &str, revision: &str) -> Result<Announced, Failure> {
        Announced::from_headers(&self.client.head(&self.url(name, revision))?)
    }

    fn url(&self, file: &str, revision: &str) -> String {
        let datasets = if self.kind == RepoKind::Dataset { "datasets/" } else { "" };
        let (endpoint, repo) = (&self.settings.endpoint, &self.name.repo);
        format!("{endpoint}/{datasets}{repo}/resolve/{}/{}", escaped(revision, false), escaped(file, true))
    }

    /// Points the revision's cache entry at the fetched commit.
    pub(crate) fn commit(&self) -> Result<()> {
        match &self.commit {
            Some(commit) if *commit != self.name.revision => self.cache.set_commit(&self.name.revision, commit),
            _ => Ok(()),
        }
    }

    /// The error for a file that the revision does not have.
    pub(crate) fn lacks(&self, file: &str) -> Error {
        Error::Hub {
            what: format!("{file} of {}@{}", self.name.repo, self.name.revision),
            why: format!("the repository on {} has no such file", self.settings.endpoint),
            remedy: if file == WEIGHTS {
                "safetensors and pytorch_model.bin are looked for: choose a revision or a conversion that has either"
            } else {
                "choose a revision or a conversion that has it, or check the spelling of the name"
            }
            .into(),
        }
    }

    /// The error for a file that the cache does not have while the hub must not be asked.
    pub(crate) fn offline(&self, file: &str) -> Error {
        let dataset = if self.kind == RepoKind::Dataset { " --repo-type dataset" } else { "" };
        let HubName { repo, revision, .. } = &self.name;
        Error::Missing {
            what: "hub file",
            path: self.snapshot().unwrap_or_else(|| self.settings.cache.clone()),
            expected: format!(
                "{file} of {repo}@{revision} in the cache, because HF_HUB_OFFLINE forbids to download it"
            ),
            remedy: format!(
                "run once without HF_HUB_OFFLINE, or fetch it with 'hf download {repo}{dataset} --revision {revision}'"
            ),
        }
    }

    fn explain(&self, file: &str, failure: Failure) -> Error {
        let repo = &self.name.repo;
        let remedy = match (failure.code(), failure.status(), &failure) {
            ("RevisionNotFound", ..) => return self.no_revision(&failure),
            ("RepoNotFound", ..) | (_, Some(404), _) => return self.no_repository(&failure),
            (_, Some(401 | 403), _) => self.access(),
            (_, Some(429), _) => "the server asks to slow down: wait a few minutes, or set HF_TOKEN".into(),
            (.., Failure::Stopped) => {
                return Error::Interrupted {
                    kept: format!("what arrived of {file} of {repo} is kept in {}", self.settings.cache.display()),
                    resume: "run the same command again".into(),
                };
            }
            (.., Failure::Untrusted(_)) => {
                "if a proxy of your network signs connections itself, set SSL_CERT_FILE to a file \
                 with its certificate, as PEM"
                    .into()
            }
            (.., Failure::Strange(_)) => {
                "check HF_ENDPOINT and the proxy settings, then run the same command again".into()
            }
            _ => format!(
                "check the network and HF_ENDPOINT, then run the same command again: what arrived is kept; if {repo} \
                 is a directory of yours, check its path"
            ),
        };
        match failure {
            Failure::Local(error) => error,
            failure => {
                let what = format!("{file} of {repo}@{}", self.name.revision);
                Error::Hub { what, why: failure.to_string(), remedy }
            }
        }
    }

    /// What to do about a refusal.
    fn access(&self) -> String {
        let page = self.page();
        match self.settings.token {
            None => format!(
                "set HF_TOKEN to an access token, or store one with 'hf auth login'; if the repository is gated, also \
                 accept its licence at {page}"
            ),
            Some(_) => format!(
                "the access token (HF_TOKEN, or the one that 'hf auth login' stored) has no access: use one that may \
                 read this repository; if it is gated, accept its licence at {page}"
            ),
        }
    }

    /// The hub hides private repositories from those who may not see them.
    fn no_repository(&self, failure: &Failure) -> Error {
        let HubName { repo, revision, .. } = &self.name;
        let kind = if self.kind == RepoKind::Dataset { "dataset" } else { "model" };
        Error::Hub {
            what: format!("{repo}@{revision}"),
            why: format!("{} shows no {kind} of this name ({failure})", self.settings.endpoint),
            remedy: format!("check the spelling of the name; if the repository is private, {}", self.access()),
        }
    }

    fn no_revision(&self, failure: &Failure) -> Error {
        let HubName { repo, revision, .. } = &self.name;
        let known = self.revisions();
        if known.is_empty() {
            return self.no_repository(failure);
        }
        let near = nearest(revision, known.iter().cloned(), 6);
        let listed = if near.is_empty() { known.into_iter().take(6).collect() } else { near };
        Error::Hub {
            what: format!("{repo}@{revision}"),
            why: format!("the repository has no branch, tag or commit '{revision}'"),
            remedy: format!("choose one of those it has, such as {}, or the whole hash of a commit", listed.join(", ")),
        }
    }

    /// The branches and tags of the repository, or nothing when the server does not tell.
    fn revisions(&self) -> Vec<String> {
        let url = format!("{}/api/{}/{}/refs", self.settings.endpoint, self.kind.plural(), self.name.repo);
        let refs = self.client.json(&url).unwrap_or_default();
        let lists = ["branches", "tags"].into_iter().filter_map(|kind| refs.get(kind)?.as_array());
        lists.flatten().filter_map(|entry| Some(entry.get("name")?.as_str()?.to_owned())).collect()
    }

    fn page(&self) -> String {
        let datasets = if self.kind == RepoKind::Dataset { "datasets/" } else { "" };
        format!("{}/{datasets}{}", self.settings.endpoint, self.name.repo)
    }
}

/// Percent-encoding of everything that an address gives a meaning to, slashes kept where `path` says so.
fn escaped(text: &str, path: bool) -> String {
    use std::fmt::Write;

    text.bytes().fold(String::with_capacity(text.len()), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || (path && byte == b'/') {
            out.push(byte as char);
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_special_characters_make_plain_addresses() {
        assert_eq!(escaped("refs/pr/1", false), "refs%2Fpr%2F1");
        assert_eq!(escaped("data/a b#1?é.parquet", true), "data/a%20b%231%3F%C3%A9.parquet");
    }
}
