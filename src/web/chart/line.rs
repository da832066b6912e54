//! Lines over a common axis.

use std::fmt::Write;

use super::axis::{Axis, Span, figure};
use super::{Frame, Plot, SIZE, colour};
use crate::web::markup::{Element, Px};

/// Points of a line that are drawn; longer ones are thinned without losing their peaks.
const DRAWN: usize = 600;
/// Places along the horizontal axis that answer to the pointer.
const PLACES: usize = 80;
/// Series whose values fit into one line of text.
const READ_OUT: usize = 4;

/// Several series over one axis.
#[derive(Debug, Clone, PartialEq)]
pub struct LineChart {
    /// What is shown.
    pub title: String,
    /// Horizontal axis.
    pub x: Axis,
    /// Vertical axis.
    pub y: Axis,
    /// The lines, in the order of their colours.
    pub series: Vec<Series>,
}

/// One line. Points ascend in `x`; one that is not finite interrupts the line.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// For the legend.
    pub name: String,
    /// `(x, y)`.
    pub points: Vec<(f64, f64)>,
    /// Whether every point is marked, for few points with nothing known between them.
    pub dots: bool,
}

impl Series {
    /// A plain line.
    pub fn new(name: &str, points: Vec<(f64, f64)>) -> Self {
        Self { name: name.into(), points, dots: false }
    }

    /// A line with its points marked.
    pub fn dotted(name: &str, points: Vec<(f64, f64)>) -> Self {
        Self { dots: true, ..Self::new(name, points) }
    }
}

impl LineChart {
    /// The picture.
    pub fn svg(&self) -> Element {
        let points = || self.series.iter().flat_map(|s| &s.points).filter(|p| p.0.is_finite() && p.1.is_finite());
        let x = Span::new(&self.x, points().map(|p| p.0), 6, false);
        let y = Span::new(&self.y, points().map(|p| p.1), 5, true);
        let swatch = |i| {
            let class = format!("line {}", colour(i));
            Element::of("line", class).at([("x1", -7.0), ("x2", 7.0), ("y1", 0.0), ("y2", 0.0)])
        };
        let frame = Frame {
            title: &self.title,
            description: self.describe(),
            x: &self.x,
            y: &self.y,
            legend: self.series.iter().enumerate().map(|(i, s)| (s.name.as_str(), swatch(i))).collect(),
            size: SIZE,
            empty: points().next().is_none(),
        };
        let mut plot = frame.draw(x, y);
        let mut lines = plot.clip();
        for (i, series) in self.series.iter().enumerate() {
            draw(&plot, series, i, &mut lines);
        }
        plot.root.push(lines);
        for place in self.places(&plot) {
            plot.root.push(place);
        }
        plot.root
    }

    fn describe(&self) -> String {
        let last = |s: &Series| s.points.iter().rev().find(|p| p.1.is_finite()).copied();
        let ends = self.series.iter().filter_map(|s| last(s).map(|(x, y)| (s, x, y)));
        let ends: Vec<String> = ends
            .map(|(s, x, y)| format!("{} ends at {} where {} is {}", s.name, figure(y), self.x.label, figure(x)))
            .collect();
        format!("Lines of {} over {}. {}", self.y.label, self.x.label, ends.join("; "))
    }

    /// Strips of the plot that show the values at their place while the pointer is on them.
    fn places(&self, plot: &Plot) -> Vec<Element> {
        let mut xs: Vec<f64> =
            self.series.iter().flat_map(|s| &s.points).filter(|p| p.1.is_finite()).map(|p| p.0).collect();
        xs.retain(|x| plot.x_of(*x).is_some());
        xs.sort_by(f64::total_cmp);
        xs.dedup();
        let every = xs.len().div_ceil(PLACES).max(1);
        // Counted from the end, so that the last point is one of them.
        let mut xs: Vec<f64> = xs.into_iter().rev().step_by(every).collect();
        xs.reverse();
        let at: Vec<f64> = xs.iter().filter_map(|x| plot.x_of(*x)).collect();
        let between = |i: usize| at[i - 1].midpoint(at[i]);
        let (right, mut strips) = (plot.left + plot.width, Vec::with_capacity(at.len()));
        for (i, &x) in xs.iter().enumerate() {
            let from = if i == 0 { plot.left } else { between(i) };
            let to = if i + 1 == at.len() { right } else { between(i + 1) };
            strips.push(self.place(plot, x, at[i], (from, to)));
        }
        strips
    }

    fn place(&self, plot: &Plot, x: f64, at: f64, (from, to): (f64, f64)) -> Element {
        let strip = [("x", from), ("y", plot.top), ("width", to - from), ("height", plot.height)];
        let guide = [("x1", at), ("x2", at), ("y1", plot.top), ("y2", plot.top + plot.height)];
        let mut group = Element::of("g", "place")
            .child(Element::of("rect", "hit").at(strip))
            .child(Element::of("line", "guide").at(guide));
        let mut text = format!("{} {}", self.x.label, figure(x));
        for (i, series) in self.series.iter().enumerate() {
            let Some(&nearest) = nearest(&series.points, x) else { continue };
            let name = if self.series.len() > 1 { format!("{} ", series.name) } else { String::new() };
            let _infallible = write!(text, "  ·  {name}{}", figure(nearest.1));
            if let Some((cx, cy)) = plot.point(nearest)
                && (plot.top - 1.0..=plot.top + plot.height + 1.0).contains(&cy)
            {
                group.push(Element::of("circle", format!("dot {}", colour(i))).at([
                    ("cx", cx),
                    ("cy", cy),
                    ("r", 3.5),
                ]));
            }
        }
        if self.series.len() <= READ_OUT {
            group.push(plot.readout(at, &text));
        }
        group.child(Element::new("title").text(text))
    }
}

/// The point nearest to `x` whose value is a number.
fn nearest(points: &[(f64, f64)], x: f64) -> Option<&(f64, f64)> {
    let finite = points.iter().filter(|p| p.0.is_finite() && p.1.is_finite());
    finite.min_by(|a, b| (a.0 - x).abs().total_cmp(&(b.0 - x).abs()))
}

fn draw(plot: &Plot, series: &Series, i: usize, into: &mut Element) {
    let (mut path, mut dots) = (String::new(), Vec::new());
    for run in runs(plot, &thinned(&series.points)) {
        if let [(x, y)] = run[..] {
            dots.push((x, y));
        }
        for (j, (x, y)) in run.iter().enumerate() {
            let command = if j == 0 { 'M' } else { 'L' };
            let _infallible = write!(path, "{command}{} {}", Px(*x), Px(*y));
        }
    }
    if series.dots {
        dots = series.points.iter().filter_map(|p| plot.point(*p)).collect();
    }
    into.push(Element::of("path", format!("line {}", colour(i))).attr("d", path));
    into.push(
        Element::of("g", format!("dots {}", colour(i)))
            .children(dots.into_iter().map(|(cx, cy)| Element::new("circle").at([("cx", cx), ("cy", cy), ("r", 2.6)]))),
    );
}

/// Pieces of the line between gaps, in the picture's coordinates.
fn runs(plot: &Plot, points: &[(f64, f64)]) -> Vec<Vec<(f64, f64)>> {
    let placed: Vec<Option<(f64, f64)>> = points.iter().map(|p| plot.point(*p)).collect();
    placed
        .split(Option::is_none)
        .filter(|run| !run.is_empty())
        .map(|run| run.iter().flatten().copied().collect())
        .collect()
}

/// At most [`DRAWN`] points: of each stretch the first, the lowest, the highest, and any gap.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    if points.len() <= DRAWN {
        return points.to_vec();
    }
    let stretch = points.len().div_ceil(DRAWN / 3);
    let mut kept = Vec::with_capacity(DRAWN + 3);
    for stretch in points.chunks(stretch) {
        let finite = || (0..stretch.len()).filter(|&i| stretch[i].1.is_finite());
        let by = |a: &usize, b: &usize| stretch[*a].1.total_cmp(&stretch[*b].1);
        let gap = stretch.iter().position(|p| !p.1.is_finite());
        let mut chosen: Vec<usize> =
            [Some(0), finite().min_by(by), finite().max_by(by), gap].into_iter().flatten().collect();
        chosen.sort_unstable();
        chosen.dedup();
        kept.extend(chosen.into_iter().map(|i| stretch[i]));
    }
    kept.extend(points.last());
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::web::markup::tests::well_formed;

    fn chart(series: Vec<Series>) -> String {
        let chart = LineChart { title: "Loss".into(), x: Axis::linear("tokens"), y: Axis::linear("nats"), series };
        let text = chart.svg().to_string();
        well_formed(&text);
        assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
        text
    }

    fn path(text: &str) -> &str {
        text.split(" d=\"").nth(1).unwrap().split('"').next().unwrap()
    }

    #[test]
    fn points_become_coordinates_in_order() {
        let text = chart(vec![Series::new("a", vec![(0.0, 0.0), (50.0, 1.0), (100.0, 0.5)])]);
        let numbers: Vec<f64> = path(&text).split(['M', 'L', ' ']).filter_map(|n| n.parse().ok()).collect();
        let [x0, y0, x1, y1, x2, y2] = numbers[..] else { panic!("{numbers:?}") };
        assert!((x1 - x0 - (x2 - x1)).abs() < 0.2 && x0 < x1, "{numbers:?}");
        assert!((y0 - y1 - 2.0 * (y0 - y2)).abs() < 0.3 && y1 < y0, "up is more: {numbers:?}");
        assert_eq!(text.matches("class=\"place\"").count(), 3);
        assert!(text.contains("tokens 50  ·  1</title>"), "{text}");
    }

    #[test]
    fn gaps_interrupt_a_line_and_a_lone_point_is_a_dot() {
        let nan = f64::NAN;
        let text = chart(vec![Series::new("a", vec![(0.0, 1.0), (1.0, 2.0), (2.0, nan), (3.0, 1.0), (4.0, nan)])]);
        assert_eq!(path(&text).matches('M').count(), 2);
        assert_eq!(text.matches("r=\"2.6\"").count(), 1);
    }

    #[test]
    fn empty_and_constant_series_are_pictures_too() {
        assert!(chart(vec![]).contains("no data"));
        assert!(chart(vec![Series::new("a", vec![(0.0, f64::NAN)])]).contains("no data"));
        let constant = chart(vec![Series::dotted("a", vec![(1.0, 7.0), (2.0, 7.0)])]);
        assert!(constant.contains("no data").eq(&false) && path(&constant).starts_with('M'));
    }

    #[test]
    fn long_series_are_thinned_and_keep_their_peaks() {
        let mut points: Vec<(f64, f64)> = (0..50_000).map(|i| (i as f64, (i as f64 / 9e3).sin())).collect();
        points[31_234].1 = 40.0;
        points[40_000].1 = f64::NAN;
        let thin = thinned(&points);
        assert!(thin.len() < DRAWN + 50 && thin.contains(&points[31_234]) && thin.iter().any(|p| p.1.is_nan()));
        assert_eq!((thin[0], *thin.last().unwrap()), (points[0], points[49_999]));
        assert!(chart(vec![Series::new("a", points)]).len() < 60_000);
    }
}
