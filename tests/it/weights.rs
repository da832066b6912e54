//! Models out of PyTorch and GGUF files: the same numbers and tokens as from safetensors. The golden files are made by
//! `tests/golden/make_weights.py` and `make_gguf.py`; tests on SmolLM2 run where `MECHINTERP_SMOLLM2` names a directory
//! with its `model.safetensors` and `model.gguf`.

use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use mechinterp::data::{BosPolicy, SpecialIds, Tokenizer};
use mechinterp::model::weights::{Weights, entries};
use mechinterp::model::{HookPlan, Model};

use crate::close::Close;
use crate::fixture::Cli;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn logits(model: &Model, tokens: &Tensor) -> Tensor {
    let run = model.forward(&tokens.to_dtype(DType::U32).unwrap(), &HookPlan::new().with_logits()).unwrap();
    run.logits().unwrap().clone()
}

#[test]
fn pytorch_files_whole_and_in_shards_compute_what_safetensors_compute() {
    let reference = candle_core::safetensors::load(golden("gguf/llama.safetensors"), &Device::Cpu).unwrap();
    let shard = |n| golden(&format!("weights/pytorch_model-0000{n}-of-00002.bin"));
    for files in [vec![golden("weights/pytorch_model.bin")], vec![shard(1), shard(2)]] {
        let model = Model::open(&golden("gguf/llama.json"), &files, DType::F32, &Device::Cpu).unwrap();
        let ours = logits(&model, &reference["golden.tokens"]);
        Close(1e-4).assert(&format!("{files:?}"), &ours, &reference["golden.logits"]);
    }
}

#[test]
fn every_gguf_architecture_computes_what_transformers_computes() {
    let files = std::fs::read_dir(golden("gguf")).unwrap().flatten().map(|entry| entry.path());
    let mut computed = Vec::new();
    for file in files.filter(|path| path.with_extension("json").exists() && path.extension().unwrap() == "gguf") {
        let name = file.file_stem().unwrap().to_str().unwrap().to_owned();
        let model = Model::open(&file, std::slice::from_ref(&file), DType::F32, &Device::Cpu).unwrap();
        let reference = candle_core::safetensors::load(file.with_extension("safetensors"), &Device::Cpu).unwrap();
        let ours = logits(&model, &reference["golden.tokens"]);
        Close(1e-4).assert(&name, &ours, &reference["golden.logits"]);
        computed.push(name);
    }
    assert!(computed.len() >= 21, "only {computed:?}");
}

#[test]
fn a_gguf_file_is_a_model_under_any_name_and_in_a_directory() {
    let cli = Cli::new();
    let file = golden("gguf/llama.gguf");
    std::fs::copy(&file, cli.path("sha256-0123abcd")).unwrap();
    std::fs::create_dir(cli.path("dir")).unwrap();
    std::fs::copy(&file, cli.path("dir/model-f16.gguf")).unwrap();
    let info = cli.run("info sha256-0123abcd --json").json();
    assert_eq!(info["config"]["family"], "llama");
    assert_eq!(info["weight_dtypes"], serde_json::json!(["f16", "f32"]));
    let expected = entries(&[golden("gguf/llama.safetensors")]).unwrap();
    let expected = expected.iter().filter(|entry| !entry.name.starts_with("golden."));
    assert_eq!(info["parameters"], expected.map(|entry| entry.shape.iter().product::<usize>()).sum::<usize>());
    let run = |model: &str| cli.run_with(&format!("run {model} --top 3 --json --prompt"), "abba sand").json();
    assert_eq!(run("sha256-0123abcd"), run("dir"));
    assert_eq!(run("sha256-0123abcd"), run(golden("gguf/split").to_str().unwrap()), "in three parts");
    assert_eq!(run("dir")[0]["tokens"][0], 1, "the beginning-of-sequence token");
    // Other weights in the directory win.
    std::fs::copy(golden("weights/pytorch_model.bin"), cli.path("dir/pytorch_model.bin")).unwrap();
    cli.run("info dir").error(&["config.json"]);
}

#[test]
fn bad_weight_files_are_one_clear_error() {
    let cli = Cli::new();
    let whole = std::fs::read(golden("gguf/llama.gguf")).unwrap();
    cli.write("cut.gguf", &whole[..whole.len() / 2]);
    cli.run("info cut.gguf").error(&["cut.gguf", "truncated"]);
    cli.write("empty.gguf", "GGUF");
    cli.run("info empty.gguf").error(&["empty.gguf", "past the end"]);
    let dir = cli.path("model");
    std::fs::create_dir(&dir).unwrap();
    std::fs::copy(golden("gguf/llama.json"), dir.join("config.json")).unwrap();
    std::fs::write(dir.join("tokenizer.json"), "{}").unwrap();
    std::fs::copy(golden("weights/attack.bin"), dir.join("pytorch_model.bin")).unwrap();
    cli.run("info model").error(&["pytorch_model.bin", "posix.system"]);
    assert!(!cli.path("attacked").exists());
    std::fs::copy(golden("weights/legacy.bin"), dir.join("pytorch_model.bin")).unwrap();
    cli.run("info model").error(&["pytorch_model.bin", "before 1.6"]);
}

/// The directory of the real model, where there is one.
fn smollm2() -> Option<PathBuf> {
    std::env::var_os("MECHINTERP_SMOLLM2").map(PathBuf::from)
}

#[test]
fn smollm2_holds_the_same_weights_in_gguf_and_safetensors() {
    let Some(dir) = smollm2() else { return };
    let (gguf, safetensors) = ([dir.join("model.gguf")], [dir.join("model.safetensors")]);
    // The safetensors are the GGUF's numbers rounded to bfloat16.
    let ours = Weights::open(&gguf, DType::BF16, &Device::Cpu).unwrap();
    let theirs = Weights::open(&safetensors, DType::BF16, &Device::Cpu).unwrap();
    let listed = entries(&safetensors).unwrap();
    assert_eq!(entries(&gguf).unwrap().len(), listed.len());
    let bits = |weights: &Weights, name: &str, shape: &[usize]| {
        weights.get(name, shape).unwrap().flatten_all().unwrap().to_vec1::<half::bf16>().unwrap()
    };
    for entry in listed {
        let [ours, theirs] = [&ours, &theirs].map(|weights| bits(weights, &entry.name, &entry.shape));
        assert!(ours == theirs, "{}", entry.name);
    }
}

#[test]
fn smollm2_computes_the_same_from_gguf_and_safetensors() {
    let Some(dir) = smollm2() else { return };
    let golden = candle_core::safetensors::load(golden("smollm2-gguf.safetensors"), &Device::Cpu).unwrap();
    let open = |config: &str, weights: &str, dtype| {
        Model::open(&dir.join(config), &[dir.join(weights)], dtype, &Device::Cpu).unwrap()
    };
    let gguf = open("model.gguf", "model.gguf", DType::F32);
    let in_f32 = logits(&gguf, &golden["tokens"]).get(0).unwrap();
    let top = golden["ids"].to_dtype(DType::U32).unwrap();
    let at_top = in_f32.contiguous().unwrap().gather(&top, 1).unwrap();
    Close(1e-4).assert("what transformers computes on the same file", &at_top, &golden["logits"]);

    let [ours, theirs] = [("model.gguf", "model.gguf"), ("config.json", "model.safetensors")]
        .map(|(config, weights)| logits(&open(config, weights, DType::BF16), &golden["tokens"]));
    Close(1e-3).assert("gguf and safetensors in bf16", &ours, &theirs);

    // The safetensors written as a GGUF file without rounding, with the rows of queries and keys in llama.cpp's order.
    let scratch = tempfile::tempdir().unwrap();
    let exact = scratch.path().join("exact.gguf");
    write_exact(&dir, &exact);
    let ours = logits(
        &Model::open(&exact, std::slice::from_ref(&exact), DType::F32, &Device::Cpu).unwrap(),
        &golden["tokens"],
    );
    let theirs = logits(&open("config.json", "model.safetensors", DType::F32), &golden["tokens"]);
    Close(1e-3).assert("gguf and safetensors in f32", &ours, &theirs);
}

/// Copies the metadata of `dir/model.gguf` and the weights of `dir/model.safetensors` to a GGUF file in bf16 and f32.
fn write_exact(dir: &Path, to: &Path) {
    let mut source = std::fs::File::open(dir.join("model.gguf")).unwrap();
    let content = gguf_file::Content::read(&mut source).unwrap();
    let weights = candle_core::safetensors::load(dir.join("model.safetensors"), &Device::Cpu).unwrap();
    let tensors: Vec<(String, QTensor)> = weights
        .iter()
        .map(|(name, tensor)| {
            let heads = if name.contains("q_proj") { 9 } else { 3 };
            let tensor = tensor.to_dtype(DType::F32).unwrap();
            let tensor = if name.contains("q_proj") || name.contains("k_proj") {
                // `LlamaModel.permute` of llama.cpp's converter.
                let (rows, columns) = tensor.dims2().unwrap();
                let halves = tensor.reshape((heads, 2, rows / heads / 2, columns)).unwrap();
                halves.transpose(1, 2).unwrap().contiguous().unwrap().reshape((rows, columns)).unwrap()
            } else {
                tensor
            };
            let dtype = if tensor.rank() == 1 { GgmlDType::F32 } else { GgmlDType::BF16 };
            (gguf_name(name), QTensor::quantize(&tensor, dtype).unwrap())
        })
        .collect();
    let metadata: Vec<(&str, &Value)> = content.metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
    let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    gguf_file::write(&mut std::fs::File::create(to).unwrap(), &metadata, &tensors).unwrap();
}

fn gguf_name(name: &str) -> String {
    let pairs = [
        ("model.layers.", "blk."),
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ];
    pairs.iter().fold(name.to_owned(), |name, (hf, gguf)| name.replace(hf, gguf))
}

#[test]
fn smollm2_tokenizers_agree_on_every_document() {
    let (Some(dir), Some(corpora)) = (smollm2(), std::env::var_os("MECHINTERP_CORPORA")) else { return };
    let fallback = SpecialIds::default();
    let ours = Tokenizer::load(&dir.join("model.gguf"), None, fallback).unwrap();
    let config = dir.join("tokenizer_config.json");
    let theirs = Tokenizer::load(&dir.join("tokenizer.json"), Some(&config), fallback).unwrap();
    assert_eq!((ours.bos_id(), ours.eos_id(), ours.adds_bos()), (theirs.bos_id(), theirs.eos_id(), theirs.adds_bos()));
    assert_eq!(ours.special_ids(), theirs.special_ids());
    assert_eq!(ours.vocab_size(), theirs.vocab_size());
    for id in 0..ours.vocab_size() as u32 {
        assert_eq!(ours.piece(id), theirs.piece(id));
    }
    let (mut documents, mut tokens) = (0, 0);
    for file in std::fs::read_dir(corpora).unwrap().flatten().map(|entry| entry.path()) {
        if file.extension().is_none_or(|extension| extension != "jsonl") {
            continue;
        }
        for line in std::fs::read_to_string(&file).unwrap().lines() {
            let text = serde_json::from_str::<serde_json::Value>(line).unwrap()["text"].as_str().unwrap().to_owned();
            let [a, b] = [&ours, &theirs].map(|tokenizer| tokenizer.encode(&text, BosPolicy::Never).unwrap());
            assert!(a == b, "{}: {}", file.display(), text.chars().take(80).collect::<String>());
            assert_eq!(ours.decode(&a).unwrap(), theirs.decode(&b).unwrap());
            documents += 1;
            tokens += a.len();
        }
    }
    assert!(documents > 10 && tokens > 100_000, "{documents} documents, {tokens} tokens");
}
