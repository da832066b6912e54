//! The part of a graph that matters: nodes and edges that carry most of the influence (circuit-tracer's `prune_graph`).

use super::attribution::Attribution;
use super::influence::{Influence, node_influence};
use super::types::GraphSettings;

/// An edge between two nodes of an [`Attribution`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KeptEdge {
    /// Where it ends.
    pub target: usize,
    /// Where it begins.
    pub source: usize,
    /// The direct effect.
    pub weight: f32,
}

/// What pruning kept, by the numbers of an [`Attribution`]'s nodes.
#[derive(Debug, Clone, PartialEq)]
pub struct Pruned {
    /// Whether each node is kept.
    pub nodes: Vec<bool>,
    /// The edges that are kept, by target and then source.
    pub edges: Vec<KeptEdge>,
    /// The influence of each node in the unpruned graph.
    pub influence: Vec<f64>,
    /// The share of all influence that each node and those of more influence have.
    pub cumulative: Vec<f64>,
}

/// Keeps the nodes of most influence that have `node_threshold` of it together, tokens and targets; then the edges
/// that have `edge_threshold` of the influence that flows between these; then drops features and errors that lead
/// nowhere and features that nothing leads to.
pub fn prune(graph: &Attribution, settings: &GraphSettings) -> Pruned {
    let influence = node_influence(graph);
    let ranked = ranked(&influence);
    let least = threshold(&ranked.iter().map(|&i| influence[i]).collect::<Vec<_>>(), settings.node_threshold);
    let tokens = graph.token_node(0);
    let mut nodes: Vec<bool> = influence.iter().map(|i| *i >= least).collect();
    nodes[tokens..].fill(true);

    // Two walks over the rows, for a list of all edges would be ten times as large as the rows.
    let mut scores = Vec::new();
    each_edge(graph, &nodes, |_, score| scores.push(score));
    scores.sort_unstable_by(|a, b| b.total_cmp(a));
    let least = threshold(&scores, settings.edge_threshold);
    drop(scores);
    let mut edges = Vec::new();
    each_edge(graph, &nodes, |edge, score| {
        if score >= least {
            edges.push(edge);
        }
    });
    drop_loose_ends(graph, &mut nodes, &mut edges);
    edges.sort_unstable_by_key(|edge| (edge.target, edge.source));

    let total: f64 = influence.iter().sum();
    let (mut cumulative, mut sum) = (vec![0.0; influence.len()], 0.0);
    for i in ranked {
        sum += influence[i];
        cumulative[i] = if total > 0.0 { sum / total } else { 0.0 };
    }
    Pruned { nodes, edges, influence, cumulative }
}

/// Nodes by influence, the largest first.
fn ranked(influence: &[f64]) -> Vec<usize> {
    let mut ranked: Vec<usize> = (0..influence.len()).collect();
    ranked.sort_by(|a, b| influence[*b].total_cmp(&influence[*a]));
    ranked
}

/// The smallest of `descending` that is needed for `share` of their sum.
fn threshold(descending: &[f64], share: f64) -> f64 {
    let total: f64 = descending.iter().sum();
    let mut sum = 0.0;
    let needed = descending.iter().find(|score| {
        sum += **score;
        sum / total >= share
    });
    needed.or(descending.last()).copied().unwrap_or(0.0)
}

/// Calls `found` with the edges between kept nodes and the influence that each carries there: its share of its target's
/// row times the target's influence, its own weight included.
fn each_edge(graph: &Attribution, kept: &[bool], mut found: impl FnMut(KeptEdge, f64)) {
    let features = graph.features.len();
    let mut influence = Influence::new(graph.columns.sources());
    for row in (0..graph.rows.len()).rev() {
        let target = graph.node_of(row);
        if !kept[target] {
            continue;
        }
        let weight = if row < features { influence.of[row] } else { graph.targets[row - features].probability };
        let entries = graph.effects_on(target).filter(|&(source, effect)| kept[source] && effect != 0.0);
        let entries: Vec<(usize, f32)> = entries.collect();
        let sum = entries.iter().map(|(_, effect)| f64::from(effect.abs())).sum::<f64>();
        for (source, effect) in &entries {
            influence.pass_on(weight, sum, std::iter::once((*source..source + 1, std::slice::from_ref(effect))));
        }
        let share = weight / sum.max(1e-10);
        for (source, weight) in entries {
            found(KeptEdge { target, source, weight }, share * f64::from(weight.abs()));
        }
    }
}

/// Drops features and errors without an outgoing edge and features without an incoming one, with their edges, until
/// none is left.
fn drop_loose_ends(graph: &Attribution, nodes: &mut [bool], edges: &mut Vec<KeptEdge>) {
    let (features, tokens) = (graph.features.len(), graph.token_node(0));
    loop {
        let (mut goes_out, mut comes_in) = (vec![false; nodes.len()], vec![false; nodes.len()]);
        for edge in edges.iter() {
            goes_out[edge.source] = true;
            comes_in[edge.target] = true;
        }
        let loose = |node: usize| !goes_out[node] || (node < features && !comes_in[node]);
        let dropped: Vec<usize> = (0..tokens).filter(|&node| nodes[node] && loose(node)).collect();
        if dropped.is_empty() {
            return;
        }
        for node in dropped {
            nodes[node] = false;
        }
        edges.retain(|edge| nodes[edge.source] && nodes[edge.target]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_keep_the_share_they_are_asked_for() {
        let scores = [5.0, 3.0, 1.0, 1.0, 0.0];
        assert_eq!(
            [0.0, 0.5, 0.6, 0.8, 0.85, 1.0].map(|share| threshold(&scores, share)),
            [5.0, 5.0, 3.0, 3.0, 1.0, 1.0]
        );
        assert_eq!(threshold(&[], 0.8), 0.0);
        assert_eq!(threshold(&[0.0, 0.0], 0.8), 0.0);
    }
}
