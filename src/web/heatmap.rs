//! Heatmaps: a word or figure in each cell, on a ground as strong as its value. As SVG with everything about a cell
//! under the pointer, alone or several on one page; the command line draws the same data on a terminal.

use super::chart::{self, figure};
use super::markup::Element;
use super::page;

const STYLE: &str = include_str!("heatmap.css");
/// Width of a character of a cell, on the generous side.
const CHARACTER: f64 = 6.6;
const ROW: f64 = 22.0;
const MARGIN: f64 = 14.0;

/// One cell.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Cell {
    /// What colours it; none where there is nothing.
    pub value: Option<f64>,
    /// What stands in it.
    pub text: String,
    /// What is shown under the pointer.
    pub details: String,
}

/// How values become colour.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scale {
    /// From no colour at `low` to full colour at `high`.
    Sequential {
        /// No colour.
        low: f64,
        /// Full colour.
        high: f64,
    },
    /// One colour for positive values, another for negative ones, both full at `limit`.
    Diverging {
        /// Full colour.
        limit: f64,
    },
}

impl Scale {
    /// Diverging, to the largest magnitude of `values`.
    pub fn around_zero(values: impl IntoIterator<Item = f64>) -> Self {
        let limit = values.into_iter().filter(|v| v.is_finite()).fold(0f64, |m, v| m.max(v.abs()));
        Self::Diverging { limit: if limit > 0.0 { limit } else { 1.0 } }
    }

    /// How strong the colour of `value` is: 0 to 1, or −1 to 1 on a diverging scale.
    pub fn share(self, value: f64) -> f64 {
        let share = match self {
            Self::Sequential { low, high } => ((value - low) / (high - low)).clamp(0.0, 1.0),
            Self::Diverging { limit } => (value / limit).clamp(-1.0, 1.0),
        };
        if share.is_finite() { share } else { 0.0 }
    }

    fn ends(self) -> (f64, f64) {
        match self {
            Self::Sequential { low, high } => (low, high),
            Self::Diverging { limit } => (-limit, limit),
        }
    }
}

/// Cells by row and column.
#[derive(Debug, Clone, PartialEq)]
pub struct Heatmap {
    /// What it shows.
    pub title: String,
    /// What the colour means.
    pub meaning: String,
    /// What columns are.
    pub x: String,
    /// What rows are.
    pub y: String,
    /// Number or name of each column, and a word where it has one, such as its token.
    pub columns: Vec<(String, String)>,
    /// Name of each row.
    pub rows: Vec<String>,
    /// Parallel to rows and columns.
    pub cells: Vec<Vec<Cell>>,
    /// How values become colour.
    pub scale: Scale,
}

/// Sizes of a drawing.
struct Layout {
    left: f64,
    top: f64,
    cell: f64,
    width: f64,
    height: f64,
    /// Whether column names stand slanted, because they are wider than a cell.
    slanted: bool,
}

impl Heatmap {
    /// The picture at its natural size.
    pub fn svg(&self) -> Element {
        let layout = self.layout();
        let mut root = Element::of("svg", "chart heat")
            .attr("xmlns", "http://www.w3.org/2000/svg")
            .attr("viewBox", format_args!("0 0 {:.0} {:.0}", layout.width, layout.height))
            .at([("width", layout.width), ("height", layout.height)])
            .attr("role", "img")
            .attr("aria-label", format_args!("{}. {}", self.title, self.meaning))
            .child(Element::style(&[STYLE]))
            .child(Element::of("rect", "bg").at([("width", layout.width), ("height", layout.height)]))
            .child(Element::of("text", "title").at([("x", MARGIN), ("y", 22.0)]).text(&self.title));
        root.push(Element::of("text", "label").at([("x", MARGIN), ("y", 40.0)]).text(&self.meaning));
        self.legend(&mut root);
        self.names(&layout, &mut root);
        for (i, row) in self.cells.iter().enumerate() {
            for (j, cell) in row.iter().enumerate() {
                let (x, y) = (layout.left + j as f64 * layout.cell, layout.top + i as f64 * ROW);
                root.push(self.cell(cell, x, y, layout.cell));
            }
        }
        root
    }

    fn layout(&self) -> Layout {
        let widest = |texts: &mut dyn Iterator<Item = &String>| texts.map(|t| width(t)).fold(0.0, f64::max);
        let cell = (widest(&mut self.cells.iter().flatten().map(|cell| &cell.text)) + 8.0).clamp(38.0, 104.0);
        let words = widest(&mut self.columns.iter().map(|(_, word)| word));
        let slanted = words + 4.0 > cell;
        let left = MARGIN + widest(&mut self.rows.iter()).max(width(&self.y)) + 10.0;
        let head = if slanted { (words * 0.62).min(110.0) + 26.0 } else { 34.0 };
        let top = 72.0 + head;
        let body = self.columns.len() as f64 * cell;
        let slant = if slanted { (words * 0.75).min(130.0) } else { 0.0 };
        let titles = width(&self.title) * 1.35;
        let width = (left + body + slant).max(titles.max(width(&self.meaning))).max(320.0) + MARGIN;
        Layout { left, top, cell, width, height: top + self.rows.len() as f64 * ROW + 14.0, slanted }
    }

    /// Colours with their values, under the title.
    fn legend(&self, root: &mut Element) {
        let (low, high) = self.scale.ends();
        let steps = 9;
        let label = figure(low);
        let start = MARGIN + width(&label) + 6.0;
        root.push(Element::of("text", "tick").at([("x", MARGIN), ("y", 60.0)]).text(&label));
        for i in 0..steps {
            let value = low + (high - low) * f64::from(i) / f64::from(steps - 1);
            let place = [("x", start + f64::from(i) * 14.0), ("y", 51.0), ("width", 14.0), ("height", 10.0)];
            root.push(Element::of("rect", "ground").at(place));
            root.push(self.ground(Some(value)).at(place));
        }
        let end = start + f64::from(steps) * 14.0 + 6.0;
        root.push(Element::of("text", "tick").at([("x", end), ("y", 60.0)]).text(figure(high)));
    }

    /// Names of rows and columns.
    fn names(&self, layout: &Layout, root: &mut Element) {
        let bottom = layout.top - 8.0;
        root.push(Element::of("text", "count end").at([("x", layout.left - 8.0), ("y", bottom)]).text(&self.y));
        for (j, (name, word)) in self.columns.iter().enumerate() {
            let x = layout.left + (j as f64 + 0.5) * layout.cell;
            if word.is_empty() {
                root.push(Element::of("text", "column middle").at([("x", x), ("y", bottom)]).text(name));
                continue;
            }
            root.push(Element::of("text", "count middle").at([("x", x), ("y", bottom)]).text(name));
            let at = if layout.slanted {
                let turn = format_args!("translate({:.1} {:.1}) rotate(-40)", x - 2.0, bottom - 14.0).to_string();
                Element::of("text", "column").attr("transform", turn)
            } else {
                Element::of("text", "column middle").at([("x", x), ("y", bottom - 14.0)])
            };
            root.push(at.text(shortened(word, 24)));
        }
        for (i, name) in self.rows.iter().enumerate() {
            let y = layout.top + (i as f64 + 0.5) * ROW + 4.0;
            root.push(Element::of("text", "row").at([("x", layout.left - 8.0), ("y", y)]).text(name));
        }
    }

    fn cell(&self, cell: &Cell, x: f64, y: f64, wide: f64) -> Element {
        let place = [("x", x + 0.5), ("y", y + 0.5), ("width", wide - 1.0), ("height", ROW - 1.0)];
        let strong = cell.value.is_some_and(|value| self.scale.share(value).abs() > 0.55);
        let text = Element::new("text").at([("x", x + wide / 2.0), ("y", y + ROW / 2.0 + 4.0)]);
        let text = if strong { text.attr("class", "on") } else { text };
        let room = ((wide - 6.0) / CHARACTER) as usize;
        let mut group = Element::of("g", "cell");
        if cell.value.is_some() {
            group.push(Element::of("rect", "ground").at(place));
        }
        group = group.child(self.ground(cell.value).at(place)).child(text.text(shortened(&cell.text, room)));
        if cell.details.is_empty() { group } else { group.child(Element::new("title").text(&cell.details)) }
    }

    fn ground(&self, value: Option<f64>) -> Element {
        let Some(value) = value else { return Element::of("rect", "empty") };
        let share = self.scale.share(value);
        let class = if share < 0.0 { "cold" } else { "hot" };
        Element::of("rect", class).attr("fill-opacity", format_args!("{:.3}", share.abs()))
    }

    /// The picture in a frame that scrolls where the window is narrower.
    pub fn framed(&self) -> Element {
        page::wide(Element::new("div").attr("style", "overflow-x:auto").child(self.svg()))
    }

    /// The picture as the contents of an `.svg` file.
    pub fn standalone(&self) -> String {
        chart::standalone(self.svg())
    }
}

/// `text` in at most `room` characters.
pub fn shortened(text: &str, room: usize) -> String {
    if text.chars().count() <= room {
        return text.to_owned();
    }
    text.chars().take(room.saturating_sub(1)).chain(['…']).collect()
}

/// Columns that `text` takes, about.
fn width(text: &str) -> f64 {
    text.chars().count() as f64 * CHARACTER
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::web::markup::tests::well_formed;

    fn heatmap(scale: Scale) -> Heatmap {
        let cell = |value: Option<f64>| Cell { value, text: "<x>&".into(), details: "a\nb \"c\"".into() };
        Heatmap {
            title: "T".into(),
            meaning: "m".into(),
            x: "position".into(),
            y: "layer".into(),
            columns: vec![("0".into(), "a word that is rather long".into()), ("1".into(), String::new())],
            rows: vec!["0".into(), "1".into()],
            cells: vec![vec![cell(Some(1.0)), cell(Some(-1.0))], vec![cell(None), cell(Some(0.0))]],
            scale,
        }
    }

    #[test]
    fn every_cell_is_drawn_with_its_colour_and_details() {
        let text = heatmap(Scale::Diverging { limit: 2.0 }).framed().to_string();
        let names = well_formed(&text);
        assert_eq!(text.matches("class=\"cell\"").count(), 4);
        assert_eq!(names.iter().filter(|name| *name == "title").count(), 4);
        assert!(text.contains("class=\"hot\" fill-opacity=\"0.500\"") && text.contains("class=\"cold\""));
        assert_eq!(text.matches("class=\"empty\"").count(), 1);
        assert_eq!(text.matches("rotate(-40)").count(), 1, "long names slant");
        well_formed(heatmap(Scale::Sequential { low: 0.0, high: 1.0 }).standalone().split_once('\n').unwrap().1);
    }

    #[test]
    fn scales_end_where_they_say() {
        let sequential = Scale::Sequential { low: 1.0, high: 3.0 };
        assert_eq!([0.0, 1.0, 2.0, 9.0].map(|v| sequential.share(v)), [0.0, 0.0, 0.5, 1.0]);
        let around = Scale::around_zero([1.0, -4.0, f64::NAN]);
        assert_eq!([-4.0, -8.0, 1.0].map(|v| around.share(v)), [-1.0, -1.0, 0.25]);
        assert_eq!(Scale::around_zero([]).share(0.0), 0.0);
        assert_eq!(Scale::Sequential { low: 1.0, high: 1.0 }.share(1.0), 0.0, "a single value has no colour");
        assert_eq!((shortened("abcd", 4), shortened("abcde", 4)), ("abcd".into(), "abc…".into()));
    }
}
