//! A dictionary in its file: what it computes is known, and its large weights were not read yet.

use super::build::check_linear;
use super::{EncoderWeights, Floats, Layer, Rows, Skip};
use crate::base::Result;
use crate::dictionary::scale::gather_competing_norms;
use crate::dictionary::{Activation, Dictionary, DictionaryConfig};
use crate::ops::gemm::transposed;

/// A dictionary whose weights stay where they are.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) config: DictionaryConfig,
    /// `[f, d_in]` where `by_feature`, else `[d_in, f]`.
    pub(crate) encoder: Floats,
    /// Whether a row of the encoder is a feature.
    pub(crate) by_feature: bool,
    pub(crate) b_enc: Vec<f32>,
    /// `[f, d_out]`.
    pub(crate) decoder: Floats,
    pub(crate) b_dec: Vec<f32>,
    pub(crate) activation: Activation,
    pub(crate) skip: Option<Skip>,
}

impl Parts {
    /// The parts of a dictionary in memory.
    pub(crate) fn of(dictionary: Dictionary) -> Self {
        let Dictionary { config, w_enc, b_enc, w_dec, b_dec, activation, w_skip } = dictionary;
        Self {
            encoder: Floats::memory("W_enc", w_enc),
            by_feature: false,
            b_enc,
            decoder: Floats::memory("W_dec", w_dec),
            b_dec,
            activation,
            skip: w_skip.map(|w| Skip { weight: Floats::memory("W_skip", w), input_first: false }),
            config,
        }
    }

    /// The dictionary in memory.
    ///
    /// # Errors
    /// As [`Dictionary::new`]; `NonFinite` when a weight is no number.
    pub(crate) fn dictionary(self) -> Result<Dictionary> {
        let Self { config, encoder, by_feature, b_enc, decoder, b_dec, activation, skip } = self;
        let (d_in, d_out) = (config.d_in, config.d_out);
        let w_enc = if by_feature { transposed(&encoder.whole()?, d_in) } else { encoder.whole()?.into_owned() };
        encoder.release();
        let w_dec = decoder.whole()?.into_owned();
        decoder.release();
        let dictionary = Dictionary::new(config, w_enc, b_enc, w_dec, b_dec, activation)?;
        let Some(Skip { weight, input_first }) = skip else { return Ok(dictionary) };
        let whole = weight.whole()?;
        dictionary.with_skip(if input_first { transposed(&whole, d_out) } else { whole.into_owned() })
    }

    /// The dictionary as `layer` of a set.
    ///
    /// # Errors
    /// `Unsupported` when it computes what a set cannot: rows normalised before the encoder, a gate.
    pub(crate) fn layer(self, layer: usize) -> Result<Layer> {
        check_linear(&self.config, layer)?;
        let parts = if self.config.architecture.activations_carry_decoder_norm() {
            // So that an activation times its decoder row is what the feature contributes.
            let mut dictionary = self.dictionary()?;
            gather_competing_norms(&mut dictionary);
            Self::of(dictionary)
        } else {
            self
        };
        let Self { config, encoder, by_feature, b_enc, decoder, b_dec, activation, skip } = parts;
        Ok(Layer {
            encoder: EncoderWeights::new(encoder.of_layer(layer), by_feature, config.d_in, b_enc, activation),
            decoders: vec![Rows::of_matrix(decoder.of_layer(layer), config.d_out)],
            b_dec,
            skip,
        })
    }
}
