//! How the residual stream becomes logits, taken apart: the final norm and head on any stream, norms with their divisor
//! held fixed, what each head adds, and the direction of a token.
//!
//! With its divisor fixed a norm is linear but for its bias, `y = (x − mean(x)) / scale · gain + bias`, so that the
//! parts of a sum can be followed through it one by one (TransformerLens' `apply_ln_to_stack`).

use candle_core::{DType, Tensor};

use crate::base::{Context, Error, Result};

use super::decoder::Model;
use super::hook::{HookPoint, Site};
use super::linear::Linear;
use super::norm::Norm;
use super::plan::HookPlan;
use super::tap::Tap;

/// A norm of the residual stream whose divisor is given from outside.
#[derive(Debug, Clone)]
pub struct FrozenNorm {
    /// Whether the mean is subtracted.
    pub centres: bool,
    /// Multiplies the quotient, `[d]`; in Gemma's norms with the one added.
    pub gain: Option<Vec<f32>>,
    /// Added at the end, `[d]`.
    pub bias: Option<Vec<f32>>,
}

impl FrozenNorm {
    fn of(norm: &Norm) -> Result<Self> {
        let (centres, gain, bias) = norm.parts();
        Ok(Self { centres, gain: gain.map(values).transpose()?, bias: bias.map(values).transpose()? })
    }

    /// The linear part for one vector `[d]`, in place: everything but the bias.
    pub fn apply(&self, x: &mut [f64], scale: f64) {
        let mean = if self.centres { x.iter().sum::<f64>() / x.len().max(1) as f64 } else { 0.0 };
        for x in x.iter_mut() {
            *x = (*x - mean) / scale;
        }
        if let Some(gain) = &self.gain {
            x.iter_mut().zip(gain).for_each(|(x, gain)| *x *= f64::from(*gain));
        }
    }
}

impl Model {
    /// Logits `[b, s, v]` in f32 of the residual stream `[b, s, d]` of any layer, through the final norm, the
    /// unembedding and the soft cap where the model has one: the logit lens (nostalgebraist 2020).
    ///
    /// # Errors
    /// `Unsupported` when the model was opened without its head.
    pub fn read_out(&self, stream: &Tensor) -> Result<Tensor> {
        let plan = HookPlan::new().with_logits().resolve(self.config())?;
        let stream = stream.to_device(self.device())?.to_dtype(self.activation_dtype())?;
        let logits = self.unembed(&stream, false, &mut Tap::new(&plan, 0, 0))?;
        logits.ok_or_else(|| candle_core::Error::Msg("a head that gave no logits".into()).into())
    }

    /// The norm whose divisor is captured at `scale`; `None` where the model has no such norm.
    ///
    /// # Errors
    /// `Unsupported` for a norm that is not one of the residual stream.
    pub fn frozen_norm(&self, scale: HookPoint) -> Result<Option<FrozenNorm>> {
        let block = scale.layer.and_then(|layer| self.blocks.get(layer));
        let norm = match scale.site {
            Site::LnFinalScale => self.ln_final.as_ref(),
            Site::Ln1Scale => block.map(|block| &block.ln1),
            Site::Ln2Scale => block.map(|block| &block.ln2),
            Site::Ln1PostScale => block.and_then(|block| block.ln1_post.as_ref()),
            Site::Ln2PostScale => block.and_then(|block| block.ln2_post.as_ref()),
            _ => {
                return Err(Error::Unsupported {
                    what: format!("the norm at {scale}"),
                    why: "it is no norm of the residual stream".into(),
                    remedy: "name the scale of a block's norm or of the final one".into(),
                });
            }
        };
        norm.map(FrozenNorm::of).transpose()
    }

    /// What each head of `layer` adds before norms and the output bias, `[H, d]` row by row, from `z` `[H · h]` of one
    /// position.
    ///
    /// # Errors
    /// `Unsupported` when the model was opened without the layer; when the product fails.
    pub fn head_results(&self, layer: usize, z: &[f32]) -> Result<Vec<f32>> {
        let heads = self.config().n_heads;
        let z = Tensor::from_slice(z, (1, 1, heads, self.config().d_head), self.device())
            .and_then(|z| z.to_dtype(self.activation_dtype()))
            .during(|| "reading what heads add".into())?;
        values(&self.output(layer)?.contributions(&z)?)
    }

    /// The bias of attention's output projection in `layer`, `[d]`.
    ///
    /// # Errors
    /// `Unsupported` when the model was opened without the layer.
    pub fn attention_bias(&self, layer: usize) -> Result<Option<Vec<f32>>> {
        self.output(layer)?.bias().map(values).transpose()
    }

    /// The weights by which the input of the unembedding, the final norm's output, makes the logit of `token` before any
    /// soft cap: the direction `[d]` and the constant.
    ///
    /// # Errors
    /// `Mismatch` when the token is outside the vocabulary; `Unsupported` when the model was opened without its head.
    pub fn logit_direction(&self, token: u32) -> Result<(Vec<f32>, f64)> {
        let at = token as usize;
        self.tokens(&[[token]])?;
        let head = self.head()?;
        let column = head.weight(self.dtype())?.narrow(1, at, 1)?.contiguous()?;
        let (column, mut constant) = match &self.project_out {
            Some(project) => {
                let through = match project.bias() {
                    Some(bias) => dot(&values(bias)?, &values(&column)?),
                    None => 0.0,
                };
                (project.weight(self.dtype())?.contiguous()?.matmul(&column)?, through)
            }
            None => (column, 0.0),
        };
        if let Some(bias) = head.bias() {
            constant += f64::from(values(bias)?.get(at).copied().unwrap_or_default());
        }
        let factor = self.config().embedding.logit_divisor.recip();
        let direction = values(&column)?.into_iter().map(|w| (f64::from(w) * factor) as f32).collect();
        Ok((direction, constant * factor))
    }

    fn output(&self, layer: usize) -> Result<&Linear> {
        let block = self.blocks.get(layer).ok_or_else(|| Error::Unsupported {
            what: format!("reading layer {layer}"),
            why: format!("the model was opened with {} layers", self.blocks.len()),
            remedy: "open the whole model".into(),
        })?;
        Ok(&block.attention.out)
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

fn values(x: &Tensor) -> Result<Vec<f32>> {
    let host = x.to_dtype(DType::F32).and_then(|x| x.flatten_all()?.to_vec1::<f32>());
    host.during(|| "reading weights".into())
}
