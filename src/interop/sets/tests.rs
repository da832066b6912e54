use std::fs;

use super::*;
use crate::base::mapped::Mapped;
use crate::dictionary::set::tests::{codes, config, cross_layers, dictionaries, inputs};
use crate::dictionary::{Activation, Architecture, SparseCodes};
use crate::model::Site;
use candle_core::{DType, Device};

const GOLDENS: [&str; 7] = [
    "plt-relu-skip",
    "plt-jumprelu",
    "clt-relu",
    "clt-jumprelu-bf16",
    "gemma-scope",
    "gemma-scope-2",
    "gemma-scope-2-clt",
];

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/sets").join(name)
}

/// A tensor `[layers, rows, width]` of what circuit-tracer made of a golden set, by layer.
fn expected(name: &str, tensor: &str) -> Vec<Vec<f32>> {
    let file = Mapped::open("golden", &golden(&format!("{name}.expected.safetensors"))).unwrap();
    let tensor = file.tensor(tensor, DType::F32, &Device::Cpu).unwrap();
    tensor.flatten_from(1).unwrap().to_vec2().unwrap()
}

fn close(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 2e-6 * (1.0 + b.abs()))
}

/// A copy of a golden set to damage.
fn copy(name: &str, to: &Path) -> PathBuf {
    let target = to.join(name);
    copy_dir(&golden(name), &target);
    target
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_dir(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

fn refused(path: &Path) -> String {
    open_set(path).unwrap_err().to_string()
}

fn edit(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{text}");
    fs::write(path, text.replace(from, to)).unwrap();
}

fn values(codes: &[SparseCodes]) -> Vec<Vec<f32>> {
    codes.iter().map(SparseCodes::to_dense).collect()
}

#[test]
fn sets_of_circuit_tracer_give_its_codes_and_reconstructions() {
    for name in GOLDENS {
        let opened = open_set_with(&golden(name).display().to_string(), &Silent).unwrap();
        let set = &opened.set;
        let (x, a, y) = (expected(name, "x"), expected(name, "a"), expected(name, "y"));
        let codes = codes(set, &x);
        let reconstructions = set.reconstruct(&codes, &x).unwrap();
        for layer in 0..3 {
            assert!(close(&codes[layer].to_dense(), &a[layer]), "{name} layer {layer}");
            assert!(close(&reconstructions[layer], &y[layer]), "{name} layer {layer}");
        }
        assert!(a.iter().flatten().any(|a| *a != 0.0));
        assert_eq!(set.config().model_name.as_deref(), Some("tiny/model"));
        assert_eq!(set.config().kind == SetKind::CrossLayer, name.contains("clt"), "{name}");
        assert_eq!(set.has_skip(), name.contains("skip") || name.contains("scope-2"), "{name}");
        assert!(is_set(&golden(name)) && opened.notes.is_empty());
    }
    let config = |name: &str| open_set(&golden(name)).unwrap().config().clone();
    let plt = config("plt-jumprelu");
    assert_eq!((plt.input, plt.output, plt.scan.as_str()), (Site::MlpHookIn, Site::MlpHookOut, "tiny/plt//sub"));
    assert_eq!(config("gemma-scope").scan, "gemma-scope");
    // Negative thresholds pass negative values, as in circuit-tracer.
    assert!(expected("plt-jumprelu", "a").iter().flatten().any(|a| *a < 0.0));
}

#[test]
fn only_the_rows_that_are_asked_for_are_read() {
    for name in GOLDENS {
        let set = open_set(&golden(name)).unwrap();
        assert_eq!(set.bytes_read(), 0, "{name}: opening reads no weights");
        let width = if name.contains("bf16") { 2 } else { 4 };
        let to = set.writes_to(0).end - 1;
        set.decoder_rows(0, to, &[7, 3]).unwrap();
        assert_eq!(set.bytes_read(), 2 * 6 * width, "{name}");
        set.encoder_rows(1, &[2]).unwrap();
        assert_eq!(set.bytes_read(), 3 * 6 * width, "{name}");
        let before = set.bytes_read();
        let codes = set.encode(0, &[0.25; 6]).unwrap();
        assert_eq!(set.bytes_read() - before, 10 * 6 * width, "{name}: one encoder");
        let before = set.bytes_read();
        set.add_decoded(0, to, &codes, &mut [0.0; 6]).unwrap();
        assert_eq!(set.bytes_read() - before, codes.len() as u64 * 6 * width, "{name}: active rows");
        assert!(codes.len() < 10);
        let decoders = if name.contains("clt") { 6 } else { 3 };
        let skips = if set.has_skip() { 3 * 36 } else { 0 };
        assert_eq!(set.weight_bytes(), (3 + decoders) * 60 * width + skips * width, "{name}");
    }
}

#[test]
fn what_is_read_when_asked_for_is_bit_for_bit_what_is_read_at_once() {
    for name in GOLDENS {
        let lazy = open_set(&golden(name)).unwrap();
        let eager = lazy.loaded();
        let x = expected(name, "x");
        let before = lazy.bytes_read();
        let (ours, theirs) = (codes(&lazy, &x), codes(&eager, &x));
        assert_eq!(ours, theirs, "{name}");
        assert_eq!(lazy.reconstruct(&ours, &x).unwrap(), eager.reconstruct(&theirs, &x).unwrap(), "{name}");
        assert!(lazy.bytes_read() > before && eager.bytes_read() == 0);
        let all: Vec<u32> = (0..10).collect();
        for layer in 0..3 {
            assert_eq!(lazy.encoder_rows(layer, &all).unwrap(), eager.encoder_rows(layer, &all).unwrap());
            assert_eq!(lazy.skip(layer).unwrap(), eager.skip(layer).unwrap());
            for to in lazy.writes_to(layer) {
                let rows = lazy.decoder_rows(layer, to, &all).unwrap();
                assert_eq!(rows, eager.decoder_rows(layer, to, &all).unwrap());
            }
        }
    }
}

#[test]
fn written_sets_read_back_as_the_same_functions() {
    let tmp = tempfile::tempdir().unwrap();
    let top_k = Architecture::TopK { k: 3, rescale_acts_by_decoder_norm: true };
    let per_layer = [Architecture::Relu, Architecture::JumpRelu, Architecture::JumpIdentity, top_k]
        .map(|architecture| TranscoderSet::from_layers(config(SetKind::PerLayer), dictionaries(architecture, true)));
    let jump = Activation::jump_identity(dictionaries(Architecture::Relu, false)[0].b_enc.clone());
    let cross_layer = [(Activation::relu(), false), (jump, false), (Activation::top_k(3, None, 6), true)];
    let cross_layer = cross_layer.map(|(activation, skip)| {
        TranscoderSet::from_cross_layer(config(SetKind::CrossLayer), cross_layers(&activation, skip))
    });
    let x = inputs();
    let mut written = 0;
    for (i, set) in per_layer.into_iter().chain(cross_layer).enumerate() {
        let set = set.unwrap();
        let codes = codes(&set, &x);
        for format in SetFormat::ALL {
            let dir = tmp.path().join(format!("{i}-{format:?}"));
            fs::create_dir(&dir).unwrap();
            let outcome = write_set_in(&set, &dir, format);
            let can = match format {
                SetFormat::CircuitTracer => i != 3 && i != 6,
                SetFormat::Extended => true,
                // SAELens' JumpReLU passes no negative values, and it has no TopK transcoders.
                SetFormat::SaeLens => i < 2,
                // sparsify has only TopK, and reads what the MLP reads.
                SetFormat::Sparsify => false,
            };
            assert_eq!(outcome.is_ok(), can, "{i} {format:?}");
            if outcome.is_err() {
                continue;
            }
            written += 1;
            let opened = open_set_with(&dir.display().to_string(), &Silent).unwrap();
            assert_eq!(opened.format, format.format());
            let back = self::codes(&opened.set, &x);
            for (a, b) in values(&back).iter().zip(&values(&codes)) {
                assert!(close(a, b), "{i} {format:?}");
            }
            let (ours, theirs) = (set.reconstruct(&codes, &x).unwrap(), opened.set.reconstruct(&back, &x).unwrap());
            assert!(ours.iter().zip(&theirs).all(|(a, b)| close(a, b)), "{i} {format:?}");
            let config = opened.set.config();
            assert_eq!((config.input, config.output, config.n_layers), (Site::ResidMid, Site::MlpOut, 3));
            assert_eq!(config.model_name.as_deref(), Some("tiny"));
        }
    }
    assert_eq!(written, 5 + 7 + 2);
}

#[test]
fn top_k_transcoders_go_into_sparsifys_folders_and_back() {
    let tmp = tempfile::tempdir().unwrap();
    let architecture = Architecture::TopK { k: 3, rescale_acts_by_decoder_norm: false };
    let config = crate::dictionary::SetConfig { input: Site::MlpHookIn, ..config(SetKind::PerLayer) };
    let set = TranscoderSet::from_layers(config, dictionaries(architecture, true)).unwrap();
    write_set_in(&set, tmp.path(), SetFormat::Sparsify).unwrap();
    let opened = open_set_with(&tmp.path().display().to_string(), &Silent).unwrap();
    assert_eq!(opened.format, Format::Sparsify);
    assert_eq!((opened.set.config().input, opened.set.config().output), (Site::MlpHookIn, Site::MlpHookOut));
    let x = inputs();
    let (ours, theirs) = (codes(&set, &x), codes(&opened.set, &x));
    assert!(values(&ours).iter().zip(&values(&theirs)).all(|(a, b)| close(a, b)));
    assert!(theirs.iter().all(|codes| codes.len() > 5 && (0..5).all(|row| codes.row(row).0.len() <= 3)));
}

#[test]
fn a_written_set_appears_whole_or_not_at_all() {
    let tmp = tempfile::tempdir().unwrap();
    let good = TranscoderSet::from_layers(config(SetKind::PerLayer), dictionaries(Architecture::Relu, false)).unwrap();
    let out = tmp.path().join("set");
    write_set(&good, &out).unwrap();
    assert!(out.join("config.yaml").is_file() && out.join("layer_2.safetensors").is_file());
    assert!(matches!(write_set(&good, &out), Err(Error::OutputInUse { .. })));
    let mut bad = dictionaries(Architecture::Relu, false);
    bad[2].w_dec[5] = f32::NAN;
    let bad = TranscoderSet::from_layers(config(SetKind::PerLayer), bad).unwrap();
    let error = write_set(&bad, &tmp.path().join("bad")).unwrap_err().to_string();
    assert!(error.contains("W_dec of layer 2"), "{error}");
    assert_eq!(fs::read_dir(tmp.path()).unwrap().count(), 1, "refusals leave nothing behind");
}

#[test]
fn sets_that_circuit_tracer_cannot_compute_are_written_so_that_it_refuses_them() {
    let tmp = tempfile::tempdir().unwrap();
    let architecture = Architecture::TopK { k: 3, rescale_acts_by_decoder_norm: false };
    let top_k = TranscoderSet::from_layers(config(SetKind::PerLayer), dictionaries(architecture, false)).unwrap();
    let skip = cross_layers(&Activation::relu(), true);
    let skip = TranscoderSet::from_cross_layer(config(SetKind::CrossLayer), skip).unwrap();
    let refused_as = |set| write_set_in(set, tmp.path(), SetFormat::CircuitTracer).unwrap_err().to_string();
    assert!(refused_as(&top_k).contains("TopK") && refused_as(&skip).contains("linear connection"));
    let dir = tmp.path().join("top_k");
    assert_eq!(write_set(&top_k, &dir).unwrap(), SetFormat::Extended);
    let text = fs::read_to_string(dir.join(CONFIG)).unwrap();
    assert!(text.contains("model_kind: mechinterp_transcoder_set") && text.contains("k: 3"), "{text}");
    assert_eq!(write_set(&skip, &tmp.path().join("skip")).unwrap(), SetFormat::Extended);
    assert!(open_set(&tmp.path().join("skip")).unwrap().has_skip());
    // One line for all layers cannot say that only one of them competes.
    let relu = dictionaries(Architecture::Relu, false).swap_remove(0);
    let mut mixed = dictionaries(Architecture::TopK { k: 3, rescale_acts_by_decoder_norm: false }, false);
    mixed[0] = relu;
    let mixed = TranscoderSet::from_layers(config(SetKind::PerLayer), mixed).unwrap();
    let error = write_set(&mixed, &tmp.path().join("mixed")).unwrap_err().to_string();
    assert!(error.contains("different activations"), "{error}");
    for (from, to, says) in
        [("k: 3", "k: 21", "20 features"), ("k: 3", "", "a key 'k'"), (": topk", ": tops", "groupmax")]
    {
        fs::write(dir.join(CONFIG), text.replace(from, to)).unwrap();
        let error = refused(&dir);
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn of_several_cross_layer_sets_in_a_directory_one_is_named() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = copy("gemma-scope-2-clt", tmp.path());
    // The list of files would choose; Gemma Scope's own directories have none.
    fs::remove_file(dir.join(CONFIG)).unwrap();
    for layer in 0..3 {
        let file = |name: &str| dir.join(format!("layer_{layer}{name}.safetensors"));
        fs::copy(file(""), file("_l0_big")).unwrap();
        fs::rename(file(""), file("_l0_small")).unwrap();
    }
    let error = refused(&dir);
    assert!(error.contains("several transcoders of layer 0") && error.contains("layer_*_l0_small"), "{error}");
    for name in ["layer_*_l0_small", "layer_*_l0_big.safetensors"] {
        let set = open_set(&dir.join(name)).unwrap();
        assert_eq!((set.config().kind, set.config().n_layers), (SetKind::CrossLayer, 3));
    }
}

#[test]
fn what_another_run_left_is_not_overwritten_and_not_removed() {
    let tmp = tempfile::tempdir().unwrap();
    let set = TranscoderSet::from_layers(config(SetKind::PerLayer), dictionaries(Architecture::Relu, false)).unwrap();
    let left = tmp.path().join("set.partial/training");
    fs::create_dir_all(&left).unwrap();
    assert!(matches!(write_set(&set, &tmp.path().join("set")), Err(Error::OutputInUse { .. })));
    assert!(left.is_dir());
}

#[test]
fn a_missing_layer_is_named_with_its_file() {
    let tmp = tempfile::tempdir().unwrap();
    for (name, file, says) in [
        ("plt-relu-skip", "layer_1.safetensors", "layer 1 is missing"),
        ("clt-relu", "W_enc_1.safetensors", "layer 1 is missing"),
        ("clt-relu", "W_enc_2.safetensors", "layer 2 is missing"),
        ("clt-relu", "W_dec_2.safetensors", "layer 2 is missing"),
        ("clt-relu", "W_dec_0.safetensors", "layer 0 is missing"),
        ("gemma-scope", "layer_1/average_l0_7/params.npz", "layer 1 is missing"),
        ("gemma-scope-2-clt", "layer_2.safetensors", "layer 2 is missing"),
    ] {
        let dir = copy(name, tmp.path());
        fs::remove_file(dir.join(file)).unwrap();
        let error = refused(&dir);
        assert!(error.contains(says) && error.contains(file), "{error}");
        fs::remove_dir_all(dir).unwrap();
    }
    let dir = copy("plt-relu-skip", tmp.path());
    fs::remove_file(dir.join(CONFIG)).unwrap();
    assert!(refused(&dir).contains("feature_input_hook") && is_set(&dir));
}

#[test]
fn a_damaged_description_says_what_is_wrong() {
    let tmp = tempfile::tempdir().unwrap();
    for (name, from, to, says) in [
        ("plt-relu-skip", "model_kind: transcoder_set", "", "a key 'model_kind'"),
        ("plt-relu-skip", "transcoder_set", "transcoder_sets", "cross_layer_transcoder"),
        ("plt-relu-skip", "transcoder_set", "cross_layer_transcoder", "W_enc_"),
        ("clt-relu", "cross_layer_transcoder", "transcoder_set", "layer_"),
        ("plt-relu-skip", "hook_resid_mid", "hook_resid_middle", "hook_resid_mid"),
        ("plt-relu-skip", "hook_mlp_out", "hook_embed", "feature_output_hook"),
        ("plt-relu-skip", "feature_input_hook: hook_resid_mid", "feature_input_hook: [a, b]", "a list of 2"),
        ("gemma-scope", "- layer_0/average_l0_7/params.npz", "- hf://nowhere", "hf://org/name"),
    ] {
        let dir = copy(name, tmp.path());
        edit(&dir.join(CONFIG), from, to);
        let error = refused(&dir);
        assert!(error.contains(says), "{from} -> {to}: {error}");
        fs::remove_dir_all(dir).unwrap();
    }
}

#[test]
fn files_of_different_sets_and_unknown_tensors_are_refused() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = copy("plt-relu-skip", tmp.path());
    let wide = dictionaries(Architecture::Relu, false);
    let wide = TranscoderSet::from_layers(config(SetKind::PerLayer), wide).unwrap();
    let other = tmp.path().join("other");
    write_set(&wide, &other).unwrap();
    fs::copy(other.join("layer_1.safetensors"), dir.join("layer_1.safetensors")).unwrap();
    let error = refused(&dir);
    assert!(error.contains("20 features") && error.contains("layer_1.safetensors"), "{error}");
    // A decoder of another layer has another number of targets.
    let dir = copy("clt-relu", tmp.path());
    fs::copy(dir.join("W_enc_0.safetensors"), dir.join("W_enc_1.safetensors")).unwrap();
    assert!(refused(&dir).contains("W_enc_1"));
    // Thresholds are in all layers or in none.
    let dir = copy("clt-jumprelu-bf16", tmp.path());
    let mut bytes = fs::read(dir.join("W_enc_0.safetensors")).unwrap();
    let at = bytes.windows(11).position(|w| w == b"threshold_0").unwrap();
    bytes[at..at + 11].copy_from_slice(b"thresholt_0");
    fs::write(dir.join("W_enc_0.safetensors"), bytes).unwrap();
    assert!(refused(&dir).contains("thresholt_0"));
}

#[test]
fn truncated_files_and_values_that_are_no_numbers_are_errors() {
    let tmp = tempfile::tempdir().unwrap();
    for (name, file) in [
        ("plt-relu-skip", "layer_1.safetensors"),
        ("clt-relu", "W_dec_0.safetensors"),
        ("gemma-scope", "layer_2/average_l0_7/params.npz"),
    ] {
        let dir = copy(name, tmp.path());
        let whole = fs::read(dir.join(file)).unwrap();
        for cut in [0, 7, whole.len() / 2, whole.len() - 1] {
            fs::write(dir.join(file), &whole[..cut]).unwrap();
            assert!(refused(&dir).contains(file.rsplit('/').next().unwrap()), "{name} {cut}");
        }
        fs::remove_dir_all(dir).unwrap();
    }
    let dir = copy("plt-relu-skip", tmp.path());
    let path = dir.join("layer_1.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let file = Mapped::open("layer", &path).unwrap();
    let [w_enc, w_dec] = ["W_enc", "W_dec"].map(|name| file.locate(name, safetensors::Dtype::F32, &[10, 6]).unwrap());
    bytes[w_enc.start + 4 * 6 * 4..][..4].copy_from_slice(&f32::NAN.to_le_bytes());
    bytes[w_dec.start + 4 * 6 * 4..][..4].copy_from_slice(&f32::INFINITY.to_le_bytes());
    drop(file);
    fs::write(&path, bytes).unwrap();
    let set = open_set(&dir).unwrap();
    let error = set.encode(1, &[0.0; 6]).unwrap_err().to_string();
    assert!(error.contains("'W_enc'") && error.contains("layer_1"), "{error}");
    assert!(set.decoder_rows(1, 1, &[4]).is_err() && set.decoder_rows(1, 1, &[3, 5]).is_ok());
    assert!(set.encode(0, &[0.0; 6]).is_ok() && set.encode(1, &[0.0; 6]).is_err(), "asked again, refused again");
}

#[test]
fn folders_of_several_variants_are_told_apart_by_a_star() {
    let tmp = tempfile::tempdir().unwrap();
    // Without a configuration, what Gemma Scope 2's dictionaries are is in the names of their folders.
    let dir = tmp.path().join("transcoder_all");
    copy_dir(&golden("gemma-scope-2"), &dir);
    fs::remove_file(dir.join(CONFIG)).unwrap();
    let one = open_set(&dir).unwrap();
    assert_eq!((one.config().input, one.config().output), (Site::MlpHookIn, Site::MlpOut));
    let named = open_set(&golden("gemma-scope-2")).unwrap();
    let x = inputs();
    assert_eq!(codes(&one, &x), codes(&named, &x));
    copy_dir(&dir.join("layer_1_width_10_l0_small_affine"), &dir.join("layer_1_width_10_l0_big_affine"));
    let error = refused(&dir);
    assert!(error.contains("layer_*_width_10_l0_small_affine"), "{error}");
    let starred = dir.join("layer_*_width_10_l0_small_affine");
    assert_eq!(codes(&open_set(&starred).unwrap(), &x), codes(&named, &x));
    assert!(refused(&dir.join("layer_*_width_10_l0_big_affine")).contains("layer 0 is missing"));
    assert!(is_set(&starred) && !is_set(&dir.join("none")) && !is_set(tmp.path()));
}

#[test]
fn places_that_hold_no_set_say_what_a_set_is() {
    let tmp = tempfile::tempdir().unwrap();
    assert!(refused(tmp.path()).contains("layer_{i}.safetensors"));
    let file = tmp.path().join("x");
    fs::write(&file, "x").unwrap();
    assert!(refused(&file).contains("a set is a directory"));
    assert!(refused(Path::new("no-such-place")).contains("org/name"));
    assert_eq!(scan_of(Path::new("/c/models--org--a-b/snapshots/0123")), "org/a-b");
    assert_eq!(scan_of(Path::new("/c/models--org--a-b/snapshots/0123/x/y")), "org/a-b//x/y");
}

#[test]
fn a_set_says_which_model_it_does_not_fit() {
    let model = crate::analysis::tests::open("llama");
    let config = model.config();
    let set = open_set(&golden("plt-relu-skip")).unwrap();
    let error = set.check_model(config).unwrap_err().to_string();
    assert!(error.contains("tiny/model") && error.contains("llama") && error.contains("width 6"), "{error}");
}
