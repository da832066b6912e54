//! Names that people and programs give to features.

use serde::{Deserialize, Serialize};

/// A name for a feature. A feature has at most one label of each method and model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Label {
    /// The feature.
    #[serde(alias = "index")]
    pub feature: u32,
    /// What it means.
    #[serde(alias = "description")]
    pub text: String,
    /// How the label was made, such as `oai_token-act-pair`; absent when a person wrote it.
    #[serde(default, alias = "typeName", skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// The model that wrote it.
    #[serde(default, alias = "explanationModelName", skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The person who wrote it.
    #[serde(default, alias = "authorId", skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// How well it fits, from 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
}
