//! A data reference to local files: paths as they are, a hub dataset `org/name[@revision][:subset]` downloaded.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::corpus::Format;
use super::hub::{Hub, HubName, HubSettings, RepoKind};
use crate::base::{Error, Progress, Result};

/// The files behind one `--data` value: a file, every data file of a directory in the order of names, or a hub
/// dataset.
///
/// # Errors
/// As [`locate_dataset_with`]; `Missing` for a directory without data files.
pub fn locate_data(reference: &str, progress: &dyn Progress) -> Result<Vec<PathBuf>> {
    let path = Path::new(reference);
    if path.is_file() {
        return Ok(vec![path.into()]);
    }
    if path.is_dir() {
        let mut files: Vec<PathBuf> = walk(path, 0).into_iter().filter(|p| Format::of(p).is_some()).collect();
        files.sort();
        if files.is_empty() {
            return Err(Error::Missing {
                what: "text data",
                path: path.into(),
                expected: format!("files that end in {}", Format::known()),
                remedy: "name the files themselves, or convert them to one of these".into(),
            });
        }
        return Ok(files);
    }
    if Format::of(path).is_some() && HubName::parse("--data", reference).is_ok_and(|name| name.subset.is_none()) {
        return Err(Error::Missing {
            what: "data file",
            path: path.into(),
            expected: "an existing file".into(),
            remedy: "check the path".into(),
        });
    }
    locate_dataset(reference, progress)
}

/// The training files of a hub dataset under the settings of the environment.
///
/// # Errors
/// As [`locate_dataset_with`].
pub fn locate_dataset(reference: &str, progress: &dyn Progress) -> Result<Vec<PathBuf>> {
    locate_dataset_with(&HubSettings::from_env(), reference, progress)
}

/// The parquet, JSONL or text files of the training split of a hub dataset, or of everything but test and
/// validation where no file is called train. `:subset` names a directory or a file of the repository.
///
/// # Errors
/// `Hub` when the download fails or the repository has no data files, `Missing` when the cache lacks it offline,
/// `Flag` when the reference is malformed or several subsets would be mixed.
pub fn locate_dataset_with(settings: &HubSettings, reference: &str, progress: &dyn Progress) -> Result<Vec<PathBuf>> {
    let name = HubName::parse("--data", reference)?;
    let mut hub = Hub::new(settings, &name, RepoKind::Dataset, progress)?;
    if settings.offline {
        return cached_dataset(&hub, &name)?.ok_or_else(|| hub.offline("a data file"));
    }
    let listing = match hub.pin() {
        Err(error @ Error::Hub { .. }) => {
            let Some(files) = cached_dataset(&hub, &name)? else { return Err(error) };
            hub.warn_unasked(&error);
            return Ok(files);
        }
        listing => listing?,
    };
    download_dataset(&hub, &name, &listing.ok_or_else(|| hub.lacks("the list of files"))?, progress)
}

/// The chosen files of the cached snapshot; `None` when it has none.
fn cached_dataset(hub: &Hub<'_>, name: &HubName) -> Result<Option<Vec<PathBuf>>> {
    let Some(dir) = hub.snapshot() else { return Ok(None) };
    let names: Vec<String> =
        walk(&dir, 4).iter().filter_map(|p| Some(p.strip_prefix(&dir).ok()?.to_str()?.replace('\\', "/"))).collect();
    let chosen = choose(&names, name)?;
    Ok(Some(chosen.iter().map(|name| dir.join(name)).collect()).filter(|files: &Vec<_>| !files.is_empty()))
}

fn download_dataset(hub: &Hub<'_>, name: &HubName, names: &[String], progress: &dyn Progress) -> Result<Vec<PathBuf>> {
    let reference = &name.repo;
    let chosen = choose(names, name)?;
    if chosen.is_empty() {
        return Err(Error::Hub {
            what: format!("the dataset {reference}"),
            why: format!("it has no training file that ends in {}", Format::known()),
            remedy: "choose a revision that has parquet (refs/convert/parquet on the hub), or download and convert it"
                .into(),
        });
    }
    if let [first, _, ..] = chosen.as_slice() {
        progress.warn(&format!("{reference} has {} files; {reference}:{first} takes only the first", chosen.len()));
    }
    let files = chosen.iter().map(|file| hub.fetch(file)?.ok_or_else(|| hub.lacks(file))).collect::<Result<_>>()?;
    hub.commit()?;
    Ok(files)
}

/// The names to read, sorted.
fn choose(names: &[String], reference: &HubName) -> Result<Vec<String>> {
    let wanted = |name: &&String| match &reference.subset {
        None => true,
        Some(subset) => {
            *name == subset
                || name.rsplit('/').skip(1).any(|dir| dir == subset)
                || name.starts_with(&format!("{subset}/"))
        }
    };
    let mut found: Vec<&String> = names.iter().filter(|n| Format::of(Path::new(n)).is_some()).filter(wanted).collect();
    if let [only] = found.as_slice() {
        return Ok(vec![(*only).clone()]);
    }
    for preferred in [Format::Parquet, Format::Jsonl] {
        if found.iter().any(|n| Format::of(Path::new(n)) == Some(preferred)) {
            found.retain(|n| Format::of(Path::new(n)) == Some(preferred));
        }
    }
    if found.iter().any(|n| says(n, &["train"])) {
        found.retain(|n| says(n, &["train"]));
    } else {
        found.retain(|n| !says(n, &["test", "validation", "valid", "val", "dev", "eval"]));
    }
    let subsets: BTreeSet<&str> =
        found.iter().map(|n| n.rsplit_once('/').map_or("", |(dir, _)| dir.trim_end_matches("/train"))).collect();
    if subsets.len() > 1 {
        let listed: Vec<&str> = subsets.into_iter().take(12).collect();
        return Err(Error::Flag {
            flag: "--data",
            expected: format!("one subset of {}", reference.repo),
            found: format!("several: {}", listed.join(", ")),
            remedy: format!("name one, as in {}:{}", reference.repo, listed.last().unwrap_or(&"")),
        });
    }
    let mut chosen: Vec<String> = found.into_iter().cloned().collect();
    chosen.sort();
    Ok(chosen)
}

/// Whether one of `words` is a word of the path, as `train` is in `data/train-00000-of-00001.parquet`.
fn says(name: &str, words: &[&str]) -> bool {
    name.split(|c: char| !c.is_ascii_alphanumeric()).any(|part| words.contains(&part))
}

/// The files of a snapshot under the names that they have in the repository.
pub(super) fn relative_names(dir: &Path) -> Vec<String> {
    let files = walk(dir, 4);
    files.iter().filter_map(|path| Some(path.strip_prefix(dir).ok()?.to_str()?.replace('\\', "/"))).collect()
}

/// All files under `dir`, at most `depth` directories down, hidden ones left out.
fn walk(dir: &Path, depth: usize) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        if path.is_file() {
            files.push(path);
        } else if depth > 0 && path.is_dir() {
            files.extend(walk(&path, depth - 1));
        }
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(names: &[&str], reference: &str) -> Result<Vec<String>> {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        choose(&names, &HubName::parse("--data", reference).unwrap())
    }

    #[test]
    fn the_training_split_is_preferred_and_one_format_is_read() {
        let names = ["README.md", "data/test-0.parquet", "data/train-1.parquet", "data/train-0.parquet", "train.jsonl"];
        assert_eq!(chosen(&names, "a/b").unwrap(), ["data/train-0.parquet", "data/train-1.parquet"]);
        assert_eq!(chosen(&["x.jsonl", "y.jsonl", "val.jsonl"], "a/b").unwrap(), ["x.jsonl", "y.jsonl"]);
        assert_eq!(chosen(&["test.parquet"], "a/b").unwrap(), ["test.parquet"], "the only file is what is meant");
        assert!(chosen(&["a.csv"], "a/b").unwrap().is_empty());
    }

    #[test]
    fn several_subsets_are_not_mixed_silently() {
        let names = ["en/train-0.parquet", "fr/train-0.parquet", "fr/test-0.parquet"];
        let error = chosen(&names, "a/b").unwrap_err().to_string();
        assert!(error.contains("en, fr") && error.contains("a/b:fr"), "{error}");
        assert_eq!(chosen(&names, "a/b:fr").unwrap(), ["fr/train-0.parquet"]);
        assert_eq!(chosen(&names, "a/b:fr/test-0.parquet").unwrap(), ["fr/test-0.parquet"]);
    }

    #[test]
    fn a_directory_gives_its_data_files_in_order() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b.jsonl", "a.txt", "c.csv"] {
            std::fs::write(dir.path().join(name), "x").unwrap();
        }
        let found = locate_data(dir.path().to_str().unwrap(), &crate::base::Silent).unwrap();
        assert_eq!(found, [dir.path().join("a.txt"), dir.path().join("b.jsonl")]);
        for bad in ["nowhere/file.jsonl", "./nowhere", "nowhere"] {
            assert!(locate_data(bad, &crate::base::Silent).is_err(), "{bad}");
        }
    }
}
