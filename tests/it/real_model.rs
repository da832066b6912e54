//! `run` on SmolLM2-135M-Instruct against what transformers computed (`tests/golden/make_smollm2.py`). Runs where
//! `MECHINTERP_SMOLLM2` names the model's directory.

use candle_core::{DType, Device, Tensor};
use mechinterp::data::tokenizer::{BosPolicy, SpecialIds, Tokenizer};
use mechinterp::model::{HookPlan, HookPoint, Model, Site};

use crate::close::Close;
use crate::fixture::Cli;

const LAYERS: usize = 30;
const KEPT_POSITIONS: usize = 4;

#[test]
fn smollm2_computes_what_transformers_computes() {
    let Some(model) = std::env::var_os("MECHINTERP_SMOLLM2") else { return };
    let model = model.to_str().unwrap();
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/smollm2.safetensors");
    let golden = candle_core::safetensors::load(golden, &Device::Cpu).unwrap();
    let cli = Cli::new();
    for prompt in 0..2 {
        let reference = |name: &str| &golden[&format!("{prompt}.{name}")];
        let tokens = reference("tokens").to_dtype(DType::U32).unwrap().to_vec1::<u32>().unwrap();
        let ids: Vec<String> = tokens.iter().map(u32::to_string).collect();
        let mut command = cli.command("run --logits --out out.safetensors -q --tokens");
        command.args([ids.join(","), model.to_owned()]);
        let hook = |layer: usize| format!("blocks.{layer}.hook_resid_post");
        command.args((0..LAYERS).flat_map(|layer| ["--hook".to_owned(), hook(layer)]));
        crate::fixture::end(command).ok();
        let ours = candle_core::safetensors::load(cli.path("out.safetensors"), &Device::Cpu).unwrap();

        let positions: Vec<u32> = (0..KEPT_POSITIONS as u32).chain([tokens.len() as u32 - 1]).collect();
        let positions = Tensor::new(positions, &Device::Cpu).unwrap();
        for layer in 0..LAYERS {
            let rows = ours[&hook(layer)].get(0).unwrap().index_select(&positions, 0).unwrap();
            let thirds: Vec<u32> = (0..rows.dim(1).unwrap() as u32).step_by(3).collect();
            let rows = rows.index_select(&Tensor::new(thirds, &Device::Cpu).unwrap(), 1).unwrap();
            // Each position by itself: the first has a norm 100 times that of the others.
            for at in 0..=KEPT_POSITIONS {
                let what = format!("prompt {prompt}, {}, kept position {at}", hook(layer));
                Close(1e-4).assert(&what, &rows.get(at).unwrap(), &reference(&hook(layer)).get(at).unwrap());
            }
        }
        let logits = ours["logits"].get(0).unwrap();
        let top = reference("top_ids").to_dtype(DType::U32).unwrap();
        let ours_at_top = logits.contiguous().unwrap().gather(&top, 1).unwrap();
        Close(1e-4).assert(&format!("prompt {prompt} logits"), &ours_at_top, reference("top_logits"));
        let best = logits.argmax(1).unwrap().to_vec1::<u32>().unwrap();
        let theirs: Vec<u32> = top.to_vec2::<u32>().unwrap().iter().map(|row| row[0]).collect();
        assert_eq!(best, theirs, "prompt {prompt}: most likely tokens");
    }
}

#[test]
fn smollm2_tokenizer_agrees_with_transformers() {
    let Some(model) = std::env::var_os("MECHINTERP_SMOLLM2") else { return };
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/smollm2.safetensors");
    let golden = candle_core::safetensors::load(golden, &Device::Cpu).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/make_smollm2.py");
    assert!(std::fs::read_to_string(script).unwrap().contains("\"The capital of France is\""));
    let line = format!("run {} --no-bos --top 1 --json --prompt", model.to_str().unwrap());
    let report = Cli::new().run_with(&line, "The capital of France is").json();
    let theirs = golden["0.tokens"].to_dtype(DType::U32).unwrap().to_vec1::<u32>().unwrap();
    assert_eq!(report[0]["tokens"], serde_json::json!(theirs));
    assert_eq!(report[0]["next"][0]["token"], " Paris");
}

/// Mean next-token loss in nats.
fn loss(logits: &Tensor, tokens: &Tensor) -> f32 {
    let (b, s, v) = logits.dims3().unwrap();
    let logits = logits.narrow(1, 0, s - 1).unwrap().reshape((b * (s - 1), v)).unwrap();
    let targets = tokens.narrow(1, 1, s - 1).unwrap().flatten_all().unwrap();
    candle_nn::loss::cross_entropy(&logits, &targets).unwrap().to_scalar().unwrap()
}

#[test]
fn smollm2_in_bf16_loses_little_against_f32() {
    let Some(dir) = std::env::var_os("MECHINTERP_SMOLLM2") else { return };
    let Some(corpora) = std::env::var_os("MECHINTERP_CORPORA") else { return };
    let dir = std::path::Path::new(&dir);
    let open = |dtype| {
        let weights = [dir.join("model.safetensors")];
        Model::open(&dir.join("config.json"), &weights, dtype, &Device::Cpu).unwrap()
    };
    let tokenizer = Tokenizer::load(&dir.join("tokenizer.json"), None, SpecialIds::default()).unwrap();
    let mut sequences = Vec::new();
    for corpus in ["wiki.jsonl", "books.jsonl"] {
        let text = std::fs::read_to_string(std::path::Path::new(&corpora).join(corpus)).unwrap();
        for line in text.lines().take(4) {
            let document: serde_json::Value = serde_json::from_str(line).unwrap();
            let tokens = tokenizer.encode(document["text"].as_str().unwrap(), BosPolicy::Prepend).unwrap();
            sequences.push(tokens[..256].to_vec());
        }
    }
    let hook = HookPoint::block(15, Site::ResidPost);
    let plan = HookPlan::new().with_logits().capture(hook);
    let run = |dtype| {
        let model = open(dtype);
        let tokens = model.tokens(&sequences).unwrap();
        let run = model.forward(&tokens, &plan).unwrap();
        let rows = run.captured(hook).unwrap().flatten(0, 1).unwrap().to_vec2::<f32>().unwrap();
        (loss(run.logits().unwrap(), &tokens), rows)
    };
    let ((exact, stream), (rounded, rounded_stream)) = (run(DType::F32), run(DType::BF16));
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let cosines: Vec<f64> =
        stream.iter().zip(&rounded_stream).map(|(a, b)| dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()).collect();
    let mean = cosines.iter().sum::<f64>() / cosines.len() as f64;
    let worst = cosines.iter().copied().fold(1.0, f64::min);
    println!("loss {exact} in f32, {rounded} in bf16; cosine of the stream {mean} on average, {worst} at worst");
    assert!((rounded - exact).abs() < 0.01 * exact, "loss {exact} in f32, {rounded} in bf16");
    assert!(mean > 0.999 && worst > 0.995, "cosine {mean} on average, {worst} at worst");
    assert!(rounded.to_bits() != exact.to_bits(), "bf16 was not used");
}
