//! What reports say of any transcoder set.

use serde::Serialize;

use crate::base::Result;
use crate::dictionary::{SetConfig, SetKind, TranscoderSet};

/// A set's shape, and where it reads and writes.
#[derive(Debug, Serialize)]
pub(super) struct SetFacts<'a> {
    pub(super) kind: SetKind,
    pub(super) model_name: Option<&'a str>,
    pub(super) scan: &'a str,
    pub(super) architecture: &'static str,
    pub(super) linear_connection: bool,
    pub(super) n_layers: usize,
    pub(super) d_model: usize,
    pub(super) d_transcoder: usize,
    pub(super) feature_input_hook: &'static str,
    pub(super) feature_output_hook: &'static str,
}

impl<'a> SetFacts<'a> {
    /// Of a set.
    ///
    /// # Errors
    /// When its first layer cannot be read.
    pub(super) fn of(set: &'a TranscoderSet) -> Result<Self> {
        let SetConfig { kind, model_name, input, output, scan, n_layers, d_model, d_transcoder } = set.config();
        Ok(Self {
            kind: *kind,
            model_name: model_name.as_deref(),
            scan,
            architecture: set.activation(0)?.name(),
            linear_connection: set.has_skip(),
            n_layers: *n_layers,
            d_model: *d_model,
            d_transcoder: *d_transcoder,
            feature_input_hook: input.name(),
            feature_output_hook: output.name(),
        })
    }

    /// The activation function, and whether a linear connection stands beside the features.
    pub(super) fn activation(&self) -> String {
        format!("{}{}", self.architecture, if self.linear_connection { ", with a linear connection" } else { "" })
    }
}
