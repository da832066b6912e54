//! Names that people and programs give to features: `labels.jsonl` in the directory of an index, one label a line.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};

use crate::base::artifact::write_atomic_with;
use crate::base::{Error, Result};

/// The labels of an index, beside its other files.
pub const LABELS_FILE: &str = "labels.jsonl";
/// Bytes at the start of gzip files.
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// A name for a feature. A feature has at most one label of each method and model.
///
/// Neuronpedia's explanations read as labels too: `index`, `description`, `typeName`, `explanationModelName` and
/// `authorId` are other names of the fields.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Label {
    /// The feature.
    #[serde(alias = "index", deserialize_with = "number")]
    pub feature: u32,
    /// What it means.
    #[serde(alias = "description")]
    pub text: String,
    /// How the label was made, such as `oai_token-act-pair`; absent when a person wrote it.
    #[serde(default, alias = "typeName", skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// The model that wrote it.
    #[serde(default, alias = "explanationModelName", skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The person who wrote it.
    #[serde(default, alias = "authorId", skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// How well it fits, from 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
}

/// Neuronpedia writes numbers of features as text.
fn number<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Number(u32),
        Text(String),
    }
    match Either::deserialize(from)? {
        Either::Number(number) => Ok(number),
        Either::Text(text) => text.trim().parse().map_err(serde::de::Error::custom),
    }
}

impl Label {
    /// What a person calls a feature.
    pub fn by_hand(feature: u32, text: &str) -> Self {
        Self { feature, text: text.to_owned(), ..Self::default() }
    }

    fn made_as(&self) -> (Option<&str>, Option<&str>) {
        (self.method.as_deref(), self.model.as_deref())
    }
}

/// All labels of an index.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Labels {
    by_feature: BTreeMap<u32, Vec<Label>>,
}

/// What importing did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Imported {
    /// Labels that are new.
    pub added: usize,
    /// Labels that took the place of one of the same method and model.
    pub replaced: usize,
    /// Lines without text.
    pub empty: usize,
}

impl Labels {
    /// The labels in `dir`; none when it has no such file.
    ///
    /// # Errors
    /// `Io`, or `Malformed` when a line is no label.
    pub fn open(dir: &Path) -> Result<Self> {
        let mut labels = Self::default();
        let path = dir.join(LABELS_FILE);
        if path.exists() {
            for label in read_lines(&path)? {
                labels.set(label);
            }
        }
        Ok(labels)
    }

    /// Writes them into `dir`, so that a reader sees all or what was there before. Without labels there is no file.
    ///
    /// # Errors
    /// `Io` when the disk is full or not writable.
    pub fn save(&self, dir: &Path) -> Result<()> {
        let path = dir.join(LABELS_FILE);
        if self.by_feature.is_empty() {
            return match std::fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    Err(Error::io("remove the labels", &path)(error))
                }
                _ => Ok(()),
            };
        }
        self.export(&path)
    }

    /// Writes them as JSON lines into the file `path`.
    ///
    /// # Errors
    /// `Io` when the disk is full or not writable.
    pub fn export(&self, path: &Path) -> Result<()> {
        write_lines(path, self.iter().map(serde_json::to_value))
    }

    /// Writes them as Neuronpedia's explanations into the file `path`, compressed when its name ends in `.gz`. `model`
    /// and `layer` are Neuronpedia's ids of the model and of the source, as `gpt2-small` and `8-res-jb`.
    ///
    /// # Errors
    /// `Io` when the disk is full or not writable.
    pub fn export_neuronpedia(&self, path: &Path, model: &str, layer: &str) -> Result<()> {
        let explanation = |label: &Label| {
            Ok(json!({
                "modelId": model,
                "layer": layer,
                "index": label.feature.to_string(),
                "description": label.text,
                "authorId": label.author,
                "typeName": label.method,
                "explanationModelName": label.model,
            }))
        };
        write_lines(path, self.iter().map(explanation))
    }

    /// Adds the labels of the JSON lines in the file `path`, ours or Neuronpedia's, compressed with gzip or not, for an
    /// index of `d_sae` features.
    ///
    /// # Errors
    /// `Io`, or `Malformed` when a line is no label or names a feature that is not there; nothing is added then.
    pub fn import(&mut self, path: &Path, d_sae: usize) -> Result<Imported> {
        let read = read_lines(path)?;
        if let Some((line, beyond)) = read.iter().enumerate().find(|(_, label)| label.feature as usize >= d_sae) {
            let expected = format!("features from 0 to {}", d_sae.saturating_sub(1));
            let found = format!("feature {} in label {}", beyond.feature, line + 1);
            return Err(Error::malformed("label file", path, expected, found, "import labels of this dictionary"));
        }
        let mut imported = Imported::default();
        for label in read {
            if label.text.trim().is_empty() {
                imported.empty += 1;
            } else if self.set(label) {
                imported.replaced += 1;
            } else {
                imported.added += 1;
            }
        }
        Ok(imported)
    }

    /// Adds a label, in place of the one of the same method and model if there is one, which it says.
    pub fn set(&mut self, label: Label) -> bool {
        let labels = self.by_feature.entry(label.feature).or_default();
        let same = labels.iter().position(|other| other.made_as() == label.made_as());
        match same {
            Some(i) => labels[i] = label,
            None => labels.push(label),
        }
        // What people wrote has neither and comes first.
        labels.sort_by(|a, b| a.made_as().cmp(&b.made_as()));
        same.is_some()
    }

    /// Removes what people called `feature`, or with `all` every label of it; true when there was one.
    pub fn remove(&mut self, feature: u32, all: bool) -> bool {
        let Some(labels) = self.by_feature.get_mut(&feature) else { return false };
        let before = labels.len();
        labels.retain(|label| !all && label.made_as() != (None, None));
        let removed = labels.len() < before;
        if labels.is_empty() {
            self.by_feature.remove(&feature);
        }
        removed
    }

    /// The labels of `feature`, those of people first.
    pub fn of(&self, feature: u32) -> &[Label] {
        self.by_feature.get(&feature).map_or(&[], Vec::as_slice)
    }

    /// The name to show for `feature`.
    pub fn name(&self, feature: u32) -> Option<&str> {
        self.of(feature).first().map(|label| label.text.as_str())
    }

    /// All of them, by feature.
    pub fn iter(&self) -> impl Iterator<Item = &Label> {
        self.by_feature.values().flatten()
    }

    /// The features that have one.
    pub fn features(&self) -> BTreeSet<u32> {
        self.by_feature.keys().copied().collect()
    }
}

fn read_lines(path: &Path) -> Result<Vec<Label>> {
    let mut bytes = std::fs::read(path).map_err(Error::io("read the labels", path))?;
    if bytes.starts_with(&GZIP) {
        let mut text = Vec::new();
        let unpacked = flate2::read::MultiGzDecoder::new(&bytes[..]).read_to_end(&mut text);
        unpacked.map_err(Error::io("unpack the labels", path))?;
        bytes = text;
    }
    let lines = bytes.split(|&byte| byte == b'\n').enumerate();
    lines
        .filter(|(_, line)| !line.trim_ascii().is_empty())
        .map(|(i, line)| {
            serde_json::from_slice(line).map_err(|e| {
                let expected = "JSON lines with \"feature\" and \"text\", or Neuronpedia's explanations";
                let found = format!("line {}: {e}", i + 1);
                Error::malformed("label file", path, expected, found, "correct the line")
            })
        })
        .collect()
}

fn write_lines(path: &Path, lines: impl Iterator<Item = serde_json::Result<Value>>) -> Result<()> {
    let mut text = Vec::new();
    for line in lines {
        let line = line.map_err(|e| Error::io("serialise the labels", path)(e.into()))?;
        text.extend_from_slice(line.to_string().as_bytes());
        text.push(b'\n');
    }
    write_atomic_with(path, |file| {
        if path.extension().is_none_or(|extension| extension != "gz") {
            return file.write_all(&text);
        }
        let mut packed = flate2::write::GzEncoder::new(file, flate2::Compression::new(5));
        packed.write_all(&text)?;
        packed.finish().map(drop)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_of_people_come_first_and_one_of_each_kind_stays() {
        let mut labels = Labels::default();
        let by = |text: &str, model: &str| Label {
            method: Some("token-act-pair".into()),
            model: Some(model.into()),
            ..Label::by_hand(3, text)
        };
        assert!(!labels.set(by("cities", "big")) && !labels.set(by("places", "small")));
        assert!(!labels.set(Label::by_hand(3, "capitals")) && labels.set(by("towns", "big")));
        assert_eq!(labels.of(3).iter().map(|l| l.text.as_str()).collect::<Vec<_>>(), ["capitals", "towns", "places"]);
        assert_eq!((labels.name(3), labels.name(4)), (Some("capitals"), None));
        assert!(labels.remove(3, false) && !labels.remove(3, false) && labels.of(3).len() == 2);
        assert!(labels.remove(3, true) && labels.features().is_empty());
    }

    #[test]
    fn labels_survive_files_of_both_formats() {
        let dir = tempfile::tempdir().unwrap();
        let mut labels = Labels::default();
        labels.set(Label {
            author: Some("me".into()), score: Some(0.5), ..Label::by_hand(7, "“golden” gate\nbridge")
        });
        labels.set(Label { method: Some("m".into()), model: Some("g".into()), ..Label::by_hand(2, "dogs") });
        labels.save(dir.path()).unwrap();
        assert_eq!(Labels::open(dir.path()).unwrap(), labels);
        let path = dir.path().join("explanations.jsonl.gz");
        labels.export_neuronpedia(&path, "gpt2-small", "8-res-jb").unwrap();
        assert!(std::fs::read(&path).unwrap().starts_with(&GZIP));
        let mut back = Labels::default();
        assert_eq!(back.import(&path, 8).unwrap(), Imported { added: 2, ..Imported::default() });
        assert_eq!(back.name(7), labels.name(7));
        assert_eq!(back.of(2), labels.of(2));
        assert_eq!(back.import(&path, 8).unwrap(), Imported { replaced: 2, ..Imported::default() });
        let error = back.import(&path, 7).unwrap_err().to_string();
        assert!(error.contains("feature 7") && error.contains("0 to 6"), "{error}");
        std::fs::write(&path, "{\"index\": \"3\", \"description\": \"\"}\n\n{\"index\": 3}\n").unwrap();
        let error = back.import(&path, 8).unwrap_err().to_string();
        assert!(error.contains("line 3") && error.contains("Neuronpedia"), "{error}");
        labels.remove(7, true);
        labels.remove(2, true);
        labels.save(dir.path()).unwrap();
        assert!(!dir.path().join(LABELS_FILE).exists());
    }
}
