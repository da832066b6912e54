//! The feature index on disk: `index.json` about the whole, `features.safetensors` with an array for everything that
//! features have, and `labels.jsonl` where features have names.
//!
//! Arrays, because there is one number of everything a feature, NumPy reads them as they are, they open in
//! milliseconds whatever their size, and single features are read in place. Windows of examples are not stored as
//! text: the sequences that hold examples are, once, with the activations around each example. `search.text` is that
//! text in lower case, which [`super::search()`] scans.
//!
//! | arrays | shape | |
//! | --- | --- | --- |
//! | `count` `sequences` `mean` `std` `skewness` `kurtosis` `min` `max` | f | |
//! | `histogram.bin_width` `histogram.counts` | f; f × 64 | |
//! | `intervals.to` `intervals.count` | f × 10 | from zero up |
//! | `examples.offsets` | f + 1 | where the examples of a feature begin |
//! | `examples.interval` `.value` `.sequence` `.position` `.document` `.text` | e | 255 for the strongest, else the interval; `.text` is the row of `text.tokens` |
//! | `examples.firings`, `firings.position` `firings.value` | e + 1; n | the activations around each example |
//! | `text.sequence` `text.tokens` | t; t × s | |
//! | `vocabulary.token` `vocabulary.offsets` `vocabulary.text` | v; v + 1; bytes | readable text of the tokens above and below |
//! | `promoted.token` `.logit`, `suppressed.*`, `promoted_through_norm.*`, `suppressed_through_norm.*` | f × 10 | |
//! | `logits.bin_width` `logits.counts` | f; f × 64 | symmetric around zero |
//! | `alignment.coordinate` `.value` `.share` | f × 3 | |
//! | `neurons.neuron` `.cosine`, `nearest.feature` `.cosine`, `coactive.feature` `.jaccard` `.correlation` `.cosine` | f × 5 or 10 | 4294967295 where there are fewer |
//! | `search.text` `search.starts` | bytes; t · s + 1 | where each token begins |

use std::path::Path;

use super::arrays::ArraysWriter;
use super::examples::Example;
use super::findings::{Findings, IndexText};
use super::histogram::{BINS, INTERVALS};
use super::index::FeatureIndex;
use super::logits::{EFFECT_BINS, LogitEffects, TokenLogit};
use super::record::{IndexHeader, VERSION};
use super::stats::{FeatureStats, Summary};
use crate::base::Result;
use crate::base::artifact::{write_atomic, write_json};
use crate::data::Tokenizer;

/// About the whole index.
pub const HEADER_FILE: &str = "index.json";
/// The features.
pub const FEATURES_FILE: &str = "features.safetensors";
/// Marks places of a list that has fewer entries than there is room for.
pub(super) const NOTHING: u32 = u32::MAX;
/// The interval of the strongest examples.
pub(super) const TOP: u8 = u8::MAX;

impl Findings {
    /// About the whole, for a dictionary at `hook_name` of `model_name`.
    pub fn header(&self, model_name: Option<String>, hook_name: Option<String>) -> IndexHeader {
        let FeatureIndex { settings, rows, rows_left_out, sequences, context_size, features } = &self.index;
        IndexHeader {
            version: VERSION,
            model_name,
            hook_name,
            dictionary: None,
            source: None,
            neurons_of: self.neurons.as_ref().map(|neurons| neurons.point.to_string()),
            context_size: *context_size,
            d_sae: features.len(),
            dead_features: self.index.dead_features(),
            rows: *rows,
            rows_left_out: *rows_left_out,
            sequences: *sequences,
            settings: *settings,
        }
    }

    /// Writes the index into the existing directory `dir`. Without a tokenizer tokens are shown as their ids.
    ///
    /// # Errors
    /// `Io` when the disk is full or not writable.
    pub fn write(&self, dir: &Path, header: &IndexHeader, tokenizer: Option<&Tokenizer>) -> Result<()> {
        let path = dir.join(FEATURES_FILE);
        write_atomic(&path, &self.arrays(&path, tokenizer)?)?;
        write_json(&dir.join(HEADER_FILE), header)
    }

    /// The arrays as they stand in the file.
    pub(super) fn arrays(&self, path: &Path, tokenizer: Option<&Tokenizer>) -> Result<Vec<u8>> {
        let Self { index, effects, nearest, coactive, alignment, neurons, text } = self;
        let mut to = ArraysWriter::default();
        write_figures(&mut to, index);
        write_examples(&mut to, index, text);
        if let Some(effects) = effects {
            write_effects(&mut to, effects);
        }
        let pad = |n: usize, have: usize| std::iter::repeat_n((), n.saturating_sub(have));
        let room = |lists: &mut dyn Iterator<Item = usize>| lists.max().unwrap_or_default().max(1);
        macro_rules! lists {
            ($lists:expr, $($name:literal $field:ident $nothing:expr),+) => {{
                let n = room(&mut $lists.iter().map(Vec::len));
                $(to.add($name, n, $lists.iter().flat_map(|list| {
                    list.iter().map(|entry| entry.$field).chain(pad(n, list.len()).map(|()| $nothing))
                }));)+
            }};
        }
        lists!(alignment, "alignment.coordinate" coordinate NOTHING, "alignment.value" value 0f32,
            "alignment.share" share 0f32);
        lists!(nearest, "nearest.feature" row NOTHING, "nearest.cosine" cosine 0f32);
        lists!(coactive, "coactive.feature" feature NOTHING, "coactive.jaccard" jaccard 0f32,
            "coactive.correlation" correlation 0f32, "coactive.cosine" cosine 0f32);
        if let Some(neurons) = neurons.as_ref().map(|neurons| &neurons.neurons) {
            lists!(neurons, "neurons.neuron" row NOTHING, "neurons.cosine" cosine 0f32);
        }
        to.add("text.sequence", 1, text.sequences.iter().copied());
        to.add("text.tokens", text.context_size, text.tokens.iter().copied());
        write_vocabulary(&mut to, &used_tokens(text, effects.as_deref()), tokenizer);
        write_search(&mut to, text, tokenizer);
        to.finish(path)
    }
}

fn write_figures(to: &mut ArraysWriter, index: &FeatureIndex) {
    let summaries = index.summaries();
    macro_rules! figures {
        ($($name:literal $field:ident),+) => {
            $(to.add($name, 1, summaries.iter().map(|s: &Summary| s.$field));)+
        };
    }
    figures!("count" count, "sequences" sequences, "mean" mean, "std" std, "skewness" skewness, "kurtosis" kurtosis,
        "min" min, "max" max);
    let histograms: Vec<(f64, Vec<u64>)> = index.features.iter().map(|stats| stats.histogram.halved()).collect();
    to.add("histogram.bin_width", 1, histograms.iter().map(|h| h.0));
    let bins =
        |counts: &Vec<u64>| (0..BINS / 2).map(|i| counts.get(i).copied().unwrap_or_default()).collect::<Vec<_>>();
    to.add("histogram.counts", BINS / 2, histograms.iter().flat_map(|h| bins(&h.1)));
    let intervals =
        |stats: &FeatureStats| (0..INTERVALS).map(|i| stats.histogram.interval_count(i)).collect::<Vec<_>>();
    to.add("intervals.to", INTERVALS, index.features.iter().flat_map(&intervals).map(|i| i.0));
    to.add("intervals.count", INTERVALS, index.features.iter().flat_map(intervals).map(|i| i.1));
}

/// The examples of a feature, the strongest first, then those of each interval from the highest down in the order of the
/// text. An interval whose bounds moved after it was full may hold fewer than `n` although it has more; it is filled up
/// with the strongest examples that lie in it.
fn in_order(stats: &FeatureStats, n: usize) -> Vec<(u8, Example)> {
    let (top, histogram) = (stats.examples.top(), &stats.histogram);
    let mut all: Vec<(u8, Example)> = top.iter().map(|e| (TOP, *e)).collect();
    for interval in (0..INTERVALS).rev() {
        let inside = |e: &&Example| histogram.interval(e.value) == interval;
        let mut members: Vec<Example> = stats.examples.drawn().iter().filter(inside).copied().collect();
        for example in top.iter().filter(inside) {
            let known = |e: &Example| (e.sequence, e.position) == (example.sequence, example.position);
            if members.len() < n && !members.iter().any(known) {
                members.push(*example);
            }
        }
        members.sort_unstable_by_key(|e| (e.sequence, e.position));
        all.extend(members.into_iter().map(|e| (interval as u8, e)));
    }
    all
}

fn write_examples(to: &mut ArraysWriter, index: &FeatureIndex, text: &IndexText) {
    let window = index.settings.window;
    let (mut offsets, mut firings) = (vec![0u64], vec![0u64]);
    let mut examples: Vec<(u8, Example)> = Vec::new();
    let mut around: Vec<(u32, f32)> = Vec::new();
    for stats in &index.features {
        for (interval, example) in in_order(stats, index.settings.interval_examples) {
            let first = i64::from(example.position) - window.before as i64;
            let values = stats.examples.around(&example, window).iter().enumerate();
            around.extend(values.filter(|(_, v)| **v != 0.0).map(|(i, v)| ((first + i as i64) as u32, *v)));
            firings.push(around.len() as u64);
            examples.push((interval, example));
        }
        offsets.push(examples.len() as u64);
    }
    to.add("examples.offsets", 1, offsets);
    to.add("examples.interval", 1, examples.iter().map(|e| e.0));
    to.add("examples.value", 1, examples.iter().map(|e| e.1.value));
    to.add("examples.sequence", 1, examples.iter().map(|e| e.1.sequence));
    to.add("examples.position", 1, examples.iter().map(|e| e.1.position));
    let rows: Vec<usize> = examples.iter().map(|e| text.row(e.1.sequence)).collect();
    to.add("examples.text", 1, rows.iter().map(|&row| row as u32));
    let documents = rows.iter().zip(&examples).map(|(&row, e)| text.document(row, e.1.position));
    to.add("examples.document", 1, documents);
    to.add("examples.firings", 1, firings);
    to.add("firings.position", 1, around.iter().map(|f| f.0));
    to.add("firings.value", 1, around.iter().map(|f| f.1));
}

fn write_effects(to: &mut ArraysWriter, effects: &[LogitEffects]) {
    fn tokens<'a>(
        to: &mut ArraysWriter,
        names: [&'static str; 2],
        effects: &'a [LogitEffects],
        list: impl Fn(&'a LogitEffects) -> &'a [TokenLogit],
    ) {
        let n = effects.first().map_or(1, |e| list(e).len()).max(1);
        to.add(names[0], n, effects.iter().flat_map(&list).map(|t| t.token));
        to.add(names[1], n, effects.iter().flat_map(list).map(|t| t.logit));
    }
    tokens(to, ["promoted.token", "promoted.logit"], effects, |e| &e.raw.promoted);
    tokens(to, ["suppressed.token", "suppressed.logit"], effects, |e| &e.raw.suppressed);
    tokens(to, ["promoted_through_norm.token", "promoted_through_norm.logit"], effects, |e| &e.normed.promoted);
    tokens(to, ["suppressed_through_norm.token", "suppressed_through_norm.logit"], effects, |e| &e.normed.suppressed);
    to.add("logits.bin_width", 1, effects.iter().map(|e| e.histogram.bin_width()));
    to.add("logits.counts", EFFECT_BINS, effects.iter().flat_map(|e| e.histogram.counts().iter().copied()));
}

/// Every token that some record shows, ascending.
fn used_tokens(text: &IndexText, effects: Option<&[LogitEffects]>) -> Vec<u32> {
    let written = effects.unwrap_or_default().iter().flat_map(|e| {
        [&e.raw.promoted, &e.raw.suppressed, &e.normed.promoted, &e.normed.suppressed].into_iter().flatten()
    });
    let mut seen = Vec::new();
    for token in text.tokens.iter().copied().chain(written.map(|t| t.token)) {
        let token = token as usize;
        if token >= seen.len() {
            seen.resize(token + 1, false);
        }
        seen[token] = true;
    }
    (0..seen.len() as u32).filter(|&token| seen[token as usize]).collect()
}

/// Readable text of a token.
fn piece(token: u32, tokenizer: Option<&Tokenizer>) -> String {
    tokenizer.map_or_else(|| format!("<{token}>"), |tokenizer| tokenizer.piece(token))
}

fn write_vocabulary(to: &mut ArraysWriter, tokens: &[u32], tokenizer: Option<&Tokenizer>) {
    let (mut offsets, mut all) = (vec![0u64], Vec::new());
    for &token in tokens {
        all.extend_from_slice(piece(token, tokenizer).as_bytes());
        offsets.push(all.len() as u64);
    }
    to.add("vocabulary.token", 1, tokens.iter().copied());
    to.add("vocabulary.offsets", 1, offsets);
    to.add("vocabulary.text", 1, all);
}

/// The text in lower case. Bytes of tokens are joined before anyone asks whether they are letters, so that letters
/// which tokens share are found; a zero byte ends every sequence, so that nothing is found across two.
fn write_search(to: &mut ArraysWriter, text: &IndexText, tokenizer: Option<&Tokenizer>) {
    let mut known: std::collections::BTreeMap<u32, Vec<u8>> = std::collections::BTreeMap::new();
    let (mut starts, mut all): (Vec<u64>, Vec<u8>) = (Vec::with_capacity(text.tokens.len() + 1), Vec::new());
    for sequence in text.tokens.chunks(text.context_size.max(1)) {
        for &token in sequence {
            starts.push(all.len() as u64);
            all.extend_from_slice(known.entry(token).or_insert_with(|| {
                let bytes = tokenizer.and_then(|t| t.piece_bytes(token)).unwrap_or_default();
                match std::str::from_utf8(&bytes) {
                    Ok(piece) => piece.to_lowercase().into_bytes(),
                    Err(_) => bytes,
                }
            }));
        }
        all.push(0);
    }
    starts.push(all.len() as u64);
    to.add("search.text", 1, all);
    to.add("search.starts", 1, starts);
}
