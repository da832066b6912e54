//! Attribution graphs: which features caused the next token, through which edges (Ameisen et al. 2025, "Circuit
//! Tracing: Revealing Computational Graphs in Language Models").

mod types;

pub use types::{
    Edge, Graph, GraphReport, GraphScores, GraphSettings, GraphSource, Node, NodeKind, Verification, VerifiedNode,
};
