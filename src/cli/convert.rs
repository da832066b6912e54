//! `mechinterp convert`

use std::path::PathBuf;

use serde::Serialize;

use crate::base::artifact::InputRecord;
use crate::base::mapped::MappedBytes;
use crate::base::{Artifact, Error, Result, RunRecord};
use crate::dictionary::Dictionary;
use crate::interop::{self, Format, Hints, Opened};

use super::Outcome;
use super::render::{Table, Ui, thousands};

mod set;

/// A dictionary that reads back farther from what was written than this is a defect; f32 keeps 1e-7.
const TOLERANCE: f64 = 1e-4;

/// Arguments of `convert`.
#[derive(Debug, Clone, clap::Args)]
#[command(group(clap::ArgGroup::new("source").args(["sae", "set"]).required(true)))]
pub(super) struct Args {
    /// Dictionary in any known format: a directory, or the file of its weights. Formats are recognised by contents:
    /// SAELens (version 6 or flat), `dictionary_learning`, sparsify, Gemma Scope, Gemma Scope 2, Llama Scope, Qwen Scope,
    /// OpenAI, Goodfire, circuit-tracer.
    #[arg(long, value_name = "PATH")]
    sae: Option<PathBuf>,
    /// Transcoder set in place of one dictionary: circuit-tracer's directory (per layer or across layers), Gemma Scope's,
    /// or a directory with a folder for each layer's transcoder; or its name on the hub.
    #[arg(long, value_name = "SET", conflicts_with_all = ["hook", "context_size", "prepend_bos", "k"])]
    set: Option<String>,
    /// Format to write: `saelens`, `dictionary_learning` or `sparsify`; for sets `circuit_tracer`, `saelens` or
    /// `sparsify`.
    #[arg(long, value_name = "FORMAT")]
    to: Format,
    /// Output directory.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Hook point or module that the dictionary is of, where its files do not say it or say it wrong.
    #[arg(long, value_name = "NAME")]
    hook: Option<String>,
    /// Model that the dictionary is of, likewise.
    #[arg(long, value_name = "MODEL")]
    model_name: Option<String>,
    /// Tokens of the sequences that it was trained on, likewise.
    #[arg(long, value_name = "N")]
    context_size: Option<usize>,
    /// Whether the sequences began with the BOS token, likewise.
    #[arg(long, value_name = "true|false")]
    prepend_bos: Option<bool>,
    /// Active features a row, for TopK files that leave it out (Qwen Scope).
    #[arg(long, value_name = "N")]
    k: Option<usize>,
}

#[derive(Serialize)]
struct Report<'a> {
    sae: PathBuf,
    from: Format,
    to: Format,
    out: PathBuf,
    architecture: &'static str,
    d_in: usize,
    d_sae: usize,
    d_out: usize,
    hook_name: Option<&'a str>,
    hook_name_out: Option<&'a str>,
    model_name: Option<&'a str>,
    context_size: Option<usize>,
    prepend_bos: Option<bool>,
    /// Of what was written, read back, to what was read: the norm of the difference of their reconstructions over the
    /// norm of the one.
    difference: f64,
    notes: Vec<String>,
}

pub(super) fn run(args: Args, ui: &Ui) -> Result<Outcome> {
    match (&args.set, &args.sae) {
        (Some(reference), _) => set::run(reference, args.to, &args.out, args.model_name.as_deref(), ui),
        (None, Some(sae)) => dictionary(sae.clone(), args, ui),
        (None, None) => Ok(Outcome::No),
    }
}

fn dictionary(sae: PathBuf, args: Args, ui: &Ui) -> Result<Outcome> {
    if !Format::WRITTEN.contains(&args.to) {
        return Err(Error::flag(
            "--to",
            format!("one of {}", Format::WRITTEN.map(Format::name).join(", ")),
            args.to.name(),
            "it is a publisher's own format, which is read only",
        ));
    }
    let Opened { mut dictionary, format, weights, notes } = interop::open_with(&sae, &Hints { k: args.k })?;
    describe(&mut dictionary, &args)?;
    let artifact = Artifact::begin_new(&args.out)?;
    if let Err(error) = interop::write(artifact.dir(), &dictionary, args.to) {
        artifact.discard();
        return Err(error);
    }
    let difference = interop::distance(&dictionary, &interop::open(artifact.dir())?.dictionary)?;
    if difference.is_nan() || difference > TOLERANCE {
        return Err(Error::Mismatch {
            what: "the dictionary and what was written of it",
            left: sae.display().to_string(),
            right: format!("{} differs by {difference:.1e} of its reconstructions", artifact.dir().display()),
            remedy: "this is a defect of the program: please report it with the dictionary".into(),
        });
    }
    let blake3 = blake3::hash(&MappedBytes::open(&weights)?).to_hex().to_string();
    let settings = serde_json::json!({
        "sae": sae, "from": format, "to": args.to, "hook": args.hook, "model_name": args.model_name,
        "context_size": args.context_size, "prepend_bos": args.prepend_bos, "k": args.k,
    });
    let mut record = RunRecord::new("convert", &settings, 0);
    record.inputs.push(InputRecord { role: "dictionary".into(), name: weights.display().to_string(), blake3 });
    artifact.finish(&record)?;
    let metadata = &dictionary.config.metadata;
    let report = Report {
        sae,
        from: format,
        to: args.to,
        out: args.out,
        architecture: dictionary.config.architecture.name(),
        d_in: dictionary.d_in(),
        d_sae: dictionary.d_sae(),
        d_out: dictionary.d_out(),
        hook_name: metadata.hook_name.as_deref(),
        hook_name_out: metadata.extra.get("hook_name_out").and_then(serde_json::Value::as_str),
        model_name: metadata.model_name.as_deref(),
        context_size: metadata.context_size,
        prepend_bos: metadata.prepend_bos,
        difference,
        notes,
    };
    if ui.json() {
        ui.out_json(&report)?;
    } else {
        print(&report, ui)?;
    }
    Ok(Outcome::Done)
}

/// Puts what the flags say in place of what the files say.
fn describe(dictionary: &mut Dictionary, args: &Args) -> Result<()> {
    if let Some(hook) = &args.hook {
        interop::set_hook(dictionary, hook)?;
    }
    let metadata = &mut dictionary.config.metadata;
    metadata.model_name = args.model_name.clone().or(metadata.model_name.take());
    metadata.context_size = args.context_size.or(metadata.context_size);
    metadata.prepend_bos = args.prepend_bos.or(metadata.prepend_bos);
    Ok(())
}

fn print(report: &Report<'_>, ui: &Ui) -> Result<()> {
    for note in &report.notes {
        ui.say(format!("{}: {note}", report.sae.display()));
    }
    let mut table = Table::new(&["dictionary", ""]);
    let mut row = |name: &str, value: String| table.row(vec![name.to_owned(), value]);
    let text = |value: Option<&str>| value.unwrap_or("unknown").to_owned();
    row("from", report.from.title().into());
    row("to", report.to.title().into());
    row("architecture", report.architecture.into());
    row("features", thousands(report.d_sae as u64));
    let [d_in, d_out] = [report.d_in, report.d_out];
    row("width", if d_in == d_out { d_in.to_string() } else { format!("{d_in} to {d_out}") });
    row("model", text(report.model_name));
    row("hook", text(report.hook_name));
    if let Some(output) = report.hook_name_out {
        row("writes to", output.into());
    }
    row("context", report.context_size.map_or("unknown".into(), |n| thousands(n as u64)));
    row(
        "BOS",
        match report.prepend_bos {
            Some(true) => "prepended".into(),
            Some(false) => "none".into(),
            None => "unknown".into(),
        },
    );
    row("reads back", format!("with a difference of {:.1e}", report.difference));
    ui.out(table)?;
    ui.say(format!("wrote {}", report.out.display()));
    Ok(())
}
