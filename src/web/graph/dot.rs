//! A graph in Graphviz' language, for `dot -Tsvg`.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::picture::{Picture, place, row};
use crate::analysis::graph::{Graph, NodeKind};

/// The `n` most influential features and errors of `graph` with tokens, targets and the edges between them.
pub fn dot(graph: &Graph, n: usize) -> String {
    let Picture { nodes, edges } = Picture::new(graph, n);
    let mut out = format!(
        "digraph attribution {{\n  rankdir=BT;\n  label={};\n  node [shape=box, style=\"rounded,filled\", \
         fillcolor=\"#ffffff\", color=\"#667085\", fontname=\"Helvetica\", fontsize=11];\n  edge [arrowsize=0.6, \
         fontname=\"Helvetica\", fontsize=9];\n",
        quoted(&graph.source.prompt)
    );
    let id = |i: usize| quoted(&graph.nodes[i].id(graph.n_layers));
    let mut rows: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for &i in &nodes {
        rows.entry(row(graph, &graph.nodes[i])).or_default().push(i);
    }
    for list in rows.values() {
        out.push_str("  { rank=same;");
        for &i in list {
            let node = &graph.nodes[i];
            let looks = match node.kind {
                NodeKind::Feature { .. } => "",
                NodeKind::Error { .. } => ", shape=diamond, style=\"filled,dashed\"",
                NodeKind::Token { .. } => ", style=\"filled\", fillcolor=\"#f5f6f8\"",
                NodeKind::Target { .. } => ", style=\"filled,bold\", fillcolor=\"#fff0d9\"",
            };
            let label = format!("{}\n{}", graph.name(node), place(graph, node));
            // Writing to a string does not fail.
            let _ = write!(out, "\n    {} [label={}{looks}];", id(i), quoted(&label));
        }
        out.push_str("\n  }\n");
    }
    // Strong edges come last, over the weak ones.
    for (i, share) in edges {
        let edge = &graph.edges[i];
        let colour = if edge.weight < 0.0 { "#2f6fdb" } else { "#d9730d" };
        let _ = writeln!(
            out,
            "  {} -> {} [penwidth={:.2}, color=\"{colour}\", label=\"{:+.2}\"];",
            id(edge.source),
            id(edge.target),
            0.6 + 6.0 * share,
            edge.weight
        );
    }
    out.push_str("}\n");
    out
}

/// A quoted string of the language.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::graph::tests::sample;

    #[test]
    fn every_node_and_edge_is_there_and_quotes_are_escaped() {
        let graph = sample(400, 3);
        let (text, picture) = (dot(&graph, 20), Picture::new(&graph, 20));
        assert_eq!(text.matches(" [label=").count(), picture.nodes.len());
        assert_eq!(text.matches(" -> ").count(), picture.edges.len());
        assert_eq!(text.matches('{').count(), text.matches('}').count());
        assert_eq!(quoted("a\"b\\c\nd\u{1}"), "\"a\\\"b\\\\c\\nd\"");
    }
}
