//! The strongest path to a target: which token, through which features, in which steps.

use super::types::{Graph, NodeKind};

/// A way through a graph.
#[derive(Debug, Clone, PartialEq)]
pub struct Path {
    /// The nodes from the source to the target, indices in [`Graph::nodes`].
    pub nodes: Vec<usize>,
    /// The weight of each step, one fewer than nodes.
    pub weights: Vec<f32>,
    /// The product over its steps of `|weight| / Σ|inputs|`: the share of the target's input that comes this way.
    pub share: f64,
}

/// A graph with the edges of every node at hand.
#[derive(Debug)]
pub struct Paths<'a> {
    graph: &'a Graph,
    /// Edges that leave each node.
    outputs: Vec<Vec<usize>>,
    /// The share of each edge in the inputs of its target.
    shares: Vec<f64>,
    /// Nodes, each after all of its inputs. Nodes of a cycle, which no attribution makes, are left out.
    order: Vec<usize>,
}

/// The best way on from a node.
#[derive(Debug, Clone, Copy, Default)]
struct Best {
    share: f64,
    edge: Option<usize>,
}

impl<'a> Paths<'a> {
    /// Sorts the edges of `graph`.
    pub fn new(graph: &'a Graph) -> Self {
        let n = graph.nodes.len();
        let known = |e: &crate::analysis::graph::Edge| e.source < n && e.target < n;
        let (mut outputs, mut sums, mut waiting) = (vec![Vec::new(); n], vec![0f64; n], vec![0usize; n]);
        for (i, edge) in graph.edges.iter().enumerate().filter(|(_, edge)| known(edge)) {
            outputs[edge.source].push(i);
            sums[edge.target] += f64::from(edge.weight.abs());
            waiting[edge.target] += 1;
        }
        let share = |edge: &crate::analysis::graph::Edge| {
            if known(edge) { f64::from(edge.weight.abs()) / sums[edge.target].max(1e-10) } else { 0.0 }
        };
        let shares = graph.edges.iter().map(share).collect();
        let mut order: Vec<usize> = (0..n).filter(|&i| waiting[i] == 0).collect();
        let mut next = 0;
        while let Some(&node) = order.get(next) {
            next += 1;
            for &edge in &outputs[node] {
                let target = graph.edges[edge].target;
                waiting[target] -= 1;
                if waiting[target] == 0 {
                    order.push(target);
                }
            }
        }
        Self { graph, outputs, shares, order }
    }

    /// The strongest path from a token to the node `target`, or from an error where no token leads there. With
    /// `through_features` at least one node on the way is a feature.
    pub fn strongest(&self, target: usize, through_features: bool) -> Option<Path> {
        let (any, featured) = self.best(target);
        let best = if through_features { &featured } else { &any };
        let start = |wanted: fn(&NodeKind) -> bool| {
            let nodes = self.graph.nodes.iter().enumerate();
            let starts = nodes.filter(|(i, node)| wanted(&node.kind) && *i != target && best[*i].share > 0.0);
            // Of equal ones the first.
            starts.map(|(i, _)| i).reduce(|a, b| if best[b].share > best[a].share { b } else { a })
        };
        let token = start(|kind| matches!(kind, NodeKind::Token { .. }));
        let first = token.or_else(|| start(|kind| matches!(kind, NodeKind::Error { .. })))?;
        let mut path = Path { nodes: vec![first], weights: Vec::new(), share: best[first].share };
        let (mut node, mut need) = (first, through_features);
        loop {
            need = need && !matches!(self.graph.nodes[node].kind, NodeKind::Feature { .. });
            let Some(edge) = (if need { &featured } else { &any })[node].edge else { break };
            let edge = &self.graph.edges[edge];
            path.weights.push(edge.weight);
            path.nodes.push(edge.target);
            node = edge.target;
        }
        Some(path)
    }

    /// From every node the best way to `target`: any, and with a feature on it.
    fn best(&self, target: usize) -> (Vec<Best>, Vec<Best>) {
        let n = self.graph.nodes.len();
        let (mut any, mut featured) = (vec![Best::default(); n], vec![Best::default(); n]);
        if let Some(best) = any.get_mut(target) {
            best.share = 1.0;
        }
        for &node in self.order.iter().rev().filter(|&&node| node != target) {
            for &edge in &self.outputs[node] {
                let to = self.graph.edges[edge].target;
                for best in [&mut any, &mut featured] {
                    let share = self.shares[edge] * best[to].share;
                    if share > best[node].share {
                        best[node] = Best { share, edge: Some(edge) };
                    }
                }
            }
            if matches!(self.graph.nodes[node].kind, NodeKind::Feature { .. }) {
                featured[node] = any[node];
            }
        }
        (any, featured)
    }

    /// The influence of every node on the targets by the edges that are left: `p N + p N² + …` with `N` the normalised
    /// edges and `p` the targets' probabilities, as circuit-tracer computes it (`graph.py`), in one sweep.
    pub fn influences(&self) -> Vec<f64> {
        let mut influence = vec![0.0; self.graph.nodes.len()];
        let probability = |kind: &NodeKind| match kind {
            NodeKind::Target { probability, .. } => *probability,
            _ => 0.0,
        };
        for &node in self.order.iter().rev() {
            influence[node] = self.outputs[node]
                .iter()
                .map(|&edge| {
                    let target = self.graph.edges[edge].target;
                    self.shares[edge] * (influence[target] + probability(&self.graph.nodes[target].kind))
                })
                .sum();
        }
        influence
    }

    /// The share of an edge in the inputs of its target.
    pub fn share(&self, edge: usize) -> f64 {
        self.shares.get(edge).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::graph::tests::{edge, feature, graph_of, sample, target, token};

    #[test]
    fn the_strongest_path_is_the_one_of_the_largest_product() {
        // Tokens 0 and 1; features 2, 3; target 4. 1→3→4 has 0.9 · 0.8, 0→2→4 has 1 · 0.1, 0→4 has 0.1.
        let nodes = vec![token(0, 7), token(1, 8), feature(0, 5, 0), feature(1, 6, 1), target(2, 9, 1.0)];
        let edges =
            vec![edge(0, 2, 2.0), edge(0, 3, 0.1), edge(1, 3, -0.9), edge(0, 4, 0.1), edge(2, 4, 0.1), edge(3, 4, 0.8)];
        let graph = graph_of(nodes, edges);
        let paths = Paths::new(&graph);
        let path = paths.strongest(4, false).unwrap();
        assert_eq!((path.nodes, path.weights), (vec![1, 3, 4], vec![-0.9, 0.8]));
        assert!((path.share - 0.72).abs() < 1e-6, "{}", path.share);
        assert_eq!(paths.strongest(4, true).unwrap().nodes, [1, 3, 4]);
        assert_eq!(paths.strongest(2, false).unwrap().nodes, [0, 2]);
        assert_eq!(paths.strongest(0, false), None);
    }

    #[test]
    fn a_direct_path_gives_way_where_features_are_asked_for() {
        let nodes = vec![token(0, 7), feature(0, 5, 0), target(1, 9, 1.0)];
        let graph = graph_of(nodes, vec![edge(0, 1, 1.0), edge(0, 2, 9.0), edge(1, 2, 1.0)]);
        let paths = Paths::new(&graph);
        assert_eq!(paths.strongest(2, false).unwrap().nodes, [0, 2]);
        let through = paths.strongest(2, true).unwrap();
        assert_eq!(through.nodes, [0, 1, 2]);
        assert!((through.share - 0.1).abs() < 1e-6);
    }

    #[test]
    fn every_path_of_a_larger_graph_follows_edges_and_multiplies_their_shares() {
        let graph = sample(400, 3);
        let paths = Paths::new(&graph);
        let target = graph.nodes.len() - 1;
        let path = paths.strongest(target, true).unwrap();
        assert!(path.nodes.len() > 2 && path.nodes.last() == Some(&target));
        let mut product = 1.0;
        for (step, weight) in path.nodes.windows(2).zip(&path.weights) {
            let found = graph.edges.iter().position(|e| [e.source, e.target] == step && e.weight == *weight);
            product *= paths.share(found.expect("an edge of the graph"));
        }
        assert!((product - path.share).abs() < 1e-12);
        // No single detour is better.
        let any = paths.strongest(target, false).unwrap();
        assert!(any.share >= path.share);
    }

    #[test]
    fn influence_in_one_sweep_is_the_series() {
        let graph = sample(120, 1);
        let paths = Paths::new(&graph);
        let found = paths.influences();
        let n = graph.nodes.len();
        let probability = |i: usize| match graph.nodes[i].kind {
            NodeKind::Target { probability, .. } => probability,
            _ => 0.0,
        };
        let (mut now, mut sum) = ((0..n).map(probability).collect::<Vec<f64>>(), vec![0.0; n]);
        while now.iter().any(|x| *x > 0.0) {
            let mut next = vec![0.0; n];
            for (i, edge) in graph.edges.iter().enumerate() {
                next[edge.source] += now[edge.target] * paths.share(i);
            }
            sum.iter_mut().zip(&next).for_each(|(s, x)| *s += x);
            now = next;
        }
        assert!(found.iter().zip(&sum).all(|(a, b)| (a - b).abs() < 1e-9));
        assert!(found.iter().sum::<f64>() > 0.5);
    }

    #[test]
    fn cycles_and_edges_to_nowhere_do_no_harm() {
        let nodes = vec![token(0, 7), feature(0, 5, 0), feature(1, 5, 0), target(1, 9, 1.0)];
        let edges = vec![edge(1, 2, 1.0), edge(2, 1, 1.0), edge(0, 3, 1.0), edge(0, 99, 1.0)];
        let graph = graph_of(nodes, edges);
        assert_eq!(Paths::new(&graph).strongest(3, false).unwrap().nodes, [0, 3]);
        assert_eq!(Paths::new(&graph).strongest(3, true), None);
    }
}
