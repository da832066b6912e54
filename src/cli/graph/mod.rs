//! `mechinterp graph`

mod args;
mod changed;
mod changes;
mod intervene;
mod pictures;
mod saes;
mod show;
mod summary;

use std::path::Path;
use std::time::SystemTime;

use crate::analysis::graph::{About, Graph, LayerIndexes, Traced, VerifySettings, check_prompt, trace, verify};
use crate::base::{DtypeChoice, Error, Result};
use crate::data::tokenizer::{BosPolicy, Tokenizer};
use crate::interop::neuronpedia::graph::{GraphState, Publication, write, write_features};

use super::open::{self, Opened};
use super::own_or::OwnOr;
use super::prompts::{Prompt, PromptArgs};
use super::render::Ui;
use super::steer::template;
use super::{Common, Outcome};

use self::args::TraceArgs;

/// How far rows may be from their sums, relative to their largest term, where all numbers are f32.
const ROW_ERROR: f64 = 1e-3;
/// The same with weights or activations of fewer bits.
const COARSE_ROW_ERROR: f64 = 0.1;
/// How prompts of Gemma 3's chat models begin: a fixed turn.
const GEMMA_3_TURN: [u32; 4] = [2, 105, 2364, 107];

/// Arguments of `graph`: those of tracing, or a subcommand with its own.
pub(super) type Args = OwnOr<TraceArgs, Action>;

/// What else there is to do with graphs.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Action {
    #[command(about = intervene::ABOUT)]
    Intervene(Box<intervene::Args>),
    #[command(about = show::ABOUT)]
    Show(show::Args),
}

pub(super) fn run(args: Args, common: &Common, ui: &Ui) -> Result<Outcome> {
    match args {
        OwnOr::Own(args) => run_trace(*args, common, ui),
        OwnOr::Action(Action::Intervene(args)) => intervene::run(&args, common, ui),
        OwnOr::Action(Action::Show(args)) => show::run(&args, ui),
    }
}

fn run_trace(args: TraceArgs, common: &Common, ui: &Ui) -> Result<Outcome> {
    args.output.check()?;
    args.size.settings(&args.targets, args.sae.len(), false).check()?;
    let given = PromptArgs::of_one(args.prompt.clone(), args.tokens.clone()).read()?;
    let indexes = LayerIndexes::open(&args.labels)?;
    let files = open::locate(&args.model, ui)?;
    // What can be wrong without the weights is found before they are read.
    let config = open::config(&files)?;
    let template = template(&args.chat, &files)?;
    let set = args.transcoders.as_deref().map(|set| open::transcoders(set, &args.model, args.force, ui)).transpose()?;
    set.as_ref().map_or(Ok(()), |set| set.check_model(&config))?;
    let tokenizer = open::tokenizer(&files, &config)?;
    let texts = given.texts();
    let (given, bos) = match &template {
        Some(template) => (given.rendered(|text| template.render(text))?, BosPolicy::Never),
        None => (given, args.reading.bos()),
    };
    let dictionaries = if args.sae.is_empty() { None } else { Some(saes::open(&args, bos, &config, ui)?) };
    let prompts = given.encode(&tokenizer, bos, &config)?;
    let Some(Prompt { tokens, .. }) = prompts.into_iter().next() else {
        return Err(Error::flag("--prompt", "one prompt", "none", "write some text"));
    };
    let settings = args.size.settings(&args.targets, args.sae.len(), tokens.starts_with(&GEMMA_3_TURN));
    check_prompt(&config, tokens.len(), settings.batch_size)?;
    let choice = args.targets.choice(&tokenizer, &tokens, ui)?;
    if settings.zero_positions > 0 && !starts_with_special(&tokenizer, &tokens) {
        ui.progress().warn("the prompt does not begin with a special token; features of its first token are left out");
    }
    let opened = open::open_files(&files, args.reading.dtype, common.device)?;
    let prompt = match texts.into_iter().next().flatten() {
        Some(text) => text,
        None => tokenizer.decode(&tokens)?,
    };
    let about = About { prompt, model: args.model.clone(), text: &|token| tokenizer.piece(token) };
    let Some(set) = set else {
        let graph = match &dictionaries {
            Some(dictionaries) => saes::graph(&args, dictionaries, &opened, &tokens, &choice, &settings, &about, ui)?,
            None => return Err(Error::flag("--transcoders", "a transcoder set", "none", "name one, or several --sae")),
        };
        return finish(&args, graph, &indexes, &opened, ui);
    };
    let traced = trace(&opened.model, &set, &tokens, &choice, &settings, &about, ui.progress())?;
    let Traced { mut graph, attribution, context } = traced;
    drop(context);
    let mut verified = Ok(());
    if args.check.verify {
        let settings = VerifySettings { nodes: args.check.verify_nodes, ..VerifySettings::default() };
        verified = verify(&opened.model, &set, &mut graph, Some(&attribution), settings, ui.progress());
    }
    // What is traced is worth keeping without the check, too.
    let interrupted = matches!(verified, Err(Error::Interrupted { .. }));
    if !interrupted {
        verified?;
        return finish(&args, graph, &indexes, &opened, ui);
    }
    finish(&args, graph, &indexes, &opened, ui)?;
    Err(Error::Interrupted {
        kept: "the graph is whole, but not verified".into(),
        resume: "run the same command again".into(),
    })
}

/// Whether the first token is one that stands in no text.
fn starts_with_special(tokenizer: &Tokenizer, tokens: &[u32]) -> bool {
    tokens.first().is_some_and(|&first| tokenizer.special_ids().contains(&first))
}

/// Names, writes and prints the graph.
fn finish(args: &TraceArgs, mut graph: Graph, indexes: &LayerIndexes, opened: &Opened, ui: &Ui) -> Result<Outcome> {
    indexes.name(&mut graph)?;
    let created_ms = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok().map(|t| t.as_millis() as u64);
    let (state, out) = (GraphState::default(), args.output.out.as_deref());
    let named = out.or(args.output.pictures.html()).and_then(|file| file.file_stem());
    let slug = named.map_or("graph".into(), |stem| stem.to_string_lossy());
    let publication = Publication { graph: &graph, state: &state, slug: &slug, scan: None, created_ms };
    if let Some(file) = out {
        write(file, &publication)?;
        ui.say(format!("wrote {}", file.display()));
    }
    args.output.pictures.write(&publication, indexes, ui)?;
    if let (Some(file), false) = (out, indexes.is_empty()) {
        let dir = file.parent().unwrap_or(Path::new("."));
        if let Some(scan) = write_features(dir, &graph, indexes, ui.progress()).map_err(|error| without(error, file))? {
            write(file, &Publication { scan: Some(&scan), ..publication })?;
        }
    }
    if ui.json() {
        ui.out_json(&graph)?;
    } else {
        summary::summary(&graph, ui)?;
    }
    Ok(checked(&graph, args, opened, ui))
}

/// Stopped when only the examples of a graph's features were missing.
fn without(error: Error, file: &Path) -> Error {
    match error {
        Error::Interrupted { .. } => Error::Interrupted {
            kept: format!("{} is whole, but its features' examples are not all beside it", file.display()),
            resume: "run the same command again".into(),
        },
        other => other,
    }
}

/// Whether rows sum to what they explain.
fn checked(graph: &Graph, args: &TraceArgs, opened: &Opened, ui: &Ui) -> Outcome {
    if graph.edges.iter().any(|edge| !edge.weight.is_finite()) {
        ui.progress().warn("some edges are no finite numbers: do not trust this graph");
        return Outcome::No;
    }
    let exact = args.reading.dtype == DtypeChoice::F32 && opened.model.device().is_cpu();
    if !args.sae.is_empty() {
        return saes::checked(graph, args.steps, ui);
    }
    let limit = if exact { ROW_ERROR } else { COARSE_ROW_ERROR };
    let worst = graph.report.largest_row_error;
    if worst <= limit {
        return Outcome::Done;
    }
    ui.progress().warn(&format!(
        "the inputs of a node do not sum to its value: off by {worst:.1e} of the largest, more than {limit:.0e}; do not trust this graph"
    ));
    Outcome::No
}
