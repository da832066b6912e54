//! What `train-sae` learns from: a cache, or a model that runs over text.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::base::artifact::InputRecord;
use crate::base::{DtypeChoice, Error, Progress, Result};
use crate::data::{BosPolicy, Corpus, PackSettings, Tokenizer, locate_data};
use crate::dictionary::Metadata;
use crate::model::{HookPlan, HookPoint};
use crate::store::filter::{FilterSettings, KeptRows};
use crate::store::live::DEFAULT_BUFFER_ROWS;
use crate::store::shuffle::{CacheSource, Split};
use crate::store::{CacheReader, FilterReport, Live, LiveReport, LiveSettings, RowSource};

use super::super::Common;
use super::super::cache::count;
use super::super::filter::FilterArgs;
use super::super::open::{self, Opened};
use super::super::render::Ui;
use super::super::steer::MAX_NORM_KEY;

/// What waiting rows may take unless told otherwise.
const BUFFER_BYTES: u64 = 2 << 30;

/// Flags that say where rows come from.
#[derive(Debug, Clone, clap::Args)]
pub(in super::super) struct RowArgs {
    /// Cached activations to learn from.
    #[arg(long, value_name = "DIR", required_unless_present = "model")]
    cache: Option<PathBuf>,
    /// Model to run while training, in place of a cache: nothing is stored.
    #[arg(long, value_name = "MODEL", conflicts_with = "cache", requires = "data")]
    model: Option<String>,
    /// Text for the model: .txt, .jsonl or .parquet files, or a hub dataset; repeat the flag for several.
    #[arg(long, value_name = "FILE|HUB", num_args = 1.., requires = "model")]
    data: Vec<String>,
    /// Hook point to learn from; needed where a cache holds several, and with --model.
    #[arg(long, value_name = "NAME")]
    hook: Option<String>,
    #[command(flatten)]
    stream: StreamArgs,
    /// Share of the sequences, the last ones, that is kept for measuring and never trained on.
    #[arg(long, value_name = "SHARE", default_value_t = 0.05)]
    held_out: f64,
    #[command(flatten)]
    filter: FilterArgs,
}

/// Flags that say how a running model gives rows.
#[derive(Debug, Clone, clap::Args)]
pub(in super::super) struct StreamArgs {
    /// With --model: tokens in a sequence.
    #[arg(long, value_name = "N", default_value_t = 256, requires = "model")]
    context_size: usize,
    /// With --model: sequences run through it at once.
    #[arg(long, value_name = "N", default_value_t = 16, requires = "model")]
    model_batch_size: usize,
    /// With --model: number type it computes in: f32, f16 or bf16. When absent, bf16 where the CPU multiplies it
    /// natively, else f32.
    #[arg(long, requires = "model")]
    model_dtype: Option<DtypeChoice>,
    /// With --model: field or column of the data that holds the text.
    #[arg(long, value_name = "NAME", default_value = "text", requires = "model")]
    text_field: String,
    /// With --model: do not begin every sequence with the beginning-of-sequence token.
    #[arg(long, requires = "model")]
    no_bos: bool,
    /// With --model: rows in memory at most, to shuffle and to run ahead; more mixes better and takes more memory.
    /// 262,144 when absent, or as many as fit into 2 GB.
    #[arg(long, value_name = "N", value_parser = count, requires = "model")]
    buffer_rows: Option<u64>,
    /// With --model: number type of these rows: f32, f16 or bf16.
    #[arg(long, value_name = "DTYPE", default_value_t = DtypeChoice::F16, requires = "model")]
    buffer_dtype: DtypeChoice,
}

/// Where rows come from, opened and checked, before anything is computed.
pub(in super::super) struct Origin<'a> {
    args: &'a RowArgs,
    seed: u64,
    kind: Kind,
    /// Name and width of each hook.
    pub(in super::super) hooks: Vec<(String, usize)>,
    /// What the run depends on, with content hashes.
    pub(in super::super) inputs: Vec<InputRecord>,
}

enum Kind {
    Cache { reader: Arc<CacheReader>, hooks: Vec<usize> },
    Live { opened: Box<Opened>, corpus: Corpus, hooks: Vec<HookPoint>, dtype: DtypeChoice },
}

/// Rows ready to be learned from.
pub(in super::super) struct Ready<'a> {
    pub(in super::super) training: Box<dyn RowSource + 'a>,
    pub(in super::super) heldout: Option<Box<dyn RowSource + 'a>>,
    /// Which rows count, for each hook of a cache or once for a stream.
    pub(in super::super) positions: Vec<Value>,
    /// What a dictionary of each hook says about where it belongs.
    pub(in super::super) metadata: Vec<Metadata>,
    /// The held-out text of a running model.
    pub(in super::super) text: Option<HeldOutText>,
}

/// Text that a stream holds out from training.
pub(in super::super) struct HeldOutText {
    pub(in super::super) tokenizer: Arc<Tokenizer>,
    pub(in super::super) corpus: Arc<Corpus>,
    pub(in super::super) pack: PackSettings,
    /// Its sequences, by number.
    pub(in super::super) sequences: std::ops::Range<u64>,
}

impl<'a> Origin<'a> {
    /// Opens what the flags name, for the hooks `wanted`, each once: `None` is the one of `--hook` or the only one.
    pub(in super::super) fn open(
        args: &'a RowArgs,
        wanted: &[Option<String>],
        seed: u64,
        common: &Common,
        ui: &Ui,
    ) -> Result<Self> {
        let names: Vec<Option<&str>> = wanted.iter().map(|name| name.as_deref().or(args.hook.as_deref())).collect();
        match &args.model {
            None => Self::cache(args, &names, seed, ui),
            Some(model) => Self::live(args, model, &names, seed, common, ui),
        }
    }

    fn cache(args: &'a RowArgs, names: &[Option<&str>], seed: u64, ui: &Ui) -> Result<Self> {
        let dir = args.cache.clone().unwrap_or_default();
        let reader = Arc::new(open::cache(&dir, ui)?);
        let hooks = names.iter().map(|name| reader.hook(*name)).collect::<Result<Vec<_>>>()?;
        let entries = hooks.iter().map(|&hook| reader.hook_entry(hook)).collect::<Result<Vec<_>>>()?;
        let inputs = vec![input("cache", dir.display().to_string(), reader.hash())];
        let hook_names = entries.iter().map(|entry| (entry.name.clone(), entry.width)).collect();
        Split::new(reader.sequences(), args.held_out)?;
        Ok(Self { args, seed, kind: Kind::Cache { reader, hooks }, hooks: hook_names, inputs })
    }

    fn live(
        args: &'a RowArgs,
        model: &str,
        names: &[Option<&str>],
        seed: u64,
        common: &Common,
        ui: &Ui,
    ) -> Result<Self> {
        let files = open::locate(model, ui)?;
        let config = open::config(&files)?;
        let resolve = |name: Option<&str>| match name {
            Some(name) => HookPoint::resolve(name, &config),
            None => Err(Error::flag(
                "--hook",
                "the hook point to learn from",
                "none",
                format!("name one; 'mechinterp info {model}' lists them"),
            )),
        };
        let hooks = names.iter().copied().map(resolve).collect::<Result<Vec<_>>>()?;
        let width = |hook: &HookPoint| hook.site.width(&config).unwrap_or(1);
        let hook_names: Vec<(String, usize)> = hooks.iter().map(|hook| (hook.to_string(), width(hook))).collect();
        let mut paths = Vec::new();
        for data in &args.data {
            paths.extend(locate_data(data, ui.progress())?);
        }
        let corpus = Corpus::open(&paths, &args.stream.text_field)?;
        let dtype = args.stream.model_dtype.unwrap_or_else(|| open::fast_dtype(common.device));
        let weights = files.weights_hash()?;
        let plan = hooks.iter().fold(HookPlan::new(), |plan, &hook| plan.capture(hook));
        let opened = open::open_for(&plan, &files, dtype, common.device)?;
        args.settings(hooks.clone(), buffer_rows(&args.stream, &hook_names), seed, None).check(&opened.model)?;
        let mut inputs = vec![
            input("model", model.to_owned(), &weights),
            input("tokenizer", model.to_owned(), opened.tokenizer.hash()),
        ];
        inputs.extend(corpus.files().iter().map(|f| input("data", f.path.display().to_string(), &f.blake3)));
        let kind = Kind::Live { opened: Box::new(opened), corpus, hooks, dtype };
        Ok(Self { args, seed, kind, hooks: hook_names, inputs })
    }

    /// What the order and the values of the rows depend on beside the inputs.
    pub(in super::super) fn settings(&self) -> Value {
        let RowArgs { stream, held_out, .. } = self.args;
        let StreamArgs { context_size, model_batch_size, text_field, buffer_dtype, .. } = stream;
        let names: Vec<&str> = self.hooks.iter().map(|(name, _)| name.as_str()).collect();
        let mut all = json!({
            "hook": names.join(","),
            "held_out": held_out,
            "positions": self.args.filter.settings(),
        });
        if let (Kind::Live { dtype, .. }, Some(all)) = (&self.kind, all.as_object_mut()) {
            let live = json!({
                "context_size": context_size,
                "bos": self.args.bos(),
                "model_batch_size": model_batch_size,
                "model_dtype": dtype,
                "text_field": text_field,
                "buffer_rows": buffer_rows(stream, &self.hooks),
                "buffer_dtype": buffer_dtype,
            });
            all.insert("live".into(), live);
        }
        all
    }

    /// Chooses rows, and says which. `rows` is how many training wants, where that is known.
    pub(in super::super) fn begin<'p>(
        self,
        rows: Option<u64>,
        ui: &Ui,
        progress: &'p dyn Progress,
    ) -> Result<Ready<'p>> {
        let Self { args, seed, kind, hooks: names, .. } = self;
        match kind {
            Kind::Cache { reader, hooks } => {
                let split = Split::new(reader.sequences(), args.held_out)?;
                let (kept, reports) = kept_by_all(&reader, &hooks, args.filter.settings(), ui)?;
                let kept = Arc::new(kept);
                let training = CacheSource::training(Arc::clone(&reader), &hooks, Arc::clone(&kept), split, seed)?;
                let heldout = if split.held_out().is_empty() {
                    None
                } else {
                    let source = CacheSource::held_out(Arc::clone(&reader), &hooks, kept, split)?;
                    Some(Box::new(source) as Box<dyn RowSource + 'p>)
                };
                let metadata = reports.iter().zip(names).map(|(report, (name, _))| of_cache(&reader, name, report));
                let metadata = metadata.collect();
                let positions = reports.iter().map(|report| json!(report)).collect();
                Ok(Ready { training: Box::new(training), heldout, positions, metadata, text: None })
            }
            Kind::Live { opened, corpus, hooks, .. } => {
                let Opened { model, tokenizer } = *opened;
                let bos = tokenizer.prefix(args.bos()).is_some();
                let data: Vec<String> = corpus.files().iter().map(|f| f.path.display().to_string()).collect();
                let settings = args.settings(hooks, buffer_rows(&args.stream, &names), seed, rows);
                let (tokenizer, corpus) = (Arc::new(tokenizer), Arc::new(corpus));
                let (own_tokenizer, own_corpus) = (Arc::clone(&tokenizer), Arc::clone(&corpus));
                let live = Live::open(Arc::new(model), tokenizer, corpus, &settings, progress)?;
                ui.say(live.report());
                let text = HeldOutText {
                    tokenizer: own_tokenizer,
                    corpus: own_corpus,
                    pack: settings.pack,
                    sequences: live.report().split.held_out(),
                };
                let metadata =
                    (0..).zip(names).map(|(i, (name, _))| args.of_stream(name, i, bos, &data, live.report()));
                let metadata = metadata.collect();
                let heldout = live.held_out(progress).map(|source| Box::new(source) as Box<dyn RowSource + 'p>);
                let positions = vec![json!(live.report())];
                Ok(Ready {
                    training: Box::new(live.training(progress)),
                    heldout,
                    positions,
                    metadata,
                    text: Some(text),
                })
            }
        }
    }
}

/// Rows that are kept in memory: as told, or [`DEFAULT_BUFFER_ROWS`] where they fit into [`BUFFER_BYTES`].
fn buffer_rows(stream: &StreamArgs, hooks: &[(String, usize)]) -> u64 {
    stream.buffer_rows.unwrap_or_else(|| {
        let values: usize = hooks.iter().map(|(_, width)| width).sum();
        (BUFFER_BYTES / (values * stream.bytes_of_a_value()).max(1) as u64).clamp(1, DEFAULT_BUFFER_ROWS)
    })
}

impl StreamArgs {
    fn bytes_of_a_value(&self) -> usize {
        if self.buffer_dtype == DtypeChoice::F32 { 4 } else { 2 }
    }
}

impl Origin<'_> {
    /// Bytes that rows take while they wait in memory.
    pub(in super::super) fn buffer_bytes(&self) -> u64 {
        let values: usize = self.hooks.iter().map(|(_, width)| width).sum();
        buffer_rows(&self.args.stream, &self.hooks) * (values * self.args.stream.bytes_of_a_value()) as u64
    }
}

impl RowArgs {
    /// Rows of a running model, of hooks that are named elsewhere.
    pub(in super::super) fn streamed(
        model: &str,
        data: &[String],
        stream: &StreamArgs,
        held_out: f64,
        filter: &FilterArgs,
    ) -> Self {
        let (model, data) = (Some(model.to_owned()), data.to_vec());
        Self { cache: None, model, data, hook: None, stream: stream.clone(), held_out, filter: filter.clone() }
    }

    fn bos(&self) -> BosPolicy {
        if self.stream.no_bos { BosPolicy::Never } else { BosPolicy::Prepend }
    }

    fn settings(&self, hooks: Vec<HookPoint>, buffer_rows: u64, seed: u64, rows: Option<u64>) -> LiveSettings {
        LiveSettings {
            hooks,
            pack: PackSettings { context_size: self.stream.context_size, bos: self.bos() },
            batch_size: self.stream.model_batch_size,
            filter: self.filter.settings(),
            held_out: self.held_out,
            buffer_rows,
            dtype: self.stream.buffer_dtype,
            seed,
            rows,
        }
    }

    /// What a dictionary of rows of a stream says about where it belongs.
    fn of_stream(&self, name: String, hook: usize, bos: bool, data: &[String], report: &LiveReport) -> Metadata {
        let metadata = Metadata {
            model_name: self.model.clone(),
            hook_name: Some(name),
            context_size: Some(self.stream.context_size),
            prepend_bos: Some(bos),
            dataset_path: Some(data.join(",")),
            ..Metadata::default()
        };
        completed(metadata, &report.positions.settings, report.median_norms.get(hook).copied().flatten())
    }
}

fn input(role: &str, name: String, blake3: &str) -> InputRecord {
    InputRecord { role: role.into(), name, blake3: blake3.into() }
}

/// The rows that the rules keep at every one of `hooks`, with a report of each.
fn kept_by_all(
    reader: &CacheReader,
    hooks: &[usize],
    settings: FilterSettings,
    ui: &Ui,
) -> Result<(KeptRows, Vec<FilterReport>)> {
    let mut reports = Vec::new();
    let mut all: Option<KeptRows> = None;
    for &hook in hooks {
        let (kept, report) = KeptRows::of_cache(reader, hook, settings, ui.progress())?;
        ui.say(report);
        reports.push(report);
        all = Some(all.map_or_else(|| kept.clone(), |all| all.and(&kept)));
    }
    let all = all.unwrap_or_else(|| KeptRows::from_fn(reader.rows(), |_| true));
    Ok((all, reports))
}

/// What a dictionary of rows of a cache says about where it belongs.
fn of_cache(reader: &CacheReader, name: String, positions: &FilterReport) -> Metadata {
    let settings = reader.settings();
    let metadata = Metadata {
        model_name: Some(settings.model.name.clone()),
        hook_name: Some(name),
        context_size: Some(settings.context_size),
        prepend_bos: Some(settings.bos == BosPolicy::Prepend),
        dataset_path: Some(settings.data.iter().map(|d| d.path.display().to_string()).collect::<Vec<_>>().join(",")),
        ..Metadata::default()
    };
    completed(metadata, &positions.settings, positions.median_norm)
}

/// With what the rules about rows add.
fn completed(mut metadata: Metadata, filter: &FilterSettings, median_norm: Option<f32>) -> Metadata {
    metadata.model_class_name = Some("HookedTransformer".into());
    metadata.extra.insert("exclude_special_tokens".into(), filter.skip_special.into());
    if let (Some(multiple), Some(median)) = (filter.max_norm_multiple, median_norm) {
        metadata.extra.insert(MAX_NORM_KEY.into(), f64::from(multiple * median).into());
    }
    metadata
}
