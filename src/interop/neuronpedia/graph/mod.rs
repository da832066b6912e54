//! Attribution graphs as circuit-tracer 0.5 writes them (`circuit_tracer/frontend/graph_models.py`) and Neuronpedia
//! takes them (`apps/webapp/app/api/graph/graph-schema.json`, version 1.0.0).
//!
//! ```text
//! DIR/SLUG.json               the graph; SLUG is the name of the file
//! DIR/graph-metadata.json     all graphs of the directory
//! DIR/features/SET/N.json     the features of the graph, N pairing layer and feature
//! ```
//!
//! What only we know (verification, measured edges, report, exact sums) stands in keys called `mechinterp`, which the
//! schema permits and the others pass over: a graph comes back from its file as it was. Node ids are [`Node::id`]'s:
//! circuit-tracer's, but for errors, whose ids there collide with those of features of layer 0.

mod document;
mod read;
mod state;
mod write;

pub use read::{GraphFile, read};
pub use state::{GraphState, Supernode};
pub use write::{METADATA_FILE, Publication, to_json, write, write_features};

#[cfg(doc)]
use crate::analysis::graph::Node;

/// `feature_type` of each kind of node. circuit-tracer calls features of per-layer transcoders cross-layer, too.
const FEATURE: &str = "cross layer transcoder";
const ERROR: &str = "mlp reconstruction error";
const TOKEN: &str = "embedding";
const TARGET: &str = "logit";

#[cfg(test)]
mod tests;
