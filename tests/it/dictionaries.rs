//! The dictionaries under `tests/golden/dictionaries`, which SAELens 6.54 trained and stored, and what it computes with
//! them, made by `tests/golden/make_dictionaries.py`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use mechinterp::dictionary::{Architecture, Dictionary, NormalizeActivations, io};

use crate::close::Close;

const AGREES: Close = Close(1e-5);

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/dictionaries")
}

fn names() -> Vec<String> {
    // Other formats have folders here too.
    let ours = |name: &String| root().join(name).join("check.safetensors").exists();
    let entries = std::fs::read_dir(root()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = entries.filter(ours).collect();
    names.sort();
    names
}

fn tensor(values: &[f32], rows: usize) -> Tensor {
    Tensor::from_slice(values, (rows, values.len() / rows), &Device::Cpu).unwrap()
}

/// Compares codes and reconstructions; gives the rows, which sometimes serve twice.
fn assert_agrees(name: &str, dictionary: &Dictionary, check: &HashMap<String, Tensor>) -> Vec<f32> {
    let x: Vec<f32> = check["x"].flatten_all().unwrap().to_vec1().unwrap();
    let codes = dictionary.encode(&x).unwrap();
    AGREES.assert(&format!("{name}: codes"), &tensor(&codes.to_dense(), codes.rows()), &check["codes"]);
    let x_hat = dictionary.reconstruct(&x).unwrap();
    AGREES.assert(&format!("{name}: reconstruction"), &tensor(&x_hat, codes.rows()), &check["x_hat"]);
    assert_eq!(x_hat, dictionary.reconstruct_codes(&x, &codes).unwrap());
    x
}

#[test]
fn what_saelens_trained_computes_the_same_here_also_after_writing_it_again() {
    let names = names();
    assert_eq!(names.len(), 27);
    for name in names {
        let dir = root().join(&name);
        let dictionary = io::read(&dir).unwrap();
        let check = candle_core::safetensors::load(dir.join("check.safetensors"), &Device::Cpu).unwrap();
        let x = assert_agrees(&name, &dictionary, &check);
        let codes = dictionary.encode(&x).unwrap();
        assert!(codes.len() > codes.rows() && codes.len() < codes.rows() * dictionary.d_sae(), "{name}");
        // The agreement is no accident of an empty or linear dictionary: codes alone or rows alone do not explain it.
        assert_eq!(
            dictionary.uses_rows_to_reconstruct(),
            dictionary.decode(&codes).unwrap() != dictionary.reconstruct(&x).unwrap()
        );
        let copy = tempfile::tempdir().unwrap();
        io::write(copy.path(), &dictionary).unwrap();
        assert_agrees(&format!("{name}, written again"), &io::read(copy.path()).unwrap(), &check);
    }
}

#[test]
fn each_kind_is_recognised_for_what_it_is() {
    let config = |name: &str| io::read_config(&root().join(name)).unwrap();
    let kind = |name: &str| config(name).architecture;
    assert_eq!(kind("standard"), Architecture::Relu);
    assert_eq!(kind("gated"), Architecture::Gated);
    assert_eq!(kind("topk_checkpoint"), Architecture::TopK { k: 4, rescale_acts_by_decoder_norm: true });
    assert_eq!(kind("abstopk"), Architecture::AbsTopK { k: 4, rescale_acts_by_decoder_norm: true });
    assert_eq!(kind("legacy_topk"), Architecture::TopK { k: 4, rescale_acts_by_decoder_norm: false });
    for name in ["jumprelu", "batchtopk", "batchtopk_checkpoint", "matryoshka_batchtopk_checkpoint"] {
        assert_eq!(kind(name), Architecture::JumpRelu, "{name}");
    }
    assert_eq!(config("topk_layer_norm").normalize_activations, NormalizeActivations::LayerNorm);
    assert!(config("centered").center_input && !config("standard").center_input);
    assert!(!config("standard_raw_input").apply_b_dec_to_input);
    let skip = io::read(&root().join("jumprelu_skip_transcoder")).unwrap();
    assert!(skip.config.transcoder && skip.w_skip.is_some() && (skip.d_in(), skip.d_out()) == (8, 6));
    assert_eq!(config("legacy").metadata.hook_name.as_deref(), Some("blocks.8.hook_resid_pre"));
}
