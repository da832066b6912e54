//! Whether an answer goes through some nodes of a graph, and whether it turns without them.

use crate::analysis::FeatureOp;
use crate::analysis::steer::ProbabilityChange;
use crate::base::{Context, Result};
use crate::model::Positions;

use super::frozen_run::{FrozenRun, Hold, rows};
use super::intervene::{ChangedRun, FeatureChange};
use super::paths::Path;
use super::types::{Edge, Graph, NodeKind};

impl Graph {
    /// The node of this id ([`super::Node::id`]).
    pub fn find(&self, id: &str) -> Option<usize> {
        self.nodes.iter().position(|node| node.id(self.n_layers) == id)
    }

    /// The features whose label, layer and number, and position satisfy a condition, by influence.
    pub fn features(&self, wanted: impl Fn(usize, u32, usize, Option<&str>) -> bool) -> Vec<usize> {
        let mut found: Vec<usize> = Vec::new();
        for (i, node) in self.nodes.iter().enumerate() {
            if let NodeKind::Feature { layer, feature, label, .. } = &node.kind
                && wanted(*layer, *feature, node.position, label.as_deref())
            {
                found.push(i);
            }
        }
        found.sort_by(|&a, &b| self.nodes[b].influence.total_cmp(&self.nodes[a].influence).then(a.cmp(&b)));
        found
    }

    /// The targets, in the order of nodes.
    pub fn targets(&self) -> Vec<usize> {
        let is_target = |i: &usize| matches!(self.nodes[*i].kind, NodeKind::Target { .. });
        (0..self.nodes.len()).filter(is_target).collect()
    }

    /// The share of what reaches `target` that comes through any of `nodes`, by normalised edges, `|weight| / Σ|inputs|`:
    /// 1 when no path from a token or an error goes around them.
    pub fn share_through(&self, target: usize, nodes: &[usize]) -> f64 {
        let (inputs, order) = self.sorted();
        let mut through = vec![0.0; self.nodes.len()];
        for node in order {
            through[node] = if nodes.contains(&node) {
                1.0
            } else {
                inputs[node].iter().map(|(source, share)| share * through[*source]).sum()
            };
        }
        through.get(target).copied().unwrap_or_default()
    }

    /// The strongest path to `target` that goes through `node`, from a token or an error; `None` where none does.
    pub fn strongest_route(&self, node: usize, target: usize) -> Option<Path> {
        let (inputs, order) = self.sorted();
        let n = self.nodes.len();
        // The best way to each node from where paths begin, and the best one through `node`.
        let (mut any, mut through) = (vec![(0.0, None); n], vec![(0.0, None); n]);
        for &at in &order {
            let best = |from: &[(f64, Option<usize>)]| {
                let steps = inputs[at].iter().map(|(source, share)| (share * from[*source].0, Some(*source)));
                steps.fold((0.0, None), |best, step| if step.0 > best.0 { step } else { best })
            };
            let begins = matches!(self.nodes[at].kind, NodeKind::Token { .. } | NodeKind::Error { .. });
            any[at] = if begins { (1.0, None) } else { best(&any) };
            through[at] = if at == node { any[at] } else { best(&through) };
        }
        let share = through.get(target).map(|best| best.0).filter(|share| *share > 0.0)?;
        let (mut nodes, mut at, mut passed) = (vec![target], target, target == node);
        while let Some(source) = (if passed { &any } else { &through })[at].1 {
            nodes.push(source);
            at = source;
            passed |= at == node;
        }
        nodes.reverse();
        let weight = |step: &[usize]| {
            let edge = self.edges.iter().find(|edge| [edge.source, edge.target] == *step);
            edge.map_or(0.0, |edge| edge.weight)
        };
        let weights = nodes.windows(2).map(weight).collect();
        Some(Path { nodes, weights, share })
    }

    /// The change of a feature of the graph at its own position; `None` for other nodes.
    pub fn change(&self, node: usize, op: FeatureOp) -> Option<FeatureChange> {
        let node = self.nodes.get(node)?;
        let NodeKind::Feature { layer, feature, .. } = node.kind else { return None };
        Some(FeatureChange { layer, feature, positions: Positions::List(vec![node.position]), op })
    }

    /// By node its inputs with their shares, and all nodes, each after its inputs.
    fn sorted(&self) -> (Vec<Vec<(usize, f64)>>, Vec<usize>) {
        let n = self.nodes.len();
        let known =
            |edge: &&Edge| edge.source < n && edge.target < n && self.rank(edge.source) < self.rank(edge.target);
        let mut sums = vec![0f64; n];
        for edge in self.edges.iter().filter(known) {
            sums[edge.target] += f64::from(edge.weight.abs());
        }
        let mut inputs = vec![Vec::new(); n];
        for edge in self.edges.iter().filter(known).filter(|edge| edge.weight.abs() > 0.0) {
            inputs[edge.target].push((edge.source, f64::from(edge.weight.abs()) / sums[edge.target]));
        }
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by_key(|&node| self.rank(node));
        (inputs, order)
    }

    /// Edges lead from lower ranks to higher ones.
    pub(super) fn rank(&self, node: usize) -> usize {
        match self.nodes[node].kind {
            NodeKind::Token { .. } => 0,
            NodeKind::Feature { layer, .. } | NodeKind::Error { layer } => layer + 1,
            NodeKind::Target { .. } => usize::MAX,
        }
    }
}

/// Probabilities of the token after a prompt, `[v]`, without and with features changed.
#[derive(Debug, Clone, PartialEq)]
pub struct Answers {
    /// Without.
    pub before: Vec<f32>,
    /// With.
    pub after: Vec<f32>,
}

impl Answers {
    /// The likeliest token without and with the changes.
    pub fn likeliest(&self) -> (u32, u32) {
        let largest = |p: &[f32]| {
            let best =
                p.iter().enumerate().fold((0, f32::MIN), |best, (i, p)| if *p > best.1 { (i, *p) } else { best });
            best.0 as u32
        };
        (largest(&self.before), largest(&self.after))
    }

    /// Whether another token is the likeliest one now.
    pub fn turned(&self) -> bool {
        let (before, after) = self.likeliest();
        before != after
    }

    /// A token's probability without and with the changes.
    pub fn of(&self, token: u32) -> ProbabilityChange {
        let at = |p: &[f32]| p.get(token as usize).copied().unwrap_or_default();
        ProbabilityChange { token, before: at(&self.before), after: at(&self.after) }
    }

    /// The `n` likeliest tokens without the changes and the `n` likeliest with them, likeliest before first.
    pub fn top(&self, n: usize) -> Vec<ProbabilityChange> {
        let best = |p: &[f32]| {
            let mut order: Vec<u32> = (0..p.len() as u32).collect();
            order.sort_by(|a, b| p[*b as usize].total_cmp(&p[*a as usize]).then(a.cmp(b)));
            order.truncate(n);
            order
        };
        let mut tokens = best(&self.before);
        let after = best(&self.after);
        tokens.extend(after.into_iter().filter(|token| !tokens.contains(token)).collect::<Vec<_>>());
        tokens.into_iter().map(|token| self.of(token)).collect()
    }
}

impl FrozenRun<'_> {
    /// Probabilities of the next token without and with `changes`. With [`Hold::Nothing`] or [`Hold::Patterns`] later
    /// features follow.
    ///
    /// # Errors
    /// As [`FrozenRun::intervene`].
    pub fn answers(&self, changes: &[FeatureChange], hold: &Hold) -> Result<Answers> {
        self.answers_of(&self.intervene(changes, hold)?)
    }

    /// The same of a run that was made.
    ///
    /// # Errors
    /// When the logits cannot be read.
    pub fn answers_of(&self, changed: &ChangedRun) -> Result<Answers> {
        let last = |run: &crate::model::Run| -> Result<Vec<f32>> {
            let logits = run.logits()?.narrow(1, self.positions() - 1, 1);
            let probabilities = logits.and_then(|x| candle_nn::ops::softmax(&x, candle_core::D::Minus1));
            rows(&probabilities.during(|| "reading next-token probabilities".into())?)
        };
        Ok(Answers { before: last(&self.clean)?, after: last(&changed.run)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::graph::test_sets::{graph_of, node_at};
    use crate::analysis::graph::{FeatureChange, test_sets};
    use crate::analysis::tests::open;
    use crate::model::Site;

    /// Tokens 0 and 1; features 2 (layer 0), 3 (layer 0), 4 (layer 1); target 5.
    fn graph() -> Graph {
        let feature = |layer, feature| {
            node_at(NodeKind::Feature { layer, feature, activation: 1.0, label: Some(format!("f{feature}")) }, 1)
        };
        let token = |token, position| node_at(NodeKind::Token { token }, position);
        let target = NodeKind::Target { token: 9, against: None, text: "x".into(), probability: 1.0, value: 1.0 };
        let nodes = vec![token(7, 0), token(8, 1), feature(0, 5), feature(0, 6), feature(1, 5), node_at(target, 1)];
        let edges = [(0, 2, 1.0), (1, 3, -2.0), (2, 4, 3.0), (3, 4, -1.0), (4, 5, 6.0), (3, 5, 2.0), (0, 5, 2.0)];
        graph_of(nodes, &edges)
    }

    #[test]
    fn nodes_are_found_by_id_and_by_what_they_are() {
        let graph = graph();
        assert_eq!(graph.find("1_5_1"), Some(4));
        assert_eq!(graph.find("E_8_1"), Some(1));
        assert_eq!(graph.find("2_5_1"), None);
        assert_eq!(graph.features(|_, feature, _, _| feature == 5), [2, 4]);
        assert_eq!(graph.features(|layer, _, _, label| layer == 0 && label == Some("f6")), [3]);
        assert_eq!(graph.targets(), [5]);
        assert_eq!(graph.change(0, FeatureOp::Ablate), None);
        assert_eq!(graph.change(4, FeatureOp::Ablate).unwrap().positions, Positions::List(vec![1]));
    }

    #[test]
    fn shares_through_nodes_add_up() {
        let graph = graph();
        // Of the target's input 0.6 comes from feature 4, 0.2 from 3, 0.2 from a token; 3/4 of feature 4's from 2.
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} and {b}");
        close(graph.share_through(5, &[4]), 0.6);
        close(graph.share_through(5, &[3]), 0.2 + 0.6 * 0.25);
        close(graph.share_through(5, &[2]), 0.45);
        close(graph.share_through(5, &[2, 3]), 0.8);
        close(graph.share_through(5, &[0, 1]), 1.0);
        close(graph.share_through(5, &[]), 0.0);
    }

    #[test]
    fn the_strongest_route_through_a_node_passes_it() {
        let graph = graph();
        let route = graph.strongest_route(3, 5).unwrap();
        assert_eq!((route.nodes, route.weights), (vec![1, 3, 5], vec![-2.0, 2.0]));
        assert!((route.share - 0.2).abs() < 1e-12);
        assert_eq!(graph.strongest_route(4, 5).unwrap().nodes, [0, 2, 4, 5]);
        assert_eq!(graph.strongest_route(0, 5).unwrap().nodes, [0, 2, 4, 5]);
        assert_eq!(graph.strongest_route(5, 5).unwrap().nodes, [0, 2, 4, 5]);
        assert_eq!(graph.strongest_route(5, 4), None);
    }

    #[test]
    fn a_feature_that_is_pushed_turns_the_answer() {
        let model = open("llama");
        let set = test_sets::per_layer(&model, Site::MlpHookIn, Site::MlpHookOut, false);
        let run = FrozenRun::new(&model, &set, &[1, 9, 21, 17, 8], 1).unwrap();
        let change = |value| FeatureChange {
            layer: 1,
            feature: 3,
            positions: Positions::List(vec![4]),
            op: FeatureOp::Clamp(value),
        };
        let clean = run.answers(&[], &Hold::Nothing).unwrap();
        assert!(!clean.turned() && clean.before.iter().zip(&clean.after).all(|(a, b)| (a - b).abs() < 1e-6));
        let kept = run.activation(1, 4, 3);
        let same = run.answers(&[change(kept)], &Hold::Nothing).unwrap();
        assert!(!same.turned() && same.before.iter().zip(&same.after).all(|(a, b)| (a - b).abs() < 1e-6));
        let pushed = run.answers(&[change(500.0)], &Hold::Nothing).unwrap();
        assert!(pushed.turned());
        let (before, after) = pushed.likeliest();
        let top = pushed.top(1);
        assert_eq!(top.iter().map(|change| change.token).collect::<Vec<_>>(), [before, after]);
        assert!(top[0].before > top[0].after && top[1].after > top[1].before);
        assert!((pushed.after.iter().sum::<f32>() - 1.0).abs() < 1e-4);
    }
}
