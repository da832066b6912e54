//! What a still picture shows of a graph: its most influential nodes and the edges between them.

use std::collections::BTreeSet;

use crate::analysis::graph::{Graph, Node, NodeKind, Paths};

/// Targets, the likeliest.
const TARGETS: usize = 3;
/// Edges a node, on average.
const EDGES: usize = 3;
/// Edges below this share of their target's inputs are left out.
const FAINT: f64 = 0.01;

/// A part of a graph.
pub(super) struct Picture {
    /// Its nodes, in the order of the graph.
    pub(super) nodes: Vec<usize>,
    /// Its edges with their shares in the inputs of their targets, the weakest first.
    pub(super) edges: Vec<(usize, f64)>,
}

impl Picture {
    /// The `n` most influential features and errors of `graph`, the likeliest targets, and the tokens that act on one of them.
    pub(super) fn new(graph: &Graph, n: usize) -> Self {
        let inside = |i: &usize| graph.nodes[*i].layer().is_some();
        let mut chosen: BTreeSet<usize> =
            graph.most_influential(usize::MAX).into_iter().filter(inside).take(n).collect();
        chosen.extend(graph.ranked_targets().into_iter().take(TARGETS));
        let token = |i: usize| matches!(graph.nodes.get(i).map(|node| &node.kind), Some(NodeKind::Token { .. }));
        let paths = Paths::new(graph);
        let weight = |i: usize| {
            let target = &graph.nodes[graph.edges[i].target];
            let own = if let NodeKind::Target { probability, .. } = target.kind { probability } else { 0.0 };
            paths.share(i) * (target.influence + own)
        };
        let between = |i: &usize| {
            let edge = &graph.edges[*i];
            chosen.contains(&edge.target)
                && (chosen.contains(&edge.source) || token(edge.source))
                && paths.share(*i) >= FAINT
        };
        let mut edges: Vec<usize> = (0..graph.edges.len()).filter(between).collect();
        edges.sort_by(|&a, &b| weight(b).total_cmp(&weight(a)));
        edges.truncate(EDGES * chosen.len());
        edges.reverse();
        chosen.extend(edges.iter().map(|&i| graph.edges[i].source));
        let edges = edges.into_iter().map(|i| (i, paths.share(i))).collect();
        Self { nodes: chosen.into_iter().collect(), edges }
    }
}

/// The row of a node: tokens below layer 0, targets above the last.
pub(super) fn row(graph: &Graph, node: &Node) -> usize {
    match node.kind {
        NodeKind::Token { .. } => 0,
        NodeKind::Feature { layer, .. } | NodeKind::Error { layer } => layer + 1,
        NodeKind::Target { .. } => graph.n_layers + 1,
    }
}

/// The second line of a node: where it is, or how likely.
pub(super) fn place(graph: &Graph, node: &Node) -> String {
    match node.kind {
        NodeKind::Token { .. } => format!("position {}", node.position),
        NodeKind::Feature { layer, .. } | NodeKind::Error { layer } => {
            format!("L{layer} · {}", graph.token(node.position))
        }
        NodeKind::Target { probability, .. } => format!("{:.1} %", 100.0 * probability),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::graph::tests::sample;

    #[test]
    fn a_picture_holds_the_most_influential_nodes_and_no_loose_ends() {
        let graph = sample(5000, 2);
        let Picture { nodes, edges } = Picture::new(&graph, 30);
        let inside = nodes.iter().filter(|&&i| graph.nodes[i].layer().is_some()).count();
        assert_eq!((inside, nodes.iter().filter(|i| graph.ranked_targets().contains(i)).count()), (30, 2));
        for &(edge, share) in &edges {
            let edge = &graph.edges[edge];
            assert!(nodes.contains(&edge.source) && nodes.contains(&edge.target) && share >= FAINT);
        }
        assert!(!edges.is_empty() && edges.len() <= EDGES * 32);
    }
}
