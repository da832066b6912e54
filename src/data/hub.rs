//! A model reference to local files: a directory as it is, `org/name[@revision]` through the Hugging Face cache.
//!
//! The cache has the layout of `huggingface_hub`, so files that Python downloaded are found and the other way
//! round. All files of one model come from one commit: the branch is resolved once and the files are fetched by
//! commit, and the branch's entry in the cache is moved only when every file is there. A branch that is cached whole
//! costs one request, which asks whether it has moved; without a network, or with `HF_HUB_OFFLINE`, the cached copy
//! is used as it is.

use std::path::{Path, PathBuf};

use super::chat::CHAT_TEMPLATE;
use super::checkpoint::{self, CONFIG, TOKENIZER, TOKENIZER_CONFIG};
use super::gguf::is_gguf;
use crate::base::artifact::hash_file;
use crate::base::{Error, Progress, Result};

mod cache;
mod client;
mod download;
mod files;
mod gguf;
mod name;
mod repo;

pub use files::locate_files;
pub(super) use name::{HubName, RepoKind};
pub(super) use repo::Hub;

/// Where files of the hub come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubSettings {
    /// The directory that holds `models--org--name`.
    pub cache: PathBuf,
    /// The server, without a slash at the end.
    pub endpoint: String,
    /// The access token for private and gated repositories.
    pub token: Option<String>,
    /// A PEM file of certificates to trust in place of Mozilla's.
    pub certificates: Option<PathBuf>,
    /// Whether only the cache may be used.
    pub offline: bool,
}

impl HubSettings {
    /// The settings that `HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_ENDPOINT` and `HF_HUB_OFFLINE`
    /// ask for, with the defaults of `huggingface_hub`, and the certificates that `SSL_CERT_FILE`, `REQUESTS_CA_BUNDLE`
    /// or `CURL_CA_BUNDLE` names.
    pub fn from_env() -> Self {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
        let home = variable("HF_HOME").map_or_else(
            || {
                let cache = variable("XDG_CACHE_HOME").map(PathBuf::from);
                cache.unwrap_or_else(|| std::env::home_dir().unwrap_or_default().join(".cache")).join("huggingface")
            },
            PathBuf::from,
        );
        let token_path = variable("HF_TOKEN_PATH").map_or_else(|| home.join("token"), PathBuf::from);
        let stored = || std::fs::read_to_string(token_path).ok();
        let token = variable("HF_TOKEN").or_else(stored).map(|t| t.trim().to_owned()).filter(|t| !t.is_empty());
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        let offline = variable("HF_HUB_OFFLINE")
            .or_else(|| variable("TRANSFORMERS_OFFLINE"))
            .is_some_and(|value| matches!(value.to_ascii_lowercase().as_str(), "1" | "on" | "yes" | "true"));
        Self {
            cache: variable("HF_HUB_CACHE").map_or_else(|| home.join("hub"), PathBuf::from),
            endpoint: endpoint.trim_end_matches('/').into(),
            token,
            certificates: ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"]
                .into_iter()
                .find_map(variable)
                .map(PathBuf::from),
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
    let mut hub = Hub::new(settings, &name, RepoKind::Model, progress)?;
    let cached = cached_model(&hub, &name, reference);
    if settings.offline {
        return cached.map_err(|error| match error {
            Error::Missing { path, .. } => hub.offline(&path.file_name().unwrap_or(path.as_os_str()).to_string_lossy()),
            other => other,
        });
    }
    let cached = cached.ok();
    if let Some(files) = cached.clone().filter(|_| !hub.may_have_moved()) {
        return Ok(files);
    }
    match (hub.pin(), cached) {
        (Ok(listing), _) => download_model(&hub, &name, reference, listing),
        (Err(error @ Error::Hub { .. }), Some(files)) => {
            hub.warn_unasked(&error);
            Ok(files)
        }
        (Err(error), _) => Err(error),
    }
}

/// What the cache holds, if that is a whole model.
fn cached_model(hub: &Hub<'_>, name: &HubName, reference: &str) -> Result<ModelFiles> {
    let dir = hub.snapshot().ok_or_else(|| hub.offline(CONFIG))?;
    if name.subset.is_none() {
        return checkpoint::in_directory(reference, &dir);
    }
    let parts = gguf::choose(&super::dataset::relative_names(&dir), name)?;
    checkpoint::gguf_file(reference, &dir.join(parts.first().map_or("", String::as_str)))
}

/// The files of a pinned revision; `listing` holds the names of all it has, where the server tells.
fn download_model(hub: &Hub<'_>, name: &HubName, reference: &str, listing: Option<Vec<String>>) -> Result<ModelFiles> {
    let listed = |name: &str| listing.as_ref().is_none_or(|names| names.iter().any(|n| n == name));
    let optional = |name: &str| if listed(name) { hub.fetch(name) } else { Ok(None) };
    let required = |name: &str| optional(name)?.ok_or_else(|| hub.lacks(name));
    let only_gguf = || listing.iter().flatten().any(|file| gguf::is_gguf_name(file)) && !listed(CONFIG);
    if name.subset.is_some() || only_gguf() {
        let unlisted = || name.subset.iter().cloned().collect();
        let parts = gguf::choose(&listing.clone().unwrap_or_else(unlisted), name)?;
        let parts: Vec<PathBuf> = parts.iter().map(|part| required(part)).collect::<Result<_>>()?;
        hub.commit()?;
        return checkpoint::gguf_file(reference, parts.first().map_or(Path::new(""), PathBuf::as_path));
    }
    let config = required(CONFIG)?;
    let tokenizer = required(TOKENIZER)?;
    let tokenizer_config = optional(TOKENIZER_CONFIG)?;
    let generation_config = optional("generation_config.json")?;
    optional("special_tokens_map.json")?;
    optional(CHAT_TEMPLATE)?;
    let weights = checkpoint::weights(optional, |name| hub.lacks(name))?;
    hub.commit()?;
    Ok(ModelFiles { dir_or_name: reference.into(), config, tokenizer, tokenizer_config, generation_config, weights })
}

#[cfg(test)]
#[path = "hub_tests.rs"]
mod tests;
