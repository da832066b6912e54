//! The features of all layers of a transcoder set over one text: a single pass of the model, every layer's index at once.
//!
//! Memory: of each feature at most [`IndexSettings::bytes_a_feature`], rows of one batch at all layers, and one layer's
//! encoder. [`groups`] cuts a set into parts that fit; each part takes a pass of its own.

use candle_core::{DType, Device};

use super::index::{FeatureIndex, IndexSettings};
use super::live::{median, norm};
use crate::analysis::sequences::{SequenceBatch, SequenceSource, select_rows};
use crate::analysis::stop_if_cancelled;
use crate::base::progress::Unit;
use crate::base::{Context, Error, Progress, Result};
use crate::dictionary::set::{SetKind, TranscoderSet};
use crate::dictionary::{Activation, Architecture, Dictionary, DictionaryConfig};
use crate::model::{HookPlan, HookPoint, Model};

/// Bytes of the rows of one batch, at all layers together.
const BATCH_BYTES: usize = 192 << 20;
/// Sequences that the model computes at once.
const TOGETHER: usize = 8;

/// The layers of `layers` in groups whose indexes take at most `budget` bytes, at least one layer each.
pub fn groups(layers: &[usize], set: &TranscoderSet, settings: &IndexSettings, budget: usize) -> Vec<Vec<usize>> {
    let each = settings.bytes_a_feature() * set.config().d_transcoder;
    layers.chunks((budget / each.max(1)).max(1)).map(<[usize]>::to_vec).collect()
}

/// What each feature of the given layers of `set` fires on in the text of `text`, whose tokens and kept positions count
/// and whose own rows do not. Rows of a layer above `max_norm_multiple` times the median norm of its first batch are left
/// out.
///
/// # Errors
/// `Mismatch` for a set of another model, `NonFinite` when a layer's rows are not finite, `Interrupted`, and whatever
/// the model, the set and reading give.
pub fn index_layers(
    model: &Model,
    set: &TranscoderSet,
    layers: &[usize],
    text: &dyn SequenceSource,
    settings: IndexSettings,
    max_norm_multiple: Option<f32>,
    progress: &dyn Progress,
) -> Result<Vec<FeatureIndex>> {
    set.check_model(model.config())?;
    let points: Vec<HookPoint> = layers.iter().map(|&layer| HookPoint::block(layer, set.config().input)).collect();
    let plan = points.iter().fold(HookPlan::new(), |plan, &point| plan.capture(point));
    let width = set.config().d_model;
    let mut indexes: Vec<FeatureIndex> = layers
        .iter()
        .map(|_| FeatureIndex::with_features(set.config().d_transcoder, text, settings))
        .collect::<Result<_>>()?;
    let mut limits: Vec<Option<f64>> = vec![None; layers.len()];
    let bytes = text.context_size() * width * layers.len().max(1) * size_of::<f32>();
    let step = (BATCH_BYTES / bytes.max(1)).max(TOGETHER) as u64;
    let total = settings.max_sequences.map_or(text.sequences(), |most| most.min(text.sequences()));
    progress.begin("features of all layers", total * text.context_size() as u64, Unit::Tokens);
    let mut batch = SequenceBatch::default();
    for first in (0..total).step_by(step as usize) {
        text.read(first..(first + step).min(total), false, &mut batch)?;
        let rows = rows(model, &plan, &points, &batch, width, progress)?;
        for (i, rows) in rows.into_iter().enumerate() {
            if let (0, Some(multiple)) = (first, max_norm_multiple) {
                limits[i] = median_norm(&rows, width, &batch.kept).map(|median| median * f64::from(multiple));
            }
            let below =
                |place: &u32| limits[i].is_none_or(|limit| norm(&rows[*place as usize * width..][..width]) <= limit);
            let places: Vec<u32> = batch.kept_places().into_iter().filter(below).collect();
            let codes = set.encode(layers[i], &select_rows(&rows, width, &places))?;
            indexes[i].add(&batch, &places, &codes);
        }
        progress.advance(batch.tokens.len() as u64);
    }
    progress.end();
    Ok(indexes)
}

/// The rows of the whole batch at every point, `[sequences · context_size, width]`.
fn rows(
    model: &Model,
    plan: &HookPlan,
    points: &[HookPoint],
    batch: &SequenceBatch,
    width: usize,
    progress: &dyn Progress,
) -> Result<Vec<Vec<f32>>> {
    let mut all: Vec<Vec<f32>> = points.iter().map(|_| Vec::with_capacity(batch.tokens.len() * width)).collect();
    let sequences: Vec<&[u32]> = batch.tokens.chunks(batch.context_size.max(1)).collect();
    for together in sequences.chunks(TOGETHER) {
        stop_if_cancelled(progress)?;
        let run = model.forward(&model.tokens(together)?, plan)?;
        for (rows, point) in all.iter_mut().zip(points) {
            let values = run.captured(*point)?.to_dtype(DType::F32).and_then(|t| t.to_device(&Device::Cpu));
            let values = values.and_then(|t| t.flatten_all()?.to_vec1::<f32>());
            rows.extend(values.during(|| format!("fetching {point}"))?);
        }
    }
    for (rows, point) in all.iter().zip(points) {
        let count = rows.iter().filter(|x| !x.is_finite()).count();
        if count > 0 {
            let at = rows.iter().position(|x| !x.is_finite()).unwrap_or_default() / width.max(1);
            return Err(Error::NonFinite {
                what: format!("the activations of {point}"),
                count,
                at: format!("sequence {}", batch.first + (at / batch.context_size.max(1)) as u64),
                remedy: "run the model with --model-dtype f32".into(),
            });
        }
    }
    Ok(all)
}

fn median_norm(rows: &[f32], width: usize, kept: &[bool]) -> Option<f64> {
    let counted = rows.chunks_exact(width.max(1)).zip(kept).filter(|(_, kept)| **kept);
    median(counted.map(|(row, _)| norm(row)).collect())
}

/// The transcoder of a layer by itself, for what its features write. Of a cross-layer transcoder the decoder rows are
/// the sums over all layers that it writes to: all of it reaches the residual stream, so that the sum is what a feature
/// adds to the logits directly. Such a one must not encode.
///
/// # Errors
/// As [`TranscoderSet::dictionary`].
pub fn writer(set: &TranscoderSet, layer: usize) -> Result<Dictionary> {
    if set.config().kind == SetKind::PerLayer {
        return set.dictionary(layer);
    }
    let (d, f) = (set.config().d_model, set.config().d_transcoder);
    let features: Vec<u32> = (0..f as u32).collect();
    let mut w_dec = vec![0f32; f * d];
    for to in set.writes_to(layer) {
        w_dec.iter_mut().zip(set.decoder_rows(layer, to, &features)?).for_each(|(sum, x)| *sum += x);
    }
    let rows = set.encoder_rows(layer, &features)?;
    let w_enc = (0..d * f).map(|i| rows.get(i % f * d + i / f).copied().unwrap_or_default()).collect();
    let mut config = DictionaryConfig::transcoder(Architecture::Relu, d, f, d);
    config.metadata.model_name.clone_from(&set.config().model_name);
    config.metadata.hook_name = Some(HookPoint::block(layer, set.config().input).to_string());
    let out = HookPoint::block(layer, set.config().output).to_string();
    config.metadata.extra.insert("hook_name_out".into(), out.into());
    let b_enc = set.encoder_biases(layer, &features)?;
    Dictionary::new(config, w_enc, b_enc, w_dec, set.b_dec(layer)?, Activation::Relu)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::analysis::LiveSequences;
    use crate::analysis::feature::Findings;
    use crate::analysis::tests::open;
    use crate::base::Silent;
    use crate::data::Sequence;
    use crate::dictionary::set::{CrossLayer, SetConfig};
    use crate::dictionary::tests::random_transcoder;
    use crate::model::Site;
    use crate::ops::gemm::tests::numbers;
    use crate::store::FilterSettings;

    const F: usize = 50;

    fn text() -> Vec<Sequence> {
        let sequence = |i: u32| Sequence {
            tokens: (0..9u32).map(|p| if p == 0 { 1 } else { (i * 11 + p * p) % 48 }).collect(),
            documents: vec![i / 2; 9],
        };
        (0..40).map(sequence).collect()
    }

    fn config(model: &Model, kind: SetKind) -> SetConfig {
        let of = model.config();
        let (input, output) = (Site::ResidMid, Site::MlpOut);
        let (scan, model_name) = ("x".into(), Some("m".into()));
        let (n_layers, d_model) = (of.n_layers, of.d_model);
        SetConfig { kind, model_name, input, output, scan, n_layers, d_model, d_transcoder: F }
    }

    fn live(model: &Model, layer: usize) -> LiveSequences<'_> {
        let filter = FilterSettings { max_norm_multiple: None, ..FilterSettings::default() };
        let point = HookPoint::block(layer, Site::ResidMid);
        LiveSequences::new(model, point, text(), &BTreeSet::from([2]), filter, &Silent).unwrap()
    }

    #[test]
    fn one_pass_finds_what_a_pass_a_layer_finds() {
        let model = open("llama");
        let config = config(&model, SetKind::PerLayer);
        let d = config.d_model;
        let layers: Vec<usize> = (0..config.n_layers).collect();
        let transcoder = |layer: &usize| {
            let mut dictionary = random_transcoder(Architecture::Relu, d, F, d);
            dictionary.w_enc = numbers(d * F, &format!("w_enc {layer}"));
            dictionary
        };
        let set = TranscoderSet::from_layers(config, layers.iter().map(transcoder).collect()).unwrap();
        let settings = IndexSettings { top_k: 4, interval_examples: 2, ..IndexSettings::default() };
        let found = index_layers(&model, &set, &layers, &live(&model, 0), settings, None, &Silent).unwrap();
        assert!(found.len() > 1 && found[0].summaries() != found[1].summaries(), "layers differ");
        for &layer in &layers {
            let source = live(&model, layer);
            let expected = FeatureIndex::build(&set.dictionary(layer).unwrap(), &source, settings, &Silent).unwrap();
            let close = |(a, b): (&f64, &f64)| (a - b).abs() < 1e-4 * (1.0 + b.abs());
            assert_eq!((found[layer].rows, found[layer].sequences), (expected.rows, 40));
            assert!(expected.dead_features() < F);
            for (a, b) in found[layer].summaries().iter().zip(expected.summaries()) {
                assert!(a.count.abs_diff(b.count) <= 1 && close((&a.mean, &b.mean)), "{a:?} {b:?}");
            }
        }
        // Half of all rows have a norm above the median.
        let part = index_layers(&model, &set, &[1], &live(&model, 0), settings, Some(1.0), &Silent).unwrap();
        assert!(part[0].rows * 2 <= found[1].rows + 2 && part[0].rows * 3 > found[1].rows);
        assert_eq!(groups(&[0, 1, 2], &set, &settings, 1), [[0], [1], [2]]);
        assert_eq!(groups(&[0, 1, 2], &set, &settings, usize::MAX), [[0, 1, 2]]);
    }

    #[test]
    fn features_of_a_cross_layer_transcoder_write_with_all_their_decoders() {
        let model = open("llama");
        let config = config(&model, SetKind::CrossLayer);
        let (d, n) = (config.d_model, config.n_layers);
        let layer = |layer: usize| CrossLayer {
            w_enc: numbers(d * F, &format!("w_enc {layer}")),
            b_enc: numbers(F, "b_enc"),
            w_dec: (layer..n).map(|to| numbers(F * d, &format!("{layer} {to}"))).collect(),
            b_dec: numbers(d, "b_dec"),
            activation: Activation::relu(),
            w_skip: None,
        };
        let set = TranscoderSet::from_cross_layer(config, (0..n).map(layer).collect()).unwrap();
        let source = live(&model, 0);
        let found = index_layers(&model, &set, &[0], &source, IndexSettings::default(), None, &Silent).unwrap();
        let dictionary = writer(&set, 0).unwrap();
        let sum: f32 = (0..n).map(|to| numbers(F * d, &format!("0 {to}"))[3 * d + 5]).sum();
        assert!((dictionary.w_dec[3 * d + 5] - sum).abs() < 1e-6);
        assert_eq!(dictionary.encode(&numbers(3 * d, "x")).unwrap(), set.encode(0, &numbers(3 * d, "x")).unwrap());
        let findings =
            Findings::complete(found.into_iter().next().unwrap(), &dictionary, &source, Some(&model), &Silent).unwrap();
        assert!(findings.effects.is_some_and(|effects| effects.len() == F));
    }
}
