//! `org/name[@revision][:subset]`, taken apart.

use crate::base::{Error, Result};

/// What a repository of the hub holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RepoKind {
    /// Weights, configuration and tokenizer.
    Model,
    /// Text.
    Dataset,
}

impl RepoKind {
    /// `models` or `datasets`, as directories of the cache and addresses of the hub's interface begin.
    pub(super) fn plural(self) -> &'static str {
        match self {
            Self::Model => "models",
            Self::Dataset => "datasets",
        }
    }
}

/// A reference to a revision of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HubName {
    pub(crate) repo: String,
    pub(crate) revision: String,
    pub(crate) subset: Option<String>,
}

impl HubName {
    /// # Errors
    /// `Flag`, naming `flag`, when the text is no hub name.
    pub(crate) fn parse(flag: &'static str, reference: &str) -> Result<Self> {
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
        if !plausible || !is_inside(revision) {
            return Err(Error::Flag {
                flag,
                expected: "an existing path, or a hub name of the form org/name[@revision]".into(),
                found: format!("'{reference}', and there is no such file or directory"),
                remedy: "check the path, or give the full hub name, such as openai-community/gpt2".into(),
            });
        }
        Ok(Self { repo: repo.into(), revision: revision.into(), subset })
    }

    /// Whether the revision is a whole commit hash, which never comes to mean something else.
    pub(super) fn is_commit(&self) -> bool {
        self.revision.len() == 40 && self.revision.chars().all(|c| c.is_ascii_hexdigit())
    }
}

/// Whether a relative path of forward slashes stays inside the directory it is joined to.
pub(super) fn is_inside(path: &str) -> bool {
    !path.contains(['\\', '\0']) && path.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_an_owner_a_revision_and_perhaps_a_subset() {
        let name = |text| HubName::parse("MODEL", text);
        let plain = name("org/model-1.5_b").unwrap();
        assert_eq!((plain.repo.as_str(), plain.revision.as_str(), plain.subset), ("org/model-1.5_b", "main", None));
        let full = name("org/set@refs/convert/parquet:en/train").unwrap();
        assert_eq!(full.revision, "refs/convert/parquet");
        assert_eq!(full.subset.as_deref(), Some("en/train"));
        assert!(!full.is_commit());
        assert!(name("a/b@0123456789abcdef0123456789abcdef01234567").unwrap().is_commit());
        for bad in ["gpt2", "a/b/c", "../b", "a/b@", "a/b@../x", "a/b@/etc", "a/b@x\\y", "a b/c", ""] {
            assert!(name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn paths_that_leave_their_directory_are_told_apart() {
        for inside in ["a", "a/b.json", "a..b", ".hidden"] {
            assert!(is_inside(inside), "{inside}");
        }
        for outside in ["", "/a", "../a", "a/../b", "a//b", "a\\b", "./a"] {
            assert!(!is_inside(outside), "{outside}");
        }
    }
}
