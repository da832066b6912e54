//! The only place that prints: results to stdout, everything else to stderr.

use std::fmt::Display;
use std::io::{self, Write};

use anstyle::{AnsiColor, Color, RgbColor, Style};
use unicode_width::UnicodeWidthStr;

use crate::base::{Error, Progress, Result};
pub(crate) use crate::web::text::thousands;

use super::progress::Bar;

/// Emphasised text.
pub(crate) const BOLD: Style = Style::new().bold();
/// Secondary text.
pub(crate) const DIM: Style = Style::new().dimmed();
/// Good news.
pub(crate) const GREEN: Style = Style::new().fg_color(Some(Color::Ansi(AnsiColor::Green)));
/// Bad news.
pub(crate) const RED: Style = Style::new().fg_color(Some(Color::Ansi(AnsiColor::Red)));

/// Where a command's results and messages go.
#[derive(Debug)]
pub struct Ui {
    json: bool,
    /// Results are swallowed.
    mute: bool,
    bar: Bar,
}

impl Ui {
    /// With `json`, tables give way to JSON; with `quiet`, nothing but results and errors is said.
    pub fn new(json: bool, quiet: bool, _verbose: u8) -> Self {
        Self { json, mute: false, bar: Bar::new(quiet) }
    }

    /// For the steps of a larger command: results as text, or none at all where that command's own are JSON.
    pub(crate) fn without_json(&self) -> Self {
        Self { json: false, mute: self.json, bar: Bar::new(self.bar.is_quiet() || self.json) }
    }

    /// Whether results are wanted as JSON.
    pub(crate) fn json(&self) -> bool {
        self.json
    }

    /// The progress bar, with signals caught from now on.
    pub(crate) fn progress(&self) -> &dyn Progress {
        super::progress::catch_signals();
        &self.bar
    }

    /// A line of results.
    pub(crate) fn out(&self, text: impl Display) -> Result<()> {
        if self.mute {
            return Ok(());
        }
        writeln!(anstream::stdout().lock(), "{text}").map_err(Error::io("write to standard output", "-"))
    }

    /// Results as JSON.
    pub(crate) fn out_json(&self, value: &impl serde::Serialize) -> Result<()> {
        let text = serde_json::to_string_pretty(value).map_err(|e| Error::io("write JSON", "-")(e.into()))?;
        self.out(text)
    }

    /// A remark on stderr.
    pub(crate) fn say(&self, text: impl Display) {
        self.bar.line(&text.to_string());
    }

    /// The error that ends the command.
    pub(crate) fn error(&self, error: &Error) {
        self.bar.end();
        to_stderr(&format!("{}: {error}", paint(RED.bold(), "error")));
    }
}

/// `text` in a style; anstream drops the codes where they do not belong.
pub(crate) fn paint(style: Style, text: impl Display) -> String {
    format!("{style}{text}{style:#}")
}

/// `text` on a background whose strength grows with `share` of 0 to 1, as feature activations are shown.
pub(crate) fn shade(text: &str, share: f32) -> String {
    if share <= 0.0 {
        return text.to_owned();
    }
    let share = share.clamp(0.0, 1.0);
    let fade = |from: f32, to: f32| (from + (to - from) * share) as u8;
    let background = RgbColor(fade(60.0, 255.0), fade(50.0, 140.0), fade(30.0, 0.0));
    let foreground = if share > 0.45 { AnsiColor::Black } else { AnsiColor::BrightWhite };
    let style = Style::new().bg_color(Some(background.into())).fg_color(Some(foreground.into()));
    paint(if share > 0.999 { style.bold() } else { style }, text)
}

pub(super) fn to_stderr(text: &str) {
    // Nothing can be done when stderr is gone.
    drop(writeln!(anstream::stderr().lock(), "{text}"));
}

pub(super) fn warn(text: &str) {
    let yellow = Style::new().bold().fg_color(Some(AnsiColor::Yellow.into()));
    to_stderr(&format!("{}: {text}", paint(yellow, "warning")));
}

/// Whether the reader of stdout went away, which is no failure.
pub(super) fn is_broken_pipe(error: &Error) -> bool {
    matches!(error, Error::Io { source, .. } if source.kind() == io::ErrorKind::BrokenPipe)
}

/// Rows of cells under a header, columns as wide as they need to be. Columns named with a leading `>` align right.
#[derive(Debug)]
pub(crate) struct Table {
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(header: &[&str]) -> Self {
        Self { header: header.iter().map(|&h| h.into()).collect(), rows: Vec::new() }
    }

    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }
}

impl Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let titles: Vec<&str> = self.header.iter().map(|h| h.trim_start_matches('>')).collect();
        let widths: Vec<usize> = (0..titles.len())
            .map(|i| {
                let cells = self.rows.iter().filter_map(|row| row.get(i)).map(|cell| visible_width(cell));
                cells.chain([titles[i].width()]).max().unwrap_or(0)
            })
            .collect();
        let line = |f: &mut std::fmt::Formatter<'_>, cells: &[&str], style: Style| -> std::fmt::Result {
            for (i, cell) in cells.iter().enumerate() {
                let pad = " ".repeat(widths[i].saturating_sub(visible_width(cell)));
                let gap = if i == 0 { "" } else { "  " };
                let last = i + 1 == cells.len();
                match self.header[i].starts_with('>') {
                    true => write!(f, "{gap}{pad}{}", paint(style, cell))?,
                    false if last => write!(f, "{gap}{}", paint(style, cell))?,
                    false => write!(f, "{gap}{}{pad}", paint(style, cell))?,
                }
            }
            Ok(())
        };
        line(f, &titles, DIM)?;
        for row in &self.rows {
            writeln!(f)?;
            line(f, &row.iter().map(String::as_str).collect::<Vec<_>>(), Style::new())?;
        }
        Ok(())
    }
}

/// Columns that `text` takes on a terminal, without its colour codes.
pub(crate) fn visible_width(text: &str) -> usize {
    anstream::adapter::strip_str(text).to_string().width()
}

/// A token as a table shows it: quoted, control characters escaped.
pub(crate) fn quoted(piece: &str) -> String {
    let escaped: String = piece
        .chars()
        .flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] })
        .collect();
    format!("“{escaped}”")
}

/// Columns of the terminal that stdout is; 100 when it is none.
pub(crate) fn columns() -> usize {
    terminal_size::terminal_size().map_or(100, |(width, _)| usize::from(width.0))
}

/// Two titled texts beside each other, or one after the other where the terminal is narrow.
pub(crate) fn side_by_side(left: (&str, &str), right: (&str, &str), columns: usize) -> String {
    const GAP: &str = "   ";
    let width = columns.saturating_sub(GAP.len()) / 2;
    if width < 34 {
        return format!("{}\n{}\n\n{}\n{}", paint(DIM, left.0), left.1, paint(DIM, right.0), right.1);
    }
    let (a, b) = (wrap(left.1, width), wrap(right.1, width));
    let mut out = format!("{}{GAP}{}", paint(DIM, format!("{:<width$}", left.0)), paint(DIM, right.0));
    for i in 0..a.len().max(b.len()) {
        let line = |lines: &[String]| lines.get(i).cloned().unwrap_or_default();
        let first = line(&a);
        let pad = " ".repeat(width.saturating_sub(first.width()));
        out.extend(["\n", &first, &pad, GAP, &line(&b)]);
    }
    out
}

/// `text` in lines of at most `width` columns, broken between words where possible.
pub(crate) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for paragraph in text.trim_end().split('\n') {
        let mut line = String::new();
        for word in paragraph.split_inclusive(' ') {
            if !line.is_empty() && line.width() + word.trim_end().width() > width {
                lines.push(std::mem::take(&mut line).trim_end().to_owned());
            }
            for c in word.chars().filter(|c| !c.is_control()) {
                if line.width() >= width {
                    // The space after a word that ends the line.
                    if c == ' ' {
                        continue;
                    }
                    lines.push(std::mem::take(&mut line));
                }
                line.push(c);
            }
        }
        lines.push(line.trim_end().to_owned());
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_align_by_visible_width() {
        let mut table = Table::new(&["name", ">n"]);
        table.row(vec![paint(GREEN, "é"), "10".into()]);
        table.row(vec!["longer".into(), "9".into()]);
        let plain = anstream::adapter::strip_str(&table.to_string()).to_string();
        assert_eq!(plain, "name     n\né       10\nlonger   9");
    }

    #[test]
    fn texts_stand_beside_each_other() {
        let text = side_by_side(("a", "one two three four five six seven eight nine"), ("b", "short"), 80);
        let plain = anstream::adapter::strip_str(&text).to_string();
        let lines: Vec<&str> = plain.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[1].starts_with("one two") && lines[1].ends_with("short"), "{plain}");
        assert_eq!(wrap("abcdef", 4), ["abcd", "ef"]);
        assert_eq!(wrap("ab cd ef", 5), ["ab cd", "ef"]);
    }
}
