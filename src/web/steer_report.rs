//! What each strength of a steering sweep does: a picture, a table, and all texts.

use crate::analysis::steer::Measures;

use super::chart::{Axis, LineChart, Series};
use super::markup::Element;
use super::page::{self, Cell, Row};

/// What the measures are, in a few words.
pub const LEGEND: &str = "Feature or vector: its mean activation, or the mean projection on it, on the written tokens as \
    the unsteered model reads them. KL: distance from the unsteered model's next-token probabilities, in nats a token, \
    on the unsteered text. Perplexity: of the written text under the unsteered model. Repetition: share of its \
    three-token runs that occurred before.";

/// Width and height of one chart of the picture.
const TILE: (f64, f64) = (560.0, 300.0);

/// A sweep.
#[derive(Debug, Clone, PartialEq)]
pub struct SteerReport {
    /// What was done with each strength: "clamp".
    pub operation: String,
    /// What was turned: "feature 12".
    pub concepts: Vec<String>,
    /// What it was done with, in short.
    pub facts: Vec<String>,
    /// The unsteered model first, then every strength.
    pub steps: Vec<Step>,
    /// The texts.
    pub prompts: Vec<PromptTexts>,
}

/// One strength.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// For tables.
    pub label: String,
    /// The strength, if there is one.
    pub value: Option<f64>,
    /// The mean over prompts.
    pub measures: Measures,
}

/// The texts after one prompt, with their measures, in the order of the steps.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptTexts {
    /// The prompt.
    pub prompt: String,
    /// Text and measures.
    pub texts: Vec<(String, Measures)>,
}

/// The page.
pub fn page(report: &SteerReport) -> String {
    let title = format!("Steering: {}", report.concepts.join(", "));
    let mut body = vec![page::header("mechinterp steer", &title, &report.facts)];
    if strengths(report).next().is_some() {
        let note = "The unsteered model is the flat line.";
        body.push(page::section("What each strength does", note, [page::charts(charts(report))]));
    }
    body.push(page::section("Figures", LEGEND, [table(report)]));
    body.extend(report.prompts.iter().map(|prompt| texts(report, prompt)));
    body.push(page::footer());
    page::html(&title, body)
}

/// What was written after one prompt, side by side as the window allows.
fn texts(report: &SteerReport, prompt: &PromptTexts) -> Element {
    let text = |(step, (text, measured)): (&Step, &(String, Measures))| {
        let label =
            if step.value.is_some() { format!("{} {}", report.operation, step.label) } else { step.label.clone() };
        let figures = figures(measured, report.concepts.len());
        let figures: Vec<String> =
            measures(report).zip(figures).map(|(name, value)| format!("{name} {value}")).collect();
        Element::new("div")
            .child(Element::new("div").child(Element::new("strong").text(label)))
            .child(Element::of("div", "note").text(figures.join(" · ")))
            .child(page::code(text.trim()))
    };
    let texts = Element::of("div", "columns").children(report.steps.iter().zip(&prompt.texts).map(text));
    page::section(&format!("“{}”", prompt.prompt), "", [texts])
}

/// The charts as one picture.
pub fn picture(report: &SteerReport) -> Element {
    let charts = charts(report);
    let (columns, rows) = (2usize, charts.len().div_ceil(2));
    let (width, height) = (TILE.0 * columns as f64, TILE.1 * rows as f64);
    let root = Element::of("svg", "chart")
        .attr("xmlns", "http://www.w3.org/2000/svg")
        .attr("viewBox", format_args!("0 0 {width} {height}"))
        .attr("role", "img")
        .attr("aria-label", format_args!("What steering {} does at each strength", report.concepts.join(", ")));
    root.children(charts.into_iter().enumerate().map(|(i, chart)| {
        let (x, y) = ((i % columns) as f64 * TILE.0, (i / columns) as f64 * TILE.1);
        chart.at([("x", x), ("y", y), ("width", TILE.0), ("height", TILE.1)])
    }))
}

/// Figures as tables show them: concepts, KL, perplexity, repetition.
pub fn figures(measures: &Measures, concepts: usize) -> Vec<String> {
    let shown = |value: Option<f64>, digits: usize| value.map_or("–".into(), |v| format!("{v:.digits$}"));
    let mut cells: Vec<String> = (0..concepts).map(|i| shown(measures.concepts.get(i).copied().flatten(), 2)).collect();
    cells.push(shown(measures.kl, 3));
    cells.push(shown(measures.perplexity, 1));
    cells.push(measures.repetition.map_or("–".into(), |share| format!("{:.0} %", 100.0 * share)));
    cells
}

fn measures(report: &SteerReport) -> impl Iterator<Item = &str> {
    report.concepts.iter().map(String::as_str).chain(["KL", "perplexity", "repetition"])
}

fn table(report: &SteerReport) -> Element {
    let mut head = vec![Cell::text(&report.operation)];
    head.extend(measures(report).map(|name| Cell::number(name, false)));
    let row = |step: &Step| {
        let figures = figures(&step.measures, report.concepts.len());
        Row::Cells(step.label.clone(), figures.into_iter().map(|cell| Cell::number(cell, false)).collect())
    };
    page::table(&head, &report.steps.iter().map(row).collect::<Vec<_>>())
}

/// Strengths with what they do, ascending.
fn strengths(report: &SteerReport) -> impl Iterator<Item = (f64, &Measures)> {
    let mut known: Vec<(f64, &Measures)> =
        report.steps.iter().filter_map(|step| Some((step.value?, &step.measures))).collect();
    known.sort_by(|a, b| a.0.total_cmp(&b.0));
    known.into_iter()
}

fn charts(report: &SteerReport) -> Vec<Element> {
    let unsteered = report.steps.iter().find(|step| step.value.is_none()).map(|step| &step.measures);
    let chart = |title: &str, y: Axis, names: &[String], value: &dyn Fn(&Measures, usize) -> Option<f64>| {
        let mut series = Vec::new();
        for (i, name) in names.iter().enumerate() {
            let of = |m: &Measures| value(m, i).unwrap_or(f64::NAN);
            series.push(Series::dotted(name, strengths(report).map(|(x, m)| (x, of(m))).collect()));
            if let Some(level) = unsteered.map(of).filter(|_| i == 0) {
                let ends = strengths(report).next().into_iter().chain(strengths(report).last());
                series.push(Series::new("unsteered", ends.map(|(x, _)| (x, level)).collect()));
            }
        }
        LineChart { title: title.into(), x: Axis::linear(&report.operation), y, series }.svg()
    };
    let steered = ["steered".to_owned()];
    let known = |value: fn(&Measures) -> Option<f64>| report.steps.iter().filter_map(move |s| value(&s.measures));
    vec![
        chart(
            "Concept in the text",
            Axis::linear("mean on the written tokens, unsteered model").including(0.0),
            &report.concepts,
            &|m, i| m.concepts.get(i).copied().flatten(),
        ),
        chart(
            "Distance from the unsteered model",
            Axis::linear("KL, nats a token").including(0.0),
            &steered,
            &|m, _| m.kl,
        ),
        chart("Perplexity", Axis::by_range("under the unsteered model", known(|m| m.perplexity)), &steered, &|m, _| {
            m.perplexity
        }),
        chart(
            "Repetition",
            Axis::linear("share of three-token runs seen before").including(0.0).within(0.0, 1.0),
            &steered,
            &|m, _| m.repetition,
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::web::markup::tests::well_formed;

    fn report(strengths: &[f64]) -> SteerReport {
        let measures = |x: f64| Measures {
            concepts: vec![Some(x), None],
            kl: Some(x / 3.0),
            perplexity: Some(2.0 + x * x),
            repetition: Some(0.25),
        };
        let step = |value: Option<f64>| Step {
            label: value.map_or("unsteered".into(), |v| v.to_string()),
            value,
            measures: measures(value.unwrap_or(0.5)),
        };
        let steps: Vec<Step> = std::iter::once(None).chain(strengths.iter().copied().map(Some)).map(step).collect();
        let texts = steps.iter().map(|s| (format!("<b>{}</b>", s.label), s.measures.clone())).collect();
        SteerReport {
            operation: "clamp".into(),
            concepts: vec!["feature 1".into(), "vector <x>".into()],
            facts: vec!["model m".into()],
            steps,
            prompts: vec![PromptTexts { prompt: "Say & tell".into(), texts }],
        }
    }

    #[test]
    fn a_page_has_a_chart_for_each_measure_and_every_text() {
        let text = page(&report(&[0.0, 8.0, 2.0]));
        let names = well_formed(text.strip_prefix("<!doctype html>").unwrap());
        assert_eq!(names.iter().filter(|name| *name == "figure").count(), 4);
        for part in ["Say &amp; tell", "&lt;b&gt;8&lt;/b&gt;", "vector &lt;x&gt;", "25 %", "66.0", "–"] {
            assert!(text.contains(part), "{part}");
        }
        assert!(!text.contains("NaN"));
        let without = page(&report(&[]));
        assert!(!without.contains("<figure"), "an operation without strengths has nothing to draw");
    }

    #[test]
    fn the_picture_holds_all_charts_side_by_side() {
        let text = crate::web::chart::standalone(picture(&report(&[0.0, 2.0, 8.0])));
        well_formed(text.strip_prefix("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n").unwrap());
        for title in ["Concept in the text", "Distance from the unsteered model", "Perplexity", "Repetition"] {
            assert!(text.contains(title), "{title}");
        }
        assert!(text.contains("x=\"560\" y=\"300\" width=\"560\""), "{text}");
    }
}
