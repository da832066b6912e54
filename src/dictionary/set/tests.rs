use super::*;
use crate::dictionary::tests::random_transcoder;
use crate::dictionary::{Architecture, Dictionary};
use crate::ops::gemm::tests::numbers;

pub(crate) const D: usize = 6;
pub(crate) const F: usize = 20;
pub(crate) const LAYERS: usize = 3;
const ROWS: usize = 5;

pub(crate) fn config(kind: SetKind) -> SetConfig {
    SetConfig {
        kind,
        model_name: Some("tiny".into()),
        input: Site::ResidMid,
        output: Site::MlpOut,
        scan: "ours/tiny".into(),
        n_layers: LAYERS,
        d_model: D,
        d_transcoder: F,
    }
}

fn named(n: usize, what: &str, layer: usize) -> Vec<f32> {
    numbers(n, &format!("{what} {layer}"))
}

/// Transcoders with a skip connection where `skip`.
pub(crate) fn dictionaries(architecture: Architecture, skip: bool) -> Vec<Dictionary> {
    let layer = |layer: usize| {
        let mut dictionary = random_transcoder(architecture, D, F, D);
        dictionary.b_enc = named(F, "b_enc", layer);
        dictionary.b_dec = named(D, "b_dec", layer);
        dictionary.w_enc.iter_mut().for_each(|w| *w *= 1.0 + layer as f32);
        if !skip {
            dictionary.w_skip = None;
        }
        dictionary
    };
    (0..LAYERS).map(layer).collect()
}

pub(crate) fn cross_layers(activation: &Activation, skip: bool) -> Vec<CrossLayer> {
    let layer = |layer: usize| CrossLayer {
        w_enc: named(D * F, "w_enc", layer),
        b_enc: named(F, "b_enc", layer),
        w_dec: (layer..LAYERS).map(|to| named(F * D, &format!("w_dec {to}"), layer)).collect(),
        b_dec: named(D, "b_dec", layer),
        activation: activation.clone(),
        w_skip: skip.then(|| named(D * D, "w_skip", layer)),
    };
    (0..LAYERS).map(layer).collect()
}

pub(crate) fn inputs() -> Vec<Vec<f32>> {
    (0..LAYERS).map(|layer| named(ROWS * D, "x", layer)).collect()
}

pub(crate) fn codes(set: &TranscoderSet, inputs: &[Vec<f32>]) -> Vec<SparseCodes> {
    inputs.iter().enumerate().map(|(layer, x)| set.encode(layer, x).unwrap()).collect()
}

fn close(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5 * (1.0 + b.abs()))
}

#[test]
fn a_per_layer_set_does_what_its_dictionaries_do() {
    let architectures = [
        Architecture::Relu,
        Architecture::JumpRelu,
        Architecture::JumpIdentity,
        Architecture::TopK { k: 3, rescale_acts_by_decoder_norm: true },
        Architecture::TopK { k: 3, rescale_acts_by_decoder_norm: false },
    ];
    for architecture in architectures {
        let dictionaries = dictionaries(architecture, true);
        let set = TranscoderSet::from_layers(config(SetKind::PerLayer), dictionaries.clone()).unwrap();
        let inputs = inputs();
        let codes = codes(&set, &inputs);
        let reconstructions = set.reconstruct(&codes, &inputs).unwrap();
        for (layer, dictionary) in dictionaries.iter().enumerate() {
            let theirs = dictionary.encode(&inputs[layer]).unwrap();
            assert_eq!(codes[layer].features, theirs.features, "{architecture:?}");
            assert!(close(&codes[layer].values, &theirs.values) && !theirs.is_empty(), "{architecture:?}");
            assert!(close(&reconstructions[layer], &dictionary.reconstruct(&inputs[layer]).unwrap()));
            assert_eq!(set.skip(layer).unwrap(), dictionary.w_skip);
            assert_eq!(set.b_dec(layer).unwrap(), dictionary.b_dec);
            assert_eq!(set.writes_to(layer), layer..layer + 1);
        }
    }
}

#[test]
fn features_of_a_cross_layer_transcoder_write_to_all_later_layers() {
    for activation in [Activation::relu(), Activation::jump_identity(numbers(F, "thresholds"))] {
        let layers = cross_layers(&activation, true);
        let set = TranscoderSet::from_cross_layer(config(SetKind::CrossLayer), layers.clone()).unwrap();
        let inputs = inputs();
        let codes = codes(&set, &inputs);
        let ours = set.reconstruct(&codes, &inputs).unwrap();
        for (to, ours) in ours.iter().enumerate() {
            for row in 0..ROWS {
                let x = &inputs[to][row * D..][..D];
                let mut naive: Vec<f32> = layers[to].b_dec.clone();
                for (from, layer) in layers.iter().enumerate().take(to + 1) {
                    let dense = codes[from].to_dense();
                    for f in 0..F {
                        (0..D).for_each(|i| naive[i] += dense[row * F + f] * layer.w_dec[to - from][f * D + i]);
                    }
                }
                let skip = layers[to].w_skip.as_ref().unwrap();
                (0..D).for_each(|o| naive[o] += (0..D).map(|i| skip[o * D + i] * x[i]).sum::<f32>());
                assert!(close(&ours[row * D..][..D], &naive), "layer {to} row {row}");
            }
        }
        assert_eq!(set.writes_to(1), 1..LAYERS);
        assert_eq!(set.decoder_rows(0, 2, &[4, 1]).unwrap()[..D], layers[0].w_dec[2][4 * D..5 * D]);
        assert!(set.decoder_rows(2, 1, &[0]).is_err() && set.decoder_rows(0, 3, &[0]).is_err());
        assert!(codes.iter().all(|codes| !codes.is_empty()));
    }
}

#[test]
fn active_features_are_those_whose_pre_activations_pass() {
    let thresholds = numbers(F, "thresholds");
    let activation = Activation::jump_identity(thresholds.clone());
    let set = TranscoderSet::from_cross_layer(config(SetKind::CrossLayer), cross_layers(&activation, false)).unwrap();
    let all: Vec<u32> = (0..F as u32).collect();
    for (layer, x) in inputs().iter().enumerate() {
        let pre = set.pre_activations(layer, x, &all).unwrap();
        let expected: Vec<f32> =
            pre.iter().zip(thresholds.iter().cycle()).map(|(p, t)| if p > t { *p } else { 0.0 }).collect();
        assert!(close(&set.encode(layer, x).unwrap().to_dense(), &expected));
        let some = set.pre_activations(layer, x, &[7, 2]).unwrap();
        assert!(close(&some[..2], &[pre[7], pre[2]]));
        assert_eq!(set.encoder_biases(layer, &[7]).unwrap(), [named(F, "b_enc", layer)[7]]);
    }
}

#[test]
fn sets_whose_layers_do_not_fit_are_refused() {
    let refused = |config: SetConfig, layers: Vec<Dictionary>| {
        TranscoderSet::from_layers(config, layers).unwrap_err().to_string()
    };
    let config = config(SetKind::PerLayer);
    let good = || dictionaries(Architecture::Relu, false);
    assert!(refused(config.clone(), good()[..2].to_vec()).contains("2 layers"));
    let mut other = good();
    other[1] = random_transcoder(Architecture::Relu, D, F + 1, D);
    assert!(refused(config.clone(), other).contains("in layer 1"));
    let mut swapped = good();
    swapped[2].config.metadata.hook_name = Some("blocks.1.hook_resid_mid".into());
    let error = refused(config.clone(), swapped);
    assert!(error.contains("blocks.1.hook_resid_mid") && error.contains("blocks.2.hook_resid_mid"), "{error}");
    assert!(refused(config.clone(), dictionaries(Architecture::Gated, false)).contains("gate"));
    let mut normalised = good();
    normalised[0].config.normalize_activations = crate::dictionary::NormalizeActivations::LayerNorm;
    assert!(refused(config, normalised).contains("normalises"));
    let mut short = cross_layers(&Activation::relu(), false);
    short[0].w_dec.pop();
    let error = TranscoderSet::from_cross_layer(self::config(SetKind::CrossLayer), short).unwrap_err().to_string();
    assert!(error.contains("layers of W_dec") && error.contains("layer 0"), "{error}");
}

#[test]
fn asking_for_what_is_not_there_is_an_error() {
    let set = TranscoderSet::from_layers(config(SetKind::PerLayer), dictionaries(Architecture::Relu, false)).unwrap();
    assert!(set.encode(3, &[0.0; D]).unwrap_err().to_string().contains("0 to 2"));
    assert!(set.encode(0, &[0.0; D + 1]).is_err());
    assert!(set.encoder_rows(0, &[20]).unwrap_err().to_string().contains("0 to 19"));
    assert!(set.decoder_rows(0, 1, &[0]).is_err());
    let inputs = inputs();
    let codes = codes(&set, &inputs);
    assert!(set.reconstruct(&codes[..2], &inputs).is_err());
    let mut short = inputs.clone();
    short[1].truncate(D);
    assert!(set.reconstruct(&codes, &short).unwrap_err().to_string().contains("layer 1"));
}
