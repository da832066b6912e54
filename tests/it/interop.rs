//! Dictionaries that other tools wrote (`tests/golden/make_foreign_dictionaries.py`): read, compared with what those
//! tools make of them, written back.

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use mechinterp::dictionary::{Architecture, Dictionary};
use mechinterp::interop::{self, Format, Hints, Opened};
use serde_json::Value;

use crate::close::Close;
use crate::fixture::Cli;

const EXACT: Close = Close(1e-5);

pub(crate) fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/dictionaries")
}

/// The entries of the index, whose number is that of the generator's cases.
pub(crate) fn cases() -> Vec<Value> {
    let index: Vec<Value> = serde_json::from_slice(&std::fs::read(folder().join("index.json")).unwrap()).unwrap();
    assert!(index.len() >= 35);
    index
}

pub(crate) fn text<'a>(case: &'a Value, key: &str) -> &'a str {
    case[key].as_str().unwrap()
}

fn rows(case: &Value) -> [Tensor; 3] {
    let path = folder().join("golden").join(format!("{}.safetensors", text(case, "name")));
    let tensors = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    ["x", "codes", "x_hat"].map(|name| tensors[name].clone())
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Fails unless `dictionary` encodes and reconstructs as the tool did.
fn agrees(what: &str, dictionary: &Dictionary, [x, codes, x_hat]: &[Tensor; 3]) {
    let x = values(x);
    let ours = dictionary.encode(&x).unwrap();
    let tensor = |values: Vec<f32>, like: &Tensor| Tensor::from_vec(values, like.dims(), &Device::Cpu).unwrap();
    EXACT.assert(&format!("codes of {what}"), &tensor(ours.to_dense(), codes), codes);
    EXACT.assert(&format!("x_hat of {what}"), &tensor(dictionary.reconstruct(&x).unwrap(), x_hat), x_hat);
    let exactly_zero = values(codes).iter().filter(|z| **z == 0.0).count();
    assert_eq!(ours.to_dense().iter().filter(|z| **z == 0.0).count(), exactly_zero, "inactive features of {what}");
}

#[test]
fn every_format_computes_what_its_own_tool_computes() {
    let mut formats = Vec::new();
    for case in cases() {
        let name = text(&case, "name");
        let Opened { dictionary, format, .. } = interop::open(&folder().join(text(&case, "path"))).unwrap();
        assert_eq!(format.name(), text(&case, "format"), "{name}");
        let metadata = &dictionary.config.metadata;
        assert_eq!(dictionary.config.architecture.name(), text(&case, "architecture"), "{name}");
        assert_eq!(metadata.hook_name.as_deref(), case["hook_name"].as_str(), "hook of {name}");
        let output = metadata.extra.get("hook_name_out").and_then(Value::as_str);
        assert_eq!(output, case.get("hook_name_out").and_then(Value::as_str), "output hook of {name}");
        for (key, found) in [
            ("model_name", metadata.model_name.clone().map(Value::from)),
            ("context_size", metadata.context_size.map(Value::from)),
            ("prepend_bos", metadata.prepend_bos.map(Value::from)),
            ("k", k(dictionary.config.architecture).map(Value::from)),
        ] {
            if let Some(expected) = case.get(key) {
                assert_eq!(found.as_ref(), Some(expected), "{key} of {name}");
            }
        }
        agrees(name, &dictionary, &rows(&case));
        formats.push(format);
    }
    for format in Format::ALL.into_iter().filter(|format| *format != Format::SaeLens) {
        assert!(formats.contains(&format), "no dictionary of {}", format.title());
    }
}

fn k(architecture: Architecture) -> Option<usize> {
    match architecture {
        Architecture::TopK { k, .. } | Architecture::GroupMax { k } => Some(k),
        _ => None,
    }
}

#[test]
fn what_is_written_in_another_format_reads_back_as_the_same_function() {
    let mut written = [0; 3];
    for case in cases() {
        let name = text(&case, "name");
        let dictionary = interop::open(&folder().join(text(&case, "path"))).unwrap().dictionary;
        for (count, format) in written.iter_mut().zip(Format::WRITTEN) {
            let dir = tempfile::tempdir().unwrap();
            match interop::write(dir.path(), &dictionary, format) {
                Ok(()) => {
                    let back = interop::open(dir.path()).unwrap();
                    assert_eq!(back.format, format, "{name}");
                    agrees(&format!("{name} as {}", format.title()), &back.dictionary, &rows(&case));
                    let [ours, theirs] = [&dictionary, &back.dictionary].map(|d| &d.config.metadata);
                    assert_eq!(ours.model_name, theirs.model_name, "{name} as {}", format.title());
                    let same_place = ours.hook_name == theirs.hook_name
                        || theirs.hook_name.as_deref().is_some_and(|hook| hook.starts_with("layers."));
                    assert!(same_place, "{name}: {:?} and {:?}", ours.hook_name, theirs.hook_name);
                    *count += 1;
                }
                Err(error) => {
                    let error = error.to_string();
                    let reasons = [
                        "topk and groupmax",
                        "no transcoders",
                        "no class of it",
                        "normalised",
                        "resid_post",
                        "names a dictionary's folder",
                        "module",
                        "groupmax",
                        "ReLU",
                        "no architecture",
                    ];
                    assert!(error.contains("remedy") && reasons.iter().any(|reason| error.contains(reason)), "{error}");
                }
            }
        }
    }
    let [saelens, dictionary_learning, sparsify] = written;
    assert!(saelens >= 28 && dictionary_learning >= 15 && sparsify >= 6, "{written:?}");
}

#[test]
fn a_file_may_be_named_in_place_of_its_directory() {
    let sparsify = folder().join("sparsify/topk");
    let found = |path: &Path| {
        let opened = interop::open(path).unwrap();
        (opened.format, opened.dictionary)
    };
    let whole = found(&sparsify);
    for path in ["layers.2", "layers.2/sae.safetensors", "layers.2/cfg.json"] {
        assert_eq!(found(&sparsify.join(path)), whole, "{path}");
    }
    let llama = folder().join("llama_scope/Llama3_1-8B-Base-L15R-8x");
    assert_eq!(found(&llama), found(&llama.join("checkpoints/final.safetensors")));
    let learned = folder().join("dictionary_learning/topk/trainer_0");
    assert_eq!(found(&learned), found(&learned.join("ae.pt")));
    // A checkpoint finds the settings that are above its folder.
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("checkpoints")).unwrap();
    std::fs::copy(learned.join("config.json"), dir.path().join("config.json")).unwrap();
    std::fs::copy(learned.join("ae.pt"), dir.path().join("checkpoints/ae_500.pt")).unwrap();
    assert_eq!(found(&dir.path().join("checkpoints/ae_500.pt")), found(&learned));
}

#[test]
fn what_the_files_leave_out_is_asked_for_and_noted() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("some.pt");
    std::fs::copy(folder().join("qwen_scope/SAE-Res-Qwen3-1.7B-Base-W32K-L0_5/layer4.sae.pt"), &file).unwrap();
    let error = interop::open(&file).unwrap_err().to_string();
    assert!(error.contains("--k") && error.contains("some.pt"), "{error}");
    let opened = interop::open_with(&file, &Hints { k: Some(5) }).unwrap();
    assert_eq!(k(opened.dictionary.config.architecture), Some(5));
    assert!(opened.notes.iter().any(|note| note.contains("hook is not known")), "{:?}", opened.notes);
    assert!(interop::open_with(&file, &Hints { k: Some(25) }).unwrap_err().to_string().contains("--k"));
    let bare = folder().join("dictionary_learning/bare/trainer_0");
    assert!(interop::open(&bare).unwrap().notes.iter().any(|note| note.contains("config.json")));
    let backup = folder().join("dictionary_learning/backup/trainer_0");
    assert!(interop::open(&backup).unwrap().notes.iter().any(|note| note.contains("did not end")));
    let unset = folder().join("dictionary_learning/batchtopk_unset/trainer_0");
    assert!(interop::open(&unset).unwrap().notes.iter().any(|note| note.contains("never set")));
}

#[test]
fn convert_says_what_it_read_and_refuses_with_the_reason() {
    let cli = Cli::new();
    let sae = |path: &str| folder().join(path).display().to_string();
    let learned = sae("dictionary_learning/topk/trainer_0");
    let report = cli.run(&format!("convert --sae {learned} --to sparsify --out run --context-size 64 --json")).json();
    assert_eq!(report["from"], "dictionary_learning");
    assert_eq!((&report["hook_name"], &report["context_size"]), (&"blocks.3.hook_resid_post".into(), &64.into()));
    assert!(report["difference"].as_f64().unwrap() < 1e-6);
    assert!(cli.path("run/layers.3/sae.safetensors").exists() && cli.path("run/run.json").exists());
    let jump = sae("dictionary_learning/jumprelu/trainer_0");
    cli.run(&format!("convert --sae {jump} --to sparsify --out no")).error(&[
        "sparsify",
        "topk and groupmax",
        "jumprelu",
    ]);
    cli.run(&format!("convert --sae {jump} --to goodfire --out no")).error(&["--to", "read only"]);
    cli.run(&format!("convert --sae {jump} --to saelens --out no --hook nowhere")).error(&["nowhere", "hook point"]);
    assert!(!cli.path("no").exists() && !cli.path("no.partial").exists());
    let moved =
        format!("convert --sae {jump} --to saelens --out moved --hook blocks.5.hook_resid_post --prepend-bos false");
    cli.run(&moved).ok();
    let metadata = interop::open(&cli.path("moved")).unwrap().dictionary.config.metadata;
    assert_eq!((metadata.hook_name.as_deref(), metadata.prepend_bos), (Some("blocks.5.hook_resid_post"), Some(false)));
}
