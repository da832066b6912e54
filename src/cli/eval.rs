//! `mechinterp eval`

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde_json::json;

use crate::analysis::eval::language::LanguageSettings;
use crate::analysis::eval::replacement::replacement as measure_replacement;
use crate::analysis::eval::saebench::{Circumstances, CoreEvalOutput};
use crate::analysis::eval::{EvalSettings, Evaluation, evaluate};
use crate::analysis::{CacheSequences, LiveSequences, Placement, SequenceSource, sequences::Part};
use crate::base::artifact::{read_json, write_atomic, write_json};
use crate::base::{DtypeChoice, Error, Result};
use crate::data::{BosPolicy, Corpus, PackSettings, Packer, locate_data};
use crate::dictionary::scale::fold_w_dec_norm;
use crate::dictionary::{Dictionary, io};
use crate::store::CacheReader;
use crate::store::FilterReport;
use crate::store::shuffle::Split;
use crate::web::chart::standalone;
use crate::web::eval_report::{self, Measured};
use crate::web::text::short;

use super::cache::count;
use super::eval_table;
use super::expect::{self, ForceArgs, Given};
use super::filter::FilterArgs;
use super::open::{self, Opened};
use super::render::{Ui, thousands};
use super::replacement;
use super::{Common, Outcome};

/// Context length for dictionaries that do not say theirs.
const DEFAULT_CONTEXT: usize = 256;

/// Arguments of `eval`.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Args {
    /// Dictionary to evaluate; several are compared in one table.
    #[arg(long, value_name = "DIR", required_unless_present = "transcoders", num_args = 1..)]
    sae: Vec<PathBuf>,
    /// Transcoder set to evaluate on --data with --model: what the model loses when one layer or all are replaced.
    #[arg(long, value_name = "SET", requires = "data", conflicts_with_all = ["sae", "cache", "hook", "held_out", "model_sequences", "no_directions", "saebench", "html", "keep_first_position", "keep_special_tokens", "max_norm_multiple"])]
    transcoders: Option<String>,
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
    /// Also write a page with pictures and every figure; with a name that ends in .svg only the picture of explained
    /// variance against L0.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Also write results as SAEBench's core evaluation does, into a .json file or a directory of them. Decoder rows
    /// are scaled to norm one first, as SAEBench does it, which changes l1 and nothing else in the table.
    #[arg(long, value_name = "FILE|DIR", requires = "model", conflicts_with = "no_directions")]
    saebench: Option<PathBuf>,
    #[command(flatten)]
    filter: FilterArgs,
    #[command(flatten)]
    force: ForceArgs,
}

#[derive(Serialize)]
struct Report {
    sae: PathBuf,
    positions: FilterReport,
    #[serde(flatten)]
    evaluation: Evaluation,
    #[serde(skip)]
    on: MeasuredOn,
}

/// What a dictionary was measured on.
struct MeasuredOn {
    model: String,
    data: Vec<String>,
    context_size: usize,
    sequences: u64,
}

pub(super) fn run(args: Args, common: &Common, ui: &Ui) -> Result<Outcome> {
    if let Some(set) = &args.transcoders {
        return of_set(&args, set, common, ui);
    }
    if args.model_sequences == 0 {
        return Err(Error::flag("--model-sequences", "1 or more", 0, "leave out --model to skip the model's loss"));
    }
    if let Some(path) = args.saebench.as_deref().filter(|path| is_file_name(path) && args.sae.len() > 1) {
        let remedy = "name a directory, which gets a file for each dictionary";
        return Err(Error::flag("--saebench", "a directory for several dictionaries", path.display(), remedy));
    }
    let mut dictionaries = args.sae.iter().map(|dir| open::dictionary(dir, ui)).collect::<Result<Vec<_>>>()?;
    if args.saebench.is_some() {
        for dictionary in &mut dictionaries {
            // As in SAEBench: where norms cannot be folded the dictionary is measured as it is.
            if let Err(Error::Unsupported { why, .. }) = fold_w_dec_norm(dictionary) {
                ui.say(format!("{dictionary} keeps its decoder norms: {why}"));
            }
        }
    }
    let reports = match &args.cache {
        Some(cache) => on_cache(&args, cache, &dictionaries, common, ui)?,
        None => on_text(&args, &dictionaries, common, ui)?,
    };
    let names = names(&args.sae);
    let measured: Vec<Measured> = names
        .iter()
        .zip(&dictionaries)
        .zip(&reports)
        .map(|((name, dictionary), report)| Measured {
            name,
            config: &dictionary.config,
            evaluation: &report.evaluation,
        })
        .collect();
    let mut written = Vec::new();
    if let Some(path) = &args.html {
        write_html(path, &measured, &facts(&reports))?;
        written.push(path.clone());
    }
    if let Some(path) = &args.saebench {
        written.extend(write_saebench(path, &reports, &names, &args)?);
    }
    if ui.json() {
        ui.out_json(&reports)?;
        return Ok(Outcome::Done);
    }
    for (report, name) in reports.iter().zip(&names) {
        ui.say(format!("{name}: {}", report.positions));
    }
    match &measured[..] {
        [one] => eval_table::one(one, ui)?,
        several => eval_table::several(several, ui)?,
    }
    for path in written {
        ui.say(format!("wrote {}", path.display()));
    }
    Ok(Outcome::Done)
}

/// Evaluates a transcoder set in its model.
fn of_set(args: &Args, set: &str, common: &Common, ui: &Ui) -> Result<Outcome> {
    let name = args.model.as_deref().unwrap_or_default();
    let set = open::transcoders(set, named(name)?, args.force, ui)?;
    let (corpus, opened) = open_text(args, name, common, ui)?;
    set.check_model(opened.model.config())?;
    let context_size = DEFAULT_CONTEXT.min(opened.model.config().context_length);
    let pack = PackSettings { context_size, bos: BosPolicy::Prepend };
    let sequences = args.tokens.div_ceil(context_size.max(1) as u64);
    let text = replacement::text(&opened.tokenizer, &corpus, pack, 0..sequences)?;
    let report = measure_replacement(&set, &opened.model, &text, ui.progress())?;
    if ui.json() {
        ui.out_json(&report)?;
    } else {
        replacement::print(&report, ui)?;
    }
    Ok(Outcome::Done)
}

/// The name of the model, which text needs.
fn named(name: &str) -> Result<&str> {
    if name.is_empty() {
        let remedy = "name the model that the dictionary was trained on";
        return Err(Error::flag("--model", "a model beside --data", "none", remedy));
    }
    Ok(name)
}

/// The text of `--data` and the model to run on it.
fn open_text(args: &Args, name: &str, common: &Common, ui: &Ui) -> Result<(Corpus, Opened)> {
    let name = named(name)?;
    let mut paths = Vec::new();
    for data in &args.data {
        paths.extend(locate_data(data, ui.progress())?);
    }
    Ok((Corpus::open(&paths, "text")?, open::open(name, DtypeChoice::F32, common.device, ui)?))
}

/// What was measured on, for the head of the page.
fn facts(reports: &[Report]) -> Vec<String> {
    let mut facts: Vec<String> = Vec::new();
    for Report { positions, on, .. } in reports {
        let data: Vec<&str> = on.data.iter().map(|name| short(name)).collect();
        let of_this = [
            short(&on.model).to_owned(),
            data.join(", "),
            format!("{} sequences of {}", thousands(on.sequences), on.context_size),
            positions.to_string(),
        ];
        facts.extend(of_this.into_iter().filter(|fact| !fact.is_empty()));
    }
    let mut seen = std::collections::BTreeSet::new();
    facts.retain(|fact| seen.insert(fact.clone()));
    facts
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
        let config = opened.as_ref().map(|o| o.model.config());
        expect::check(dictionary, &Given::cache(&reader, &hook, config), args.force, ui)?;
        let sequences = CacheSequences::open(cache, Some(&hook), args.filter.settings(), ui.progress())?;
        let source = Part { of: &sequences, range: range.clone() };
        let model = opened.as_ref().map(|o| &o.model);
        let evaluation = evaluate(dictionary, &source, model, &settings, ui.progress())?;
        let cached = reader.settings();
        let on = MeasuredOn {
            model: cached.model.name.clone(),
            data: cached.data.iter().map(|d| d.path.display().to_string()).collect(),
            context_size: cached.context_size,
            sequences: range.end - range.start,
        };
        Ok(Report { sae: sae.clone(), positions: *sequences.report(), evaluation, on })
    };
    args.sae.iter().zip(dictionaries).map(report).collect()
}

fn on_text(args: &Args, dictionaries: &[Dictionary], common: &Common, ui: &Ui) -> Result<Vec<Report>> {
    let name = args.model.as_deref().unwrap_or_default();
    let (corpus, opened) = open_text(args, name, common, ui)?;
    let settings = args.settings(Some(&opened));
    let report = |(sae, dictionary): (&PathBuf, &Dictionary)| {
        let metadata = &dictionary.config.metadata;
        let bos = expect::bos_of(dictionary);
        expect::check(dictionary, &Given::model(name, bos, opened.model.config()), args.force, ui)?;
        let pack = PackSettings { context_size: metadata.context_size.unwrap_or(DEFAULT_CONTEXT), bos };
        let wanted = args.tokens.div_ceil(pack.context_size.max(1) as u64) as usize;
        let packer = Packer::new(&opened.tokenizer, corpus.documents(), pack)?;
        let sequences = packer.take(wanted).collect::<Result<Vec<_>>>()?;
        let hook = Placement::of(dictionary, opened.model.config())?.point;
        let (filter, special) = (args.filter.settings(), opened.tokenizer.special_ids());
        let source = LiveSequences::new(&opened.model, hook, sequences, special, filter, ui.progress())?;
        let evaluation = evaluate(dictionary, &source, Some(&opened.model), &settings, ui.progress())?;
        let on = MeasuredOn {
            model: name.to_owned(),
            data: args.data.clone(),
            context_size: pack.context_size,
            sequences: source.sequences(),
        };
        Ok(Report { sae: sae.clone(), positions: *source.report(), evaluation, on })
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

/// What the dictionaries are called beside each other: the directory's own name where that tells them apart.
fn names(dirs: &[PathBuf]) -> Vec<String> {
    let own = |dir: &PathBuf| dir.file_name().unwrap_or(dir.as_os_str()).to_string_lossy().into_owned();
    let alone = |dir: &PathBuf| dirs.iter().filter(|other| own(other) == own(dir)).count() == 1;
    dirs.iter().map(|dir| if alone(dir) { own(dir) } else { dir.display().to_string() }).collect()
}

fn write_html(path: &Path, measured: &[Measured], facts: &[String]) -> Result<()> {
    let text = match path.extension() {
        Some(extension) if extension.eq_ignore_ascii_case("svg") => standalone(eval_report::picture(measured)),
        _ => eval_report::page(measured, facts),
    };
    write_atomic(path, text.as_bytes())
}

/// Writes SAEBench's files: one by the name given, or in a directory under the names that SAEBench gives them.
fn write_saebench(path: &Path, reports: &[Report], names: &[String], args: &Args) -> Result<Vec<PathBuf>> {
    let to_file = is_file_name(path);
    if !to_file {
        std::fs::create_dir_all(path).map_err(Error::io("make the directory", path))?;
    }
    let mut written = Vec::new();
    for (report, name) in reports.iter().zip(names) {
        let about = report.circumstances(name, args)?;
        let file = CoreEvalOutput::new(&report.evaluation, about)?;
        let path = if to_file { path.to_owned() } else { path.join(file.file_name()) };
        write_json(&path, &file)?;
        written.push(path);
    }
    Ok(written)
}

fn is_file_name(path: &Path) -> bool {
    !path.is_dir() && path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"))
}

impl Report {
    fn circumstances(&self, name: &str, args: &Args) -> Result<Circumstances> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let cfg = self.sae.join(io::CONFIG_FILE);
        Ok(Circumstances {
            name: name.to_owned(),
            cfg: if cfg.exists() { read_json("dictionary configuration", &cfg)? } else { json!({}) },
            model_name: self.on.model.clone(),
            // The model's losses are measured in f32 whatever the cache holds.
            llm_dtype: "float32".into(),
            dataset: self.on.data.join(","),
            context_size: self.on.context_size,
            model_sequences: self.on.sequences.min(args.model_sequences),
            sequences: self.on.sequences,
            excludes_special_tokens: self.positions.settings.skip_special,
            id: rand::random(),
            epoch_millis: now.as_millis() as u64,
        })
    }
}
