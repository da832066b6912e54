//! Several runs beside each other.

use super::{TrainReport, curves};
use crate::web::chart::{Axis, Group, Point, Scatter};
use crate::web::page;
use crate::web::text::kind;

/// A page that compares dictionaries: what each reaches, and the curves over each other.
pub fn compare(reports: &[TrainReport]) -> String {
    let mut groups: Vec<Group> = Vec::new();
    for report in reports {
        let dead = report.dead().map_or(String::new(), |n| format!(", {n} dead"));
        let point = Point {
            x: report.l0().unwrap_or(f64::NAN),
            y: report.explained_variance().unwrap_or(f64::NAN),
            label: report.name.clone(),
            details: report.facts().join(", ") + &dead,
        };
        let name = kind(&report.config);
        match groups.iter_mut().find(|group| group.name == name) {
            Some(group) => group.points.push(point),
            None => groups.push(Group { name: name.into(), points: vec![point] }),
        }
    }
    let l0 = Axis::by_range("L0, active features a row", groups.iter().flat_map(|g| &g.points).map(|p| p.x));
    let picture = Scatter {
        title: "Explained variance against sparsity".into(),
        x: l0,
        y: Axis::linear("R²").within(0.0, 1.0),
        groups,
        hint: Some("↖ better".into()),
        wide: true,
    };
    let runs: Vec<(&str, &curves::Curves)> = reports.iter().map(|r| (r.name.as_str(), &r.curves)).collect();
    let title = format!("{} dictionaries", reports.len());
    let mut hooks: Vec<String> = reports.iter().map(TrainReport::title).collect();
    hooks.sort();
    hooks.dedup();
    let body = [
        page::header("Sparse dictionaries", &title, &hooks),
        page::wide(picture.svg()),
        page::section("Training", "Over the tokens seen.", [page::charts(curves::overlaid(&runs))]),
        page::footer(),
    ];
    page::html(&title, body)
}
