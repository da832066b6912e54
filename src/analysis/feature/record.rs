//! The feature index on disk: `index.json` about the whole and `features.jsonl`, one line a feature.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::index::{FeatureIndex, IndexSettings};
use super::labels::Label;
use super::logits::{LogitEffects, TokenLogit};
use super::stats::{Example, FeatureStats, Summary};
use crate::base::artifact::{read_json, write_atomic_with, write_json};
use crate::base::{Error, Result};

/// About the whole index.
pub const HEADER_FILE: &str = "index.json";
/// The features.
pub const FEATURES_FILE: &str = "features.jsonl";

const MAKE_AGAIN: &str = "make the index again with `features --out`";

/// What the index was made of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct IndexHeader {
    /// The model, as the dictionary names it.
    pub model_name: Option<String>,
    /// The hook point, as the dictionary names it.
    pub hook_name: Option<String>,
    /// The directory of the dictionary, as it was named.
    #[serde(default)]
    pub dictionary: Option<String>,
    /// What the activations came from: a cache or text, as it was named.
    #[serde(default)]
    pub source: Option<String>,
    /// The MLP whose neurons are compared with the features, as the point where its neurons are read.
    #[serde(default)]
    pub neurons_of: Option<String>,
    /// Tokens of a sequence.
    #[serde(default)]
    pub context_size: usize,
    /// Features in the dictionary.
    pub d_sae: usize,
    /// Features that never fired.
    pub dead_features: usize,
    /// Positions counted.
    pub rows: u64,
    /// Positions that the filter left out.
    pub rows_left_out: u64,
    /// Sequences read.
    pub sequences: u64,
    /// What was kept of each feature.
    pub settings: IndexSettings,
}

/// One feature, readable without the tokenizer.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct FeatureRecord {
    /// Number, density, count and moments.
    #[serde(flatten)]
    pub summary: Summary,
    /// Names it was given; those that people wrote come first.
    pub labels: Vec<Label>,
    /// Activations where it fires.
    pub histogram: HistogramRecord,
    /// Tokens whose logits it raises most, strongest first; absent where it does not write to the residual stream.
    pub promoted: Option<Vec<TokenRecord>>,
    /// Tokens whose logits it lowers most, strongest first.
    pub suppressed: Option<Vec<TokenRecord>>,
    /// As `promoted`, through the gain and the centring of the model's final norm.
    pub promoted_through_norm: Option<Vec<TokenRecord>>,
    /// As `suppressed`, through the gain and the centring of the model's final norm.
    pub suppressed_through_norm: Option<Vec<TokenRecord>>,
    /// Its effects on the logits of all tokens, without the final norm.
    pub logit_histogram: Option<LogitHistogram>,
    /// The largest entries of its decoder row, by absolute value.
    pub alignment: Vec<AlignmentRecord>,
    /// The MLP neurons whose output rows are most alike to its decoder row, by absolute cosine; absent where no MLP
    /// writes what the dictionary decodes.
    pub neurons: Option<Vec<NeuronRecord>>,
    /// The features with the most similar decoder rows, by cosine.
    pub nearest: Vec<NeighbourRecord>,
    /// The features that fire on most of the same positions, by Jaccard index.
    pub coactive: Vec<CoactiveRecord>,
    /// The strongest examples, strongest first.
    pub examples: Vec<ExampleRecord>,
    /// Ten intervals from zero to the maximum, highest first, with examples drawn at random from each.
    pub intervals: Vec<IntervalRecord>,
}

/// Bin `i` counts activations in `[i, i + 1) · bin_width`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct HistogramRecord {
    /// A power of two.
    pub bin_width: f64,
    /// Up to the last bin that is not empty; their sum is the feature's count.
    pub counts: Vec<u64>,
}

/// Bin `i` counts tokens whose effect is in `[start + i · bin_width, start + (i + 1) · bin_width)`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct LogitHistogram {
    /// Lower bound of the first bin.
    pub start: f64,
    /// A power of two.
    pub bin_width: f64,
    /// From the first bin that is not empty to the last; their sum is the size of the vocabulary.
    pub counts: Vec<u64>,
}

/// An entry of the decoder row.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct AlignmentRecord {
    /// Coordinate of the space that the dictionary writes to: a neuron where that is the inside of an MLP.
    pub coordinate: u32,
    /// `W_dec[f][coordinate]`.
    pub value: f32,
    /// Its share of the row's sum of absolute values.
    pub share: f32,
}

/// A neuron that writes where the feature does.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct NeuronRecord {
    /// Number of the neuron in the MLP that [`IndexHeader::neurons_of`] names.
    pub neuron: u32,
    /// Cosine of `W_out[neuron]` and `W_dec[f]`.
    pub cosine: f32,
}

/// A feature that writes alike.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct NeighbourRecord {
    /// The other feature.
    pub feature: u32,
    /// Cosine of the two decoder rows.
    pub cosine: f32,
}

/// A feature that fires on the same positions.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct CoactiveRecord {
    /// The other feature.
    pub feature: u32,
    /// Positions where both fire over positions where one does.
    pub jaccard: f32,
    /// Pearson correlation of the two activations over all positions, zeros included.
    pub correlation: f32,
    /// Cosine of the two activations over all positions.
    pub cosine: f32,
}

/// A tenth of the range of a feature's activations.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct IntervalRecord {
    /// Lower bound, inclusive.
    pub from: f64,
    /// Upper bound; inclusive in the highest interval only.
    pub to: f64,
    /// Positions whose activation lies between the bounds.
    pub count: u64,
    /// Their share of the positions where the feature fires.
    pub share: f64,
    /// Positions drawn at random from them, in the order of the text.
    pub examples: Vec<ExampleRecord>,
}

/// A token and its direct effect.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// Readable text.
    pub text: String,
    /// Id and effect.
    #[serde(flatten)]
    pub effect: TokenLogit,
}

/// A position where the feature fires strongly, with its surroundings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExampleRecord {
    /// Activation at the position.
    pub value: f32,
    /// The document of the position's token.
    pub document: u32,
    /// The sequence.
    pub sequence: u64,
    /// The position in it.
    pub position: u32,
    /// Where the position is in the lists below.
    pub peak: usize,
    /// Readable tokens of the window.
    pub tokens: Vec<String>,
    /// Their ids.
    pub token_ids: Vec<u32>,
    /// Activations on them; zero also where the filter leaves a position out.
    pub values: Vec<f32>,
}

impl ExampleRecord {
    fn new(example: &Example, piece: &dyn Fn(u32) -> String) -> Self {
        let Example { value, sequence, position, document, start, tokens, values } = example;
        Self {
            value: *value,
            document: *document,
            sequence: *sequence,
            position: *position,
            peak: (position - start) as usize,
            tokens: tokens.iter().map(|&token| piece(token)).collect(),
            token_ids: tokens.clone(),
            values: values.clone(),
        }
    }
}

impl FeatureRecord {
    /// The record of feature `index`; `piece` gives the readable text of a token.
    pub fn new(
        index: u32,
        rows: u64,
        stats: &FeatureStats,
        effects: Option<&LogitEffects>,
        piece: &dyn Fn(u32) -> String,
    ) -> Self {
        let tokens = |list: &[TokenLogit]| {
            list.iter().map(|&effect| TokenRecord { text: piece(effect.token), effect }).collect()
        };
        Self {
            summary: stats.summary(index, rows),
            histogram: HistogramRecord {
                bin_width: stats.histogram.bin_width(),
                counts: stats.histogram.counts().to_vec(),
            },
            promoted: effects.map(|e| tokens(&e.promoted)),
            suppressed: effects.map(|e| tokens(&e.suppressed)),
            examples: stats.examples.iter().map(|e| ExampleRecord::new(e, piece)).collect(),
            ..Self::default()
        }
    }
}

impl FeatureIndex {
    /// The record of `feature`, or `None` when there is no such feature. `effects` are those of all features.
    pub fn record(
        &self,
        feature: u32,
        effects: Option<&[LogitEffects]>,
        piece: &dyn Fn(u32) -> String,
    ) -> Option<FeatureRecord> {
        let stats = self.features.get(feature as usize)?;
        let effects = effects.and_then(|e| e.get(feature as usize));
        Some(FeatureRecord::new(feature, self.rows, stats, effects, piece))
    }

    /// Writes `features` as JSON lines into the file `path`, which appears whole or not at all.
    ///
    /// # Errors
    /// `Io` when the disk is full or not writable.
    pub fn write_lines(
        &self,
        path: &Path,
        features: impl IntoIterator<Item = u32>,
        effects: Option<&[LogitEffects]>,
        piece: &dyn Fn(u32) -> String,
    ) -> Result<()> {
        write_atomic_with(path, |file| {
            let mut out = BufWriter::new(file);
            for record in features.into_iter().filter_map(|f| self.record(f, effects, piece)) {
                serde_json::to_writer(&mut out, &record)?;
                out.write_all(b"\n")?;
            }
            out.flush()
        })
    }

    /// Writes the whole index into the existing directory `dir`.
    ///
    /// # Errors
    /// As [`FeatureIndex::write_lines`].
    pub fn write(
        &self,
        dir: &Path,
        header: &IndexHeader,
        effects: Option<&[LogitEffects]>,
        piece: &dyn Fn(u32) -> String,
    ) -> Result<()> {
        self.write_lines(&dir.join(FEATURES_FILE), 0..self.features.len() as u32, effects, piece)?;
        write_json(&dir.join(HEADER_FILE), header)
    }

    /// About the whole, for a dictionary at `hook_name` of `model_name`.
    pub fn header(&self, model_name: Option<String>, hook_name: Option<String>) -> IndexHeader {
        let Self { settings, rows, rows_left_out, sequences, features } = self;
        IndexHeader {
            model_name,
            hook_name,
            d_sae: features.len(),
            dead_features: self.dead_features(),
            dictionary: None,
            source: None,
            neurons_of: None,
            context_size: 0,
            rows: *rows,
            rows_left_out: *rows_left_out,
            sequences: *sequences,
            settings: *settings,
        }
    }
}

/// A written index. Figures of all features are in memory, examples stay on disk until asked for.
#[derive(Debug)]
pub struct IndexFile {
    /// About the whole.
    pub header: IndexHeader,
    path: PathBuf,
    summaries: Vec<Summary>,
    offsets: Vec<u64>,
}

impl IndexFile {
    /// Opens what [`FeatureIndex::write`] wrote into `dir`.
    ///
    /// # Errors
    /// `Io` when a file is missing, `Malformed` when a line is broken or features are missing.
    pub fn open(dir: &Path) -> Result<Self> {
        let header: IndexHeader = read_json("feature index", &dir.join(HEADER_FILE))?;
        let path = dir.join(FEATURES_FILE);
        let file = File::open(&path).map_err(Error::io("open the feature index", &path))?;
        let mut reader = BufReader::new(file);
        let (mut summaries, mut offsets): (Vec<Summary>, Vec<u64>) = (Vec::new(), Vec::new());
        let (mut line, mut offset) = (Vec::new(), 0u64);
        loop {
            line.clear();
            let read = reader.read_until(b'\n', &mut line).map_err(Error::io("read the feature index", &path))?;
            if read == 0 {
                break;
            }
            let number = summaries.len();
            let summary: Summary = parse(&line, &path, number)?;
            if summary.index as usize != number {
                return Err(broken(&path, number, format!("feature {}", summary.index)));
            }
            summaries.push(summary);
            offsets.push(offset);
            offset += read as u64;
        }
        if summaries.len() != header.d_sae {
            return Err(broken(
                &path,
                summaries.len(),
                format!("the end of the file, {} features short", { header.d_sae.saturating_sub(summaries.len()) }),
            ));
        }
        Ok(Self { header, path, summaries, offsets })
    }

    /// The figures of every feature, by number.
    pub fn summaries(&self) -> &[Summary] {
        &self.summaries
    }

    /// Reads one feature.
    ///
    /// # Errors
    /// `Flag` when it is out of range; `Io` or `Malformed` when the file changed since it was opened.
    pub fn record(&self, feature: u32) -> Result<FeatureRecord> {
        let Some(&offset) = self.offsets.get(feature as usize) else {
            return Err(Error::flag(
                "--feature",
                format!("a feature from 0 to {}", self.offsets.len().saturating_sub(1)),
                feature,
                "count features from zero",
            ));
        };
        let failed = || Error::io("read the feature index", &self.path);
        let mut file = File::open(&self.path).map_err(failed())?;
        file.seek(SeekFrom::Start(offset)).map_err(failed())?;
        let mut line = Vec::new();
        BufReader::new(file).read_until(b'\n', &mut line).map_err(failed())?;
        parse(&line, &self.path, feature as usize)
    }
}

fn parse<T: serde::de::DeserializeOwned>(line: &[u8], path: &Path, feature: usize) -> Result<T> {
    serde_json::from_slice(line).map_err(|error| broken(path, feature, error.to_string()))
}

fn broken(path: &Path, feature: usize, found: String) -> Error {
    Error::malformed("feature index", path, format!("feature {feature} on line {}", feature + 1), found, MAKE_AGAIN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::feature::index::tests::{identity, source};
    use crate::base::Silent;

    #[test]
    fn a_written_index_reads_back_and_a_broken_one_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let index = FeatureIndex::build(&identity(5), &source(5, 40), IndexSettings::default(), &Silent).unwrap();
        let piece = |token: u32| format!("<{token}>");
        let some = |token| vec![TokenLogit { token, logit: 0.1 }];
        let effects: Vec<LogitEffects> =
            (0..5).map(|i| LogitEffects { promoted: some(i), suppressed: some(9) }).collect();
        let header = index.header(None, Some("blocks.0.hook_resid_post".into()));
        index.write(dir.path(), &header, Some(&effects), &piece).unwrap();
        let file = IndexFile::open(dir.path()).unwrap();
        assert_eq!(file.summaries(), index.summaries());
        assert_eq!(file.header, header);
        for feature in 0..5 {
            let record = file.record(feature).unwrap();
            assert_eq!(Some(&record), index.record(feature, Some(&effects), &piece).as_ref());
            assert_eq!(record.promoted.unwrap()[0].text, format!("<{feature}>"));
            assert!(!record.examples.is_empty() && record.examples[0].tokens[0].starts_with('<'));
        }
        assert!(file.record(5).unwrap_err().to_string().contains("from 0 to 4"));
        let path = dir.path().join(FEATURES_FILE);
        let whole = std::fs::read(&path).unwrap();
        let second_line = whole.iter().position(|&b| b == b'\n').unwrap() + 1;
        for cut in [whole.len() - 9, second_line] {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let error = IndexFile::open(dir.path()).unwrap_err().to_string();
            assert!(error.contains("features.jsonl"), "{error}");
        }
    }
}
