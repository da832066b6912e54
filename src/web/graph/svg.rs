//! A graph as one still picture: layers upwards, tokens from left to right.

use std::collections::BTreeMap;

use super::picture::{Picture, place, row};
use crate::analysis::graph::{Graph, NodeKind};
use crate::web::chart;
use crate::web::heatmap::shortened;
use crate::web::markup::Element;

const STYLE: &str = include_str!("picture.css");
const BOX: (f64, f64) = (138.0, 34.0);
const GAP: (f64, f64) = (14.0, 10.0);
/// Between rows.
const ROW: f64 = 30.0;
const LEFT: f64 = 46.0;
const TOP: f64 = 58.0;
const MARGIN: f64 = 16.0;
/// Boxes of a cell beside each other, at most.
const ACROSS: usize = 3;
/// Characters of a name.
const NAME: usize = 21;
/// Width of a character of the title.
const CHARACTER: f64 = 8.2;

/// The `n` most influential features and errors of `graph` with tokens, targets and the edges between them, as the
/// contents of an `.svg` file.
pub fn svg(graph: &Graph, n: usize) -> String {
    let picture = Picture::new(graph, n);
    let layout = Layout::new(graph, &picture.nodes);
    let title = format!("{} → {}", graph.source.prompt, answers(graph));
    let scores = graph.overall_scores();
    let facts = format!(
        "{} of {} nodes, replacement score {:.2}, completeness {:.2}",
        picture.nodes.len(),
        graph.nodes.len(),
        scores.replacement,
        scores.completeness
    );
    let width = layout.width.max(2.0 * MARGIN + CHARACTER * title.chars().count() as f64);
    let mut root = Element::of("svg", "chart graph")
        .attr("xmlns", "http://www.w3.org/2000/svg")
        .attr("viewBox", format_args!("0 0 {width:.0} {:.0}", layout.height))
        .at([("width", width), ("height", layout.height)])
        .attr("role", "img")
        .attr("aria-label", format_args!("Attribution graph. {title}"))
        .child(Element::style(&[STYLE]))
        .child(Element::of("rect", "bg").at([("width", width), ("height", layout.height)]))
        .child(Element::of("text", "title").at([("x", MARGIN), ("y", 24.0)]).text(&title))
        .child(Element::of("text", "label").at([("x", MARGIN), ("y", 42.0)]).text(&facts));
    for (name, y) in &layout.rows {
        root.push(Element::of("text", "tick").at([("x", MARGIN), ("y", y + 4.0)]).text(name));
    }
    for &(i, share) in &picture.edges {
        root.push(edge(graph, &layout, i, share));
    }
    for &i in &picture.nodes {
        root.push(node(graph, &layout, i));
    }
    chart::standalone(root)
}

fn answers(graph: &Graph) -> String {
    let names = graph.ranked_targets().into_iter().take(3).map(|i| graph.name(&graph.nodes[i]));
    names.collect::<Vec<_>>().join(", ")
}

struct Layout {
    /// The middle of each node's box.
    places: BTreeMap<usize, (f64, f64)>,
    /// Name and middle of each row.
    rows: Vec<(String, f64)>,
    width: f64,
    height: f64,
}

impl Layout {
    /// Cells by row and position, as many boxes beside each other as [`ACROSS`], the others above.
    fn new(graph: &Graph, nodes: &[usize]) -> Self {
        let mut cells: BTreeMap<(usize, usize), Vec<usize>> = BTreeMap::new();
        for &i in nodes {
            let node = &graph.nodes[i];
            cells.entry((row(graph, node), node.position)).or_default().push(i);
        }
        let (mut wide, mut high) = (BTreeMap::<usize, usize>::new(), BTreeMap::<usize, usize>::new());
        for (&(row, position), list) in &cells {
            let (across, up) = (list.len().min(ACROSS), list.len().div_ceil(ACROSS));
            let most = wide.entry(position).or_default();
            *most = across.max(*most);
            let most = high.entry(row).or_default();
            *most = up.max(*most);
        }
        let mut columns = BTreeMap::new();
        let mut x = LEFT;
        for (&position, &across) in &wide {
            let width = across as f64 * (BOX.0 + GAP.0) + GAP.0;
            columns.insert(position, x + width / 2.0);
            x += width;
        }
        let tall = |up: usize| up as f64 * (BOX.1 + GAP.1) + ROW - GAP.1;
        let height = TOP + MARGIN + high.values().map(|&up| tall(up)).sum::<f64>();
        let (mut middles, mut rows, mut y) = (BTreeMap::new(), Vec::new(), height - MARGIN);
        for (&row, &up) in &high {
            let middle = y - tall(up) / 2.0;
            y -= tall(up);
            middles.insert(row, middle);
            if (1..=graph.n_layers).contains(&row) {
                rows.push((format!("L{}", row - 1), middle));
            }
        }
        let mut places = BTreeMap::new();
        for ((row, position), list) in &cells {
            let lines = list.len().div_ceil(ACROSS);
            for (k, &i) in list.iter().enumerate() {
                let (line, in_line) = (k / ACROSS, ACROSS.min(list.len() - k / ACROSS * ACROSS));
                let aside = (k % ACROSS) as f64 - (in_line as f64 - 1.0) / 2.0;
                let above = line as f64 - (lines as f64 - 1.0) / 2.0;
                let x = columns.get(position).copied().unwrap_or_default() + aside * (BOX.0 + GAP.0);
                let y = middles.get(row).copied().unwrap_or_default() - above * (BOX.1 + GAP.1);
                places.insert(i, (x, y));
            }
        }
        Self { places, rows, width: x + MARGIN, height }
    }

    fn of(&self, i: usize) -> (f64, f64) {
        self.places.get(&i).copied().unwrap_or_default()
    }
}

fn edge(graph: &Graph, layout: &Layout, i: usize, share: f64) -> Element {
    let edge = &graph.edges[i];
    let ((x1, y1), (x2, y2)) = (layout.of(edge.source), layout.of(edge.target));
    let (y1, y2) = (y1 - BOX.1 / 2.0, y2 + BOX.1 / 2.0);
    let bend = (y1 - y2) * 0.45;
    let line = format!("M{x1:.1} {y1:.1}C{x1:.1} {:.1} {x2:.1} {:.1} {x2:.1} {y2:.1}", y1 - bend, y2 + bend);
    let [from, to] = [edge.source, edge.target].map(|i| graph.name(&graph.nodes[i]));
    let words = format!("{from} → {to}: {:+.3}, {:.1} % of its inputs", edge.weight, 100.0 * share);
    Element::of("path", if edge.weight < 0.0 { "edge cold" } else { "edge hot" })
        .attr("d", line)
        .attr("stroke-width", format_args!("{:.2}", 0.7 + 7.0 * share))
        .attr("stroke-opacity", format_args!("{:.2}", (0.25 + 0.7 * share.sqrt()).min(1.0)))
        .child(Element::new("title").text(words))
}

fn node(graph: &Graph, layout: &Layout, i: usize) -> Element {
    let node = &graph.nodes[i];
    let (x, y) = layout.of(i);
    let (class, round) = match node.kind {
        NodeKind::Feature { .. } => ("node feature", 9.0),
        NodeKind::Error { .. } => ("node error", 2.0),
        NodeKind::Token { .. } => ("node token", 2.0),
        NodeKind::Target { .. } => ("node target", 2.0),
    };
    let (name, place) = (graph.name(node), place(graph, node));
    let frame = [("x", x - BOX.0 / 2.0), ("y", y - BOX.1 / 2.0), ("width", BOX.0), ("height", BOX.1), ("rx", round)];
    Element::of("g", class)
        .child(Element::new("rect").at(frame))
        .child(Element::of("text", "name middle").at([("x", x), ("y", y - 2.0)]).text(shortened(&name, NAME)))
        .child(Element::of("text", "tick middle").at([("x", x), ("y", y + 11.0)]).text(shortened(&place, NAME + 2)))
        .child(Element::new("title").text(format!("{name}\n{place}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::graph::tests::sample;
    use crate::web::markup::tests::well_formed;

    #[test]
    fn a_picture_is_well_formed_and_its_boxes_do_not_touch() {
        let mut graph = sample(5000, 2);
        graph.source.prompt = "a <b> & \"c\"".into();
        let text = svg(&graph, 40);
        let names = well_formed(text.split_once('\n').unwrap().1);
        let picture = Picture::new(&graph, 40);
        assert_eq!(names.iter().filter(|name| *name == "path").count(), picture.edges.len());
        let layout = Layout::new(&graph, &picture.nodes);
        let places: Vec<(f64, f64)> = layout.places.values().copied().collect();
        assert_eq!(places.len(), picture.nodes.len());
        for (k, a) in places.iter().enumerate() {
            assert!(a.0 > LEFT && a.0 < layout.width && a.1 > TOP - 1.0 && a.1 < layout.height);
            assert!(places[k + 1..].iter().all(|b| (a.0 - b.0).abs() >= BOX.0 || (a.1 - b.1).abs() >= BOX.1));
        }
    }
}
