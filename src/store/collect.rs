//! Runs a model over text and stores what passes its hook points: the driver of `cache`.
//!
//! The model computes on the calling thread; a second one converts, hashes and writes. At most two batches wait
//! between them, so memory holds those, the one being computed and one shard.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Instant;

use candle_core::{DType, Device};

use super::format::{CacheManifest, CacheSettings, HookEntry, ModelEntry};
use super::writer::CacheWriter;
use crate::base::artifact::InputRecord;
use crate::base::{Context, DtypeChoice, Error, Progress, Result, RunRecord, Unit};
use crate::data::corpus::Documents;
use crate::data::{BosPolicy, Corpus, PackSettings, Packer, Sequence, Tokenizer};
use crate::model::{HookPlan, HookPoint, Model, ModelConfig};

/// One run of `cache`.
#[derive(Debug)]
pub struct CacheJob<'a> {
    /// The model, on its device.
    pub model: &'a Model,
    /// What the user calls it.
    pub model_name: String,
    /// BLAKE3 of its weights.
    pub weights_blake3: String,
    /// Its tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// The text.
    pub corpus: &'a Corpus,
    /// Where to read activations.
    pub hooks: Vec<HookPoint>,
    /// The number type to store them in.
    pub dtype: DtypeChoice,
    /// Sequence length and BOS policy.
    pub pack: PackSettings,
    /// Sequences run at once.
    pub batch_size: usize,
    /// Tokens wanted, rounded up to whole sequences; all that the text gives when absent.
    pub tokens: Option<u64>,
    /// Tokens in a shard; a size that bounds memory when absent.
    pub shard_tokens: Option<u64>,
    /// The directory to make.
    pub out: PathBuf,
    /// Whether to go on with a cut-off run.
    pub resume: bool,
    /// The command that continues after an interruption.
    pub resume_command: String,
    /// What `run.json` shall say; the inputs are added.
    pub record: RunRecord,
}

/// What a run of `cache` did.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct CacheSummary {
    /// The finished directory.
    pub dir: PathBuf,
    /// Its contents.
    pub manifest: CacheManifest,
    /// Sequences that an earlier run had stored.
    pub resumed_sequences: u64,
    /// Tokens at the end of the text that filled no sequence; 0 when the text was not read to its end.
    pub dropped_tokens: usize,
    /// Tokens a second in this run.
    pub tokens_per_second: f64,
}

/// Runs the model and writes the cache.
///
/// # Errors
/// `Flag` for settings that make no sense, `Unknown` or `Unsupported` for hooks the model lacks or that have no fixed
/// width, `Missing` when the text fills no sequence, `Interrupted` when the user stopped it; whatever reading,
/// computing and writing return, [`CacheWriter::push`] above all.
pub fn collect(job: &CacheJob<'_>, progress: &dyn Progress) -> Result<CacheSummary> {
    let settings = job.settings()?;
    let target = settings.target_sequences.unwrap_or(u64::MAX);
    let mut packer = Packer::new(job.tokenizer, job.corpus.documents(), job.pack)?;
    let plan = job.hooks.iter().fold(HookPlan::new(), |plan, &hook| plan.capture(hook));
    plan.resolve(job.model.config())?;
    let writer = CacheWriter::begin(&job.out, settings, job.resume)?;
    writer.warnings().iter().for_each(|warning| progress.warn(warning));

    let stored = writer.stored_sequences();
    let context = job.pack.context_size as u64;
    let total = job.tokens.map_or(0, |_| target.saturating_mul(context));
    progress.begin("caching activations", total, Unit::Tokens);
    progress.set(stored * context);
    let started = Instant::now();
    let outcome = (|| {
        let found = packer.skip_sequences(stored)?;
        if found < stored {
            return Err(shrunk(stored, found));
        }
        thread::scope(|scope| {
            let (sender, receiver) = sync_channel(2);
            let writing = scope.spawn(move || write(writer, &receiver));
            let computed = job.compute(&mut packer, &plan, stored..target, &sender, progress);
            drop(sender);
            let written = writing.join().map_err(|_| job.defect())?;
            // The writer's failure is the cause when both fail: the computing side then only finds nobody listening.
            let writer = written?;
            computed.map(|sequences| (writer, sequences))
        })
    })();
    progress.end();
    let (writer, sequences) = outcome?;
    if sequences == 0 {
        return Err(job.too_little(packer.dropped_tokens()));
    }
    if job.tokens.is_some() && sequences < target {
        progress.warn(&format!("the text gives {} tokens, fewer than were asked for", sequences * context));
    }
    let exhausted = sequences < target;
    let manifest = writer.finish(&job.finished_record())?;
    Ok(CacheSummary {
        dir: job.out.clone(),
        manifest,
        resumed_sequences: stored,
        dropped_tokens: if exhausted { packer.dropped_tokens() } else { 0 },
        tokens_per_second: ((sequences - stored) * context) as f64 / started.elapsed().as_secs_f64().max(1e-9),
    })
}

/// Some sequences with their activations, one `[n, s, width]` a hook.
struct Batch {
    tokens: Vec<u32>,
    documents: Vec<u32>,
    activations: Vec<Vec<f32>>,
}

fn write(mut writer: CacheWriter, batches: &Receiver<Batch>) -> Result<CacheWriter> {
    for batch in batches {
        let activations: Vec<&[f32]> = batch.activations.iter().map(Vec::as_slice).collect();
        writer.push(&batch.tokens, &batch.documents, &activations)?;
    }
    Ok(writer)
}

impl CacheJob<'_> {
    /// The settings that the manifest records, checked against the model.
    fn settings(&self) -> Result<CacheSettings> {
        let context = self.pack.context_size;
        check_pass(self.model, context, self.batch_size)?;
        if self.tokens == Some(0) {
            return Err(Error::flag("--tokens", "at least 1", 0, "leave it out to cache the whole text"));
        }
        let hooks = hook_entries(self.model.config(), &self.hooks, self.dtype)?;
        let bos = self.tokenizer.prefix(self.pack.bos).map_or(BosPolicy::Never, |_| BosPolicy::Prepend);
        let mut settings = CacheSettings {
            model: ModelEntry {
                name: self.model_name.clone(),
                weights_blake3: self.weights_blake3.clone(),
                dtype: dtype_of(self.model.dtype())?,
                device: device_kind(self.model.device()).into(),
            },
            tokenizer_blake3: self.tokenizer.hash().into(),
            data: self.corpus.files().to_vec(),
            text_field: self.corpus.text_field().into(),
            hooks,
            context_size: context,
            bos,
            special_token_ids: self.tokenizer.special_ids().iter().copied().collect(),
            batch_size: self.batch_size,
            shard_sequences: 0,
            target_sequences: self.tokens.map(|tokens| tokens.div_ceil(context as u64)),
        };
        settings.shard_sequences = settings.choose_shard_sequences(self.shard_tokens);
        Ok(settings)
    }

    /// Computes batches until `range` ends or the text does, and returns how many sequences there are then.
    fn compute(
        &self,
        packer: &mut Packer<'_, Documents<'_>>,
        plan: &HookPlan,
        range: std::ops::Range<u64>,
        batches: &SyncSender<Batch>,
        progress: &dyn Progress,
    ) -> Result<u64> {
        let (mut done, started) = (range.start, Instant::now());
        while done < range.end {
            if progress.cancelled() {
                return Err(self.interrupted());
            }
            let wanted = (range.end - done).min(self.batch_size as u64) as usize;
            let sequences: Vec<Sequence> = packer.by_ref().take(wanted).collect::<Result<_>>()?;
            if sequences.is_empty() {
                break;
            }
            let batch = self.run(&sequences, plan)?;
            let tokens = batch.tokens.len() as u64;
            done += sequences.len() as u64;
            if batches.send(batch).is_err() {
                return Ok(done);
            }
            progress.advance(tokens);
            let computed = (done - range.start) * self.pack.context_size as u64;
            progress.note(&format!("{:.0} tokens/s", computed as f64 / started.elapsed().as_secs_f64().max(1e-9)));
        }
        Ok(done)
    }

    fn run(&self, sequences: &[Sequence], plan: &HookPlan) -> Result<Batch> {
        let rows: Vec<&[u32]> = sequences.iter().map(|s| s.tokens.as_slice()).collect();
        let run = self.model.forward(&self.model.tokens(&rows)?, plan)?;
        let fetch = |&hook: &HookPoint| {
            let values = run.captured(hook)?.to_dtype(DType::F32).and_then(|t| t.to_device(&Device::Cpu));
            values.and_then(|t| t.flatten_all()?.to_vec1()).during(|| format!("fetching {hook}"))
        };
        Ok(Batch {
            tokens: rows.concat(),
            documents: sequences.iter().flat_map(|s| s.documents.iter().copied()).collect(),
            activations: self.hooks.iter().map(fetch).collect::<Result<_>>()?,
        })
    }

    fn finished_record(&self) -> RunRecord {
        let mut record = self.record.clone();
        let input =
            |role: &str, name: String, blake3: &str| InputRecord { role: role.into(), name, blake3: blake3.into() };
        record.inputs.push(input("model", self.model_name.clone(), &self.weights_blake3));
        record.inputs.push(input("tokenizer", self.model_name.clone(), self.tokenizer.hash()));
        for file in self.corpus.files() {
            record.inputs.push(input("data", file.path.display().to_string(), &file.blake3));
        }
        record
    }

    fn interrupted(&self) -> Error {
        Error::Interrupted {
            kept: format!("finished shards are in {}", crate::base::artifact::partial_path(&self.out).display()),
            resume: self.resume_command.clone(),
        }
    }

    fn too_little(&self, tokens: usize) -> Error {
        let context = self.pack.context_size;
        Error::Missing {
            what: "enough text",
            path: self.corpus.files().first().map_or_else(|| Path::new("").into(), |f| f.path.clone()),
            expected: format!("at least one sequence of {context} tokens, and the text has {tokens}"),
            remedy: "give more text, or a smaller --context-size".into(),
        }
    }

    fn defect(&self) -> Error {
        Error::Unsupported {
            what: format!("writing {}", self.out.display()),
            why: "the writing thread died".into(),
            remedy: "run again with --resume, and please report this".into(),
        }
    }
}

/// Checks the length and number of sequences that are to go through `model` at once.
pub(super) fn check_pass(model: &Model, context_size: usize, batch_size: usize) -> Result<()> {
    let longest = model.config().context_length;
    if context_size > longest {
        let expected = format!("at most {longest}, the context of the model");
        return Err(Error::flag("--context-size", expected, context_size, "use 256, or the model's context"));
    }
    if batch_size == 0 {
        return Err(Error::flag("--batch-size", "at least 1", 0, "16 is a good start"));
    }
    Ok(())
}

/// Names and widths of `hooks`, each of which must give rows.
pub(super) fn hook_entries(config: &ModelConfig, hooks: &[HookPoint], dtype: DtypeChoice) -> Result<Vec<HookEntry>> {
    if hooks.is_empty() {
        let remedy = "'mechinterp info MODEL' lists them";
        return Err(Error::flag("--hook", "at least one hook point", "none", remedy));
    }
    let mut entries: Vec<HookEntry> = Vec::new();
    for &hook in hooks {
        let width = hook.check(config)?.site.width(config).ok_or_else(|| Error::Unsupported {
            what: format!("rows of {hook}"),
            why: format!("its shape {} has no fixed number of values a token", hook.site.axes()),
            remedy: "use 'mechinterp run --hook' for it, or another hook".into(),
        })?;
        if entries.iter().any(|entry| entry.name == hook.to_string()) {
            return Err(Error::flag("--hook", "every hook once", hook, "remove the second one"));
        }
        entries.push(HookEntry { name: hook.to_string(), width, dtype });
    }
    Ok(entries)
}

fn shrunk(stored: u64, found: u64) -> Error {
    Error::Mismatch {
        what: "cut-off cache and text",
        left: format!("{stored} sequences stored"),
        right: format!("a text of {found}"),
        remedy: "choose another --out and cache again".into(),
    }
}

fn dtype_of(dtype: DType) -> Result<DtypeChoice> {
    match dtype {
        DType::F32 => Ok(DtypeChoice::F32),
        DType::F16 => Ok(DtypeChoice::F16),
        DType::BF16 => Ok(DtypeChoice::Bf16),
        other => Err(Error::Unsupported {
            what: format!("a model in {other:?}"),
            why: "caches record f32, f16 or bf16".into(),
            remedy: "load the model in one of these".into(),
        }),
    }
}

fn device_kind(device: &Device) -> &'static str {
    match device {
        Device::Cpu => "cpu",
        Device::Cuda(_) => "cuda",
        Device::Metal(_) => "metal",
    }
}

#[cfg(test)]
#[path = "collect_tests.rs"]
pub(super) mod tests;
