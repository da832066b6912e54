//! `mechinterp train-sae --sweep`: several dictionaries from one pass over the rows.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::base::artifact::write_json;
use crate::base::{Artifact, Result};
use crate::dictionary::train::{Member, SweepEntry, SweepRun, TrainSettings, TrainSummary, read_sweep, train_sweep};
use crate::store::RowSource;

use super::super::render::{Table, Ui, thousands};
use super::super::{Common, Outcome};
use super::record::{RECORD, check_same_run};
use super::rows::{Origin, Ready};
use super::{Args, MANY_ROWS, record_of, wanted_rows};

/// The table of a finished sweep, inside its directory.
const TABLE: &str = "sweep.json";

#[derive(Serialize)]
struct Row {
    name: String,
    dir: PathBuf,
    hook: String,
    #[serde(flatten)]
    summary: TrainSummary,
}

#[derive(Serialize)]
struct Report {
    dir: PathBuf,
    positions: Vec<Value>,
    runs: Vec<Row>,
}

pub(super) fn run(args: &Args, file: &Path, common: &Common, ui: &Ui) -> Result<Outcome> {
    let base = TrainSettings { seed: args.seed, ..TrainSettings::default() };
    let entries = read_sweep(file, &base)?;
    let device = common.device.open()?;
    // Each hook once; runs refer to it by its place.
    let mut hooks: Vec<Option<String>> = Vec::new();
    let mut places = Vec::with_capacity(entries.len());
    for SweepEntry { hook, .. } in &entries {
        let place = hooks.iter().position(|known| known == hook);
        places.push(place.unwrap_or(hooks.len()));
        if place.is_none() {
            hooks.push(hook.clone());
        }
    }
    let origin = Origin::open(&args.rows, &hooks, args.seed, common, ui)?;
    for (entry, &place) in entries.iter().zip(&places) {
        entry.settings.plan(origin.hooks[place].1, MANY_ROWS)?;
    }
    let artifact = Artifact::begin(&args.out, args.resume)?;
    let runs: Map<String, Value> = entries
        .iter()
        .zip(&places)
        .map(|(entry, &place)| {
            (entry.name.clone(), json!({ "hook": origin.hooks[place].0, "settings": entry.settings }))
        })
        .collect();
    let record = record_of(&origin, &runs, args.seed);
    check_same_run(&artifact, &record)?;
    let (names, alone): (Vec<String>, Vec<_>) = entries
        .iter()
        .zip(&places)
        .map(|(entry, &place)| {
            (origin.hooks[place].0.clone(), record_of(&origin, &entry.settings, entry.settings.seed))
        })
        .unzip();
    let rows = entries.first().and_then(|entry| wanted_rows(&entry.settings));
    let Ready { mut training, mut heldout, positions, metadata } = origin.begin(rows, ui, ui.progress())?;
    write_json(&artifact.dir().join(RECORD), &record)?;
    let member = |(entry, &hook): (&SweepEntry, &usize)| Member {
        name: entry.name.clone(),
        hook,
        settings: entry.settings.clone(),
        metadata: metadata[hook].clone(),
    };
    let summaries = train_sweep(SweepRun {
        source: &mut *training,
        heldout: heldout.as_mut().map(|h| &mut **h as &mut dyn RowSource),
        members: entries.iter().zip(&places).map(member).collect(),
        device: &device,
        out: &artifact,
        progress: ui.progress(),
    })?;
    let row = |((entry, hook), summary): ((&SweepEntry, String), TrainSummary)| Row {
        dir: args.out.join(&entry.name),
        name: entry.name.clone(),
        hook,
        summary,
    };
    let runs: Vec<Row> = entries.iter().zip(names).zip(summaries).map(row).collect();
    for (entry, mut record) in entries.iter().zip(alone) {
        record.settings["sweep"] = json!(entry.name);
        write_json(&artifact.dir().join(&entry.name).join(RECORD), &record)?;
    }
    write_json(&artifact.dir().join(TABLE), &runs)?;
    artifact.finish(&record)?;
    let report = Report { dir: args.out.clone(), positions, runs };
    if ui.json() {
        ui.out_json(&report)?;
    } else {
        print(&report, ui)?;
    }
    Ok(Outcome::Done)
}

fn print(report: &Report, ui: &Ui) -> Result<()> {
    let several = report.runs.iter().any(|row| row.hook != report.runs[0].hook);
    let mut header = vec!["", ">features", ">explained variance", ">L0", ">mse", ">dead"];
    if several {
        header.insert(1, "hook");
    }
    let mut table = Table::new(&header);
    for Row { name, hook, summary, .. } in &report.runs {
        let TrainSummary { plan, last, heldout, dead_features, .. } = summary;
        let (ev, l0) = heldout.map_or((last.explained_variance, last.l0), |h| (h.explained_variance, h.l0));
        let mse = heldout.map_or(String::new(), |h| format!("{:.3}", h.mse));
        let mut cells = vec![
            name.clone(),
            thousands(plan.d_sae as u64),
            format!("{ev:.4}"),
            format!("{l0:.1}"),
            mse,
            thousands(*dead_features as u64),
        ];
        if several {
            cells.insert(1, hook.clone());
        }
        table.row(cells);
    }
    ui.out(table)?;
    let measured = report.runs.iter().all(|row| row.summary.heldout.is_some());
    ui.out(if measured { "figures of held-out text" } else { "figures of the last training batch" })?;
    ui.out(format!("wrote {} dictionaries into {}", report.runs.len(), report.dir.display()))
}
