//! Pages and pictures of a graph, for `graph` and `graph show`.

use std::path::{Path, PathBuf};

use crate::analysis::graph::LayerIndexes;
use crate::base::artifact::write_atomic;
use crate::base::{Error, Result};
use crate::cli::open;
use crate::cli::render::Ui;
use crate::interop::neuronpedia::graph::Publication;
use crate::web::graph;

/// What to draw.
#[derive(Debug, Clone, clap::Args)]
#[command(group(clap::ArgGroup::new("picture").multiple(true)))]
pub(super) struct PictureArgs {
    /// One interactive page that opens offline: point, open, pin, group, prune, save. With --labels features come with
    /// their examples.
    #[arg(long, value_name = "FILE.html")]
    html: Option<PathBuf>,
    /// A still picture.
    #[arg(long, value_name = "FILE.svg", group = "picture")]
    svg: Option<PathBuf>,
    /// The same for Graphviz.
    #[arg(long, value_name = "FILE.dot", group = "picture")]
    dot: Option<PathBuf>,
    /// Features and errors in --svg and --dot, the most influential ones.
    #[arg(long, value_name = "N", default_value_t = 30, requires = "picture")]
    picture_nodes: usize,
}

impl PictureArgs {
    /// Checks that all files can be written, and that none is another one or `graph`.
    ///
    /// # Errors
    /// `Flag` for one file under two flags; `Io`.
    pub(super) fn check(&self, graph: Option<&Path>) -> Result<()> {
        let mut seen = graph.into_iter().collect::<Vec<_>>();
        for (flag, path) in [("--html", &self.html), ("--svg", &self.svg), ("--dot", &self.dot)] {
            let Some(path) = path else { continue };
            open::check_writable(path)?;
            if seen.contains(&path.as_path()) {
                let remedy = "give each its own";
                return Err(Error::flag(flag, "a file that no other flag names", path.display(), remedy));
            }
            seen.push(path);
        }
        Ok(())
    }

    /// The page's file.
    pub(super) fn html(&self) -> Option<&Path> {
        self.html.as_deref()
    }

    /// Writes what was asked for.
    pub(super) fn write(&self, publication: &Publication<'_>, indexes: &LayerIndexes, ui: &Ui) -> Result<()> {
        if let Some(path) = &self.html {
            graph::write(path, publication, indexes)?;
            ui.say(format!("wrote {}", path.display()));
        }
        // Names given on the page are part of its state; pictures have none.
        let mut named = publication.graph.clone();
        publication.state.name(&mut named);
        for (path, draw) in [(&self.svg, graph::svg as fn(&_, _) -> String), (&self.dot, graph::dot)] {
            if let Some(path) = path {
                write_atomic(path, draw(&named, self.picture_nodes).as_bytes())?;
                ui.say(format!("wrote {}", path.display()));
            }
        }
        Ok(())
    }
}
