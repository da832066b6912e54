//! `run` on SmolLM2-135M-Instruct against what transformers computed (`tests/golden/make_smollm2.py`). Runs where
//! `MECHINTERP_SMOLLM2` names the model's directory.

use candle_core::{DType, Device, Tensor};

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
