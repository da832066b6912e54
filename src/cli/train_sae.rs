//! `mechinterp train-sae`

use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;
use serde_json::json;

use crate::base::artifact::{InputRecord, read_json, write_json};
use crate::base::{Artifact, Error, Result, RunRecord};
use crate::data::BosPolicy;
use crate::dictionary::Metadata;
use crate::dictionary::train::{TrainRun, TrainSettings, TrainSummary, train};
use crate::store::filter::{FilterReport, KeptRows};
use crate::store::shuffle::{CacheSource, Split};
use crate::store::{CacheReader, RowSource};

use super::cache::count;
use super::filter::FilterArgs;
use super::method::MethodArgs;
use super::open;
use super::render::{Table, Ui, thousands};
use super::{Common, Outcome};

/// Arguments of `train-sae`.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Args {
    /// Cached activations to learn from.
    #[arg(long, value_name = "DIR")]
    cache: PathBuf,
    /// Hook point of the cache, when it holds several.
    #[arg(long, value_name = "NAME")]
    hook: Option<String>,
    /// Directory to make, in SAELens' format.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    method: MethodArgs,
    /// Peak learning rate of Adam.
    #[arg(long, value_name = "X", default_value_t = TrainSettings::default().lr)]
    lr: f64,
    /// Rows a step.
    #[arg(long, value_name = "N", default_value_t = TrainSettings::default().batch_size)]
    batch_size: usize,
    /// Rows to train on, such as 4M, over several passes if need be; one pass when neither this nor --steps is given.
    #[arg(long, value_name = "N", value_parser = count, conflicts_with = "steps")]
    tokens: Option<u64>,
    /// Steps to train for.
    #[arg(long, value_name = "N")]
    steps: Option<u64>,
    /// Steps over which the learning rate rises; a fiftieth of all steps when absent, at most 1000.
    #[arg(long, value_name = "N")]
    lr_warm_up_steps: Option<u64>,
    /// Last steps, over which the learning rate falls to a tenth; a fifth of all steps when absent.
    #[arg(long, value_name = "N")]
    lr_decay_steps: Option<u64>,
    /// Steps without firing after which a feature counts as dead; from 50 to 1000 by the length of the run when absent.
    #[arg(long, value_name = "N")]
    dead_feature_window: Option<u64>,
    /// Share of the sequences, the last ones, that is kept for measuring and never trained on.
    #[arg(long, value_name = "SHARE", default_value_t = 0.05)]
    held_out: f64,
    /// Steps between measurements on held-out text; a twentieth of all steps when absent.
    #[arg(long, value_name = "N")]
    eval_every: Option<u64>,
    /// Steps between checkpoints.
    #[arg(long, value_name = "N", default_value_t = TrainSettings::default().checkpoint_every)]
    checkpoint_every: u64,
    /// Steps between lines of metrics.jsonl.
    #[arg(long, value_name = "N", default_value_t = TrainSettings::default().log_every)]
    log_every: u64,
    /// Seed of initialisation, order and resampling.
    #[arg(long, default_value_t = TrainSettings::default().seed)]
    seed: u64,
    /// Go on with a run that was cut off.
    #[arg(long)]
    resume: bool,
    #[command(flatten)]
    filter: FilterArgs,
}

#[derive(Serialize)]
struct Report<'a> {
    dir: &'a PathBuf,
    positions: FilterReport,
    #[serde(flatten)]
    summary: TrainSummary,
}

pub(super) fn run(args: Args, common: &Common, ui: &Ui) -> Result<Outcome> {
    let settings = args.settings();
    let device = common.device.open()?;
    let reader = Arc::new(open::cache(&args.cache, ui)?);
    let hook = reader.hook(args.hook.as_deref())?;
    let split = Split::new(reader.sequences(), args.held_out)?;
    // Before anything is left on disk: a run that cannot start has nothing to resume.
    settings.plan(reader.hook_entry(hook)?.width, reader.rows())?;
    let artifact = Artifact::begin(&args.out, args.resume)?;
    let record = args.record(&settings, &reader, hook)?;
    check_same_run(&artifact, &record)?;

    let (kept, positions) = KeptRows::of_cache(&reader, hook, args.filter.settings(), ui.progress())?;
    ui.say(positions);
    let kept = Arc::new(kept);
    let mut source = CacheSource::training(Arc::clone(&reader), &[hook], Arc::clone(&kept), split, args.seed)?;
    let mut heldout = if split.held_out().is_empty() {
        None
    } else {
        Some(CacheSource::held_out(Arc::clone(&reader), &[hook], kept, split)?)
    };
    settings.plan(source.widths()[0], source.rows())?;
    write_json(&artifact.dir().join(RECORD), &record)?;
    let summary = train(TrainRun {
        source: &mut source,
        heldout: heldout.as_mut().map(|h| h as &mut dyn RowSource),
        settings: &settings,
        metadata: metadata(&reader, hook, &positions)?,
        device: &device,
        out: &artifact,
        progress: ui.progress(),
    })?;
    artifact.finish(&record)?;
    let report = Report { dir: &args.out, positions, summary };
    if ui.json() {
        ui.out_json(&report)?;
    } else {
        print(&report, ui)?;
    }
    Ok(Outcome::Done)
}

impl Args {
    fn settings(&self) -> TrainSettings {
        self.method.settings(TrainSettings {
            lr: self.lr,
            batch_size: self.batch_size,
            tokens: self.tokens,
            steps: self.steps,
            seed: self.seed,
            lr_warm_up_steps: self.lr_warm_up_steps,
            lr_decay_steps: self.lr_decay_steps,
            dead_feature_window: self.dead_feature_window,
            checkpoint_every: self.checkpoint_every,
            log_every: self.log_every,
            eval_every: self.eval_every,
            ..TrainSettings::default()
        })
    }

    fn record(&self, settings: &TrainSettings, reader: &CacheReader, hook: usize) -> Result<RunRecord> {
        let all = json!({
            "hook": reader.hook_entry(hook)?.name,
            "held_out": self.held_out,
            "positions": self.filter.settings(),
            "training": settings,
        });
        let mut record = RunRecord::new("train-sae", &all, self.seed);
        record.inputs.push(InputRecord {
            role: "cache".into(),
            name: self.cache.display().to_string(),
            blake3: reader.hash().into(),
        });
        Ok(record)
    }
}

/// Kept beside the checkpoints while a run goes on.
const RECORD: &str = "run.json";

/// Refuses to continue a run on other data or settings.
fn check_same_run(artifact: &Artifact, record: &RunRecord) -> Result<()> {
    let path = artifact.dir().join(RECORD);
    if artifact.resumed() && path.exists() {
        let old: RunRecord = read_json("record of the cut-off run", &path)?;
        let hashes = |r: &RunRecord| r.inputs.iter().map(|i| i.blake3.clone()).collect::<Vec<_>>();
        if hashes(&old) != hashes(record) {
            return Err(Error::Mismatch {
                what: "the cache and the cut-off run",
                left: record.inputs.iter().map(|i| i.name.as_str()).collect::<Vec<_>>().join(", "),
                right: "a cache with other contents".into(),
                remedy: format!("name the cache it was started on, or remove {}", artifact.dir().display()),
            });
        }
        if let Some(difference) = first_difference("", &old.settings, &record.settings) {
            return Err(Error::Mismatch {
                what: "the settings and the cut-off run",
                left: difference.0,
                right: difference.1,
                remedy: format!("repeat its settings, or remove {}", artifact.dir().display()),
            });
        }
    }
    Ok(())
}

/// The first setting in which two JSON objects differ, with both values.
fn first_difference(name: &str, old: &serde_json::Value, new: &serde_json::Value) -> Option<(String, String)> {
    if old == new {
        return None;
    }
    if let (Some(old), Some(new)) = (old.as_object(), new.as_object()) {
        let missing = serde_json::Value::Null;
        let differing =
            |key: &String| first_difference(key, old.get(key).unwrap_or(&missing), new.get(key).unwrap_or(&missing));
        return new.keys().chain(old.keys()).find_map(differing);
    }
    Some((format!("{name} {new}"), format!("{name} {old}")))
}

/// What the finished dictionary says about where it belongs.
fn metadata(reader: &CacheReader, hook: usize, positions: &FilterReport) -> Result<Metadata> {
    let settings = reader.settings();
    let mut metadata = Metadata {
        model_name: Some(settings.model.name.clone()),
        model_class_name: Some("HookedTransformer".into()),
        hook_name: Some(reader.hook_entry(hook)?.name.clone()),
        context_size: Some(settings.context_size),
        prepend_bos: Some(settings.bos == BosPolicy::Prepend),
        dataset_path: Some(settings.data.iter().map(|d| d.path.display().to_string()).collect::<Vec<_>>().join(",")),
        ..Metadata::default()
    };
    metadata.extra.insert("exclude_special_tokens".into(), positions.settings.skip_special.into());
    if let (Some(multiple), Some(median)) = (positions.settings.max_norm_multiple, positions.median_norm) {
        metadata.extra.insert(super::steer::MAX_NORM_KEY.into(), f64::from(multiple * median).into());
    }
    Ok(metadata)
}

fn print(report: &Report<'_>, ui: &Ui) -> Result<()> {
    let TrainSummary { plan, last, heldout, dead_features, resampled, .. } = &report.summary;
    let mut table = Table::new(&["", ">explained variance", ">L0", ">mse"]);
    let row =
        |label: &str, ev: f64, l0: f64, mse: String| vec![label.into(), format!("{ev:.4}"), format!("{l0:.1}"), mse];
    table.row(row("last training batch", last.explained_variance, last.l0, String::new()));
    if let Some(heldout) = heldout {
        table.row(row("held-out text", heldout.explained_variance, heldout.l0, format!("{:.3}", heldout.mse)));
    }
    ui.out(table)?;
    ui.out(format!(
        "{} features, {} dead, {} started again; {} rows in {} steps",
        thousands(plan.d_sae as u64),
        thousands(*dead_features as u64),
        thousands(*resampled),
        thousands(last.n_training_samples),
        thousands(plan.steps),
    ))?;
    ui.out(format!("wrote {}", report.dir.display()))
}
