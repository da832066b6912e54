//! `mechinterp graph intervene`

use std::path::PathBuf;

use serde::Serialize;

use crate::analysis::graph::{Answers, FeatureChange, FrozenRun, Graph, Hold, NodeKind};
use crate::base::{Error, Result};
use crate::cli::expect::ForceArgs;
use crate::cli::open::{self, Opened};
use crate::cli::prompts::ReadingArgs;
use crate::cli::render::{BOLD, DIM, GREEN, RED, Table, Ui, columns, paint, quoted, side_by_side};
use crate::cli::{Common, Outcome, places};
use crate::interop::neuronpedia::graph as graph_file;
use crate::model::HookPlan;
use crate::model::generate::{GenerateSettings, generate};

use super::changes::{Named, Operation, OperationArgs};

pub(super) const NAME: &str = "intervene";
pub(super) const ABOUT: &str =
    "Set, scale or ablate transcoder features in a prompt's run, and see what becomes of the answer";

/// Features of the graph that are listed with their change.
const FOLLOWERS: usize = 8;

/// Arguments of `graph intervene`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(in crate::cli) struct Args {
    /// Hugging Face directory, hub id, `.gguf` file, or `demo`.
    #[arg(long, value_name = "MODEL")]
    model: String,
    /// The transcoder set: a directory, or a set on the hub.
    #[arg(long, value_name = "SET")]
    transcoders: String,
    /// The prompt; that of --graph where absent.
    #[arg(long, value_name = "TEXT", required_unless_present = "graph")]
    prompt: Option<String>,
    /// Feature to change: layer, number, and the position in the prompt as a number, a range or a token's text. `@7+` is
    /// position 7 and all after it, generated ones included; without a position it is changed at all of them. `:V` gives
    /// it a value of its own. Repeat the flag for several.
    #[arg(long, value_name = "L/F[@P][:V]", required_unless_present = "node")]
    feature: Vec<Named>,
    /// Graph whose prompt, targets and nodes are meant, a file that `graph` wrote.
    #[arg(long, value_name = "FILE.json")]
    graph: Option<PathBuf>,
    /// Feature node of the graph to change, by its id, as in `5_1203_7`; `:V` as above. Repeatable.
    #[arg(long, value_name = "ID[:V]", requires = "graph")]
    node: Vec<String>,
    #[command(flatten)]
    operation: OperationArgs,
    /// Let attention follow, too: nothing is held. Otherwise attention patterns stay as they were without the change.
    #[arg(long, conflicts_with = "frozen_all")]
    open_ended: bool,
    /// Hold attention, norms and MLPs: direct effects alone, which is what the edges of a graph are.
    #[arg(long)]
    frozen_all: bool,
    /// Answer to follow, one token, in addition to the likeliest ones; repeatable. A space before it belongs to it.
    #[arg(long, value_name = "TEXT")]
    target: Vec<String>,
    /// Likeliest tokens to list, before and after.
    #[arg(long, value_name = "N", default_value_t = 5)]
    top: usize,
    /// Also write on for this many tokens, without the change and with it, taking the likeliest token each time.
    #[arg(long, value_name = "N", default_value_t = 0, conflicts_with = "frozen_all")]
    max_new_tokens: usize,
    /// Positions from the start at which features count as absent, as when the graph was made.
    #[arg(long, value_name = "N")]
    zero_positions: Option<usize>,
    #[command(flatten)]
    reading: ReadingArgs,
    #[command(flatten)]
    force: ForceArgs,
}

const EXAMPLES: &str = "\
Examples:
  mechinterp graph intervene --model M --transcoders set/ --prompt \"The opposite of small is\" \\
      --feature 12/301@small --ablate
  … --feature 12/301@-1:0 --feature 12/77@-1:8       one feature out, another one in
  … --graph graph.json --node 12_301_4 --scale -2 --open-ended --max-new-tokens 10";

/// What was done and what came of it.
#[derive(Debug, Serialize)]
struct Report {
    model: String,
    scan: String,
    prompt: String,
    tokens: Vec<u32>,
    /// What stays as it was.
    held: &'static str,
    changes: Vec<Changed>,
    /// Tokens, the likeliest before first.
    answers: Vec<Answer>,
    /// Whether another token is the likeliest one now.
    turned: bool,
    /// Features of the graph that changed most.
    followers: Vec<Follower>,
    continuation: Option<Continuation>,
}

#[derive(Debug, Serialize)]
struct Changed {
    what: String,
    layer: usize,
    feature: u32,
    /// Position and activation in the unchanged run, at the positions of the prompt that are changed.
    activations: Vec<(usize, f32)>,
}

#[derive(Debug, Serialize)]
struct Answer {
    token: u32,
    text: String,
    /// Whether it was asked for, or is a target of the graph.
    target: bool,
    probability: (f32, f32),
    logit: (f32, f32),
}

#[derive(Debug, Serialize)]
struct Follower {
    id: String,
    label: Option<String>,
    activation: (f32, f32),
}

#[derive(Debug, Serialize)]
struct Continuation {
    before: String,
    after: String,
}

pub(super) fn run(args: &Args, common: &Common, ui: &Ui) -> Result<Outcome> {
    let operation = Operation::of(&args.operation)?;
    let graph = args.graph.as_deref().map(graph_file::read).transpose()?.map(|file| file.graph);
    let set = open::transcoders(&args.transcoders, &args.model, args.force, ui)?;
    let files = open::locate(&args.model, ui)?;
    set.check_model(&open::config(&files)?)?;
    let opened = open::open_files(&files, args.reading.dtype, common.device)?;
    let (prompt, tokens) = args.prompt(&opened, graph.as_ref())?;
    let changes = args.changes(operation, &opened, graph.as_ref(), &tokens)?;
    let zero_positions = args.zero_positions.or(graph.as_ref().map(|graph| graph.source.settings.zero_positions));
    let run = FrozenRun::new(&opened.model, &set, &tokens, zero_positions.unwrap_or(1))?;
    let report = args.report(&opened, &run, &changes, graph.as_ref(), prompt, ui)?;
    if ui.json() {
        ui.out_json(&report)?
    } else {
        report.print(&opened, &tokens, ui)?
    }
    Ok(Outcome::Done)
}

impl Args {
    fn hold(&self, opened: &Opened) -> (Hold, &'static str) {
        match (self.open_ended, self.frozen_all) {
            (true, _) => (Hold::Nothing, "nothing"),
            (_, true) => (Hold::everything(opened.model.config()), "attention, norms and MLPs: direct effects alone"),
            _ => (Hold::Patterns, "attention patterns"),
        }
    }

    fn prompt(&self, opened: &Opened, graph: Option<&Graph>) -> Result<(String, Vec<u32>)> {
        match (&self.prompt, graph) {
            (None, Some(graph)) => Ok((graph.source.prompt.clone(), graph.tokens.clone())),
            (prompt, _) => {
                let text = prompt.clone().unwrap_or_default();
                let tokens = open::encode_prompt(opened, &text, self.reading.bos())?;
                Ok((text, tokens))
            }
        }
    }

    fn changes(
        &self,
        operation: Operation,
        opened: &Opened,
        graph: Option<&Graph>,
        tokens: &[u32],
    ) -> Result<Vec<FeatureChange>> {
        let mut changes = Vec::new();
        for named in &self.feature {
            let positions = named.positions(tokens, &opened.tokenizer)?;
            let op = operation.with("--feature", &named.text, named.value)?;
            changes.push(FeatureChange { layer: named.layer, feature: named.feature, positions, op });
        }
        for text in &self.node {
            let (id, value) = super::changes::valued(text);
            let op = operation.with("--node", text, value)?;
            let change = graph.and_then(|graph| graph.change(graph.find(id)?, op));
            changes.push(change.ok_or_else(|| {
                let remedy = "name a feature of the graph, as in 5_1203_7 for feature 1203 of layer 5 at position 7";
                Error::flag("--node", "the id of a feature node in the graph", format!("'{id}'"), remedy)
            })?);
        }
        Ok(changes)
    }

    fn report(
        &self,
        opened: &Opened,
        run: &FrozenRun<'_>,
        changes: &[FeatureChange],
        graph: Option<&Graph>,
        prompt: String,
        ui: &Ui,
    ) -> Result<Report> {
        let (hold, held) = self.hold(opened);
        let changed = run.intervene(changes, &hold)?;
        let answers = run.answers_of(&changed)?;
        let mut targets = Vec::new();
        for text in &self.target {
            targets.push(places::answer_token(&opened.tokenizer, "--target", text, &run.tokens, ui)?);
        }
        for node in graph.map(|graph| graph.nodes.as_slice()).unwrap_or_default() {
            if let NodeKind::Target { token, against, .. } = node.kind {
                targets.extend([Some(token), against].into_iter().flatten());
            }
        }
        let followers = match graph {
            Some(graph) => followers(run, graph, changes, &|layer, features| changed.activations(layer, features))?,
            None => Vec::new(),
        };
        let continuation = (self.max_new_tokens > 0).then(|| self.continuation(opened, run, changes, &hold));
        Ok(Report {
            model: self.model.clone(),
            scan: run.set.config().scan.clone(),
            prompt,
            tokens: run.tokens.clone(),
            held,
            changes: changes.iter().map(|change| described(run, change)).collect(),
            answers: listed(opened, run, &answers, &changed.logits()?, &targets, self.top)?,
            turned: answers.turned(),
            followers,
            continuation: continuation.transpose()?,
        })
    }

    fn continuation(
        &self,
        opened: &Opened,
        run: &FrozenRun<'_>,
        changes: &[FeatureChange],
        hold: &Hold,
    ) -> Result<Continuation> {
        let settings = GenerateSettings {
            max_new_tokens: self.max_new_tokens,
            temperature: 0.0,
            top_p: None,
            seed: 0,
            stop_tokens: opened.model.config().eos_token_ids.clone(),
        };
        let text = |plan: &HookPlan| -> Result<String> {
            let tokens = generate(&opened.model, &run.tokens, plan, &settings, |_| Ok(()))?;
            opened.tokenizer.decode(&tokens)
        };
        Ok(Continuation { before: text(&HookPlan::new())?, after: text(&run.plan(changes, hold)?)? })
    }
}

fn described(run: &FrozenRun<'_>, change: &FeatureChange) -> Changed {
    let touched = (0..run.positions()).filter(|&position| change.positions.contain(position));
    let activations = touched.map(|position| (position, run.activation(change.layer, position, change.feature)));
    Changed {
        what: change.to_string(),
        layer: change.layer,
        feature: change.feature,
        activations: activations.collect(),
    }
}

fn listed(
    opened: &Opened,
    run: &FrozenRun<'_>,
    answers: &Answers,
    changed: &[f32],
    targets: &[u32],
    top: usize,
) -> Result<Vec<Answer>> {
    let vocabulary = answers.before.len();
    let last = (run.positions() - 1) * vocabulary;
    let clean = run.clean.logits()?.flatten_all()?.to_vec1::<f32>()?;
    let at = |logits: &[f32], token: u32| logits.get(last + token as usize).copied().unwrap_or_default();
    let mut tokens: Vec<u32> = targets.to_vec();
    tokens.extend(answers.top(top).into_iter().map(|change| change.token));
    tokens.sort_by(|a, b| answers.of(*b).before.total_cmp(&answers.of(*a).before).then(a.cmp(b)));
    tokens.dedup();
    let answer = |token: u32| {
        let of = answers.of(token);
        Answer {
            token,
            text: opened.tokenizer.piece(token),
            target: targets.contains(&token),
            probability: (of.before, of.after),
            logit: (at(&clean, token), at(changed, token)),
        }
    };
    Ok(tokens.into_iter().map(answer).collect())
}

/// The features of the graph whose activation changed most, those that were changed by hand left out.
fn followers(
    run: &FrozenRun<'_>,
    graph: &Graph,
    changes: &[FeatureChange],
    after: &dyn Fn(usize, &[u32]) -> Result<Vec<f32>>,
) -> Result<Vec<Follower>> {
    let mut found = Vec::new();
    for node in &graph.nodes {
        let NodeKind::Feature { layer, feature, ref label, .. } = node.kind else { continue };
        let own = |c: &FeatureChange| (c.layer, c.feature) == (layer, feature) && c.positions.contain(node.position);
        if changes.iter().any(own) {
            continue;
        }
        let now = after(layer, &[feature])?.get(node.position).copied().unwrap_or_default();
        let before = run.activation(layer, node.position, feature);
        if (now - before).abs() > 1e-3 * before.abs() {
            found.push(Follower { id: node.id(graph.n_layers), label: label.clone(), activation: (before, now) });
        }
    }
    let size = |follower: &Follower| (follower.activation.1 - follower.activation.0).abs();
    found.sort_by(|a, b| size(b).total_cmp(&size(a)));
    found.truncate(FOLLOWERS);
    Ok(found)
}

impl Report {
    fn print(&self, opened: &Opened, tokens: &[u32], ui: &Ui) -> Result<()> {
        ui.out(format!("{} {}", paint(DIM, "prompt"), places::numbered(tokens, &opened.tokenizer)))?;
        for change in &self.changes {
            let now: Vec<String> = change.activations.iter().take(6).map(|(at, a)| format!("{a:.2} at {at}")).collect();
            let more = if change.activations.len() > 6 { ", …" } else { "" };
            let was = paint(DIM, format!("(it is {}{more})", now.join(", ")));
            ui.out(format!("{} {} {was}", paint(DIM, "change"), change.what))?;
        }
        ui.out(format!("{} {}", paint(DIM, "held  "), self.held))?;
        ui.out("")?;
        let mut table = Table::new(&["next token", ">before", ">after", ">logit before", ">after", ""]);
        for answer in &self.answers {
            let Answer { text, probability, logit, target, .. } = answer;
            let rise = probability.1 - probability.0;
            let arrow = match rise {
                r if r > 5e-5 => paint(GREEN, "▲"),
                r if r < -5e-5 => paint(RED, "▼"),
                _ => String::new(),
            };
            table.row(vec![
                if *target { paint(BOLD, quoted(text)) } else { quoted(text) },
                format!("{:.2} %", probability.0 * 100.0),
                format!("{:.2} %", probability.1 * 100.0),
                format!("{:.2}", logit.0),
                format!("{:.2}", logit.1),
                arrow,
            ]);
        }
        ui.out(table)?;
        self.print_followers(ui)?;
        if let Some(Continuation { before, after }) = &self.continuation {
            ui.out("")?;
            ui.out(side_by_side(("without", before), ("with the change", after), columns()))?;
        }
        Ok(())
    }

    fn print_followers(&self, ui: &Ui) -> Result<()> {
        if self.followers.is_empty() {
            return Ok(());
        }
        ui.out("")?;
        let mut table = Table::new(&["what followed in the graph", ">before", ">after", "label"]);
        for Follower { id, label, activation } in &self.followers {
            let label = label.clone().unwrap_or_default();
            table.row(vec![id.clone(), format!("{:.3}", activation.0), format!("{:.3}", activation.1), label]);
        }
        ui.out(table)
    }
}
