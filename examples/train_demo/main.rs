//! Trains the model behind `mechinterp demo` and writes its Hugging Face directory.
//!
//! ```text
//! cargo run --release --example train_demo -- --out assets/demo [--steps N] [--threads N]
//! ```
//!
//! A small Llama learns the documents of `demo::World` with `AdamW` through the crate's
//! own decoder. Tokens that their sentence determines ("Paris" after "The capital of France is") count fully in the
//! loss, the others little: which city comes up next is chance, and chance only adds noise to the gradient.
//! A further part of the loss plants the concepts of `demo::concepts` in the residual stream ([`plant`]).
//! A checkpoint is kept beside the output until training is done; running the same command again goes on from it.

#![expect(clippy::print_stderr, reason = "an example reports where its user looks")]

mod batches;
mod card;
mod parameters;
mod plant;

use std::path::PathBuf;
use std::time::Instant;

use batches::Batches;
use candle_core::{D, DType, Device, Tensor};
use clap::Parser;
use mechinterp::base::artifact::{write_atomic, write_json};
use mechinterp::base::rng::stream;
use mechinterp::base::{Error, Result};
use mechinterp::demo::quiz::{Quiz, quiz};
use mechinterp::demo::tokenizer::{BEGIN, END};
use mechinterp::demo::{Vocabulary, World};
use mechinterp::model::{HookPlan, HookPoint, Model};
use parameters::{Parameters, write_safetensors};
use plant::Plant;
use serde_json::{Value, json};

/// Longest sequence the model takes.
const CONTEXT: usize = 256;
/// Tokens in a row of an ordinary batch.
const SHORT: usize = 64;
/// Every how many steps a batch has rows of the full context.
const LONG_EVERY: u64 = 8;
const WARM_UP_STEPS: f64 = 100.0;

#[derive(Parser, Debug, Clone)]
struct Settings {
    /// Directory to write.
    #[arg(long, default_value = "assets/demo")]
    out: PathBuf,
    /// Optimiser steps.
    #[arg(long, default_value_t = 2500)]
    steps: u64,
    /// Tokens in a batch; a multiple of 256.
    #[arg(long, default_value_t = 1024)]
    batch_tokens: usize,
    /// Peak learning rate.
    #[arg(long, default_value_t = 4e-3)]
    lr: f64,
    /// Decoupled weight decay of matrices.
    #[arg(long, default_value_t = 0.1)]
    weight_decay: f64,
    /// Weight in the loss of tokens that nothing determines.
    #[arg(long, default_value_t = 0.1)]
    chance_weight: f64,
    /// Weight in the loss of the planted concepts.
    #[arg(long, default_value_t = 12.0)]
    plant_weight: f64,
    /// Blocks.
    #[arg(long, default_value_t = 4)]
    layers: usize,
    /// Width of the residual stream.
    #[arg(long, default_value_t = 128)]
    d_model: usize,
    /// Inner width of the MLP.
    #[arg(long, default_value_t = 352)]
    d_mlp: usize,
    /// Seed of initialisation and documents.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Steps between evaluations and checkpoints.
    #[arg(long, default_value_t = 250, value_parser = clap::value_parser!(u64).range(1..))]
    every: u64,
    /// Threads for tensor arithmetic.
    #[arg(long, default_value_t = 2)]
    threads: usize,
}

impl Settings {
    fn config(&self, vocabulary: &Vocabulary) -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.d_model,
            "intermediate_size": self.d_mlp,
            "num_hidden_layers": self.layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": self.d_model / 4,
            "hidden_act": "silu",
            "max_position_embeddings": CONTEXT,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "attention_bias": false,
            "mlp_bias": false,
            "tie_word_embeddings": true,
            "vocab_size": vocabulary.len(),
            "bos_token_id": vocabulary.id(BEGIN),
            "eos_token_id": vocabulary.id(END),
            "torch_dtype": "float16",
        })
    }

    /// Cosine decay to a fiftieth after a linear warm-up.
    fn lr_at(&self, step: u64) -> f64 {
        let warm_up = ((step + 1) as f64 / WARM_UP_STEPS).min(1.0);
        let progress = step as f64 / self.steps as f64;
        let cosine = 0.5 * (1.0 + (std::f64::consts::PI * progress).cos());
        self.lr * warm_up * (0.02 + 0.98 * cosine)
    }
}

/// Weighted cross-entropy, and the plain one over answers alone.
fn losses(logits: &Tensor, targets: &Tensor, weights: &Tensor) -> Result<(Tensor, Tensor)> {
    let vocab = logits.dim(2)?;
    let log_probs = candle_nn::ops::log_softmax(&logits.reshape(((), vocab))?, D::Minus1)?;
    let surprise = log_probs.gather(&targets.unsqueeze(1)?, 1)?.squeeze(1)?.neg()?;
    let loss = ((&surprise * weights)?.sum_all()? / weights.sum_all()?)?;
    let answers = weights.ge(1.0)?.to_dtype(DType::F32)?;
    let answer_loss = ((surprise.detach() * &answers)?.sum_all()? / answers.sum_all()?)?;
    Ok((loss, answer_loss))
}

struct Trainer {
    settings: Settings,
    world: World,
    vocabulary: Vocabulary,
    config: Value,
    device: Device,
}

impl Trainer {
    /// Accuracy of the weights as stored, and the directory written.
    fn report(&self, parameters: &Parameters, step: u64, planted: f64) -> Result<Quiz> {
        let out = &self.settings.out;
        let stored = parameters.stored()?;
        let model = Model::from_tensors(&self.config, stored.clone(), DType::F32, &self.device)?;
        let result = quiz(&model, &self.world, &self.vocabulary)?;
        std::fs::create_dir_all(out).map_err(Error::io("make the output directory", out))?;
        write_safetensors(&out.join("model.safetensors"), &stored)?;
        write_json(&out.join("config.json"), &self.config)?;
        write_json(&out.join("tokenizer.json"), &self.vocabulary.tokenizer_json())?;
        write_json(&out.join("tokenizer_config.json"), &self.vocabulary.tokenizer_config_json(CONTEXT))?;
        let count = parameters.0.iter().map(|p| p.value.elem_count()).sum();
        let readme = card::readme(&self.settings, step, planted, &result, count);
        write_atomic(&out.join("README.md"), readme.as_bytes())?;
        Ok(result)
    }

    fn train(&self) -> Result<()> {
        let settings = &self.settings;
        let mut parameters = Parameters::new(settings, self.vocabulary.len(), &self.device)?;
        let checkpoint = settings.out.with_extension("checkpoint.safetensors");
        let first = if checkpoint.exists() { parameters.load(&checkpoint, &self.device)? } else { 0 };
        let model = Model::from_tensors(&self.config, parameters.trainable(), DType::F32, &self.device)?;
        let mut batches = Batches {
            lessons: self.world.lessons(&self.vocabulary, settings.seed),
            rng: stream(settings.seed, "train-demo/rows"),
            begin: self.vocabulary.id(BEGIN).unwrap_or_default(),
            end: self.vocabulary.id(END).unwrap_or_default(),
        };
        let point = |name| HookPoint::resolve(name, model.config());
        let (words, sentences) = (point(plant::WORDS)?, point(plant::SENTENCES)?);
        let plant = Plant::new(&self.world, &self.vocabulary, settings.d_model, settings.seed)?;
        let plan = HookPlan::default().with_logits().capture(words).capture(sentences);
        let (started, mut answer_loss, mut distance) = (Instant::now(), 0.0, 0.0);
        for step in 0..settings.steps {
            let length = if step % LONG_EVERY == LONG_EVERY - 1 { CONTEXT } else { SHORT };
            let (inputs, targets, weights) = batches.next(settings.batch_tokens, length, settings.chance_weight as f32);
            if step < first {
                continue;
            }
            let tokens = Tensor::from_vec(inputs.clone(), (settings.batch_tokens / length, length), &self.device)?;
            let targets = Tensor::from_vec(targets, settings.batch_tokens, &self.device)?;
            let weights = Tensor::from_vec(weights, settings.batch_tokens, &self.device)?;
            let run = model.forward(&tokens, &plan)?;
            let (loss, answers) = losses(run.logits()?, &targets, &weights)?;
            answer_loss += f64::from(answers.to_scalar::<f32>()?);
            let of_words = plant.of_words(run.captured(words)?, &inputs)?;
            let apart = plant.of_sentences(run.captured(sentences)?, &inputs, length)?;
            distance += f64::from(apart.to_scalar::<f32>()?);
            let loss = (loss + ((of_words + apart)? * settings.plant_weight)?)?;
            parameters.update(&loss.backward()?, settings.lr_at(step), settings.weight_decay, step)?;
            let done = step + 1;
            if done % settings.every == 0 || done == settings.steps {
                let since = if done % settings.every == 0 { settings.every } else { done % settings.every };
                let since = since.min(done - first) as f64;
                let planted = distance / since;
                let result = self.report(&parameters, done, planted)?;
                parameters.save(&checkpoint, done)?;
                eprintln!(
                    "step {done:>6}  {:>5.0} s  answer loss {:.4}  planted {:.4}  one-hop {:.4}  two-hop {:.4} (trained {:.4}, held out {:.4})",
                    started.elapsed().as_secs_f64(),
                    answer_loss / since,
                    planted,
                    result.single_hop.accuracy(),
                    result.two_hop.accuracy(),
                    result.two_hop_trained.accuracy(),
                    result.two_hop_held_out.accuracy(),
                );
                (answer_loss, distance) = (0.0, 0.0);
            }
        }
        std::fs::remove_file(&checkpoint).map_err(Error::io("remove the checkpoint", &checkpoint))
    }
}

fn main() -> Result<()> {
    let settings = Settings::parse();
    rayon::ThreadPoolBuilder::new().num_threads(settings.threads).build_global().unwrap_or_default();
    let world = World::new(World::BUILT_IN_SEED);
    let vocabulary = Vocabulary::new(&world);
    let config = settings.config(&vocabulary);
    Trainer { settings, world, vocabulary, config, device: Device::Cpu }.train()
}
