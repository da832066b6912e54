//! `mechinterp eval`

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use crate::analysis::eval::language::LanguageSettings;
use crate::analysis::eval::{EvalSettings, Evaluation, definitions, evaluate};
use crate::analysis::{CacheSequences, LiveSequences, Placement, sequences::Part};
use crate::base::{DtypeChoice, Error, Result};
use crate::data::{BosPolicy, Corpus, PackSettings, Packer, locate_data};
use crate::dictionary::Dictionary;
use crate::store::CacheReader;
use crate::store::FilterReport;
use crate::store::shuffle::Split;

use super::cache::count;
use super::filter::FilterArgs;
use super::open::{self, Opened};
use super::render::{DIM, Table, Ui, paint, thousands};
use super::{Common, Outcome};

/// Context length for dictionaries that do not say theirs.
const DEFAULT_CONTEXT: usize = 256;

/// Arguments of `eval`.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Args {
    /// Dictionary to evaluate; several are compared in one table.
    #[arg(long, value_name = "DIR", required = true, num_args = 1..)]
    sae: Vec<PathBuf>,
    /// Cached activations to evaluate on.
    #[arg(long, value_name = "DIR", required_unless_present = "data")]
    cache: Option<PathBuf>,
    /// Text to run the model on, in place of a cache, under the context length and BOS rule of the dictionary.
    #[arg(long, value_name = "FILE|HUB", num_args = 1.., conflicts_with = "cache", requires = "model")]
    data: Vec<String>,
    /// Tokens of the text to evaluate on.
    #[arg(long, value_name = "N", default_value = "20k", value_parser = count, requires = "data")]
    tokens: u64,
    /// Hook point of the cache, when it holds several; each dictionary's own when absent.
    #[arg(long, value_name = "NAME", requires = "cache")]
    hook: Option<String>,
    /// Also measure the model's loss with activations replaced by the dictionary's. Without a value the model that
    /// made the cache.
    #[arg(long, value_name = "MODEL", num_args = 0..=1, default_missing_value = "")]
    model: Option<String>,
    /// Share of the sequences, the last ones, to evaluate on: what `train-sae` held out by default. 1 takes all.
    #[arg(long, value_name = "SHARE", default_value_t = 0.05)]
    held_out: f64,
    /// Sequences for the model's loss, three forward passes each.
    #[arg(long, value_name = "N", default_value_t = 64)]
    model_sequences: u64,
    /// Leave out the cosines between all pairs of features.
    #[arg(long)]
    no_directions: bool,
    #[command(flatten)]
    filter: FilterArgs,
}

#[derive(Serialize)]
struct Report {
    sae: PathBuf,
    positions: FilterReport,
    #[serde(flatten)]
    evaluation: Evaluation,
}

pub(super) fn run(args: Args, common: &Common, ui: &Ui) -> Result<Outcome> {
    if args.model_sequences == 0 {
        return Err(Error::flag("--model-sequences", "1 or more", 0, "leave out --model to skip the model's loss"));
    }
    let dictionaries = args.sae.iter().map(|path| open::dictionary(path, ui)).collect::<Result<Vec<_>>>()?;
    let reports = match &args.cache {
        Some(cache) => on_cache(&args, cache, &dictionaries, common, ui)?,
        None => on_text(&args, &dictionaries, common, ui)?,
    };
    if ui.json() {
        ui.out_json(&reports)?;
    } else {
        print(&reports, ui)?;
    }
    Ok(Outcome::Done)
}

impl Args {
    fn settings(&self, opened: Option<&Opened>) -> EvalSettings {
        EvalSettings {
            max_sequences: None,
            max_model_sequences: Some(self.model_sequences),
            feature_directions: !self.no_directions,
            language: LanguageSettings {
                ignored_targets: opened.iter().filter_map(|o| o.tokenizer.bos_id()).collect(),
            },
        }
    }
}

fn on_cache(args: &Args, cache: &Path, dictionaries: &[Dictionary], common: &Common, ui: &Ui) -> Result<Vec<Report>> {
    let reader = open::cache(cache, ui)?;
    let range = part(&reader, args.held_out)?;
    let opened = match args.model.as_deref() {
        Some(name) => {
            let name = if name.is_empty() { reader.settings().model.name.as_str() } else { name };
            let opened = open::open(name, DtypeChoice::F32, common.device, ui)?;
            open::check_tokenizer(&opened.tokenizer, &reader)?;
            Some(opened)
        }
        None => None,
    };
    let settings = args.settings(opened.as_ref());
    let report = |(sae, dictionary): (&PathBuf, &Dictionary)| {
        let hook = open::cache_hook(&reader, dictionary, args.hook.as_deref())?;
        let sequences = CacheSequences::open(cache, Some(&hook), args.filter.settings(), ui.progress())?;
        let source = Part { of: &sequences, range: range.clone() };
        let model = opened.as_ref().map(|o| &o.model);
        let evaluation = evaluate(dictionary, &source, model, &settings, ui.progress())?;
        Ok(Report { sae: sae.clone(), positions: *sequences.report(), evaluation })
    };
    args.sae.iter().zip(dictionaries).map(report).collect()
}

fn on_text(args: &Args, dictionaries: &[Dictionary], common: &Common, ui: &Ui) -> Result<Vec<Report>> {
    let name = args.model.as_deref().filter(|name| !name.is_empty()).ok_or_else(|| {
        Error::flag("--model", "a model beside --data", "none", "name the model that the dictionary was trained on")
    })?;
    let mut paths = Vec::new();
    for data in &args.data {
        paths.extend(locate_data(data, ui.progress())?);
    }
    let corpus = Corpus::open(&paths, "text")?;
    let opened = open::open(name, DtypeChoice::F32, common.device, ui)?;
    let settings = args.settings(Some(&opened));
    let report = |(sae, dictionary): (&PathBuf, &Dictionary)| {
        let metadata = &dictionary.config.metadata;
        let bos = if metadata.prepend_bos == Some(false) { BosPolicy::Never } else { BosPolicy::Prepend };
        let pack = PackSettings { context_size: metadata.context_size.unwrap_or(DEFAULT_CONTEXT), bos };
        let wanted = args.tokens.div_ceil(pack.context_size.max(1) as u64) as usize;
        let packer = Packer::new(&opened.tokenizer, corpus.documents(), pack)?;
        let sequences = packer.take(wanted).collect::<Result<Vec<_>>>()?;
        let hook = Placement::of(dictionary, opened.model.config())?.point;
        let (filter, special) = (args.filter.settings(), opened.tokenizer.special_ids());
        let source = LiveSequences::new(&opened.model, hook, sequences, special, filter, ui.progress())?;
        let evaluation = evaluate(dictionary, &source, Some(&opened.model), &settings, ui.progress())?;
        Ok(Report { sae: sae.clone(), positions: *source.report(), evaluation })
    };
    args.sae.iter().zip(dictionaries).map(report).collect()
}

/// The sequences to evaluate on.
fn part(reader: &CacheReader, held_out: f64) -> Result<std::ops::Range<u64>> {
    if !(held_out > 0.0 && held_out <= 1.0) {
        return Err(Error::flag("--held-out", "a share above 0, at most 1", held_out, "1 evaluates on all sequences"));
    }
    if held_out >= 1.0 {
        return Ok(0..reader.sequences());
    }
    let held_out = Split::new(reader.sequences(), held_out)?.held_out();
    if held_out.is_empty() {
        let found = format!("none of {} sequences", reader.sequences());
        return Err(Error::flag("--held-out", "a share that holds a sequence", found, "1 evaluates on all sequences"));
    }
    Ok(held_out)
}

fn print(reports: &[Report], ui: &Ui) -> Result<()> {
    for report in reports {
        ui.say(format!("{}: {}", report.sae.display(), report.positions));
    }
    let metrics = |e: &crate::analysis::eval::CoreMetrics| serde_json::to_value(e).unwrap_or_default();
    let mut columns: Vec<(String, Value)> = Vec::new();
    for report in reports {
        let name = report.sae.file_name().unwrap_or_default().to_string_lossy().into_owned();
        columns.push((name.clone(), metrics(&report.evaluation.metrics)));
        if let Some(all) = &report.evaluation.all_positions {
            columns.push((format!("{name}, all positions"), metrics(all)));
        }
    }
    let mut header = vec!["metric".to_owned()];
    header.extend(columns.iter().map(|(name, _)| format!(">{name}")));
    header.push("what it is".into());
    let mut table = Table::new(&header.iter().map(String::as_str).collect::<Vec<_>>());
    for &(name, meaning) in definitions() {
        let cells: Vec<String> = columns.iter().map(|(_, json)| cell(measured(json, name))).collect();
        if cells.iter().any(|c| c != "-") {
            let mut row = vec![name.to_owned()];
            row.extend(cells);
            row.push(paint(DIM, meaning));
            table.row(row);
        }
    }
    ui.out(table)
}

/// A metric of any category; null where the model's losses were not measured and it only counts them.
fn measured<'a>(metrics: &'a Value, name: &str) -> &'a Value {
    match find(metrics, name) {
        count if name == "total_tokens_eval_reconstruction" && count == 0 => &Value::Null,
        value => value,
    }
}

fn find<'a>(metrics: &'a Value, name: &str) -> &'a Value {
    let mut categories = metrics.as_object().into_iter().flat_map(|m| m.values());
    categories.find_map(|category| category.get(name)).unwrap_or(&Value::Null)
}

fn cell(value: &Value) -> String {
    match (value.as_u64(), value.as_f64()) {
        (Some(n), _) => thousands(n),
        (None, Some(x)) if x != 0.0 && x.abs() < 1e-3 => format!("{x:.2e}"),
        (None, Some(x)) => format!("{x:.4}"),
        _ => "-".into(),
    }
}
