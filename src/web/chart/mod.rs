//! Charts as SVG: lines, histograms, points. They follow the reader's light or dark colours, need no script, show
//! exact values under the pointer, and stand alone or inside a page.
//!
//! Values that are not finite, and on logarithmic axes those of zero and below, leave gaps.

mod axis;
mod histogram;
mod line;
mod scatter;

pub use axis::{Axis, Scale, figure};
pub use histogram::Histogram;
pub use line::{LineChart, Series};
pub use scatter::{Group, Point, Scatter};

use axis::Span;

use super::markup::Element;

/// The look of all charts; a page includes it once.
pub const STYLE: &str = include_str!("chart.css");

/// Size of a chart in its own units, which a browser scales to the width it has.
const SIZE: (f64, f64) = (560.0, 300.0);
/// Size of a chart over the whole width of a page.
const WIDE: (f64, f64) = (1120.0, 460.0);
/// Colours before they repeat.
const COLOURS: usize = 8;
/// Width of a character of the small text, on the generous side.
const CHARACTER: f64 = 6.4;

/// `chart` as the contents of an `.svg` file.
pub fn standalone(chart: Element) -> String {
    format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{}\n", chart.child(Element::style(&[STYLE])))
}

fn colour(i: usize) -> String {
    format!("c{}", i % COLOURS)
}

/// Columns that `text` takes, about.
fn width(text: &str) -> f64 {
    text.chars().count() as f64 * CHARACTER
}

/// What every kind of chart is given.
struct Frame<'a> {
    title: &'a str,
    /// For readers who do not see the picture.
    description: String,
    x: &'a Axis,
    y: &'a Axis,
    /// Name and swatch of each series; nothing is drawn for fewer than two.
    legend: Vec<(&'a str, Element)>,
    size: (f64, f64),
    /// Whether there is anything to show.
    empty: bool,
}

/// A frame with its axes drawn; the marks go inside.
struct Plot {
    /// Width of the whole picture.
    full_width: f64,
    x: Span,
    y: Span,
    left: f64,
    top: f64,
    width: f64,
    height: f64,
    root: Element,
}

impl Frame<'_> {
    /// Title, legend, grid and axes for the spans `x` and `y`.
    fn draw(self, x: Span, y: Span) -> Plot {
        let (full_width, full_height) = self.size;
        let mut root = Element::of("svg", "chart")
            .attr("xmlns", "http://www.w3.org/2000/svg")
            .attr("viewBox", format_args!("0 0 {full_width} {full_height}"))
            .attr("role", "img")
            .attr("aria-label", format_args!("{}. {}", self.title, self.description));
        root.push(Element::new("desc").text(&self.description));
        root.push(Element::of("rect", "bg").attr("width", full_width).attr("height", full_height));
        root.push(Element::of("text", "title").at([("x", 14.0), ("y", 22.0)]).text(self.title));
        let top = self.head(&mut root);
        let labels = y.ticks.iter().map(|(_, label)| width(label)).fold(0.0, f64::max);
        let left = 14.0 + labels + 8.0;
        let (width, height) = (full_width - left - 18.0, full_height - top - 46.0);
        let mut plot = Plot { full_width, x, y, left, top, width, height, root };
        plot.axes(&self.x.label);
        if self.empty {
            let middle = [("x", plot.left + plot.width / 2.0), ("y", plot.top + plot.height / 2.0)];
            plot.root.push(Element::of("text", "label middle").at(middle).text("no data"));
        }
        plot
    }

    /// Label of the vertical axis and legend; gives where the plot begins.
    fn head(&self, root: &mut Element) -> f64 {
        let mut line = 41.0;
        root.push(Element::of("text", "label").at([("x", 14.0), ("y", line)]).text(&self.y.label));
        let (gap, swatch, full_width) = (16.0, 20.0, self.size.0);
        let entries = || self.legend.iter().map(|(name, mark)| (name, mark, swatch + width(name)));
        if self.legend.len() > 1 {
            let total: f64 = entries().map(|e| e.2 + gap).sum();
            let beside = full_width - 18.0 - total + gap;
            let mut at = if beside > 30.0 + width(&self.y.label) { beside } else { full_width };
            for (name, mark, wide) in entries() {
                if at + wide > full_width - 14.0 {
                    (at, line) = (14.0, line + 17.0);
                }
                let place = format_args!("translate({:.1} {:.1})", at + 8.0, line - 4.0).to_string();
                root.push(Element::new("g").attr("transform", place).child(mark.clone()));
                root.push(Element::of("text", "key").at([("x", at + swatch), ("y", line)]).text(name));
                at += wide + gap;
            }
        }
        line + 15.0
    }
}

impl Plot {
    fn axes(&mut self, x_label: &str) {
        let (right, bottom) = (self.left + self.width, self.top + self.height);
        for (value, label) in &self.y.ticks {
            let Some(y) = self.y_of(*value) else { continue };
            let ends = [("x1", self.left), ("x2", right), ("y1", y), ("y2", y)];
            self.root.push(Element::of("line", "grid").at(ends));
            let place = [("x", self.left - 8.0), ("y", y + 4.0)];
            self.root.push(Element::of("text", "tick end").at(place).text(label));
        }
        let mut free_from = f64::NEG_INFINITY;
        for (value, label) in &self.x.ticks {
            let Some(x) = self.x_of(*value) else { continue };
            let ends = [("x1", x), ("x2", x), ("y1", bottom), ("y2", bottom + 4.0)];
            self.root.push(Element::of("line", "axis").at(ends));
            // A label at the edge moves inwards, and one that would touch its neighbour is left out.
            let half = width(label) / 2.0;
            let x = x.min(self.full_width - 4.0 - half);
            if x - half > free_from {
                let place = [("x", x), ("y", bottom + 17.0)];
                self.root.push(Element::of("text", "tick middle").at(place).text(label));
                free_from = x + half + 6.0;
            }
        }
        let ends = [("x1", self.left), ("x2", right), ("y1", bottom), ("y2", bottom)];
        self.root.push(Element::of("line", "axis").at(ends));
        let place = [("x", self.left + self.width / 2.0), ("y", bottom + 36.0)];
        self.root.push(Element::of("text", "label middle").at(place).text(x_label));
    }

    fn x_of(&self, value: f64) -> Option<f64> {
        self.x.share(value).map(|share| self.left + share.clamp(-2.0, 3.0) * self.width)
    }

    fn y_of(&self, value: f64) -> Option<f64> {
        self.y.share(value).map(|share| self.top + (1.0 - share.clamp(-2.0, 3.0)) * self.height)
    }

    fn point(&self, (x, y): (f64, f64)) -> Option<(f64, f64)> {
        self.x_of(x).zip(self.y_of(y))
    }

    /// A part of the picture in the same coordinates in which whatever leaves the plot is cut off.
    fn clip(&self) -> Element {
        let edge = 4.0;
        let (x, y, width, height) =
            (self.left - edge, self.top - edge, self.width + 2.0 * edge, self.height + 2.0 * edge);
        Element::new("svg")
            .at([("x", x), ("y", y), ("width", width), ("height", height)])
            .attr("viewBox", format_args!("{x:.1} {y:.1} {width:.1} {height:.1}"))
    }

    /// A line of text inside the plot, near `x`, that appears with the group it is in.
    fn readout(&self, x: f64, text: &str) -> Element {
        let half = width(text) / 2.0 + 2.0;
        let x = x.clamp(self.left + half.min(self.width / 2.0), self.left + self.width - half.min(self.width / 2.0));
        Element::of("text", "readout middle").at([("x", x), ("y", self.top + 9.0)]).text(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::web::markup::tests::well_formed;

    #[test]
    fn a_chart_alone_is_a_whole_file() {
        let series = vec![Series::new("a", vec![(0.0, 1.0), (1.0, 2.0)]), Series::new("b", vec![(0.0, 2.0)])];
        let chart = LineChart { title: "T".into(), x: Axis::linear("x"), y: Axis::linear("y"), series };
        let text = standalone(chart.svg());
        let xml = text.strip_prefix("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n").unwrap();
        let names = well_formed(xml);
        assert_eq!((names[0].as_str(), names.last().unwrap().as_str()), ("svg", "style"));
        assert!(!xml.contains("http:") || xml.matches("http:").count() == 1, "only the name space is an address");
    }

    #[test]
    fn long_legends_break_into_lines_and_labels_do_not_overlap() {
        let names: Vec<String> = (0..9).map(|i| format!("a rather long name, number {i}")).collect();
        let series = names.iter().map(|n| Series::new(n, vec![(0.0, 1.0), (1e5, 2.0)])).collect();
        let chart = LineChart { title: "T".into(), x: Axis::linear("x"), y: Axis::linear("y"), series };
        let text = chart.svg().to_string();
        well_formed(&text);
        assert_eq!(text.matches("class=\"key\"").count(), 9);
    }
}
