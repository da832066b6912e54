//! `mechinterp features`

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::analysis::CacheSequences;
use crate::analysis::feature::index::{FeatureIndex, IndexSettings};
use crate::analysis::feature::logits::{LogitEffects, logit_effects};
use crate::analysis::feature::query::{Choice, Query, SortBy, select};
use crate::analysis::feature::record::{FeatureRecord, IndexFile};
use crate::analysis::feature::stats::{Summary, Window};
use crate::base::{Artifact, DtypeChoice, Error, Result, RunRecord};
use crate::data::Tokenizer;
use crate::dictionary::Dictionary;
use crate::model::Model;

use super::expect::{self, ForceArgs, Given};
use super::feature_page;
use super::filter::FilterArgs;
use super::open;
use super::render::Ui;
use super::{Common, Outcome};

/// Tokens listed as promoted and as suppressed.
const LOGIT_TOKENS: usize = 10;

/// Arguments of `features`.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Args {
    /// The dictionary.
    #[arg(long, value_name = "DIR", required_unless_present = "index", requires = "cache")]
    sae: Option<PathBuf>,
    /// Cached activations that the features are shown on.
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Hook point of the cache, when it holds several; the dictionary's own when absent.
    #[arg(long, value_name = "NAME")]
    hook: Option<String>,
    /// A feature index that was written before, in place of --sae and --cache. Needs no model.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["sae", "cache", "out"])]
    index: Option<PathBuf>,
    /// Write the index of all features into this directory: index.json and features.jsonl.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Examples a feature.
    #[arg(long, value_name = "N", default_value_t = 20)]
    top_k: usize,
    /// Features to show, by number.
    #[arg(long, value_name = "ID", value_delimiter = ',')]
    feature: Vec<u32>,
    /// Show this many live features, drawn at random.
    #[arg(long, value_name = "N", conflicts_with = "feature")]
    random: Option<usize>,
    /// Seed of the draw.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Order: index, density, max or mean.
    #[arg(long, value_name = "BY", value_parser = sort_by)]
    sort: Option<SortBy>,
    /// Show at most this many features.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Only features that fire on at least this share of positions.
    #[arg(long, value_name = "SHARE")]
    min_density: Option<f64>,
    /// Only features that fire on at most this share of positions.
    #[arg(long, value_name = "SHARE")]
    max_density: Option<f64>,
    /// Examples to show of each feature on the terminal; all are in JSON and in the index.
    #[arg(long, value_name = "N", default_value_t = 10)]
    examples: usize,
    /// Tokens of context before and after an example's peak.
    #[arg(long, value_name = "BEFORE,AFTER", default_value = "16,8", value_parser = window)]
    context: Window,
    /// The model, for its tokenizer and unembedding, when it is not where the cache was made.
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    #[command(flatten)]
    filter: FilterArgs,
    #[command(flatten)]
    force: ForceArgs,
}

fn sort_by(text: &str) -> Result<SortBy, String> {
    match text {
        "index" => Ok(SortBy::Index),
        "density" => Ok(SortBy::Density),
        "max" => Ok(SortBy::Max),
        "mean" => Ok(SortBy::Mean),
        _ => Err("expected index, density, max or mean".into()),
    }
}

fn window(text: &str) -> Result<Window, String> {
    let parts = text.split_once(',').and_then(|(b, a)| Some((b.trim().parse().ok()?, a.trim().parse().ok()?)));
    parts.map(|(before, after)| Window { before, after }).ok_or_else(|| "expected two numbers, such as 16,8".into())
}

pub(super) fn run(args: Args, common: &Common, ui: &Ui) -> Result<Outcome> {
    if args.top_k == 0 {
        return Err(Error::flag("--top-k", "1 or more examples", 0, "the default is 20"));
    }
    for (flag, value) in [("--random", args.random), ("--limit", args.limit)] {
        if value == Some(0) {
            return Err(Error::flag(flag, "1 or more features", 0, "leave the flag out for all of them"));
        }
    }
    for (flag, value) in [("--min-density", args.min_density), ("--max-density", args.max_density)] {
        if let Some(share) = value.filter(|share| !(0.0..=1.0).contains(share)) {
            return Err(Error::flag(flag, "a share of positions, from 0 to 1", share, "0.001 is one in a thousand"));
        }
    }
    match (&args.index, &args.sae, &args.cache) {
        (Some(dir), _, _) => {
            let index = IndexFile::open(dir)?;
            let chosen = choose(&args, index.summaries())?;
            show(&args, ui, index.summaries(), &chosen, |feature| index.record(feature).map(Some))?;
        }
        (None, Some(sae), Some(cache)) => from_cache(&args, sae, cache, common, ui)?,
        _ => {
            return Err(Error::flag(
                "--cache",
                "a cache beside --sae",
                "none",
                "cache activations first, or give --index",
            ));
        }
    }
    Ok(Outcome::Done)
}

/// Everything the pages need beside the index.
struct Sources {
    dictionary: Dictionary,
    sequences: CacheSequences,
    tokenizer: Option<Tokenizer>,
    model: Option<Model>,
    model_name: String,
}

fn from_cache(args: &Args, sae: &Path, cache: &Path, common: &Common, ui: &Ui) -> Result<()> {
    // Whatever a cut-off run left is written again as a whole.
    let artifact = args.out.as_ref().map(|out| Artifact::begin(out, true)).transpose()?;
    let sources = open_sources(args, sae, cache, common, ui)?;
    let settings = IndexSettings { top_k: args.top_k, window: args.context, max_sequences: None };
    let Sources { dictionary, sequences, tokenizer, model, model_name } = &sources;
    let index = FeatureIndex::build(dictionary, sequences, settings, ui.progress())?;
    let effects: Option<Vec<LogitEffects>> = match model {
        Some(model) => logit_effects(dictionary, model, LOGIT_TOKENS, ui.progress())?,
        None => None,
    };
    let piece = |token: u32| tokenizer.as_ref().map_or_else(|| format!("<{token}>"), |t| t.piece(token));
    if let Some(artifact) = artifact {
        let hook_name = dictionary.config.metadata.hook_name.clone();
        let header = index.header(Some(model_name.clone()), hook_name);
        index.write(artifact.dir(), &header, effects.as_deref(), &piece)?;
        let target = artifact.target().to_path_buf();
        let settings =
            serde_json::json!({"sae": sae, "cache": cache, "index": settings, "filter": args.filter.settings()});
        artifact.finish(&RunRecord::new("features", &settings, args.seed))?;
        ui.say(format!("wrote {}", target.display()));
    }
    let summaries = index.summaries();
    let chosen = choose(args, &summaries)?;
    show(args, ui, &summaries, &chosen, |feature| Ok(index.record(feature, effects.as_deref(), &piece)))
}

fn open_sources(args: &Args, sae: &Path, cache: &Path, common: &Common, ui: &Ui) -> Result<Sources> {
    let dictionary = open::dictionary(sae, ui)?;
    if let Some(&beyond) = args.feature.iter().find(|&&f| f as usize >= dictionary.d_sae()) {
        return Err(Error::flag(
            "--feature",
            format!("a feature from 0 to {}", dictionary.d_sae().saturating_sub(1)),
            beyond,
            "count features from zero; `--sort max` lists the strongest",
        ));
    }
    let reader = open::cache(cache, ui)?;
    let hook = open::cache_hook(&reader, &dictionary, args.hook.as_deref())?;
    expect::check(&dictionary, &Given::cache(&reader, &hook, None), args.force, ui)?;
    let sequences = CacheSequences::open(cache, Some(&hook), args.filter.settings(), ui.progress())?;
    ui.say(sequences.report());
    let model_name = args.model.clone().unwrap_or_else(|| reader.settings().model.name.clone());
    // The cache suffices for everything but the text of tokens and what features write.
    let opened =
        open::locate(&model_name, ui).and_then(|files| open::open_files(&files, DtypeChoice::F32, common.device));
    let (tokenizer, model) = match opened {
        Ok(opened) => {
            open::check_tokenizer(&opened.tokenizer, &reader)?;
            (Some(opened.tokenizer), Some(opened.model))
        }
        Err(error) if args.model.is_some() => return Err(error),
        Err(error) => {
            let why = error.to_string();
            let first = why.lines().next().unwrap_or_default();
            ui.progress().warn(&format!(
                "the model of the cache cannot be opened, so tokens are shown as ids and promoted tokens are left out \
                 ({first}); name it with --model"
            ));
            (None, None)
        }
    };
    Ok(Sources { dictionary, sequences, tokenizer, model, model_name })
}

fn choose(args: &Args, summaries: &[Summary]) -> Result<Vec<u32>> {
    let choice = match (args.random, args.feature.is_empty()) {
        (Some(count), _) => Choice::Random { count, seed: args.seed },
        (None, false) => Choice::Ids(args.feature.clone()),
        (None, true) => Choice::All,
    };
    let query = Query {
        choice,
        min_density: args.min_density,
        max_density: args.max_density,
        sort: args.sort,
        limit: args.limit,
    };
    select(summaries, &query)
}

#[derive(Serialize)]
struct Report<'a> {
    d_sae: usize,
    dead_features: usize,
    features: Vec<&'a FeatureRecord>,
}

/// Pages when some features were asked for, else an overview.
fn show(
    args: &Args,
    ui: &Ui,
    summaries: &[Summary],
    chosen: &[u32],
    record: impl Fn(u32) -> Result<Option<FeatureRecord>>,
) -> Result<()> {
    let narrowed = !args.feature.is_empty() || args.random.is_some() || args.limit.is_some();
    if !narrowed && !ui.json() {
        return feature_page::overview(summaries, chosen, record, ui);
    }
    let mut records = Vec::new();
    for &feature in chosen {
        let Some(mut found) = record(feature)? else { continue };
        found.examples.truncate(args.top_k);
        if ui.json() {
            records.push(found);
        } else {
            feature_page::page(&found, args.examples.min(args.top_k), ui)?;
        }
    }
    if ui.json() {
        let dead_features = summaries.iter().filter(|s| s.count == 0).count();
        ui.out_json(&Report { d_sae: summaries.len(), dead_features, features: records.iter().collect() })?;
    }
    Ok(())
}
