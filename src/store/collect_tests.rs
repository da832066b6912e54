use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::Tensor;
use rand::Rng;

use super::*;
use crate::base::Silent;
use crate::data::tokenizer::tests::byte_tokenizer;
use crate::model::Site;
use crate::store::CacheReader;

const VOCABULARY: usize = 258;

/// A llama of two layers and width 8 with random weights.
fn tiny_model() -> Model {
    let config = serde_json::json!({"model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": 8,
        "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
        "max_position_embeddings": 32, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": true});
    let mut rng = crate::base::rng::stream(5, "tiny model");
    let mut tensor = |shape: &[usize]| {
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| rng.random_range(-0.5..0.5)).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    };
    let mut tensors = HashMap::from([
        ("model.embed_tokens.weight".to_owned(), tensor(&[VOCABULARY, 8])),
        ("model.norm.weight".to_owned(), tensor(&[8])),
    ]);
    let shapes: [(&str, &[usize]); 9] = [
        ("input_layernorm", &[8]),
        ("post_attention_layernorm", &[8]),
        ("self_attn.q_proj", &[8, 8]),
        ("self_attn.k_proj", &[4, 8]),
        ("self_attn.v_proj", &[4, 8]),
        ("self_attn.o_proj", &[8, 8]),
        ("mlp.gate_proj", &[12, 8]),
        ("mlp.up_proj", &[12, 8]),
        ("mlp.down_proj", &[8, 12]),
    ];
    for layer in 0..2 {
        for (name, shape) in shapes {
            tensors.insert(format!("model.layers.{layer}.{name}.weight"), tensor(shape));
        }
    }
    Model::from_tensors(&config, tensors, DType::F32, &Device::Cpu).unwrap()
}

pub(in crate::store) struct World {
    pub(in crate::store) dir: tempfile::TempDir,
    pub(in crate::store) model: Model,
    pub(in crate::store) tokenizer: Tokenizer,
    pub(in crate::store) corpus: Corpus,
}

impl World {
    pub(in crate::store) fn new(documents: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let line = |i: usize| format!("{{\"text\": \"document {i}, {}\"}}", "la".repeat(i % 9));
        let lines = (0..documents).map(line).collect::<Vec<_>>().join("\n");
        let path = dir.path().join("text.jsonl");
        std::fs::write(&path, lines).unwrap();
        let corpus = Corpus::open(&[path], "text").unwrap();
        Self { model: tiny_model(), tokenizer: byte_tokenizer(dir.path()), corpus, dir }
    }

    pub(in crate::store) fn job(&self, out: &str) -> CacheJob<'_> {
        CacheJob {
            model: &self.model,
            model_name: "tiny".into(),
            weights_blake3: "w".into(),
            tokenizer: &self.tokenizer,
            corpus: &self.corpus,
            hooks: vec![HookPoint::block(1, Site::ResidPost), HookPoint::block(0, Site::MlpPost)],
            dtype: DtypeChoice::F32,
            pack: PackSettings { context_size: 16, bos: BosPolicy::Prepend },
            batch_size: 3,
            tokens: None,
            shard_tokens: Some(16 * 6),
            out: self.dir.path().join(out),
            resume: false,
            resume_command: "mechinterp cache --resume".into(),
            record: RunRecord::new("cache", &1, 0),
        }
    }
}

/// Asks to stop after some batches.
struct StopAfter(AtomicU64);

impl Progress for StopAfter {
    fn begin(&self, _label: &str, _total: u64, _unit: Unit) {}
    fn set(&self, _done: u64) {}
    fn advance(&self, _n: u64) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
    fn note(&self, _text: &str) {}
    fn line(&self, _text: &str) {}
    fn warn(&self, _text: &str) {}
    fn end(&self) {}
    fn cancelled(&self) -> bool {
        self.0.load(Ordering::SeqCst) == 0
    }
}

fn contents(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    let mut files: Vec<_> =
        entries.map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap())).collect();
    files.sort();
    files
}

#[test]
fn a_cache_holds_what_the_model_computes_for_the_packed_text() {
    let world = World::new(40);
    let job = world.job("cache");
    let summary = collect(&job, &Silent).unwrap();
    let packed: Vec<Sequence> =
        Packer::new(&world.tokenizer, world.corpus.documents(), job.pack).unwrap().map(|s| s.unwrap()).collect();
    let reader = CacheReader::open(&summary.dir).unwrap();
    assert_eq!(reader.sequences(), packed.len() as u64);
    assert!(packed.len() > 20 && reader.manifest().shards.len() > 3 && summary.dropped_tokens > 0);
    let mut stored = Vec::new();
    for (i, sequence) in (0..).zip(&packed) {
        assert_eq!(reader.tokens(i).unwrap(), sequence.tokens);
        assert_eq!(reader.documents(i).unwrap(), sequence.documents);
        for (hook, &point) in job.hooks.iter().enumerate() {
            let tokens = world.model.tokens(&[&sequence.tokens]).unwrap();
            let run = world.model.forward(&tokens, &HookPlan::new().capture(point)).unwrap();
            let expected: Vec<f32> = run.captured(point).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            reader.read_sequences(hook, i..i + 1, &mut stored).unwrap();
            assert_eq!(stored.len(), expected.len());
            assert!(stored.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-5), "sequence {i}");
        }
    }
    let record = std::fs::read_to_string(summary.dir.join("run.json")).unwrap();
    assert!(record.contains(world.tokenizer.hash()) && record.contains(&world.corpus.files()[0].blake3));
}

#[test]
fn a_stopped_run_resumes_to_the_same_bytes() {
    let world = World::new(40);
    let whole = contents(&collect(&world.job("whole"), &Silent).unwrap().dir);
    for batches in [1, 2, 5, 7] {
        let mut job = world.job(&format!("stopped-{batches}"));
        let error = collect(&job, &StopAfter(AtomicU64::new(batches))).unwrap_err();
        assert!(matches!(&error, Error::Interrupted { resume, .. } if resume.contains("--resume")), "{error}");
        job.resume = true;
        let summary = collect(&job, &Silent).unwrap();
        assert_eq!(summary.resumed_sequences, batches / 2 * 6);
        assert!(contents(&summary.dir) == whole, "stopped after {batches} batches");
    }
}

#[test]
fn the_number_of_tokens_asked_for_is_rounded_up_to_sequences() {
    let world = World::new(40);
    let mut job = world.job("some");
    job.tokens = Some(100);
    let summary = collect(&job, &Silent).unwrap();
    assert_eq!((summary.manifest.sequences, summary.manifest.tokens, summary.dropped_tokens), (7, 112, 0));
}

type Change = fn(&mut CacheJob<'_>);

#[test]
fn settings_that_make_no_sense_are_refused_before_anything_is_written() {
    let world = World::new(40);
    let changes: [(Change, &str); 6] = [
        (|job| job.pack.context_size = 64, "--context-size"),
        (|job| job.batch_size = 0, "--batch-size"),
        (|job| job.tokens = Some(0), "--tokens"),
        (|job| job.hooks.push(job.hooks[0]), "every hook once"),
        (|job| job.hooks = vec![HookPoint::block(7, Site::ResidPost)], "blocks.1.hook_resid_post"),
        (|job| job.hooks = vec![HookPoint::block(0, Site::AttnPattern)], "[b, H, s, S]"),
    ];
    for (change, expected) in changes {
        let mut job = world.job("bad");
        change(&mut job);
        let error = collect(&job, &Silent).unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
        assert!(!crate::base::artifact::partial_path(&job.out).exists());
    }
    let short = World::new(1);
    let mut job = short.job("short");
    job.pack.context_size = 32;
    let error = collect(&job, &Silent).unwrap_err().to_string();
    assert!(error.contains("smaller --context-size"), "{error}");
}
