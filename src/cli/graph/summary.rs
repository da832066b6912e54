//! An attribution graph on a terminal.

use crate::analysis::graph::{Graph, Node, NodeKind, Path, Paths, Trust, trust};
use crate::base::Result;

use super::super::feature_page::percent;
use super::super::render::{BOLD, DIM, GREEN, RED, Table, Ui, columns, paint, thousands, visible_width, wrap};

/// Nodes in the table of the most influential.
const NODES: usize = 16;
/// Targets whose path is shown.
const TARGETS: usize = 3;
/// Columns of a node's name.
const NAME: usize = 36;
/// Columns of a token.
const TOKEN: usize = 14;
/// Columns of a terminal that has room for bars and for what was measured.
const WIDE: usize = 100;
/// Columns of a bar.
const BAR: usize = 12;
const BLOCKS: [char; 8] = [' ', '▏', '▎', '▍', '▌', '▋', '▊', '▉'];

/// Prints the scores in words, the most influential nodes, and the strongest path to each target.
pub(super) fn summary(graph: &Graph, ui: &Ui) -> Result<()> {
    lines(graph, columns()).into_iter().try_for_each(|line| ui.out(line))
}

/// The same, line by line, for a terminal of `columns`.
fn lines(graph: &Graph, columns: usize) -> Vec<String> {
    let mut out = heading(graph, columns);
    out.push(String::new());
    out.push(nodes(graph, columns).to_string());
    let left_out = graph.most_influential(usize::MAX).len().saturating_sub(NODES);
    if left_out > 0 {
        out.push(paint(DIM, format!("and {} more", thousands(left_out as u64))));
    }
    let paths = Paths::new(graph);
    let targets = graph.ranked_targets();
    for &target in targets.iter().take(TARGETS) {
        out.push(String::new());
        out.extend(strongest(graph, &paths, target, columns));
    }
    if targets.len() > TARGETS {
        out.push(paint(DIM, format!("and {} more targets", targets.len() - TARGETS)));
    }
    out
}

fn heading(graph: &Graph, columns: usize) -> Vec<String> {
    let answers = graph.ranked_targets().into_iter().map(|i| {
        let node = &graph.nodes[i];
        let probability = if let NodeKind::Target { probability, .. } = node.kind { probability } else { 0.0 };
        format!("{} {}", paint(BOLD, graph.name(node)), paint(DIM, percent(probability)))
    });
    let answers: Vec<String> = answers.collect();
    let prompt = wrap(&graph.source.prompt.replace('\n', "↵"), columns).into_iter();
    let mut out: Vec<String> = prompt.map(|line| paint(BOLD, line)).collect();
    out.extend(packed("→ ", &answers, columns));
    let (report, scores) = (&graph.report, graph.overall_scores());
    let mut facts =
        vec![format!("{} nodes, {} edges", thousands(graph.nodes.len() as u64), thousands(graph.edges.len() as u64))];
    if report.active_features > 0 {
        facts.push(format!("{} features active", thousands(report.active_features as u64)));
        if report.selected_features < report.active_features {
            facts.push(format!("{} of them traced", thousands(report.selected_features as u64)));
        }
        facts.push(format!("{:.1} s", report.seconds));
    }
    out.extend(wrap(&facts.join(", "), columns).into_iter().map(|line| paint(DIM, line)));
    out.push(String::new());
    let (trust, words) = trust(graph);
    let style = match trust {
        Trust::Good => GREEN.bold(),
        Trust::Part => BOLD,
        Trust::Low => RED.bold(),
    };
    out.push(format!(
        "{}   {}",
        paint(style, format!("replacement {:.3}", scores.replacement)),
        paint(style, format!("completeness {:.3}", scores.completeness))
    ));
    out.extend(wrap(&words, columns.min(100)));
    out
}

/// The most influential nodes: how much, where, and what.
fn nodes(graph: &Graph, columns: usize) -> Table {
    let top = graph.most_influential(NODES);
    let (total, most) = (graph.total_influence(), top.first().map_or(1.0, |&i| graph.nodes[i].influence));
    let (best, checked) = (graph.ranked_targets().first().copied(), graph.verification.as_ref());
    let verified = |i: usize| checked?.nodes.iter().find(|v| v.node == i && best.is_none_or(|best| v.target == best));
    let wide = columns >= WIDE;
    let any = wide && top.iter().any(|&i| verified(i).is_some());
    let mut head = vec![">influence", "layer", "at", "node", ">activation"];
    if wide {
        head.insert(1, "");
    }
    if any {
        head.extend([">predicted", ">measured"]);
    }
    let mut table = Table::new(&head);
    let taken = 52 + if wide { BAR + 2 } else { 0 } + if any { 21 } else { 0 };
    let room = columns.saturating_sub(taken).clamp(14, NAME);
    for i in top {
        let node = &graph.nodes[i];
        let activation = if let NodeKind::Feature { activation, .. } = node.kind { Some(activation) } else { None };
        let style = if matches!(node.kind, NodeKind::Feature { .. }) { GREEN } else { DIM };
        let mut row = vec![
            percent(node.influence / total),
            layer(graph, node),
            format!("{} {}", paint(DIM, node.position), shortened(&graph.token(node.position), TOKEN)),
            paint(style, shortened(&graph.name(node), room)),
            activation.map(|a| format!("{a:.2}")).unwrap_or_default(),
        ];
        if wide {
            row.insert(1, paint(DIM, bar(node.influence / most)));
        }
        if any {
            let figures = verified(i).map(|v| [format!("{:+.3}", v.predicted), format!("{:+.3}", v.frozen)]);
            row.extend(figures.unwrap_or_default());
        }
        table.row(row);
    }
    table
}

/// The strongest path to a target in words, and where it has no feature on it also the strongest through features.
fn strongest(graph: &Graph, paths: &Paths<'_>, target: usize, columns: usize) -> Vec<String> {
    let title = |what: &str, path: &Path| {
        let name = graph.name(&graph.nodes[target]);
        format!("{} {name}, {}", paint(BOLD, what), paint(DIM, format!("{} of its input", percent(path.share))))
    };
    let mut out = Vec::new();
    let (any, featured) = (paths.strongest(target, false), paths.strongest(target, true));
    match (&any, &featured) {
        (Some(any), Some(featured)) if any.nodes != featured.nodes => {
            out.push(title("strongest path to", any));
            out.extend(steps(graph, any, columns));
            out.push(title("strongest through features to", featured));
            out.extend(steps(graph, featured, columns));
        }
        (Some(any), _) => {
            out.push(title("strongest path to", any));
            out.extend(steps(graph, any, columns));
        }
        (None, _) => out.push(format!("no path leads to {}", graph.name(&graph.nodes[target]))),
    }
    out
}

fn steps(graph: &Graph, path: &Path, columns: usize) -> Vec<String> {
    let mut pieces = Vec::with_capacity(path.nodes.len());
    for (k, &i) in path.nodes.iter().enumerate() {
        let node = &graph.nodes[i];
        let name = shortened(&graph.name(node), NAME);
        let words = match node.kind {
            NodeKind::Feature { .. } | NodeKind::Error { .. } => {
                let place = format!("{} at {}", layer(graph, node), shortened(&graph.token(node.position), TOKEN));
                format!("{} {}", paint(GREEN, name), paint(DIM, place))
            }
            NodeKind::Token { .. } | NodeKind::Target { .. } => paint(BOLD, name),
        };
        let step = k.checked_sub(1).and_then(|k| path.weights.get(k));
        pieces.push(step.map_or(words.clone(), |weight| format!("{} {words}", paint(DIM, format!("→ {weight:+.2}")))));
    }
    packed("  ", &pieces, columns)
}

/// Pieces on as few lines as they take, each line after the first indented as the first is after `before`.
fn packed(before: &str, pieces: &[String], columns: usize) -> Vec<String> {
    let indent = " ".repeat(visible_width(before));
    let (mut lines, mut line, mut width) = (Vec::new(), before.to_owned(), visible_width(before));
    for (i, piece) in pieces.iter().enumerate() {
        let wide = visible_width(piece);
        if i > 0 && width + 2 + wide > columns {
            lines.push(std::mem::replace(&mut line, indent.clone()));
            width = indent.len();
        } else if i > 0 {
            line.push_str("  ");
            width += 2;
        }
        line.push_str(piece);
        width += wide;
    }
    lines.push(line);
    lines
}

fn layer(graph: &Graph, node: &Node) -> String {
    match node.kind {
        NodeKind::Feature { layer, .. } | NodeKind::Error { layer } => format!("L{layer}"),
        NodeKind::Token { .. } => "token".into(),
        NodeKind::Target { .. } => format!("L{}", graph.n_layers),
    }
}

fn bar(share: f64) -> String {
    let eighths = (share.clamp(0.0, 1.0) * (BAR * 8) as f64).round() as usize;
    let full = "█".repeat(eighths / 8);
    if eighths.is_multiple_of(8) { full } else { format!("{full}{}", BLOCKS[eighths % 8]) }
}

/// `text` in at most `room` columns, by its width on a terminal.
fn shortened(text: &str, room: usize) -> String {
    if visible_width(text) <= room {
        return text.to_owned();
    }
    let mut out = String::new();
    for c in text.chars() {
        if visible_width(&out) + visible_width(c.encode_utf8(&mut [0; 4])) + 1 > room {
            break;
        }
        out.push(c);
    }
    out.push('…');
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::graph::tests::{edge, feature, graph_of, sample, target, token};

    fn plain(lines: &[String]) -> String {
        anstream::adapter::strip_str(&lines.join("\n")).to_string()
    }

    #[test]
    fn a_summary_fits_its_terminal_and_says_what_matters() {
        let graph = sample(600, 5);
        for columns in [80, 100, 160] {
            let text = plain(&lines(&graph, columns));
            assert_eq!(text.contains("predicted  measured"), columns >= WIDE, "{text}");
            let widest = text.lines().max_by_key(|line| visible_width(line)).unwrap();
            assert!(visible_width(widest) <= columns, "{columns}: {widest}");
            for expected in ["replacement 0.550", "strongest path to “ Austin”", "features active", "activation", "→ +"]
            {
                assert!(text.contains(expected), "'{expected}' is not in {text}");
            }
        }
    }

    #[test]
    fn paths_are_told_in_words_with_their_weights() {
        let mut named = feature(6, 12, 0);
        if let NodeKind::Feature { label, .. } = &mut named.kind {
            *label = Some("Texas cities".into());
        }
        let nodes = vec![token(0, 1), named, target(0, 9, 0.5)];
        let graph = graph_of(nodes, vec![edge(0, 1, 2.0), edge(1, 2, -1.5), edge(0, 2, 9.0)]);
        let text = plain(&strongest(&graph, &Paths::new(&graph), 2, 100));
        assert!(text.contains("  “ Texas”  → +9.00 “ x”"), "{text}");
        assert!(text.contains("“ Texas”  → +2.00 Texas cities L6 at “ Texas”  → -1.50 “ x”"), "{text}");
        let alone = graph_of(vec![target(0, 9, 0.5)], Vec::new());
        assert_eq!(plain(&strongest(&alone, &Paths::new(&alone), 0, 100)), "no path leads to “ x”");
    }

    #[test]
    fn text_is_cut_by_its_width() {
        assert_eq!((shortened("日本語です", 6), shortened("abc", 3)), ("日本…".into(), "abc".into()));
        assert_eq!((bar(1.0).chars().count(), bar(0.0), bar(0.01)), (12, String::new(), "▏".into()));
    }
}
