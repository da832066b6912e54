//! Evaluations on a terminal: all figures of one dictionary, or several compared in a table and a picture.

use crate::analysis::eval::{CoreMetrics, DEFINITIONS};
use crate::base::Result;
use crate::web::chart::figure;
use crate::web::eval_report::{COMPARED, Measured, best, value};
use crate::web::text::kind;

use super::render::{BOLD, DIM, GREEN, Table, Ui, columns, paint, thousands};

/// Rows of the picture.
const ROWS: usize = 14;

/// Every figure with its definition; beside them those over all positions, where the filter left any out.
pub(super) fn one(measured: &Measured, ui: &Ui) -> Result<()> {
    let mut columns: Vec<(String, &CoreMetrics)> = vec![(measured.name.into(), &measured.evaluation.metrics)];
    if let Some(all) = &measured.evaluation.all_positions {
        columns.push(("all positions".into(), all));
    }
    let mut header = vec!["metric".to_owned()];
    header.extend(columns.iter().map(|(name, _)| format!(">{name}")));
    header.push("what it is".into());
    let mut table = Table::new(&header.iter().map(String::as_str).collect::<Vec<_>>());
    for definition in DEFINITIONS {
        let figures: Vec<Option<f64>> = columns.iter().map(|(_, metrics)| metrics.get(definition.name)).collect();
        if figures.iter().any(Option::is_some) {
            let mut row = vec![definition.name.to_owned()];
            row.extend(figures.iter().map(|figure| value(definition.name, *figure)));
            row.push(paint(DIM, definition.meaning));
            table.row(row);
        }
    }
    ui.out(table)
}

/// A row a dictionary, the best of each column marked, and explained variance against L0.
pub(super) fn several(measured: &[Measured], ui: &Ui) -> Result<()> {
    let known = |name: &&(&str, &str)| measured.iter().any(|m| m.evaluation.metrics.get(name.0).is_some());
    let shown: Vec<&(&str, &str)> = COMPARED.iter().filter(known).collect();
    let best: Vec<Vec<usize>> = shown.iter().map(|(name, _)| best(measured, name)).collect();
    let mut header = vec![String::new(), "dictionary".into(), "architecture".into(), ">features".into()];
    header.extend(shown.iter().map(|(_, short)| format!(">{short}")));
    let mut table = Table::new(&header.iter().map(String::as_str).collect::<Vec<_>>());
    for (i, dictionary) in measured.iter().enumerate() {
        let mut row = vec![
            paint(BOLD, letter(i)),
            dictionary.name.to_owned(),
            kind(dictionary.config).into(),
            thousands(dictionary.config.d_sae as u64),
        ];
        row.extend(shown.iter().zip(&best).map(|((name, _), best)| {
            let text = value(name, dictionary.evaluation.metrics.get(name));
            // The star stays where colours do not.
            if best.contains(&i) { paint(GREEN.bold(), format!("*{text}")) } else { text }
        }));
        table.row(row);
    }
    ui.out(table)?;
    let point = |(i, m): (usize, &Measured)| {
        let metrics = &m.evaluation.metrics;
        (metrics.sparsity.l0, metrics.reconstruction_quality.explained_variance, letter(i))
    };
    let points: Vec<(f64, f64, char)> = measured.iter().enumerate().map(point).collect();
    match scatter(&points, columns().clamp(40, 90)) {
        Some(picture) => ui.out(format!("\n{picture}")),
        None => Ok(()),
    }
}

fn letter(i: usize) -> char {
    ('A'..='Z').chain('a'..='z').nth(i).unwrap_or('·')
}

/// R² over L0 on a logarithmic axis, in `width` columns; nothing where no two points differ.
fn scatter(points: &[(f64, f64, char)], width: usize) -> Option<String> {
    const MARGIN: usize = 8;
    let seen: Vec<(f64, f64, char)> =
        points.iter().map(|p| (p.0.ln(), p.1.max(0.0), p.2)).filter(|p| p.0.is_finite() && p.1.is_finite()).collect();
    let bounds = |of: &dyn Fn(&(f64, f64, char)) -> f64| {
        seen.iter().map(of).fold((f64::INFINITY, f64::NEG_INFINITY), |(lo, hi), v| (lo.min(v), hi.max(v)))
    };
    let ((left, right), (low, high)) = (bounds(&|p| p.0), bounds(&|p| p.1));
    if !(left < right || low < high) {
        return None;
    }
    let cells = width.saturating_sub(MARGIN + 2);
    let place = |v: f64, lo: f64, hi: f64, n: usize| {
        if hi > lo { ((v - lo) / (hi - lo) * (n - 1) as f64).round() as usize } else { n / 2 }
    };
    let mut grid = vec![vec![' '; cells]; ROWS];
    for &(x, y, letter) in &seen {
        // Two dictionaries in one place stand beside each other.
        let (row, mut column) = (ROWS - 1 - place(y, low, high, ROWS), place(x, left, right, cells));
        while grid[row][column] != ' ' && column + 1 < cells {
            column += 1;
        }
        grid[row][column] = letter;
    }
    let mut lines = vec![paint(DIM, "R²  ↖ better")];
    for (i, row) in grid.iter().enumerate() {
        let label = match i {
            0 => format!("{high:.4}"),
            i if i + 1 == ROWS => format!("{low:.4}"),
            _ => String::new(),
        };
        let row: String = row.iter().collect();
        lines.push(paint(DIM, format!("{label:>7} │")) + &paint(BOLD, row.trim_end()));
    }
    let (from, to) = (figure(left.exp()), figure(right.exp()));
    let gap = cells.saturating_sub(from.len() + to.len() + 2);
    lines.push(paint(DIM, format!("{:>8}└{}", "", "─".repeat(cells))));
    lines.push(paint(DIM, format!("{:>9}{from} {:^gap$} {to}", "", "L0 (logarithmic)")));
    Some(lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn better_dictionaries_stand_higher_and_sparser_ones_to_the_left() {
        let text = scatter(&[(32.0, 0.7, 'A'), (64.0, 0.8, 'B'), (32.0, 0.7, 'C')], 60).unwrap();
        let plain = anstream::adapter::strip_str(&text).to_string();
        let lines: Vec<&str> = plain.lines().collect();
        let at = |letter: char| {
            let row = (1..=ROWS).find(|&row| lines[row].contains(letter)).unwrap();
            (row, lines[row].chars().position(|c| c == letter).unwrap())
        };
        assert!(at('B').0 == 1 && at('A').0 == ROWS && at('B').1 > at('A').1, "{plain}");
        assert_eq!(at('C'), (at('A').0, at('A').1 + 1));
        assert!(lines.iter().all(|line| line.chars().count() <= 60), "{plain}");
        assert!(scatter(&[(1.0, 0.5, 'A')], 60).is_none() && scatter(&[], 60).is_none());
    }
}
