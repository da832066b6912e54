use super::*;
use crate::ops::gemm::tests::{numbers, with_threads};

pub(crate) fn activation(architecture: Architecture, f: usize, w_dec: &[f32], d_out: usize) -> Activation {
    let thresholds = || numbers(f, "threshold");
    match architecture {
        Architecture::Relu => Activation::relu(),
        Architecture::TopK { k, rescale_acts_by_decoder_norm } => {
            Activation::top_k(k, rescale_acts_by_decoder_norm.then_some(w_dec), d_out)
        }
        Architecture::AbsTopK { k, rescale_acts_by_decoder_norm } => {
            Activation::abs_top_k(k, rescale_acts_by_decoder_norm.then_some(w_dec), d_out)
        }
        Architecture::JumpRelu => Activation::jump_relu(thresholds()),
        Architecture::JumpIdentity => Activation::jump_identity(thresholds()),
        Architecture::Gated => Activation::gated(numbers(f, "r_mag"), numbers(f, "b_mag")),
        Architecture::GroupMax { k } => Activation::group_max(k, f),
    }
}

pub(crate) fn random(architecture: Architecture, d: usize, f: usize) -> Dictionary {
    let (w_enc, w_dec) = (numbers(d * f, "w_enc"), numbers(f * d, "w_dec"));
    let config = DictionaryConfig::new(architecture, d, f);
    let activation = activation(architecture, f, &w_dec, d);
    Dictionary::new(config, w_enc, numbers(f, "b_enc"), w_dec, numbers(d, "b_dec"), activation).unwrap()
}

/// With a skip connection.
pub(crate) fn random_transcoder(architecture: Architecture, d: usize, f: usize, d_out: usize) -> Dictionary {
    let (w_enc, w_dec) = (numbers(d * f, "w_enc"), numbers(f * d_out, "w_dec"));
    let config = DictionaryConfig::transcoder(architecture, d, f, d_out);
    let activation = activation(architecture, f, &w_dec, d_out);
    let plain = Dictionary::new(config, w_enc, numbers(f, "b_enc"), w_dec, numbers(d_out, "b_dec"), activation);
    plain.unwrap().with_skip(numbers(d_out * d, "w_skip")).unwrap()
}

/// The activation function of the module documentation, on the products of one row.
fn naive_activation(dictionary: &Dictionary, product: &[f32]) -> Vec<f32> {
    let f = product.len();
    let pre: Vec<f32> = product.iter().zip(&dictionary.b_enc).map(|(p, b)| p + b).collect();
    let norms = normalize::row_norms(&dictionary.w_dec, dictionary.d_out());
    let rescaled =
        |rescale: bool| -> Vec<f32> { pre.iter().zip(&norms).map(|(p, n)| if rescale { p * n } else { *p }).collect() };
    let largest = |pre: Vec<f32>, k: usize, size: fn(f32) -> f32| -> Vec<f32> {
        let mut sorted: Vec<f32> = pre.iter().map(|p| size(*p)).collect();
        sorted.sort_by(|a, b| b.total_cmp(a));
        pre.iter().map(|p| if size(*p) >= sorted[k - 1] { *p } else { 0.0 }).collect()
    };
    let relu = |z: Vec<f32>| z.into_iter().map(|z| z.max(0.0)).collect();
    let passing = |threshold: &[f32]| pre.iter().zip(threshold).map(|(p, t)| if p > t { *p } else { 0.0 }).collect();
    match (&dictionary.activation, dictionary.config.architecture) {
        (_, Architecture::Relu) => relu(pre),
        (_, Architecture::TopK { k, rescale_acts_by_decoder_norm: rescale }) => {
            relu(largest(rescaled(rescale), k, |p| p))
        }
        (_, Architecture::AbsTopK { k, rescale_acts_by_decoder_norm: rescale }) => {
            largest(rescaled(rescale), k, f32::abs)
        }
        (Activation::JumpRelu(jump), _) => relu(passing(&jump.threshold)),
        (Activation::JumpIdentity(jump), _) => passing(&jump.threshold),
        (Activation::Gated(gated), _) => (0..f)
            .map(|j| {
                let magnitude = gated.r_mag()[j].exp() * product[j] + gated.b_mag()[j];
                if pre[j] > 0.0 { magnitude.max(0.0) } else { 0.0 }
            })
            .collect(),
        (_, Architecture::GroupMax { k }) => {
            pre.chunks_exact(f / k).flat_map(|group| relu(largest(group.to_vec(), 1, |p| p))).collect()
        }
        _ => unreachable!(),
    }
}

/// Dense codes and reconstructions by the equations of the module documentation, one number at a time.
fn naive(dictionary: &Dictionary, x: &[f32]) -> (Vec<Vec<f32>>, Vec<f32>) {
    let Dictionary { config, w_enc, w_dec, b_dec, w_skip, .. } = dictionary;
    let (d, f, d_out) = (config.d_in, config.d_sae, config.d_out);
    let norms = normalize::row_norms(w_dec, d_out);
    let (mut codes, mut rows) = (Vec::new(), Vec::new());
    for x in x.chunks_exact(d) {
        let input = |i: usize| if config.apply_b_dec_to_input { x[i] - b_dec[i] } else { x[i] };
        let product: Vec<f32> = (0..f).map(|j| (0..d).map(|i| input(i) * w_enc[i * f + j]).sum::<f32>()).collect();
        let z = naive_activation(dictionary, &product);
        let carried = config.architecture.activations_carry_decoder_norm();
        let unit = |j: usize| if carried { z[j] / norms[j] } else { z[j] };
        rows.extend((0..d_out).map(|i| {
            let skip = w_skip.as_ref().map_or(0.0, |w| (0..d).map(|j| w[i * d + j] * x[j]).sum::<f32>());
            b_dec[i] + (0..f).map(|j| unit(j) * w_dec[j * d_out + i]).sum::<f32>() + skip
        }));
        codes.push(z);
    }
    (codes, rows)
}

/// Of every kind; `f` is a multiple of 5.
pub(crate) fn architectures() -> Vec<Architecture> {
    let mut all = vec![Architecture::Relu, Architecture::JumpRelu, Architecture::JumpIdentity, Architecture::Gated];
    for rescale_acts_by_decoder_norm in [false, true] {
        all.push(Architecture::TopK { k: 5, rescale_acts_by_decoder_norm });
        all.push(Architecture::AbsTopK { k: 5, rescale_acts_by_decoder_norm });
    }
    all.push(Architecture::GroupMax { k: 5 });
    all
}

#[test]
fn encode_and_reconstruct_equal_their_equations() {
    for architecture in architectures() {
        for dictionary in [random(architecture, 19, 540), random_transcoder(architecture, 19, 540, 7)] {
            let x = numbers(263 * 19, "x");
            let codes = dictionary.encode(&x).unwrap();
            let (dense, rows) = naive(&dictionary, &x);
            assert_eq!(codes.rows(), 263);
            let signed = matches!(architecture, Architecture::AbsTopK { .. } | Architecture::JumpIdentity);
            for (i, expected) in dense.iter().enumerate() {
                let (features, values) = codes.row(i);
                assert!(features.is_sorted() && values.iter().all(|v| *v != 0.0 && (signed || *v > 0.0)));
                let mut got = vec![0.0; 540];
                features.iter().zip(values).for_each(|(f, v)| got[*f as usize] = *v);
                assert!(got.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-4), "{architecture:?} row {i}");
            }
            assert_eq!(signed, codes.values.iter().any(|v| *v < 0.0), "{architecture:?}");
            let decoded = dictionary.reconstruct(&x).unwrap();
            let close = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-3 * (1.0 + b.abs());
            assert!(decoded.iter().zip(&rows).all(close) && decoded.len() == rows.len(), "{architecture:?}");
            assert!(!codes.is_empty() && codes.len() < 263 * 540);
        }
    }
}

#[test]
fn single_features_agree_with_the_whole_code() {
    let kinds = [NormalizeActivations::None, NormalizeActivations::LayerNorm];
    for (architecture, kind) in architectures().into_iter().flat_map(|a| kinds.map(|kind| (a, kind))) {
        let mut dictionary = random(architecture, 13, 70);
        dictionary.config.normalize_activations = kind;
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
fn normalised_dictionaries_encode_normalised_rows_and_undo_it() {
    for kind in [NormalizeActivations::LayerNorm, NormalizeActivations::ConstantNormRescale] {
        let plain = random(Architecture::Relu, 11, 40);
        let mut normalised = plain.clone();
        normalised.config.normalize_activations = kind;
        let x: Vec<f32> = numbers(6 * 11, "x").iter().map(|x| x * 30.0 + 7.0).collect();
        let rows = normalised.normalized(&x).into_owned();
        assert_ne!(rows, x);
        let codes = normalised.encode(&x).unwrap();
        assert_eq!(codes, plain.encode(&rows).unwrap());
        let (feature_part, whole) = (normalised.decode(&codes).unwrap(), normalised.reconstruct(&x).unwrap());
        assert_eq!(feature_part, plain.decode(&codes).unwrap());
        assert!(normalised.uses_rows_to_reconstruct() && !plain.uses_rows_to_reconstruct());
        assert_ne!(feature_part, whole);
        // One more unit of a feature moves the reconstruction by the row's scale times the decoder row.
        let scales = normalised.output_scales(&x).unwrap().unwrap();
        let mut more = codes.clone();
        more.values[0] += 1.0;
        let moved = normalised.reconstruct_codes(&x, &more).unwrap();
        let step = normalised.decoder_row(codes.features[0]).unwrap();
        for i in 0..11 {
            let expected = scales[0] * step[i];
            assert!((moved[i] - whole[i] - expected).abs() < 1e-3 * (1.0 + expected.abs()), "{kind:?}");
        }
        assert!(plain.output_scales(&x).unwrap().is_none());
        assert!(normalised.reconstruct_codes(&x[11..], &codes).is_err());
    }
}

#[test]
fn centring_ignores_what_is_added_to_a_whole_row() {
    let mut dictionary = random(Architecture::Relu, 8, 30);
    let x = numbers(8, "x");
    let shifted: Vec<f32> = x.iter().map(|x| x + 2.0).collect();
    assert_ne!(dictionary.encode(&x).unwrap(), dictionary.encode(&shifted).unwrap());
    dictionary.config.center_input = true;
    let (a, b) = (dictionary.encode(&x).unwrap().to_dense(), dictionary.encode(&shifted).unwrap().to_dense());
    assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-5));
    let (a, b) = (dictionary.reconstruct(&x).unwrap(), dictionary.reconstruct(&shifted).unwrap());
    assert!(a.iter().zip(&b).all(|(a, b)| (b - a - 2.0).abs() < 1e-5));
}

#[test]
fn the_two_jumprelus_differ_at_negative_thresholds() {
    let threshold = vec![-0.5, -0.5, 0.5, 0.5];
    let of = |activation: Activation, architecture: Architecture| {
        let config = DictionaryConfig::new(architecture, 4, 4);
        let eye: Vec<f32> = (0..16).map(|i| if i % 5 == 0 { 1.0 } else { 0.0 }).collect();
        let dictionary = Dictionary::new(config, eye.clone(), vec![0.0; 4], eye, vec![0.0; 4], activation).unwrap();
        dictionary.encode(&[-0.25, 0.25, 0.25, 0.5]).unwrap().to_dense()
    };
    assert_eq!(of(Activation::jump_relu(threshold.clone()), Architecture::JumpRelu), [0.0, 0.25, 0.0, 0.0]);
    assert_eq!(of(Activation::jump_identity(threshold), Architecture::JumpIdentity), [-0.25, 0.25, 0.0, 0.0]);
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
