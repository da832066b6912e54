//! An index for others: one page for a browser, or the files of other programs.

use std::path::{Path, PathBuf};

use serde_json::json;

use crate::analysis::feature::IndexFile;
use crate::base::{Artifact, Error, Result, RunRecord};
use crate::interop::neuronpedia::{self, Names, Source};
use crate::web::features::{self, PageSettings};

use super::super::open;
use super::super::render::Ui;
use super::Args;

/// What to make of an index beside showing it.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "What to write")]
pub(super) struct PublishArgs {
    /// Write one page about all features into this file; it opens in a browser without a network.
    #[arg(long, value_name = "FILE", conflicts_with = "on")]
    html: Option<PathBuf>,
    /// Write the features of an index as another program takes them into the directory --out: neuronpedia,
    /// saedashboard or circuit-tracer. With --sae beside --index decoder rows go with them.
    #[arg(long, value_name = "FORMAT", value_parser = format, requires_all = ["index", "out"], conflicts_with = "on")]
    export: Option<Format>,
    /// What the export calls dictionaries of this kind; a name such as res-16k when absent.
    #[arg(long, value_name = "NAME", requires = "export")]
    export_set: Option<String>,
}

/// Whose files to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Neuronpedia,
    SaeDashboard,
    CircuitTracer,
}

fn format(text: &str) -> Result<Format, String> {
    match text {
        "neuronpedia" => Ok(Format::Neuronpedia),
        "saedashboard" => Ok(Format::SaeDashboard),
        "circuit-tracer" => Ok(Format::CircuitTracer),
        _ => Err("expected neuronpedia, saedashboard or circuit-tracer".into()),
    }
}

impl PublishArgs {
    /// Whether --out is the directory of an export.
    pub(super) fn exports(&self) -> bool {
        self.export.is_some()
    }

    /// Whether something is to be written in place of being shown.
    pub(super) fn any(&self) -> bool {
        self.exports() || self.html.is_some()
    }
}

/// Writes what was asked for.
pub(super) fn run(args: &Args, index: &IndexFile, ui: &Ui) -> Result<()> {
    let PublishArgs { html, export, export_set } = &args.publish;
    let mut written = Vec::new();
    if let Some(path) = html {
        open::check_writable(path)?;
        let record = |feature| index.record(feature);
        let settings = PageSettings { examples: args.top_k, ..PageSettings::default() };
        features::write(path, &index.header, &record, settings, ui.progress())?;
        written.push(path.clone());
    }
    if let (Some(format), Some(out)) = (export, &args.out) {
        written.push(self::export(args, *format, index, export_set.as_deref(), out, ui)?);
    }
    if ui.json() {
        return ui.out_json(&json!({ "written": written }));
    }
    written.iter().try_for_each(|path| ui.out(format!("wrote {}", path.display())))
}

fn export(args: &Args, format: Format, index: &IndexFile, set: Option<&str>, out: &Path, ui: &Ui) -> Result<PathBuf> {
    let names = Names::of(&index.header, set)?;
    let dictionary = args.sae.as_ref().map(|sae| open::dictionary(sae, ui)).transpose()?;
    if let Some(dictionary) = &dictionary
        && dictionary.d_sae() != index.header.d_sae
    {
        return Err(Error::Mismatch {
            what: "dictionary and index",
            left: format!("{dictionary} with {} features", dictionary.d_sae()),
            right: format!("an index of {} features", index.header.d_sae),
            remedy: "give the dictionary that the index was made of".into(),
        });
    }
    let artifact = Artifact::begin_new(out)?;
    let features: Vec<u32> = (0..index.header.d_sae as u32).collect();
    let source = Source {
        header: &index.header,
        features: &features,
        record: &|feature| index.record(feature),
        dictionary: dictionary.as_ref(),
        names: &names,
        progress: ui.progress(),
    };
    let made = match format {
        Format::Neuronpedia => neuronpedia::export::write(source, artifact.dir())?,
        Format::SaeDashboard => {
            neuronpedia::dashboard::write(source, artifact.dir())?;
            artifact.dir().to_path_buf()
        }
        Format::CircuitTracer => neuronpedia::panel::write(source, artifact.dir())?,
    };
    let inside = made.strip_prefix(artifact.dir()).map(Path::to_path_buf).unwrap_or_default();
    if format == Format::CircuitTracer {
        ui.say(format!("graphs with the scan ./data/{} show these features", inside.display()));
    }
    let settings = json!({ "index": args.index, "format": format!("{format:?}"), "names": names });
    artifact.finish(&RunRecord::new("features", &settings, 0))?;
    Ok(out.join(inside))
}
