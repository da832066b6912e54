//! `mechinterp cache`

use std::path::PathBuf;

use serde::Serialize;

use crate::base::{DtypeChoice, Result, RunRecord};
use crate::data::{BosPolicy, Corpus, PackSettings, locate_data};
use crate::model::{HookPlan, HookPoint};
use crate::store::collect::{CacheJob, CacheSummary, collect};

use super::open;
use super::render::{BOLD, Ui, paint, thousands};
use super::{Common, Outcome};

/// Arguments of `cache`.
#[derive(Debug, Clone, clap::Args, Serialize)]
pub(super) struct Args {
    /// Hugging Face directory, hub id, `.gguf` file, or `demo`.
    #[arg(long, value_name = "MODEL")]
    model: String,
    /// Text: .txt, .jsonl or .parquet files, or a hub dataset; repeat the flag for several.
    #[arg(long, value_name = "FILE|HUB", required = true, num_args = 1..)]
    data: Vec<String>,
    /// Hook point to store; repeat the flag for several in one pass. `info` lists them.
    #[arg(long, value_name = "NAME", required = true)]
    hook: Vec<String>,
    /// Directory to make.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Tokens to cache, such as 500000, 500k or 2M; all the text when absent.
    #[arg(long, value_name = "N", value_parser = count)]
    tokens: Option<u64>,
    /// Tokens in a sequence.
    #[arg(long, value_name = "N", default_value_t = 256)]
    context_size: usize,
    /// Sequences run through the model at once.
    #[arg(long, value_name = "N", default_value_t = 16)]
    batch_size: usize,
    /// Number type of the stored activations: f32, f16 or bf16.
    #[arg(long, default_value_t = DtypeChoice::F16)]
    dtype: DtypeChoice,
    /// Number type the model computes in: f32, f16 or bf16. When absent, bf16 where the CPU multiplies it natively,
    /// else f32.
    #[arg(long)]
    model_dtype: Option<DtypeChoice>,
    /// Tokens in a shard: what memory holds and what a cut-off run loses at most.
    #[arg(long, value_name = "N", value_parser = count)]
    shard_tokens: Option<u64>,
    /// Field or column of the data that holds the text.
    #[arg(long, value_name = "NAME", default_value = "text")]
    text_field: String,
    /// Do not begin every sequence with the beginning-of-sequence token.
    #[arg(long)]
    no_bos: bool,
    /// Go on with a run that was cut off.
    #[arg(long)]
    #[serde(skip)]
    resume: bool,
}

/// A number of tokens, with `k` for thousands and `M` for millions.
pub(super) fn count(text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.chars().last() {
        Some('k' | 'K') => (&text[..text.len() - 1], 1e3),
        Some('m' | 'M') => (&text[..text.len() - 1], 1e6),
        Some('b' | 'B' | 'g' | 'G') => (&text[..text.len() - 1], 1e9),
        _ => (text, 1.0),
    };
    match digits.replace('_', "").parse::<f64>() {
        Ok(n) if n.is_finite() && n > 0.0 && n * unit < 1e18 => Ok((n * unit).round() as u64),
        _ => Err("expected a positive number such as 500000, 500k or 2M".into()),
    }
}

pub(super) fn run(args: Args, common: &Common, ui: &Ui) -> Result<Outcome> {
    let summary = collect_from(&args, common, ui)?;
    if ui.json() {
        ui.out_json(&summary)?;
    } else {
        print(&summary, ui)?;
    }
    Ok(Outcome::Done)
}

/// Opens everything, cheap checks first, and fills the cache.
fn collect_from(args: &Args, common: &Common, ui: &Ui) -> Result<CacheSummary> {
    let files = open::locate(&args.model, ui)?;
    let config = open::config(&files)?;
    let hooks = args.hook.iter().map(|name| HookPoint::resolve(name, &config)).collect::<Result<Vec<_>>>()?;
    let mut paths = Vec::new();
    for data in &args.data {
        paths.extend(locate_data(data, ui.progress())?);
    }
    let corpus = Corpus::open(&paths, &args.text_field)?;
    let weights_blake3 = files.weights_hash()?;
    let model_dtype = args.model_dtype.unwrap_or_else(|| open::fast_dtype(common.device));
    let plan = hooks.iter().fold(HookPlan::new(), |plan, &hook| plan.capture(hook));
    let opened = open::open_for(&plan, &files, model_dtype, common.device)?;
    let job = CacheJob {
        model: &opened.model,
        model_name: args.model.clone(),
        weights_blake3,
        tokenizer: &opened.tokenizer,
        corpus: &corpus,
        hooks,
        dtype: args.dtype,
        pack: PackSettings {
            context_size: args.context_size,
            bos: if args.no_bos { BosPolicy::Never } else { BosPolicy::Prepend },
        },
        batch_size: args.batch_size,
        tokens: args.tokens,
        shard_tokens: args.shard_tokens,
        out: args.out.clone(),
        resume: args.resume,
        resume_command: "run the same command with --resume".into(),
        record: RunRecord::new("cache", &Args { model_dtype: Some(model_dtype), ..args.clone() }, 0),
    };
    collect(&job, ui.progress())
}

fn print(summary: &CacheSummary, ui: &Ui) -> Result<()> {
    let manifest = &summary.manifest;
    ui.out(format!(
        "{} tokens in {} sequences and {} shards, {:.0} tokens/s",
        paint(BOLD, thousands(manifest.tokens)),
        thousands(manifest.sequences),
        manifest.shards.len(),
        summary.tokens_per_second
    ))?;
    ui.out(format!("  computed in {}", manifest.settings.model.dtype))?;
    for hook in &manifest.settings.hooks {
        ui.out(format!("  {}  [{}, {}] {}", hook.name, thousands(manifest.tokens), hook.width, hook.dtype))?;
    }
    if summary.resumed_sequences > 0 {
        ui.out(format!("  {} sequences were there already", thousands(summary.resumed_sequences)))?;
    }
    if summary.dropped_tokens > 0 {
        ui.out(format!("  {} tokens at the end filled no sequence", summary.dropped_tokens))?;
    }
    ui.out(format!("wrote {}", summary.dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_have_units() {
        assert_eq!(count("200k"), Ok(200_000));
        assert_eq!(count("1.5M"), Ok(1_500_000));
        assert_eq!(count("1_000"), Ok(1000));
        for wrong in ["", "k", "-3", "0", "many", "1e30"] {
            assert!(count(wrong).is_err(), "{wrong}");
        }
    }
}
