//! The flags of `steer`, as typed.

use std::path::PathBuf;
use std::str::FromStr;

use clap::ValueEnum;

use crate::analysis::{SteerPositions, SteerSettings};
use crate::base::{DtypeChoice, Error, Result};
use crate::cli::expect::ForceArgs;
use crate::cli::prompts::PromptArgs;
use crate::model::generate::GenerateSettings;

/// Arguments of `steer` without a subcommand.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct SteerArgs {
    /// Hugging Face directory, hub id, `.gguf` file, or `demo`.
    #[arg(long, value_name = "MODEL")]
    pub(super) model: String,
    /// Do not put the beginning-of-sequence token before the text; otherwise it is put there if the dictionary was
    /// trained so.
    #[arg(long)]
    pub(super) no_bos: bool,
    /// Number type of weights and activations: f32, f16 or bf16.
    #[arg(long, default_value_t)]
    pub(super) dtype: DtypeChoice,
    #[command(flatten)]
    pub(super) force: ForceArgs,
    #[command(flatten)]
    pub(super) targets: TargetArgs,
    #[command(flatten)]
    pub(super) operation: OperationArgs,
    #[command(flatten, next_help_heading = "Prompts")]
    pub(super) prompts: PromptArgs,
    #[command(flatten)]
    pub(super) chat: ChatArgs,
    #[command(flatten)]
    pub(super) generation: GenerationArgs,
    #[command(flatten)]
    pub(super) output: OutputArgs,
}

/// A feature with its layer and value, where these are given.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct FeatureArg {
    pub(super) layer: Option<usize>,
    pub(super) feature: u32,
    pub(super) value: Option<f32>,
}

/// What to steer along.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "What to steer")]
pub(super) struct TargetArgs {
    /// The dictionary that features belong to.
    #[arg(long, value_name = "DIR", group = "features_of")]
    pub(super) sae: Option<PathBuf>,
    /// The transcoder set that features belong to, a directory or a set on the hub. They are read where their layer's
    /// transcoder reads and written where it writes, from the second position on.
    #[arg(long, value_name = "SET", group = "features_of")]
    pub(super) transcoders: Option<String>,
    /// Feature to change, of a transcoder set with its layer before it; repeat the flag for several. `:V` gives one its
    /// own value, by which it is clamped unless another operation is asked for.
    #[arg(
        long,
        value_name = "[LAYER/]ID[:V]",
        required_unless_present = "vector",
        requires = "features_of",
        value_parser = feature
    )]
    pub(super) feature: Vec<FeatureArg>,
    /// Steering vector to change the state along, a .safetensors or .npy file, as `steer vector` makes; repeatable.
    #[arg(long, value_name = "FILE")]
    pub(super) vector: Vec<PathBuf>,
    /// Hook point of the vectors, where their files name none, or in place of the one they name.
    #[arg(long, value_name = "NAME", requires = "vector")]
    pub(super) hook: Option<String>,
    /// Tensor of the vector file, where it has several.
    #[arg(long, value_name = "NAME", requires = "vector")]
    pub(super) tensor: Option<String>,
    /// Make vectors and decoder rows one unit long before they are added.
    #[arg(long)]
    pub(super) normalize: bool,
    /// Steer generated positions only, and leave the prompt as it is.
    #[arg(long)]
    pub(super) generated_only: bool,
    /// Steer these positions of each prompt only: numbers, ranges, `last`, or the text of tokens, as in 0,4-7 or France.
    #[arg(long, value_name = "POSITIONS", conflicts_with = "generated_only")]
    pub(super) at: Option<String>,
    /// Steer also positions whose norm is above what the dictionary was trained on, such as the attention sink.
    #[arg(long)]
    pub(super) steer_outliers: bool,
}

/// What to do. `f` is a feature's activation, `W` its decoder row, `p` a vector's projection `h · v / ‖v‖`.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "What to do (V may be a list: 0,2,4,8 steers once with each and compares)")]
pub(super) struct OperationArgs {
    /// Set the activation: `h + (V − f) W`, everything else in `h` kept. Of a vector, set the projection.
    #[arg(long, value_name = "V", group = "what", allow_hyphen_values = true)]
    pub(super) clamp: Option<Strengths>,
    /// Add V decoder rows or vectors, whatever is there: `h + V W`. Negative lists as in --add=-4,4.
    #[arg(long, value_name = "V", group = "what", num_args = 0..=1, default_missing_value = "", allow_negative_numbers = true)]
    pub(super) add: Option<Strengths>,
    /// Multiply the activation, or the projection.
    #[arg(long, value_name = "V", group = "what", num_args = 0..=1, default_missing_value = "", allow_negative_numbers = true)]
    pub(super) scale: Option<Strengths>,
    /// Let the activation, or the projection, be at most V.
    #[arg(long, value_name = "V", group = "what", allow_hyphen_values = true)]
    pub(super) cap: Option<Strengths>,
    /// Set the activation, or the projection, to zero.
    #[arg(long, group = "what")]
    pub(super) ablate: bool,
    /// Remove the direction of the decoder row, or of the vector, from the state.
    #[arg(long, group = "what")]
    pub(super) project_out: bool,
    /// Neuronpedia's strength, for --method.
    #[arg(long, value_name = "V", group = "what", allow_hyphen_values = true)]
    pub(super) strength: Option<Strengths>,
    /// One of Neuronpedia's methods, along the raw decoder row or the vector, at every position: simple-additive
    /// `h + c W`, orthogonal-decomp `(I − P) h + c P h`, projection-cap `min(p, c)`, with c the strength times the
    /// multiplier.
    #[arg(long, value_name = "METHOD", conflicts_with_all = ["clamp", "add", "scale", "cap", "ablate", "project_out"])]
    pub(super) method: Option<Method>,
    /// Neuronpedia's strength multiplier.
    #[arg(long, value_name = "X", default_value_t = 1.0, allow_negative_numbers = true)]
    pub(super) strength_multiplier: f32,
    /// Replace the state by the dictionary's reconstruction with the changed activations, so that the model sees
    /// nothing but features. Otherwise what the dictionary does not reconstruct is kept.
    #[arg(long)]
    pub(super) no_error_term: bool,
}

/// Prompts as messages.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Chat")]
pub(in crate::cli) struct ChatArgs {
    /// Take prompts as messages of a user, and put them into the model's chat template.
    #[arg(long)]
    pub(in crate::cli) chat: bool,
    /// The system message of the conversation.
    #[arg(long, value_name = "TEXT", requires = "chat")]
    pub(super) system: Option<String>,
}

/// How to write.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Generation")]
pub(super) struct GenerationArgs {
    /// Tokens to generate.
    #[arg(long, value_name = "N", default_value_t = 48)]
    max_new_tokens: usize,
    /// 0 takes the most likely token; higher is more varied.
    #[arg(long, value_name = "X", default_value_t = 0.0)]
    temperature: f64,
    /// Sample from the most likely tokens with this probability together.
    #[arg(long, value_name = "P")]
    top_p: Option<f64>,
    /// Seed of the sampling, the same for all texts.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// Where results go.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Output")]
pub(super) struct OutputArgs {
    /// Next tokens to list whose probability rose or fell most.
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub(super) top: usize,
    /// File for all texts with their measures, a JSON object a line for each prompt and strength, written as they come.
    #[arg(long, value_name = "FILE.jsonl")]
    pub(super) out: Option<PathBuf>,
    /// Page with the table, its picture and all texts.
    #[arg(long, value_name = "FILE")]
    pub(super) html: Option<PathBuf>,
    /// The picture alone.
    #[arg(long, value_name = "FILE")]
    pub(super) svg: Option<PathBuf>,
}

/// How Neuronpedia combines a vector with the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Method {
    #[value(alias = "SIMPLE_ADDITIVE")]
    SimpleAdditive,
    #[value(alias = "ORTHOGONAL_DECOMP")]
    OrthogonalDecomp,
    #[value(alias = "PROJECTION_CAP")]
    ProjectionCap,
}

/// Finite values separated by commas; none for a flag that stands alone.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Strengths(pub(super) Vec<f32>);

impl FromStr for Strengths {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let number = |word: &str| {
            let value = word.trim().parse::<f32>().ok().filter(|v| v.is_finite());
            value.ok_or_else(|| format!("'{}' is no finite number; expected V or V,V,…", word.trim()))
        };
        text.split(',').map(number).collect::<Result<_, _>>().map(Self)
    }
}

fn feature(text: &str) -> Result<FeatureArg, String> {
    let (id, value) = match text.split_once(':') {
        Some((id, value)) => (id, Some(value)),
        None => (text, None),
    };
    let (layer, id) = match id.split_once('/') {
        Some((layer, id)) => (Some(layer), id),
        None => (None, id),
    };
    let layer = layer.map(|layer| layer.parse().map_err(|_| format!("'{layer}' is no layer; expected LAYER/ID or ID")));
    let feature = id.parse().map_err(|_| format!("'{id}' is no feature number; expected ID or ID:V"))?;
    let value = value.map(|v| v.parse::<f32>().ok().filter(|v| v.is_finite()).ok_or(format!("'{v}' is no number")));
    Ok(FeatureArg { layer: layer.transpose()?, feature, value: value.transpose()? })
}

impl SteerArgs {
    /// How to generate, with the tokens that end a text.
    ///
    /// # Errors
    /// `Flag` for values that make no sense.
    pub(super) fn settings(&self, stop_tokens: Vec<u32>) -> Result<SteerSettings> {
        let GenerationArgs { max_new_tokens, temperature, top_p, seed } = self.generation;
        if !(temperature.is_finite() && temperature >= 0.0) {
            return Err(Error::flag("--temperature", "0 or more", temperature, "0 takes the most likely token"));
        }
        if let Some(p) = top_p.filter(|p| !(*p > 0.0 && *p <= 1.0)) {
            return Err(Error::flag("--top-p", "above 0, at most 1", p, "0.9 is usual"));
        }
        Ok(SteerSettings {
            positions: if self.targets.generated_only { SteerPositions::Generated } else { SteerPositions::All },
            generate: GenerateSettings { max_new_tokens, temperature, top_p, seed, stop_tokens },
            top_changes: self.output.top,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_take_their_own_value() {
        let of = |layer, feature, value| Ok(FeatureArg { layer, feature, value });
        assert_eq!(feature("12"), of(None, 12, None));
        assert_eq!(feature("12:-3.5"), of(None, 12, Some(-3.5)));
        assert_eq!(feature("3/12:4"), of(Some(3), 12, Some(4.0)));
        assert!(feature("x/1").is_err() && feature("3/").is_err());
        assert!(feature("x:1").is_err() && feature("1:y").is_err() && feature("1:nan").is_err());
    }

    #[test]
    fn strengths_are_lists_of_finite_numbers() {
        assert_eq!("0, 2,-4.5".parse(), Ok(Strengths(vec![0.0, 2.0, -4.5])));
        assert_eq!("".parse(), Ok(Strengths(vec![])));
        for bad in ["nan", "1,inf", "1,,2", "x", "1;2"] {
            assert!(bad.parse::<Strengths>().is_err(), "{bad}");
        }
    }
}
