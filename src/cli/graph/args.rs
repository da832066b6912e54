//! The flags of `graph`, as typed.

use std::path::PathBuf;

use crate::analysis::graph::{GraphSettings, TargetChoice};
use crate::base::{Error, Result};
use crate::cli::expect::ForceArgs;
use crate::cli::prompts::{ReadingArgs, TokenList};
use crate::cli::render::Ui;
use crate::cli::steer::ChatArgs;
use crate::cli::{open, places};
use crate::data::tokenizer::Tokenizer;
use crate::interop::neuronpedia::graph::METADATA_FILE;

use super::pictures::PictureArgs;

/// Features of each dictionary that are traced where no number is given: each costs a pass through the model.
const FEATURES_A_DICTIONARY: usize = 48;

/// Arguments of `graph` without a subcommand.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(in crate::cli) struct TraceArgs {
    /// Hugging Face directory, hub id, `.gguf` file, or `demo`.
    #[arg(long, value_name = "MODEL")]
    pub(super) model: String,
    /// The transcoder set: a directory, or a set on the hub. It has a transcoder for every layer of the model.
    #[arg(long, value_name = "SET", required_unless_present = "sae", conflicts_with = "sae")]
    pub(super) transcoders: Option<String>,
    /// Autoencoders of the residual stream in place of transcoders, at two layers or more: features that act on those of
    /// the next dictionary, by integrated gradients.
    #[arg(long, value_name = "DIR", num_args = 1..)]
    pub(super) sae: Vec<PathBuf>,
    /// Steps of integration between two dictionaries: more are exacter and slower.
    #[arg(long, value_name = "N", default_value_t = 10, requires = "sae")]
    pub(super) steps: usize,
    /// The text whose next token is explained.
    #[arg(long, value_name = "TEXT", required_unless_present = "tokens")]
    pub(super) prompt: Option<String>,
    /// Token ids in place of a text, as in 1,2,3.
    #[arg(long, value_name = "IDS", conflicts_with = "prompt")]
    pub(super) tokens: Option<TokenList>,
    /// Index of a layer's features, for their names and examples, or a directory of such; repeatable.
    #[arg(long, value_name = "DIR", num_args = 1..)]
    pub(super) labels: Vec<PathBuf>,
    #[command(flatten)]
    pub(super) reading: ReadingArgs,
    #[command(flatten)]
    pub(super) force: ForceArgs,
    #[command(flatten)]
    pub(super) targets: TargetArgs,
    #[command(flatten)]
    pub(super) size: SizeArgs,
    #[command(flatten)]
    pub(super) check: CheckArgs,
    #[command(flatten)]
    pub(super) chat: ChatArgs,
    #[command(flatten)]
    pub(super) output: OutputArgs,
}

/// What is explained.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "What to explain")]
pub(super) struct TargetArgs {
    /// A next token to explain in place of the likeliest ones; repeatable. A space before it belongs to it: " Paris".
    #[arg(long, value_name = "TEXT")]
    target: Vec<String>,
    /// Explain by how much the logit of --target is above that of this token.
    #[arg(long, value_name = "TEXT", requires = "target")]
    against: Option<String>,
    /// Likeliest tokens to explain, at most.
    #[arg(long, value_name = "N", default_value_t = GraphSettings::default().max_n_logits, conflicts_with = "target")]
    max_logits: usize,
    /// Explain the likeliest tokens until their probabilities sum to this.
    #[arg(long, value_name = "P", default_value_t = GraphSettings::default().desired_logit_prob, conflicts_with = "target")]
    logit_prob: f64,
}

/// How much of the graph is computed, and how much of it is kept.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Size of the graph")]
pub(super) struct SizeArgs {
    /// Features whose inputs are traced, those of most influence: 7500, and with --sae 48 a dictionary.
    #[arg(long, value_name = "N")]
    max_feature_nodes: Option<usize>,
    /// Nodes are kept, the most influential first, until they have this share of all influence.
    #[arg(long, value_name = "SHARE", default_value_t = GraphSettings::default().node_threshold)]
    node_threshold: f64,
    /// Edges are kept, the strongest first, until they carry this share of the influence between kept nodes.
    #[arg(long, value_name = "SHARE", default_value_t = GraphSettings::default().edge_threshold)]
    edge_threshold: f64,
    /// Nodes traced in one sweep: more are faster and take more memory.
    #[arg(long, value_name = "N", default_value_t = GraphSettings::default().batch_size)]
    batch_size: usize,
    /// Positions from the start whose features are left out, since models rest their attention there: 1, and 4 in Gemma
    /// 3's chat models, whose prompts all begin alike.
    #[arg(long, value_name = "N")]
    zero_positions: Option<usize>,
}

/// What is checked.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Checks")]
pub(super) struct CheckArgs {
    /// Take the most influential nodes away, one by one, and compare what happens with what the graph predicts.
    #[arg(long)]
    pub(super) verify: bool,
    /// Nodes to take away.
    #[arg(long, value_name = "N", default_value_t = 32, requires = "verify")]
    pub(super) verify_nodes: usize,
}

/// What is written.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Files")]
pub(super) struct OutputArgs {
    /// The graph as JSON, as circuit-tracer and Neuronpedia read it, and its features' examples beside it with --labels.
    #[arg(long, value_name = "FILE.json")]
    pub(super) out: Option<PathBuf>,
    #[command(flatten)]
    pub(super) pictures: PictureArgs,
}

const EXAMPLES: &str = "\
Examples:
  mechinterp graph --model M --transcoders set/ --prompt \"The capital of France is\"
  … --target \" Paris\" --against \" Rome\" --verify       why this one and not that one, checked by experiment
  … --labels indexes/ --out graphs/capital.json          features by name; a file for other programs
  … --html capital.html                                  a page to look around in, offline
  mechinterp graph show graphs/capital.json              the same again, with names and groups made on the page";

impl OutputArgs {
    /// Checks that all files can be written, each for itself.
    ///
    /// # Errors
    /// `Flag` for two files of one name, or that of the list of graphs beside them; `Io`.
    pub(super) fn check(&self) -> Result<()> {
        self.out.iter().try_for_each(|file| open::check_writable(file))?;
        if let Some(file) = self.out.as_ref().filter(|file| file.ends_with(METADATA_FILE)) {
            let remedy = "give the graph a name of its own: that is the list of all graphs in a directory";
            return Err(Error::flag("--out", format!("a name other than {METADATA_FILE}"), file.display(), remedy));
        }
        self.pictures.check(self.out.as_deref())
    }
}

impl SizeArgs {
    /// The settings of attribution and pruning through so many `dictionaries`, if any; `is_gemma_chat` for prompts that
    /// begin as Gemma 3's chats do.
    pub(super) fn settings(&self, targets: &TargetArgs, dictionaries: usize, is_gemma_chat: bool) -> GraphSettings {
        let most = match dictionaries {
            0 => GraphSettings::default().max_feature_nodes,
            n => n * FEATURES_A_DICTIONARY,
        };
        GraphSettings {
            max_n_logits: targets.max_logits,
            desired_logit_prob: targets.logit_prob,
            batch_size: self.batch_size,
            max_feature_nodes: self.max_feature_nodes.unwrap_or(most),
            node_threshold: self.node_threshold,
            edge_threshold: self.edge_threshold,
            zero_positions: self.zero_positions.unwrap_or(if is_gemma_chat { 4 } else { 1 }),
        }
    }
}

impl TargetArgs {
    /// # Errors
    /// `Flag` for a text that is not one token, and for several targets against another.
    pub(super) fn choice(&self, tokenizer: &Tokenizer, prompt: &[u32], ui: &Ui) -> Result<TargetChoice> {
        let token = |flag, text: &str| places::answer_token(tokenizer, flag, text, prompt, ui);
        let named = self.target.iter().map(|text| token("--target", text)).collect::<Result<Vec<u32>>>()?;
        match (named.as_slice(), &self.against) {
            ([], _) => Ok(TargetChoice::Likeliest { most: self.max_logits, probability: self.logit_prob }),
            ([one], Some(against)) => Ok(TargetChoice::Contrast(*one, token("--against", against)?)),
            (several, Some(_)) => Err(Error::flag(
                "--against",
                "a single --target to set against it",
                several.len(),
                "name one, or leave out --against",
            )),
            (_, None) => Ok(TargetChoice::Tokens(named)),
        }
    }
}
