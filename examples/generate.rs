//! Continues a prompt greedily and says how fast, as one line of JSON: `benches/generate.py` runs it.
//!
//! ```text
//! cargo run --release --example generate -- MODEL [--prompt TEXT] [--max-new-tokens N] [--dtype bf16]
//! ```
#![allow(clippy::print_stdout, reason = "the result goes to stdout")]

use std::time::Instant;

use candle_core::DType;
use clap::Parser;
use mechinterp::base::{DeviceChoice, DtypeChoice, Result, Silent};
use mechinterp::data::{BosPolicy, SpecialIds, Tokenizer, locate_model};
use mechinterp::model::generate::{GenerateSettings, generate};
use mechinterp::model::{HookPlan, Model};

#[derive(Parser, Debug)]
struct Args {
    /// Hugging Face directory, hub id or GGUF file.
    model: String,
    /// Text to continue.
    #[arg(long, default_value = "The history of the city begins")]
    prompt: String,
    /// Tokens to generate; no end-of-text token stops earlier.
    #[arg(long, default_value_t = 128)]
    max_new_tokens: usize,
    /// Number type of weights and activations: f32, f16 or bf16.
    #[arg(long, default_value_t)]
    dtype: DtypeChoice,
    /// CPU threads; all cores when absent.
    #[arg(long)]
    threads: Option<usize>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    if let Some(threads) = args.threads {
        // Fails only when a pool exists already, which no code before this point makes.
        drop(rayon::ThreadPoolBuilder::new().num_threads(threads).build_global());
    }
    let begun = Instant::now();
    let files = locate_model(&args.model, &Silent)?;
    let model = Model::open(&files.config, &files.weights, DType::from(args.dtype), &DeviceChoice::Auto.open()?)?;
    let ids = SpecialIds { bos: model.config().bos_token_id, eos: None };
    let tokenizer = Tokenizer::load(&files.tokenizer, files.tokenizer_config.as_deref(), ids)?;
    let load = begun.elapsed();
    let prompt = tokenizer.encode(&args.prompt, BosPolicy::Never)?;
    let run = |max_new_tokens: usize| -> Result<_> {
        let settings =
            GenerateSettings { max_new_tokens, temperature: 0.0, top_p: None, seed: 0, stop_tokens: Vec::new() };
        let (started, mut first) = (Instant::now(), None);
        let tokens = generate(&model, &prompt, &HookPlan::new(), &settings, |_| {
            first.get_or_insert_with(|| started.elapsed());
            Ok(())
        })?;
        Ok((tokens, first.unwrap_or_default(), started.elapsed()))
    };
    run(4.min(args.max_new_tokens))?;
    let (tokens, first, all) = run(args.max_new_tokens)?;
    let report = serde_json::json!({
        "prompt_tokens": prompt.len(),
        "new_tokens": tokens.len(),
        "load_seconds": load.as_secs_f64(),
        "first_token_seconds": first.as_secs_f64(),
        "seconds": all.as_secs_f64(),
        "tokens_per_second": tokens.len() as f64 / all.as_secs_f64(),
        "text": tokenizer.decode(&tokens)?,
    });
    println!("{report}");
    Ok(())
}
