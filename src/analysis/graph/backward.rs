//! One sweep of a batch of rows from the top of the model to its embeddings, without automatic differentiation.
//!
//! With attention patterns, divisors of norms and outputs of MLPs fixed, the stream is a linear map of embeddings and of
//! what transcoders write, plus constants. The sweep carries the gradient of each row's target back through that map and
//! meets every writer with it:
//!
//! ```text
//! G [row, position, d]                                 target: W_U column less the mean, through the final norm
//! for l = L−1 … 0:
//!   feature (s, p) writing to l:   ⟨G_out[p], a_s W_dec_s⟩       error: ⟨G_out[p], e_lp⟩       constants: the bias
//!   G += norm2ᵀ(skipᵀ(G_out) + encoder rows of the features of layer l that join)
//!   G += norm1ᵀ(W_Vᵀ Pᵀ W_Oᵀ G)                                                           every head, rows of P frozen
//! token p: ⟨G[p], W_E[token_p]⟩
//! ```
//!
//! That is circuit-tracer's local replacement model (Ameisen et al. 2025) with two differences that change no edge: rows
//! start at their own layer, and constants (biases, positions, what stands where features are left out) are kept, so
//! that a row and its bias sum to what the target is in the model.

use std::borrow::Cow;

use rayon::prelude::*;

use crate::base::Result;
use crate::dictionary::set::TranscoderSet;
use crate::model::config::BlockLayout;
use crate::model::{Model, Site};
use crate::ops::{self, Matrix, gemm};

use super::context::{Context, LayerContext};
use super::held::HeldNorm;
use super::live::Live;

mod attention;

/// Where a row starts: the encoder of a feature at the input of its layer's transcoder, or at layer `n_layers` what
/// reads the final norm.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seed<'a> {
    pub(super) layer: usize,
    pub(super) position: usize,
    /// `[d]`
    pub(super) vector: &'a [f32],
}

/// The entries of one row, as [`super::columns::Columns`] orders them, and what constants add.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) layer: usize,
    pub(super) position: usize,
    pub(super) entries: Vec<f32>,
    pub(super) bias: f64,
}

/// What a sweep reads.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sweep<'a> {
    pub(super) model: &'a Model,
    pub(super) set: &'a TranscoderSet,
    pub(super) context: &'a Context,
}

impl Sweep<'_> {
    /// The rows of `seeds`.
    ///
    /// # Errors
    /// When weights cannot be read.
    pub(super) fn run(&self, seeds: &[Seed<'_>]) -> Result<Vec<Row>> {
        let columns = &self.context.columns;
        let empty = |&Seed { layer, position, .. }: &Seed<'_>| Row {
            layer,
            position,
            entries: vec![0.0; columns.len(layer, position)],
            bias: 0.0,
        };
        let mut pass = Pass {
            sweep: *self,
            seeds,
            rows: seeds.iter().map(empty).collect(),
            live: Live::new(columns.positions, self.model.config().d_model),
        };
        pass.join(columns.n_layers);
        let highest = seeds.iter().map(|seed| seed.layer).max().unwrap_or(0);
        for layer in (0..columns.n_layers.min(highest + 1)).rev() {
            pass.block(layer)?;
        }
        pass.embeddings();
        Ok(pass.rows)
    }
}

/// A sweep under way.
struct Pass<'a> {
    sweep: Sweep<'a>,
    seeds: &'a [Seed<'a>],
    rows: Vec<Row>,
    live: Live,
}

impl Pass<'_> {
    fn layout(&self) -> BlockLayout {
        self.sweep.model.config().layout
    }

    /// From the gradient at the block's output to that at its input.
    fn block(&mut self, l: usize) -> Result<()> {
        let context = self.sweep.context;
        let layer = &context.layers[l];
        let layout = self.layout();
        if layout == BlockLayout::StreamNorm {
            self.pull_stream(layer.ln2.as_ref());
        }
        let skipped = if self.live.is_empty() {
            None
        } else {
            let g = std::mem::take(&mut self.live.g);
            let g_out = self.at_output(layer, &g);
            self.score(l, &g_out)?;
            let skipped = self.skip(l, layer, &g_out)?;
            self.live.g = g;
            skipped
        };
        if layout.is_parallel() {
            self.attention(l)?;
        }
        if let Some(skipped) = skipped {
            self.live.g.par_iter_mut().zip(&skipped).for_each(|(g, skipped)| *g += skipped);
        }
        self.join(l);
        if layout == BlockLayout::StreamNorm {
            self.pull_stream(layer.ln1.as_ref());
        }
        if !layout.is_parallel() {
            self.attention(l)?;
        }
        Ok(())
    }

    /// The gradient at the place where the layer's transcoder writes.
    fn at_output<'g>(&mut self, layer: &LayerContext, g: &'g [f32]) -> Cow<'g, [f32]> {
        let mut g = self.added(g);
        if self.layout() == BlockLayout::OutputNorm {
            self.through(&mut g, layer.ln2.as_ref());
        }
        if self.sweep.set.config().output == Site::MlpHookOut {
            self.through(&mut g, layer.ln2_post.as_ref());
        }
        g
    }

    /// The gradient of what attention or MLP give from that of what is added to the stream.
    #[expect(clippy::float_cmp, reason = "one is exact in a configuration and stands for no multiplication at all")]
    fn added<'g>(&self, g: &'g [f32]) -> Cow<'g, [f32]> {
        let multiplier = self.sweep.model.config().residual_multiplier;
        if multiplier == 1.0 {
            return Cow::Borrowed(g);
        }
        g.par_iter().map(|g| (f64::from(*g) * multiplier) as f32).collect::<Vec<_>>().into()
    }

    /// Passes gradients of a norm's output on to its input, and keeps what its bias adds.
    fn through(&mut self, g: &mut Cow<'_, [f32]>, norm: Option<&HeldNorm>) {
        let Some(norm) = norm else { return };
        self.add_bias(g, norm.bias());
        norm.pull_all(g.to_mut(), &self.live.positions, true);
    }

    /// The same for the stream itself.
    fn pull_stream(&mut self, norm: Option<&HeldNorm>) {
        let mut g = Cow::Owned(std::mem::take(&mut self.live.g));
        self.through(&mut g, norm);
        self.live.g = g.into_owned();
    }

    /// Adds what a constant vector, the same at all positions, gives each row.
    fn add_bias(&mut self, g: &[f32], constant: Option<&[f32]>) {
        let Some(constant) = constant else { return };
        self.met_by(g, |_| constant, |row, _, value| row.bias += f64::from(value));
    }

    /// Multiplies the gradients at every position with that position's vector, and hands the products to `keep` with
    /// row and position.
    fn met_by<'v>(
        &mut self,
        g: &[f32],
        vector: impl Fn(usize) -> &'v [f32] + Sync,
        keep: impl Fn(&mut Row, usize, f32),
    ) {
        let live = &self.live;
        let products = (0..live.s()).into_par_iter().map(|position| {
            let v = vector(position);
            let mut out = vec![0.0; live.block(position).len()];
            let block = live.block(position);
            ops::dots(&g[block.start * v.len()..block.end * v.len()], v, &mut out);
            out
        });
        for (position, products) in products.collect::<Vec<_>>().into_iter().enumerate() {
            for (i, value) in products.into_iter().enumerate() {
                keep(&mut self.rows[self.live.row(i).0], position, value);
            }
        }
    }

    /// What the transcoders' features, errors and constants that are written at layer `l` add to each row.
    fn score(&mut self, l: usize, g: &[f32]) -> Result<()> {
        let Sweep { set, context, .. } = self.sweep;
        let d = self.sweep.model.config().d_model;
        for source in (0..=l).filter(|&source| set.writes_to(source).contains(&l)) {
            self.score_features(source, l, g)?;
        }
        let (errors, columns) = (&context.errors[l], &context.columns);
        self.met_by(
            g,
            |position| &errors[position * d..][..d],
            |row, position, value| row.entries[columns.error_entry(row.layer, row.position, l, position)] = value,
        );
        let constant = &context.layers[l].constant;
        self.met_by(g, |position| &constant[position * d..][..d], |row, _, value| row.bias += f64::from(value));
        Ok(())
    }

    /// What the features of layer `source` write to layer `l`.
    fn score_features(&mut self, source: usize, l: usize, g: &[f32]) -> Result<()> {
        let Sweep { set, context, .. } = self.sweep;
        let (columns, d) = (&context.columns, self.sweep.model.config().d_model);
        let all = columns.features_at(source, 0).start..columns.features_at(source, columns.positions - 1).end;
        let mut numbers: Vec<u32> = context.features[all].iter().map(|feature| feature.feature).collect();
        numbers.sort_unstable();
        numbers.dedup();
        if numbers.is_empty() {
            return Ok(());
        }
        let decoder = set.decoder_rows(source, l, &numbers)?;
        let live = &self.live;
        let blocks = (0..live.s()).into_par_iter().filter_map(|position| {
            let features = &context.features[columns.features_at(source, position)];
            let block = live.block(position);
            if features.is_empty() || block.is_empty() {
                return None;
            }
            let mut written = Vec::with_capacity(features.len() * d);
            for feature in features {
                let at = numbers.binary_search(&feature.feature).unwrap_or_default();
                written.extend(decoder[at * d..(at + 1) * d].iter().map(|w| w * feature.activation));
            }
            let mut out = vec![0.0; block.len() * features.len()];
            let g = Matrix::new(&g[block.start * d..block.end * d], block.len(), d);
            gemm::multiply_here(&mut out, g, Matrix::new(&written, features.len(), d).t(), false);
            Some((position, features.len(), out))
        });
        for (position, n, products) in blocks.collect::<Vec<_>>() {
            for (i, values) in products.chunks_exact(n).enumerate() {
                let (row, last) = self.live.row(i);
                let entry = columns.feature_entry(last, source, position);
                let entries = &mut self.rows[row].entries[entry..entry + n];
                entries.iter_mut().zip(values).for_each(|(entry, value)| *entry += value);
            }
        }
        Ok(())
    }

    /// The gradient that the linear skip of the layer's transcoder passes on to the stream its branch starts at.
    fn skip(&mut self, l: usize, layer: &LayerContext, g_out: &[f32]) -> Result<Option<Vec<f32>>> {
        let Some(skip) = self.sweep.set.skip(l)? else { return Ok(None) };
        let d = self.sweep.model.config().d_model;
        let mut g = Cow::Owned(gemm::multiply(Matrix::new(g_out, self.live.len(), d), Matrix::new(&skip, d, d)));
        match self.input_norm(layer) {
            Some((norm, true)) => self.through(&mut g, Some(norm)),
            Some((norm, false)) => norm.pull_all(g.to_mut(), &self.live.positions, false),
            None => {}
        }
        Ok(Some(g.into_owned()))
    }

    /// The norm between the stream and what the transcoder reads, and whether its gain lies between them too.
    fn input_norm<'c>(&self, layer: &'c LayerContext) -> Option<(&'c HeldNorm, bool)> {
        let norm = layer.ln2.as_ref().filter(|_| self.layout().norms_inputs())?;
        match self.sweep.set.config().input {
            Site::MlpHookIn => Some((norm, true)),
            Site::Ln2Normalized => Some((norm, false)),
            _ => None,
        }
    }

    /// Lets the rows that start at `layer` join.
    fn join(&mut self, layer: usize) {
        let context = self.sweep.context;
        let new: Vec<usize> = (0..self.seeds.len()).filter(|&row| self.seeds[row].layer == layer).collect();
        self.live.admit(new.iter().map(|&row| (row, self.seeds[row].position)));
        for row in new {
            let Seed { position, vector, .. } = self.seeds[row];
            let norm = match context.layers.get(layer) {
                Some(layer) => self.input_norm(layer),
                None => context.last.as_ref().map(|norm| (norm, true)),
            };
            let mut g = vector.to_vec();
            if let Some((norm, gain)) = norm {
                if let Some(bias) = norm.bias().filter(|_| gain) {
                    self.rows[row].bias += f64::from(ops::dot(&g, bias));
                }
                norm.pull(&mut g, position, gain);
            }
            if let Some(own) = self.live.own(row) {
                own.iter_mut().zip(g).for_each(|(own, g)| *own += g);
            }
        }
    }

    /// What tokens and learned positions add to each row.
    fn embeddings(&mut self) {
        let (context, d) = (self.sweep.context, self.sweep.model.config().d_model);
        let g = std::mem::take(&mut self.live.g);
        let columns = &context.columns;
        self.met_by(
            &g,
            |position| &context.embedding[position * d..][..d],
            |row, position, value| {
                row.entries[columns.error_entry(row.layer, row.position, row.layer, position)] = value;
            },
        );
        if let Some(positions) = &context.position_embedding {
            self.met_by(&g, |p| &positions[p * d..][..d], |row, _, value| row.bias += f64::from(value));
        }
    }
}
