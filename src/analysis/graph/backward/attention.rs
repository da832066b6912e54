//! What attention passes on, its patterns held.

use std::borrow::Cow;

use rayon::prelude::*;

use crate::base::Result;
use crate::model::config::BlockLayout;
use crate::ops::{Matrix, gemm, sparse};

use super::super::context::LayerContext;
use super::{Pass, Sweep};

/// Vectors that one task of the pattern product makes.
const VECTORS: usize = 16;

impl Pass<'_> {
    /// Adds what attention passes on, from the stream that it is added to to the stream that it reads.
    pub(super) fn attention(&mut self, l: usize) -> Result<()> {
        if self.live.is_empty() {
            return Ok(());
        }
        let Sweep { model, context, .. } = self.sweep;
        let (config, layer, n) = (model.config(), &context.layers[l], self.live.len());
        let maps = model.value_maps(l)?;
        let stream = std::mem::take(&mut self.live.g);
        let mut g = self.added(&stream);
        if self.layout() == BlockLayout::OutputNorm {
            self.through(&mut g, layer.ln1.as_ref());
        }
        self.through(&mut g, layer.ln1_post.as_ref());
        self.add_bias(&g, maps.output_bias.as_deref());
        let (d, q_width) = (config.d_model, config.n_heads * config.d_head);
        let kv_width = config.n_key_value_heads * config.d_head;
        let by_head = gemm::multiply(Matrix::new(&g, n, d), Matrix::new(&maps.output, d, q_width));
        let mut values = self.looked_back(layer, &by_head);
        match &layer.clipped {
            Some(clipped) => self.unclipped(&mut values, clipped, maps.value_bias.as_deref()),
            None => self.add_bias(&values, maps.value_bias.as_deref()),
        }
        let read = gemm::multiply(Matrix::new(&values, n, kv_width), Matrix::new(&maps.value, kv_width, d));
        let mut read = Cow::Owned(read);
        if self.layout().norms_inputs() {
            self.through(&mut read, layer.ln1.as_ref());
        }
        self.live.g = stream;
        self.live.g.par_iter_mut().zip(read.par_iter()).for_each(|(g, read)| *g += read);
        Ok(())
    }

    /// Gradients of values `[n, K · h]` from those of weighted values `[n, H · h]`: the transposed pattern, summed over
    /// the query heads that share a key head.
    fn looked_back(&self, layer: &LayerContext, by_head: &[f32]) -> Vec<f32> {
        let config = self.sweep.model.config();
        let (heads, h, s) = (config.n_heads, config.d_head, self.live.s());
        let group = heads / config.n_key_value_heads;
        let width = config.n_key_value_heads * h;
        let starts = self.live.starts();
        let mut out = vec![0.0; self.live.len() * width];
        let tasks = out.par_chunks_mut(width * VECTORS).enumerate();
        tasks.for_each(|(task, out)| {
            let mut indices: Vec<u32> = Vec::with_capacity(s);
            for (at, out) in out.chunks_exact_mut(width).enumerate().map(|(i, out)| (task * VECTORS + i, out)) {
                let key = self.live.positions[at] as usize;
                let i = at - starts[key];
                let (_, last) = self.live.row(i);
                for head in 0..heads {
                    indices.clear();
                    indices.extend((key..=last).map(|query| ((starts[query] + i) * heads + head) as u32));
                    let weights = &layer.pattern[(head * s + key) * s..][key..=last];
                    sparse::decode_row(&mut out[head / group * h..][..h], &indices, weights, by_head);
                }
            }
        });
        out
    }

    /// Leaves gradients of values only where the model does not clip them; a clipped value is a constant.
    fn unclipped(&mut self, g: &mut [f32], clipped: &[f32], bias: Option<&[f32]>) {
        let width = g.len() / self.live.len().max(1);
        let at = |position: usize| &clipped[position * width..][..width];
        let constants: Vec<f32> = clipped.iter().map(|v| if v.is_nan() { 0.0 } else { *v }).collect();
        self.met_by(g, |p| &constants[p * width..][..width], |row, _, value| row.bias += f64::from(value));
        for (g, position) in g.chunks_exact_mut(width.max(1)).zip(&self.live.positions) {
            for (g, v) in g.iter_mut().zip(at(*position as usize)) {
                if !v.is_nan() {
                    *g = 0.0;
                }
            }
        }
        self.add_bias(g, bias);
    }
}
