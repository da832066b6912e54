//! `mechinterp train-sae`

pub(super) mod record;
pub(super) mod rows;
mod sweep;

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Value, json};

use crate::base::artifact::write_json;
use crate::base::{Artifact, Error, Result, RunRecord};
use crate::dictionary::Metadata;
use crate::dictionary::train::{TrainRun, TrainSettings, TrainSummary, train};
use crate::store::RowSource;
use crate::web::train_report;

use self::record::{RECORD, check_same_run};
use self::rows::{Origin, Ready, RowArgs};
use super::cache::count;
use super::method::MethodArgs;
use super::render::{Table, Ui, thousands};
use super::{Common, Outcome};

/// Shown under the flags.
const SWEEP_HELP: &str = "\
A sweep file trains several dictionaries in one pass over the rows, each in a directory of its name inside --out:

  [defaults]                    # flags without dashes, with underscores; and hook
  d_sae = 16384
  steps = 2000

  [[run]]                       # one run; with a grid, one for each choice of a value from every list
  name = \"topk\"
  arch = \"topk\"
  grid = { k = [32, 64, 128] }

  [[run]]
  name = \"relu\"
  grid = { l1_coefficient = [2, 5] }

  [grid]                        # lists that multiply every run; without any [[run]] they are the runs
  lr = [5e-4, 1e-3]

batch_size, tokens, steps, checkpoint_every, n_batches_for_norm and heldout_rows are the same for all runs.";

/// Arguments of `train-sae`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = SWEEP_HELP)]
pub(super) struct Args {
    #[command(flatten)]
    rows: RowArgs,
    /// Train a transcoder: reconstruct the rows of this hook point from those of --hook.
    #[arg(long, value_name = "NAME", requires = "hook", conflicts_with = "sweep")]
    hook_out: Option<String>,
    /// With --hook-out: a linear connection from the rows to their reconstruction beside the features, trained from zero.
    #[arg(long, conflicts_with = "sweep")]
    skip: bool,
    /// Directory to make, in SAELens' format.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Train several dictionaries at once, as this TOML file says; an example stands below.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["MethodArgs", "LengthArgs"])]
    sweep: Option<PathBuf>,
    #[command(flatten)]
    method: MethodArgs,
    #[command(flatten)]
    length: LengthArgs,
    /// Seed of initialisation, order and resampling.
    #[arg(long, default_value_t = TrainSettings::default().seed)]
    seed: u64,
    /// Go on with a run that was cut off.
    #[arg(long)]
    resume: bool,
}

/// How long and in what steps to train.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct LengthArgs {
    /// Peak learning rate of Adam; 0.001 when absent, for sets of transcoders 0.003.
    #[arg(long, value_name = "X")]
    lr: Option<f64>,
    /// Rows a step; 4096 when absent, for sets of transcoders 2048.
    #[arg(long, value_name = "N")]
    batch_size: Option<usize>,
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
    /// Steps between measurements on held-out text; a twentieth of all steps when absent, for sets of transcoders a
    /// fifth.
    #[arg(long, value_name = "N")]
    eval_every: Option<u64>,
    /// Steps between checkpoints; 250 when absent, for sets of transcoders an eighth of all steps, from 25 to 250.
    #[arg(long, value_name = "N")]
    pub(super) checkpoint_every: Option<u64>,
    /// Steps between lines of metrics.jsonl.
    #[arg(long, value_name = "N", default_value_t = TrainSettings::default().log_every)]
    log_every: u64,
}

#[derive(Serialize)]
struct Report<'a> {
    dir: &'a Path,
    positions: Value,
    #[serde(flatten)]
    summary: TrainSummary,
}

pub(super) fn run(args: &Args, common: &Common, ui: &Ui) -> Result<Outcome> {
    match &args.sweep {
        Some(file) => sweep::run(args, file, common, ui),
        None => one(args, common, ui),
    }
}

/// Trains one dictionary.
fn one(args: &Args, common: &Common, ui: &Ui) -> Result<Outcome> {
    let settings = args.settings();
    let device = common.device.open()?;
    let wanted: Vec<Option<String>> =
        [None, args.hook_out.clone()].into_iter().take(1 + usize::from(args.hook_out.is_some())).collect();
    let origin = Origin::open(&args.rows, &wanted, args.seed, common, ui)?;
    // Before anything is left on disk: a run that cannot start has nothing to resume.
    match origin.hooks.as_slice() {
        [(read, _), (written, _)] if read == written => {
            let remedy = "leave --hook-out out to train an autoencoder";
            return Err(Error::flag("--hook-out", "another hook point than --hook", written, remedy));
        }
        [(_, d_in), (_, d_out)] => settings.plan_transcoder(*d_in, (*d_out, 1), MANY_ROWS)?,
        [(_, width), ..] => settings.plan(*width, MANY_ROWS)?,
        [] => return Err(Error::flag("--hook", "a hook point", "none", "name one")),
    };
    let artifact = Artifact::begin(&args.out, args.resume)?.with_arguments(super::arguments());
    let record = record_of(&origin, &settings, args.seed);
    check_same_run(&artifact, &record)?;
    let Ready { mut training, mut heldout, mut positions, metadata, text: _ } =
        origin.begin(wanted_rows(&settings), ui, ui.progress())?;
    write_json(&artifact.dir().join(RECORD), &record)?;
    let summary = train(TrainRun {
        source: &mut *training,
        heldout: heldout.as_mut().map(|h| &mut **h as &mut dyn RowSource),
        settings: &settings,
        metadata: of_transcoder(metadata),
        device: &device,
        out: &artifact,
        progress: ui.progress(),
    })?;
    train_report::write(artifact.dir())?;
    artifact.finish(&record)?;
    let report = Report { dir: &args.out, positions: positions.pop().unwrap_or_default(), summary };
    if ui.json() {
        ui.out_json(&report)?;
    } else {
        print(&report, ui)?;
    }
    Ok(Outcome::Done)
}

/// What a dictionary says of itself that reads the first of some hooks and, where there is a second, writes that.
pub(super) fn of_transcoder(metadata: Vec<Metadata>) -> Metadata {
    let mut hooks = metadata.into_iter();
    let mut read = hooks.next().unwrap_or_default();
    if let Some(name) = hooks.next().and_then(|written| written.hook_name) {
        read.extra.insert("hook_name_out".into(), name.into());
    }
    read
}

/// For checks of settings before the number of rows is known.
pub(super) const MANY_ROWS: u64 = 1 << 40;

/// The rows that training reads, where the settings say.
pub(super) fn wanted_rows(settings: &TrainSettings) -> Option<u64> {
    settings.tokens.or(settings.steps.map(|steps| steps.saturating_mul(settings.batch_size as u64)))
}

/// What a run is determined by: rows and settings, with hashes of the inputs.
fn record_of(origin: &Origin, settings: &impl Serialize, seed: u64) -> RunRecord {
    let mut all = origin.settings();
    if let Some(all) = all.as_object_mut() {
        all.insert("training".into(), json!(settings));
    }
    RunRecord { inputs: origin.inputs.clone(), ..RunRecord::new("train-sae", &all, seed) }
}

impl Args {
    fn settings(&self) -> TrainSettings {
        let rest = TrainSettings { seed: self.seed, skip: self.skip, ..TrainSettings::default() };
        self.method.settings(self.length.settings(rest))
    }
}

impl LengthArgs {
    /// These settings over `rest`.
    pub(super) fn settings(&self, rest: TrainSettings) -> TrainSettings {
        let Self {
            lr,
            batch_size,
            tokens,
            steps,
            lr_warm_up_steps,
            lr_decay_steps,
            dead_feature_window,
            eval_every,
            checkpoint_every,
            log_every,
        } = *self;
        TrainSettings {
            lr: lr.unwrap_or(rest.lr),
            batch_size: batch_size.unwrap_or(rest.batch_size),
            tokens,
            steps,
            lr_warm_up_steps,
            lr_decay_steps,
            dead_feature_window,
            eval_every: eval_every.or(rest.eval_every),
            checkpoint_every: checkpoint_every.unwrap_or(rest.checkpoint_every),
            log_every,
            ..rest
        }
    }
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
