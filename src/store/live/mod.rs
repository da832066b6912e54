//! Rows straight from a model that runs while they are used, shuffled in a buffer of bounded size; nothing touches the
//! disk.
//!
//! ```text
//! text ──► sequences ──► model ──► rows kept ──► dealt over windows ──► each window shuffled ──► RowSource
//!          Packer        a thread ahead of the reader, as far as the buffer holds
//! ```
//!
//! The text is packed as for a cache, and the same rules choose rows, with two differences. The median norm is that
//! of the first [`MEDIAN_TOKENS`] tokens, since no later one can be seen before it is used. And the place of a row
//! whose norm is too large is filled with another row of its window, so that the place of every row in the stream
//! follows from the tokens alone: where a run goes on is found without running the model over what came before
//! (`order`), and at most as many sequences as the buffer holds are computed a second time.
//!
//! **Memory**: [`LiveSettings::buffer_rows`] bounds the rows in memory, those that the model has computed ahead
//! included, each of `Σ width · size of the number type` bytes. Beside them one model batch of f32 rows is in work.
//! Text that fits into the buffer as a whole runs through the model once, however many passes are made over it.

mod chunk;
mod heldout;
mod order;
mod source;
mod text;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use self::chunk::Hooks;
use self::order::{Order, SPREAD};
use self::text::{Census, Text, interrupted};
use super::collect::{check_pass, hook_entries};
use super::filter::{FilterReport, FilterSettings};
use super::shuffle::Split;
use crate::base::{DtypeChoice, Error, Progress, Result, Unit};
use crate::data::{Corpus, PackSettings, Sequence, Tokenizer};
use crate::model::{HookPoint, Model};

pub use self::heldout::LiveHeldOut;
pub use self::source::LiveRows;

/// Rows in memory unless told otherwise: 300 MB in f16 at a width of 576.
pub const DEFAULT_BUFFER_ROWS: u64 = 1 << 18;

/// Medians that a report lists; more than these are counted.
const LISTED: usize = 4;

/// Tokens of text that the median norm is taken over.
pub const MEDIAN_TOKENS: usize = 1 << 15;

/// How text becomes rows.
#[derive(Debug, Clone, PartialEq)]
pub struct LiveSettings {
    /// Which activations.
    pub hooks: Vec<HookPoint>,
    /// Sequence length and BOS policy.
    pub pack: PackSettings,
    /// Sequences run at once.
    pub batch_size: usize,
    /// Which rows to leave out.
    pub filter: FilterSettings,
    /// Share of the sequences, the last ones, that is held out.
    pub held_out: f64,
    /// Rows in memory at most, to mix and to run ahead.
    pub buffer_rows: u64,
    /// The number type that they are kept in.
    pub dtype: DtypeChoice,
    /// Seed of the order.
    pub seed: u64,
    /// Training rows wanted: text beyond what gives them is not read. All text when absent.
    pub rows: Option<u64>,
}

/// What is known of the rows before the model runs over the text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LiveReport {
    /// The sequences that are used, and which are held out.
    pub split: Split,
    /// Rows by rule. `large_norm` is 0: these are left out as they come.
    pub positions: FilterReport,
    /// The median norm at each hook, when norms are looked at.
    pub median_norms: Vec<Option<f32>>,
}

impl std::fmt::Display for LiveReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let FilterReport { rows, kept, first_position, special_tokens, settings, .. } = &self.positions;
        write!(f, "streaming {kept} of {rows} rows; left out {first_position} first positions, {special_tokens} ")?;
        write!(f, "special tokens")?;
        let medians: Vec<String> = self.median_norms.iter().flatten().map(|m| format!("{m:.4}")).collect();
        match settings.max_norm_multiple.filter(|_| !medians.is_empty()) {
            Some(multiple) if medians.len() > LISTED => {
                let hooks = medians.len();
                write!(f, ", and rows above {multiple} x the median norm of any of {hooks} hooks as they come")
            }
            Some(multiple) => {
                write!(f, ", and rows above {multiple} x the median norm of {} as they come", medians.join(", "))
            }
            None => Ok(()),
        }
    }
}

/// A model and a text that rows are streamed from.
#[derive(Debug, Clone)]
pub struct Live {
    shared: Arc<Shared>,
    report: LiveReport,
}

/// What the reader and the thread of the model both need.
#[derive(Debug)]
struct Shared {
    model: Arc<Model>,
    text: Text,
    hooks: Hooks,
    batch_size: usize,
    /// Sequences in a chunk; the last chunk may hold fewer.
    chunk_sequences: u64,
    split: Split,
    order: Order,
    /// Rows of each held-out sequence that the rules about tokens keep.
    held_out_kept: Vec<u32>,
    buffer_rows: u64,
}

impl LiveSettings {
    /// Checks everything that needs neither text nor a pass of the model.
    ///
    /// # Errors
    /// `Flag`, `Unknown` and `Unsupported` for settings that make no sense or hooks without rows.
    pub fn check(&self, model: &Model) -> Result<()> {
        let Self { hooks, pack, batch_size, filter: _, held_out, buffer_rows, dtype, seed: _, rows: _ } = self;
        if *batch_size == 0 {
            return Err(Error::flag("--model-batch-size", "at least 1", 0, "16 is a good start"));
        }
        check_pass(model, pack.context_size, *batch_size)?;
        if pack.context_size < 2 {
            let remedy = "use the length the model was trained for or less; 256 is usual";
            return Err(Error::flag("--context-size", "at least 2 tokens", pack.context_size, remedy));
        }
        if *buffer_rows == 0 {
            return Err(Error::flag("--buffer-rows", "at least 1", 0, "leave it out for the default, 262144"));
        }
        if !(0. ..1.).contains(held_out) {
            return Err(Error::flag("--held-out", "a fraction from 0 up to 1", held_out, "use 0.05"));
        }
        hook_entries(model.config(), hooks, *dtype).map(drop)
    }
}

impl Live {
    /// Reads the text once to count its sequences, and runs the model over its beginning for the median norms.
    ///
    /// # Errors
    /// `Flag`, `Unknown` and `Unsupported` for settings that make no sense or hooks without rows; `Missing` and
    /// `Unsupported` when the text gives no rows; `NonFinite`; `Interrupted`; whatever reading and computing return.
    pub fn open(
        model: Arc<Model>,
        tokenizer: Arc<Tokenizer>,
        corpus: Arc<Corpus>,
        settings: &LiveSettings,
        progress: &dyn Progress,
    ) -> Result<Self> {
        let LiveSettings { hooks, pack, batch_size, filter, held_out, buffer_rows, dtype, seed, rows } = settings;
        settings.check(&model)?;
        let entries = hook_entries(model.config(), hooks, *dtype)?;
        let text = Text { tokenizer, corpus, pack: *pack, filter: *filter };
        let Census { split, kept, report: mut positions } = text.census(*rows, *held_out, progress)?;
        let (kept, held_out_kept) = kept.split_at(split.training().end as usize);
        let batch = *batch_size as u64;
        let chunk_sequences = match (buffer_rows / (SPREAD * pack.context_size) as u64).max(1) {
            few if few < batch => few,
            many => many / batch * batch,
        };
        let sizes = kept.chunks(chunk_sequences as usize).map(|chunk| chunk.iter().map(|&n| u64::from(n)).sum());
        let mut shared = Shared {
            hooks: Hooks {
                points: hooks.clone(),
                widths: entries.iter().map(|entry| entry.width).collect(),
                dtype: *dtype,
                limits: vec![None; hooks.len()],
            },
            model,
            text,
            batch_size: *batch_size,
            chunk_sequences,
            split,
            order: Order::new(*seed, sizes.collect()),
            held_out_kept: held_out_kept.to_vec(),
            // A chunk is one sequence at least.
            buffer_rows: (*buffer_rows).max((SPREAD * pack.context_size) as u64),
        };
        let median_norms = match filter.max_norm_multiple {
            Some(multiple) => {
                let medians = shared.median_norms(progress)?;
                shared.hooks.limits = medians.iter().map(|median| median.map(|median| median * multiple)).collect();
                medians
            }
            None => vec![None; hooks.len()],
        };
        positions.median_norm = median_norms.first().copied().flatten();
        Ok(Self { shared: Arc::new(shared), report: LiveReport { split, positions, median_norms } })
    }

    /// What is known of the rows.
    pub fn report(&self) -> &LiveReport {
        &self.report
    }

    /// The training rows, in another order every pass. `progress` says whether to stop while the model computes.
    pub fn training<'a>(&self, progress: &'a dyn Progress) -> LiveRows<'a> {
        LiveRows::new(Arc::clone(&self.shared), progress)
    }

    /// The held-out rows in the order of the text; `None` when nothing is held out.
    pub fn held_out<'a>(&self, progress: &'a dyn Progress) -> Option<LiveHeldOut<'a>> {
        let any = self.shared.held_out_kept.iter().any(|&n| n > 0);
        any.then(|| LiveHeldOut::new(Arc::clone(&self.shared), progress))
    }
}

impl Shared {
    /// The median norm at each hook over the first training sequences.
    fn median_norms(&self, progress: &dyn Progress) -> Result<Vec<Option<f32>>> {
        let context = self.text.pack.context_size;
        let wanted = MEDIAN_TOKENS.div_ceil(context).min(self.split.training().end as usize);
        let mut norms = vec![Vec::new(); self.hooks.points.len()];
        progress.begin("measuring norms of the text", (wanted * context) as u64, Unit::Tokens);
        let mut packer = self.text.packer()?.take(wanted);
        let mut measure = || -> Result<()> {
            let mut done = 0;
            while done < wanted {
                if progress.cancelled() {
                    return Err(interrupted());
                }
                let sequences: Vec<Sequence> = packer.by_ref().take(self.batch_size).collect::<Result<_>>()?;
                if sequences.is_empty() {
                    break;
                }
                let computed = self.hooks.compute(&self.model, &self.text, &sequences, done as u64)?;
                for (hook, norms) in norms.iter_mut().enumerate() {
                    norms.extend(self.hooks.norms(&computed, hook));
                }
                done += sequences.len();
                progress.advance((sequences.len() * context) as u64);
            }
            Ok(())
        };
        let outcome = measure();
        progress.end();
        outcome?;
        let median = |norms: &mut Vec<f32>| {
            let middle = norms.len() / 2;
            (!norms.is_empty()).then(|| *norms.select_nth_unstable_by(middle, f32::total_cmp).1)
        };
        Ok(norms.iter_mut().map(median).collect())
    }
}

#[cfg(test)]
mod tests;
