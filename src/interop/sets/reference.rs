//! Sets and files of sets that are named by where they are on the hub: `org/name[/folder][@revision]` as circuit-tracer
//! takes them, and `hf://org/name/path[?revision=…]` as its lists do.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::description::Description;
use super::{CONFIG, folders, not_a_set};
use crate::base::{Error, Progress, Result};
use crate::data::hub::{HubSettings, locate_files};

/// circuit-tracer's short names.
const ALIASES: [(&str, &str); 2] =
    [("gemma", "mwhanna/gemma-scope-transcoders"), ("llama", "mntss/transcoder-Llama-3.2-1B")];
/// The files of a dictionary's folder.
const OF_FOLDERS: [&str; 6] =
    ["cfg.json", "sae_weights.safetensors", "sae.safetensors", "params.npz", "params.safetensors", "config.json"];

/// A place on the hub.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    repo: String,
    revision: String,
    /// A file or folder inside; empty for the root.
    path: String,
}

impl Place {
    /// Takes a reference apart; `None` when it is none.
    fn parse(reference: &str) -> Option<Self> {
        let aliased = ALIASES.iter().find(|(short, _)| *short == reference).map_or(reference, |(_, full)| full);
        let (path, revision) = match aliased.strip_prefix("hf://") {
            Some(uri) => {
                let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
                let revision = query.split('&').find_map(|pair| pair.strip_prefix("revision="));
                match path.split_once('@') {
                    Some((path, at)) => (path, Some(at)),
                    None => (path, revision.filter(|revision| !revision.is_empty())),
                }
            }
            None => aliased.split_once('@').map_or((aliased, None), |(path, revision)| (path, Some(revision))),
        };
        let mut parts = path.trim_end_matches('/').splitn(3, '/');
        let (org, name) = (parts.next()?, parts.next()?);
        let inside = parts.next().unwrap_or_default();
        let odd = inside.split('/').any(|part| part == ".." || part == ".") || inside.starts_with('/');
        let plausible = !org.is_empty() && !name.is_empty() && !org.starts_with('.') && !odd;
        plausible.then(|| Self {
            repo: format!("{org}/{name}"),
            revision: revision.unwrap_or("main").into(),
            path: inside.into(),
        })
    }

    /// The cached directory of the repository, after a download of what `wanted` picks.
    fn fetch(&self, settings: &HubSettings, wanted: &dyn Fn(&str) -> bool, progress: &dyn Progress) -> Result<PathBuf> {
        let what = format!("a transcoder set ({CONFIG}, or folders of transcoders)");
        locate_files(settings, &self.repo, &self.revision, &what, wanted, progress)
    }
}

/// The directory, or the pattern of directories, of a set on the hub.
///
/// # Errors
/// `Flag` when the reference is neither a path nor a place on the hub; `Hub` or `Missing` when it cannot be had.
pub(super) fn locate(reference: &str, progress: &dyn Progress) -> Result<PathBuf> {
    let Some(place) = Place::parse(reference) else {
        return Err(Error::flag(
            "SET",
            "an existing directory, or a set on the hub: org/name[/folder][@revision]",
            reference,
            "check the path, or give the full name, such as mntss/transcoder-Llama-3.2-1B",
        ));
    };
    let settings = HubSettings::from_env();
    let inside = |name: &str| match place.path.as_str() {
        "" => name.to_owned(),
        path => format!("{path}/{name}"),
    };
    let is_layer = |name: &str| {
        let own = name.strip_prefix(&inside("")).unwrap_or_default();
        let layer = own.starts_with("layer_") || own.starts_with("W_enc_") || own.starts_with("W_dec_");
        layer && !own.contains('/') && own.ends_with(".safetensors")
    };
    let root = place.fetch(&settings, &|name| name == inside(CONFIG), progress);
    let config = root.as_ref().ok().map(|root| root.join(inside(CONFIG))).filter(|path| path.is_file());
    if let Some(config) = config {
        let description = Description::read(&config)?;
        if description.transcoders().is_none() {
            let root = place.fetch(&settings, &|name| name == inside(CONFIG) || is_layer(name), progress)?;
            return Ok(root.join(&place.path));
        }
        return Ok(root?.join(&place.path));
    }
    let (above, last) = place.path.rsplit_once('/').unwrap_or(("", &place.path));
    let star = last.split_once('*');
    let of_folder = |name: &str| {
        let Some(own) = below(name, if star.is_some() { above } else { &place.path }) else { return false };
        let (folder, file) = (own.split('/').next().unwrap_or_default(), own.rsplit('/').next().unwrap_or_default());
        let chosen = star.is_none_or(|(before, after)| folders::matches(folder, before, after));
        // sparsify's configuration lies beside the folders.
        chosen && OF_FOLDERS.contains(&file)
    };
    let root = place.fetch(&settings, &of_folder, progress)?;
    let path = root.join(&place.path);
    if path.is_dir() || folders::is_pattern(&path) {
        return Ok(path);
    }
    Err(not_a_set(&path, format!("{reference} has neither {} nor folders of dictionaries", inside(CONFIG))))
}

/// What follows `folder` in the path `name`.
fn below<'a>(name: &'a str, folder: &str) -> Option<&'a str> {
    if folder.is_empty() { Some(name) } else { name.strip_prefix(folder)?.strip_prefix('/') }
}

/// Where the listed files of a set's layers are: local paths as they are or from the set's own directory, places on the
/// hub in its cache.
///
/// # Errors
/// As [`locate`]; `Malformed` when an entry is no place.
pub(super) fn resolve(dir: &Path, listed: &[String], progress: &dyn Progress) -> Result<Vec<PathBuf>> {
    let settings = HubSettings::from_env();
    let mut roots: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    let place = |uri: &str| {
        Place::parse(uri).filter(|place| !place.path.is_empty()).ok_or_else(|| {
            Error::malformed(
                "configuration of a transcoder set",
                dir.join(CONFIG),
                "places as hf://org/name/file[?revision=…]",
                uri,
                "correct the list of transcoders",
            )
        })
    };
    for uri in listed.iter().filter(|uri| uri.starts_with("hf://")) {
        let Place { repo, revision, path } = place(uri)?;
        roots.entry((repo, revision)).or_default().push(path);
    }
    let mut dirs = BTreeMap::new();
    for ((repo, revision), wanted) in roots {
        let what = wanted.first().map_or("", String::as_str);
        let listed = |name: &str| wanted.iter().any(|wanted| wanted == name);
        let root = locate_files(&settings, &repo, &revision, what, &listed, progress)?;
        dirs.insert((repo, revision), root);
    }
    let path = |entry: &String| {
        if !entry.starts_with("hf://") {
            return Ok(dir.join(entry));
        }
        let Place { repo, revision, path } = place(entry)?;
        Ok(dirs.get(&(repo, revision)).map_or_else(|| dir.join(&path), |root| root.join(&path)))
    };
    listed.iter().map(path).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_on_the_hub_are_taken_apart() {
        let place = |reference: &str| Place::parse(reference).map(|p| (p.repo, p.revision, p.path));
        let parts = |repo: &str, revision: &str, path: &str| Some((repo.into(), revision.into(), path.into()));
        assert_eq!(place("gemma"), parts("mwhanna/gemma-scope-transcoders", "main", ""));
        assert_eq!(place("a/b"), parts("a/b", "main", ""));
        assert_eq!(place("a/b/c/d@v1"), parts("a/b", "v1", "c/d"));
        assert_eq!(place("hf://a/b/c.npz?revision=v2"), parts("a/b", "v2", "c.npz"));
        assert_eq!(place("hf://a/b/layer_0/x.npz"), parts("a/b", "main", "layer_0/x.npz"));
        assert_eq!((below("a/b/c", "a"), below("ab/c", "a"), below("c", "")), (Some("b/c"), None, Some("c")));
        assert!(place("word").is_none() && place("a/b/../c").is_none() && place("./a/b").is_none());
    }
}
