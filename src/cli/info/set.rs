//! `mechinterp info` of a transcoder set.

use serde::Serialize;

use crate::base::Result;
use crate::dictionary::SetKind;
use crate::interop::{Format, OpenedSet};

use super::super::Outcome;
use super::super::render::{BOLD, DIM, Ui, paint, thousands};
use super::super::set_facts::SetFacts;

#[derive(Serialize)]
struct Report<'a> {
    set: &'a str,
    format: Format,
    #[serde(flatten)]
    facts: SetFacts<'a>,
    weight_bytes: u64,
    weight_files: usize,
    notes: &'a [String],
}

pub(super) fn run(opened: &OpenedSet, reference: &str, ui: &Ui) -> Result<Outcome> {
    let OpenedSet { set, format, notes, .. } = opened;
    let report = Report {
        set: reference,
        format: *format,
        facts: SetFacts::of(set)?,
        weight_bytes: set.weight_bytes(),
        weight_files: set.files().len(),
        notes,
    };
    if ui.json() {
        ui.out_json(&report)?;
    } else {
        print(&report, ui)?;
    }
    Ok(Outcome::Done)
}

fn print(report: &Report<'_>, ui: &Ui) -> Result<()> {
    let facts = &report.facts;
    let last = facts.n_layers.saturating_sub(1);
    let per_layer = bytes(report.weight_bytes / facts.n_layers.max(1) as u64);
    let lines = [
        ("kind", facts.kind.title().to_owned()),
        ("format", report.format.title().to_owned()),
        ("model", facts.model_name.unwrap_or("unknown").to_owned()),
        ("scan", facts.scan.to_owned()),
        ("activation", facts.activation()),
        ("layers", facts.n_layers.to_string()),
        ("features", format!("{} a layer", thousands(facts.d_transcoder as u64))),
        ("d_model", facts.d_model.to_string()),
        ("reads", format!("blocks.{{0..{last}}}.{}", facts.feature_input_hook)),
        ("writes to", writes(facts, last)),
        (
            "weights",
            format!(
                "{} in {} files, {per_layer} a layer; read as they are needed",
                bytes(report.weight_bytes),
                report.weight_files
            ),
        ),
    ];
    ui.out(paint(BOLD, report.set))?;
    for (label, value) in lines {
        ui.out(format!("  {}{value}", paint(DIM, format!("{label:<12}"))))?;
    }
    for note in report.notes {
        ui.out(format!("  {}{note}", paint(DIM, format!("{:<12}", "note"))))?;
    }
    Ok(())
}

fn bytes(n: u64) -> String {
    let n = n as f64;
    if n < 1e6 { format!("{:.1} KB", n / 1e3) } else { format!("{:.1} MB", n / 1e6) }
}

/// The hooks that are reconstructed, and from where.
fn writes(facts: &SetFacts<'_>, last: usize) -> String {
    let from = match facts.kind {
        SetKind::PerLayer => "each by its own layer",
        SetKind::CrossLayer => "each by its own layer and all before",
    };
    format!("blocks.{{0..{last}}}.{}, {from}", facts.feature_output_hook)
}
