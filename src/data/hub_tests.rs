use super::*;
use crate::base::Silent;

const FILES: [(&str, &str); 5] = [
    ("config.json", "{\"model_type\": \"llama\"}"),
    ("tokenizer.json", "{}"),
    ("model.safetensors.index.json", r#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#),
    ("model-1.safetensors", "weights one"),
    ("model-2.safetensors", "weights two"),
];

#[test]
fn a_reference_that_is_neither_a_path_nor_a_name_says_what_it_should_be() {
    let cache = tempfile::tempdir().unwrap();
    let settings = HubSettings {
        cache: cache.path().into(),
        endpoint: "http://127.0.0.1:1".into(),
        token: None,
        certificates: None,
        offline: false,
    };
    let cases = [
        ("gpt2", "openai-community/gpt2"),
        ("./no/such/dir", "check the path"),
        ("a/b/c", "org/name"),
        ("a/b", "no answer from 127.0.0.1:1"),
    ];
    for (reference, expected) in cases {
        let error = locate_model_with(&settings, reference, &Silent).unwrap_err().to_string();
        assert!(error.contains(expected), "{reference}: {error}");
    }
}

#[test]
fn the_hash_of_the_weights_depends_on_every_shard() {
    let dir = tempfile::tempdir().unwrap();
    for (name, contents) in FILES {
        std::fs::write(dir.path().join(name), contents).unwrap();
    }
    let reference = dir.path().to_str().unwrap();
    let files = locate_model(reference, &Silent).unwrap();
    let before = files.weights_hash().unwrap();
    std::fs::write(dir.path().join("model-2.safetensors"), "other").unwrap();
    assert_ne!(files.weights_hash().unwrap(), before);
}
