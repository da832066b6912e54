//! Feature by feature: the gradients of everything that a feature has.

use rayon::prelude::*;

use super::super::method::{Chosen, EntryGradient, Rule};
use super::super::operand::Precision;
use super::super::parameters::Parameters;
use super::auxiliary::Auxiliary;
use super::rows::Walk;
use super::{Batch, Levels};
use crate::dictionary::SparseCodes;
use crate::dictionary::codes::ByFeature;
use crate::ops::{add_scaled, squared_norm};

/// Features that one task handles.
pub(super) const FEATURES: usize = 32;

/// The gradients of some features: what one task writes to.
pub(super) struct Slice<'a> {
    /// Of the first feature.
    pub(super) first: usize,
    /// `[features, d_in]`.
    pub(super) w_enc: &'a mut [f32],
    /// `[features, decoder]`.
    pub(super) w_dec: &'a mut [f32],
    /// `[features]`.
    pub(super) b_enc: &'a mut [f32],
    /// `[features]` each.
    pub(super) own: Vec<&'a mut [f32]>,
    /// Rows on which each was active.
    pub(super) fired: &'a mut [u32],
}

impl<'a> Slice<'a> {
    /// Everything in slices of `size` features.
    pub(super) fn cut(gradients: &'a mut Parameters, fired: &'a mut [u32], size: usize) -> Vec<Self> {
        let Parameters { shape, w_enc, b_enc, w_dec, own, .. } = gradients;
        let mut own: Vec<_> = own.iter_mut().map(|(_, values)| values.chunks_mut(size)).collect();
        let matrices = w_enc.chunks_mut(size * shape.d_in).zip(w_dec.chunks_mut(size * shape.decoder));
        matrices
            .zip(b_enc.chunks_mut(size).zip(fired.chunks_mut(size)))
            .enumerate()
            .map(|(i, ((w_enc, w_dec), (b_enc, fired)))| Slice {
                first: i * size,
                w_enc,
                w_dec,
                b_enc,
                own: own.iter_mut().filter_map(Iterator::next).collect(),
                fired,
            })
            .collect()
    }

    /// Σ of the squares of all gradients.
    pub(super) fn squares(&self) -> f64 {
        let own = self.own.iter().map(|own| f64::from(squared_norm(own))).sum::<f64>();
        let matrices = f64::from(squared_norm(self.w_enc)) + f64::from(squared_norm(self.w_dec));
        matrices + f64::from(squared_norm(self.b_enc)) + own
    }

    /// Puts the sums of one feature's entries in place, the decoder norm's gradient included.
    pub(super) fn put<E: Precision>(&mut self, batch: &Batch<'_, E>, i: usize, sums: EntryGradient) {
        let (d, f) = (batch.decoder_width(), self.first + i);
        self.b_enc[i] = sums.bias;
        for (own, sum) in self.own.iter_mut().zip(sums.own) {
            own[i] = sum;
        }
        if sums.norm != 0.0 {
            let factor = sums.norm / batch.norms[f].max(f32::MIN_POSITIVE);
            add_scaled(&mut self.w_dec[i * d..(i + 1) * d], factor, &batch.weights.w_dec[f * d..(f + 1) * d]);
        }
    }

    /// `−Σ_f ∂L/∂((x − b_dec) · W_enc,f) W_enc,f`: what reaches `b_dec` through the encoder, given the sums a feature.
    /// Nothing in transcoders, which encode rows as they are.
    pub(super) fn bias_through_encoder<E: Precision>(&self, batch: &Batch<'_, E>, sums: &[f32]) -> Vec<f32> {
        if batch.weights.shape.transcoder {
            return Vec::new();
        }
        let d = batch.d;
        let mut bias = vec![0.0; d];
        for (row, sum) in batch.weights.w_enc[self.first * d..].chunks_exact(d).zip(sums) {
            if *sum != 0.0 {
                add_scaled(&mut bias, -sum, row);
            }
        }
        bias
    }
}

/// The pairs of one step grouped by feature.
struct Grouped<'a, R> {
    rule: &'a R,
    codes: &'a SparseCodes,
    by_feature: ByFeature,
    pulls: [&'a [f32]; 2],
}

/// Vectors that a task uses for one feature after the other.
#[derive(Default)]
struct Scratch {
    encoder: Vec<f32>,
    values: [Vec<f32>; 2],
}

/// Fills `gradients`; gives the firing counts and the squared length of all gradients.
pub(super) fn gradients<E: Precision, R: Rule>(
    batch: &Batch<'_, E>,
    rule: &R,
    codes: &SparseCodes,
    walk: &Walk<E>,
    levels: Levels<'_>,
    auxiliary: Option<&Auxiliary>,
    gradients: &mut Parameters,
) -> (Vec<u32>, f64) {
    let [first, second] = &walk.pulls;
    let main = Grouped { rule, codes, by_feature: codes.by_feature(), pulls: [first, second] };
    let auxiliary = auxiliary.map(|auxiliary| Grouped {
        rule: &Chosen,
        codes: &auxiliary.codes,
        by_feature: auxiliary.codes.by_feature(),
        pulls: [&walk.auxiliary_pulls, &[]],
    });
    let mut fired = vec![0u32; batch.f];
    let mut b_dec = walk.bias.clone();
    let parts: Vec<(Vec<f32>, f64)> = Slice::cut(gradients, &mut fired, FEATURES)
        .into_par_iter()
        .map(|mut slice| {
            let mut scratch = Scratch::default();
            let mut encoder_sums = vec![0.0; slice.b_enc.len()];
            for (i, encoder_sum) in encoder_sums.iter_mut().enumerate() {
                let (f, d, decoder) = (slice.first + i, batch.d, batch.decoder_width());
                slice.w_enc[i * d..(i + 1) * d].fill(0.0);
                slice.w_dec[i * decoder..(i + 1) * decoder].fill(0.0);
                let level = levels.of(f);
                let (mut sums, active) = main.add(batch, f, i, &mut slice, &walk.planes[level..], walk, &mut scratch);
                slice.fired[i] = active;
                if let Some(auxiliary) = &auxiliary {
                    let plane = std::slice::from_ref(&walk.auxiliary_plane);
                    let (more, _) = auxiliary.add(batch, f, i, &mut slice, plane, walk, &mut scratch);
                    sums.add(more);
                }
                slice.put(batch, i, sums);
                *encoder_sum = sums.encoder;
            }
            (slice.bias_through_encoder(batch, &encoder_sums), slice.squares())
        })
        .collect();
    let mut squares = 0.0;
    for (part, square) in &parts {
        if !part.is_empty() {
            add_scaled(&mut b_dec, 1.0, part);
        }
        squares += square;
    }
    squares += f64::from(squared_norm(&b_dec));
    gradients.b_dec = b_dec;
    (fired, squares)
}

impl<R: Rule> Grouped<'_, R> {
    /// Adds the pairs of feature `f`, the `i`th of `slice`; gives the sums of their gradients, and how many are active.
    #[expect(clippy::too_many_arguments, reason = "the state of a feature on its way")]
    fn add<E: Precision>(
        &self,
        batch: &Batch<'_, E>,
        f: usize,
        i: usize,
        slice: &mut Slice<'_>,
        planes: &[Vec<E>],
        walk: &Walk<E>,
        scratch: &mut Scratch,
    ) -> (EntryGradient, u32) {
        let (rows, pairs) = self.by_feature.feature(f);
        let Scratch { encoder, values } = scratch;
        encoder.clear();
        values.iter_mut().for_each(Vec::clear);
        let (mut sums, mut active) = (EntryGradient::default(), 0);
        for (&row, &pair) in rows.iter().zip(pairs) {
            let pair = pair as usize;
            let pre = self.codes.values[pair];
            let second = if R::CHANNELS > 1 { self.pulls[1][pair] } else { 0.0 };
            let gradient = self.rule.gradient(f, pre, [self.pulls[0][pair], second], walk.pushes[row as usize]);
            let [value, gate] = self.rule.values(f, pre);
            encoder.push(gradient.encoder);
            values[0].push(value);
            if R::CHANNELS > 1 {
                values[1].push(gate);
            }
            active += u32::from(value != 0.0);
            sums.add(gradient);
        }
        let d = batch.d;
        E::decode_row(&mut slice.w_enc[i * d..(i + 1) * d], rows, encoder, &batch.centered);
        let decoder = batch.decoder_width();
        let w_dec = &mut slice.w_dec[i * decoder..(i + 1) * decoder];
        let width = planes.first().map_or(decoder, |plane| plane.len() / batch.n.max(1)).max(1);
        for (values, planes) in values.iter().zip(planes.chunks(decoder / width)).take(R::CHANNELS) {
            for (part, plane) in w_dec.chunks_exact_mut(width).zip(planes) {
                E::decode_row(part, rows, values, plane);
            }
        }
        (sums, active)
    }
}
