//! What an attribution graph is once it is pruned: plain data that every writer and page starts from.

use serde::{Deserialize, Serialize};

use crate::base::{Error, Result};

/// An attribution graph of one prompt: what caused the targets' logits, through which features.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Graph {
    /// Where it comes from.
    pub source: GraphSource,
    /// The token ids of the prompt; none where a file does not say all of them.
    pub tokens: Vec<u32>,
    /// Their texts.
    pub token_texts: Vec<String>,
    /// Layers of the model.
    pub n_layers: usize,
    /// The nodes that pruning kept: features by layer, position and number; errors by layer and position; tokens;
    /// targets.
    pub nodes: Vec<Node>,
    /// The edges that pruning kept, by target and then source.
    pub edges: Vec<Edge>,
    /// How much of the answer the features account for.
    pub scores: GraphScores,
    /// What was left out before pruning, and how the sums come out.
    pub report: GraphReport,
    /// How predicted effects compare with measured ones, where that was asked for.
    pub verification: Option<Verification>,
}

/// What made a graph.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GraphSource {
    /// The prompt as given.
    pub prompt: String,
    /// The model.
    pub model: String,
    /// The transcoder set or the dictionaries.
    pub scan: String,
    /// Whether the features' decoders write to several layers.
    pub cross_layer: bool,
    /// Settings of attribution and pruning.
    pub settings: GraphSettings,
}

/// Settings of attribution and pruning, with circuit-tracer's names and defaults.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GraphSettings {
    /// Targets at most, where none are named.
    pub max_n_logits: usize,
    /// Targets are taken until their probabilities sum to this.
    pub desired_logit_prob: f64,
    /// Rows in one backward sweep.
    pub batch_size: usize,
    /// Features that get a row of their own; the others are left out.
    pub max_feature_nodes: usize,
    /// Share of influence that the kept nodes have.
    pub node_threshold: f64,
    /// Share of influence that the kept edges have.
    pub edge_threshold: f64,
    /// Positions from the start whose features and errors are left out: the attention sink. 4 for Gemma 3's chat models,
    /// whose prompts begin with a fixed turn.
    pub zero_positions: usize,
}

impl Default for GraphSettings {
    fn default() -> Self {
        Self {
            max_n_logits: 10,
            desired_logit_prob: 0.95,
            batch_size: 256,
            max_feature_nodes: 7500,
            node_threshold: 0.8,
            edge_threshold: 0.98,
            zero_positions: 1,
        }
    }
}

impl GraphSettings {
    /// Checks that the numbers make sense.
    ///
    /// # Errors
    /// `Flag` naming the one that does not.
    pub fn check(&self) -> Result<()> {
        let counts = [("--batch-size", self.batch_size), ("--max-feature-nodes", self.max_feature_nodes)];
        if let Some((flag, n)) = counts.into_iter().find(|(_, n)| *n == 0) {
            return Err(Error::flag(flag, "1 or more", n, "leave it out for the default"));
        }
        let shares = [("--node-threshold", self.node_threshold), ("--edge-threshold", self.edge_threshold)];
        match shares.into_iter().find(|(_, share)| !(0.0..=1.0).contains(share)) {
            Some((flag, share)) => Err(Error::flag(flag, "a share from 0 to 1", share, "leave it out for the default")),
            None => Ok(()),
        }
    }
}

/// A node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// What it is.
    #[serde(flatten)]
    pub kind: NodeKind,
    /// Its position in the prompt; a target's is the last.
    pub position: usize,
    /// Its influence on the targets: the sum over all paths of the shares of normalised edges.
    #[serde(deserialize_with = "crate::base::number::or_nan")]
    pub influence: f64,
    /// The share of all influence that this node and those of more influence have; small for the most important.
    /// `None` for targets.
    pub cumulative_influence: Option<f64>,
}

/// The kinds of nodes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum NodeKind {
    /// A feature that is active at a position.
    Feature {
        /// The layer that it reads.
        layer: usize,
        /// Its number.
        feature: u32,
        /// Its activation.
        activation: f32,
        /// A name, from an index or a person.
        label: Option<String>,
    },
    /// What the transcoder of a layer leaves over at a position.
    Error {
        /// The layer.
        layer: usize,
    },
    /// A token of the prompt.
    Token {
        /// Its id.
        token: u32,
    },
    /// What is explained: a logit less the mean of all, or the difference of two.
    Target {
        /// The token id; the first of a contrast.
        token: u32,
        /// The token whose logit is subtracted, in a contrast.
        against: Option<u32>,
        /// The text of the target: a token, or two joined.
        text: String,
        /// Its probability; the weight of a contrast is 1.
        probability: f64,
        /// What is explained, in logits.
        value: f64,
    },
}

/// A direct linear effect, attention patterns and norms held.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Edge {
    /// Index of the source in [`Graph::nodes`].
    pub source: usize,
    /// Index of the target.
    pub target: usize,
    /// What the source contributes to the target's pre-activation or logit.
    #[serde(deserialize_with = "crate::base::number::or_nan")]
    pub weight: f32,
    /// How much went there when the source was taken away, measured with patterns, norms and MLP outputs held.
    pub measured: Option<f32>,
}

/// circuit-tracer's two scores of a graph.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct GraphScores {
    /// Share of the influence of tokens in that of tokens and errors: 1 when no path starts at an error.
    #[serde(deserialize_with = "crate::base::number::or_nan")]
    pub replacement: f64,
    /// Share of the inputs of nodes that come from features and tokens, weighted by influence.
    #[serde(deserialize_with = "crate::base::number::or_nan")]
    pub completeness: f64,
}

/// What attribution did, beside the graph.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct GraphReport {
    /// Active features, `(layer, position, feature)`.
    pub active_features: usize,
    /// Those that got a row.
    pub selected_features: usize,
    /// Nodes and edges before pruning.
    pub unpruned: (usize, usize),
    /// The scores before pruning.
    pub unpruned_scores: GraphScores,
    /// The largest `|Σ row + biases − pre-activation|` of all rows, relative to the largest term.
    #[serde(deserialize_with = "crate::base::number::or_nan")]
    pub largest_row_error: f64,
    /// Wall-clock seconds.
    pub seconds: f64,
}

/// Predicted against measured effects of the strongest nodes.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Verification {
    /// Edges that were measured ([`Edge::measured`]): their source was taken away with patterns, norms and everything
    /// that MLPs add held.
    #[serde(default)]
    pub edges: usize,
    /// The largest `|measured − weight|` of these edges, relative to the strongest edge into the same target. Edges are
    /// exact there, so that more than rounding is an error.
    #[serde(default)]
    pub largest_edge_error: Option<f64>,
    /// Total effects compared, of features and errors on targets.
    pub effects: usize,
    /// Pearson's correlation of predicted total effects with those measured in the local replacement model: patterns,
    /// norms and errors held, features free to follow. The graph is exact there but for features that switch on or off
    /// and for what pruning left out.
    pub frozen_correlation: Option<f64>,
    /// The same with patterns and norms held and the model's own MLPs in place of features.
    #[serde(default)]
    pub mlp_correlation: Option<f64>,
    /// The same in the free model, where the graph is an approximation.
    pub free_correlation: Option<f64>,
    /// One entry a node that was taken away and target, node by node.
    pub nodes: Vec<VerifiedNode>,
}

/// A node's total effect on a target, as the graph predicts it and as measured: how much of the target's value goes when
/// the node is taken away.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct VerifiedNode {
    /// Index in [`Graph::nodes`].
    pub node: usize,
    /// Index of the target there.
    #[serde(default)]
    pub target: usize,
    /// By the graph: the sum over all paths.
    #[serde(deserialize_with = "crate::base::number::or_nan")]
    pub predicted: f64,
    /// Measured with patterns, norms and errors held and later features free to follow.
    #[serde(deserialize_with = "crate::base::number::or_nan")]
    pub frozen: f64,
    /// Measured with patterns and norms held, and the model's own MLPs.
    #[serde(default, deserialize_with = "crate::base::number::or_nan")]
    pub mlps: f64,
    /// Measured in the free model.
    #[serde(deserialize_with = "crate::base::number::or_nan")]
    pub free: f64,
    /// Features that switched on or off where they were free to follow: the graph, which is linear, cannot know that.
    #[serde(default)]
    pub switched: usize,
}

impl Node {
    /// A name that no other node of a graph has: `5_1203_7` for feature 1203 of layer 5 at position 7, `5_error_mlp_7`,
    /// `E_464_3`, and `31_1171_7` for a target of a model of 30 layers. circuit-tracer's are the same but for errors,
    /// which there collide with features of layer 0.
    pub fn id(&self, n_layers: usize) -> String {
        let position = self.position;
        match &self.kind {
            NodeKind::Feature { layer, feature, .. } => format!("{layer}_{feature}_{position}"),
            NodeKind::Error { layer } => format!("{layer}_error_mlp_{position}"),
            NodeKind::Token { token } => format!("E_{token}_{position}"),
            NodeKind::Target { token, against: None, .. } => format!("{}_{token}_{position}", n_layers + 1),
            NodeKind::Target { token, against: Some(against), .. } => {
                format!("{}_{token}-{against}_{position}", n_layers + 1)
            }
        }
    }

    /// The layer of a feature or an error.
    pub fn layer(&self) -> Option<usize> {
        match self.kind {
            NodeKind::Feature { layer, .. } | NodeKind::Error { layer } => Some(layer),
            NodeKind::Token { .. } | NodeKind::Target { .. } => None,
        }
    }
}
