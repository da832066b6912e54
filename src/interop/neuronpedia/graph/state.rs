//! What a reader made of a graph: `qParams`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::super::panel::pair;
use crate::analysis::graph::{Graph, NodeKind};

/// Pinned, grouped and renamed nodes. Nodes go by [`Node::id`](crate::analysis::graph::Node::id).
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct GraphState {
    /// Nodes of the subgraph.
    pub pinned: Vec<String>,
    /// Groups of pinned nodes.
    pub supernodes: Vec<Supernode>,
    /// Names given to features, by the number that pairs layer and feature.
    pub clerps: Vec<(u64, String)>,
    /// Nodes of a larger cumulative influence are hidden.
    pub pruning_threshold: Option<f64>,
    /// The node that is looked at.
    pub clicked: Option<String>,
    /// Which edges are shown: `input`, `output`, `both` or `either`.
    pub link_type: Option<String>,
    /// Places of the subgraph's nodes, `x y` of each in thousandths of its frame.
    pub positions: String,
}

/// Nodes under one name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Supernode {
    /// The name.
    pub name: String,
    /// Its nodes.
    pub members: Vec<String>,
}

impl GraphState {
    /// The object `qParams`. Names of features are JSON inside a string, because circuit-tracer's page parses them, and
    /// absent when there are none, because it cannot parse that.
    pub(super) fn to_params(&self) -> Map<String, Value> {
        let Self { pinned, supernodes, clerps, pruning_threshold, clicked, link_type, positions } = self;
        let groups = supernodes.iter().map(|group| {
            let words = [&group.name].into_iter().chain(&group.members);
            words.cloned().collect::<Vec<String>>()
        });
        let mut params = Map::new();
        params.insert("pinnedIds".into(), json!(pinned));
        params.insert("supernodes".into(), json!(groups.collect::<Vec<_>>()));
        params.insert("linkType".into(), json!(link_type.as_deref().unwrap_or("both")));
        params.insert("clickedId".into(), json!(clicked.as_deref().unwrap_or_default()));
        params.insert("sg_pos".into(), json!(positions));
        if let Some(threshold) = pruning_threshold {
            params.insert("pruningThreshold".into(), json!(threshold));
        }
        if !clerps.is_empty() {
            let pairs: Vec<[String; 2]> = clerps.iter().map(|(f, text)| [f.to_string(), text.clone()]).collect();
            params.insert("clerps".into(), json!(json!(pairs).to_string()));
        }
        params
    }

    /// Reads `qParams` as anyone writes it: circuit-tracer's server saves lists as texts of its address bar.
    pub(super) fn of_params(params: &Map<String, Value>) -> Self {
        let text = |key: &str| params.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
        let parsed = |key: &str| match params.get(key) {
            Some(Value::String(text)) => serde_json::from_str(text).unwrap_or(Value::Null),
            Some(value) => value.clone(),
            None => Value::Null,
        };
        let words = |value: &Value| -> Vec<String> {
            let list = value.as_array().map(Vec::as_slice).unwrap_or_default();
            list.iter().filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let pinned = match params.get("pinnedIds") {
            Some(Value::String(text)) => text.split(',').filter(|id| !id.is_empty()).map(str::to_owned).collect(),
            Some(list) => words(list),
            None => Vec::new(),
        };
        let group = |value: &Value| {
            let mut words = words(value).into_iter();
            words.next().map(|name| Supernode { name, members: words.collect() })
        };
        let number = |value: &Value| value.as_u64().or_else(|| value.as_str()?.parse().ok());
        let clerp = |value: &Value| Some((number(value.get(0)?)?, value.get(1)?.as_str()?.to_owned()));
        let list = |value: Value| if let Value::Array(list) = value { list } else { Vec::new() };
        let threshold = params.get("pruningThreshold");
        Self {
            pinned,
            supernodes: list(parsed("supernodes")).iter().filter_map(group).collect(),
            clerps: list(parsed("clerps")).iter().filter_map(clerp).collect(),
            pruning_threshold: threshold.and_then(|value| value.as_f64().or_else(|| value.as_str()?.parse().ok())),
            clicked: text("clickedId").map(str::to_owned),
            link_type: text("linkType").filter(|kind| *kind != "both").map(str::to_owned),
            positions: text("sg_pos").unwrap_or_default().to_owned(),
        }
    }

    /// Gives the features of `graph` the names that a reader gave them.
    pub fn name(&self, graph: &mut Graph) {
        for node in &mut graph.nodes {
            if let NodeKind::Feature { layer, feature, label, .. } = &mut node.kind {
                let number = pair(*layer, *feature);
                if let Some((_, text)) = self.clerps.iter().find(|(f, _)| *f == number) {
                    *label = (!text.is_empty()).then(|| text.clone());
                }
            }
        }
    }
}
