//! The linear maps of the model that attribution runs backwards: how attention carries values, and what logits read.

use std::ops::Range;

use candle_core::{DType, Tensor};

use crate::base::{Context, Error, Result};

use super::decoder::Model;

/// Tokens whose columns of the unembedding are widened at once.
const TOKENS_AT_ONCE: usize = 4096;

/// The maps of one block's attention from its input to values, and from weighted values to its raw output.
#[derive(Debug, Clone, PartialEq)]
pub struct ValueMaps {
    /// `[K · h, d]`, row-major: `v = value · x + value_bias`.
    pub value: Vec<f32>,
    /// `[K · h]`
    pub value_bias: Option<Vec<f32>>,
    /// `[d, H · h]`, row-major: `out = output · z + output_bias`.
    pub output: Vec<f32>,
    /// `[d]`
    pub output_bias: Option<Vec<f32>>,
}

/// The weights by which the input of the unembedding makes logits, before any soft cap.
#[derive(Debug, Clone, PartialEq)]
pub struct LogitDirections {
    /// One row a token that was asked for, `[n, d]`.
    pub rows: Vec<f32>,
    /// What biases add to each of their logits.
    pub constants: Vec<f64>,
    /// The mean row of the whole vocabulary, `[d]`.
    pub mean: Vec<f32>,
    /// The mean of what biases add.
    pub mean_constant: f64,
}

impl Model {
    /// How attention of `layer` carries values.
    ///
    /// # Errors
    /// `Unsupported` when the model was opened without the layer.
    pub fn value_maps(&self, layer: usize) -> Result<ValueMaps> {
        let block = self.blocks.get(layer).ok_or_else(|| Error::Unsupported {
            what: format!("reading layer {layer}"),
            why: format!("the model was opened with {} layers", self.blocks.len()),
            remedy: "open the whole model".into(),
        })?;
        let (value, output) = (&block.attention.v, &block.attention.out);
        let weight = |linear: &super::linear::Linear| values(&linear.weight(DType::F32)?.t()?);
        Ok(ValueMaps {
            value: weight(value)?,
            value_bias: value.bias().map(values).transpose()?,
            output: weight(output)?,
            output_bias: output.bias().map(values).transpose()?,
        })
    }

    /// The directions of `tokens` among those of the whole vocabulary, division of the logits included. The unembedding
    /// is read in pieces; only one that is packed for the CPU's bf16 products is unpacked whole, once.
    ///
    /// # Errors
    /// `Mismatch` when a token is outside the vocabulary; `Unsupported` when the model was opened without its head.
    pub fn logit_directions(&self, tokens: &[u32]) -> Result<LogitDirections> {
        self.tokens(&[tokens])?;
        let head = self.head()?.unpacked()?;
        let width = self.config().embedding.width;
        let vocabulary = self.config().vocab_size;
        let bias = head.bias().map(values).transpose()?.unwrap_or_else(|| vec![0.0; vocabulary]);
        let mut sum = vec![0f64; width];
        for first in (0..vocabulary).step_by(TOKENS_AT_ONCE) {
            let rows = values(&head.outputs(first..vocabulary.min(first + TOKENS_AT_ONCE))?)?;
            for row in rows.chunks_exact(width.max(1)) {
                sum.iter_mut().zip(row).for_each(|(sum, w)| *sum += f64::from(*w));
            }
        }
        let mut rows = Vec::with_capacity((tokens.len() + 1) * width);
        for &token in tokens {
            let one = |range: Range<usize>| values(&head.outputs(range)?);
            rows.extend(one(token as usize..token as usize + 1)?);
        }
        rows.extend(sum.iter().map(|sum| (sum / vocabulary as f64) as f32));
        let mut constants: Vec<f64> = tokens.iter().map(|&t| f64::from(bias[t as usize])).collect();
        constants.push(bias.iter().map(|b| f64::from(*b)).sum::<f64>() / vocabulary as f64);
        let factor = self.config().embedding.logit_divisor.recip();
        let rows = self.before_projection(rows, width, &mut constants)?;
        let mut rows: Vec<f32> = rows.into_iter().map(|w| (f64::from(w) * factor) as f32).collect();
        let mean = rows.split_off(tokens.len() * self.config().d_model);
        let mean_constant = constants.pop().unwrap_or_default() * factor;
        for constant in &mut constants {
            *constant *= factor;
        }
        Ok(LogitDirections { rows, constants, mean, mean_constant })
    }

    /// Rows that read the unembedding's input, in terms of the stream where a projection stands between.
    fn before_projection(&self, rows: Vec<f32>, width: usize, constants: &mut [f64]) -> Result<Vec<f32>> {
        let Some(project) = &self.project_out else { return Ok(rows) };
        if let Some(bias) = project.bias() {
            let bias = values(bias)?;
            for (constant, row) in constants.iter_mut().zip(rows.chunks_exact(width.max(1))) {
                *constant += row.iter().zip(&bias).map(|(w, b)| f64::from(*w) * f64::from(*b)).sum::<f64>();
            }
        }
        let rows = Tensor::from_vec(rows, (constants.len(), width), self.device())?;
        let weight = project.weight(DType::F32)?.to_dtype(DType::F32)?; // d, width
        values(&rows.matmul(&weight.t()?.contiguous()?)?)
    }
}

fn values(x: &Tensor) -> Result<Vec<f32>> {
    let host = x.to_dtype(DType::F32).and_then(|x| x.flatten_all()?.to_vec1::<f32>());
    host.during(|| "reading weights".into())
}
