//! What `probe` found, as a table and as JSON.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::analysis::probe::run::Outcome;
use crate::analysis::probe::sparse::ChosenFeature;
use crate::analysis::probe::{DenseProbe, Examples, ProbeRun, ProbeSettings, SparseProbe};
use crate::base::Result;
use crate::web::text::short;

use super::render::{BOLD, DIM, GREEN, Table, Ui, columns, paint, quoted, thousands};

/// Wrong texts that are shown.
const SHOWN_MISTAKES: usize = 5;

/// All of a run.
#[derive(Serialize)]
pub(super) struct Report<'a> {
    model: &'a str,
    data: &'a Path,
    settings: &'a ProbeSettings,
    classes: Vec<Class<'a>>,
    #[serde(flatten)]
    result: &'a ProbeRun,
    /// The best probe itself, so that nobody has to count.
    best_probe: Option<&'a DenseProbe>,
    dictionaries: &'a [PathBuf],
    mistaken_texts: Vec<MistakenText<'a>>,
}

#[derive(Serialize)]
struct Class<'a> {
    label: &'a str,
    texts: usize,
    train: usize,
    test: usize,
}

#[derive(Serialize)]
struct MistakenText<'a> {
    line: usize,
    text: &'a str,
    label: &'a str,
    predicted: &'a str,
    margin: f64,
}

impl<'a> Report<'a> {
    pub(super) fn new(
        model: &'a str,
        dictionaries: &'a [PathBuf],
        examples: &'a Examples,
        settings: &'a ProbeSettings,
        result: &'a ProbeRun,
    ) -> Self {
        let of = |part: &[usize], class| part.iter().filter(|&&i| examples.labels[i] == class).count();
        let class = |(class, (label, texts)): (usize, (&'a String, usize))| Class {
            label,
            texts,
            train: of(&result.split.train, class),
            test: of(&result.split.test, class),
        };
        let mistaken = result.mistakes.iter().map(|mistake| MistakenText {
            line: examples.lines[mistake.text],
            text: &examples.texts[mistake.text],
            label: &examples.classes[mistake.class],
            predicted: &examples.classes[mistake.predicted],
            margin: mistake.margin,
        });
        Self {
            model,
            data: &examples.path,
            settings,
            classes: examples.classes.iter().zip(examples.counts()).enumerate().map(class).collect(),
            result,
            best_probe: result.best.map(|best| &result.dense[best]),
            dictionaries,
            mistaken_texts: mistaken.collect(),
        }
    }
}

pub(super) fn print(report: &Report<'_>, ui: &Ui) -> Result<()> {
    let Report { classes, result, settings, .. } = report;
    let texts: usize = classes.iter().map(|class| class.texts).sum();
    let labels: Vec<String> = classes
        .iter()
        .take(12)
        .map(|class| format!("{} {}", quoted(class.label), thousands(class.texts as u64)))
        .collect();
    let more = if classes.len() > 12 { format!(" and {} more", classes.len() - 12) } else { String::new() };
    ui.out(format!("{} texts   {}{more}", paint(BOLD, thousands(texts as u64)), labels.join("  ")))?;
    ui.out(paint(
        DIM,
        format!(
            "{} to learn from, {} held out; {} of each text; always saying the most frequent label is right on {}",
            thousands(result.split.train.len() as u64),
            thousands(result.split.test.len() as u64),
            match settings.position.name() {
                "last" => "the last token".into(),
                name => format!("the {name} over the tokens"),
            },
            percent(result.majority_accuracy)
        ),
    ))?;
    ui.out("")?;
    ui.out(table(report))?;
    if !result.sparse.is_empty() {
        ui.out("")?;
        ui.out(sparse_table(report))?;
    }
    if let Some(best) = report.best_probe {
        ui.out("")?;
        ui.out(verdict(best, result.majority_accuracy))?;
    }
    mistakes(report, ui)
}

const FIGURES: [&str; 5] = [">accuracy", ">F1", ">AUROC", ">control", ">selectivity"];

fn table(report: &Report<'_>) -> Table {
    let mut table = Table::new(&[&["hook", "method"], &FIGURES[..], &[""]].concat());
    for (i, probe) in report.result.dense.iter().enumerate() {
        let first = i == 0 || report.result.dense[i - 1].hook != probe.hook;
        let mut cells =
            vec![if first { probe.hook.to_string() } else { String::new() }, probe.method.name().replace('_', " ")];
        cells.extend(figures(&probe.outcome));
        if report.result.best == Some(i) {
            cells[0] = probe.hook.to_string();
            cells = cells.into_iter().map(|cell| paint(GREEN.bold(), cell)).collect();
            cells.push(paint(GREEN, "best"));
        } else {
            cells.push(String::new());
        }
        table.row(cells);
    }
    table
}

fn sparse_table(report: &Report<'_>) -> Table {
    let mut table = Table::new(&[&["dictionary", ">k"], &FIGURES[..], &["features"]].concat());
    for SparseProbe { dictionary, k, outcome, features, .. } in &report.result.sparse {
        let name = report.dictionaries.get(*dictionary).map(|path| path.display().to_string()).unwrap_or_default();
        let mut cells = vec![short(&name).to_owned(), k.to_string()];
        cells.extend(figures(outcome));
        cells.push(chosen(features, report));
        table.row(cells);
    }
    table
}

/// The features of a probe; with more than two classes each with the class it speaks for.
fn chosen(features: &[ChosenFeature], report: &Report<'_>) -> String {
    let name = |f: &ChosenFeature| {
        let sign = if f.weight < 0.0 { "−" } else { "" };
        let number = format!("{sign}{}", f.feature);
        match (report.classes.len(), report.classes.get(f.class)) {
            (2, _) | (_, None) => number,
            (_, Some(class)) => format!("{number} {}", paint(DIM, class.label)),
        }
    };
    let more = if features.len() > 6 { format!(" and {} more", features.len() - 6) } else { String::new() };
    features.iter().take(6).map(name).collect::<Vec<_>>().join("  ") + &more
}

fn figures(outcome: &Outcome) -> [String; 5] {
    let Outcome { test, control_accuracy, selectivity, .. } = outcome;
    let share = |x: Option<f64>| x.map_or("–".into(), percent);
    let number = |x: Option<f64>| x.map_or("–".into(), |x| format!("{x:.3}"));
    let points = selectivity.map_or("–".into(), |s| format!("{:+.1}", 100.0 * s).replace('-', "−"));
    [percent(test.accuracy), number(Some(test.f1)), number(test.auroc), share(*control_accuracy), points]
}

/// What the figures say, in words.
fn verdict(best: &DenseProbe, majority: f64) -> String {
    let Outcome { test, train, control_accuracy, .. } = best.outcome;
    let above = test.accuracy - control_accuracy.unwrap_or(0.0).max(majority);
    let says = match above {
        x if x < 0.02 => "no better than chance: the label cannot be read off linearly here",
        _ if train.accuracy - test.accuracy > 0.15 => {
            "above chance, but it fits its own texts far better than new ones"
        }
        _ => "above chance on texts that it has not seen",
    };
    format!(
        "{} by {}: {says} {}",
        paint(BOLD, best.hook),
        best.method.name().replace('_', " "),
        paint(DIM, format!("({} there, {} on its own texts)", percent(test.accuracy), percent(train.accuracy)))
    )
}

fn mistakes(report: &Report<'_>, ui: &Ui) -> Result<()> {
    let all = &report.mistaken_texts;
    if all.is_empty() {
        return Ok(());
    }
    let said = match all.len() {
        1 => "one held-out text it gets wrong:".to_owned(),
        n if n <= SHOWN_MISTAKES => format!("{n} held-out texts it gets wrong:"),
        n => format!("{n} held-out texts it gets wrong; the {SHOWN_MISTAKES} it is surest of:"),
    };
    ui.out(paint(DIM, said))?;
    let mut table = Table::new(&[">line", "label", "it says", "text"]);
    for MistakenText { line, text, label, predicted, .. } in all.iter().take(SHOWN_MISTAKES) {
        let room = columns().saturating_sub(label.len() + predicted.len() + 16).max(24);
        table.row(vec![line.to_string(), (*label).into(), (*predicted).into(), end_of(text, room)]);
    }
    ui.out(table)
}

/// The last `room` characters of a text on one line: probes read ends.
fn end_of(text: &str, room: usize) -> String {
    let line: Vec<char> = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    match line.len().checked_sub(room) {
        None | Some(0) => line.iter().collect(),
        Some(over) => std::iter::once('…').chain(line[over + 1..].iter().copied()).collect(),
    }
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_show_their_ends() {
        assert_eq!(end_of("abc\ndef", 9), "abc def");
        assert_eq!(end_of("abcdefgh", 5), "…efgh");
    }
}
