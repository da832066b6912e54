//! `mechinterp patch`

mod modes;
mod show;

use std::path::PathBuf;

use serde::Serialize;

use crate::analysis::patch::{Baseline, FeatureSweep, Metric, Sweep, check_aligned};
use crate::base::artifact::write_atomic;
use crate::base::{Error, Result};
use crate::data::tokenizer::BosPolicy;
use crate::dictionary::Dictionary;

use super::expect::{self, ForceArgs, Given};
use super::open::{self, Opened};
use super::prompts::ReadingArgs;
use super::render::Ui;
use super::{Common, Outcome, places};

/// Arguments of `patch`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Args {
    /// Hugging Face directory, hub id, `.gguf` file, or `demo`.
    #[arg(long, value_name = "MODEL")]
    model: String,
    /// The prompt with the right answer.
    #[arg(long, visible_alias = "prompt", value_name = "TEXT")]
    clean: String,
    /// The same prompt with another answer, of as many tokens.
    #[arg(long, value_name = "TEXT")]
    corrupt: Option<String>,
    /// The right answer, one token. A space before it belongs to it: " Paris".
    #[arg(long, value_name = "TEXT")]
    target: String,
    /// The other answer, whose logit is subtracted.
    #[arg(long, value_name = "TEXT")]
    against: Option<String>,
    /// What is measured after the last position: by default the logit difference with --against, else the probability.
    #[arg(long, value_enum)]
    metric: Option<MetricKind>,
    /// Put values of the corrupted run into the clean one: what is needed. Otherwise the other way round: what suffices.
    #[arg(long)]
    noise: bool,
    /// What to patch: `resid_pre`, `resid_mid`, `resid_post`, `attn_out`, `mlp_out`, `attn_added`, `mlp_added`, z, q, k,
    /// v, pattern, or feature with --sae. Separate several by commas.
    #[arg(long, value_name = "SITE", value_delimiter = ',', default_value = "resid_pre")]
    site: Vec<String>,
    /// How patches of sites with heads are cut: a layer at a position, a head at all positions, or a head at a position.
    #[arg(long, value_enum)]
    by: Option<ByKind>,
    /// Layers: numbers from 0 and ranges as 4-7.
    #[arg(long, value_name = "LIST", default_value = "all")]
    layer: String,
    /// Heads.
    #[arg(long, value_name = "LIST")]
    head: Option<String>,
    /// Positions: numbers from 0, negative ones from the end, ranges as 2-5, tokens of the clean prompt.
    #[arg(long, value_name = "LIST", default_value = "all", allow_hyphen_values = true)]
    position: String,
    /// Dictionary whose features are patched one by one.
    #[arg(long, value_name = "DIR")]
    sae: Option<PathBuf>,
    /// Features to patch, those that differ most between the runs.
    #[arg(long, value_name = "N", default_value_t = 20)]
    features: usize,
    /// Replace values of the clean run by zeros, by averages, or by those of other prompts.
    #[arg(long, value_enum, conflicts_with_all = ["noise", "knock_out", "path_to"])]
    ablate: Option<Ablation>,
    /// Prompts for --ablate mean and resample, one a line or in the field `text` of a .jsonl file; the clean and the
    /// corrupted prompt where absent.
    #[arg(long, visible_alias = "data", value_name = "FILE", requires = "ablate")]
    prompts: Option<PathBuf>,
    /// Prompts that --ablate resample draws and averages over.
    #[arg(long, value_name = "N", default_value_t = 5)]
    draws: usize,
    /// Seed of the draws.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Cut attention of the clean run from the positions --from to the positions --to.
    #[arg(long, conflicts_with_all = ["noise", "path_to"])]
    knock_out: bool,
    /// Positions that attend.
    #[arg(long, value_name = "LIST", default_value = "last", requires = "knock_out", allow_hyphen_values = true)]
    from: String,
    /// Positions attended to, cut together; without it each position by itself.
    #[arg(long, value_name = "LIST", requires = "knock_out", allow_hyphen_values = true)]
    to: Option<String>,
    /// Layers that are cut together.
    #[arg(long, value_name = "N", default_value_t = 1, requires = "knock_out")]
    window: usize,
    /// Cut each head by itself.
    #[arg(long, requires = "to")]
    per_head: bool,
    /// Path patching from every head and MLP of --layer and --head to this node: 5.3.q, 5.3.k or 5.3.v (layer, head,
    /// input), 5.mlp, `5.resid_pre`, or logits. Repeat the flag to patch several together.
    #[arg(long, value_name = "NODE", requires = "corrupt")]
    path_to: Vec<String>,
    /// Keep MLPs between the ends of a path as they are, too; otherwise paths through them count as direct.
    #[arg(long, requires = "path_to")]
    freeze_mlps: bool,
    /// Show the metric itself.
    #[arg(long)]
    raw: bool,
    /// Strongest patches to list.
    #[arg(long, value_name = "N", default_value_t = 5)]
    top: usize,
    /// Also write a page that opens offline.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    #[command(flatten)]
    reading: ReadingArgs,
    #[command(flatten)]
    force: ForceArgs,
}

const EXAMPLES: &str = "\
Examples:
  mechinterp patch --model demo --clean \"the capital of France is\" --corrupt \"the capital of Japan is\" \\
      --target Paris --against Tokyo
  … --site z                      every head, at all positions
  … --site feature --sae sae/     every feature of a dictionary
  … --path-to 3.1.q               what each head sends to the queries of head 3.1
  … --knock-out --window 2        the last position may no longer see one other, two layers at a time
  … --ablate mean --site mlp_out --prompts prompts.txt";

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum MetricKind {
    /// Logit of the target less that of --against.
    LogitDiff,
    /// Logit of the target.
    Logit,
    /// Probability of the target.
    Prob,
    /// Logarithm of the target's probability.
    LogProb,
}

/// How patches are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum ByKind {
    /// A layer at one position.
    Position,
    /// A head at all positions.
    Head,
    /// A head at one position.
    HeadPosition,
}

/// What values are replaced by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Ablation {
    /// Averages over prompts.
    Mean,
    /// Zeros.
    Zero,
    /// Those of other prompts.
    Resample,
}

/// One of the two prompts.
#[derive(Debug, Serialize)]
struct Ran {
    prompt: String,
    tokens: Vec<u32>,
    pieces: Vec<String>,
    metric: Option<f64>,
}

/// What was patched and what came of it.
#[derive(Debug, Serialize)]
struct Report {
    model: String,
    /// What was done, in words.
    method: String,
    /// The run that is changed: clean or corrupted.
    patched: &'static str,
    metric: Metric,
    /// The metric in words.
    metric_name: String,
    clean: Ran,
    corrupt: Option<Ran>,
    baseline: Baseline,
    results: Vec<Outcomes>,
}

/// One sweep.
#[derive(Debug, Serialize)]
struct Outcomes {
    site: String,
    #[serde(flatten)]
    sweep: Sweep,
    /// `(metric − base) / (source − base)`, by row and column.
    normalised: Vec<Vec<Option<f64>>>,
    features: Option<FeatureSweep>,
}

impl Outcomes {
    fn new(site: String, sweep: Sweep, baseline: Baseline, features: Option<FeatureSweep>) -> Self {
        let normalise = |m: &Option<f64>| m.and_then(|m| baseline.normalised(m));
        let normalised = sweep.metric.iter().map(|row| row.iter().map(normalise).collect()).collect();
        Self { site, sweep, normalised, features }
    }
}

pub(super) fn run(args: &Args, common: &Common, ui: &Ui) -> Result<Outcome> {
    if let Some(html) = &args.html {
        open::check_writable(html)?;
    }
    args.check()?;
    let dictionary = args.sae.as_ref().map(|path| open::dictionary(path, ui)).transpose()?;
    let opened = open::open(&args.model, args.reading.dtype, common.device, ui)?;
    let bos = args.reading.bos();
    if let Some(dictionary) = &dictionary {
        expect::check(dictionary, &Given::model(&args.model, bos, opened.model.config()), args.force, ui)?;
    }
    let report = args.report(&opened, dictionary.as_ref(), bos, ui)?;
    if let Some(html) = &args.html {
        write_atomic(html, show::page(&report, args.raw).as_bytes())?;
        ui.say(format!("wrote {}", html.display()));
    }
    if ui.json() {
        ui.out_json(&report)?;
    } else {
        show::print(&report, args.raw, args.top, ui)?;
    }
    Ok(Outcome::Done)
}

impl Args {
    /// Checks flags against each other, before anything is opened.
    fn check(&self) -> Result<()> {
        let alone = self.ablate.is_some() || self.knock_out;
        if self.corrupt.is_none() && !alone {
            let remedy = "give a second prompt to patch from, or use --ablate or --knock-out on one";
            return Err(Error::flag("--corrupt", "a prompt with another answer", "none", remedy));
        }
        if self.metric == Some(MetricKind::LogitDiff) && self.against.is_none() {
            let remedy = "name the other answer, or measure prob, logit or log-prob";
            return Err(Error::flag("--against", "a token for the logit difference", "none", remedy));
        }
        let features = self.site.iter().any(|site| site == "feature");
        if features && self.sae.is_none() {
            return Err(Error::flag("--sae", "a dictionary to patch features of", "none", "name its directory"));
        }
        if features && self.ablate == Some(Ablation::Mean) {
            let remedy = "ablate features by zero or resample";
            return Err(Error::flag("--ablate", "zero or resample for features", "mean", remedy));
        }
        Ok(())
    }

    fn report(&self, opened: &Opened, dictionary: Option<&Dictionary>, bos: BosPolicy, ui: &Ui) -> Result<Report> {
        let tokenizer = &opened.tokenizer;
        let ran = |text: &String| -> Result<Ran> {
            let tokens = open::encode_prompt(opened, text, bos)?;
            let pieces = tokens.iter().map(|&t| tokenizer.piece(t)).collect();
            Ok(Ran { prompt: text.clone(), tokens, pieces, metric: None })
        };
        let clean = ran(&self.clean)?;
        let corrupt = self.corrupt.as_ref().map(ran).transpose()?;
        if let Some(corrupt) = &corrupt {
            check_aligned(&clean.tokens, &corrupt.tokens, |tokens| places::numbered(tokens, tokenizer))?;
        }
        let answer = |flag, text: &String| places::answer_token(tokenizer, flag, text, &clean.tokens, ui);
        let target = answer("--target", &self.target)?;
        let against = self.against.as_ref().map(|text| answer("--against", text)).transpose()?;
        let metric = match (self.metric, against) {
            (None | Some(MetricKind::LogitDiff), Some(against)) => Metric::LogitDifference { target, against },
            (Some(MetricKind::Logit), _) => Metric::Logit { target },
            (Some(MetricKind::LogProb), _) => Metric::LogProbability { target },
            (None | Some(MetricKind::Prob | MetricKind::LogitDiff), _) => Metric::Probability { target },
        };
        modes::run(self, opened, dictionary, (clean, corrupt), metric, (bos, ui))
    }
}
