//! `mechinterp graph show`

use std::path::PathBuf;

use crate::analysis::graph::LayerIndexes;
use crate::base::Result;
use crate::cli::Outcome;
use crate::cli::render::Ui;
use crate::interop::neuronpedia::graph::{GraphFile, Publication, read};

use super::pictures::PictureArgs;
use super::summary;

pub(super) const ABOUT: &str = "A saved graph again: on the terminal, as a page, as a picture";

/// Arguments of `graph show`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// The graph: a file that `graph --out`, its page, circuit-tracer or Neuronpedia wrote.
    #[arg(value_name = "FILE.json")]
    file: PathBuf,
    /// Index of a layer's features, for their names and examples, or a directory of such; repeatable.
    #[arg(long, value_name = "DIR", num_args = 1..)]
    labels: Vec<PathBuf>,
    #[command(flatten)]
    pictures: PictureArgs,
}

pub(super) fn run(args: &Args, ui: &Ui) -> Result<Outcome> {
    args.pictures.check(None)?;
    let indexes = LayerIndexes::open(&args.labels)?;
    let GraphFile { mut graph, state, slug, scan, notes } = read(&args.file)?;
    for note in &notes {
        ui.say(note);
    }
    indexes.name(&mut graph)?;
    let publication = Publication { graph: &graph, state: &state, slug: &slug, scan: Some(&scan), created_ms: None };
    args.pictures.write(&publication, &indexes, ui)?;
    // Names given on the page are part of its state; the other forms have none.
    state.name(&mut graph);
    if ui.json() {
        ui.out_json(&graph)?;
    } else {
        summary::summary(&graph, ui)?;
    }
    Ok(Outcome::Done)
}
