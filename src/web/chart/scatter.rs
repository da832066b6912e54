//! Points in groups, with names.

use std::fmt::Write;

use super::axis::{Axis, Span, figure};
use super::{Frame, Plot, SIZE, WIDE, colour, width};
use crate::web::markup::{Element, Px};

/// Shapes, so that groups differ without colours too.
const SHAPES: [&str; 6] = [
    "M-4.5 0A4.5 4.5 0 1 0 4.5 0A4.5 4.5 0 1 0 -4.5 0Z",
    "M-4 -4H4V4H-4Z",
    "M0 -5.2L5 3.6H-5Z",
    "M0 -5.6L5.6 0L0 5.6L-5.6 0Z",
    "M0 5.2L5 -3.6H-5Z",
    "M-1.6 -5H1.6V-1.6H5V1.6H1.6V5H-1.6V1.6H-5V-1.6H-1.6Z",
];

/// Points over two axes.
#[derive(Debug, Clone, PartialEq)]
pub struct Scatter {
    /// What is shown.
    pub title: String,
    /// Horizontal axis.
    pub x: Axis,
    /// Vertical axis.
    pub y: Axis,
    /// The points by group, in the order of their colours.
    pub groups: Vec<Group>,
    /// Which corner is better, in words, such as "↖ better"; stands in the upper left.
    pub hint: Option<String>,
    /// Whether it takes the whole width of a page.
    pub wide: bool,
}

/// Points of one kind. A thin line joins those that no other of the group beats with a smaller `x` and a larger `y`.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// For the legend.
    pub name: String,
    /// The points.
    pub points: Vec<Point>,
}

/// One point.
#[derive(Debug, Clone, PartialEq)]
pub struct Point {
    /// Horizontal.
    pub x: f64,
    /// Vertical.
    pub y: f64,
    /// Stands beside it where there is room.
    pub label: String,
    /// What else is known about it, shown under the pointer.
    pub details: String,
}

impl Scatter {
    /// The picture.
    pub fn svg(&self) -> Element {
        let points = || self.groups.iter().flat_map(|g| &g.points).filter(|p| p.x.is_finite() && p.y.is_finite());
        let x = Span::new(&self.x, points().map(|p| p.x), 6, true);
        let y = Span::new(&self.y, points().map(|p| p.y), 5, true);
        let frame = Frame {
            title: &self.title,
            description: self.describe(),
            x: &self.x,
            y: &self.y,
            legend: self.groups.iter().enumerate().map(|(i, g)| (g.name.as_str(), mark(i))).collect(),
            size: if self.wide { WIDE } else { SIZE },
            empty: points().next().is_none(),
        };
        let mut plot = frame.draw(x, y);
        if let Some(hint) = &self.hint {
            let place = [("x", plot.left + 8.0), ("y", plot.top + 12.0)];
            plot.root.push(Element::of("text", "hint").at(place).text(hint));
        }
        for (i, group) in self.groups.iter().enumerate() {
            let front = front(&plot, group);
            plot.root.push(Element::of("path", format!("thin {}", colour(i))).attr("d", front));
        }
        self.points(&mut plot);
        plot.root
    }

    fn describe(&self) -> String {
        let all = self.groups.iter().flat_map(|g| g.points.iter().map(move |p| (g, p)));
        let named: Vec<String> =
            all.map(|(g, p)| format!("{} ({}) at {}, {}", p.label, g.name, figure(p.x), figure(p.y))).collect();
        format!("Points of {} over {}: {}", self.y.label, self.x.label, named.join("; "))
    }

    /// Marks, then labels where they touch neither a mark nor another label.
    fn points(&self, plot: &mut Plot) {
        let placed: Vec<(usize, &Point, (f64, f64))> = self
            .groups
            .iter()
            .enumerate()
            .flat_map(|(i, g)| g.points.iter().map(move |p| (i, p)))
            .filter_map(|(i, p)| plot.point((p.x, p.y)).map(|at| (i, p, at)))
            .collect();
        let mut taken: Vec<Area> = placed.iter().map(|(_, _, (x, y))| Area::around(*x, *y, 11.0, 11.0)).collect();
        for (group, point, (x, y)) in placed {
            let mut text = format!("{}  ·  {} {}", point.label, self.y.label, figure(point.y));
            let _infallible = write!(text, "  ·  {} {}\n{}", self.x.label, figure(point.x), point.details);
            let place = format!("translate({x:.1} {y:.1})");
            let marked = Element::of("g", "point").attr("transform", place).child(mark(group));
            plot.root.push(marked.child(Element::new("title").text(text)));
            let wide = width(&point.label);
            let sides = [(9.0, 4.0, ""), (-9.0 - wide, 4.0, ""), (-wide / 2.0, -10.0, ""), (-wide / 2.0, 18.0, "")];
            let fits = |area: &Area| {
                let inside = area.x > plot.left && area.x + area.width < plot.left + plot.width + 10.0;
                inside && !taken.iter().any(|other| other.touches(area))
            };
            let spots = sides.map(|(dx, dy, _)| Area { x: x + dx, y: y + dy - 10.0, width: wide, height: 12.0 });
            if let Some(spot) = spots.into_iter().find(fits) {
                let at = [("x", spot.x), ("y", spot.y + 10.0)];
                plot.root.push(Element::of("text", "name").at(at).text(&point.label));
                taken.push(spot);
            }
        }
    }
}

/// A rectangle that text or a mark takes.
struct Area {
    x: f64,
    y: f64,
    width: f64,
    height: f64,
}

impl Area {
    fn around(x: f64, y: f64, width: f64, height: f64) -> Self {
        Self { x: x - width / 2.0, y: y - height / 2.0, width, height }
    }

    fn touches(&self, other: &Self) -> bool {
        self.x < other.x + other.width
            && other.x < self.x + self.width
            && self.y < other.y + other.height
            && other.y < self.y + self.height
    }
}

fn mark(group: usize) -> Element {
    Element::of("path", format!("shape {}", colour(group))).attr("d", SHAPES[group % SHAPES.len()])
}

/// The Pareto front of a group as a path.
fn front(plot: &Plot, group: &Group) -> String {
    let mut points: Vec<(f64, f64)> = group.points.iter().filter_map(|p| plot.point((p.x, p.y))).collect();
    points.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
    // Pictures count downwards: a smaller second coordinate is a larger value.
    let (mut path, mut best) = (String::new(), f64::INFINITY);
    for (x, y) in points {
        if y < best {
            let command = if best.is_finite() { 'L' } else { 'M' };
            let _infallible = write!(path, "{command}{} {}", Px(x), Px(y));
            best = y;
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::web::markup::tests::well_formed;

    fn point(x: f64, y: f64, label: &str) -> Point {
        Point { x, y, label: label.into(), details: "dead 1 %".into() }
    }

    fn scatter(points: Vec<Point>) -> String {
        let groups = vec![Group { name: "topk".into(), points }, Group { name: "<relu>".into(), points: vec![] }];
        let (x, y) = (Axis::log("L0"), Axis::linear("EV"));
        let hint = Some("↖ better".into());
        let text = Scatter { title: "Pareto".into(), x, y, groups, hint, wide: true }.svg().to_string();
        well_formed(&text);
        assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
        text
    }

    #[test]
    fn points_are_joined_in_order_and_say_what_they_are() {
        let beaten = point(50.0, 0.65, "d");
        let text =
            scatter(vec![point(64.0, 0.8, "b & c"), point(32.0, 0.7, "a"), point(f64::NAN, 0.7, "lost"), beaten]);
        let path = text.split("class=\"thin c0\" d=\"").nth(1).unwrap().split('"').next().unwrap();
        let numbers: Vec<f64> = path.split(['M', 'L', ' ']).filter_map(|n| n.parse().ok()).collect();
        assert!(numbers.len() == 4 && numbers[0] < numbers[2] && numbers[1] > numbers[3], "{path}");
        assert!(text.contains("b &amp; c  ·  EV 0.8  ·  L0 64\ndead 1 %</title>"), "{text}");
        assert_eq!((text.matches("class=\"name\"").count(), text.matches("class=\"point\"").count()), (3, 3));
    }

    #[test]
    fn labels_never_cover_each_other() {
        let crowd: Vec<Point> = (0..40).map(|i| point(50.0 + i as f64 / 100.0, 0.7, "the same place")).collect();
        let text = scatter(crowd);
        assert_eq!(text.matches("class=\"point\"").count(), 40);
        assert!((1..=4).contains(&text.matches("class=\"name\"").count()));
        assert!(scatter(vec![]).contains("no data"));
    }
}
