//! Against what transformers holds and gguf-py wrote (`tests/golden/make_gguf.py`).

use serde_json::Value;

use super::*;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gguf").join(name)
}

fn tensors(name: &str) -> BTreeMap<String, Tensor> {
    let loaded = candle_core::safetensors::load(golden(&format!("{name}.safetensors")), &Device::Cpu);
    loaded.unwrap().into_iter().collect()
}

/// Every model of the goldens.
fn models() -> Vec<String> {
    let files = std::fs::read_dir(golden("")).unwrap().flatten();
    let names = files.map(|entry| entry.file_name().into_string().unwrap());
    let mut models: Vec<_> = names.filter_map(|name| name.strip_suffix(".json").map(str::to_owned)).collect();
    models.sort();
    models
}

fn f32s(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn every_architecture_has_the_tensors_that_transformers_has() {
    let mut archs = Vec::new();
    for model in models() {
        let file = GgufFile::open(&golden(&format!("{model}.gguf"))).unwrap();
        archs.push(arch_of(&file.file).unwrap().name);
        let mut expected = tensors(&model);
        expected.retain(|name, _| !name.starts_with("golden."));
        let entries = file.entries();
        let names: Vec<_> = entries.iter().map(|entry| entry.name.clone()).collect();
        let theirs: Vec<_> = expected.keys().cloned().collect();
        assert_eq!(names, theirs, "{model}");
        for entry in entries {
            let expected = &expected[&entry.name];
            assert_eq!(entry.shape, expected.dims(), "{model} {}", entry.name);
            let ours = file.tensor(&entry.name, expected.dims(), DType::F32, &Device::Cpu).unwrap();
            // Gemma's norms went through an addition and a subtraction of one.
            let near = |(a, b): (f32, &f32)| (a - b).abs() < 2e-7;
            let same = f32s(&ours).into_iter().zip(&f32s(expected)).all(near);
            assert!(same, "{model} {}", entry.name);
        }
    }
    archs.sort_unstable();
    archs.dedup();
    assert_eq!(archs.len(), arch::all().count(), "an architecture has no golden: {archs:?}");
}

/// Settings that mean the same when absent, or that GGUF cannot say and nothing depends on.
fn same(key: &str, ours: Option<&Value>, theirs: &Value) -> bool {
    let number = |value: &Value| value.as_f64();
    match (key, ours) {
        (_, Some(ours)) if ours == theirs => true,
        // Defaults that transformers fills in when it builds the model.
        ("hidden_activation", Some(ours)) if theirs.is_null() => ours == "gelu_pytorch_tanh",
        ("n_inner", Some(ours)) if theirs.is_null() => ours == 64,
        ("eos_token_id", Some(Value::Array(list))) => list.as_slice() == [theirs.clone()],
        (_, Some(ours)) => {
            matches!((number(ours), number(theirs)), (Some(a), Some(b)) if (a - b).abs() <= 1e-6 * b.abs())
        }
        (_, None) => false,
    }
}

#[test]
fn settings_equal_those_of_transformers() {
    // What no decoder-only pass depends on, or what is compared by its effect in another test.
    let ignored = ["pad_token_id", "vocab_size_per_layer_input", "rope_scaling", "initializer_range"];
    for model in models() {
        let ours = config::of(&Gguf::open(&golden(&format!("{model}.gguf"))).unwrap()).unwrap();
        let theirs: Value = serde_json::from_slice(&std::fs::read(golden(&format!("{model}.json"))).unwrap()).unwrap();
        let ours = ours.as_object().unwrap();
        let shared = theirs.as_object().unwrap().iter().filter(|(key, _)| ours.contains_key(*key));
        let (mut compared, mut wrong) = (0, Vec::new());
        for (key, theirs) in shared.filter(|(key, _)| !ignored.contains(&key.as_str())) {
            compared += 1;
            if !same(key, ours.get(key), theirs) {
                wrong.push(format!("{key}: {:?}, not {theirs}", ours.get(key)));
            }
        }
        assert_eq!(wrong, Vec::<String>::new(), "{model}");
        assert!(compared >= 8, "{model}: only {compared} settings in common");
        let has = |key: &str| assert!(ours.contains_key(key), "{model} lacks {key}");
        for key in ["attention_multiplier", "clip_qkv", "query_pre_attn_scalar", "no_rope_layers", "qk_layernorm"] {
            if theirs.get(key).is_some_and(|value| !value.is_null()) {
                has(key);
            }
        }
    }
}

#[test]
fn llama_3_divisors_become_a_factor_for_every_frequency() {
    let config = config::of(&Gguf::open(&golden("llama-3.gguf")).unwrap()).unwrap();
    let scaling = &config["rope_scaling"];
    assert_eq!((&scaling["rope_type"], &scaling["attention_factor"]), (&"longrope".into(), &1.0.into()));
    assert_eq!(scaling["short_factor"], scaling["long_factor"]);
    assert_eq!(scaling["short_factor"].as_array().unwrap().len(), 2);
    let phi = config::of(&Gguf::open(&golden("phi3.gguf")).unwrap()).unwrap();
    assert_eq!(phi["rope_scaling"]["long_factor"], serde_json::json!([3.0]));
    assert_eq!(phi["original_max_position_embeddings"], 16);
}

#[test]
fn every_number_type_reads_as_gguf_py_reads_it() {
    let file = Gguf::open(&golden("types.gguf")).unwrap();
    let expected = tensors("types");
    assert_eq!(expected.len(), 13);
    for (name, expected) in expected {
        let info = &file.tensors()[&name];
        let theirs = f32s(&expected);
        let largest = theirs.iter().fold(0f32, |m, x| m.max(x.abs()));
        for (dtype, tolerance) in [(DType::F32, 1e-6), (DType::BF16, 4e-3), (DType::F16, 5e-4)] {
            let ours = floats(&file, &name, info, dtype).unwrap();
            assert_eq!((ours.dims(), ours.dtype()), (expected.dims(), dtype));
            let worst = f32s(&ours).iter().zip(&theirs).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
            assert!(worst <= tolerance * largest, "{name} as {dtype:?}: off by {worst} of {largest}");
        }
    }
    let error = floats(&file, "blk.0.iq4_nl", &file.tensors()["blk.0.iq4_nl"], DType::F32).unwrap_err().to_string();
    assert!(error.contains("blk.0.iq4_nl") && error.contains("types.gguf") && error.contains("q4_0"), "{error}");
}

#[test]
fn changes_refuse_shapes_that_they_do_not_fit() {
    let deinterleave = Change::Deinterleave { heads: 3 };
    assert_eq!((deinterleave.shape(&[12, 5]), deinterleave.shape(&[9, 5])), (Some(vec![12, 5]), None));
    assert_eq!(Change::Deinterleave { heads: 0 }.shape(&[12, 5]), None);
    assert_eq!(Change::Group { heads: 4, groups: 2 }.shape(&[12]), None);
    assert_eq!(Change::Group { heads: 4, groups: 0 }.shape(&[12]), None);
    assert_eq!((Change::Rows(2..5).shape(&[5, 2]), Change::Rows(2..5).shape(&[4, 2])), (Some(vec![3, 2]), None));
    assert_eq!((Change::Row(1).shape(&[2, 7]), Change::Row(2).shape(&[2, 7])), (Some(vec![7]), None));
}

#[test]
fn neighbours_become_halves() {
    let stored = Tensor::new(&[0f32, 3., 1., 4., 2., 5.], &Device::Cpu).unwrap();
    let one_head = Change::Deinterleave { heads: 1 }.apply(stored).unwrap();
    assert_eq!(f32s(&one_head), [0., 1., 2., 3., 4., 5.]);
    let queries_keys_values = Tensor::new(&[1f32, 2., 3., 4., 10., 20., 100., 200.], &Device::Cpu).unwrap();
    let grouped = Change::Group { heads: 4, groups: 2 }.apply(queries_keys_values).unwrap();
    assert_eq!(f32s(&grouped), [1., 2., 10., 100., 3., 4., 20., 200.]);
}

/// Opens a damaged file and reads what is left of it. It may fail, but not panic.
fn exercise(path: &Path) {
    if let Ok(gguf) = Gguf::open(path) {
        drop(config::of(&gguf));
    }
    let Ok(file) = GgufFile::open(path) else { return };
    for entry in file.entries() {
        drop(file.tensor(&entry.name, &entry.shape, DType::F32, &Device::Cpu));
    }
    drop(crate::data::Tokenizer::load(path, None, crate::data::SpecialIds::default()));
}

#[test]
fn flipped_bits_are_errors_or_other_values_and_never_panics() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("damaged.gguf");
    for name in ["llama.gguf", "smollm3.gguf", "falcon-grouped.gguf"] {
        let whole = std::fs::read(golden(name)).unwrap();
        let data = Gguf::open(&golden(name)).unwrap().tensors().values().map(TensorInfo::bytes).sum::<usize>();
        // The step has no factor in common with eight, so that every bit of a byte has its turn.
        for bit in (0..(whole.len() - data) * 8).step_by(61) {
            let mut damaged = whole.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, &damaged).unwrap();
            exercise(&path);
        }
    }
}

#[test]
fn what_is_not_known_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("other.gguf");
    let whole = std::fs::read(golden("llama.gguf")).unwrap();
    let patched = |from: &str, to: &str| {
        assert_eq!(from.len(), to.len());
        let mut bytes = whole.clone();
        let places: Vec<_> =
            (0..bytes.len() - from.len()).filter(|&at| bytes[at..].starts_with(from.as_bytes())).collect();
        assert!(!places.is_empty(), "{from}");
        for &at in &places {
            bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        }
        std::fs::write(&path, bytes).unwrap();
        let config = config::of(&Gguf::open(&path).unwrap()).map(|_| ());
        config.and_then(|()| GgufFile::open(&path).map(|_| ())).unwrap_err().to_string()
    };
    let error = patched("llama.rope.freq_base", "llama.rope.freq_zeta");
    assert!(error.contains("llama.rope.freq_zeta") && error.contains("other.gguf"), "{error}");
    let error = patched("blk.1.attn_output", "blk.1.attn_sinkss");
    assert!(error.contains("blk.1.attn_sinkss.weight"), "{error}");
    let error = patched("llama.attention.head_count_kv", "llama.attention.head_count_xy");
    assert!(error.contains("head_count_xy"), "{error}");
}
