//! Sparse dictionaries: `encode` rows to [`SparseCodes`], `decode` codes to rows, and everything that trains and
//! stores them.
//!
//! ```text
//! z = σ((x − b_dec) W_enc + b_enc)      W_enc [d_in, f]   b_enc [f]     encode
//! x̂ = z W_dec + b_dec                   W_dec [f, d_out]  b_dec [d_out] decode
//! ```
//!
//! `σ` is what tells the architectures apart: ReLU, the `k` largest, a threshold a feature, a gate ([`arch`]). `b_dec`
//! is subtracted before encoding only where [`DictionaryConfig::apply_b_dec_to_input`] says so. Orientation and meaning
//! of all weights are those of SAELens, whose directory format [`io`] reads and writes. Rows are raw activations:
//! input scaling is folded into the weights before a dictionary is stored ([`scale`]), and what else happens to a row
//! (its norm, its mean) is done by [`Dictionary::encode`] and undone by [`Dictionary::reconstruct`].
//!
//! A transcoder is a dictionary whose `x̂` is another hook's row; with a skip connection `x̂` gains `x W_skipᵀ` of the
//! raw row, `W_skip [d_out, d_in]`. Codes alone then do not determine `x̂`: [`Dictionary::reconstruct`] and
//! [`Dictionary::reconstruct_codes`] give it, [`Dictionary::decode`] only what the features contribute.
//!
//! Bricken et al. 2023, "Towards Monosemanticity"; Cunningham et al. 2023, "Sparse Autoencoders Find Highly
//! Interpretable Features in Language Models".

pub mod arch;
pub mod codes;
pub mod config;
mod encoder;
pub mod io;
pub mod metadata;
pub mod metrics;
mod normalize;
pub mod scale;
pub mod set;
pub mod train;

use std::borrow::Cow;

use rayon::prelude::*;

pub use arch::Activation;
pub use codes::SparseCodes;
pub use config::{Architecture, DictionaryConfig, NormalizeActivations, ReshapeActivations};
pub use metadata::Metadata;
pub use set::{CrossLayer, SetConfig, SetKind, TranscoderSet};

use crate::base::{Error, Result};
use crate::ops::{Matrix, gemm, sparse};

/// Rows that one decoding task handles.
const DECODE_ROWS: usize = 32;

/// A dictionary in memory, on the CPU, in `f32`.
#[derive(Debug, Clone, PartialEq)]
pub struct Dictionary {
    /// Sizes, architecture and provenance.
    pub config: DictionaryConfig,
    /// Encoder `[d_in, f]`, row-major.
    pub w_enc: Vec<f32>,
    /// Encoder bias `[f]`.
    pub b_enc: Vec<f32>,
    /// Decoder `[f, d_out]`, row-major.
    pub w_dec: Vec<f32>,
    /// Decoder bias `[d_out]`.
    pub b_dec: Vec<f32>,
    /// What turns pre-activations into activations, with its own tensors.
    pub activation: Activation,
    /// Skip connection `[d_out, d_in]`, row-major, from the raw row to the reconstruction.
    pub w_skip: Option<Vec<f32>>,
}

impl Dictionary {
    /// A dictionary from its parts.
    ///
    /// # Errors
    /// `Mismatch` when a tensor does not have the size that `config` gives it, or `activation` is another
    /// architecture's.
    pub fn new(
        config: DictionaryConfig,
        w_enc: Vec<f32>,
        b_enc: Vec<f32>,
        w_dec: Vec<f32>,
        b_dec: Vec<f32>,
        activation: Activation,
    ) -> Result<Self> {
        let (d_in, d_out, f) = (config.d_in, config.d_out, config.d_sae);
        check_size("W_enc", &config, w_enc.len(), d_in * f)?;
        check_size("b_enc", &config, b_enc.len(), f)?;
        check_size("W_dec", &config, w_dec.len(), f * d_out)?;
        check_size("b_dec", &config, b_dec.len(), d_out)?;
        let wrong = match (config.transcoder, config.apply_b_dec_to_input) {
            (false, _) if d_in != d_out => Some("an autoencoder's widths are equal; this is a transcoder"),
            (true, true) => Some("a transcoder encodes without b_dec, which belongs to its output"),
            _ => None,
        };
        if let Some(remedy) = wrong {
            return Err(Error::Mismatch {
                what: "dictionary widths",
                left: format!("d_in {d_in}, apply_b_dec_to_input {}", config.apply_b_dec_to_input),
                right: format!("d_out {d_out}"),
                remedy: remedy.into(),
            });
        }
        activation.check(&config)?;
        Ok(Self { config, w_enc, b_enc, w_dec, b_dec, activation, w_skip: None })
    }

    /// The same with a skip connection `w_skip`, `[d_out, d_in]`.
    ///
    /// # Errors
    /// `Mismatch` when it has another size.
    pub fn with_skip(self, w_skip: Vec<f32>) -> Result<Self> {
        check_size("W_skip", &self.config, w_skip.len(), self.d_out() * self.d_in())?;
        Ok(Self { w_skip: Some(w_skip), ..self })
    }

    /// Width of the rows that [`Dictionary::encode`] takes.
    pub fn d_in(&self) -> usize {
        self.config.d_in
    }

    /// Width of the rows that [`Dictionary::decode`] gives.
    pub fn d_out(&self) -> usize {
        self.config.d_out
    }

    /// Number of features.
    pub fn d_sae(&self) -> usize {
        self.config.d_sae
    }

    /// Active features of each row of `x`, row-major `[n, d_in]`.
    ///
    /// # Errors
    /// `Mismatch` when `x` is not made of whole rows.
    pub fn encode(&self, x: &[f32]) -> Result<SparseCodes> {
        self.check_rows(x, self.d_in(), "d_in")?;
        let encoder = encoder::Encoder {
            weight: Matrix::new(&self.w_enc, self.d_in(), self.d_sae()),
            center: self.center(),
            bias: &self.b_enc,
            activation: &self.activation,
        };
        Ok(encoder.encode(&self.normalized(x)))
    }

    /// What the features of `codes` and `b_dec` contribute, `[n, d_out]`: `z W_dec + b_dec`. That is the reconstruction
    /// unless [`Dictionary::uses_rows_to_reconstruct`].
    ///
    /// # Errors
    /// `Mismatch` when `codes` come from a dictionary of another size.
    pub fn decode(&self, codes: &SparseCodes) -> Result<Vec<f32>> {
        if codes.d_sae != self.d_sae() {
            return Err(Error::Mismatch {
                what: "codes and dictionary",
                left: format!("codes over {} features", codes.d_sae),
                right: format!("{self} with {} features", self.d_sae()),
                remedy: "decode with the dictionary that encoded".into(),
            });
        }
        let d = self.d_out();
        let mut out = vec![0.0; codes.rows() * d];
        if d == 0 {
            return Ok(out);
        }
        out.par_chunks_mut(d * DECODE_ROWS).enumerate().for_each(|(block, out)| {
            for (i, out) in out.chunks_exact_mut(d).enumerate() {
                let (features, values) = codes.row(block * DECODE_ROWS + i);
                let values = self.activation.decoder_values(features, values);
                out.copy_from_slice(&self.b_dec);
                sparse::decode_row(out, features, &values, &self.w_dec);
            }
        });
        Ok(out)
    }

    /// Whether a reconstruction depends on the rows beyond their codes: by a skip connection, or because rows are
    /// normalised before the encoder and that is undone.
    pub fn uses_rows_to_reconstruct(&self) -> bool {
        self.w_skip.is_some() || (self.normalizer().is_some() && !self.config.transcoder)
    }

    /// Whether something happens to rows before the encoder that depends on the row.
    pub fn normalizes_rows(&self) -> bool {
        self.normalizer().is_some()
    }

    /// The reconstruction of `x`, `[n, d_in]`, from `codes`, which are `encode(x)` or an edit of it: `[n, d_out]`.
    ///
    /// # Errors
    /// As [`Dictionary::encode`] and [`Dictionary::decode`]; `Mismatch` when the two have different numbers of rows.
    pub fn reconstruct_codes(&self, x: &[f32], codes: &SparseCodes) -> Result<Vec<f32>> {
        self.check_rows(x, self.d_in(), "d_in")?;
        let rows = x.len() / self.d_in().max(1);
        if rows != codes.rows() {
            return Err(Error::Mismatch {
                what: "rows and their codes",
                left: format!("{rows} rows"),
                right: format!("codes of {} rows", codes.rows()),
                remedy: "reconstruct from the rows that were encoded".into(),
            });
        }
        let mut out = self.decode(codes)?;
        if let Some(normalizer) = self.normalizer() {
            normalizer.undo(x, &mut out);
        }
        if let Some(w_skip) = &self.w_skip {
            let skip = Matrix::new(w_skip, self.d_out(), self.d_in()).t();
            let skipped = gemm::multiply(Matrix::new(x, rows, self.d_in()), skip);
            out.iter_mut().zip(&skipped).for_each(|(out, skipped)| *out += skipped);
        }
        Ok(out)
    }

    /// What the dictionary makes of `x`, `[n, d_in]`: everything, skip connection and undone normalisation included,
    /// `[n, d_out]`.
    ///
    /// # Errors
    /// As [`Dictionary::encode`].
    pub fn reconstruct(&self, x: &[f32]) -> Result<Vec<f32>> {
        self.reconstruct_codes(x, &self.encode(x)?)
    }

    /// What one unit of activation adds to the reconstruction of each row of `x`, as a factor of the decoder row, `[n]`;
    /// `None` where that is one for all rows.
    ///
    /// # Errors
    /// `Mismatch` when `x` is not made of whole rows.
    pub fn output_scales(&self, x: &[f32]) -> Result<Option<Vec<f32>>> {
        self.check_rows(x, self.d_in(), "d_in")?;
        Ok(self.normalizer().and_then(|normalizer| normalizer.output_scales(x)))
    }

    /// Encoder directions of `features` as columns, row-major `[d_in, k]`.
    ///
    /// # Errors
    /// `Flag` when a feature is out of range.
    pub fn encoder_columns(&self, features: &[u32]) -> Result<Vec<f32>> {
        self.check_features(features)?;
        let f = self.d_sae();
        Ok(self.w_enc.chunks_exact(f.max(1)).flat_map(|row| features.iter().map(|&i| row[i as usize])).collect())
    }

    /// What one unit of `feature` adds to the reconstruction, `[d_out]`.
    ///
    /// # Errors
    /// `Flag` when the feature is out of range.
    pub fn decoder_row(&self, feature: u32) -> Result<&[f32]> {
        self.check_features(&[feature])?;
        Ok(&self.w_dec[feature as usize * self.d_out()..][..self.d_out()])
    }

    /// Activations of some features, `[n, k]`, zeros included. Costs `k` columns where the architecture decides
    /// feature by feature, and a whole encoding where features compete.
    ///
    /// # Errors
    /// `Mismatch` when `x` is not made of whole rows; `Flag` when a feature is out of range.
    pub fn feature_activations(&self, x: &[f32], features: &[u32]) -> Result<Vec<f32>> {
        self.check_rows(x, self.d_in(), "d_in")?;
        self.check_features(features)?;
        let k = features.len();
        if !self.activation.is_per_feature() {
            let codes = self.encode(x)?;
            let value = |row: usize, feature: &u32| {
                let (active, values) = codes.row(row);
                active.binary_search(feature).map_or(0.0, |p| values[p])
            };
            return Ok((0..codes.rows()).flat_map(|row| features.iter().map(move |f| value(row, f))).collect());
        }
        let columns = self.encoder_columns(features)?;
        let bias: Vec<f32> = features.iter().map(|&f| self.b_enc[f as usize]).collect();
        let encoder = encoder::Encoder {
            weight: Matrix::new(&columns, self.d_in(), k),
            center: self.center(),
            bias: &bias,
            activation: &self.activation.select(features),
        };
        Ok(encoder.encode(&self.normalized(x)).to_dense())
    }

    /// Rows as the encoder takes them.
    fn normalized<'a>(&self, x: &'a [f32]) -> Cow<'a, [f32]> {
        self.normalizer().map_or(x.into(), |normalizer| normalizer.apply(x))
    }

    fn normalizer(&self) -> Option<normalize::Normalizer> {
        normalize::Normalizer::of(&self.config)
    }

    /// What is subtracted from a row before the encoder.
    fn center(&self) -> Option<&[f32]> {
        self.config.apply_b_dec_to_input.then_some(self.b_dec.as_slice())
    }

    fn check_rows(&self, x: &[f32], width: usize, name: &str) -> Result<()> {
        if width > 0 && x.len().is_multiple_of(width) {
            return Ok(());
        }
        Err(Error::Mismatch {
            what: "activations and dictionary widths",
            left: format!("{} values, no multiple of the width", x.len()),
            right: format!("{self} with {name} {width}"),
            remedy: "use a dictionary that was trained on this hook of this model".into(),
        })
    }

    fn check_features(&self, features: &[u32]) -> Result<()> {
        match features.iter().find(|&&feature| feature as usize >= self.d_sae()) {
            None => Ok(()),
            Some(feature) => Err(Error::flag(
                "--feature",
                format!("a feature of {self}: 0 to {}", self.d_sae().saturating_sub(1)),
                feature,
                "`features` lists the features of a dictionary",
            )),
        }
    }
}

fn check_size(name: &str, config: &DictionaryConfig, found: usize, expected: usize) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    let DictionaryConfig { d_in, d_sae, d_out, .. } = config;
    Err(Error::Mismatch {
        what: "dictionary configuration and weights",
        left: format!("d_in {d_in}, d_sae {d_sae}, d_out {d_out}: {expected} values of {name}"),
        right: format!("{found} values"),
        remedy: "the weights belong to another configuration".into(),
    })
}

impl std::fmt::Display for Dictionary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.config.fmt(f)
    }
}

#[cfg(test)]
pub(crate) mod tests;
