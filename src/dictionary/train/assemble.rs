//! From trained layers to a set of transcoders.

use super::run::TrainedLayer;
use crate::base::Result;
use crate::dictionary::Dictionary;
use crate::dictionary::set::{CrossLayer, SetConfig, SetKind, TranscoderSet};

/// The set of `layers`, the first that of layer 0. `scan` is its name.
///
/// # Errors
/// `Unsupported` when layers do not say which hooks they read and write; `Mismatch` when they do not belong together.
pub fn assemble(layers: Vec<TrainedLayer>, kind: SetKind, scan: &str) -> Result<TranscoderSet> {
    let dictionaries: Vec<Dictionary> = layers.into_iter().map(|layer| layer.dictionary).collect();
    let config = SetConfig { kind, ..SetConfig::of_layers(&dictionaries, scan)? };
    match kind {
        SetKind::PerLayer => TranscoderSet::from_layers(config, dictionaries),
        SetKind::CrossLayer => {
            let d = config.d_model;
            TranscoderSet::from_cross_layer(config, dictionaries.into_iter().map(|wide| cross_layer(wide, d)).collect())
        }
    }
}

/// A layer whose decoder rows for all layers stand one after the other, with a decoder for each.
fn cross_layer(wide: Dictionary, d: usize) -> CrossLayer {
    let targets = wide.d_out() / d.max(1);
    let block = |target: usize| {
        let rows = wide.w_dec.chunks_exact((targets * d).max(1));
        rows.flat_map(|row| &row[target * d..(target + 1) * d]).copied().collect()
    };
    let w_dec = (0..targets).map(block).collect();
    let Dictionary { w_enc, b_enc, mut b_dec, activation, w_skip, .. } = wide;
    b_dec.truncate(d);
    CrossLayer { w_enc, b_enc, w_dec, b_dec, activation, w_skip }
}
