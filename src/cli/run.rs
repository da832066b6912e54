//! `mechinterp run`

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use candle_core::{DType, Device, Tensor};
use serde::Serialize;

use crate::base::artifact::write_atomic;
use crate::base::{Context, Error, Result, Unit};
use crate::data::tokenizer::Tokenizer;
use crate::model::hook::Axes;
use crate::model::{HookPlan, HookPoint, Run, Site};

use super::open::{self, Opened};
use super::prompts::{Prompt, PromptArgs, ReadingArgs};
use super::render::{BOLD, DIM, Table, Ui, paint, quoted};
use super::{Common, Outcome};

/// Prompts that run through the model together, at most.
const BATCH_PROMPTS: usize = 32;
/// Logits that are computed at once, at most, unless one prompt alone has more.
const BATCH_LOGITS: usize = 1 << 25;

/// Arguments of `run`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Hugging Face directory, hub id, `.gguf` file, or `demo`.
    model: String,
    #[command(flatten)]
    prompts: PromptArgs,
    /// Hook point to write; repeat the flag for several. `info` lists them.
    #[arg(long, value_name = "NAME", requires = "out")]
    hook: Vec<String>,
    /// Also write the logits of every position.
    #[arg(long, requires = "out")]
    logits: bool,
    /// Safetensors file for hook points and logits, each `[prompts, positions, …]` in f32 (attention scores and
    /// patterns `[prompts, heads, positions, positions]`), and for `tokens`. Shorter prompts are padded on the right
    /// with zeros; `lengths` says where each ends.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// How many next tokens to show.
    #[arg(long, value_name = "N", default_value_t = 10)]
    top: usize,
    #[command(flatten)]
    reading: ReadingArgs,
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
    let given = args.prompts.read()?;
    let files = open::locate(&args.model, ui)?;
    // Names and prompts are checked before the weights are read.
    let config = open::config(&files)?;
    let mut points = Vec::new();
    for name in &args.hook {
        let point = HookPoint::resolve(name, &config)?;
        if !points.contains(&point) {
            points.push(point);
        }
    }
    let bos = args.reading.bos();
    let opened = open::open_files(&files, args.reading.dtype, common.device)?;
    let prompts = given.encode(&opened.tokenizer, bos, opened.model.config())?;
    let mut results = Results { points, logits: args.logits, top: args.top, parts: Vec::new(), reports: Vec::new() };
    results.fill(&opened, &prompts, ui)?;
    if let Some(out) = &args.out {
        let bytes = file_bytes(&prompts, &results.points, results.parts)?;
        write_atomic(out, &bytes)?;
        ui.say(format!("wrote {}", out.display()));
    }
    let reports: Vec<PromptReport> = results.reports.into_iter().flatten().collect();
    if ui.json() {
        ui.out_json(&reports)?;
    } else {
        print(&reports, ui)?;
    }
    Ok(Outcome::Done)
}

/// What came out of the model so far, by prompt.
struct Results {
    points: Vec<HookPoint>,
    logits: bool,
    top: usize,
    /// For every point, then for the logits: `[1, s, …]` of every prompt.
    parts: Vec<Vec<Option<Tensor>>>,
    reports: Vec<Option<PromptReport>>,
}

impl Results {
    /// Runs all prompts, those of equal length together.
    fn fill(&mut self, opened: &Opened, prompts: &[Prompt], ui: &Ui) -> Result<()> {
        let plan = self.points.iter().fold(HookPlan::new().with_logits(), |plan, &point| plan.capture(point));
        let kept = self.points.len() + usize::from(self.logits);
        self.parts = vec![vec![None; prompts.len()]; kept];
        self.reports = prompts.iter().map(|_| None).collect();
        let progress = ui.progress();
        if prompts.len() > 1 {
            progress.begin("prompts", prompts.len() as u64, Unit::Items);
        }
        for batch in batches(prompts, opened.model.config().vocab_size) {
            if progress.cancelled() {
                progress.end();
                return Err(Error::Interrupted {
                    kept: "nothing was written".into(),
                    resume: "run the same command again".into(),
                });
            }
            let tokens: Vec<&[u32]> = batch.iter().map(|&i| prompts[i].tokens.as_slice()).collect();
            let run = opened.model.forward(&opened.model.tokens(&tokens)?, &plan)?;
            self.take(opened, prompts, &batch, &run)?;
            progress.advance(batch.len() as u64);
        }
        if prompts.len() > 1 {
            progress.end();
        }
        Ok(())
    }

    fn take(&mut self, opened: &Opened, prompts: &[Prompt], batch: &[usize], run: &Run) -> Result<()> {
        let logits = run.logits()?.to_device(&Device::Cpu)?;
        let s = logits.dim(1)?;
        let captured =
            self.points.iter().map(|&point| by_prompt(run.captured(point)?, batch.len(), s, point.site.axes()));
        let mut parts = captured.collect::<Result<Vec<_>>>()?;
        if self.logits {
            parts.push(logits.clone());
        }
        for (row, &i) in batch.iter().enumerate() {
            let Prompt { text, tokens } = &prompts[i];
            let own = logits.get(row)?;
            check_finite(&own, text.as_deref())?;
            let last = own.get(tokens.len() - 1)?.to_vec1::<f32>()?;
            self.reports[i] = Some(PromptReport {
                prompt: text.clone(),
                tokens: tokens.clone(),
                pieces: tokens.iter().map(|&t| opened.tokenizer.piece(t)).collect(),
                next: top(&last, self.top, &opened.tokenizer),
            });
            for (all, part) in self.parts.iter_mut().zip(&parts) {
                all[i] = Some(part.narrow(0, row, 1)?);
            }
        }
        Ok(())
    }
}

/// The numbers of the prompts in groups of equal length, each small enough that its logits stay in bounds.
fn batches(prompts: &[Prompt], vocabulary: usize) -> Vec<Vec<usize>> {
    let mut by_length: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (i, prompt) in prompts.iter().enumerate() {
        by_length.entry(prompt.tokens.len()).or_default().push(i);
    }
    let fitting = |length: usize| (BATCH_LOGITS / (length * vocabulary).max(1)).clamp(1, BATCH_PROMPTS);
    by_length.iter().flat_map(|(&length, all)| all.chunks(fitting(length)).map(<[usize]>::to_vec)).collect()
}

/// A capture as `[b, s, …]` in f32 on the CPU. TransformerLens has sequences and positions of some sites on one axis,
/// with heads where a norm divides each head.
fn by_prompt(captured: &Tensor, b: usize, s: usize, axes: Axes) -> Result<Tensor> {
    let captured = captured.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
    match (axes, captured.dims()) {
        (Axes::ExpertRows | Axes::ActiveExpertRows, &[_, width]) => Ok(captured.reshape((b, s, width))?),
        (axes, &[_, width]) if axes.are_rows() => Ok(captured.reshape((b, s, (), width))?),
        _ => Ok(captured),
    }
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

fn top(logits: &[f32], n: usize, tokenizer: &Tokenizer) -> Vec<NextToken> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = logits.iter().map(|l| f64::from(l - largest).exp()).sum();
    let better = |&a: &usize, &b: &usize| logits[b].total_cmp(&logits[a]).then(a.cmp(&b));
    let mut order: Vec<usize> = (0..logits.len()).collect();
    if 0 < n && n < order.len() {
        order.select_nth_unstable_by(n - 1, better);
    }
    order.truncate(n);
    order.sort_by(better);
    order
        .into_iter()
        .map(|i| NextToken {
            id: i as u32,
            token: tokenizer.piece(i as u32),
            logit: logits[i],
            probability: (f64::from(logits[i] - largest).exp() / total) as f32,
        })
        .collect()
}

/// The safetensors file: captures by name, then `logits`, `tokens` and `lengths`.
fn file_bytes(prompts: &[Prompt], points: &[HookPoint], parts: Vec<Vec<Option<Tensor>>>) -> Result<Vec<u8>> {
    let longest = prompts.iter().map(|prompt| prompt.tokens.len()).max().unwrap_or(0);
    let lengths: Vec<u32> = prompts.iter().map(|prompt| prompt.tokens.len() as u32).collect();
    let padding = |tokens: &[u32]| std::iter::repeat_n(0, longest - tokens.len());
    let ids: Vec<u32> =
        prompts.iter().flat_map(|Prompt { tokens, .. }| tokens.iter().copied().chain(padding(tokens))).collect();
    let mut tensors: HashMap<String, Tensor> = HashMap::new();
    tensors.insert("tokens".into(), Tensor::from_vec(ids, (prompts.len(), longest), &Device::Cpu)?);
    tensors.insert("lengths".into(), Tensor::from_vec(lengths, prompts.len(), &Device::Cpu)?);
    let names = points.iter().map(ToString::to_string).chain(["logits".to_owned()]);
    let sites = points.iter().map(|p| Some(p.site)).chain([None]);
    for ((name, site), part) in names.zip(sites).zip(parts) {
        let padded = part.iter().flatten().map(|t| pad(t, site, longest)).collect::<Result<Vec<_>>>()?;
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
