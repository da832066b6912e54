//! Sparse dictionaries: `encode` rows to [`SparseCodes`], `decode` codes to rows, and everything that trains and
//! stores them.
//!
//! ```text
//! z = σ((x − b_dec) W_enc + b_enc)      W_enc [d_in, f]   b_enc [f]     encode
//! x̂ = z W_dec + b_dec                   W_dec [f, d_out]  b_dec [d_out] decode
//! ```
//!
//! `σ` is what tells the architectures apart: ReLU, the `k` largest, or a threshold a feature ([`arch`]). `b_dec` is
//! subtracted before encoding only where [`DictionaryConfig::apply_b_dec_to_input`] says so. Orientation and meaning
//! of all weights are those of SAELens, whose directory format [`io`] reads and writes. Rows are raw activations:
//! input scaling is folded into the weights before a dictionary is stored ([`scale`]).
//!
//! Bricken et al. 2023, "Towards Monosemanticity"; Cunningham et al. 2023, "Sparse Autoencoders Find Highly
//! Interpretable Features in Language Models".

pub mod arch;
pub mod codes;
pub mod config;
mod encoder;
pub mod io;
pub mod metrics;
pub mod scale;
pub mod train;

use rayon::prelude::*;

pub use arch::Activation;
pub use codes::SparseCodes;
pub use config::{Architecture, DictionaryConfig, Metadata};

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
        let sizes = [
            ("W_enc", w_enc.len(), d_in * f),
            ("b_enc", b_enc.len(), f),
            ("W_dec", w_dec.len(), f * d_out),
            ("b_dec", b_dec.len(), d_out),
        ];
        for (name, found, expected) in sizes {
            if found != expected {
                return Err(Error::Mismatch {
                    what: "dictionary configuration and weights",
                    left: format!("d_in {d_in}, d_sae {f}, d_out {d_out}: {expected} values of {name}"),
                    right: format!("{found} values"),
                    remedy: "the weights belong to another configuration".into(),
                });
            }
        }
        if config.apply_b_dec_to_input && d_in != d_out {
            return Err(Error::Mismatch {
                what: "dictionary widths",
                left: format!("apply_b_dec_to_input with d_in {d_in}"),
                right: format!("d_out {d_out}"),
                remedy: "a dictionary of two widths encodes without b_dec".into(),
            });
        }
        activation.check(&config)?;
        Ok(Self { config, w_enc, b_enc, w_dec, b_dec, activation })
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
        Ok(encoder.encode(x))
    }

    /// Rows `[n, d_out]` that `codes` describe.
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

    /// `decode(encode(x))`, `[n, d_out]`.
    ///
    /// # Errors
    /// As [`Dictionary::encode`].
    pub fn reconstruct(&self, x: &[f32]) -> Result<Vec<f32>> {
        self.decode(&self.encode(x)?)
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

    /// Pre-activations of some features, `[n, k]`: `(x − b_dec) W_enc + b_enc`, for `x` `[n, d_in]`.
    ///
    /// # Errors
    /// `Mismatch` when `x` is not made of whole rows; `Flag` when a feature is out of range.
    pub fn pre_activations(&self, x: &[f32], features: &[u32]) -> Result<Vec<f32>> {
        self.check_rows(x, self.d_in(), "d_in")?;
        let columns = self.encoder_columns(features)?;
        let centered = encoder::centered(x, self.center());
        let rows = Matrix::new(&centered, x.len() / self.d_in().max(1), self.d_in());
        let mut out = gemm::multiply(rows, Matrix::new(&columns, self.d_in(), features.len()));
        for row in out.chunks_exact_mut(features.len().max(1)) {
            for (value, &feature) in row.iter_mut().zip(features) {
                *value += self.b_enc[feature as usize];
            }
        }
        Ok(out)
    }

    /// Activations of some features, `[n, k]`, zeros included. Costs `k` columns where the architecture decides
    /// feature by feature, and a whole encoding where features compete.
    ///
    /// # Errors
    /// As [`Dictionary::pre_activations`].
    pub fn feature_activations(&self, x: &[f32], features: &[u32]) -> Result<Vec<f32>> {
        if !self.activation.is_per_feature() {
            self.check_features(features)?;
            let codes = self.encode(x)?;
            let value = |row: usize, feature: &u32| {
                let (active, values) = codes.row(row);
                active.binary_search(feature).map_or(0.0, |p| values[p])
            };
            return Ok((0..codes.rows()).flat_map(|row| features.iter().map(move |f| value(row, f))).collect());
        }
        let mut out = self.pre_activations(x, features)?;
        for row in out.chunks_exact_mut(features.len().max(1)) {
            for (value, &feature) in row.iter_mut().zip(features) {
                *value = self.activation.of_one(feature, *value);
            }
        }
        Ok(out)
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

impl std::fmt::Display for Dictionary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.config.fmt(f)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::ops::gemm::tests::{numbers, with_threads};

    pub(crate) fn random(architecture: Architecture, d: usize, f: usize) -> Dictionary {
        let activation = match architecture {
            Architecture::Relu => Activation::relu(),
            Architecture::TopK { k, rescale_acts_by_decoder_norm } => {
                Activation::top_k(k, rescale_acts_by_decoder_norm.then(|| numbers(f * d, "w_dec")).as_deref(), d)
            }
            Architecture::JumpRelu => Activation::jump_relu(numbers(f, "threshold").iter().map(|t| t.abs()).collect()),
        };
        let config = DictionaryConfig::new(architecture, d, f);
        let (w_enc, w_dec) = (numbers(d * f, "w_enc"), numbers(f * d, "w_dec"));
        Dictionary::new(config, w_enc, numbers(f, "b_enc"), w_dec, numbers(d, "b_dec"), activation).unwrap()
    }

    /// The equations of the module documentation, one number at a time.
    fn naive(dictionary: &Dictionary, x: &[f32]) -> (Vec<Vec<f32>>, Vec<f32>) {
        let Dictionary { config, w_enc, b_enc, w_dec, b_dec, activation } = dictionary;
        let (d, f) = (config.d_in, config.d_sae);
        let (mut codes, mut rows) = (Vec::new(), Vec::new());
        for x in x.chunks_exact(d) {
            let pre = |j: usize| (0..d).map(|i| (x[i] - b_dec[i]) * w_enc[i * f + j]).sum::<f32>() + b_enc[j];
            let norm = |j: usize| w_dec[j * d..][..d].iter().map(|w| w * w).sum::<f32>().sqrt();
            let mut z: Vec<f32> = (0..f).map(pre).collect();
            let mut scale = vec![1.0; f];
            match (config.architecture, activation) {
                (Architecture::Relu, _) => z.iter_mut().for_each(|z| *z = z.max(0.0)),
                (_, Activation::JumpRelu(jump)) => {
                    z.iter_mut().zip(&jump.threshold).for_each(|(z, t)| *z = if *z > *t { z.max(0.0) } else { 0.0 });
                }
                (Architecture::TopK { k, rescale_acts_by_decoder_norm }, _) => {
                    if rescale_acts_by_decoder_norm {
                        scale = (0..f).map(norm).collect();
                    }
                    z.iter_mut().zip(&scale).for_each(|(z, s)| *z *= s);
                    let mut sorted = z.clone();
                    sorted.sort_by(|a, b| b.total_cmp(a));
                    for z in &mut z {
                        *z = if *z >= sorted[k - 1] { z.max(0.0) } else { 0.0 };
                    }
                }
                _ => unreachable!(),
            }
            rows.extend((0..d).map(|i| b_dec[i] + (0..f).map(|j| z[j] / scale[j] * w_dec[j * d + i]).sum::<f32>()));
            codes.push(z);
        }
        (codes, rows)
    }

    fn architectures() -> [Architecture; 4] {
        [
            Architecture::Relu,
            Architecture::JumpRelu,
            Architecture::TopK { k: 5, rescale_acts_by_decoder_norm: false },
            Architecture::TopK { k: 5, rescale_acts_by_decoder_norm: true },
        ]
    }

    #[test]
    fn encode_and_decode_equal_their_equations() {
        for architecture in architectures() {
            let dictionary = random(architecture, 19, 531);
            let x = numbers(263 * 19, "x");
            let codes = dictionary.encode(&x).unwrap();
            let (dense, rows) = naive(&dictionary, &x);
            assert_eq!(codes.rows(), 263);
            for (i, expected) in dense.iter().enumerate() {
                let (features, values) = codes.row(i);
                assert!(features.is_sorted() && values.iter().all(|v| *v > 0.0));
                let mut got = vec![0.0; 531];
                features.iter().zip(values).for_each(|(f, v)| got[*f as usize] = *v);
                assert!(got.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-4), "{architecture:?} row {i}");
            }
            let decoded = dictionary.reconstruct(&x).unwrap();
            assert!(decoded.iter().zip(&rows).all(|(a, b)| (a - b).abs() < 1e-3 * (1.0 + b.abs())), "{architecture:?}");
            assert!(!codes.is_empty() && codes.len() < 263 * 531);
        }
    }

    #[test]
    fn single_features_agree_with_the_whole_code() {
        for architecture in architectures() {
            let dictionary = random(architecture, 13, 70);
            let x = numbers(9 * 13, "x");
            let codes = dictionary.encode(&x).unwrap();
            let features = [3, 69, 0, 41];
            let some = dictionary.feature_activations(&x, &features).unwrap();
            for row in 0..9 {
                let (active, values) = codes.row(row);
                for (k, feature) in features.iter().enumerate() {
                    let whole = active.iter().position(|f| f == feature).map_or(0.0, |p| values[p]);
                    assert!((some[row * 4 + k] - whole).abs() < 1e-5, "{architecture:?}");
                }
            }
        }
    }

    #[test]
    fn the_bits_do_not_depend_on_the_threads() {
        let dictionary = random(Architecture::Relu, 33, 700);
        let x = numbers(600 * 33, "x");
        let both = || (dictionary.encode(&x).unwrap(), dictionary.reconstruct(&x).unwrap());
        assert_eq!(with_threads(1, both), with_threads(2, both));
    }

    #[test]
    fn wrong_widths_and_features_are_errors() {
        let dictionary = random(Architecture::Relu, 4, 8);
        assert!(matches!(dictionary.encode(&[0.0; 5]), Err(Error::Mismatch { .. })));
        assert!(matches!(dictionary.decode(&SparseCodes::new(9)), Err(Error::Mismatch { .. })));
        let error = dictionary.decoder_row(8).unwrap_err().to_string();
        assert!(error.contains("0 to 7"), "{error}");
        assert!(Dictionary { ..dictionary.clone() } == dictionary);
        let Dictionary { config, w_enc, b_enc, w_dec, activation, .. } = dictionary;
        assert!(matches!(
            Dictionary::new(config, w_enc, b_enc, w_dec, vec![0.0; 3], activation),
            Err(Error::Mismatch { .. })
        ));
    }
}
