//! Which GGUF file of a repository is meant: most hold the same model in a dozen precisions.

use std::collections::BTreeMap;
use std::path::Path;

use super::name::HubName;
use crate::base::{Error, Result};
use crate::data::checkpoint::split_of;

/// Whether a file of a repository is a GGUF file by its name.
pub(super) fn is_gguf_name(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

/// The file, or its parts in order, that `name` means out of `files`: the one called like its subset, the only one
/// whose name has the subset in it (`Q4_K_M`, as llama.cpp and Ollama take it), or the only one there is.
///
/// # Errors
/// `Flag` with the names to choose from when there is not exactly one.
pub(super) fn choose(files: &[String], name: &HubName) -> Result<Vec<String>> {
    let mut models: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for file in files.iter().filter(|file| is_gguf_name(file) && !is_projector(file)) {
        let parts = split_of(Path::new(file)).map_or_else(
            || vec![file.clone()],
            |parts| parts.iter().map(|part| part.to_string_lossy().replace('\\', "/")).collect(),
        );
        models.insert(parts.first().cloned().unwrap_or_default(), parts);
    }
    let meant = |(first, parts): &(&String, &Vec<String>)| match &name.subset {
        None => true,
        Some(subset) => parts.contains(subset) || has_words(first, subset),
    };
    let exact = name.subset.as_ref().and_then(|subset| models.values().find(|parts| parts.contains(subset)));
    let mut found: Vec<&Vec<String>> = models.iter().filter(meant).map(|(_, parts)| parts).collect();
    if let Some(parts) = exact {
        found = vec![parts];
    }
    if let [only] = found.as_slice() {
        return Ok((*only).clone());
    }
    let known: Vec<&str> = models.keys().take(12).map(String::as_str).collect();
    let remedy = match known.last() {
        Some(last) => format!("name one, as in {}:{last}", name.repo),
        None => "leave out what stands after the colon, which chooses among GGUF files".into(),
    };
    Err(Error::Flag {
        flag: "MODEL",
        expected: format!("one GGUF file of {}", name.repo),
        found: match (&name.subset, known.is_empty()) {
            (_, true) => "a repository without GGUF files".into(),
            (Some(subset), _) => format!("{} with '{subset}' among {}", found.len(), known.join(", ")),
            (None, _) => format!("{}: {}", models.len(), known.join(", ")),
        },
        remedy,
    })
}

/// Image encoders that stand beside a multimodal model.
fn is_projector(file: &str) -> bool {
    file.rsplit('/').next().unwrap_or(file).to_ascii_lowercase().starts_with("mmproj")
}

/// Whether `subset` stands in `file` between characters that are no part of a word, in either case.
fn has_words(file: &str, subset: &str) -> bool {
    let (file, subset) = (file.to_ascii_lowercase(), subset.to_ascii_lowercase());
    let is_word = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_');
    !subset.is_empty()
        && file.match_indices(&subset).any(|(at, _)| {
            !is_word(file[..at].chars().next_back()) && !is_word(file[at + subset.len()..].chars().next())
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(files: &[&str], reference: &str) -> Result<Vec<String>> {
        let files: Vec<String> = files.iter().map(ToString::to_string).collect();
        choose(&files, &HubName::parse("MODEL", reference).unwrap())
    }

    #[test]
    fn a_file_is_named_by_itself_or_by_its_precision() {
        let files = ["README.md", "m.Q4_K_M.gguf", "m.Q4_K_S.gguf", "m.Q8_0.gguf", "mmproj-f16.gguf"];
        assert_eq!(chosen(&files, "a/b:m.Q8_0.gguf").unwrap(), ["m.Q8_0.gguf"]);
        assert_eq!(chosen(&files, "a/b:q4_k_m").unwrap(), ["m.Q4_K_M.gguf"]);
        assert_eq!(chosen(&["m.gguf", "mmproj.gguf"], "a/b").unwrap(), ["m.gguf"]);
        for (reference, expected) in
            [("a/b", "3: m.Q4_K_M.gguf"), ("a/b:Q4", "0 with 'Q4'"), ("a/b:q5_0", "as in a/b:")]
        {
            let error = chosen(&files, reference).unwrap_err().to_string();
            assert!(error.contains(expected), "{reference}: {error}");
        }
        let error = chosen(&["model.safetensors"], "a/b:x").unwrap_err().to_string();
        assert!(error.contains("without GGUF files"), "{error}");
    }

    #[test]
    fn parts_of_a_split_file_come_together() {
        let files = ["q8/m-00002-of-00002.gguf", "q8/m-00001-of-00002.gguf", "q4/m.gguf"];
        let parts = ["q8/m-00001-of-00002.gguf", "q8/m-00002-of-00002.gguf"];
        assert_eq!(chosen(&files, "a/b:q8").unwrap(), parts);
        assert_eq!(chosen(&files, "a/b:q8/m-00002-of-00002.gguf").unwrap(), parts);
    }
}
