//! The graph that writers and pages start from.

use std::time::Instant;

use crate::base::{Progress, Result};
use crate::dictionary::set::{SetKind, TranscoderSet};
use crate::model::Model;

use super::attribute::attribute;
use super::attribution::Attribution;
use super::context::Context;
use super::memory;
use super::prune::{Pruned, prune};
use super::scores::{pruned_scores, scores};
use super::targets::{Target, TargetChoice};
use super::types::{Edge, Graph, GraphReport, GraphScores, GraphSettings, GraphSource, Node, NodeKind};

/// What a graph says of its prompt and model beside what was computed.
#[derive(Clone)]
pub struct About<'a> {
    /// The prompt as given.
    pub prompt: String,
    /// The model.
    pub model: String,
    /// The text of a token.
    pub text: &'a dyn Fn(u32) -> String,
}

/// A traced prompt.
#[derive(Debug)]
pub struct Traced {
    /// The pruned graph.
    pub graph: Graph,
    /// All direct effects that were computed.
    pub attribution: Attribution,
    /// The run that they were computed in.
    pub context: Context,
}

/// Traces a prompt: [`Context::new`], [`TargetChoice::resolve`], [`attribute`], [`prune`], [`build`].
///
/// # Errors
/// As these.
pub fn trace(
    model: &Model,
    set: &TranscoderSet,
    tokens: &[u32],
    choice: &TargetChoice,
    settings: &GraphSettings,
    about: &About<'_>,
    progress: &dyn Progress,
) -> Result<Traced> {
    let start = Instant::now();
    settings.check()?;
    memory::check_prompt(model.config(), tokens.len(), settings.batch_size)?;
    let context = Context::new(model, set, tokens, settings.zero_positions)?;
    let targets = choice.resolve(model, &context)?;
    let attribution = attribute(model, set, &context, targets, settings, progress)?;
    let pruned = prune(&attribution, settings);
    let mut graph = build(set, &context, &attribution, &pruned, settings, about);
    graph.report.seconds = start.elapsed().as_secs_f64();
    Ok(Traced { graph, attribution, context })
}

/// What a graph was made of.
pub(super) struct Frame<'a> {
    pub(super) scan: String,
    pub(super) cross_layer: bool,
    pub(super) tokens: &'a [u32],
    pub(super) n_layers: usize,
    /// The model's layer behind each layer of the attribution.
    pub(super) layers: &'a [usize],
}

/// The pruned graph as data.
pub fn build(
    set: &TranscoderSet,
    context: &Context,
    attribution: &Attribution,
    pruned: &Pruned,
    settings: &GraphSettings,
    about: &About<'_>,
) -> Graph {
    let n_layers = attribution.n_layers();
    let frame = Frame {
        scan: set.config().scan.clone(),
        cross_layer: set.config().kind == SetKind::CrossLayer,
        tokens: &context.tokens,
        n_layers,
        layers: &(0..n_layers).collect::<Vec<_>>(),
    };
    framed(&frame, attribution, pruned, settings, about)
}

/// The same of any attribution.
pub(super) fn framed(
    frame: &Frame<'_>,
    attribution: &Attribution,
    pruned: &Pruned,
    settings: &GraphSettings,
    about: &About<'_>,
) -> Graph {
    let mut index = vec![usize::MAX; pruned.nodes.len()];
    let mut nodes = Vec::new();
    for at in (0..pruned.nodes.len()).filter(|&at| pruned.nodes[at]) {
        index[at] = nodes.len();
        nodes.push(node(frame, attribution, pruned, at, about));
    }
    let edge = |edge: &super::prune::KeptEdge| Edge {
        source: index[edge.source],
        target: index[edge.target],
        weight: edge.weight,
        measured: None,
    };
    Graph {
        source: GraphSource {
            prompt: about.prompt.clone(),
            model: about.model.clone(),
            scan: frame.scan.clone(),
            cross_layer: frame.cross_layer,
            settings: *settings,
        },
        tokens: frame.tokens.to_vec(),
        token_texts: frame.tokens.iter().map(|&token| (about.text)(token)).collect(),
        n_layers: frame.n_layers,
        nodes,
        edges: pruned.edges.iter().map(edge).collect(),
        scores: pruned_scores(attribution, pruned),
        report: report(attribution, scores(attribution)),
        verification: None,
    }
}

impl std::fmt::Debug for About<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("About").field("prompt", &self.prompt).field("model", &self.model).finish_non_exhaustive()
    }
}

fn report(attribution: &Attribution, unpruned_scores: GraphScores) -> GraphReport {
    GraphReport {
        active_features: attribution.active_features,
        selected_features: attribution.features.len(),
        unpruned: (attribution.nodes(), attribution.edges()),
        unpruned_scores,
        largest_row_error: attribution.largest_row_error,
        seconds: 0.0,
    }
}

fn node(frame: &Frame<'_>, attribution: &Attribution, pruned: &Pruned, at: usize, about: &About<'_>) -> Node {
    let s = attribution.positions();
    let (tokens, targets) = (attribution.token_node(0), attribution.target_node(0));
    let (kind, position) = if let Some(feature) = attribution.features.get(at) {
        let &super::ActiveFeature { layer, position, feature, activation } = feature;
        (NodeKind::Feature { layer: frame.layers[layer], feature, activation, label: None }, position)
    } else if at < tokens {
        let error = at - attribution.features.len();
        (NodeKind::Error { layer: frame.layers[error / s] }, error % s)
    } else if at < targets {
        (NodeKind::Token { token: frame.tokens[at - tokens] }, at - tokens)
    } else {
        (target(&attribution.targets[at - targets], about), s - 1)
    };
    let cumulative = (at < targets).then(|| pruned.cumulative[at]);
    Node { kind, position, influence: pruned.influence[at], cumulative_influence: cumulative }
}

fn target(target: &Target, about: &About<'_>) -> NodeKind {
    let &Target { token, against, probability, value, .. } = target;
    let text = match against {
        Some(against) => format!("{} − {}", (about.text)(token), (about.text)(against)),
        None => (about.text)(token),
    };
    NodeKind::Target { token, against, text, probability, value }
}
