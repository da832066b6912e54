//! `mechinterp graph intervene`

use std::path::{Path, PathBuf};

use crate::analysis::graph::{FeatureChange, FrozenRun, Graph, Hold, NodeKind};
use crate::base::{Error, Result};
use crate::cli::expect::ForceArgs;
use crate::cli::open::{self, Opened};
use crate::cli::prompts::{Prompt, PromptArgs, ReadingArgs, TokenList};
use crate::cli::render::Ui;
use crate::cli::{Common, Outcome, places};
use crate::data::tokenizer::BosPolicy;
use crate::dictionary::{SetKind, TranscoderSet};
use crate::interop::neuronpedia::graph as graph_file;
use crate::model::HookPlan;
use crate::model::generate::{GenerateSettings, generate};

use super::changed::{Continuation, Report, described, followers, listed};
use super::changes::{Named, Operation, OperationArgs};

pub(super) const ABOUT: &str =
    "Set, scale or ablate transcoder features in a prompt's run, and see what becomes of the answer";

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
    #[arg(long, value_name = "TEXT", required_unless_present_any = ["graph", "tokens"])]
    prompt: Option<String>,
    /// Token ids in place of a text, as in 1,2,3.
    #[arg(long, value_name = "IDS", conflicts_with = "prompt")]
    tokens: Option<TokenList>,
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

pub(super) fn run(args: &Args, common: &Common, ui: &Ui) -> Result<Outcome> {
    let operation = Operation::of(&args.operation)?;
    let graph = args.graph.as_deref().map(graph_file::read).transpose()?.map(|file| file.graph);
    let set = open::transcoders(&args.transcoders, &args.model, args.force, ui)?;
    let files = open::locate(&args.model, ui)?;
    set.check_model(&open::config(&files)?)?;
    let opened = open::open_files(&files, args.reading.dtype, common.device)?;
    if let Some(graph) = &graph {
        args.check_graph(graph, &set, ui)?;
    }
    let (prompt, tokens) = args.prompt(&opened, graph.as_ref())?;
    let changes = args.changes(operation, &opened, graph.as_ref(), &tokens)?;
    let zero_positions = args.zero_positions.or(graph.as_ref().map(|graph| graph.source.settings.zero_positions));
    let run = FrozenRun::new(&opened.model, &set, &tokens, zero_positions.unwrap_or(1))?;
    let report = args.report(&opened, &run, &changes, graph.as_ref(), prompt, ui)?;
    if ui.json() {
        ui.out_json(&report)?;
    } else {
        report.print(&opened, &tokens, ui)?;
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

    /// Refuses a graph of another model or of other dictionaries: its nodes would be other features.
    fn check_graph(&self, graph: &Graph, set: &TranscoderSet, ui: &Ui) -> Result<()> {
        let file = self.graph.as_deref().unwrap_or(Path::new("")).display();
        let of_set = set.config();
        if graph.n_layers != of_set.n_layers {
            return Err(Error::Mismatch {
                what: "the graph and the transcoder set",
                left: format!("{} layers in {file}", graph.n_layers),
                right: format!("{} layers in {set}", of_set.n_layers),
                remedy: "give the set that the graph was made with".into(),
            });
        }
        let name = |scan: &str| scan.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_owned();
        let other_kind = graph.source.cross_layer != (of_set.kind == SetKind::CrossLayer);
        // Files of other programs name sets in other ways.
        if !graph.source.model.is_empty() && (other_kind || name(&graph.source.scan) != name(&of_set.scan)) {
            let kind = if graph.source.cross_layer { "cross-layer features" } else { "features" };
            let both = (format!("{kind} of {} in {file}", graph.source.scan), set.to_string());
            self.force.allow("the graph and the transcoder set", both, "give the set that it was made with", ui)?;
        }
        if self.prompt.is_none() && self.tokens.is_none() {
            if graph.tokens.is_empty() {
                let remedy = "give the prompt with --prompt, or its ids with --tokens";
                return Err(Error::flag("--graph", "a graph with the ids of its tokens", file, remedy));
            }
            if self.reading.bos() == BosPolicy::Never {
                let remedy = "leave it out: the graph has the tokens of its prompt";
                return Err(Error::flag("--no-bos", "a --prompt beside it", "none", remedy));
            }
        }
        Ok(())
    }

    fn prompt(&self, opened: &Opened, graph: Option<&Graph>) -> Result<(String, Vec<u32>)> {
        let given = PromptArgs::of_one(self.prompt.clone(), self.tokens.clone());
        if let (None, None, Some(graph)) = (&self.prompt, &self.tokens, graph) {
            return Ok((graph.source.prompt.clone(), graph.tokens.clone()));
        }
        let encoded = given.read()?.encode(&opened.tokenizer, self.reading.bos(), opened.model.config())?;
        let prompt = encoded.into_iter().next();
        let Prompt { text, tokens } =
            prompt.ok_or_else(|| Error::flag("--prompt", "one prompt", "none", "write some text"))?;
        let text = text.map_or_else(|| opened.tokenizer.decode(&tokens), Ok)?;
        Ok((text, tokens))
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
            let inside = |change: &FeatureChange| (0..tokens.len()).any(|position| change.positions.contain(position));
            let change = graph.and_then(|graph| graph.change(graph.find(id)?, op)).filter(inside);
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
            Some(graph) => followers(run, graph, changes, &changed)?,
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
