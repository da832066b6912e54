//! The page of `lens --html`.

use crate::analysis::lens::Part;
use crate::model::ModelConfig;
use crate::web::markup::Element;
use crate::web::page::{self, Cell, Row};
use crate::web::text::short;

use super::attribution::{check, heads, heatmaps, name, outside, subject};
use super::{Args, Report, cells};

pub(super) fn page(reports: &[Report], args: &Args, config: &ModelConfig) -> String {
    let facts = [
        format!("{} layers", config.n_layers),
        format!("{} heads", config.n_heads),
        format!("d_model {}", config.d_model),
    ];
    let mut body = vec![page::header("mechinterp lens", short(&args.model), &facts)];
    for report in reports {
        body.extend(sections(report, args, config));
    }
    body.push(page::footer());
    page::html(&format!("Logit lens of {}", short(&args.model)), body)
}

fn sections(report: &Report, args: &Args, config: &ModelConfig) -> Vec<Element> {
    let prompt = report.prompt.clone().unwrap_or_else(|| report.pieces.concat());
    let note = "Every residual stream, read through the final norm and the unembedding as if the model ended there. \
                Point at a cell for its likeliest tokens.";
    let mut sections = vec![page::section(&prompt, note, [cells::heatmap(report, args.show).framed()])];
    let Some(found) = &report.attribution else { return sections };
    let title = format!("{} after position {}: {:.4}", subject(report), found.position, found.logit);
    let note = format!("With the divisors of norms frozen a logit is a sum: {}.", check(found));
    let maps = heatmaps(report, found, config.n_layers, config.n_heads).map(|map| map.framed());
    let maps = Element::of("div", "charts").children(maps);
    let row = |part: &Part| Row::Cells(name(part.component), vec![Cell::number(format!("{:+.4}", part.value), false)]);
    let mut rows: Vec<Row> = vec![Row::Group("outside the blocks".into())];
    rows.extend(outside(found).map(row));
    rows.push(Row::Group("heads that contribute most".into()));
    rows.extend(heads(found).iter().take(args.components).map(row));
    let mut tables = vec![page::table(&[Cell::text("part"), Cell::number("adds", false)], &rows)];
    if let Some(features) = &found.features {
        let rows = features.parts.iter().take(args.components.max(50)).map(|part| {
            let cells = [format!("{:.3}", part.activation), format!("{:+.4}", part.value)];
            Row::Cells(part.feature.to_string(), cells.map(|text| Cell::number(text, false)).to_vec())
        });
        let rest = [("bias", features.bias), ("error", features.error), ("elsewhere", features.elsewhere)];
        let rest = rest.map(|(label, value)| {
            Row::Cells(label.into(), vec![Cell::text(""), Cell::number(format!("{value:+.4}"), false)])
        });
        let head = [
            Cell::text(format!("feature at {}", features.point)),
            Cell::number("activation", false),
            Cell::number("adds", false),
        ];
        tables.push(page::table(&head, &rows.chain(rest).collect::<Vec<_>>()));
    }
    let columns = Element::of("div", "columns").children(tables);
    sections.push(page::section(&title, &note, [maps, columns]));
    sections
}
