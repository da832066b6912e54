//! Results of `patch` on a terminal and as a page.

use crate::analysis::patch::Axis;
use crate::base::Result;
use crate::web::heatmap::{Cell, Heatmap, Scale};
use crate::web::page::{self, Row};
use crate::web::text::short;

use super::super::heatmap::{self, one_line};
use super::super::render::{BOLD, DIM, Table, Ui, columns, paint, quoted};
use super::{Outcomes, Ran, Report};

/// Normalised effects below this are no reason for full colour.
const FAINT: f64 = 0.25;

pub(super) fn print(report: &Report, raw: bool, top: usize, ui: &Ui) -> Result<()> {
    let mut table = Table::new(&["", "prompt", ">metric"]);
    for (name, ran) in runs(report) {
        table.row(vec![paint(DIM, name), paint(BOLD, &ran.prompt), ran.metric.map(figure).unwrap_or_default()]);
    }
    ui.out(table)?;
    ui.out(paint(DIM, format!("metric: {}; {}", report.metric_name, report.method)))?;
    for result in &report.results {
        ui.out("")?;
        heatmap::show(&map(report, result, raw), columns(), ui)?;
    }
    strongest(report, raw, top, ui)
}

fn runs(report: &Report) -> impl Iterator<Item = (&'static str, &Ran)> {
    [("clean", &report.clean)].into_iter().chain(report.corrupt.as_ref().map(|ran| ("corrupted", ran)))
}

fn figure(value: f64) -> String {
    format!("{value:.4}")
}

/// Whether cells show normalised effects.
fn is_normalised(report: &Report, raw: bool) -> bool {
    !raw && report.baseline.normalised(report.baseline.base).is_some()
}

/// What colours the cell: the normalised effect, else the change of the metric.
fn effect(report: &Report, metric: f64, raw: bool) -> f64 {
    let change = metric - report.baseline.base;
    if is_normalised(report, raw) { report.baseline.normalised(metric).unwrap_or(change) } else { change }
}

fn map(report: &Report, result: &Outcomes, raw: bool) -> Heatmap {
    let normalised = is_normalised(report, raw);
    let metrics = result.sweep.metric.iter().flatten().flatten();
    let limit = metrics.map(|m| effect(report, *m, raw).abs()).fold(0f64, f64::max);
    let limit = if normalised { limit.max(FAINT) } else { limit.max(1e-9) };
    let rows = labels(&result.sweep.rows, report, false);
    let columns = labels(&result.sweep.columns, report, result.features.is_some());
    let cells: Vec<Vec<Cell>> = result
        .sweep
        .metric
        .iter()
        .zip(&rows)
        .map(|(row, name)| {
            row.iter().zip(&columns).map(|(metric, column)| cell(report, *metric, raw, (&name.0, column))).collect()
        })
        .collect();
    let base = format!("the {} run", report.patched);
    let source = format!("the {} run", if report.patched == "clean" { "corrupted" } else { "clean" });
    let meaning = if normalised {
        format!("0: as {base}, 1: as {source}")
    } else if raw {
        format!("{}; colour: change from {base}", report.metric_name)
    } else {
        format!("change of the {} from {base}", report.metric_name)
    };
    Heatmap {
        title: result.site.clone(),
        meaning,
        x: axis_name(&result.sweep.columns).into(),
        y: axis_name(&result.sweep.rows).into(),
        columns,
        rows: rows.into_iter().map(|(name, _)| name).collect(),
        cells,
        scale: Scale::Diverging { limit },
    }
}

fn cell(report: &Report, metric: Option<f64>, raw: bool, (row, column): (&str, &(String, String))) -> Cell {
    let Some(metric) = metric else { return Cell { details: "no path".into(), ..Cell::default() } };
    let value = effect(report, metric, raw);
    let mut details = vec![format!("{row}  ·  {} {}", column.0, column.1), format!("metric {metric:.5}")];
    details.push(format!("change {:+.5}", metric - report.baseline.base));
    details.extend(report.baseline.normalised(metric).map(|share| format!("normalised {share:.4}")));
    let text = if raw { metric } else { value };
    // Zero has no sign.
    let text = if text.abs() < 0.005 { 0.0 } else { text };
    Cell { value: Some(value), text: format!("{text:.2}"), details: details.join("\n") }
}

fn axis_name(axis: &Axis) -> &'static str {
    match axis {
        Axis::Layer(_) => "layer",
        Axis::Window(_) => "layers",
        Axis::Position(_) => "position",
        Axis::Head(_) | Axis::LayerHead(_) => "head",
        Axis::Name(_) => "",
    }
}

/// Rows or columns by number, and tokens of positions. Features are patched at `positions`, named by number, and at all of
/// them in a column of its own.
fn labels(axis: &Axis, report: &Report, positions: bool) -> Vec<(String, String)> {
    let plain = |names: Vec<String>| names.into_iter().map(|name| (name, String::new())).collect();
    let token = |position: usize| {
        let of = |ran: &Ran| ran.pieces.get(position).map(|piece| one_line(piece)).unwrap_or_default();
        let (clean, corrupt) = (of(&report.clean), report.corrupt.as_ref().map(of));
        match corrupt {
            Some(corrupt) if corrupt != clean => format!("{clean}/{corrupt}"),
            _ => clean,
        }
    };
    match axis {
        Axis::Layer(list) | Axis::Head(list) => plain(list.iter().map(ToString::to_string).collect()),
        Axis::Window(list) => plain(list.iter().map(|(first, last)| format!("{first}–{last}")).collect()),
        Axis::LayerHead(list) => plain(list.iter().map(|(layer, head)| format!("{layer}.{head}")).collect()),
        Axis::Position(list) => list.iter().map(|&p| (p.to_string(), token(p))).collect(),
        Axis::Name(list) => {
            let word = |name: &String| name.parse().ok().filter(|_| positions).map(token).unwrap_or_default();
            list.iter().map(|name| (name.clone(), word(name))).collect()
        }
    }
}

/// The cells with the largest effects.
fn strongest(report: &Report, raw: bool, n: usize, ui: &Ui) -> Result<()> {
    let mut all = Vec::new();
    for result in &report.results {
        let (rows, columns) = (
            labels(&result.sweep.rows, report, false),
            labels(&result.sweep.columns, report, result.features.is_some()),
        );
        for (row, name) in result.sweep.metric.iter().zip(&rows) {
            for (metric, column) in row.iter().zip(&columns) {
                if let Some(metric) = metric {
                    all.push((effect(report, *metric, raw), *metric, result, name.0.clone(), column.clone()));
                }
            }
        }
    }
    all.sort_by(|a, b| b.0.abs().total_cmp(&a.0.abs()));
    if all.is_empty() || n == 0 {
        return Ok(());
    }
    let effect_name = if is_normalised(report, raw) { ">normalised" } else { ">change" };
    let mut table = Table::new(&["strongest", "row", "column", ">metric", effect_name]);
    for (effect, metric, result, row, (number, word)) in all.into_iter().take(n) {
        let row = format!("{} {row}", axis_name(&result.sweep.rows));
        let column = format!("{} {number}", axis_name(&result.sweep.columns));
        let column = if word.is_empty() { column } else { format!("{column} {}", quoted(&word)) };
        let cells = [result.site.clone(), row.trim().into(), column.trim().into(), figure(metric)];
        table.row(cells.into_iter().chain([format!("{effect:+.3}")]).collect());
    }
    ui.out("")?;
    ui.out(table)
}

/// The page of `patch --html`.
pub(super) fn page(report: &Report, raw: bool) -> String {
    let facts = [report.metric_name.clone(), report.method.clone()];
    let mut body = vec![page::header("mechinterp patch", short(&report.model), &facts)];
    let rows: Vec<Row> = runs(report)
        .map(|(name, ran)| {
            let metric = ran.metric.map(figure).unwrap_or_default();
            let cells = vec![page::Cell::text(&ran.prompt), page::Cell::number(metric, false)];
            Row::Cells(name.into(), cells)
        })
        .collect();
    let head = [page::Cell::text("run"), page::Cell::text("prompt"), page::Cell::number("metric", false)];
    body.push(page::section("Prompts", "", [page::table(&head, &rows)]));
    for result in &report.results {
        let map = map(report, result, raw);
        let note = "Point at a cell for the metric under that patch.";
        body.push(page::section(&result.site, note, [map.framed()]));
    }
    body.push(page::footer());
    page::html(&format!("Patching {}", short(&report.model)), body)
}
