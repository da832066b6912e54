//! One page over all features of an index, in one file that opens offline: a list to search and sort, and a page for
//! each feature.
//!
//! Examples overlap: twenty of each of 16,384 features quote most of a corpus ten times over. The page holds that text
//! once, and examples are places in it; searching it is one search, whatever the number of features. Everything else
//! about a feature stays compressed, some features to a block, until somebody looks at it.
//!
//! ```text
//! head words list text spots   read when the page opens: names, figures of all features, text, where examples lie
//! c0 c1 c2 …                   64 features each: tables, and activations of every token of their examples
//! ```

use std::path::Path;

use crate::analysis::feature::{FeatureRecord, IndexHeader};
use crate::base::artifact::write_atomic_with;
use crate::base::{Progress, Result};

use super::application::Application;

mod build;
mod tables;
mod text;

pub use build::PageSettings;

const PAGE: Application = Application {
    style: concat!(include_str!("../theme.css"), include_str!("features.css")),
    body: include_str!("page.html"),
    script: concat!(
        "\"use strict\";(()=>{\n",
        include_str!("../blocks.js"),
        include_str!("../dom.js"),
        include_str!("data.js"),
        include_str!("search.js"),
        include_str!("list.js"),
        include_str!("feature.js"),
        include_str!("examples.js"),
        include_str!("main.js"),
        "})();\n"
    ),
};

/// Writes the page about `d_sae` features, which `record` reads one by one, into the file `path`.
///
/// # Errors
/// `Io` when it cannot be written, `Interrupted`, and whatever reading the index gives.
pub fn write(
    path: &Path,
    header: &IndexHeader,
    record: &dyn Fn(u32) -> Result<FeatureRecord>,
    settings: PageSettings,
    progress: &dyn Progress,
) -> Result<()> {
    let blocks = build::build(header, record, settings, progress)?;
    let first = blocks.first.iter().map(|(name, data)| (name, data.as_slice()));
    let chunks = blocks.chunks.iter().enumerate().map(|(number, data)| (format!("c{number}"), data.as_slice()));
    write_atomic_with(path, |file| PAGE.write(&mut std::io::BufWriter::new(file), &blocks.title, first, chunks))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::feature::IndexSettings;
    use crate::base::Silent;

    fn header() -> IndexHeader {
        IndexHeader {
            version: 2,
            model_name: Some("</script><script>alert(1)</script>".into()),
            hook_name: Some("blocks.0.hook_resid_post".into()),
            dictionary: None,
            source: Some("acts".into()),
            neurons_of: None,
            context_size: 8,
            d_sae: 70,
            dead_features: 70,
            rows: 10,
            rows_left_out: 0,
            sequences: 2,
            settings: IndexSettings::default(),
        }
    }

    #[test]
    fn a_page_of_dead_features_is_whole_and_nothing_in_it_is_markup() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("page.html");
        let record = |index: u32| {
            let mut record = FeatureRecord::default();
            record.summary.index = index;
            Ok(record)
        };
        write(&path, &header(), &record, PageSettings::default(), &Silent).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("<!doctype html>") && text.ends_with("</body></html>\n"));
        assert!(!text.contains("<script>alert") && text.matches("<script>").count() == 1);
        for block in ["head", "words", "list", "text", "spots", "c0", "c1"] {
            assert_eq!(text.matches(&format!("id=\"block-{block}\"")).count(), 1, "{block}");
        }
        assert!(!text.contains("http://www.w3.org/1999") && !text.contains("src=\""));
    }

    #[test]
    fn the_script_cannot_end_early() {
        assert!(!PAGE.script.contains("</script") && !PAGE.script.contains("<!--"));
    }
}
