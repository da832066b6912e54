//! Total effects by a graph: the sum over all paths, with features' activation functions linearised.

use super::attribution::Attribution;
use super::targets::Target;
use super::types::{Edge, Graph, NodeKind};

impl Attribution {
    /// As [`total_effects`] in the unpruned graph, by its own numbers of nodes; zeros where `source` is none.
    pub fn total_effects(&self, source: Option<usize>) -> Vec<f64> {
        let n = self.nodes();
        let (mut lost, mut share) = (vec![0.0; n], vec![0.0; n]);
        let Some(source) = source.filter(|source| *source < n) else { return lost };
        share[source] = 1.0;
        let rows = self.features.len() + self.targets.len();
        for row in 0..rows {
            let node = self.node_of(row);
            for (span, entries) in self.spans(row) {
                let products = entries.iter().zip(&share[span]).map(|(entry, share)| f64::from(*entry) * share);
                lost[node] += products.sum::<f64>();
            }
            if let Some(feature) = self.features.get(row)
                && node != source
                && feature.activation.abs() > 0.0
            {
                share[node] = lost[node] / f64::from(feature.activation);
            }
        }
        lost
    }
}

/// By the graph, what each node loses of its pre-activation or value when `source` is taken away.
pub fn total_effects(graph: &Graph, source: usize) -> Vec<f64> {
    let n = graph.nodes.len();
    let mut edges: Vec<&Edge> = graph.edges.iter().filter(|e| e.source < n && e.target < n).collect();
    edges.sort_by_key(|edge| graph.rank(edge.target));
    let (mut lost, mut share) = (vec![0.0; n], vec![0.0; n]);
    if let Some(own) = share.get_mut(source) {
        *own = 1.0;
    }
    for edges in edges.chunk_by(|a, b| graph.rank(a.target) == graph.rank(b.target)) {
        for edge in edges {
            lost[edge.target] += f64::from(edge.weight) * share[edge.source];
        }
        for edge in edges {
            if let NodeKind::Feature { activation, .. } = graph.nodes[edge.target].kind
                && edge.target != source
                && activation.abs() > 0.0
            {
                share[edge.target] = lost[edge.target] / f64::from(activation);
            }
        }
    }
    lost
}

/// The number that a node of `graph` has in the unpruned graph.
pub(super) fn place(graph: &Graph, whole: &Attribution, node: usize) -> Option<usize> {
    let own = graph.nodes.get(node)?;
    match own.kind {
        NodeKind::Feature { layer, feature, .. } => {
            let key = (layer, own.position, feature);
            whole.features.binary_search_by_key(&key, |f| (f.layer, f.position, f.feature)).ok()
        }
        NodeKind::Error { layer } => Some(whole.error_node(layer, own.position)),
        NodeKind::Token { .. } => Some(whole.token_node(own.position)),
        NodeKind::Target { token, against, .. } => {
            let same = |target: &Target| (target.token, target.against) == (token, against);
            whole.targets.iter().position(same).map(|i| whole.target_node(i))
        }
    }
}

/// Pearson's correlation; `None` for fewer than three pairs or where one side does not vary.
pub fn pearson(pairs: &[(f64, f64)]) -> Option<f64> {
    let n = pairs.len() as f64;
    let mean = |side: fn(&(f64, f64)) -> f64| pairs.iter().map(side).sum::<f64>() / n;
    let (x, y) = (mean(|p| p.0), mean(|p| p.1));
    let sum = |f: &dyn Fn(f64, f64) -> f64| pairs.iter().map(|p| f(p.0 - x, p.1 - y)).sum::<f64>();
    let (xx, yy, xy) = (sum(&|a, _| a * a), sum(&|_, b| b * b), sum(&|a, b| a * b));
    (pairs.len() > 2 && xx > 0.0 && yy > 0.0).then(|| xy / (xx * yy).sqrt())
}
