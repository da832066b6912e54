//! Names for the features of a graph, from feature indexes, one a layer.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::types::{Graph, NodeKind};
use crate::analysis::feature::{FeatureRecord, HEADER_FILE, IndexFile};
use crate::base::{Error, Result};
use crate::model::HookPoint;

/// Examples that a derived name looks at.
const EXAMPLES: usize = 10;
/// Tokens in a derived name.
const TOKENS: usize = 3;

/// Feature indexes by the layer of the dictionary.
#[derive(Debug, Default)]
pub struct LayerIndexes {
    by_layer: BTreeMap<usize, IndexFile>,
}

impl LayerIndexes {
    /// Opens indexes. Each path is one, or a directory with one a layer in it.
    ///
    /// # Errors
    /// `Missing` where there is none, `Unsupported` for one that does not say its layer, `Mismatch` when two are about
    /// the same layer, and whatever opening one gives.
    pub fn open(paths: &[PathBuf]) -> Result<Self> {
        let mut indexes = Self::default();
        for path in paths {
            let mut inside = inside(path)?;
            if inside.is_empty() {
                inside.push(path.clone());
            }
            for dir in inside {
                indexes.add(IndexFile::open(&dir)?, &dir)?;
            }
        }
        Ok(indexes)
    }

    fn add(&mut self, index: IndexFile, dir: &Path) -> Result<()> {
        let layer = layer_of(&index).ok_or_else(|| Error::Unsupported {
            what: format!("labels from {}", dir.display()),
            why: "its index.json names no hook point in a layer".into(),
            remedy: "write hook_name into its index.json, or index again with a dictionary that has one".into(),
        })?;
        match self.by_layer.insert(layer, index) {
            None => Ok(()),
            Some(_) => Err(Error::Mismatch {
                what: "feature indexes for labels",
                left: format!("an index of layer {layer}"),
                right: format!("another one of layer {layer}, {}", dir.display()),
                remedy: "give one index a layer".into(),
            }),
        }
    }

    /// The index of a layer.
    pub fn of(&self, layer: usize) -> Option<&IndexFile> {
        self.by_layer.get(&layer)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by_layer.is_empty()
    }

    /// All that is known of a feature; nothing where the layer has no index or a smaller one.
    ///
    /// # Errors
    /// `Malformed` when the index is damaged.
    pub fn record(&self, layer: usize, feature: u32) -> Result<Option<FeatureRecord>> {
        let index = self.of(layer).filter(|index| (feature as usize) < index.summaries().len());
        index.map(|index| index.record(feature)).transpose()
    }

    /// What to call a feature: its label, else what it fires on or writes, in quotes. See `derived`.
    ///
    /// # Errors
    /// As [`LayerIndexes::record`].
    pub fn label(&self, layer: usize, feature: u32, n_layers: usize) -> Result<Option<String>> {
        let Some(record) = self.record(layer, feature)? else { return Ok(None) };
        let given = record.labels.first().map(|label| label.text.clone());
        Ok(given.or_else(|| derived(&record, layer, n_layers)))
    }

    /// Names the features of `graph` that have no name yet, and says how many it named.
    ///
    /// # Errors
    /// As [`LayerIndexes::record`].
    pub fn name(&self, graph: &mut Graph) -> Result<usize> {
        let (n_layers, mut named) = (graph.n_layers, 0);
        for node in &mut graph.nodes {
            if let NodeKind::Feature { layer, feature, label, .. } = &mut node.kind
                && label.is_none()
            {
                *label = self.label(*layer, *feature, n_layers)?;
                named += usize::from(label.is_some());
            }
        }
        Ok(named)
    }
}

/// The directories of indexes directly inside `path`, which is none itself, by name.
fn inside(path: &Path) -> Result<Vec<PathBuf>> {
    if path.join(HEADER_FILE).exists() || !path.is_dir() {
        return Ok(Vec::new());
    }
    let entries = std::fs::read_dir(path).map_err(Error::io("list the indexes", path))?;
    let mut found: Vec<PathBuf> =
        entries.flatten().map(|entry| entry.path()).filter(|dir| dir.join(HEADER_FILE).exists()).collect();
    found.sort();
    Ok(found)
}

fn layer_of(index: &IndexFile) -> Option<usize> {
    index.header.hook_name.as_deref()?.parse::<HookPoint>().ok()?.layer
}

/// A name for a feature that nobody named, in quotes so that it cannot be taken for one that somebody gave.
///
/// In the last third of the layers, where features mostly prepare an output, the tokens that it promotes. Before, the
/// token that half of its strongest examples peak on, else the tokens that they peak on.
fn derived(record: &FeatureRecord, layer: usize, n_layers: usize) -> Option<String> {
    let mut peaks: Vec<(String, usize)> = Vec::new();
    let examples = record.examples.len().min(EXAMPLES);
    for example in record.examples.iter().take(EXAMPLES) {
        let word = readable(example.tokens.get(example.peak)?);
        match peaks.iter_mut().find(|(known, _)| *known == word) {
            Some((_, count)) => *count += 1,
            None => peaks.push((word, 1)),
        }
    }
    // Stable: of equally frequent ones the stronger first.
    peaks.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let quoted = |words: &mut dyn Iterator<Item = String>| {
        let words: Vec<String> = words.take(TOKENS).map(|word| format!("“{word}”")).collect();
        words.join(" ")
    };
    let promoted = record.promoted.as_deref().unwrap_or_default();
    if layer * 3 >= n_layers * 2 && examples > 0 && !promoted.is_empty() {
        return Some(format!("say {}", quoted(&mut promoted.iter().map(|token| readable(&token.text)))));
    }
    if let Some((word, count)) = peaks.first()
        && count * 2 >= examples
    {
        return Some(format!("“{word}”"));
    }
    let words = quoted(&mut peaks.into_iter().map(|(word, _)| word));
    (!words.is_empty()).then_some(words)
}

/// A token in one line without the space that begins a word.
fn readable(token: &str) -> String {
    let shown = token.replace('\n', "↵").replace('\t', "⇥");
    let trimmed = shown.trim_start();
    if trimmed.is_empty() { shown.replace(' ', "␣") } else { trimmed.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::feature::logits::TokenLogit;
    use crate::analysis::feature::{ExampleRecord, TokenRecord};

    fn record(peaks: &[&str], promoted: &[&str]) -> FeatureRecord {
        let example = |word: &&str| ExampleRecord {
            value: 1.0,
            document: 0,
            sequence: 0,
            position: 1,
            peak: 1,
            tokens: vec!["a".into(), (*word).into()],
            token_ids: vec![0, 1],
            values: vec![0.0, 1.0],
        };
        let token = |text: &&str| TokenRecord { text: (*text).into(), effect: TokenLogit { token: 1, logit: 1.0 } };
        FeatureRecord {
            examples: peaks.iter().map(example).collect(),
            promoted: Some(promoted.iter().map(token).collect()),
            ..FeatureRecord::default()
        }
    }

    #[test]
    fn names_without_a_label_say_what_fires_it_or_what_it_writes() {
        let mixed = record(&[" Dallas", " Houston", " Dallas", " Austin", " Waco"], &[" Texas", "\n", " of", " x"]);
        assert_eq!(derived(&mixed, 2, 30).unwrap(), "“Dallas” “Houston” “Austin”");
        assert_eq!(derived(&mixed, 20, 30).unwrap(), "say “Texas” “↵” “of”");
        let one = record(&[" Dallas", " Dallas", "  "], &[" Texas"]);
        assert_eq!(derived(&one, 19, 30).unwrap(), "“Dallas”");
        assert_eq!(derived(&record(&["  "], &[]), 0, 30).unwrap(), "“␣␣”");
        assert_eq!(derived(&record(&[], &[]), 29, 30), None);
    }

    #[test]
    fn a_place_without_an_index_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let error = LayerIndexes::open(&[dir.path().into()]).unwrap_err().to_string();
        assert!(error.contains("features"), "{error}");
    }
}
