//! The page of `lens --html`.

use crate::model::ModelConfig;
use crate::web::markup::Element;
use crate::web::page::{self, Cell, Row};

use super::attribution::{check, heads, heatmaps, name, outside, subject};
use super::{Args, Report, cells};

pub(super) fn page(reports: &[Report], args: &Args, config: &ModelConfig) -> String {
    let facts = [
        format!("{} layers", config.n_layers),
        format!("{} heads", config.n_heads),
        format!("d_model {}", config.d_model),
    ];
    let mut body = vec![page::header("mechinterp lens", &args.model, &facts)];
    for report in reports {
        body.extend(sections(report, args, config));
    }
    body.push(page::footer());
    page::html(&format!("Logit lens of {}", args.model), body)
}

fn sections(report: &Report, args: &Args, config: &ModelConfig) -> Vec<Element> {
    let prompt = report.prompt.clone().unwrap_or_else(|| report.pieces.concat());
    let note = "Every residual stream, read through the final norm and the unembedding as if the model ended there. \
                Point at a cell for its likeliest tokens.";
    let mut sections = vec![page::section(&prompt, note, [cells::heatmap(report, args.show).framed()])];
    let Some(found) = &report.attribution else { return sections };
    let title = format!("{} after position {}: {:.4}", subject(report), found.position, found.logit);
    let note = format!("With the divisors of norms frozen a logit is a sum. {}.", check(found));
    let maps = heatmaps(report, found, config.n_layers, config.n_heads).map(|map| map.framed());
    let outside: Vec<(String, String)> =
        outside(found).map(|part| (name(part.component), format!("{:+.4}", part.value))).collect();
    let mut tables = vec![component_table(
        heads(found)
            .iter()
            .take(args.components)
            .map(|part| Row::Cells(name(part.component), vec![Cell::number(format!("{:+.4}", part.value), false)])),
    )];
    if let Some(features) = &found.features {
        let rows = features.parts.iter().take(args.components.max(50)).map(|part| {
            let cells = [format!("{:.3}", part.activation), format!("{:+.4}", part.value)];
            Row::Cells(part.feature.to_string(), cells.map(|text| Cell::number(text, false)).to_vec())
        });
        let rest = [("bias", features.bias), ("error", features.error), ("elsewhere", features.elsewhere)];
        let rest = rest.map(|(label, value)| {
            Row::Cells(label.into(), vec![Cell::text(""), Cell::number(format!("{value:+.4}"), false)])
        });
        let head = ["feature", "activation", "adds"].map(Cell::text);
        let point = features.point.to_string();
        let head = [Cell::text(format!("{} at {point}", head[0].text)), head[1].clone(), head[2].clone()];
        tables.push(page::table(&head, &rows.chain(rest).collect::<Vec<_>>()));
    }
    let columns = Element::of("div", "columns").children(tables);
    sections.push(page::section(&title, &note, maps.into_iter().chain([page::pairs(&outside), columns])));
    sections
}

fn component_table(rows: impl Iterator<Item = Row>) -> Element {
    page::table(&[Cell::text("head"), Cell::text("adds")], &rows.collect::<Vec<_>>())
}
