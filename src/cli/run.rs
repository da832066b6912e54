//! `mechinterp run`

use std::collections::HashMap;
use std::path::PathBuf;

use candle_core::{DType, Device, Tensor};
use serde::Serialize;

use crate::base::artifact::write_atomic;
use crate::base::{Context, DtypeChoice, Error, Result};
use crate::data::tokenizer::{BosPolicy, Tokenizer};
use crate::model::{HookPlan, HookPoint, Site};

use super::open::{self, Opened};
use super::render::{BOLD, DIM, Table, Ui, paint, quoted};
use super::{Common, Outcome};

/// Arguments of `run`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Hugging Face directory, hub id, `.gguf` file, or `demo`.
    model: String,
    /// Text to run; repeat the flag for several prompts.
    #[arg(long, value_name = "TEXT", required_unless_present = "tokens")]
    prompt: Vec<String>,
    /// Token ids to run as they are, in place of text.
    #[arg(long, value_name = "IDS", value_delimiter = ',', conflicts_with = "prompt")]
    tokens: Option<Vec<u32>>,
    /// Hook point to write; repeat the flag for several. `info` lists them.
    #[arg(long, value_name = "NAME", requires = "out")]
    hook: Vec<String>,
    /// Also write the logits of every position.
    #[arg(long, requires = "out")]
    logits: bool,
    /// Safetensors file for hook points, `logits` and `tokens`, each `[prompts, positions, …]` in f32. Shorter prompts
    /// are padded on the right with zeros; the tensor `lengths` says where each ends.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// How many next tokens to show.
    #[arg(long, value_name = "N", default_value_t = 10)]
    top: usize,
    /// Do not put the beginning-of-sequence token before the text.
    #[arg(long)]
    no_bos: bool,
    /// Number type of weights and activations: f32, f16 or bf16.
    #[arg(long, default_value_t)]
    dtype: DtypeChoice,
}

#[derive(Serialize)]
struct PromptReport {
    prompt: Option<String>,
    tokens: Vec<u32>,
    pieces: Vec<String>,
    next: Vec<NextToken>,
}

#[derive(Serialize)]
struct NextToken {
    id: u32,
    token: String,
    logit: f32,
    probability: f32,
}

pub(super) fn run(args: Args, common: &Common, ui: &Ui) -> Result<Outcome> {
    if let Some(out) = &args.out {
        open::check_writable(out)?;
    }
    let files = open::locate(&args.model, ui)?;
    // Names are checked before the weights are read.
    let config = open::config(&files)?;
    let points: Vec<HookPoint> =
        args.hook.iter().map(|name| HookPoint::resolve(name, &config)).collect::<Result<_>>()?;
    let opened = open::open_files(&files, args.dtype, common.device)?;
    let prompts = encode(&args, &opened)?;
    let plan = points.iter().fold(HookPlan::new().with_logits(), |plan, &point| plan.capture(point));

    let mut reports = Vec::new();
    let mut parts: Vec<Vec<Tensor>> = vec![Vec::new(); points.len() + 1];
    for (text, tokens) in &prompts {
        let run = opened.model.forward(&opened.model.tokens(&[tokens])?, &plan)?;
        let logits = run.logits()?;
        check_finite(logits, text.as_deref())?;
        let last = logits.get(0)?.get(tokens.len() - 1)?.to_vec1::<f32>()?;
        reports.push(PromptReport {
            prompt: text.clone(),
            tokens: tokens.clone(),
            pieces: tokens.iter().map(|&t| opened.tokenizer.piece(t)).collect(),
            next: top(&last, args.top, &opened.tokenizer),
        });
        for (part, point) in parts.iter_mut().zip(&points) {
            part.push(run.captured(*point)?.to_dtype(DType::F32)?.to_device(&Device::Cpu)?);
        }
        if args.logits {
            parts[points.len()].push(logits.to_device(&Device::Cpu)?);
        }
    }
    if let Some(out) = &args.out {
        let bytes = file_bytes(&prompts, &points, parts)?;
        write_atomic(out, &bytes)?;
        ui.say(format!("wrote {}", out.display()));
    }
    if ui.json() {
        ui.out_json(&reports)?;
    } else {
        print(&reports, ui)?;
    }
    Ok(Outcome::Done)
}

fn check_finite(logits: &Tensor, prompt: Option<&str>) -> Result<()> {
    let values = logits.flatten_all()?.to_vec1::<f32>()?;
    let Some(first) = values.iter().position(|l| !l.is_finite()) else { return Ok(()) };
    Err(Error::NonFinite {
        what: prompt.map_or_else(|| "the logits of the tokens".into(), |p| format!("the logits of the prompt '{p}'")),
        count: values.iter().filter(|l| !l.is_finite()).count(),
        at: format!("position {}", first / logits.dim(candle_core::D::Minus1)?),
        remedy: "run with --dtype f32 or bf16; if that does not help, the model's weights are damaged".into(),
    })
}

type Prompt = (Option<String>, Vec<u32>);

fn encode(args: &Args, opened: &Opened) -> Result<Vec<Prompt>> {
    if let Some(tokens) = &args.tokens {
        open::check_length(tokens, opened.model.config())?;
        return Ok(vec![(None, tokens.clone())]);
    }
    let bos = if args.no_bos { BosPolicy::Never } else { BosPolicy::Prepend };
    args.prompt.iter().map(|text| Ok((Some(text.clone()), open::encode_prompt(opened, text, bos)?))).collect()
}

fn top(logits: &[f32], n: usize, tokenizer: &Tokenizer) -> Vec<NextToken> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = logits.iter().map(|l| f64::from(l - largest).exp()).sum();
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    order
        .into_iter()
        .take(n)
        .map(|i| NextToken {
            id: i as u32,
            token: tokenizer.piece(i as u32),
            logit: logits[i],
            probability: (f64::from(logits[i] - largest).exp() / total) as f32,
        })
        .collect()
}

/// The safetensors file: captures by name, then `logits`, `tokens` and `lengths`.
fn file_bytes(prompts: &[Prompt], points: &[HookPoint], parts: Vec<Vec<Tensor>>) -> Result<Vec<u8>> {
    let longest = prompts.iter().map(|(_, tokens)| tokens.len()).max().unwrap_or(0);
    let lengths: Vec<u32> = prompts.iter().map(|(_, tokens)| tokens.len() as u32).collect();
    let ids: Vec<u32> = prompts
        .iter()
        .flat_map(|(_, tokens)| tokens.iter().copied().chain(std::iter::repeat_n(0, longest - tokens.len())))
        .collect();
    let mut tensors: HashMap<String, Tensor> = HashMap::new();
    tensors.insert("tokens".into(), Tensor::from_vec(ids, (prompts.len(), longest), &Device::Cpu)?);
    tensors.insert("lengths".into(), Tensor::from_vec(lengths, prompts.len(), &Device::Cpu)?);
    let names = points.iter().map(ToString::to_string).chain(["logits".to_owned()]);
    let sites = points.iter().map(|p| Some(p.site)).chain([None]);
    for ((name, site), part) in names.zip(sites).zip(parts) {
        if part.is_empty() {
            continue;
        }
        let padded = part.iter().map(|t| pad(t, site, longest)).collect::<Result<Vec<_>>>()?;
        tensors.insert(name, Tensor::cat(&padded, 0)?);
    }
    let serialised = safetensors::serialize(&tensors, None);
    serialised.map_err(|e| Error::Unsupported {
        what: "writing these tensors".into(),
        why: e.to_string(),
        remedy: "ask for fewer hook points".into(),
    })
}

/// `t` with zeros after its last position, on both position axes of attention patterns.
fn pad(t: &Tensor, site: Option<Site>, length: usize) -> Result<Tensor> {
    let axes: &[usize] = match site {
        Some(Site::AttnScores | Site::AttnPattern) => &[2, 3],
        _ => &[1],
    };
    let mut padded = t.clone();
    for &axis in axes {
        let missing = length - t.dim(axis)?;
        padded = padded.pad_with_zeros(axis, 0, missing).during(|| "padding prompts to one length".into())?;
    }
    Ok(padded)
}

fn print(reports: &[PromptReport], ui: &Ui) -> Result<()> {
    for (i, report) in reports.iter().enumerate() {
        if i > 0 {
            ui.out("")?;
        }
        let text = report.prompt.clone().unwrap_or_else(|| report.pieces.concat());
        ui.out(format!("{}  {}", paint(BOLD, text), paint(DIM, format!("{} tokens", report.tokens.len()))))?;
        let mut table = Table::new(&["next token", ">probability", ">logit", ">id"]);
        for next in &report.next {
            table.row(vec![
                quoted(&next.token),
                format!("{:.2} %", next.probability * 100.0),
                format!("{:.3}", next.logit),
                next.id.to_string(),
            ]);
        }
        ui.out(table)?;
    }
    Ok(())
}
