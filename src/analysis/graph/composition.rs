//! Whether a model composes an answer from an intermediate concept: is the concept on the way in the graph, does the
//! answer turn without it, and does it follow when another concept is put in its place.

use crate::analysis::FeatureOp;
use crate::base::{Error, Result};
use crate::model::Positions;

use super::frozen_run::{FrozenRun, Hold};
use super::intervene::FeatureChange;
use super::paths::Path;
use super::through::Answers;
use super::types::{Graph, NodeKind};

/// What some features of a graph have to do with a target.
#[derive(Debug, Clone, PartialEq)]
pub struct Composition {
    /// The share of what reaches the target that comes through them ([`Graph::share_through`]).
    pub share: f64,
    /// The strongest path through one of them, and that one.
    pub route: Option<(usize, Path)>,
    /// The answers without them.
    pub without: Answers,
    /// The answers without as many other features, of the same layers and positions and the nearest activations: what
    /// taking anything away does. `None` where there are no others.
    pub control: Option<Answers>,
}

impl Graph {
    /// Takes `out` away and sets the features `into` of another graph to `strength` times the activations that they have
    /// there. Positions are those of each graph, so that its prompt should have the same tokens but for the concept's.
    pub fn swapped(&self, out: &[usize], other: &Self, into: &[usize], strength: f32) -> Vec<FeatureChange> {
        let mut changes: Vec<FeatureChange> = out.iter().filter_map(|&i| self.change(i, FeatureOp::Ablate)).collect();
        changes.extend(into.iter().filter_map(|&i| match other.nodes.get(i)?.kind {
            NodeKind::Feature { activation, .. } => other.change(i, FeatureOp::Clamp(strength * activation)),
            _ => None,
        }));
        changes
    }
}

impl FrozenRun<'_> {
    /// What `features` of the graph of this prompt have to do with `target`, the answers measured with `hold`.
    ///
    /// # Errors
    /// As [`FrozenRun::answers`]; `Flag` when there are no features.
    pub fn composition(&self, graph: &Graph, target: usize, features: &[usize], hold: &Hold) -> Result<Composition> {
        let routes = features.iter().filter_map(|&node| Some((node, graph.strongest_route(node, target)?)));
        let stronger = |a: (usize, Path), b: (usize, Path)| if b.1.share > a.1.share { b } else { a };
        let out: Vec<FeatureChange> = features.iter().filter_map(|&i| graph.change(i, FeatureOp::Ablate)).collect();
        if out.is_empty() {
            return Err(Error::flag("--feature", "features of the graph", "none", "name nodes that are features"));
        }
        let others = self.others_than(&out);
        Ok(Composition {
            share: graph.share_through(target, features),
            route: routes.reduce(stronger),
            without: self.answers(&out, hold)?,
            control: if others.is_empty() { None } else { Some(self.answers(&others, hold)?) },
        })
    }

    /// For each change the same of another feature of its layer and position, whose activation is nearest; each feature
    /// once. Fewer where no others are active.
    pub fn others_than(&self, changes: &[FeatureChange]) -> Vec<FeatureChange> {
        let mut others: Vec<FeatureChange> = Vec::new();
        for change in changes {
            let Positions::List(list) = &change.positions else { continue };
            for &position in list {
                let own = self.activation(change.layer, position, change.feature);
                let Some(codes) = self.codes.get(change.layer).filter(|codes| position < codes.rows()) else {
                    continue;
                };
                let (features, values) = codes.row(position);
                let taken = |feature: u32| {
                    let same = |c: &FeatureChange| {
                        (c.layer, c.feature) == (change.layer, feature) && c.positions.contain(position)
                    };
                    changes.iter().chain(&others).any(same)
                };
                let free = features.iter().zip(values).filter(|(feature, _)| !taken(**feature));
                let nearest = free.min_by(|a, b| (a.1 - own).abs().total_cmp(&(b.1 - own).abs()));
                let positions = Positions::List(vec![position]);
                if let Some((&feature, _)) = nearest {
                    others.push(FeatureChange { feature, positions, ..change.clone() });
                }
            }
        }
        others
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::graph::test_sets::{graph_of, node_at, per_layer};
    use crate::analysis::tests::open;
    use crate::model::Site;

    const PROMPT: [u32; 5] = [1, 9, 21, 17, 8];

    #[test]
    fn what_features_have_to_do_with_an_answer_is_measured_with_a_control() {
        let model = open("llama");
        let set = per_layer(&model, Site::MlpHookIn, Site::MlpHookOut, false);
        let run = FrozenRun::new(&model, &set, &PROMPT, 1).unwrap();
        let feature = |layer: usize, position: usize| {
            let (features, values) = run.codes[layer].row(position);
            let kind = NodeKind::Feature { layer, feature: features[0], activation: values[0], label: None };
            node_at(kind, position)
        };
        let target = NodeKind::Target { token: 7, against: None, text: String::new(), probability: 1.0, value: 1.0 };
        let nodes = vec![node_at(NodeKind::Token { token: 8 }, 4), feature(0, 3), feature(1, 4), node_at(target, 4)];
        let graph = graph_of(nodes, &[(0, 1, 1.0), (1, 2, 0.5), (0, 2, 1.0), (2, 3, 3.0), (0, 3, 1.0)]);
        let found = run.composition(&graph, 3, &[1, 2], &Hold::Patterns).unwrap();
        assert!((found.share - 0.75).abs() < 1e-12);
        let (node, path) = found.route.unwrap();
        assert_eq!((node, path.nodes), (2, vec![0, 2, 3]));
        let control = found.control.unwrap();
        assert_eq!(found.without.before, control.before);
        assert!(found.without.after != control.after && control.after != control.before);
        let changes: Vec<FeatureChange> = [1, 2].map(|i| graph.change(i, FeatureOp::Ablate).unwrap()).into();
        let others = run.others_than(&changes);
        assert_eq!(others.len(), 2);
        for (other, own) in others.iter().zip(&changes) {
            assert!((other.layer, &other.positions) == (own.layer, &own.positions) && other.feature != own.feature);
            assert_eq!(other.op, FeatureOp::Ablate);
        }
        assert!(run.composition(&graph, 3, &[0], &Hold::Patterns).is_err(), "a token is no feature");
    }

    #[test]
    fn a_swap_takes_features_out_and_puts_those_of_another_prompt_in() {
        let feature =
            |feature, activation| node_at(NodeKind::Feature { layer: 1, feature, activation, label: None }, 3);
        let one = graph_of(vec![feature(5, 2.0), feature(6, 1.0)], &[]);
        let other = graph_of(vec![feature(9, 4.0), node_at(NodeKind::Token { token: 1 }, 0)], &[]);
        let changes = one.swapped(&[0], &other, &[0, 1], 1.5);
        let seen: Vec<(u32, FeatureOp)> = changes.iter().map(|change| (change.feature, change.op)).collect();
        assert_eq!(seen, [(5, FeatureOp::Ablate), (9, FeatureOp::Clamp(6.0))]);
        assert!(changes.iter().all(|change| change.positions == Positions::List(vec![3])));
    }
}
