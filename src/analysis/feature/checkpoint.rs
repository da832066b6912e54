//! The state of a cut-off pass, in one file that is replaced as a whole.
//!
//! ```text
//! "mifeat01"  length u64  header JSON  one record a feature
//! ```
//! A record is little-endian: the count and, where it is not zero, sums, extremes, histogram, examples with the
//! activations around them, and the sketch, all as they are in memory. A pass that goes on from there gives the bits
//! that it would have given without a break.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::examples::{Example, Examples, Window};
use super::histogram::{BINS, Histogram};
use super::index::{FeatureIndex, IndexSettings};
use super::sketch::Sketch;
use super::stats::FeatureStats;
use crate::base::artifact::write_atomic_with;
use crate::base::{Error, Result};

const MAGIC: &[u8; 8] = b"mifeat01";
const WHAT: &str = "checkpoint of a feature index";

/// When and where the state of a pass is saved.
#[derive(Debug, Clone)]
pub struct CheckpointPlan {
    /// The file.
    pub path: PathBuf,
    /// Time between two of them.
    pub every: Duration,
    /// What the pass is over; another pass does not go on from it.
    pub inputs: serde_json::Value,
}

#[derive(Serialize, Deserialize)]
struct Header {
    inputs: serde_json::Value,
    settings: IndexSettings,
    rows: u64,
    rows_left_out: u64,
    sequences: u64,
    context_size: usize,
    d_sae: usize,
}

/// Saves the state of `index`.
///
/// # Errors
/// `Io` when the disk is full or not writable; the last state that was saved then stays.
pub(super) fn write(plan: &CheckpointPlan, index: &FeatureIndex) -> Result<()> {
    let FeatureIndex { settings, rows, rows_left_out, sequences, context_size, features } = index;
    let header = Header {
        inputs: plan.inputs.clone(),
        settings: *settings,
        rows: *rows,
        rows_left_out: *rows_left_out,
        sequences: *sequences,
        context_size: *context_size,
        d_sae: features.len(),
    };
    write_atomic_with(&plan.path, |file| {
        let mut out = BufWriter::with_capacity(1 << 20, file);
        let text = serde_json::to_vec(&header)?;
        out.write_all(MAGIC)?;
        out.write_all(&(text.len() as u64).to_le_bytes())?;
        out.write_all(&text)?;
        for stats in features {
            write_feature(&mut out, stats, settings.window)?;
        }
        out.flush()
    })
}

/// What an earlier run of the same pass as `empty` saved, if it did.
///
/// # Errors
/// `Mismatch` when it is of another pass; `Malformed` when it does not read.
pub(super) fn read(plan: &CheckpointPlan, empty: &FeatureIndex) -> Result<Option<FeatureIndex>> {
    let path = &plan.path;
    if !path.exists() {
        return Ok(None);
    }
    let failed = |e: std::io::Error| {
        let remedy = "remove the directory and make the index again";
        Error::malformed(WHAT, path, "the whole state of a pass", e.to_string(), remedy)
    };
    let file = File::open(path).map_err(Error::io("open the checkpoint", path))?;
    let mut from = BufReader::with_capacity(1 << 20, file);
    let mut magic = [0; 8];
    from.read_exact(&mut magic).map_err(failed)?;
    if &magic != MAGIC {
        return Err(failed(std::io::Error::other("another kind of file")));
    }
    let length = from.u64().map_err(failed)?;
    let mut text = Vec::new();
    from.by_ref().take(length).read_to_end(&mut text).map_err(failed)?;
    let header: Header = serde_json::from_slice(&text).map_err(|e| failed(e.into()))?;
    check_same(plan, &header, empty)?;
    let Header { settings, rows, rows_left_out, sequences, context_size, d_sae, .. } = header;
    let features: Result<Vec<FeatureStats>, _> = (0..d_sae).map(|_| read_feature(&mut from, &settings)).collect();
    let features = features.map_err(failed)?;
    Ok(Some(FeatureIndex { settings, rows, rows_left_out, sequences, context_size, features }))
}

fn check_same(plan: &CheckpointPlan, header: &Header, empty: &FeatureIndex) -> Result<()> {
    let then = (&header.inputs, &header.settings, header.context_size, header.d_sae);
    let now = (&plan.inputs, &empty.settings, empty.context_size, empty.features.len());
    if then == now {
        return Ok(());
    }
    let text = |(inputs, settings, context, d_sae): (&serde_json::Value, &IndexSettings, usize, usize)| {
        let settings = serde_json::to_string(settings).unwrap_or_default();
        format!("{inputs} with {settings}, {d_sae} features, sequences of {context}")
    };
    Err(Error::Mismatch {
        what: "the cut-off index and this one",
        left: format!("then {}", text(then)),
        right: format!("now {}", text(now)),
        remedy: format!("repeat the first command with --resume, or remove {}", plan.path.display()),
    })
}

fn write_feature(out: &mut impl Write, stats: &FeatureStats, window: Window) -> std::io::Result<()> {
    let FeatureStats { count, sequences, sums, min, max, histogram, examples, sketch } = stats;
    out.write_all(&count.to_le_bytes())?;
    if *count == 0 {
        return Ok(());
    }
    out.write_all(&sequences.to_le_bytes())?;
    for sum in sums {
        out.write_all(&sum.to_le_bytes())?;
    }
    out.write_all(&min.to_le_bytes())?;
    out.write_all(&max.to_le_bytes())?;
    let (exponent, counts) = histogram.parts();
    out.write_all(&exponent.to_le_bytes())?;
    for count in counts {
        out.write_all(&count.to_le_bytes())?;
    }
    for list in [examples.top(), examples.drawn()] {
        out.write_all(&(list.len() as u32).to_le_bytes())?;
        for example in list {
            out.write_all(&example.value.to_le_bytes())?;
            for number in [example.sequence, example.position, example.lot] {
                out.write_all(&number.to_le_bytes())?;
            }
            for value in examples.around(example, window) {
                out.write_all(&value.to_le_bytes())?;
            }
        }
    }
    let (entries, limit) = sketch.parts();
    out.write_all(&[u8::from(limit.is_some())])?;
    out.write_all(&limit.unwrap_or_default().to_le_bytes())?;
    out.write_all(&(entries.len() as u32).to_le_bytes())?;
    entries.iter().try_for_each(|entry| out.write_all(&entry.to_le_bytes()))
}

fn read_feature(from: &mut impl Read, settings: &IndexSettings) -> std::io::Result<FeatureStats> {
    let count = from.u64()?;
    if count == 0 {
        return Ok(FeatureStats::default());
    }
    let sequences = from.u64()?;
    let mut sums = [0.0; 4];
    for sum in &mut sums {
        *sum = f64::from_bits(from.u64()?);
    }
    let (min, max) = (from.f32()?, from.f32()?);
    let exponent = from.u32()? as i32;
    let counts = (0..BINS).map(|_| from.u64()).collect::<Result<_, _>>()?;
    let histogram = Histogram::from_parts(exponent, counts);
    let width = settings.window.width();
    let mut list = || -> std::io::Result<Vec<(Example, Vec<f32>)>> {
        let length = from.u32()?;
        let example = |_| {
            let example = Example::new(from.f32()?, from.u32()?, from.u32()?, from.u32()?);
            Ok((example, (0..width).map(|_| from.f32()).collect::<Result<_, _>>()?))
        };
        (0..length).map(example).collect()
    };
    let (top, drawn) = (list()?, list()?);
    let examples = Examples::restore(top, drawn, (&histogram, settings.interval_examples), settings.window);
    let mut limited = [0];
    from.read_exact(&mut limited)?;
    let limit = from.u32()?;
    let length = from.u32()?;
    let entries = (0..length).map(|_| from.u64()).collect::<Result<_, _>>()?;
    let sketch = Sketch::from_parts(entries, (limited[0] == 1).then_some(limit));
    Ok(FeatureStats { count, sequences, sums, min, max, histogram, examples, sketch })
}

/// Little-endian numbers.
trait Numbers: Read {
    fn u32(&mut self) -> std::io::Result<u32> {
        let mut bytes = [0; 4];
        self.read_exact(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn u64(&mut self) -> std::io::Result<u64> {
        let mut bytes = [0; 8];
        self.read_exact(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn f32(&mut self) -> std::io::Result<f32> {
        Ok(f32::from_bits(self.u32()?))
    }
}

impl<R: Read> Numbers for R {}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::analysis::feature::index::tests::{build, identity, source};
    use crate::base::Progress;
    use crate::base::progress::Unit;

    /// Stops after some advances.
    struct StopsAfter(AtomicU64);

    impl Progress for StopsAfter {
        fn begin(&self, _label: &str, _total: u64, _unit: Unit) {}
        fn set(&self, _done: u64) {}
        fn advance(&self, _n: u64) {
            let left = self.0.load(Ordering::Relaxed);
            self.0.store(left.saturating_sub(1), Ordering::Relaxed);
        }
        fn note(&self, _text: &str) {}
        fn line(&self, _text: &str) {}
        fn warn(&self, _text: &str) {}
        fn end(&self) {}
        fn cancelled(&self) -> bool {
            self.0.load(Ordering::Relaxed) == 0
        }
    }

    #[test]
    fn a_pass_stopped_again_and_again_equals_one_that_was_left_alone() {
        let (source, dictionary) = (source(9, 1500), identity(9));
        let settings = IndexSettings { top_k: 7, ..IndexSettings::default() };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("checkpoint");
        let plan = CheckpointPlan { path, every: Duration::from_secs(3600), inputs: serde_json::json!({"cache": "a"}) };
        let mut stops = 0;
        let resumed = loop {
            let progress = StopsAfter(AtomicU64::new(2));
            match FeatureIndex::build_resumable(&dictionary, &source, settings, &plan, &progress) {
                Ok(index) => break index,
                Err(Error::Interrupted { .. }) => stops += 1,
                Err(error) => panic!("{error}"),
            }
            assert!(stops < 20);
        };
        assert!(stops >= 2, "stopped {stops} times");
        assert!(resumed == build(&source, 7));
        let other = CheckpointPlan { inputs: serde_json::json!({"cache": "b"}), ..plan.clone() };
        let silent = crate::base::Silent;
        let error = FeatureIndex::build_resumable(&dictionary, &source, settings, &other, &silent).unwrap_err();
        assert!(error.to_string().contains("\"b\""), "{error}");
        let whole = std::fs::read(&plan.path).unwrap();
        for cut in [0, 5, 30, whole.len() / 2, whole.len() - 1] {
            std::fs::write(&plan.path, &whole[..cut]).unwrap();
            let error = FeatureIndex::build_resumable(&dictionary, &source, settings, &plan, &silent).unwrap_err();
            assert!(matches!(error, Error::Malformed { .. }), "cut at {cut}: {error}");
        }
    }
}
