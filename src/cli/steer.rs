//! `mechinterp steer`

use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;

use crate::analysis::steer::{ProbabilityChange, SteerPositions, SteerResult};
use crate::analysis::{FeatureEdit, FeatureOp, SteerSettings, steer};
use crate::base::{DtypeChoice, Error, Result};
use crate::data::{BosPolicy, Tokenizer};
use crate::dictionary::Dictionary;
use crate::model::generate::GenerateSettings;

use super::expect::{self, ForceArgs, Given};
use super::open::{self, Opened};
use super::render::{BOLD, DIM, GREEN, RED, Table, Ui, columns, paint, quoted, side_by_side};
use super::{Common, Outcome};

/// Where `train-sae` keeps, in a dictionary's metadata, the norm above which positions were left out.
pub(super) const MAX_NORM_KEY: &str = "max_activation_norm";

/// Arguments of `steer`.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Args {
    /// Hugging Face directory, hub id, `.gguf` file, or `demo`.
    #[arg(long, value_name = "MODEL")]
    model: String,
    /// The dictionary.
    #[arg(long, value_name = "DIR")]
    sae: PathBuf,
    /// Feature to change; repeat the flag for several. `ID:V` gives one its own value, by which it is clamped unless
    /// --add or --scale says otherwise.
    #[arg(long, value_name = "ID[:V]", required = true, value_parser = feature)]
    feature: Vec<(u32, Option<f32>)>,
    /// Set the activation to V: `h + (V − f(h)) W_dec[f]`, everything else in `h` kept.
    #[arg(long, value_name = "V", group = "operation", allow_negative_numbers = true)]
    clamp: Option<f32>,
    /// Add V decoder rows, whatever the activation: `h + V W_dec[f]`.
    #[arg(long, value_name = "V", group = "operation", num_args = 0..=1, default_missing_value = "nan", allow_negative_numbers = true)]
    add: Option<f32>,
    /// Multiply the activation by V.
    #[arg(long, value_name = "V", group = "operation", num_args = 0..=1, default_missing_value = "nan", allow_negative_numbers = true)]
    scale: Option<f32>,
    /// Set the activation to zero.
    #[arg(long, group = "operation")]
    ablate: bool,
    /// Text to continue.
    #[arg(long, value_name = "TEXT")]
    prompt: String,
    /// Steer generated positions only, and leave the prompt as it is.
    #[arg(long)]
    generated_only: bool,
    /// Tokens to generate.
    #[arg(long, value_name = "N", default_value_t = 48)]
    max_new_tokens: usize,
    /// 0 takes the most likely token; higher is more varied.
    #[arg(long, value_name = "X", default_value_t = 0.0)]
    temperature: f64,
    /// Sample from the most likely tokens with this probability together.
    #[arg(long, value_name = "P")]
    top_p: Option<f64>,
    /// Seed of the sampling, the same for both texts.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Next tokens to list whose probability rose or fell most.
    #[arg(long, value_name = "N", default_value_t = 5)]
    top: usize,
    /// Steer also positions whose norm is above what the dictionary was trained on, such as the attention sink.
    #[arg(long)]
    steer_outliers: bool,
    /// Do not put the beginning-of-sequence token before the text; otherwise it is put there if the dictionary was
    /// trained so.
    #[arg(long)]
    no_bos: bool,
    /// Number type of weights and activations: f32, f16 or bf16.
    #[arg(long, default_value_t)]
    dtype: DtypeChoice,
    #[command(flatten)]
    force: ForceArgs,
}

fn feature(text: &str) -> Result<(u32, Option<f32>), String> {
    let (id, value) = match text.split_once(':') {
        Some((id, value)) => (id, Some(value)),
        None => (text, None),
    };
    let id = id.parse().map_err(|_| format!("'{id}' is no feature number; expected ID or ID:V"))?;
    let value = value.map(|v| v.parse::<f32>().ok().filter(|v| v.is_finite()).ok_or(format!("'{v}' is no number")));
    Ok((id, value.transpose()?))
}

impl Args {
    /// What to do with each feature.
    fn edits(&self) -> Result<Vec<FeatureEdit>> {
        let needs = |flag: &'static str, feature: u32| {
            Error::flag(
                flag,
                "a finite value",
                format!("none for feature {feature}"),
                "write --feature ID:V, or give the flag a value",
            )
        };
        let finite = |v: Option<f32>| v.filter(|v| v.is_finite());
        let op = |&(feature, own): &(u32, Option<f32>)| {
            let op = if self.ablate {
                FeatureOp::Ablate
            } else if self.add.is_some() {
                FeatureOp::Add(own.or(finite(self.add)).ok_or_else(|| needs("--add", feature))?)
            } else if self.scale.is_some() {
                FeatureOp::Scale(own.or(finite(self.scale)).ok_or_else(|| needs("--scale", feature))?)
            } else {
                FeatureOp::Clamp(own.or(finite(self.clamp)).ok_or_else(|| needs("--clamp", feature))?)
            };
            Ok(FeatureEdit { feature, op })
        };
        self.feature.iter().map(op).collect()
    }

    fn settings(&self, opened: &Opened, dictionary: &Dictionary) -> Result<SteerSettings> {
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return Err(Error::flag("--temperature", "0 or more", self.temperature, "0 takes the most likely token"));
        }
        if let Some(p) = self.top_p.filter(|p| !(*p > 0.0 && *p <= 1.0)) {
            return Err(Error::flag("--top-p", "above 0, at most 1", p, "0.9 is usual"));
        }
        let limit = dictionary.config.metadata.extra.get(MAX_NORM_KEY).and_then(serde_json::Value::as_f64);
        Ok(SteerSettings {
            positions: if self.generated_only { SteerPositions::Generated } else { SteerPositions::All },
            max_norm: limit.filter(|_| !self.steer_outliers),
            generate: GenerateSettings {
                max_new_tokens: self.max_new_tokens,
                temperature: self.temperature,
                top_p: self.top_p,
                seed: self.seed,
                stop_tokens: opened.model.config().eos_token_ids.clone(),
            },
            top_changes: self.top,
        })
    }
}

#[derive(Serialize)]
struct Report<'a> {
    prompt: &'a str,
    edits: Vec<String>,
    unsteered: String,
    steered: String,
    gained: Vec<Change>,
    lost: Vec<Change>,
    result: &'a SteerResult,
}

#[derive(Serialize)]
struct Change {
    token: String,
    before: f32,
    after: f32,
}

pub(super) fn run(args: Args, common: &Common, ui: &Ui) -> Result<Outcome> {
    let edits = args.edits()?;
    let dictionary = Arc::new(open::dictionary(&args.sae, ui)?);
    let opened = open::open(&args.model, args.dtype, common.device, ui)?;
    let settings = args.settings(&opened, &dictionary)?;
    let bos = if args.no_bos { BosPolicy::Never } else { expect::bos_of(&dictionary) };
    expect::check(&dictionary, &Given::model(&args.model, bos, opened.model.config()), args.force, ui)?;
    let prompt = open::encode_prompt(&opened, &args.prompt, bos)?;
    let result = steer(&opened.model, &dictionary, &prompt, &edits, &settings, ui.progress())?;
    let tokenizer = &opened.tokenizer;
    let report = Report {
        prompt: &args.prompt,
        edits: edits.iter().map(ToString::to_string).collect(),
        unsteered: tokenizer.decode(&result.unsteered)?,
        steered: tokenizer.decode(&result.steered)?,
        gained: changes(&result.gained, tokenizer),
        lost: changes(&result.lost, tokenizer),
        result: &result,
    };
    if ui.json() {
        ui.out_json(&report)?;
    } else {
        print(&report, &edits, tokenizer, ui)?;
    }
    Ok(Outcome::Done)
}

fn changes(list: &[ProbabilityChange], tokenizer: &Tokenizer) -> Vec<Change> {
    list.iter().map(|c| Change { token: tokenizer.piece(c.token), before: c.before, after: c.after }).collect()
}

fn print(report: &Report<'_>, edits: &[FeatureEdit], tokenizer: &Tokenizer, ui: &Ui) -> Result<()> {
    ui.out(format!("{} {}", paint(DIM, "prompt"), report.prompt))?;
    for (i, edit) in edits.iter().enumerate() {
        let on_prompt: Vec<f32> = report.result.activations.iter().map(|row| row[i]).collect();
        let strongest = on_prompt.iter().copied().enumerate().max_by(|a, b| a.1.total_cmp(&b.1));
        let before = match strongest {
            Some((at, value)) if value > 0.0 => {
                let token = report.result.compared.get(at).map(|&t| quoted(&tokenizer.piece(t))).unwrap_or_default();
                format!("before: at most {value:.2} on the prompt, on {token}")
            }
            _ => "before: silent on the prompt".into(),
        };
        ui.out(format!("{} {edit}  {}", paint(DIM, "change"), paint(DIM, before)))?;
    }
    ui.out("")?;
    ui.out(side_by_side(("unsteered", &report.unsteered), ("steered", &report.steered), columns()))?;
    ui.out("")?;
    let mut table = Table::new(&["next token", ">before", ">after", ""]);
    for (list, style, arrow) in [(&report.gained, GREEN, "▲"), (&report.lost, RED, "▼")] {
        for change in list {
            table.row(vec![
                paint(BOLD, quoted(&change.token)),
                format!("{:.2} %", change.before * 100.0),
                format!("{:.2} %", change.after * 100.0),
                paint(style, arrow),
            ]);
        }
    }
    ui.out(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_take_their_own_value() {
        assert_eq!(feature("12"), Ok((12, None)));
        assert_eq!(feature("12:-3.5"), Ok((12, Some(-3.5))));
        assert!(feature("x:1").is_err() && feature("1:y").is_err() && feature("1:nan").is_err());
    }
}
