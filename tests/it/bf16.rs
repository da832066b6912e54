//! bf16 weights on the CPU: our kernels inside the forward pass, against the same checkpoints in f32.

use candle_core::{DType, Device, Tensor};
use mechinterp::model::generate::{GenerateSettings, generate};
use mechinterp::model::{HookPlan, HookPoint, Model};

use crate::close::Close;
use crate::golden::{self, Golden};

fn cosine(a: &Tensor, b: &Tensor) -> f32 {
    let product = |a: &Tensor, b: &Tensor| (a * b).unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
    product(a, b) / (product(a, a) * product(b, b)).sqrt()
}

#[test]
fn bf16_agrees_with_f32_in_every_family() {
    let mut exact = 0;
    for name in golden::names() {
        let reference = Golden::open(&name);
        let model = golden::open_as(&name, DType::BF16);
        let plan = HookPlan::new().with_logits();
        let logits = model.forward(&reference.tokens, &plan).unwrap().logits.unwrap();
        let cosine = cosine(&logits, &reference.logits);
        // Rounding sends a few positions of tiny mixtures to other experts.
        let mixture = model.config().mlp.experts.is_some();
        let least = if mixture { 0.9 } else { 0.995 };
        assert!(cosine > least, "{name}: cosine {cosine}");
        exact += usize::from(Close::distance(&name, &logits, &reference.logits) < 1e-5);
        // Looking inside takes the unfused way.
        let plan = HookPoint::all(model.config()).into_iter().fold(plan, HookPlan::capture);
        let hooked = model.forward(&reference.tokens, &plan).unwrap();
        let hooked = hooked.logits().unwrap();
        let cosine = self::cosine(hooked, &logits);
        assert!(cosine > least, "{name}: cosine {cosine} of hooked and unhooked");
        if !mixture {
            Close(5e-2).assert(&format!("{name} hooked"), hooked, &logits);
        }
    }
    assert_eq!(exact, 0, "bf16 was not used at all");
}

#[test]
fn a_batch_gives_what_its_sequences_give_alone() {
    for name in ["llama", "gpt2", "gemma2"].into_iter().filter(|name| golden::names().contains(&(*name).to_owned())) {
        for dtype in [DType::F32, DType::BF16] {
            let model = golden::open_as(name, dtype);
            let sequences: Vec<Vec<u32>> =
                (0..30).map(|i| (0..20).map(|j| 3 + (i * 7 + j * j) % 36).collect()).collect();
            let post = HookPoint::resolve("blocks.1.hook_resid_post", model.config()).unwrap();
            let plan = HookPlan::new().with_logits().capture(post);
            let together = model.forward(&model.tokens(&sequences).unwrap(), &plan).unwrap();
            assert_eq!(together.logits().unwrap().dims()[..2], [30, 20]);
            for (i, sequence) in sequences.iter().enumerate() {
                let alone = model.forward(&model.tokens(&[sequence]).unwrap(), &plan).unwrap();
                let close = Close(if dtype == DType::BF16 { 0.0 } else { 1e-5 });
                let part = |t: &Tensor| t.narrow(0, i, 1).unwrap();
                close.assert(name, &part(together.logits().unwrap()), alone.logits().unwrap());
                close.assert(name, &part(together.captured(post).unwrap()), alone.captured(post).unwrap());
            }
        }
    }
}

#[test]
fn generation_in_bf16_follows_the_whole_passes() {
    let model: Model = golden::open_as("llama", DType::BF16);
    let settings = GenerateSettings { max_new_tokens: 12, temperature: 0.0, top_p: None, seed: 0, stop_tokens: vec![] };
    let prompt = [7u32, 21, 9, 33, 14];
    let mut tokens = prompt.to_vec();
    tokens.extend(generate(&model, &prompt, &HookPlan::new(), &settings, |_| Ok(())).unwrap());
    assert_eq!(tokens.len(), 17);
    let run = model.forward(&model.tokens(&[&tokens]).unwrap(), &HookPlan::new().with_logits()).unwrap();
    let logits = run.logits().unwrap().squeeze(0).unwrap().to_vec2::<f32>().unwrap();
    for (i, &token) in tokens.iter().enumerate().skip(prompt.len()) {
        let row = &logits[i - 1];
        let best = row.iter().copied().fold(f32::MIN, f32::max);
        let spread = best - row.iter().copied().fold(f32::MAX, f32::min);
        // Steps and whole passes round differently, so a near tie may go the other way.
        assert!(best - row[token as usize] < 0.02 * spread, "token {i}");
    }
}

#[test]
fn the_unembedding_is_the_same_however_it_is_held() {
    for name in golden::names() {
        let (wide, packed) = (golden::open(&name), golden::open_as(&name, DType::BF16));
        let unembedding = |model: &Model| model.unembedding().unwrap().to_dtype(DType::F32).unwrap();
        let tolerance = if wide.config().embedding.width == wide.config().d_model { 0.0 } else { 1e-2 };
        Close(tolerance).assert(&name, &unembedding(&packed), &unembedding(&wide));
        assert_eq!(packed.device().location(), Device::Cpu.location());
    }
}
