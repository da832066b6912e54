//! How much of the answer features account for (circuit-tracer's `compute_graph_scores`).
//!
//! ```text
//! replacement  = I(tokens) / (I(tokens) + I(errors))
//! completeness = Σ_t (1 − Σ_{s error} N[t, s]) (I + p)(t) / Σ_t (I + p)(t)
//! ```
//!
//! `N` and `I` are those of [`super::influence`]; every node counts in the sums over `t`, also those without sources.

use super::attribution::Attribution;
use super::influence::{Influence, node_influence, size};
use super::prune::Pruned;
use super::types::GraphScores;

/// The scores of the unpruned graph.
pub fn scores(graph: &Attribution) -> GraphScores {
    let influence = node_influence(graph);
    let errors = |row: usize| {
        let spans = graph.spans(row).filter(|(span, _)| graph.is_error(span.start));
        spans.map(|(_, entries)| size(entries)).sum::<f64>()
    };
    let rows = (0..graph.rows.len()).map(|row| (graph.node_of(row), errors(row), size(&graph.rows[row])));
    combined(graph, &influence, rows)
}

/// The scores of what pruning kept, as a graph of its own.
pub fn pruned_scores(graph: &Attribution, pruned: &Pruned) -> GraphScores {
    let mut influence = Influence::new(graph.columns.sources());
    let by_target: Vec<_> = pruned.edges.chunk_by(|a, b| a.target == b.target).collect();
    let mut rows = Vec::new();
    for edges in by_target.into_iter().rev() {
        let target = edges[0].target;
        let sizes = edges.iter().map(|edge| f64::from(edge.weight.abs()));
        let sum: f64 = sizes.clone().sum();
        let own = target.checked_sub(graph.columns.sources()).map(|i| graph.targets[i].probability);
        let weight = own.unwrap_or_else(|| influence.of[target]);
        for edge in edges {
            let entry = std::slice::from_ref(&edge.weight);
            influence.pass_on(weight, sum, std::iter::once((edge.source..edge.source + 1, entry)));
        }
        let errors = edges.iter().zip(sizes).filter(|(edge, _)| graph.is_error(edge.source)).map(|(_, size)| size);
        rows.push((target, errors.sum::<f64>(), sum));
    }
    let mut all = influence.of;
    all.resize(graph.nodes(), 0.0);
    combined(graph, &all, rows.into_iter())
}

/// From the influence of all nodes and, for each with sources, how much of their sum errors have.
fn combined(graph: &Attribution, influence: &[f64], rows: impl Iterator<Item = (usize, f64, f64)>) -> GraphScores {
    let (errors, tokens, targets) = (graph.features.len(), graph.token_node(0), graph.target_node(0));
    let from_errors: f64 = influence[errors..tokens].iter().sum();
    let from_tokens: f64 = influence[tokens..targets].iter().sum();
    let weight = |node: usize| {
        influence[node] + node.checked_sub(targets).map_or(0.0, |target| graph.targets[target].probability)
    };
    let total: f64 = (0..graph.nodes()).map(weight).sum();
    let unexplained: f64 = rows.map(|(node, errors, sum)| errors / sum.max(1e-10) * weight(node)).sum();
    let share = |part: f64, of: f64| if of > 0.0 { part / of } else { 0.0 };
    GraphScores {
        replacement: share(from_tokens, from_tokens + from_errors),
        completeness: share(total - unexplained, total),
    }
}
