//! Names of features: given, taken, read and written.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::analysis::feature::{IndexFile, Label};
use crate::base::{Error, Result};

use super::super::render::{Table, Ui};
use super::super::{Outcome, feature_page};

/// What can be done with labels.
#[derive(Debug, Clone, clap::Subcommand)]
pub(super) enum Action {
    /// Give a feature a label, or with --remove take it away.
    Label(LabelArgs),
    /// List all labels, or read and write files of them.
    #[command(subcommand)]
    Labels(Files),
}

/// Arguments of `features label`.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct LabelArgs {
    /// The index whose feature it is.
    #[arg(long, value_name = "DIR")]
    index: PathBuf,
    /// The feature.
    #[arg(value_name = "ID")]
    feature: u32,
    /// What it means.
    #[arg(value_name = "TEXT", required_unless_present = "remove", conflicts_with = "remove")]
    text: Option<String>,
    /// Who says so.
    #[arg(long, value_name = "NAME")]
    author: Option<String>,
    /// Take all labels of the feature away.
    #[arg(long)]
    remove: bool,
}

/// Files of labels.
#[derive(Debug, Clone, clap::Subcommand)]
pub(super) enum Files {
    /// All labels of an index.
    List {
        /// The index.
        #[arg(long, value_name = "DIR")]
        index: PathBuf,
    },
    /// Add the labels of a file: JSON lines with `feature` and `text`, or Neuronpedia's explanations, .gz or not.
    Import {
        /// The index to add them to.
        #[arg(long, value_name = "DIR")]
        index: PathBuf,
        /// The file.
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Write all labels into a file of JSON lines, compressed when its name ends in .gz.
    Export {
        /// The index.
        #[arg(long, value_name = "DIR")]
        index: PathBuf,
        /// The file.
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Write Neuronpedia's explanations, for this model and source, such as gpt2-small/8-res-jb.
        #[arg(long, value_name = "MODEL/SOURCE", value_parser = neuronpedia)]
        neuronpedia: Option<(String, String)>,
    },
}

fn neuronpedia(text: &str) -> Result<(String, String), String> {
    match text.rsplit_once('/') {
        Some((model, source)) if !model.is_empty() && !source.is_empty() => Ok((model.into(), source.into())),
        _ => Err("expected a model and a source, such as gpt2-small/8-res-jb".into()),
    }
}

pub(super) fn run(action: &Action, ui: &Ui) -> Result<Outcome> {
    match action {
        Action::Label(args) => label(args, ui)?,
        Action::Labels(Files::List { index }) => list(&IndexFile::open(index)?, ui)?,
        Action::Labels(Files::Import { index, file }) => {
            let mut opened = IndexFile::open(index)?;
            let imported = opened.labels.import(file, opened.header.d_sae)?;
            opened.labels.save(index)?;
            if ui.json() {
                ui.out_json(&imported)?;
            } else {
                let empty = if imported.empty > 0 {
                    format!(", {} without text passed over", imported.empty)
                } else {
                    String::new()
                };
                ui.out(format!("{} labels added, {} replaced{empty}", imported.added, imported.replaced))?;
            }
        }
        Action::Labels(Files::Export { index, file, neuronpedia }) => {
            let labels = IndexFile::open(index)?.labels;
            match neuronpedia {
                Some((model, source)) => labels.export_neuronpedia(file, model, source)?,
                None => labels.export(file)?,
            }
            ui.say(format!("wrote {} labels into {}", labels.iter().count(), file.display()));
        }
    }
    Ok(Outcome::Done)
}

fn label(args: &LabelArgs, ui: &Ui) -> Result<()> {
    let mut index = IndexFile::open(&args.index)?;
    // Also checks that there is such a feature.
    let record = index.record(args.feature)?;
    match &args.text {
        Some(text) if text.trim().is_empty() => {
            return Err(Error::flag("TEXT", "what the feature means", "nothing", "--remove takes a label away"));
        }
        Some(text) => {
            let label = Label { author: args.author.clone(), ..Label::by_hand(args.feature, text.trim()) };
            index.labels.set(label);
        }
        None if record.labels.is_empty() => {
            ui.say(format!("feature {} has no label", args.feature));
        }
        None => {
            index.labels.remove(args.feature, true);
        }
    }
    index.labels.save(&args.index)?;
    if ui.json() {
        return ui.out_json(&index.labels.of(args.feature));
    }
    feature_page::heading(&index.record(args.feature)?, ui)?;
    ui.say(format!("labels are in {}", labels_file(&args.index)));
    Ok(())
}

fn labels_file(dir: &Path) -> String {
    dir.join(crate::analysis::feature::labels::LABELS_FILE).display().to_string()
}

#[derive(Serialize)]
struct Report<'a> {
    labels: Vec<&'a Label>,
}

fn list(index: &IndexFile, ui: &Ui) -> Result<()> {
    let labels: Vec<&Label> = index.labels.iter().collect();
    if ui.json() {
        return ui.out_json(&Report { labels });
    }
    if labels.is_empty() {
        return ui.out("no feature has a label; `features label --index DIR ID TEXT` gives one");
    }
    let mut table = Table::new(&[">feature", ">fires on", "label", "made by"]);
    for label in labels {
        let density = index.summaries().get(label.feature as usize).map_or(0.0, |s| s.density);
        let by: Vec<&str> =
            [&label.author, &label.method, &label.model].into_iter().flatten().map(String::as_str).collect();
        table.row(vec![
            label.feature.to_string(),
            feature_page::percent(density),
            feature_page::one_line(&label.text),
            by.join(", "),
        ]);
    }
    ui.out(table)
}
