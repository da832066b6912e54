//! The logit lens as a heatmap.

use crate::model::{HookPoint, Site};
use crate::web::heatmap::{self, Heatmap, Scale};

use super::super::heatmap::one_line;
use super::super::render::quoted;
use super::{Cell, Chance, Report, Show};

/// What colours a cell.
type Value = dyn Fn(&Cell) -> Option<f64>;

/// Cells by layer and position.
pub(super) fn heatmap(report: &Report, show: Show) -> Heatmap {
    let all = || report.layers.iter().flat_map(|layer| &layer.cells);
    let target = report.target.as_ref().map(|token| quoted(&token.token)).unwrap_or_default();
    let of_target = |of: fn(&Chance) -> f64| move |cell: &Cell| cell.target.as_ref().map(of);
    let value: Box<Value> = match (show, &report.target) {
        (Show::Token, None) => Box::new(|cell| cell.top.first().map(|chance| chance.probability)),
        (Show::Token | Show::Probability, _) => Box::new(of_target(|chance| chance.probability)),
        // A rank of 1 is strong, and each doubling of it weaker.
        (Show::Rank, _) => Box::new(of_target(|chance| -(chance.rank as f64).log2())),
        (Show::Logit, _) => Box::new(of_target(|chance| f64::from(chance.logit))),
        (Show::Entropy, _) => Box::new(|cell| Some(cell.entropy)),
        (Show::Kl, _) => Box::new(|cell| Some(cell.kl)),
    };
    let largest = all().filter_map(&value).fold(f64::MIN, f64::max);
    let smallest = all().filter_map(&value).fold(f64::MAX, f64::min);
    let scale = match show {
        Show::Token | Show::Probability => Scale::Sequential { low: 0.0, high: 1.0 },
        Show::Rank => Scale::Sequential { low: smallest.min(-1.0), high: 0.0 },
        Show::Logit => Scale::around_zero(all().filter_map(&value)),
        Show::Entropy | Show::Kl => Scale::Sequential { low: 0.0, high: largest.max(1e-9) },
    };
    let meaning = match (show, report.target.is_some()) {
        (Show::Token, false) => "the likeliest token; colour: its probability".to_owned(),
        (Show::Token, true) => format!("the likeliest token; colour: probability of {target}"),
        (Show::Probability, _) => format!("probability of {target} in %"),
        (Show::Rank, _) => format!("rank of {target}, 1 is the likeliest; colour: −log₂ of it"),
        (Show::Logit, _) => format!("logit of {target}"),
        (Show::Entropy, _) => "entropy in nats".to_owned(),
        (Show::Kl, _) => "KL divergence from the last layer in nats".to_owned(),
    };
    let cells = report.layers.iter().map(|layer| {
        layer.cells.iter().zip(&report.positions).map(|(cell, position)| heatmap::Cell {
            value: value(cell),
            text: text(cell, show),
            details: details(layer.point, *position, report, cell),
        })
    });
    Heatmap {
        title: "logit lens".into(),
        meaning,
        x: "position".into(),
        y: "layer".into(),
        columns: columns(&report.positions, &report.pieces),
        rows: report.layers.iter().map(|layer| name(layer.point)).collect(),
        cells: cells.map(Iterator::collect).collect(),
        scale,
    }
}

/// Positions with their tokens.
pub(in crate::cli) fn columns(positions: &[usize], pieces: &[String]) -> Vec<(String, String)> {
    let piece = |&p: &usize| pieces.get(p).map(|piece| one_line(piece)).unwrap_or_default();
    positions.iter().map(|p| (p.to_string(), piece(p))).collect()
}

/// A residual stream by its place: what enters the first block, what leaves a block.
fn name(point: HookPoint) -> String {
    match (point.layer, point.site) {
        (Some(0), Site::ResidPre) => "embed".into(),
        (Some(layer), Site::ResidMid) => format!("{layer} mid"),
        (Some(layer), _) => layer.to_string(),
        (None, site) => site.name().into(),
    }
}

fn text(cell: &Cell, show: Show) -> String {
    let target = |of: &dyn Fn(&Chance) -> String| cell.target.as_ref().map(of).unwrap_or_default();
    match show {
        Show::Token => cell.top.first().map(|chance| one_line(&chance.token)).unwrap_or_default(),
        Show::Probability => target(&|chance| format!("{:.1}", chance.probability * 100.0)),
        Show::Rank => target(&|chance| chance.rank.to_string()),
        Show::Logit => target(&|chance| format!("{:.2}", chance.logit)),
        Show::Entropy => format!("{:.2}", cell.entropy),
        Show::Kl => format!("{:.2}", cell.kl),
    }
}

fn details(point: HookPoint, position: usize, report: &Report, cell: &Cell) -> String {
    let token = report.pieces.get(position).map(|piece| quoted(piece)).unwrap_or_default();
    let mut lines = vec![format!("{point}, position {position} {token}")];
    let line = |chance: &Chance| {
        format!(
            "{}. {}  {:.2} %  logit {:.3}",
            chance.rank,
            quoted(&chance.token),
            chance.probability * 100.0,
            chance.logit
        )
    };
    lines.extend(cell.top.iter().map(line));
    let missing = |chance: &&Chance| !cell.top.iter().any(|top| top.id == chance.id);
    lines.extend(cell.target.iter().chain(&cell.against).filter(missing).map(line));
    lines.push(format!("entropy {:.3}, KL from the last layer {:.3} nats", cell.entropy, cell.kl));
    lines.join("\n")
}
