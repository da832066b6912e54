//! Heatmaps on a terminal: coloured cells as wide as the window allows, in blocks of columns where it is narrow.

use anstyle::{AnsiColor, RgbColor, Style};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use crate::base::Result;
use crate::web::heatmap::{Cell, Heatmap};

use super::render::{BOLD, DIM, Ui, paint, shade};

/// Narrowest and widest cell in columns.
const CELL: (usize, usize) = (5, 15);
/// Blocks that are shown, the last ones.
const BLOCKS: usize = 3;

/// Shows `map` in `columns` columns.
pub(super) fn show(map: &Heatmap, columns: usize, ui: &Ui) -> Result<()> {
    ui.out(format!("{}  {}", paint(BOLD, &map.title), paint(DIM, &map.meaning)))?;
    let label = map.rows.iter().map(|row| row.width()).chain([map.y.width()]).max().unwrap_or(0);
    let width = cell_width(map, columns.saturating_sub(label + 1));
    let together = (columns.saturating_sub(label + 1) / (width + 1)).max(1);
    let starts: Vec<usize> = (0..map.columns.len()).step_by(together).collect();
    let shown = &starts[starts.len().saturating_sub(BLOCKS)..];
    if let Some(first) = shown.first().filter(|first| **first > 0) {
        let remark = format!("columns 0 to {} are not shown: widen the terminal, or see --html and --json", first - 1);
        ui.out(paint(DIM, remark))?;
    }
    for (i, &start) in shown.iter().enumerate() {
        if i > 0 {
            ui.out("")?;
        }
        block(map, start..(start + together).min(map.columns.len()), (label, width), ui)?;
    }
    Ok(())
}

/// As wide as the widest text needs, within bounds and so that, if possible, all columns stand in one block.
fn cell_width(map: &Heatmap, room: usize) -> usize {
    let texts = map.cells.iter().flatten().map(|cell| cell.text.as_str());
    let words = map.columns.iter().map(|(_, word)| word.as_str());
    let needed = texts.chain(words).map(UnicodeWidthStr::width).max().unwrap_or(0);
    let fair = (room / map.columns.len().max(1)).saturating_sub(1);
    needed.clamp(CELL.0, CELL.1).min(fair.max(7)).max(CELL.0)
}

fn block(map: &Heatmap, range: std::ops::Range<usize>, (label, width): (usize, usize), ui: &Ui) -> Result<()> {
    let names = &map.columns[range.clone()];
    let head = |of: &dyn Fn(&(String, String)) -> String| -> String {
        names.iter().flat_map(|name| [" ".to_owned(), centred(&of(name), width)]).collect()
    };
    ui.out(paint(DIM, format!("{:>label$}{}", map.y, head(&|(name, _)| name.clone()))))?;
    if names.iter().any(|(_, word)| !word.is_empty()) {
        ui.out(format!("{:label$}{}", "", head(&|(_, word)| word.clone())))?;
    }
    for (name, cells) in map.rows.iter().zip(&map.cells) {
        let cells = cells.iter().skip(range.start).take(range.len());
        let line: String = cells.flat_map(|cell| [" ".to_owned(), tinted(map, cell, width)]).collect();
        let pad = " ".repeat(label.saturating_sub(name.width()));
        ui.out(format!("{pad}{}{line}", paint(DIM, name)))?;
    }
    Ok(())
}

fn tinted(map: &Heatmap, cell: &Cell, width: usize) -> String {
    let text = centred(&cell.text, width);
    let Some(value) = cell.value else { return paint(DIM, centred("·", width)) };
    let share = map.scale.share(value) as f32;
    if share >= 0.0 { shade(&text, share) } else { cold(&text, -share) }
}

/// `text` on blue, the counterpart of [`shade`].
fn cold(text: &str, share: f32) -> String {
    let fade = |from: f32, to: f32| (from + (to - from) * share) as u8;
    let background = RgbColor(fade(32.0, 90.0), fade(42.0, 160.0), fade(64.0, 255.0));
    let foreground = if share > 0.55 { AnsiColor::Black } else { AnsiColor::BrightWhite };
    paint(Style::new().bg_color(Some(background.into())).fg_color(Some(foreground.into())), text)
}

/// `text` on one line in exactly `width` columns.
pub(super) fn centred(text: &str, width: usize) -> String {
    let text = fitted(text, width);
    let spare = width.saturating_sub(text.width());
    format!("{}{text}{}", " ".repeat(spare / 2), " ".repeat(spare - spare / 2))
}

/// `text` without line breaks, cut to `width` columns.
pub(super) fn fitted(text: &str, width: usize) -> String {
    let line = one_line(text);
    if line.width() <= width {
        return line;
    }
    let mut cut = String::new();
    for c in line.chars() {
        if cut.width() + c.width().unwrap_or(0) + 1 > width {
            break;
        }
        cut.push(c);
    }
    cut + "…"
}

/// A token on one line: its leading space dropped; line breaks, and spaces that are all of it, as signs.
pub(super) fn one_line(token: &str) -> String {
    let shown = token.strip_prefix(' ').filter(|rest| !rest.is_empty()).unwrap_or(token);
    let shown = shown.replace('\n', "↵").replace('\t', "⇥");
    let blank = !shown.is_empty() && shown.chars().all(char::is_whitespace);
    shown.chars().filter(|c| !c.is_control()).map(|c| if blank { '␣' } else { c }).collect()
}

/// A share of one as a bar of up to `width` columns, from the right where it is negative.
pub(super) fn bar(share: f64, width: usize) -> String {
    let eighths = (share.abs().min(1.0) * (width * 8) as f64).round() as usize;
    let (full, rest) = (eighths / 8, eighths % 8);
    let tip = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"][rest];
    format!("{}{tip}", "█".repeat(full))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::web::heatmap::Scale;

    #[test]
    fn cells_are_exactly_as_wide_as_they_should_be() {
        for text in ["", "a", " Paris", "a rather long token", "日本語のトークン", "a\nb"] {
            for width in [5, 6, 15] {
                assert_eq!(centred(text, width).width(), width, "{text:?} in {width}");
            }
        }
        assert_eq!(fitted("abcdefgh", 5), "abcd…");
        assert_eq!((one_line(" x\n"), one_line(" ")), ("x↵".into(), "␣".into()));
    }

    #[test]
    fn narrow_terminals_get_blocks_and_wide_ones_all_columns() {
        let map = |n: usize| Heatmap {
            title: String::new(),
            meaning: String::new(),
            x: String::new(),
            y: "layer".into(),
            columns: (0..n).map(|i| (i.to_string(), "tokens".into())).collect(),
            rows: vec!["0".into()],
            cells: vec![vec![Cell::default(); n]],
            scale: Scale::Diverging { limit: 1.0 },
        };
        assert_eq!(cell_width(&map(4), 200), 6);
        assert_eq!(cell_width(&map(40), 100), 6, "never narrower than a short word");
        assert_eq!((bar(0.5, 4), bar(-0.03125, 4), bar(2.0, 3)), ("██".into(), "▏".into(), "███".into()));
    }
}
