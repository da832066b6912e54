//! One page about an attribution graph, in one file that opens offline: the grid of layers and positions, the edges of a
//! node under the pointer, inputs and outputs with their weights, a subgraph of pinned and grouped nodes, and the state
//! of all of it saved into the graph's JSON.
//!
//! ```text
//! graph     the JSON file of `interop::neuronpedia::graph`, as it is written
//! extra     title, trust in words, strongest paths, which block holds which feature
//! f0 f1 …   features of the graph's nodes, from feature indexes, some to a block
//! ```

use std::io::Write;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::analysis::graph::LayerIndexes;
use crate::base::Result;
use crate::base::artifact::write_atomic_with;
use crate::interop::neuronpedia::graph::Publication;

use super::block;
use super::markup::Element;

mod build;
mod dot;
mod picture;
mod svg;

use build::Blocks;
pub use dot::dot;
pub use svg::svg;

const STYLE: &str = concat!(include_str!("../theme.css"), include_str!("graph.css"));
const BODY: &str = include_str!("page.html");
const SCRIPT: &str = concat!(
    "\"use strict\";(()=>{\n",
    include_str!("../blocks.js"),
    include_str!("../dom.js"),
    include_str!("model.js"),
    include_str!("grid.js"),
    include_str!("panel.js"),
    include_str!("overview.js"),
    include_str!("subgraph.js"),
    include_str!("main.js"),
    "})();\n"
);

/// Writes the page about a graph into the file `path`. Features of layers that `indexes` has come with their examples
/// and tokens.
///
/// # Errors
/// `Io` when it cannot be written, `Unsupported` for a graph that no file can hold, and whatever reading an index gives.
pub fn write(path: &Path, publication: &Publication<'_>, indexes: &LayerIndexes) -> Result<()> {
    let blocks = build::build(publication, indexes)?;
    write_atomic_with(path, |file| page(&mut std::io::BufWriter::new(file), &blocks))
}

fn page(out: &mut impl Write, blocks: &Blocks) -> std::io::Result<()> {
    // The browser runs this script and no other, and refuses every request.
    let policy = format!(
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{}'",
        block::base64(&Sha256::digest(SCRIPT.as_bytes()))
    );
    let head = Element::new("head")
        .child(Element::new("meta").attr("charset", "utf-8"))
        .child(Element::new("meta").attr("http-equiv", "Content-Security-Policy").attr("content", policy))
        .child(Element::new("meta").attr("name", "viewport").attr("content", "width=device-width, initial-scale=1"))
        .child(Element::new("meta").attr("name", "color-scheme").attr("content", "light dark"))
        .child(Element::new("link").attr("rel", "icon").attr("href", "data:,"))
        .child(Element::new("title").text(&blocks.title))
        .child(Element::style(&[STYLE]));
    write!(out, "<!doctype html>\n<html lang=\"en\">{head}\n{BODY}")?;
    for (name, data) in &blocks.data {
        block::write(out, name, data)?;
    }
    writeln!(out, "<script>{SCRIPT}</script>")?;
    out.write_all(b"</body></html>\n")?;
    out.flush()
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
        assert!(!SCRIPT.contains("</script") && !SCRIPT.contains("<!--"));
    }
}
