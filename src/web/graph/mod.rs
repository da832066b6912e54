//! One page about an attribution graph, in one file that opens offline: the grid of layers and positions, the edges of a
//! node under the pointer, inputs and outputs with their weights, a subgraph of pinned and grouped nodes, and the state
//! of all of it saved into the graph's JSON.
//!
//! ```text
//! graph     the JSON file of `interop::neuronpedia::graph`, as it is written
//! extra     title, trust in words, strongest paths, which block holds which feature
//! f0 f1 …   features of the graph's nodes, from feature indexes, some to a block
//! ```

use std::path::Path;

use crate::analysis::graph::LayerIndexes;
use crate::base::Result;
use crate::base::artifact::write_atomic_with;
use crate::interop::neuronpedia::graph::Publication;

use super::application::Application;

mod build;
mod dot;
mod picture;
mod svg;

pub use dot::dot;
pub use svg::svg;

const PAGE: Application = Application {
    style: concat!(include_str!("../theme.css"), include_str!("graph.css")),
    body: include_str!("page.html"),
    script: concat!(
        "\"use strict\";(()=>{\n",
        include_str!("../blocks.js"),
        include_str!("../dom.js"),
        include_str!("model.js"),
        include_str!("layout.js"),
        include_str!("grid.js"),
        include_str!("panel.js"),
        include_str!("overview.js"),
        include_str!("subgraph.js"),
        include_str!("main.js"),
        "})();\n"
    ),
};

/// Writes the page about a graph into the file `path`. Features of layers that `indexes` has come with their examples
/// and tokens.
///
/// # Errors
/// `Io` when it cannot be written, `Unsupported` for a graph that no file can hold, and whatever reading an index gives.
pub fn write(path: &Path, publication: &Publication<'_>, indexes: &LayerIndexes) -> Result<()> {
    let blocks = build::build(publication, indexes)?;
    let data = blocks.data.iter().map(|(name, data)| (name, data.as_slice()));
    write_atomic_with(path, |file| {
        PAGE.write(&mut std::io::BufWriter::new(file), &blocks.title, data, std::iter::empty::<(&str, _)>())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::graph::tests::sample;
    use crate::interop::neuronpedia::graph::GraphState;

    #[test]
    fn a_page_is_whole_and_nothing_in_it_is_markup() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("page.html");
        let mut graph = sample(50, 1);
        graph.source.prompt = "</script><script>alert(1)</script>".into();
        graph.source.model = graph.source.prompt.clone();
        let state = GraphState::default();
        let publication = Publication { graph: &graph, state: &state, slug: "g", scan: None, created_ms: None };
        write(&path, &publication, &LayerIndexes::default()).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("<!doctype html>") && text.ends_with("</body></html>\n"));
        assert!(!text.contains("<script>alert") && text.matches("<script>").count() == 1);
        for block in ["graph", "extra"] {
            assert_eq!(text.matches(&format!("id=\"block-{block}\"")).count(), 1, "{block}");
        }
        assert!(!text.contains("src=\"") && !text.contains("href=\"http"));
    }

    #[test]
    fn the_script_cannot_end_early() {
        assert!(!PAGE.script.contains("</script") && !PAGE.script.contains("<!--"));
    }
}
