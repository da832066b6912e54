//! The file as it is: keys in the order of circuit-tracer's models, then those of Neuronpedia's schema, then ours.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::analysis::graph::{GraphReport, GraphScores, GraphSettings, Verification};

/// The whole file.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Document {
    pub(super) metadata: Metadata,
    #[serde(rename = "qParams", default)]
    pub(super) q_params: Map<String, Value>,
    pub(super) nodes: Vec<NodeEntry>,
    pub(super) links: Vec<Link>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) mechinterp: Option<Own>,
}

/// About the graph; also an entry of `graph-metadata.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Metadata {
    pub(super) slug: String,
    pub(super) scan: String,
    #[serde(default)]
    pub(super) transcoder_list: Vec<String>,
    pub(super) prompt_tokens: Vec<String>,
    pub(super) prompt: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) node_threshold: Option<f64>,
    /// 1 where features are Cantor-paired with their layer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) schema_version: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) info: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) generation_settings: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) pruning_settings: Option<Value>,
}

/// A node.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct NodeEntry {
    pub(super) node_id: String,
    pub(super) feature: Option<i64>,
    pub(super) layer: Value,
    pub(super) ctx_idx: usize,
    pub(super) feature_type: String,
    #[serde(default, deserialize_with = "crate::base::number::or_nan")]
    pub(super) token_prob: f64,
    #[serde(default)]
    pub(super) is_target_logit: bool,
    #[serde(default)]
    pub(super) run_idx: i64,
    #[serde(default)]
    pub(super) reverse_ctx_idx: i64,
    #[serde(rename = "jsNodeId", default)]
    pub(super) js_node_id: String,
    #[serde(default)]
    pub(super) clerp: String,
    #[serde(default)]
    pub(super) influence: Option<f64>,
    #[serde(default)]
    pub(super) activation: Option<f32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) mechinterp: Option<OwnNode>,
}

/// An edge.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Link {
    pub(super) source: String,
    pub(super) target: String,
    #[serde(deserialize_with = "crate::base::number::or_nan")]
    pub(super) weight: f32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) measured: Option<f32>,
}

/// What no other key holds.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Own {
    pub(super) model: String,
    pub(super) scan: String,
    pub(super) cross_layer: bool,
    pub(super) settings: GraphSettings,
    pub(super) n_layers: usize,
    pub(super) tokens: Vec<u32>,
    pub(super) scores: GraphScores,
    pub(super) report: GraphReport,
    /// Its nodes are places in `nodes`.
    pub(super) verification: Option<Verification>,
}

/// What no other key of a node holds.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct OwnNode {
    /// The influence itself; the node's own key is its rank among the others.
    #[serde(deserialize_with = "crate::base::number::or_nan")]
    pub(super) influence: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) target: Option<OwnTarget>,
}

/// What no other key of a target holds.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct OwnTarget {
    pub(super) text: String,
    pub(super) against: Option<u32>,
    #[serde(deserialize_with = "crate::base::number::or_nan")]
    pub(super) value: f64,
}
