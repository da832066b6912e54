//! `mechinterp features`

use std::path::PathBuf;
use std::time::Duration;

use crate::analysis::feature::{IndexFile, IndexSettings, SortBy, Window};
use crate::base::{DtypeChoice, Error, Result};

use super::cache::count;
use super::expect::ForceArgs;
use super::filter::FilterArgs;
use super::render::Ui;
use super::{Common, Outcome};

mod ask;
mod labels;
mod layers;
mod make;
mod on;
mod publish;

/// Arguments of `features`.
#[derive(Debug, Clone, clap::Args)]
#[command(subcommand_negates_reqs = true, args_conflicts_with_subcommands = true)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Option<labels::Action>,
    /// The dictionary. With --index only for --on, when it is not where the index was made.
    #[arg(long, value_name = "DIR", required_unless_present_any = ["index", "transcoders"])]
    sae: Option<PathBuf>,
    /// A transcoder set, in place of --sae: an index of every layer at once, in directories under --out. With --model and
    /// --data.
    #[arg(long, value_name = "SET", conflicts_with_all = ["sae", "index", "cache", "hook", "checkpoint_every", "html", "export", "export_set", "feature", "search", "on", "like", "random", "sort", "limit", "min_density", "max_density", "labelled", "dead", "live", "examples", "intervals"], requires_all = ["model", "data", "out"])]
    transcoders: Option<String>,
    /// Layers of --transcoders: numbers from 0 and ranges as 4-7.
    #[arg(long, value_name = "LIST", default_value = "all", requires = "transcoders")]
    layers: String,
    /// Cached activations that the features are shown on.
    #[arg(long, value_name = "DIR", conflicts_with = "data")]
    cache: Option<PathBuf>,
    /// Text to run the model on, in place of a cache, under the context length and BOS rule of the dictionary.
    #[arg(long, value_name = "FILE|HUB", num_args = 1.., requires = "model")]
    data: Vec<String>,
    /// Tokens of the text, such as 500k or 2M.
    #[arg(long, value_name = "N", default_value = "1M", value_parser = count, requires = "data")]
    tokens: u64,
    /// Hook point of the cache, when it holds several; the dictionary's own when absent.
    #[arg(long, value_name = "NAME", requires = "cache")]
    hook: Option<String>,
    /// The model, for its tokenizer, its unembedding and --on, when it is not where the cache was made.
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// Number type the model computes in with --data: f32, f16 or bf16. When absent, bf16 where the CPU multiplies it
    /// natively, else f32.
    #[arg(long, requires = "data")]
    model_dtype: Option<DtypeChoice>,
    /// A feature index that was written before, in place of --sae and --cache. Needs no model.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["cache", "data"])]
    index: Option<PathBuf>,
    /// Write the index of all features into this directory; with --export the files of another program.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Go on with an index that was cut off.
    #[arg(long, requires = "out")]
    resume: bool,
    /// Seconds between checkpoints of an index that is being written.
    #[arg(long, value_name = "SECONDS", default_value_t = 120, requires = "out")]
    checkpoint_every: u64,
    /// Strongest examples a feature.
    #[arg(long, value_name = "N", default_value_t = 20)]
    top_k: usize,
    /// Examples drawn at random from each of ten intervals of a feature's activations.
    #[arg(long, value_name = "N", default_value_t = 5)]
    interval_examples: usize,
    /// Tokens of context before and after an example's peak.
    #[arg(long, value_name = "BEFORE,AFTER", default_value = "16,8", value_parser = window)]
    context: Window,
    #[command(flatten)]
    publish: publish::PublishArgs,
    #[command(flatten)]
    filter: FilterArgs,
    #[command(flatten)]
    force: ForceArgs,
    // Their headings hold for whatever follows.
    #[command(flatten)]
    ask: AskArgs,
}

/// Which features to show, and how much of each.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "What to show")]
struct AskArgs {
    /// Features to show, by number.
    #[arg(long, value_name = "ID", value_delimiter = ',')]
    feature: Vec<u32>,
    /// Features that have to do with these words: in labels, in the text of examples, among promoted tokens.
    #[arg(long, value_name = "WORDS", conflicts_with_all = ["feature", "random", "like", "on", "sort"])]
    search: Option<String>,
    /// Which features fire on this text, where, and how strongly. Runs the model.
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["feature", "random", "like", "sort"])]
    on: Option<String>,
    /// Features like this one: similar in what they write, or firing on the same positions.
    #[arg(long, value_name = "ID", conflicts_with_all = ["feature", "random", "sort"])]
    like: Option<u32>,
    /// Show this many live features, drawn at random.
    #[arg(long, value_name = "N", conflicts_with = "feature")]
    random: Option<usize>,
    /// Seed of the draw.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Order: index, density, max, mean, std, skewness or kurtosis.
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
    /// Only features that have a label.
    #[arg(long)]
    labelled: bool,
    /// Only features that never fire.
    #[arg(long, conflicts_with = "live")]
    dead: bool,
    /// Only features that fire.
    #[arg(long)]
    live: bool,
    /// Examples to show of each feature on the terminal; all are in JSON and in the index.
    #[arg(long, value_name = "N", default_value_t = 10)]
    examples: usize,
    /// Also show examples from every interval of activations.
    #[arg(long)]
    intervals: bool,
}

fn sort_by(text: &str) -> Result<SortBy, String> {
    SortBy::ALL
        .into_iter()
        .find(|by| by.name() == text)
        .ok_or_else(|| format!("expected one of {}", SortBy::ALL.map(SortBy::name).join(", ")))
}

fn window(text: &str) -> Result<Window, String> {
    let parts = text.split_once(',').and_then(|(b, a)| Some((b.trim().parse().ok()?, a.trim().parse().ok()?)));
    parts.map(|(before, after)| Window { before, after }).ok_or_else(|| "expected two numbers, such as 16,8".into())
}

impl Args {
    fn settings(&self) -> IndexSettings {
        IndexSettings {
            top_k: self.top_k,
            interval_examples: self.interval_examples,
            window: self.context,
            max_sequences: None,
            // An index is the same whatever is drawn from it.
            seed: 0,
        }
    }

    fn checkpoint_interval(&self) -> Duration {
        Duration::from_secs(self.checkpoint_every)
    }

    fn check(&self) -> Result<()> {
        let ask = &self.ask;
        if self.top_k == 0 {
            return Err(Error::flag("--top-k", "1 or more examples", 0, "the default is 20"));
        }
        for (flag, value) in [("--random", ask.random), ("--limit", ask.limit)] {
            if value == Some(0) {
                return Err(Error::flag(flag, "1 or more features", 0, "leave the flag out for all of them"));
            }
        }
        for (flag, value) in [("--min-density", ask.min_density), ("--max-density", ask.max_density)] {
            if let Some(share) = value.filter(|share| !(0.0..=1.0).contains(share)) {
                return Err(Error::flag(
                    flag,
                    "a share of positions, from 0 to 1",
                    share,
                    "0.001 is one in a thousand",
                ));
            }
        }
        Ok(())
    }
}

pub(super) fn run(args: Args, common: &Common, ui: &Ui) -> Result<Outcome> {
    if let Some(action) = &args.action {
        return labels::run(action, ui);
    }
    args.check()?;
    if let Some(dir) = &args.index {
        let exports = args.publish.exports();
        if let Some(out) = args.out.as_ref().filter(|_| !exports) {
            let remedy = "say what to write there with --export, or leave --out out";
            return Err(Error::flag("--out", "no directory for an index that is there already", out.display(), remedy));
        }
        if let Some(sae) = args.sae.as_ref().filter(|_| args.ask.on.is_none() && !exports) {
            let remedy = "leave out --sae, or --index to make the index again";
            return Err(Error::flag(
                "--sae",
                "no dictionary beside --index, which holds what it says",
                sae.display(),
                remedy,
            ));
        }
        let index = IndexFile::open(dir)?;
        match &args.ask.on {
            Some(text) => on::with_index(&args, &index, text, common, ui)?,
            None if args.publish.any() => publish::run(&args, &index, ui)?,
            None => ask::show(&args, &index, ui)?,
        }
        return Ok(Outcome::Done);
    }
    if let Some(set) = &args.transcoders {
        layers::run(&args, set, common, ui)?;
        return Ok(Outcome::Done);
    }
    let Some(sae) = &args.sae else {
        return Err(Error::flag("--sae", "a dictionary, or --index", "neither", "`features --help` shows both ways"));
    };
    let made = match (&args.cache, args.data.is_empty(), &args.ask.on) {
        (Some(cache), ..) => Some(make::from_cache(&args, sae, cache, common, ui)?),
        (None, false, _) => Some(make::from_text(&args, sae, common, ui)?),
        (None, true, Some(_)) => None,
        (None, true, None) => {
            let remedy = "cache activations first, name text with --model and --data, or give --index";
            return Err(Error::flag("--cache", "a cache or text beside --sae", "neither", remedy));
        }
    };
    match (&args.ask.on, &made) {
        (Some(text), _) => on::with_dictionary(&args, sae, made.as_ref(), text, common, ui)?,
        (None, Some(index)) if args.publish.any() => publish::run(&args, index, ui)?,
        (None, Some(index)) => ask::show(&args, index, ui)?,
        (None, None) => {}
    }
    Ok(Outcome::Done)
}
