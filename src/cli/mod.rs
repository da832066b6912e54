//! The command line: one file a command, each from arguments to settings to one library call to rendering.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::base::{DeviceChoice, Error, Result};

mod architecture;
mod cache;
mod convert;
mod demo;
mod eval;
mod eval_table;
mod expect;
mod feature_page;
mod features;
mod filter;
mod graph;
mod heads;
mod heatmap;
mod info;
mod lens;
mod method;
mod model_name;
mod open;
mod own_or;
mod patch;
mod places;
mod probe;
mod probe_table;
mod progress;
mod prompts;
mod render;
mod replacement;
mod report;
mod run;
mod set_facts;
mod steer;
mod train_sae;
mod train_transcoders;

pub use render::Ui;

/// Look inside language models.
///
/// Cache what flows through a model, train sparse dictionaries on it, read what every feature means, and clamp
/// features while the model writes. MODEL is a Hugging Face directory, a hub id (`org/name`, `org/name@revision`,
/// `org/name:file.gguf`), a `.gguf` file of llama.cpp or Ollama, or `demo`, the model built into this program.
#[derive(Debug, Parser)]
#[command(name = "mechinterp", version, max_term_width = 110, propagate_version = true)]
pub struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

/// Flags that every command takes.
#[derive(Debug, Clone, Args)]
pub struct Common {
    /// Where to compute: auto, cpu, cuda, cuda:N or metal. An explicit choice never falls back.
    #[arg(long, global = true, default_value_t, value_name = "DEVICE")]
    device: DeviceChoice,
    /// CPU threads; all cores when absent.
    #[arg(long, global = true, value_name = "N")]
    threads: Option<usize>,
    /// Results as JSON on stdout.
    #[arg(long, global = true)]
    json: bool,
    /// More detail on stderr; twice for even more.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    /// No progress bars and no warnings.
    #[arg(short, long, global = true)]
    quiet: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The whole pipeline on the built-in model, offline, in under a minute.
    Demo(demo::Args),
    /// Architecture, size, and every hook point with its shape.
    Info(info::Args),
    /// Next-token table for prompts; any hook points to a safetensors file.
    Run(run::Args),
    /// Run text through a model and keep activations on disk.
    Cache(cache::Args),
    /// Train a sparse autoencoder, or several at once, on cached activations or a running model's.
    TrainSae(Box<train_sae::Args>),
    /// Train transcoders of all layers of a model in one pass, or a cross-layer transcoder.
    TrainTranscoders(Box<train_transcoders::Args>),
    /// A page about a trained dictionary, or several compared: curves, densities, norms, settings.
    Report(report::Args),
    /// How good a dictionary is: reconstruction, sparsity, loss recovered, dead features.
    Eval(eval::Args),
    /// Rewrite a dictionary in another tool's format.
    Convert(convert::Args),
    /// What each feature fires on and what it writes.
    Features(Box<features::Args>),
    /// What every layer would say: logit lens, and which parts make a token's logit.
    Lens(Box<lens::Args>),
    /// Which layers, positions, heads and features carry an answer: activation and path patching, ablation, knock-out.
    Patch(Box<patch::Args>),
    /// Induction, previous-token and duplicate-token scores of all attention heads.
    Heads(heads::Args),
    /// Generate text with features or vectors clamped, added, scaled, capped or removed; compare strengths.
    Steer(steer::Args),
    /// Why the model said that: an attribution graph through the features of transcoders.
    Graph(graph::Args),
    /// Linear probes: in which layers a label of texts can be read off, and the direction that does it.
    Probe(Box<probe::Args>),
}

/// How a command ended when it did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It did what was asked.
    Done,
    /// It did what was asked, and the answer is "no".
    No,
}

/// Parses `args` and runs the command. Exit codes: 0 done, 1 the answer is "no", 2 error.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match parse(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version arrive here as well; clap knows which stream each belongs to.
            let printed = match error.print() {
                Err(e) => e.kind() == std::io::ErrorKind::BrokenPipe,
                Ok(()) => true,
            };
            return if printed && !error.use_stderr() { ExitCode::SUCCESS } else { ExitCode::from(2) };
        }
    };
    let ui = Ui::new(cli.common.json, cli.common.quiet, cli.common.verbose);
    match prepare(&cli.common).and_then(|()| dispatch(cli.command, &cli.common, &ui)) {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::No) => ExitCode::from(1),
        Err(error) if render::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            ui.error(&error);
            ExitCode::from(2)
        }
    }
}

/// As `Cli::try_parse_from`, with `-1` taken as a value of the flag before it, so that the error names that flag.
fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let numbers = |arg: clap::Arg| if arg.get_action().takes_values() { arg.allow_negative_numbers(true) } else { arg };
    let mut command = Cli::command().mut_args(numbers).mut_subcommands(|command| command.mut_args(numbers));
    let mut matches = command.try_get_matches_from_mut(args)?;
    Cli::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut command))
}

fn dispatch(command: Command, common: &Common, ui: &Ui) -> Result<Outcome> {
    match command {
        Command::Demo(args) => demo::run(args, common, ui),
        Command::Info(args) => info::run(args, ui),
        Command::Run(args) => run::run(args, common, ui),
        Command::Cache(args) => cache::run(args, common, ui),
        Command::TrainSae(args) => train_sae::run(&args, common, ui),
        Command::TrainTranscoders(args) => train_transcoders::run(&args, common, ui),
        Command::Report(args) => report::run(args, ui),
        Command::Eval(args) => eval::run(args, common, ui),
        Command::Convert(args) => convert::run(args, ui),
        Command::Features(args) => features::run(*args, common, ui),
        Command::Lens(args) => lens::run(*args, common, ui),
        Command::Patch(args) => patch::run(&args, common, ui),
        Command::Heads(args) => heads::run(args, common, ui),
        Command::Graph(args) => graph::run(args, common, ui),
        Command::Probe(args) => probe::run(*args, common, ui),
        Command::Steer(args) => steer::run(args, common, ui),
    }
}

/// The command line of this process.
fn arguments() -> impl Iterator<Item = String> {
    std::env::args_os().map(|argument| argument.to_string_lossy().into_owned())
}

/// Process-wide settings, made once before any work.
fn prepare(common: &Common) -> Result<()> {
    if common.threads == Some(0) {
        return Err(Error::flag("--threads", "1 or more", 0, "leave the flag out to use all cores"));
    }
    if let Some(threads) = common.threads {
        // Fails only when a pool exists already, which no code before this point makes.
        drop(rayon::ThreadPoolBuilder::new().num_threads(threads).build_global());
    }
    let level = match common.verbose {
        0 => "warn",
        1 => "mechinterp=info,warn",
        _ => "mechinterp=debug,info",
    };
    let filter = tracing_subscriber::EnvFilter::new(if common.quiet { "error" } else { level });
    drop(tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init());
    Ok(())
}
