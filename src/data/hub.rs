//! A model reference to local files: a directory as it is, `org/name[@revision]` through the Hugging Face cache.
//!
//! The cache has the layout of `huggingface_hub`, so files that Python downloaded are found and the other way
//! round. All files of one model come from one commit: the branch is resolved once and the files are fetched by
//! commit, and the branch's entry in the cache is moved only when every file is there.

use std::cell::Cell;
use std::path::{Path, PathBuf};

use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, CacheRepo, Repo, RepoType};

use super::checkpoint::{self, CONFIG, TOKENIZER, TOKENIZER_CONFIG, WEIGHTS};
use super::gguf::is_gguf;
use crate::base::artifact::hash_file;
use crate::base::{Error, Progress, Result, Unit};

/// Where files of the hub come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubSettings {
    /// The directory that holds `models--org--name`.
    pub cache: PathBuf,
    /// The server, without a slash at the end.
    pub endpoint: String,
    /// The access token for private and gated repositories.
    pub token: Option<String>,
    /// Whether only the cache may be used.
    pub offline: bool,
}

impl HubSettings {
    /// The settings that `HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN`, `HF_ENDPOINT` and `HF_HUB_OFFLINE` ask for, with the
    /// defaults of `huggingface_hub`.
    pub fn from_env() -> Self {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
        let home = variable("HF_HOME").map_or_else(
            || {
                let cache = variable("XDG_CACHE_HOME").map(PathBuf::from);
                cache.unwrap_or_else(|| std::env::home_dir().unwrap_or_default().join(".cache")).join("huggingface")
            },
            PathBuf::from,
        );
        let stored = || std::fs::read_to_string(home.join("token")).ok();
        let token = variable("HF_TOKEN").or_else(stored).map(|t| t.trim().to_owned()).filter(|t| !t.is_empty());
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        let offline = variable("HF_HUB_OFFLINE")
            .is_some_and(|value| matches!(value.to_ascii_lowercase().as_str(), "1" | "on" | "yes" | "true"));
        Self {
            cache: variable("HF_HUB_CACHE").map_or_else(|| home.join("hub"), PathBuf::from),
            endpoint: endpoint.trim_end_matches('/').into(),
            token,
            offline,
        }
    }
}

/// The local files of one model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFiles {
    /// The reference as the user gave it: a directory or a hub name.
    pub dir_or_name: String,
    /// `config.json`, or the GGUF file that holds everything; so is `tokenizer` then.
    pub config: PathBuf,
    /// `tokenizer.json`.
    pub tokenizer: PathBuf,
    /// `tokenizer_config.json`, where the model has one.
    pub tokenizer_config: Option<PathBuf>,
    /// `generation_config.json`, where the model has one.
    pub generation_config: Option<PathBuf>,
    /// `model.safetensors` or `pytorch_model.bin`, or the shards that an index names, in the order of their names.
    pub weights: Vec<PathBuf>,
}

impl ModelFiles {
    /// One BLAKE3 for all weight files: of the contents of a single file, of the list of shard names and hashes
    /// otherwise.
    ///
    /// # Errors
    /// `Io` when a file cannot be read.
    pub fn weights_hash(&self) -> Result<String> {
        if let [only] = self.weights.as_slice() {
            return hash_file(only);
        }
        let mut hasher = blake3::Hasher::new();
        for shard in &self.weights {
            let name = shard.file_name().unwrap_or_default().to_string_lossy();
            hasher.update(format!("{name} {}\n", hash_file(shard)?).as_bytes());
        }
        Ok(hasher.finalize().to_hex().to_string())
    }
}

/// Finds the files of a model, downloading what is not there yet, under the settings of the environment.
///
/// # Errors
/// As [`locate_model_with`].
pub fn locate_model(reference: &str, progress: &dyn Progress) -> Result<ModelFiles> {
    locate_model_with(&HubSettings::from_env(), reference, progress)
}

/// Finds the files of a model: a local directory is checked for completeness, a GGUF file is a model by itself,
/// anything else must be `org/name[@revision]` and comes from the cache or the hub.
///
/// # Errors
/// `Missing` or `Malformed` when the local directory is incomplete or the cache lacks a file offline, `Hub` when
/// the download fails, `Flag` when the reference can be neither a path nor a hub name.
pub fn locate_model_with(settings: &HubSettings, reference: &str, progress: &dyn Progress) -> Result<ModelFiles> {
    let path = Path::new(reference);
    if path.is_dir() {
        return checkpoint::in_directory(reference, path);
    }
    if is_gguf(path) {
        return checkpoint::gguf_file(reference, path);
    }
    if path.exists() {
        return Err(Error::Unsupported {
            what: format!("the model file {reference}"),
            why: "a model is read from a GGUF file, or a directory with config.json, tokenizer.json and weights".into(),
            remedy: "give that directory".into(),
        });
    }
    let name = HubName::parse("MODEL", reference)?;
    let hub = Hub::new(settings, &name, RepoType::Model, progress);
    if let Some(files) = hub.snapshot().and_then(|dir| checkpoint::in_directory(reference, &dir).ok()) {
        return Ok(files);
    }
    if settings.offline {
        let dir = hub.snapshot().ok_or_else(|| hub.offline(CONFIG))?;
        return checkpoint::in_directory(reference, &dir).map_err(|error| match error {
            Error::Missing { path, .. } => hub.offline(&path.file_name().unwrap_or(path.as_os_str()).to_string_lossy()),
            other => other,
        });
    }
    download_model(hub, reference)
}

fn download_model(mut hub: Hub<'_>, reference: &str) -> Result<ModelFiles> {
    let listing = hub.pin()?;
    let listed = |name: &str| listing.as_ref().is_none_or(|names| names.iter().any(|n| n == name));
    let optional = |name: &str| if listed(name) { hub.fetch(name) } else { Ok(None) };
    let required = |name: &str| optional(name)?.ok_or_else(|| hub.lacks(name));
    let config = required(CONFIG)?;
    let tokenizer = required(TOKENIZER)?;
    let tokenizer_config = optional(TOKENIZER_CONFIG)?;
    let generation_config = optional("generation_config.json")?;
    optional("special_tokens_map.json")?;
    let weights = checkpoint::weights(optional, |name| hub.lacks(name))?;
    hub.commit()?;
    Ok(ModelFiles { dir_or_name: reference.into(), config, tokenizer, tokenizer_config, generation_config, weights })
}

/// `org/name[@revision][:subset]`, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HubName {
    pub(super) repo: String,
    pub(super) revision: String,
    pub(super) subset: Option<String>,
}

impl HubName {
    pub(super) fn parse(flag: &'static str, reference: &str) -> Result<Self> {
        let (rest, subset) = match reference.split_once(':') {
            Some((rest, subset)) => (rest, Some(subset.to_owned())),
            None => (reference, None),
        };
        let (repo, revision) = rest.split_once('@').unwrap_or((rest, "main"));
        let part = |part: &str| {
            !part.is_empty()
                && part.len() <= 96
                && !part.starts_with(['.', '-'])
                && part.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
        };
        let plausible = repo.split_once('/').is_some_and(|(org, name)| part(org) && part(name));
        if !plausible || revision.is_empty() || revision.contains("..") {
            return Err(Error::Flag {
                flag,
                expected: "an existing path, or a hub name of the form org/name[@revision]".into(),
                found: format!("'{reference}', and there is no such file or directory"),
                remedy: "check the path, or give the full hub name, such as openai-community/gpt2".into(),
            });
        }
        Ok(Self { repo: repo.into(), revision: revision.into(), subset })
    }
}

/// One repository of the hub, seen through the cache.
pub(super) struct Hub<'a> {
    settings: &'a HubSettings,
    name: HubName,
    kind: RepoType,
    progress: &'a dyn Progress,
    /// The commit that all files come from, once known.
    commit: Option<String>,
}

impl<'a> Hub<'a> {
    pub(super) fn new(settings: &'a HubSettings, name: &HubName, kind: RepoType, progress: &'a dyn Progress) -> Self {
        Self { settings, name: name.clone(), kind, progress, commit: None }
    }

    fn cache(&self, revision: &str) -> CacheRepo {
        Cache::new(self.settings.cache.clone()).repo(self.repo(revision))
    }

    fn repo(&self, revision: &str) -> Repo {
        Repo::with_revision(self.name.repo.clone(), self.kind, revision.into())
    }

    /// The cached snapshot of the revision, complete or not.
    pub(super) fn snapshot(&self) -> Option<PathBuf> {
        let repo_dir = self.settings.cache.join(self.repo(&self.name.revision).folder_name());
        let commit = std::fs::read_to_string(repo_dir.join("refs").join(&self.name.revision));
        let commit = commit.as_deref().map_or(self.name.revision.as_str(), str::trim);
        Some(repo_dir.join("snapshots").join(commit)).filter(|dir| dir.is_dir())
    }

    /// Asks the hub for the commit behind the revision and for its file names; `None` when the server knows no
    /// listings, as plain mirrors do.
    pub(super) fn pin(&mut self) -> Result<Option<Vec<String>>> {
        match self.api(&self.name.revision)?.info() {
            Ok(info) => {
                self.commit = Some(info.sha);
                Ok(Some(info.siblings.into_iter().map(|s| s.rfilename).collect()))
            }
            Err(error) if status_of(&error) == Some(404) => Ok(None),
            Err(error) => Err(self.explain("the list of files", &error)),
        }
    }

    /// The local path of file `name`, downloading it if need be; `None` when the repository has no such file.
    pub(super) fn fetch(&self, name: &str) -> Result<Option<PathBuf>> {
        if let Some(commit) = &self.commit {
            let cached = self.cache(commit).pointer_path(commit).join(name);
            if cached.is_file() {
                return Ok(Some(cached));
            }
        }
        let api = self.api(self.commit.as_deref().unwrap_or(&self.name.revision))?;
        let size = Cell::new(0);
        let bar = Bar { progress: self.progress, size: &size, open: false };
        let path = match api.download_with_progress(name, bar) {
            Ok(path) => path,
            Err(error) if status_of(&error) == Some(404) => return Ok(None),
            Err(error) => return Err(self.explain(name, &error)),
        };
        let found = std::fs::metadata(&path).map_err(Error::io("look at the downloaded file", &path))?.len();
        if found != size.get() {
            let blob = std::fs::canonicalize(&path).unwrap_or_else(|_| path.clone());
            drop(std::fs::remove_file(&path));
            drop(std::fs::remove_file(blob));
            return Err(Error::Hub {
                what: format!("{name} of {}", self.name.repo),
                why: format!("the connection ended after {found} of {} bytes", size.get()),
                remedy: "run the same command again; files that are whole are kept".into(),
            });
        }
        Ok(Some(path))
    }

    /// Points the revision's cache entry at the fetched commit.
    pub(super) fn commit(&self) -> Result<()> {
        let Some(commit) = &self.commit else { return Ok(()) };
        let cache = self.cache(&self.name.revision);
        cache.create_ref(commit).map_err(Error::io("record the revision in the hub cache", &self.settings.cache))
    }

    fn api(&self, revision: &str) -> Result<ApiRepo> {
        let api = ApiBuilder::from_cache(Cache::new(self.settings.cache.clone()))
            .with_endpoint(self.settings.endpoint.clone())
            .with_token(self.settings.token.clone())
            .with_retries(3)
            .with_progress(false)
            .build()
            .map_err(|e| self.explain("anything", &e))?;
        Ok(api.repo(self.repo(revision)))
    }

    pub(super) fn lacks(&self, file: &str) -> Error {
        let remedy = if file == WEIGHTS {
            "safetensors and pytorch_model.bin are looked for: choose a revision or a conversion that has either"
        } else {
            "check the spelling of the name and the revision; the repository may hold another kind of model"
        };
        Error::Hub {
            what: format!("{file} of {}@{}", self.name.repo, self.name.revision),
            why: format!("{} has no such file or repository", self.settings.endpoint),
            remedy: remedy.into(),
        }
    }

    pub(super) fn offline(&self, file: &str) -> Error {
        let dataset = if matches!(self.kind, RepoType::Dataset) { " --repo-type dataset" } else { "" };
        Error::Missing {
            what: "hub file",
            path: self.snapshot().unwrap_or_else(|| self.settings.cache.clone()),
            expected: format!(
                "{file} of {}@{} in the cache, because HF_HUB_OFFLINE forbids to download it",
                self.name.repo, self.name.revision
            ),
            remedy: format!(
                "run once without HF_HUB_OFFLINE, or fetch it with 'hf download {}{dataset} --revision {}'",
                self.name.repo, self.name.revision
            ),
        }
    }

    fn explain(&self, file: &str, error: &ApiError) -> Error {
        let repo = &self.name.repo;
        let remedy = match status_of(error) {
            Some(401 | 403) => format!(
                "set HF_TOKEN to a token with access; if the repository is gated, accept its terms at {}/{repo}",
                self.settings.endpoint
            ),
            Some(416) => {
                format!("a finished part was left over: remove *.part under {}", self.settings.cache.display())
            }
            Some(429) => "the server asks to slow down: wait a few minutes, or set HF_TOKEN".into(),
            _ => format!(
                "check the network and HF_ENDPOINT, then run the same command again; HF_HUB_OFFLINE=1 uses only what \
                 is already downloaded; if {repo} is a directory of yours, check its path"
            ),
        };
        Error::Hub { what: format!("{file} of {repo}@{}", self.name.revision), why: error.to_string(), remedy }
    }
}

/// The HTTP status in an error of the hub client, which hides its HTTP library's types.
fn status_of(error: &ApiError) -> Option<u16> {
    let text = error.to_string();
    let (_, rest) = text.split_once("status: ")?;
    rest.get(..3)?.parse().ok()
}

/// Draws one download through [`Progress`] and remembers the size that the server announced.
struct Bar<'a> {
    progress: &'a dyn Progress,
    size: &'a Cell<u64>,
    open: bool,
}

impl hf_hub::api::Progress for Bar<'_> {
    fn init(&mut self, size: usize, filename: &str) {
        self.size.set(size as u64);
        if !self.open {
            self.progress.begin(&format!("downloading {filename}"), size as u64, Unit::Bytes);
            self.open = true;
        }
        self.progress.set(0);
    }

    fn update(&mut self, size: usize) {
        self.progress.advance(size as u64);
    }

    fn finish(&mut self) {}
}

impl Drop for Bar<'_> {
    fn drop(&mut self) {
        if self.open {
            self.progress.end();
        }
    }
}

#[cfg(test)]
#[path = "hub_tests.rs"]
mod tests;
