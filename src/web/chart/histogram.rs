//! How values are spread.

use std::fmt::Write;

use super::axis::{Axis, Span, figure};
use super::{Frame, SIZE, colour};
use crate::web::markup::{Element, Px};

/// Bars of a histogram.
const BARS: usize = 60;

/// Counts of values in bins of equal width on the axis, with the median marked.
#[derive(Debug, Clone, PartialEq)]
pub struct Histogram {
    title: String,
    x: Axis,
    y: Axis,
    /// Edges of the bins, one more than there are bins.
    edges: Vec<f64>,
    counts: Vec<u64>,
    median: Option<f64>,
    what: String,
}

impl Histogram {
    /// Of `values` along `x`; `what` names what is counted. Values without a place on the axis are not counted.
    pub fn new(title: impl Into<String>, x: Axis, what: &str, values: impl Iterator<Item = f64>) -> Self {
        let mut placed: Vec<f64> = values.filter_map(|v| x.scale.of(v)).collect();
        placed.sort_by(f64::total_cmp);
        let (lo, hi) = (placed.first().copied().unwrap_or(0.0), placed.last().copied().unwrap_or(0.0));
        let (lo, hi) = x.within.map_or((lo, hi), |(a, b)| (x.scale.of(a).unwrap_or(lo), x.scale.of(b).unwrap_or(hi)));
        // One value fills one bar in the middle.
        let (lo, hi) = if hi - lo > 1e-9 * hi.abs() { (lo, hi) } else { (lo - 0.5, hi + 0.5) };
        let mut counts = vec![0; BARS];
        for value in &placed {
            let bin = ((value - lo) / (hi - lo) * BARS as f64).floor();
            counts[(bin.max(0.0) as usize).min(BARS - 1)] += 1;
        }
        let edges = (0..=BARS).map(|i| x.scale.inverse(lo + (hi - lo) * i as f64 / BARS as f64)).collect();
        let median = (!placed.is_empty()).then(|| x.scale.inverse(placed[(placed.len() - 1) / 2]));
        let y = Axis::linear(what).including(0.0);
        Self { title: title.into(), x, y, edges, counts, median, what: what.into() }
    }

    /// The picture.
    pub fn svg(&self) -> Element {
        let total: u64 = self.counts.iter().sum();
        let median = self.median.map_or(String::new(), |m| format!(", median {}", figure(m)));
        let frame = Frame {
            title: &self.title,
            description: format!("Histogram of {} over {}{median}", self.what, self.x.label),
            x: &self.x,
            y: &self.y,
            legend: Vec::new(),
            size: (SIZE.0, SIZE.1 - 40.0),
            empty: total == 0,
        };
        let x =
            Span::new(&Axis { within: None, include: None, ..self.x.clone() }, self.edges.iter().copied(), 6, false);
        let y = Span::new(&self.y, self.counts.iter().map(|c| *c as f64), 4, true);
        let mut plot = frame.draw(x, y);
        let bottom = plot.top + plot.height;
        for (i, &count) in self.counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            let Some((left, right)) = plot.x_of(self.edges[i]).zip(plot.x_of(self.edges[i + 1])) else { continue };
            let Some(top) = plot.y_of(count as f64) else { continue };
            let (top, left, right) = (top.min(bottom - 1.0), left + 0.5, right - 0.5);
            let r = (bottom - top).min(1.5);
            let mut path = String::new();
            let corners =
                [(left, bottom), (left, top + r), (left + r, top), (right - r, top), (right, top + r), (right, bottom)];
            for (j, (x, y)) in corners.into_iter().enumerate() {
                let _infallible = write!(path, "{}{} {}", if j == 0 { 'M' } else { 'L' }, Px(x), Px(y));
            }
            let text = format!("{} to {}  ·  {count} {}", figure(self.edges[i]), figure(self.edges[i + 1]), self.what);
            let strip = [("x", left - 0.5), ("y", plot.top), ("width", right - left + 1.0), ("height", plot.height)];
            let bar = Element::of("g", "place")
                .child(Element::of("rect", "hit").at(strip))
                .child(Element::of("path", format!("bar {}", colour(0))).attr("d", path + "Z"))
                .child(plot.readout(left.midpoint(right), &text))
                .child(Element::new("title").text(text));
            plot.root.push(bar);
        }
        if let Some((x, value)) = self.median.and_then(|m| plot.x_of(m).zip(Some(m))) {
            let ends = [("x1", x), ("x2", x), ("y1", plot.top), ("y2", bottom)];
            plot.root.push(Element::of("line", "mark").at(ends));
            let text = format!("median {}", figure(value));
            let after = x + 10.0 + super::width(&text) < plot.left + plot.width;
            let (class, at) = if after { ("key still", x + 5.0) } else { ("key still end", x - 5.0) };
            plot.root.push(Element::of("text", class).at([("x", at), ("y", plot.top + 9.0)]).text(text));
        }
        plot.root
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::web::chart::Scale;
    use crate::web::markup::tests::well_formed;

    fn draw(histogram: &Histogram) -> String {
        let text = histogram.svg().to_string();
        well_formed(&text);
        assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
        text
    }

    #[test]
    fn every_value_with_a_place_is_counted_once() {
        let values = [0.0, 1e-5, 1e-5, 1e-3, 0.1, f64::NAN, -1.0];
        let histogram = Histogram::new("Density", Axis::log("density"), "features", values.into_iter());
        assert_eq!(histogram.counts.iter().sum::<u64>(), 4);
        assert_eq!((histogram.counts[0], histogram.counts[BARS / 2], histogram.counts[BARS - 1]), (2, 1, 1));
        assert!((histogram.median.unwrap() - 1e-5).abs() < 1e-12);
        assert!((histogram.edges[BARS] - 0.1).abs() < 1e-9);
        let text = draw(&histogram);
        assert_eq!(text.matches("class=\"bar").count(), 3);
        assert!(text.contains("2 features</title>") && text.contains("median 1×10⁻⁵"), "{text}");
    }

    #[test]
    fn empty_and_constant_values_are_pictures_too() {
        let none = Histogram::new("T", Axis::linear("x"), "features", std::iter::empty());
        assert!(draw(&none).contains("no data"));
        let constant = Histogram::new("T", Axis::linear("x"), "features", [2.0; 9].into_iter());
        assert_eq!(constant.counts[BARS / 2], 9);
        assert!(draw(&constant).contains("9 features</title>"));
        let cosines = Axis::linear("cosine").within(-1.0, 1.0);
        let cosines = Histogram::new("T", cosines, "features", [1.0, 1.0 + 1e-7, -1.0].into_iter());
        assert_eq!((cosines.counts[0], cosines.counts[BARS - 1]), (1, 2));
        draw(&cosines);
        assert_eq!(cosines.x.scale, Scale::Linear);
    }
}
