//! How far a graph is to be trusted: what it predicts against what happens.
//!
//! **Edges.** An edge is a direct linear effect, so that it can be measured: its source is taken away while attention
//! patterns, norm divisors and MLP outputs are held at the prompt's run, and the target's pre-activation (or centred
//! logit) falls by the edge's weight, up to rounding. Anything else is an error of attribution.
//!
//! **Total effects.** By the graph, when a node loses a share `r` of its activation, each of its outputs loses
//! `r · weight`, and an active feature whose pre-activation changes by `x` changes its activation by `x`:
//!
//! ```text
//! r_source = 1        r_t = Σ_s weight(s → t) r_s / activation_t        effect on a target = Σ_s weight(s → target) r_s
//! ```
//!
//! the sum over all paths, `(I − A)⁻¹` with features' activation functions linearised. It is compared with taking the
//! node away in three models, each further from the graph:
//!
//! 1. the local replacement model: patterns, norms and errors held, later features free to follow. The graph differs
//!    from it only where features switch on or off, which is counted, and by what was pruned;
//! 2. the model's own MLPs with patterns and norms held: errors follow, too;
//! 3. the free model.
//!
//! A feature that is pushed below its threshold cannot lose more than its activation, and one that was silent may
//! wake up: there linearity ends. Tokens are measured for their edges alone; without its embedding the free model is
//! far from anything it was trained on.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::base::progress::Unit;
use crate::base::{Progress, Result};
use crate::dictionary::TranscoderSet;
use crate::model::{HookPoint, LogitDirections, Model, Run, Site};

use super::ablate::{Contribution, Follow, at_position};
use super::attribute::nan_or_max;
use super::attribution::Attribution;
use super::context::dot;
use super::effects::{pearson, place, total_effects};
use super::frozen_run::{FrozenRun, input, rows};
use super::types::{Graph, NodeKind, Verification, VerifiedNode};

/// How much to verify.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VerifySettings {
    /// Nodes that are taken away, those of most influence.
    pub nodes: usize,
    /// Nodes that are taken away at once, each in its own row of a batch.
    pub batch_size: usize,
}

impl Default for VerifySettings {
    fn default() -> Self {
        Self { nodes: 32, batch_size: 8 }
    }
}

/// Measures the edges and the total effects of the strongest nodes of `graph`, and writes them into it:
/// [`super::Edge::measured`] and [`Graph::verification`]. Total effects are predicted by `whole`, the unpruned graph that
/// it was made from, or where that is not at hand by the pruned graph, which lacks small paths.
///
/// # Errors
/// `Mismatch` when the graph was made with another model or set; as [`Model::forward`].
pub fn verify(
    model: &Model,
    set: &Arc<TranscoderSet>,
    graph: &mut Graph,
    whole: Option<&Attribution>,
    settings: VerifySettings,
    progress: &dyn Progress,
) -> Result<()> {
    let run = FrozenRun::new(model, set, &graph.tokens, graph.source.settings.zero_positions)?;
    let contributions = strongest(&run, graph, settings.nodes)?;
    let readouts = Readouts::of(model, graph)?;
    let mut found = Verification::default();
    let batch = settings.batch_size.max(1);
    progress.begin("verifying", contributions.len() as u64, Unit::Items);
    for nodes in contributions.chunks(batch) {
        crate::analysis::stop_if_cancelled(progress)?;
        let direct = run.without(nodes, Follow::Direct)?;
        let measured = Measured::of(&run, &direct.run, graph, &readouts)?;
        for (row, node) in nodes.iter().enumerate() {
            measured.fill(graph, node.node, row);
        }
        let through: Vec<Contribution> = nodes.iter().filter(|node| !is_token(graph, node.node)).cloned().collect();
        if !through.is_empty() {
            found.nodes.extend(effects(&run, graph, whole, &through, &readouts)?);
        }
        progress.advance(nodes.len() as u64);
    }
    progress.end();
    summarise(graph, &mut found);
    graph.verification = Some(found);
    Ok(())
}

fn is_token(graph: &Graph, node: usize) -> bool {
    matches!(graph.nodes[node].kind, NodeKind::Token { .. })
}

/// The `n` nodes of most influence that can be taken away, strongest first.
fn strongest(run: &FrozenRun<'_>, graph: &Graph, n: usize) -> Result<Vec<Contribution>> {
    let mut order: Vec<usize> = (0..graph.nodes.len()).collect();
    order.retain(|&i| !matches!(graph.nodes[i].kind, NodeKind::Target { .. }));
    order.sort_by(|&a, &b| graph.nodes[b].influence.total_cmp(&graph.nodes[a].influence).then(a.cmp(&b)));
    let contributions = order.into_iter().take(n).map(|i| run.contribution(i, &graph.nodes[i]));
    Ok(contributions.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
}

/// How the targets are read off the input of the unembedding at the last position: node and direction `[d]`.
struct Readouts(Vec<(usize, Vec<f32>)>);

impl Readouts {
    fn of(model: &Model, graph: &Graph) -> Result<Self> {
        let targets: Vec<(usize, u32, Option<u32>)> = graph
            .nodes
            .iter()
            .enumerate()
            .filter_map(|(i, node)| match node.kind {
                NodeKind::Target { token, against, .. } => Some((i, token, against)),
                _ => None,
            })
            .collect();
        let tokens: Vec<u32> =
            targets.iter().flat_map(|(_, token, against)| [*token, against.unwrap_or(*token)]).collect();
        let LogitDirections { rows, mean, .. } = model.logit_directions(&tokens)?;
        let pairs = rows.chunks_exact(2 * mean.len().max(1));
        let readouts = targets.iter().zip(pairs).map(|((i, _, against), pair)| {
            let (direction, other) = pair.split_at(mean.len());
            let less = if against.is_some() { other } else { &mean };
            (*i, direction.iter().zip(less).map(|(a, b)| a - b).collect())
        });
        Ok(Self(readouts.collect()))
    }

    /// By row of a batch the values of the targets, without constants.
    fn read(&self, run: &Run, last: usize) -> Result<Vec<Vec<f64>>> {
        let x = at_position(run, HookPoint::global(Site::UnembedIn), last)?;
        Ok(x.iter().map(|x| self.0.iter().map(|(_, direction)| dot(x, direction)).collect()).collect())
    }
}

/// What pre-activations of the graph's features and values of its targets are in the rows of a batch, and how much less
/// that is than in the clean run.
struct Measured {
    /// By node and row.
    lost: BTreeMap<usize, Vec<f64>>,
    /// Edges by their source.
    edges: BTreeMap<usize, Vec<usize>>,
}

impl Measured {
    fn of(run: &FrozenRun<'_>, changed: &Run, graph: &Graph, readouts: &Readouts) -> Result<Self> {
        let mut lost = BTreeMap::new();
        for layer in 0..run.model.config().n_layers {
            let own: Vec<(usize, usize, u32)> = features_of(graph, layer);
            if own.is_empty() {
                continue;
            }
            let mut features: Vec<u32> = own.iter().map(|(_, _, feature)| *feature).collect();
            features.sort_unstable();
            features.dedup();
            let point = input(&run.set, layer);
            let before = run.set.pre_activations(layer, &rows(run.clean.captured(point)?)?, &features)?;
            let after = run.set.pre_activations(layer, &rows(changed.captured(point)?)?, &features)?;
            let (k, s) = (features.len(), run.positions());
            for (node, position, feature) in own {
                let column = features.partition_point(|known| *known < feature);
                let clean = f64::from(before.get(position * k + column).copied().unwrap_or_default());
                let rows = after.iter().skip(position * k + column).step_by(s * k);
                lost.insert(node, rows.map(|after| clean - f64::from(*after)).collect());
            }
        }
        let last = run.positions() - 1;
        let clean = readouts.read(&run.clean, last)?.into_iter().next().unwrap_or_default();
        let after = readouts.read(changed, last)?;
        for (i, (node, _)) in readouts.0.iter().enumerate() {
            lost.insert(*node, after.iter().map(|row| clean[i] - row[i]).collect());
        }
        let mut edges: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (i, edge) in graph.edges.iter().enumerate() {
            edges.entry(edge.source).or_default().push(i);
        }
        Ok(Self { lost, edges })
    }

    /// Writes what was measured into the edges that leave `source`, which was taken away in row `row`.
    fn fill(&self, graph: &mut Graph, source: usize, row: usize) {
        for &edge in self.edges.get(&source).into_iter().flatten() {
            let edge = &mut graph.edges[edge];
            edge.measured = self.lost.get(&edge.target).and_then(|rows| rows.get(row)).map(|lost| *lost as f32);
        }
    }
}

/// Index, position and number of the features of a layer.
fn features_of(graph: &Graph, layer: usize) -> Vec<(usize, usize, u32)> {
    let nodes = graph.nodes.iter().enumerate();
    nodes
        .filter_map(|(i, node)| match node.kind {
            NodeKind::Feature { layer: own, feature, .. } if own == layer => Some((i, node.position, feature)),
            _ => None,
        })
        .collect()
}

/// The total effects of nodes on all targets.
fn effects(
    run: &FrozenRun<'_>,
    graph: &Graph,
    whole: Option<&Attribution>,
    nodes: &[Contribution],
    readouts: &Readouts,
) -> Result<Vec<VerifiedNode>> {
    let last = run.positions() - 1;
    let clean = readouts.read(&run.clean, last)?.into_iter().next().unwrap_or_default();
    let features = run.without(nodes, Follow::Features)?;
    let mut measured = vec![readouts.read(&features.run, last)?];
    for follow in [Follow::Mlps, Follow::Model] {
        measured.push(readouts.read(&run.without(nodes, follow)?.run, last)?);
    }
    let mut all = Vec::new();
    for (row, node) in nodes.iter().enumerate() {
        let predicted = match whole {
            Some(whole) => whole.total_effects(place(graph, whole, node.node)),
            None => total_effects(graph, node.node),
        };
        for (i, &(target, _)) in readouts.0.iter().enumerate() {
            let lost = |follow: usize| clean[i] - measured[follow][row][i];
            let at = whole.map_or(Some(target), |whole| place(graph, whole, target));
            let predicted = at.and_then(|at| predicted.get(at)).copied().unwrap_or_default();
            all.push(VerifiedNode {
                node: node.node,
                target,
                predicted,
                frozen: lost(0),
                mlps: lost(1),
                free: lost(2),
                switched: features.switched[row],
            });
        }
    }
    Ok(all)
}

fn summarise(graph: &Graph, found: &mut Verification) {
    let mut strongest: BTreeMap<usize, f64> = BTreeMap::new();
    for edge in &graph.edges {
        let known = strongest.entry(edge.target).or_default();
        *known = known.max(f64::from(edge.weight.abs()));
    }
    for edge in &graph.edges {
        let Some(measured) = edge.measured else { continue };
        let off = f64::from((measured - edge.weight).abs()) / strongest[&edge.target].max(f64::MIN_POSITIVE);
        found.edges += 1;
        found.largest_edge_error = Some(nan_or_max(found.largest_edge_error.unwrap_or_default(), off));
    }
    found.effects = found.nodes.len();
    let with = |measured: fn(&VerifiedNode) -> f64| {
        let pairs: Vec<(f64, f64)> = found.nodes.iter().map(|node| (node.predicted, measured(node))).collect();
        pearson(&pairs)
    };
    let correlations = (with(|node| node.frozen), with(|node| node.mlps), with(|node| node.free));
    (found.frozen_correlation, found.mlp_correlation, found.free_correlation) = correlations;
}

#[cfg(test)]
#[path = "verify_tests.rs"]
mod tests;
