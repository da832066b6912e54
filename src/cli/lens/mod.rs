//! `mechinterp lens`

mod attribution;
mod cells;
mod page;

use std::path::PathBuf;

use serde::Serialize;

use crate::analysis::lens::{Attribution, LensRow, LensSettings, TokenChance, attribute, logit_lens, streams};
use crate::base::artifact::write_atomic;
use crate::base::{Error, Result};
use crate::data::tokenizer::Tokenizer;
use crate::dictionary::Dictionary;
use crate::model::HookPoint;

use super::expect::{self, ForceArgs, Given};
use super::open::{self, Opened};
use super::prompts::{Prompt, PromptArgs, ReadingArgs};
use super::render::{BOLD, DIM, Ui, columns, paint};
use super::{Common, Outcome, heatmap, places};

/// Arguments of `lens`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Hugging Face directory, hub id, `.gguf` file, or `demo`.
    model: String,
    #[command(flatten)]
    prompts: PromptArgs,
    /// Token to follow through the layers, and to take its logit apart. A space before it belongs to it: " Paris".
    #[arg(long, value_name = "TEXT")]
    target: Option<String>,
    /// Token whose logit is subtracted from the target's.
    #[arg(long, value_name = "TEXT", requires = "target")]
    against: Option<String>,
    /// What stands in the cells: the likeliest token, or of the target its probability, rank or logit, or the
    /// distribution's entropy, or its KL divergence from the last layer's.
    #[arg(long, value_enum, default_value_t)]
    show: Show,
    /// Positions to show: numbers from 0, negative ones from the end, ranges as 2-5, tokens of the prompt.
    #[arg(long, value_name = "LIST", default_value = "all", allow_hyphen_values = true)]
    position: String,
    /// Position whose prediction is taken apart.
    #[arg(long, value_name = "POSITION", default_value = "last", requires = "target", allow_hyphen_values = true)]
    at: String,
    /// Also read the stream between attention and MLP.
    #[arg(long)]
    mid: bool,
    /// Likeliest tokens to keep of every cell, for --json and the page.
    #[arg(long, value_name = "N", default_value_t = 5)]
    top: usize,
    /// Dictionary of a residual stream, attention or an MLP, by whose features the logit is taken apart as well.
    #[arg(long, value_name = "DIR", requires = "target")]
    sae: Option<PathBuf>,
    /// Heads and features to list, those that contribute most.
    #[arg(long, value_name = "N", default_value_t = 12)]
    components: usize,
    /// Also write a page that opens offline.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    #[command(flatten)]
    reading: ReadingArgs,
    #[command(flatten)]
    force: ForceArgs,
}

/// What stands in the cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(super) enum Show {
    /// The likeliest token.
    #[default]
    Token,
    /// Probability of the target.
    Probability,
    /// Rank of the target, 1 for the likeliest.
    Rank,
    /// Logit of the target.
    Logit,
    /// Entropy in nats.
    Entropy,
    /// `KL(last layer ‖ this)` in nats.
    Kl,
}

/// One prompt under the lens.
#[derive(Debug, Serialize)]
struct Report {
    prompt: Option<String>,
    tokens: Vec<u32>,
    pieces: Vec<String>,
    positions: Vec<usize>,
    target: Option<Named>,
    against: Option<Named>,
    layers: Vec<Layer>,
    attribution: Option<Attribution>,
}

/// A token with its text.
#[derive(Debug, Clone, Serialize)]
struct Named {
    id: u32,
    token: String,
}

#[derive(Debug, Serialize)]
struct Layer {
    point: HookPoint,
    cells: Vec<Cell>,
}

#[derive(Debug, Serialize)]
struct Cell {
    top: Vec<Chance>,
    target: Option<Chance>,
    against: Option<Chance>,
    entropy: f64,
    kl: f64,
}

#[derive(Debug, Clone, Serialize)]
struct Chance {
    id: u32,
    token: String,
    logit: f32,
    probability: f64,
    rank: usize,
}

impl Chance {
    fn of(chance: &TokenChance, tokenizer: &Tokenizer) -> Self {
        let &TokenChance { token, logit, probability, rank } = chance;
        Self { id: token, token: tokenizer.piece(token), logit, probability, rank }
    }
}

pub(super) fn run(args: Args, common: &Common, ui: &Ui) -> Result<Outcome> {
    if let Some(html) = &args.html {
        open::check_writable(html)?;
    }
    if args.target.is_none() && matches!(args.show, Show::Probability | Show::Rank | Show::Logit) {
        let remedy = "name it, as in --target \" Paris\"";
        return Err(Error::flag("--show", "a --target to show this of", "none", remedy));
    }
    let given = args.prompts.read()?;
    let dictionary = args.sae.as_ref().map(|path| open::dictionary(path, ui)).transpose()?;
    let opened = open::open(&args.model, args.reading.dtype, common.device, ui)?;
    let bos = args.reading.bos();
    if let Some(dictionary) = &dictionary {
        expect::check(dictionary, &Given::model(&args.model, bos, opened.model.config()), args.force, ui)?;
    }
    let prompts = given.encode(&opened.tokenizer, bos, opened.model.config())?;
    let reports = prompts.into_iter().map(|prompt| report(prompt, &args, &opened, dictionary.as_ref(), ui));
    let reports = reports.collect::<Result<Vec<_>>>()?;
    if let Some(html) = &args.html {
        write_atomic(html, page::page(&reports, &args, opened.model.config()).as_bytes())?;
        ui.say(format!("wrote {}", html.display()));
    }
    if ui.json() {
        ui.out_json(&reports)?;
    } else {
        for (i, report) in reports.iter().enumerate() {
            if i > 0 {
                ui.out("")?;
            }
            print(report, &args, opened.model.config().n_layers, ui)?;
        }
    }
    Ok(Outcome::Done)
}

fn report(prompt: Prompt, args: &Args, opened: &Opened, dictionary: Option<&Dictionary>, ui: &Ui) -> Result<Report> {
    let Opened { model, tokenizer } = opened;
    let Prompt { text, tokens } = prompt;
    let named = |flag, text: &Option<String>| -> Result<Option<Named>> {
        let Some(text) = text else { return Ok(None) };
        let id = places::answer_token(tokenizer, flag, text, &tokens, ui)?;
        Ok(Some(Named { id, token: tokenizer.piece(id) }))
    };
    let (target, against) = (named("--target", &args.target)?, named("--against", &args.against)?);
    let positions = places::positions("--position", &args.position, &tokens, tokenizer)?;
    let watched: Vec<u32> = target.iter().chain(&against).map(|token| token.id).collect();
    let settings = LensSettings { points: streams(model.config(), args.mid), positions, top: args.top.max(1), watched };
    let rows = logit_lens(model, &tokens, &settings, ui.progress())?;
    let attribution = match &target {
        Some(target) => {
            let at = places::positions("--at", &args.at, &tokens, tokenizer)?;
            let [at] = at.as_slice() else {
                return Err(Error::flag("--at", "one position", format!("{}", at.len()), "name a single one"));
            };
            let tokens_wanted = (target.id, against.as_ref().map(|token| token.id));
            Some(attribute(model, &tokens, *at, tokens_wanted, dictionary)?)
        }
        None => None,
    };
    Ok(Report {
        prompt: text,
        pieces: tokens.iter().map(|&t| tokenizer.piece(t)).collect(),
        tokens,
        positions: settings.positions,
        layers: rows.iter().map(|row| layer(row, tokenizer, against.is_some())).collect(),
        target,
        against,
        attribution,
    })
}

fn layer(row: &LensRow, tokenizer: &Tokenizer, has_against: bool) -> Layer {
    let cells = row.cells.iter().map(|cell| {
        let watched = |i: usize| cell.watched.get(i).map(|chance| Chance::of(chance, tokenizer));
        Cell {
            top: cell.top.iter().map(|chance| Chance::of(chance, tokenizer)).collect(),
            target: watched(0),
            against: if has_against { watched(1) } else { None },
            entropy: cell.entropy,
            kl: cell.kl,
        }
    });
    Layer { point: row.point, cells: cells.collect() }
}

fn print(report: &Report, args: &Args, n_layers: usize, ui: &Ui) -> Result<()> {
    let text = report.prompt.clone().unwrap_or_else(|| report.pieces.concat());
    ui.out(format!("{}  {}", paint(BOLD, text), paint(DIM, format!("{} tokens", report.tokens.len()))))?;
    heatmap::show(&cells::heatmap(report, args.show), columns(), ui)?;
    if let Some(attribution) = &report.attribution {
        ui.out("")?;
        attribution::print(report, attribution, args.components, n_layers, ui)?;
    }
    Ok(())
}
