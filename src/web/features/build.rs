//! From an index to the blocks of its page, in one pass over the features.

use std::collections::BTreeMap;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::tables::Tables;
use super::text::{Quoted, Words};
use crate::analysis::feature::labels::Label;
use crate::analysis::feature::record::ExampleRecord;
use crate::analysis::feature::{FeatureRecord, IndexHeader};
use crate::base::progress::Unit;
use crate::base::{Error, Progress, Result};
use crate::web::block::deflated;
use crate::web::text::{short, thousands};

/// Features of one block.
const CHUNK: usize = 64;
/// Blocks that are compressed together.
const TOGETHER: usize = 16;
/// Promoted tokens that search looks at.
const PROMOTED: usize = 5;

/// What of an index a page shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageSettings {
    /// Strongest examples of a feature, at most.
    pub examples: usize,
    /// Examples of each interval, at most.
    pub interval_examples: usize,
}

impl Default for PageSettings {
    fn default() -> Self {
        Self { examples: 20, interval_examples: 3 }
    }
}

/// A page's data, deflated.
#[derive(Debug)]
pub(super) struct Blocks {
    pub(super) title: String,
    /// Those that the list needs, by name.
    pub(super) first: Vec<(&'static str, Vec<u8>)>,
    pub(super) chunks: Vec<Vec<u8>>,
}

#[derive(Serialize)]
struct Head<'a> {
    title: &'a str,
    about: String,
    features: usize,
    rows: u64,
    chunk: usize,
    promoted: usize,
    /// Whether word numbers need 32 bits.
    wide: bool,
    neurons_of: Option<&'a str>,
    labels: BTreeMap<u32, Vec<Label>>,
}

/// Where an example lies.
struct Spot {
    sequence: u64,
    start: u32,
    length: u16,
    peak: u16,
}

/// Figures of all features, column by column.
#[derive(Default)]
struct Columns {
    density: Vec<f32>,
    max: Vec<f32>,
    mean: Vec<f32>,
    count: Vec<u32>,
    promoted: Vec<u32>,
    top: Vec<u16>,
    examples: Vec<u16>,
}

/// Reads every feature and makes the blocks.
pub(super) fn build(
    header: &IndexHeader,
    record: &dyn Fn(u32) -> Result<FeatureRecord>,
    settings: PageSettings,
    progress: &dyn Progress,
) -> Result<Blocks> {
    let mut pass = Pass {
        settings,
        words: Words::new(),
        quoted: Quoted::default(),
        spots: Vec::new(),
        columns: Columns::default(),
        labels: BTreeMap::new(),
    };
    let numbers: Vec<u32> = (0..header.d_sae as u32).collect();
    let mut chunks = Vec::new();
    progress.begin("page", header.d_sae as u64, Unit::Items);
    for group in numbers.chunks(CHUNK * TOGETHER) {
        if progress.cancelled() {
            progress.end();
            return Err(Error::Interrupted {
                kept: "nothing was written".into(),
                resume: "run the same command again".into(),
            });
        }
        let plain = group.chunks(CHUNK).map(|chunk| pass.chunk(chunk, record)).collect::<Result<Vec<_>>>()?;
        let packed: Result<Vec<_>> = plain.par_iter().map(|data| pack(data)).collect();
        chunks.extend(packed?);
        progress.advance(group.len() as u64);
    }
    progress.end();
    pass.finish(header, chunks)
}

struct Pass {
    settings: PageSettings,
    words: Words,
    quoted: Quoted,
    spots: Vec<Spot>,
    columns: Columns,
    labels: BTreeMap<u32, Vec<Label>>,
}

impl Pass {
    fn chunk(&mut self, features: &[u32], record: &dyn Fn(u32) -> Result<FeatureRecord>) -> Result<Vec<u8>> {
        let (mut tables, mut peaks, mut levels) = (Vec::new(), Vec::new(), Vec::new());
        for &feature in features {
            let mut record = record(feature)?;
            record.examples.truncate(self.settings.examples);
            record.intervals.iter_mut().for_each(|i| i.examples.truncate(self.settings.interval_examples));
            let max = record.summary.max.abs();
            let drawn = record.intervals.iter().flat_map(|interval| &interval.examples);
            let mut shown = 0u16;
            for example in record.examples.iter().chain(drawn) {
                self.quote(example);
                peaks.extend(example.value.to_le_bytes());
                levels.extend(example.values.iter().map(|&value| level(value, max)));
                shown += 1;
            }
            self.columns.examples.push(shown);
            self.column(&record);
            tables.push(Tables::new(&record, &mut self.words));
            if !record.labels.is_empty() {
                self.labels.insert(feature, record.labels);
            }
        }
        let mut json = serde_json::to_vec(&tables).map_err(|e| Error::io("serialise JSON", "-")(e.into()))?;
        json.resize(json.len().next_multiple_of(4), b' ');
        let mut data = (json.len() as u32).to_le_bytes().to_vec();
        data.append(&mut json);
        data.append(&mut peaks);
        data.append(&mut levels);
        Ok(data)
    }

    fn quote(&mut self, example: &ExampleRecord) {
        let start = example.position.saturating_sub(example.peak as u32);
        let numbers = example.tokens.iter().map(|word| self.words.number(word)).collect();
        self.quoted.add(example.sequence, start, numbers);
        self.spots.push(Spot {
            sequence: example.sequence,
            start,
            length: example.tokens.len() as u16,
            peak: example.peak as u16,
        });
    }

    fn column(&mut self, record: &FeatureRecord) {
        let Columns { density, max, mean, count, promoted, top, examples: _ } = &mut self.columns;
        let summary = &record.summary;
        density.push(summary.density as f32);
        max.push(summary.max);
        mean.push(summary.mean as f32);
        count.push(u32::try_from(summary.count).unwrap_or(u32::MAX));
        top.push(record.examples.len() as u16);
        let list = record.promoted.as_deref().unwrap_or_default();
        for i in 0..PROMOTED {
            promoted.push(list.get(i).map_or(0, |token| self.words.number(&token.text)));
        }
    }

    fn finish(self, header: &IndexHeader, chunks: Vec<Vec<u8>>) -> Result<Blocks> {
        let Self { words, quoted, spots, columns, labels, settings: _ } = self;
        let (text, places) = quoted.join();
        let wide = words.list().len() > usize::from(u16::MAX);
        let text_bytes: Vec<u8> =
            if wide { bytes(&text, u32::to_le_bytes) } else { bytes(&text, |word| (word as u16).to_le_bytes()) };
        let starts: Vec<u32> = spots.iter().map(|spot| places.of(spot.sequence, spot.start)).collect();
        let [lengths, peaks] =
            [|s: &Spot| s.length, |s: &Spot| s.peak].map(|of| spots.iter().map(of).collect::<Vec<u16>>());
        let spot_bytes =
            [bytes(&starts, u32::to_le_bytes), bytes(&lengths, u16::to_le_bytes), bytes(&peaks, u16::to_le_bytes)];
        let Columns { density, max, mean, count, promoted, top, examples } = columns;
        let list = [
            [density, max, mean].map(|column| bytes(&column, f32::to_le_bytes)).concat(),
            bytes(&count, u32::to_le_bytes),
            bytes(&promoted, u32::to_le_bytes),
            bytes(&top, u16::to_le_bytes),
            bytes(&examples, u16::to_le_bytes),
        ];
        let title = title(header);
        let head = Head {
            title: &title,
            about: about(header),
            features: header.d_sae,
            rows: header.rows,
            chunk: CHUNK,
            promoted: PROMOTED,
            wide,
            neurons_of: header.neurons_of.as_deref(),
            labels,
        };
        let json =
            |value: Result<Vec<u8>, serde_json::Error>| value.map_err(|e| Error::io("serialise JSON", "-")(e.into()));
        let first = [
            ("head", json(serde_json::to_vec(&head))?),
            ("words", json(serde_json::to_vec(words.list()))?),
            ("list", list.concat()),
            ("text", text_bytes),
            ("spots", spot_bytes.concat()),
        ];
        let packed: Result<Vec<_>> = first.par_iter().map(|(name, data)| Ok((*name, pack(data)?))).collect();
        Ok(Blocks { first: packed?, title, chunks })
    }
}

/// A share of the largest activation, from −127 to 127; what fires at all is never 0.
fn level(value: f32, max: f32) -> u8 {
    if value == 0.0 || max <= 0.0 {
        return 0;
    }
    let level = (value / max * 127.0).round().clamp(-127.0, 127.0) as i8;
    (if level == 0 { value.signum() as i8 } else { level }) as u8
}

fn pack(data: &[u8]) -> Result<Vec<u8>> {
    deflated(data).map_err(Error::io("compress the page", "-"))
}

fn bytes<T: Copy, const N: usize>(values: &[T], of: impl Fn(T) -> [u8; N]) -> Vec<u8> {
    values.iter().flat_map(|&value| of(value)).collect()
}

fn title(header: &IndexHeader) -> String {
    let hook = header.hook_name.as_deref().unwrap_or("a dictionary without a hook");
    match &header.model_name {
        Some(model) => format!("{hook} of {}", short(model)),
        None => hook.to_owned(),
    }
}

fn about(header: &IndexHeader) -> String {
    let source = header.source.as_deref().map(|s| format!(" of {}", short(s))).unwrap_or_default();
    let dictionary = header.dictionary.as_deref().map(|d| format!("{}: ", short(d))).unwrap_or_default();
    format!(
        "{dictionary}{} features, {} never fire, on {} positions in {} sequences{source}",
        thousands(header.d_sae as u64),
        thousands(header.dead_features as u64),
        thousands(header.rows),
        thousands(header.sequences)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_keep_sign_and_every_firing() {
        assert_eq!([0.0, 2.0, 1.0, -2.0, 0.001].map(|v| level(v, 2.0) as i8), [0, 127, 64, -127, 1]);
        assert_eq!(level(-0.001, 2.0) as i8, -1);
    }
}
