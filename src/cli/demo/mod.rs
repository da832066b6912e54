//! `mechinterp demo`: every step is the command that it prints.

mod traces;

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use clap::Parser;

use crate::analysis::{FeatureEdit, FeatureOp};
use crate::base::artifact::write_atomic_with;
use crate::base::{Error, Result};
use crate::demo::World;
use crate::demo::card::{CardSettings, FOUND, Family, ScoreCard};
use crate::demo::carry::Carried;
use crate::demo::compose::ComposeSettings;
use crate::demo::quiz::Recall;
use crate::demo::trace_card::{TraceCard, Trained, read_replacement};
use crate::dictionary::io;

use super::render::{BOLD, DIM, GREEN, RED, Table, Ui, paint};
use super::{Cli, Common, Outcome, dispatch};

/// Where in the built-in model the demo looks: its concepts were planted there (`assets/demo/README.md`).
const HOOK: &str = "blocks.1.hook_resid_post";
/// Documents of the generated text, about 300,000 tokens.
const DOCUMENTS: usize = 4500;
/// What the built-in model has to know for the demo to mean anything.
const ONE_HOP_GOAL: f64 = 0.99;
const TWO_HOP_GOAL: f64 = 0.90;
/// Marks a directory that `demo` made and may replace.
const MARK: &str = ".made-by-mechinterp-demo";
/// The files of earlier runs that it replaces.
const PARTS: [&str; 7] = ["acts", "sae", "features", "world.jsonl", "transcoders", "clt", "graph.html"];
/// What is asked of the model.
const QUESTION: &str = "The capital of the country where Marseille lies is";
/// Where `train-transcoders` leaves its measurement.
const REPLACEMENT: &str = "replacement.json";

/// Everything that was measured.
#[derive(serde::Serialize)]
struct Cards<'a> {
    #[serde(flatten)]
    card: &'a ScoreCard,
    traces: &'a TraceCard,
}

/// Arguments of `demo`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Directory for everything that the steps write. An earlier demo's is replaced.
    #[arg(long, value_name = "DIR", default_value = "mechinterp-demo")]
    out: PathBuf,
    /// Seed of the text and of the training.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where in the model to look.
    #[arg(long, value_name = "NAME", default_value = HOOK)]
    hook: String,
    /// Number of features.
    #[arg(long, value_name = "N", default_value = "1536")]
    d_sae: String,
    /// Active features a row, on average.
    #[arg(long, value_name = "N", default_value = "6")]
    k: String,
    /// Clamped features are set to this multiple of their largest activation.
    #[arg(long, value_name = "X", default_value_t = CardSettings::default().strength)]
    strength: f32,
    /// Rows to train on.
    #[arg(long, value_name = "N", default_value = "1M")]
    tokens: String,
}

pub(super) fn run(args: Args, common: &Common, ui: &Ui) -> Result<Outcome> {
    let started = Instant::now();
    clear(&args.out)?;
    let quiet = ui.without_json();
    let demo = Demo { args: &args, common, ui: &quiet, seed: args.seed.to_string() };
    demo.train()?;
    let opened = super::open::open("demo", crate::base::DtypeChoice::F32, common.device, &quiet)?;
    let dictionary = Arc::new(io::read(Path::new(&demo.at("sae")))?);
    let settings = CardSettings { seed: args.seed, strength: args.strength, ..CardSettings::default() };
    let card = ScoreCard::measure(&opened.model, &dictionary, settings, ui.progress())?;
    demo.explain(&card)?;
    let sets = demo.transcoders()?;
    let settings = ComposeSettings { seed: args.seed, ..ComposeSettings::default() };
    let traces = TraceCard::measure(&opened.model, sets, settings, ui.progress())?;
    if ui.json() {
        ui.out_json(&Cards { card: &card, traces: &traces })?;
    } else {
        print(&card, ui)?;
        ui.out("")?;
        traces::print(&traces, ui)?;
        ui.out(paint(DIM, format!("{:.0} s in all", started.elapsed().as_secs_f64())))?;
    }
    let knows = card.quiz.single_hop.accuracy() >= ONE_HOP_GOAL && card.quiz.two_hop.accuracy() >= TWO_HOP_GOAL;
    Ok(if knows { Outcome::Done } else { Outcome::No })
}

/// The steps, in the order in which they run.
struct Demo<'a> {
    args: &'a Args,
    common: &'a Common,
    ui: &'a Ui,
    seed: String,
}

impl Demo<'_> {
    /// Where a step writes.
    fn at(&self, name: &str) -> String {
        self.args.out.join(name).display().to_string()
    }

    /// Runs the command of which `parts` are the words.
    fn step(&self, title: &str, parts: &[&[&str]]) -> Result<()> {
        step(title, &parts.concat(), self.common, self.ui)
    }

    /// From text to a dictionary.
    fn train(&self) -> Result<()> {
        let Args { seed, hook, d_sae, k, tokens, .. } = self.args;
        let (world, acts, sae) = (self.at("world.jsonl"), self.at("acts"), self.at("sae"));
        self.ui.out(paint(BOLD, "The built-in world: countries, cities, people, animals, sums, in three languages"))?;
        write_text(Path::new(&world), *seed)?;
        self.ui
            .out(format!("{}\n", paint(DIM, format!("wrote {DOCUMENTS} documents of generated text to {world}"))))?;
        self.step("What the model says next", &[&["run", "demo", "--prompt", QUESTION, "--top", "3"]])?;
        let cache = ["cache", "--model", "demo", "--data", &world, "--hook", hook, "--context-size", "64"];
        let how = ["--batch-size", "64", "--dtype", "f32", "--out", &acts];
        self.step("Keep what flows through it", &[&cache, &how])?;
        let train = ["train-sae", "--cache", &acts, "--arch", "batchtopk", "--d-sae", d_sae, "--k", k];
        let how = ["--batch-size", "256", "--lr", "0.003", "--tokens", tokens, "--seed", &self.seed, "--out", &sae];
        self.step("Find the features in it", &[&train, &how])?;
        let eval = ["eval", "--sae", &sae, "--cache", &acts, "--model", "demo", "--no-directions"];
        self.step("How good are they", &[&eval])
    }

    /// Some features with their examples, and a country turned.
    fn explain(&self, card: &ScoreCard) -> Result<()> {
        let (acts, sae, index) = (self.at("acts"), self.at("sae"), self.at("features"));
        let ids: Vec<String> = showcase(card).iter().map(|c| c.feature.to_string()).collect();
        let features = ["features", "--sae", &sae, "--cache", &acts, "--top-k", "20", "--out", &index];
        self.step("What they mean", &[&features, &["--feature", &ids.join(","), "--examples", "4"]])?;
        let Some(turned) = &card.turned else { return Ok(()) };
        let edit = |e: &FeatureEdit| match e.op {
            FeatureOp::Clamp(v) => format!("{}:{v:.1}", e.feature),
            _ => format!("{}:0", e.feature),
        };
        let values: Vec<String> = turned.edits.iter().map(edit).collect();
        let edits: Vec<&str> = values.iter().flat_map(|value| ["--feature", value]).collect();
        let at = turned.at.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        self.step(
            "Turn some: one country's feature on, another's off (the score card says how often it works)",
            &[
                &["steer", "--model", "demo", "--sae", &sae],
                &edits,
                &["--at", &at, "--prompt", &turned.prompt, "--max-new-tokens", "8", "--top", "3"],
            ],
        )
    }

    /// Transcoders of each layer and across layers, and a graph of the latter.
    fn transcoders(&self) -> Result<[Trained; 2]> {
        let (world, set, clt, page) =
            (self.at("world.jsonl"), self.at("transcoders"), self.at("clt"), self.at("graph.html"));
        let data = ["--model", "demo", "--data", &world, "--context-size", "64", "--seed", &self.seed];
        let train = [&["train-transcoders"][..], &data].concat();
        let size = ["--d-sae", "1536", "--k", "6", "--tokens", "200k", "--batch-size", "256", "--lr", "0.003"];
        self.step("A transcoder for every layer", &[&train, &size, &["--out", &set]])?;
        let across = ["--cross-layer", "--out", &clt];
        self.step("One whose features write to all later layers", &[&train, &size, &across])?;
        let graph = ["graph", "--model", "demo", "--transcoders", &clt, "--prompt", QUESTION];
        self.step("Why it says so", &[&graph, &["--verify", "--html", &page]])?;
        let trained = |dir: &str| -> Result<Trained> {
            let set = crate::interop::open_set(Path::new(dir))?;
            Ok((Arc::new(set), read_replacement(&Path::new(dir).join(REPLACEMENT))?))
        };
        Ok([trained(&set)?, trained(&clt)?])
    }
}

/// Prints a command and runs it as if it had been typed.
fn step(title: &str, words: &[&str], common: &Common, ui: &Ui) -> Result<()> {
    let shown: Vec<String> =
        words.iter().map(|w| if w.contains(' ') { format!("'{w}'") } else { (*w).into() }).collect();
    ui.out(paint(BOLD, title))?;
    ui.out(format!("{} mechinterp {}", paint(DIM, "$"), shown.join(" ")))?;
    let typed = std::iter::once("mechinterp").chain(words.iter().copied()).map(OsString::from);
    let cli = Cli::try_parse_from(typed).map_err(|e| Error::Unsupported {
        what: format!("the demo's own step `{}`", shown.join(" ")),
        why: e.to_string(),
        remedy: "this is a defect of mechinterp; please report it".into(),
    })?;
    dispatch(cli.command, common, ui)?;
    ui.out("")
}

/// Empties a directory that an earlier demo made, or makes a new one.
fn clear(out: &Path) -> Result<()> {
    let mark = out.join(MARK);
    if out.exists() && !mark.exists() {
        return Err(Error::OutputInUse {
            path: out.into(),
            state: "exists and was not made by the demo",
            remedy: "choose another --out".into(),
        });
    }
    for part in PARTS {
        for path in [out.join(part), out.join(format!("{part}.partial"))] {
            let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            match removed {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::io("remove what an earlier demo wrote", path)(e));
                }
                _ => {}
            }
        }
    }
    std::fs::create_dir_all(out).map_err(Error::io("make the output directory", out))?;
    std::fs::write(&mark, "").map_err(Error::io("mark the output directory", mark))
}

/// The world's text, one JSON object a line.
fn write_text(path: &Path, seed: u64) -> Result<()> {
    let world = World::new(World::BUILT_IN_SEED);
    write_atomic_with(path, |file| {
        let mut out = std::io::BufWriter::new(file);
        for text in world.corpus(DOCUMENTS, seed) {
            writeln!(out, "{}", serde_json::json!({ "text": text }))?;
        }
        out.flush()
    })
}

/// The best concept of three different families.
fn showcase(card: &ScoreCard) -> Vec<&crate::demo::card::Found> {
    let best = |family: &str| card.concepts.iter().find(|c| c.concept.starts_with(family));
    ["about:", "text:", "next:", "class:"].into_iter().filter_map(best).take(3).collect()
}

fn print(card: &ScoreCard, ui: &Ui) -> Result<()> {
    ui.out(paint(BOLD, "Score card: the generator knows every answer, so this can be measured"))?;
    let recall = |r: &Recall, goal: Option<f64>| vec![share(r.accuracy(), goal), format!("{} of {}", r.right, r.asked)];
    let mut table = Table::new(&["", ">", "", "what it is"]);
    let mut row = |name: &str, mut cells: Vec<String>, what: &str| {
        cells.insert(0, name.into());
        cells.push(paint(DIM, what));
        table.row(cells);
    };
    row(
        "one-hop facts",
        recall(&card.quiz.single_hop, Some(ONE_HOP_GOAL)),
        "the model's answers to every prompt of the world",
    );
    row(
        "two-hop facts",
        recall(&card.quiz.two_hop, Some(TWO_HOP_GOAL)),
        "such as the capital of a city's country, all pairs",
    );
    row(
        "  held out",
        recall(&card.quiz.two_hop_held_out, None),
        "pairs that no training text stated: composed, not remembered",
    );
    let all = card.all();
    let found = |f: &Family| {
        vec![share(f.found as f64 / f.concepts.max(1) as f64, None), format!("{} of {}", f.found, f.concepts)]
    };
    row("concepts found", found(&all), &format!("a feature with F1 ≥ {FOUND} on text that had no part in choosing it"));
    for (name, family) in &card.families {
        row(&format!("  {name}"), found(family), &format!("mean best F1 {:.2}", family.mean_f1));
    }
    for (name, turns, what) in [
        (
            "answers turned",
            &card.clamp_and_ablate,
            "questions about country X answered for Y: feature of Y clamped, of X ablated",
        ),
        ("  by clamping alone", &card.clamp_alone, "feature of Y clamped, X left as it is"),
    ] {
        row(name, vec![share(turns.turn_rate(), None), format!("{} of {}", turns.turned, turns.tried)], what);
    }
    ui.out(table)?;
    carried(card, ui)
}

/// Where the country of a question stands, layer by layer.
fn carried(card: &ScoreCard, ui: &Ui) -> Result<()> {
    let Carried { layers, pairs } = &card.carried;
    // The sum turns −0 into 0.
    let percent = |share: f64| format!("{:.0} %", (share * 100.0).round() + 0.0);
    let mut table = Table::new(&["what enters", ">at the country", ">at the last word", ">most anywhere else"]);
    for (layer, shares) in layers.iter().enumerate() {
        table.row(vec![
            format!("layer {layer}"),
            percent(shares.country),
            percent(shares.last),
            percent(shares.elsewhere),
        ]);
    }
    ui.out(paint(BOLD, "Where “The capital of France is” keeps its country"))?;
    ui.out(table)?;
    ui.out(paint(
        DIM,
        format!(
            "share of the answer that comes along when one position is patched in from another question; {pairs} pairs"
        ),
    ))
}

/// A percentage, coloured by whether it reaches its goal.
fn share(value: f64, goal: Option<f64>) -> String {
    let text = format!("{:.1} %", value * 100.0);
    match goal {
        Some(goal) if value >= goal => paint(GREEN, text),
        Some(_) => paint(RED, text),
        None => text,
    }
}
