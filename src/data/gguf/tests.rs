//! Against files that gguf-py wrote (`tests/golden/make_gguf.py`, `make_gguf_tokenizers.py`), whole and damaged.

use serde_json::Value as Json;

use super::*;
use crate::data::{BosPolicy, SpecialIds, Tokenizer};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gguf").join(name)
}

/// The byte-level tokenizer with another entry for how text is cut.
fn with_pre(dir: &Path, name: &str) -> PathBuf {
    let bytes = std::fs::read(golden("tokenizers/bytes.gguf")).unwrap();
    let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let (old, new) = (text("gpt-2"), text(name));
    let at = (0..bytes.len()).find(|&at| bytes[at..].starts_with(&old)).unwrap();
    let path = dir.join("tokenizer.gguf");
    std::fs::write(&path, [&bytes[..at], &new, &bytes[at + old.len()..]].concat()).unwrap();
    path
}

#[test]
fn tokenizers_cut_and_merge_as_other_programs_do() {
    let dir = tempfile::tempdir().unwrap();
    let json: Json = serde_json::from_slice(&std::fs::read(golden("tokenizers/golden.json")).unwrap()).unwrap();
    let texts: Vec<_> = json["texts"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
    let kinds = json["ids"].as_object().unwrap();
    assert_eq!(kinds.len(), 13);
    for (name, expected) in kinds {
        let path = match name.as_str() {
            "llama" | "gemma" => golden(&format!("tokenizers/{name}.gguf")),
            pre => with_pre(dir.path(), pre),
        };
        let tokenizer = Tokenizer::load(&path, None, SpecialIds::default()).unwrap();
        for (text, ids) in texts.iter().zip(expected.as_array().unwrap()) {
            let ours = tokenizer.encode(text, BosPolicy::Never).unwrap();
            let pieces: Vec<_> = ours.iter().map(|&id| tokenizer.piece(id)).collect();
            assert_eq!(serde_json::json!(ours), *ids, "{name} on {text:?}: {pieces:?}");
            if name == "gpt-2" || name == "gemma" {
                assert_eq!(tokenizer.decode(&ours).unwrap(), *text, "{name}");
            }
        }
    }
}

#[test]
fn special_tokens_come_from_types_and_ids() {
    let load = |name: &str| Tokenizer::load(&golden(name), None, SpecialIds::default()).unwrap();
    let bytes = load("tokenizers/bytes.gguf");
    assert_eq!((bytes.bos_id(), bytes.eos_id(), bytes.adds_bos()), (Some(0), Some(1), false));
    assert_eq!(bytes.special_ids().iter().copied().collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!(bytes.piece(420), "<unused 420>", "rows that converters fill up");
    let llama = load("tokenizers/llama.gguf");
    assert_eq!((llama.bos_id(), llama.eos_id(), llama.adds_bos()), (Some(1), Some(2), true));
    assert_eq!(llama.special_ids().iter().copied().collect::<Vec<_>>(), [0, 1, 2], "not the user's own token");
    assert_eq!(llama.decode(&llama.encode("a b", BosPolicy::Never).unwrap()).unwrap(), "a b");
    assert_ne!(llama.hash(), load("tokenizers/gemma.gguf").hash());
    assert_eq!(llama.hash(), load("tokenizers/llama.gguf").hash());
}

#[test]
fn unknown_tokenizers_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let error = |name: &str| {
        let path = with_pre(dir.path(), name);
        Tokenizer::load(&path, None, SpecialIds::default()).unwrap_err().to_string()
    };
    assert!(error("qwen99").contains("qwen99") && error("qwen99").contains("qwen2"));
    assert!(error("default").contains("tokenizer.ggml.pre"));
    let error = Tokenizer::load(&golden("gpt2.gguf"), None, SpecialIds::default()).unwrap_err().to_string();
    assert!(error.contains("tokenizer.ggml.tokens") && error.contains("gpt2.gguf"), "{error}");
}

#[test]
fn metadata_reads_by_type_and_says_where_it_is_wrong() {
    let file = Gguf::open(&golden("llama.gguf")).unwrap();
    assert_eq!(file.text("general.architecture").unwrap(), Some("llama"));
    assert_eq!(file.usize("llama.block_count").unwrap(), Some(2));
    assert_eq!(file.f64("llama.rope.freq_base").unwrap(), Some(500.0));
    assert_eq!(file.bool("tokenizer.ggml.add_bos_token").unwrap(), Some(true));
    assert_eq!(file.texts("tokenizer.ggml.merges").unwrap(), Some(vec!["a b"]));
    assert_eq!(file.integers("tokenizer.ggml.token_type").unwrap().unwrap()[..3], [2, 3, 3]);
    assert_eq!(file.usize("no.such.key").unwrap(), None);
    let error = file.usize("general.architecture").unwrap_err().to_string();
    assert!(error.contains("general.architecture") && error.contains("llama.gguf"), "{error}");
    let info = &file.tensors()["token_embd.weight"];
    assert_eq!((info.dtype.name, info.shape.as_slice(), info.bytes()), ("f16", &[24, 16][..], 24 * 16 * 2));
}

#[test]
fn cut_off_and_foreign_files_are_errors() {
    let path = Path::new("damaged.gguf");
    let whole = std::fs::read(golden("llama.gguf")).unwrap();
    let last = parse::header(path, &whole).unwrap().tensors.values().map(|info| info.range.end).max().unwrap();
    for cut in (4..last).rev() {
        let error = parse::header(path, &whole[..cut]).unwrap_err();
        assert!(matches!(error, Error::Malformed { .. }), "cut at {cut}: {error}");
    }
    let version = |version: [u8; 4]| {
        let error = parse::header(path, &[&b"GGUF"[..], &version, &whole[8..]].concat()).unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }));
        error.to_string()
    };
    assert!(version([1, 0, 0, 0]).contains("version 1"));
    assert!(version([0, 0, 0, 3]).contains("big-endian"));
    assert!(version([9, 0, 0, 0]).contains("version 9"));
}

#[test]
fn lengths_beyond_the_file_allocate_nothing() {
    let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let counts =
        |tensors: u64, entries: u64| [&b"GGUF\x03\0\0\0"[..], &tensors.to_le_bytes(), &entries.to_le_bytes()].concat();
    let entry = |kind: u32, rest: &[u8]| [&counts(0, 1)[..], &text("k"), &kind.to_le_bytes(), rest].concat();
    let huge = u64::MAX.to_le_bytes();
    let array = |kind: u32| [&kind.to_le_bytes()[..], &huge].concat();
    let tensor = |dims: &[u64], kind: u32, offset: u64| {
        let dims: Vec<u8> =
            (dims.len() as u32).to_le_bytes().into_iter().chain(dims.iter().flat_map(|d| d.to_le_bytes())).collect();
        [&counts(1, 0)[..], &text("t"), &dims, &kind.to_le_bytes(), &offset.to_le_bytes(), &[0; 256]].concat()
    };
    assert!(parse::header(Path::new("x"), &tensor(&[4], 0, 0)).is_ok(), "the test's own tensors are read");
    for bad in [
        counts(u64::MAX, 0),
        counts(0, u64::MAX),
        entry(8, &huge),
        entry(9, &array(8)),
        entry(9, &array(12)),
        entry(9, &array(9)),
        entry(77, &huge),
        tensor(&[u64::MAX, 2], 0, 0),
        tensor(&[1 << 40], 0, 0),
        tensor(&[0], 0, 0),
        tensor(&[4], 0, u64::MAX - 3),
        tensor(&[4], 0, 4),
        tensor(&[31], 2, 0),
        tensor(&[4], 99, 0),
        tensor(&[1, 1, 1, 1, 1], 0, 0),
    ] {
        assert!(matches!(parse::header(Path::new("x"), &bad), Err(Error::Malformed { .. })), "{bad:?}");
    }
}
