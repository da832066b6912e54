//! `mechinterp train-transcoders`: transcoders of all layers in one pass, or a cross-layer transcoder.

mod output;
mod plan;

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use crate::analysis::eval::replacement::{ReplacementReport, replacement};
use crate::base::artifact::write_json;
use crate::base::{Artifact, Error, Result};
use crate::dictionary::TranscoderSet;
use crate::dictionary::train::{Member, SetRun, TrainSettings, TrainSummary, check_cross_layer, train_set};
use crate::model::HookPoint;
use crate::store::RowSource;

use self::output::Trained;
use super::cache::count;
use super::filter::FilterArgs;
use super::method::MethodArgs;
use super::open;
use super::render::{Table, Ui, thousands};
use super::train_sae::record::{RECORD, check_same_run};
use super::train_sae::rows::{HeldOutText, Origin, Ready, RowArgs, StreamArgs};
use super::train_sae::{LengthArgs, of_transcoder, wanted_rows};
use super::{Common, Outcome};

/// Where layers keep checkpoints and metrics while they are trained.
const TRAINING: &str = "training";
/// What the set makes of the model.
const REPLACEMENT: &str = "replacement.json";
/// Arguments of `train-transcoders`.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Args {
    /// Model to run while training; nothing is stored.
    #[arg(long, value_name = "MODEL")]
    model: String,
    /// Text for it: .txt, .jsonl or .parquet files, or a hub dataset; repeat the flag for several.
    #[arg(long, value_name = "FILE|HUB", num_args = 1.., required = true)]
    data: Vec<String>,
    /// Directory to make: a set that `graph` reads and circuit-tracer loads, with topk only `graph`; without all layers, a
    /// directory in SAELens' layout for each layer.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Layers to train: numbers from 0 and ranges as 4-7; all when absent.
    #[arg(long, value_name = "LIST", conflicts_with = "cross_layer")]
    layers: Option<String>,
    /// What each layer reads, as a hook point without its layer.
    #[arg(long, value_name = "NAME", default_value = "mlp.hook_in")]
    input_hook: String,
    /// What each layer reconstructs.
    #[arg(long, value_name = "NAME", default_value = "mlp.hook_out")]
    output_hook: String,
    /// Train a cross-layer transcoder: the features of a layer write to its own and all later layers.
    #[arg(long)]
    cross_layer: bool,
    /// A linear connection from each layer's rows to their reconstruction beside the features, trained from zero.
    #[arg(long, conflicts_with = "cross_layer")]
    skip: bool,
    #[command(flatten)]
    stream: StreamArgs,
    /// Share of the sequences, the last ones, that is kept for measuring and never trained on.
    #[arg(long, value_name = "SHARE", default_value_t = 0.05)]
    held_out: f64,
    #[command(flatten)]
    filter: FilterArgs,
    #[command(flatten)]
    method: MethodArgs,
    #[command(flatten)]
    length: LengthArgs,
    /// Tokens of held-out text on which the model is run in the end with each layer and with all layers replaced, two
    /// passes a layer; 0 leaves that out.
    #[arg(long, value_name = "N", default_value = "4096", value_parser = count_or_none)]
    eval_tokens: u64,
    /// Seed of initialisation, order and resampling.
    #[arg(long, default_value_t = TrainSettings::default().seed)]
    seed: u64,
    /// Go on with a run that was cut off.
    #[arg(long)]
    resume: bool,
}

/// What one layer learns from what.
struct Place {
    layer: usize,
    input: HookPoint,
    output: HookPoint,
}

#[derive(Serialize)]
struct Report<'a> {
    dir: &'a Path,
    positions: Value,
    layers: Vec<LayerReport>,
    /// What the set makes of the model; absent where layers are missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    replacement: Option<ReplacementReport>,
}

#[derive(Serialize)]
struct LayerReport {
    layer: usize,
    #[serde(flatten)]
    summary: TrainSummary,
}

pub(super) fn run(args: &Args, common: &Common, ui: &Ui) -> Result<Outcome> {
    let settings = args.settings();
    let device = common.device.open()?;
    if args.cross_layer {
        check_cross_layer(&settings, &device)?;
    }
    let config = open::config(&open::locate(&args.model, ui)?)?;
    let places = args.places(&config)?;
    let rows = RowArgs::streamed(&args.model, &args.data, &args.stream, args.held_out, &args.filter);
    let hooks: Vec<Option<String>> =
        places.iter().flat_map(|place| [place.input, place.output]).map(|point| Some(point.to_string())).collect();
    let origin = Origin::open(&rows, &hooks, args.seed, common, ui)?;
    let bytes = args.check(&settings, &origin, &places)?;
    let artifact = Artifact::begin(&args.out, args.resume)?.with_arguments(super::arguments());
    let record = args.record(&origin, &settings);
    check_same_run(&artifact, &record)?;
    ui.say(args.estimate(&origin, bytes, &settings, places.len()));
    let Ready { mut training, mut heldout, mut positions, metadata, text } =
        origin.begin(wanted_rows(&settings), ui, ui.progress())?;
    write_json(&artifact.dir().join(RECORD), &record)?;
    let member = |(i, place): (usize, &Place)| Member {
        name: format!("{TRAINING}/layer_{}", place.layer),
        hook: 2 * i,
        target: Some(2 * i + 1),
        settings: TrainSettings { seed: args.seed.wrapping_add(place.layer as u64), ..settings.clone() },
        metadata: of_transcoder(metadata[2 * i..2 * i + 2].to_vec()),
    };
    let layers = train_set(SetRun {
        source: &mut *training,
        heldout: heldout.as_mut().map(|h| &mut **h as &mut dyn RowSource),
        layers: places.iter().enumerate().map(member).collect(),
        cross_layer: args.cross_layer,
        device: &device,
        out: &artifact,
        progress: ui.progress(),
    })?;
    drop((training, heldout));
    let reports: Vec<LayerReport> = places
        .iter()
        .zip(&layers)
        .map(|(place, trained)| LayerReport { layer: place.layer, summary: trained.summary.clone() })
        .collect();
    let trained = args.assemble(layers, &config)?;
    output::write(&artifact, &places, &trained, &reports)?;
    let text = text.filter(|text| args.eval_tokens > 0 && !text.sequences.is_empty());
    let replacement = match (&trained, text) {
        (Trained::Set(set), Some(text)) => Some(args.replacement(set, &text, common, ui).map_err(unmeasured)?),
        _ => None,
    };
    if let Some(replacement) = &replacement {
        write_json(&artifact.dir().join(REPLACEMENT), replacement)?;
    }
    output::remove_work(&artifact)?;
    artifact.finish(&record)?;
    let positions = positions.pop().unwrap_or_default();
    let report = Report { dir: &args.out, positions, layers: reports, replacement };
    if ui.json() {
        ui.out_json(&report)?;
    } else {
        print(&report, ui)?;
    }
    Ok(Outcome::Done)
}

impl Args {
    /// Runs the model on the set, on held-out text.
    fn replacement(
        &self,
        set: &TranscoderSet,
        text: &HeldOutText,
        common: &Common,
        ui: &Ui,
    ) -> Result<ReplacementReport> {
        let HeldOutText { tokenizer, corpus, pack, sequences } = text;
        let wanted = self.eval_tokens.div_ceil(pack.context_size.max(1) as u64);
        let sequences = sequences.start..sequences.end.min(sequences.start + wanted);
        let text = super::replacement::text(tokenizer, corpus, *pack, sequences)?;
        let opened = open::open(&self.model, open::fast_dtype(common.device), common.device, ui)?;
        replacement(set, &opened.model, &text, ui.progress())
    }
}

/// Stopped when only the figures of the whole set were missing.
fn unmeasured(error: Error) -> Error {
    match error {
        Error::Interrupted { .. } => Error::Interrupted {
            kept: "all layers are trained".into(),
            resume: "run the same command with --resume, and with --eval-tokens 0 to leave the last measurement out"
                .into(),
        },
        other => other,
    }
}

/// As [`count`], or 0.
fn count_or_none(text: &str) -> Result<u64, String> {
    if text == "0" { Ok(0) } else { count(text) }
}

fn print(report: &Report<'_>, ui: &Ui) -> Result<()> {
    let mut table = Table::new(&[">layer", ">explained variance", ">L0", ">dead", ">started again"]);
    for LayerReport { layer, summary } in &report.layers {
        let TrainSummary { last, heldout, dead_features, resampled, .. } = summary;
        let (ev, l0) = heldout.map_or((last.explained_variance, last.l0), |h| (h.explained_variance, h.l0));
        table.row(vec![
            layer.to_string(),
            format!("{ev:.4}"),
            format!("{l0:.1}"),
            thousands(*dead_features as u64),
            thousands(*resampled),
        ]);
    }
    ui.out(table)?;
    let on = if report.layers.iter().all(|l| l.summary.heldout.is_some()) { "held-out text" } else { "the last batch" };
    if let Some(LayerReport { summary, .. }) = report.layers.first() {
        let TrainSummary { plan, last, .. } = summary;
        ui.out(format!(
            "figures of {on}; {} features a layer; {} rows in {} steps",
            thousands(plan.d_sae as u64),
            thousands(last.n_training_samples),
            thousands(plan.steps),
        ))?;
    }
    if let Some(report) = &report.replacement {
        ui.out(format!("\nthe model on its transcoders, on {} tokens of held-out text", thousands(report.positions)))?;
        super::replacement::print(report, ui)?;
    }
    ui.out(format!("wrote {}", report.dir.display()))
}
