//! `mechinterp info` of a transcoder set.

use serde::Serialize;

use crate::base::Result;
use crate::dictionary::{SetConfig, SetKind};
use crate::interop::{Format, OpenedSet};

use super::super::Outcome;
use super::super::render::{BOLD, DIM, Ui, paint, thousands};

#[derive(Serialize)]
struct Report<'a> {
    set: &'a str,
    format: Format,
    kind: SetKind,
    model_name: Option<&'a str>,
    scan: &'a str,
    architecture: &'static str,
    linear_connection: bool,
    n_layers: usize,
    d_model: usize,
    d_transcoder: usize,
    feature_input_hook: &'static str,
    feature_output_hook: &'static str,
    weight_bytes: u64,
    weight_files: usize,
    notes: &'a [String],
}

pub(super) fn run(reference: &str, ui: &Ui) -> Result<Outcome> {
    let OpenedSet { set, format, notes, .. } = crate::interop::open_set_with(reference, ui.progress())?;
    let SetConfig { kind, model_name, input, output, scan, n_layers, d_model, d_transcoder } = set.config();
    let report = Report {
        set: reference,
        format,
        kind: *kind,
        model_name: model_name.as_deref(),
        scan,
        architecture: set.activation(0)?.name(),
        linear_connection: set.has_skip(),
        n_layers: *n_layers,
        d_model: *d_model,
        d_transcoder: *d_transcoder,
        feature_input_hook: input.name(),
        feature_output_hook: output.name(),
        weight_bytes: set.weight_bytes(),
        weight_files: set.files().len(),
        notes: &notes,
    };
    if ui.json() {
        ui.out_json(&report)?;
    } else {
        print(&report, ui)?;
    }
    Ok(Outcome::Done)
}

fn print(report: &Report<'_>, ui: &Ui) -> Result<()> {
    let per_layer = bytes(report.weight_bytes / report.n_layers.max(1) as u64);
    let skip = if report.linear_connection { ", with a linear connection" } else { "" };
    let lines = [
        ("kind", report.kind.title().to_owned()),
        ("format", report.format.title().to_owned()),
        ("model", report.model_name.unwrap_or("unknown").to_owned()),
        ("scan", report.scan.to_owned()),
        ("activation", format!("{}{skip}", report.architecture)),
        ("layers", report.n_layers.to_string()),
        ("features", format!("{} a layer", thousands(report.d_transcoder as u64))),
        ("d_model", report.d_model.to_string()),
        ("reads", format!("blocks.{{0..{}}}.{}", report.n_layers.saturating_sub(1), report.feature_input_hook)),
        ("writes to", writes(report)),
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
fn writes(report: &Report<'_>) -> String {
    let last = report.n_layers.saturating_sub(1);
    let from = match report.kind {
        SetKind::PerLayer => "each by its own layer",
        SetKind::CrossLayer => "each by its own layer and all before",
    };
    format!("blocks.{{0..{last}}}.{}, {from}", report.feature_output_hook)
}
