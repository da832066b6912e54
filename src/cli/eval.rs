//! `mechinterp eval`

use std::path::PathBuf;

use serde::Serialize;
use serde_json::Value;

use crate::analysis::eval::language::LanguageSettings;
use crate::analysis::eval::{EvalSettings, Evaluation, definitions, evaluate};
use crate::analysis::{CacheSequences, sequences::Part};
use crate::base::{DtypeChoice, Error, Result};
use crate::dictionary::io;
use crate::store::CacheReader;
use crate::store::FilterReport;
use crate::store::shuffle::Split;

use super::filter::FilterArgs;
use super::open;
use super::render::{DIM, Table, Ui, paint, thousands};
use super::{Common, Outcome};

/// Arguments of `eval`.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Args {
    /// Dictionary to evaluate; several are compared in one table.
    #[arg(long, value_name = "DIR", required = true, num_args = 1..)]
    sae: Vec<PathBuf>,
    /// Cached activations to evaluate on.
    #[arg(long, value_name = "DIR")]
    cache: PathBuf,
    /// Hook point of the cache, when it holds several; each dictionary's own when absent.
    #[arg(long, value_name = "NAME")]
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
    let reader = open::cache(&args.cache, ui)?;
    let split = part(&reader, args.held_out)?;
    let dictionaries = args.sae.iter().map(|dir| io::read(dir)).collect::<Result<Vec<_>>>()?;
    let opened = match args.model.as_deref() {
        Some(name) => {
            let name = if name.is_empty() { reader.settings().model.name.as_str() } else { name };
            let opened = open::open(name, DtypeChoice::F32, common.device, ui)?;
            open::check_tokenizer(&opened.tokenizer, &reader)?;
            Some(opened)
        }
        None => None,
    };
    let settings = EvalSettings {
        max_sequences: None,
        max_model_sequences: Some(args.model_sequences),
        feature_directions: !args.no_directions,
        language: LanguageSettings { ignored_targets: opened.iter().filter_map(|o| o.tokenizer.bos_id()).collect() },
    };
    let mut reports = Vec::new();
    for (dir, dictionary) in args.sae.iter().zip(&dictionaries) {
        let hook = open::cache_hook(&reader, dictionary, args.hook.as_deref())?;
        let sequences = CacheSequences::open(&args.cache, Some(&hook), args.filter.settings(), ui.progress())?;
        let positions = *sequences.report();
        let source = Part { of: &sequences, range: split.clone() };
        let model = opened.as_ref().map(|o| &o.model);
        let evaluation = evaluate(dictionary, &source, model, &settings, ui.progress())?;
        reports.push(Report { sae: dir.clone(), positions, evaluation });
    }
    if ui.json() {
        ui.out_json(&reports)?;
    } else {
        print(&reports, ui)?;
    }
    Ok(Outcome::Done)
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
        let cells: Vec<String> = columns.iter().map(|(_, json)| cell(find(json, name))).collect();
        if cells.iter().any(|c| c != "-") {
            let mut row = vec![name.to_owned()];
            row.extend(cells);
            row.push(paint(DIM, meaning));
            table.row(row);
        }
    }
    ui.out(table)
}

/// A metric of any category.
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
