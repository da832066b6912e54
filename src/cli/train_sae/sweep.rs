//! `mechinterp train-sae --sweep`: several dictionaries from one pass over the rows.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::base::artifact::write_json;
use crate::base::{Artifact, Result, RunRecord};
use crate::dictionary::Metadata;
use crate::dictionary::train::{
    Member, MemberEnd, SweepEntry, SweepRun, TrainSettings, TrainSummary, read_sweep, train_sweep,
};
use crate::store::RowSource;
use crate::web::train_report;

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
    end: MemberEnd,
}

#[derive(Serialize)]
struct Report {
    dir: PathBuf,
    positions: Vec<Value>,
    runs: Vec<Row>,
}

/// What a file asks for, with each hook once.
struct Sweep {
    entries: Vec<SweepEntry>,
    /// The hooks by name; `None` is the one that the command names.
    hooks: Vec<Option<String>>,
    /// The place of each entry's hook among them.
    places: Vec<usize>,
}

impl Sweep {
    fn read(file: &Path, seed: u64) -> Result<Self> {
        let entries = read_sweep(file, &TrainSettings { seed, ..TrainSettings::default() })?;
        let mut hooks: Vec<Option<String>> = Vec::new();
        let mut places = Vec::with_capacity(entries.len());
        for SweepEntry { hook, .. } in &entries {
            let place = hooks.iter().position(|known| known == hook);
            places.push(place.unwrap_or(hooks.len()));
            if place.is_none() {
                hooks.push(hook.clone());
            }
        }
        Ok(Self { entries, hooks, places })
    }

    /// Each entry with the place of its hook.
    fn each(&self) -> impl Iterator<Item = (&SweepEntry, usize)> {
        self.entries.iter().zip(self.places.iter().copied())
    }

    /// The settings of all runs, by name.
    fn settings(&self, origin: &Origin) -> Map<String, Value> {
        let entry = |(entry, place): (&SweepEntry, usize)| {
            (entry.name.clone(), json!({ "hook": origin.hooks[place].0, "settings": entry.settings }))
        };
        self.each().map(entry).collect()
    }

    fn members(&self, metadata: &[Metadata]) -> Vec<Member> {
        let member = |(entry, hook): (&SweepEntry, usize)| Member {
            name: entry.name.clone(),
            hook,
            target: None,
            settings: entry.settings.clone(),
            metadata: metadata[hook].clone(),
        };
        self.each().map(member).collect()
    }
}

pub(super) fn run(args: &Args, file: &Path, common: &Common, ui: &Ui) -> Result<Outcome> {
    let sweep = Sweep::read(file, args.seed)?;
    let device = common.device.open()?;
    let origin = Origin::open(&args.rows, &sweep.hooks, args.seed, common, ui)?;
    for (entry, place) in sweep.each() {
        entry.settings.plan(origin.hooks[place].1, MANY_ROWS)?;
    }
    let artifact = Artifact::begin(&args.out, args.resume)?.with_arguments(super::super::arguments());
    let record = record_of(&origin, &sweep.settings(&origin), args.seed);
    check_same_run(&artifact, &record)?;
    // What each dictionary says of itself, as if it had been trained alone.
    let own = |(entry, place): (&SweepEntry, usize)| {
        let mut own = record_of(&origin, &entry.settings, args.seed);
        own.settings["hook"] = json!(origin.hooks[place].0);
        (origin.hooks[place].0.clone(), own)
    };
    let own: Vec<(String, RunRecord)> = sweep.each().map(own).collect();
    let wanted = sweep.entries.first().and_then(|entry| wanted_rows(&entry.settings));
    let Ready { mut training, mut heldout, positions, metadata, text: _ } = origin.begin(wanted, ui, ui.progress())?;
    write_json(&artifact.dir().join(RECORD), &record)?;
    let ends = train_sweep(SweepRun {
        source: &mut *training,
        heldout: heldout.as_mut().map(|h| &mut **h as &mut dyn RowSource),
        members: sweep.members(&metadata),
        device: &device,
        out: &artifact,
        progress: ui.progress(),
    })?;
    let mut runs = Vec::with_capacity(ends.len());
    for ((SweepEntry { name, .. }, (hook, own)), end) in sweep.entries.into_iter().zip(own).zip(ends) {
        write_json(&artifact.dir().join(&name).join(RECORD), &own)?;
        runs.push(Row { dir: args.out.join(&name), name, hook, end });
    }
    write_json(&artifact.dir().join(TABLE), &runs)?;
    let trained = runs.iter().filter(|row| matches!(row.end, MemberEnd::Trained(_)));
    let trained: Vec<PathBuf> = trained.map(|row| artifact.dir().join(&row.name)).collect();
    train_report::write_sweep(artifact.dir(), &trained)?;
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
    let mut header = vec!["", ">features", ">explained variance", ">L0", ">mse", ">dead", ""];
    if several {
        header.insert(1, "hook");
    }
    let mut table = Table::new(&header);
    let mut on_heldout = false;
    for Row { name, hook, end, .. } in &report.runs {
        let mut cells = vec![name.clone()];
        if several {
            cells.push(hook.clone());
        }
        match end {
            MemberEnd::Trained(summary) => {
                on_heldout |= summary.heldout.is_some();
                cells.extend(figures(summary));
            }
            MemberEnd::Diverged { diverged_at_step } => {
                cells.extend(vec![String::new(); 5]);
                cells.push(format!("given up at step {diverged_at_step}: lower its lr"));
            }
        }
        table.row(cells);
    }
    ui.out(table)?;
    ui.out(if on_heldout { "figures of held-out text" } else { "figures of the last training batch" })?;
    ui.out(format!("wrote {} dictionaries into {}", report.runs.len(), report.dir.display()))
}

fn figures(summary: &TrainSummary) -> Vec<String> {
    let TrainSummary { plan, last, heldout, dead_features, .. } = summary;
    let (ev, l0) = heldout.map_or((last.explained_variance, last.l0), |h| (h.explained_variance, h.l0));
    vec![
        thousands(plan.d_sae as u64),
        format!("{ev:.4}"),
        format!("{l0:.1}"),
        heldout.map_or(String::new(), |h| format!("{:.3}", h.mse)),
        thousands(*dead_features as u64),
        String::new(),
    ]
}
