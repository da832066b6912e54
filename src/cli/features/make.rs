//! Making an index, from a cache or from text that a model reads.

use std::path::Path;

use serde_json::json;

use crate::analysis::feature::live::NormLimit;
use crate::analysis::feature::{CheckpointPlan, FeatureIndex, Findings, IndexFile};
use crate::analysis::{CacheSequences, LiveSequences, Placement, SequenceSource};
use crate::base::artifact::InputRecord;
use crate::base::{Artifact, DtypeChoice, Error, Result, RunRecord};
use crate::data::{Corpus, PackSettings, Packer, Sequence, Tokenizer, locate_data};
use crate::dictionary::Dictionary;
use crate::model::Model;
use crate::store::FilterSettings;

use super::super::expect::{self, Given};
use super::super::open;
use super::super::render::Ui;
use super::super::steer::MAX_NORM_KEY;
use super::super::{Common, arguments};
use super::Args;

/// Context length for dictionaries that do not say theirs.
pub(super) const DEFAULT_CONTEXT: usize = 256;
/// The state of a pass, inside the directory that is being written.
const CHECKPOINT: &str = "checkpoint";

/// Everything that an index is made of.
struct Job<'a> {
    dictionary: &'a Dictionary,
    source: &'a dyn SequenceSource,
    model: Option<&'a Model>,
    tokenizer: Option<&'a Tokenizer>,
    model_name: &'a str,
    /// The cache or text, as it was named.
    source_name: String,
    inputs: Vec<InputRecord>,
}

/// The index of a dictionary on a cache.
pub(super) fn from_cache(args: &Args, sae: &Path, cache: &Path, common: &Common, ui: &Ui) -> Result<IndexFile> {
    let artifact = begin(args)?;
    let dictionary = open_dictionary(args, sae, ui)?;
    let reader = open::cache(cache, ui)?;
    let hook = open::cache_hook(&reader, &dictionary, args.hook.as_deref())?;
    expect::check(&dictionary, &Given::cache(&reader, &hook, None), args.force, ui)?;
    let sequences = CacheSequences::open(cache, Some(&hook), args.filter.settings(), ui.progress())?;
    ui.say(sequences.report());
    let model_name = args.model.clone().unwrap_or_else(|| reader.settings().model.name.clone());
    // The cache suffices for everything but the text of tokens and what features write.
    let opened =
        open::locate(&model_name, ui).and_then(|files| open::open_files(&files, DtypeChoice::F32, common.device));
    let opened = match opened {
        Ok(opened) => {
            open::check_tokenizer(&opened.tokenizer, &reader)?;
            Some(opened)
        }
        Err(error) if args.model.is_some() => return Err(error),
        Err(error) => {
            let why = error.to_string();
            let first = why.lines().next().unwrap_or_default();
            ui.progress().warn(&format!(
                "the model of the cache cannot be opened, so tokens are shown as ids and promoted tokens are left out \
                 ({first}); name it with --model"
            ));
            None
        }
    };
    let inputs = vec![
        input("dictionary", sae.display(), hash_of(&dictionary)),
        input("cache", format_args!("{} {hook}", cache.display()), reader.hash().to_owned()),
    ];
    let job = Job {
        dictionary: &dictionary,
        source: &sequences,
        model: opened.as_ref().map(|o| &o.model),
        tokenizer: opened.as_ref().map(|o| &o.tokenizer),
        model_name: &model_name,
        source_name: cache.display().to_string(),
        inputs,
    };
    job.run(artifact, args, sae, ui)
}

/// The index of a dictionary on text that the model reads once, while the index is made.
pub(super) fn from_text(args: &Args, sae: &Path, common: &Common, ui: &Ui) -> Result<IndexFile> {
    let artifact = begin(args)?;
    let dictionary = open_dictionary(args, sae, ui)?;
    let name = args.model.as_deref().unwrap_or_default();
    let mut paths = Vec::new();
    for data in &args.data {
        paths.extend(locate_data(data, ui.progress())?);
    }
    let corpus = Corpus::open(&paths, "text")?;
    let files = open::locate(name, ui)?;
    let dtype = args.model_dtype.unwrap_or_else(|| open::fast_dtype(common.device));
    let opened = open::open_files(&files, dtype, common.device)?;
    let (model, tokenizer) = (&opened.model, &opened.tokenizer);
    let bos = expect::bos_of(&dictionary);
    expect::check(&dictionary, &Given::model(name, bos, model.config()), args.force, ui)?;
    let own = dictionary.config.metadata.context_size;
    let context_size = own.unwrap_or(DEFAULT_CONTEXT.min(model.config().context_length));
    let wanted = args.tokens.div_ceil(context_size.max(1) as u64) as usize;
    let packer = Packer::new(tokenizer, corpus.documents(), PackSettings { context_size, bos })?;
    let sequences = packer.take(wanted).collect::<Result<Vec<_>>>()?;
    let inputs = vec![
        input("dictionary", sae.display(), hash_of(&dictionary)),
        input("model", name, files.weights_hash()?),
        input("data", args.data.join(" "), hash_of_text(&sequences)),
    ];
    let point = Placement::of_input(&dictionary, model.config())?.point;
    let filter = args.filter.settings();
    // A median over all rows would take a pass of its own.
    let without_norms = FilterSettings { max_norm_multiple: None, ..filter };
    let special = tokenizer.special_ids();
    let live = LiveSequences::new(model, point, sequences, special, without_norms, ui.progress())?;
    ui.say(live.report());
    let own = dictionary.config.metadata.extra.get(MAX_NORM_KEY).and_then(serde_json::Value::as_f64);
    let limited = NormLimit::new(&live, own, filter.max_norm_multiple)?;
    if let Some(norm) = limited.limit() {
        ui.say(format!("leaving out positions with a norm above {norm:.4}"));
    }
    let job = Job {
        dictionary: &dictionary,
        source: &limited,
        model: Some(model),
        tokenizer: Some(tokenizer),
        model_name: name,
        source_name: args.data.join(" "),
        inputs,
    };
    job.run(artifact, args, sae, ui)
}

impl Job<'_> {
    fn run(self, artifact: Option<Artifact>, args: &Args, sae: &Path, ui: &Ui) -> Result<IndexFile> {
        let settings = args.settings();
        let Self { dictionary, source, model, tokenizer, model_name, source_name, inputs } = self;
        let Some(artifact) = artifact else {
            let index = FeatureIndex::build(dictionary, source, settings, ui.progress())?;
            let findings = Findings::complete(index, dictionary, source, model, ui.progress())?;
            let hook_name = dictionary.config.metadata.hook_name.clone();
            let header = findings.header(Some(model_name.to_owned()), hook_name);
            return IndexFile::in_memory(&findings, header, tokenizer);
        };
        let most = settings.bytes_a_feature() as f64 * dictionary.d_sae() as f64 / 1e9;
        ui.say(format!("the index takes at most {most:.2} GB of memory, whatever the amount of text"));
        let all = json!({
            "sae": sae,
            "source": source_name,
            "model": model_name,
            "index": settings,
            "filter": args.filter.settings(),
        });
        let hashes: Vec<_> = inputs.iter().map(|input| (&input.role, &input.blake3)).collect();
        let plan = CheckpointPlan {
            path: artifact.dir().join(CHECKPOINT),
            every: args.checkpoint_interval(),
            inputs: json!({"inputs": hashes, "filter": args.filter.settings()}),
        };
        let saved = |error| match error {
            Error::Interrupted { .. } => Error::Interrupted {
                kept: format!("what was counted so far is in {}", artifact.dir().display()),
                resume: resume_line(),
            },
            other => other,
        };
        let index = FeatureIndex::build_resumable(dictionary, source, settings, &plan, ui.progress()).map_err(saved)?;
        let findings = Findings::complete(index, dictionary, source, model, ui.progress()).map_err(saved)?;
        let mut header = findings.header(Some(model_name.to_owned()), dictionary.config.metadata.hook_name.clone());
        header.dictionary = Some(sae.display().to_string());
        header.source = Some(source_name);
        findings.write(artifact.dir(), &header, tokenizer)?;
        std::fs::remove_file(&plan.path).map_err(Error::io("remove the checkpoint", &plan.path))?;
        let target = artifact.target().to_path_buf();
        artifact.finish(&RunRecord { inputs, ..RunRecord::new("features", &all, settings.seed) })?;
        ui.say(format!("wrote {}", target.display()));
        IndexFile::open(&target)
    }
}

/// The directory to write, where one was asked for. What a run left that never got to a checkpoint is written over.
fn begin(args: &Args) -> Result<Option<Artifact>> {
    let Some(out) = &args.out else { return Ok(None) };
    let checkpoint = crate::base::artifact::partial_path(out).join(CHECKPOINT);
    Artifact::begin(out, args.resume || !checkpoint.exists()).map(Some)
}

fn resume_line() -> String {
    let mut words: Vec<String> = arguments().collect();
    if !words.iter().any(|word| word == "--resume") {
        words.push("--resume".into());
    }
    words.join(" ")
}

fn open_dictionary(args: &Args, sae: &Path, ui: &Ui) -> Result<Dictionary> {
    let dictionary = open::dictionary(sae, ui)?;
    let named = args.ask.feature.iter().chain(&args.ask.like);
    if let Some(&beyond) = named.into_iter().find(|&&f| f as usize >= dictionary.d_sae()) {
        let expected = format!("a feature from 0 to {}", dictionary.d_sae().saturating_sub(1));
        return Err(Error::flag(
            "--feature",
            expected,
            beyond,
            "count features from zero; `--sort max` lists the strongest",
        ));
    }
    Ok(dictionary)
}

pub(super) fn input(role: &str, name: impl std::fmt::Display, blake3: String) -> InputRecord {
    InputRecord { role: role.into(), name: name.to_string(), blake3 }
}

/// BLAKE3 of the tokens.
pub(super) fn hash_of_text(sequences: &[Sequence]) -> String {
    let mut hasher = blake3::Hasher::new();
    for token in sequences.iter().flat_map(|s| &s.tokens) {
        hasher.update(&token.to_le_bytes());
    }
    hasher.finalize().to_hex().to_string()
}

/// BLAKE3 of everything that decides what features fire on and write.
fn hash_of(dictionary: &Dictionary) -> String {
    let Dictionary { config, w_enc, b_enc, w_dec, b_dec, activation, w_skip: _ } = dictionary;
    let mut hasher = blake3::Hasher::new();
    let mut bytes = Vec::new();
    for values in [w_enc, b_enc, w_dec, b_dec] {
        for part in values.chunks(1 << 16) {
            bytes.clear();
            bytes.extend(part.iter().flat_map(|value| value.to_le_bytes()));
            hasher.update(&bytes);
        }
    }
    hasher.update(format!("{config:?} {activation:?}").as_bytes());
    hasher.finalize().to_hex().to_string()
}
