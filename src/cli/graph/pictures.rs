//! Pages and pictures of a graph, for `graph` and `graph show`.

use std::path::{Path, PathBuf};

use crate::analysis::graph::LayerIndexes;
use crate::base::Result;
use crate::base::artifact::write_atomic;
use crate::cli::open;
use crate::cli::render::Ui;
use crate::interop::neuronpedia::graph::Publication;
use crate::web::graph;

/// What to draw.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct PictureArgs {
    /// One interactive page that opens offline: point, open, pin, group, prune, save. With --labels features come with
    /// their examples.
    #[arg(long, value_name = "FILE.html")]
    html: Option<PathBuf>,
    /// A still picture.
    #[arg(long, value_name = "FILE.svg")]
    svg: Option<PathBuf>,
    /// The same for Graphviz.
    #[arg(long, value_name = "FILE.dot")]
    dot: Option<PathBuf>,
    /// Features and errors in --svg and --dot, the most influential ones.
    #[arg(long, value_name = "N", default_value_t = 30)]
    picture_nodes: usize,
}

impl PictureArgs {
    /// Checks that all files can be written.
    pub(super) fn check(&self) -> Result<()> {
        [&self.html, &self.svg, &self.dot].into_iter().flatten().try_for_each(|path| open::check_writable(path))
    }

    /// The page's file.
    pub(super) fn html(&self) -> Option<&Path> {
        self.html.as_deref()
    }

    /// Writes what was asked for.
    pub(super) fn write(&self, publication: &Publication<'_>, indexes: &LayerIndexes, ui: &Ui) -> Result<()> {
        let wrote = |path: &Path| ui.say(format!("wrote {}", path.display()));
        if let Some(path) = &self.html {
            graph::write(path, publication, indexes)?;
            wrote(path);
        }
        let text =
            |draw: fn(&crate::analysis::graph::Graph, usize) -> String| draw(publication.graph, self.picture_nodes);
        for (path, draw) in [(&self.svg, graph::svg as fn(&_, _) -> _), (&self.dot, graph::dot)] {
            if let Some(path) = path {
                write_atomic(path, text(draw).as_bytes())?;
                wrote(path);
            }
        }
        Ok(())
    }
}
