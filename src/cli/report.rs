//! `mechinterp report`

use std::path::PathBuf;

use serde_json::json;

use crate::base::artifact::write_atomic;
use crate::base::{Error, Result};
use crate::web::train_report::{self, TrainReport};

use super::Outcome;
use super::render::Ui;

/// Arguments of `report`.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Args {
    /// Dictionary directory; several are compared on one page.
    #[arg(value_name = "DIR", required = true, num_args = 1..)]
    dirs: Vec<PathBuf>,
    /// File to write; report.html in the directory of a single dictionary when absent.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

pub(super) fn run(args: Args, ui: &Ui) -> Result<Outcome> {
    let path = match (args.html, &args.dirs[..]) {
        (None, [dir]) => train_report::write(dir)?,
        (None, _) => {
            let remedy = "name the page, such as --html compare.html";
            return Err(Error::flag("--html", "a file for a page about several dictionaries", "none", remedy));
        }
        (Some(path), dirs) => {
            let reports = dirs.iter().map(|dir| TrainReport::read(dir)).collect::<Result<Vec<_>>>()?;
            let page = if let [report] = &reports[..] { report.page() } else { train_report::compare(&reports) };
            write_atomic(&path, page.as_bytes())?;
            path
        }
    };
    if ui.json() {
        ui.out_json(&json!({ "html": path }))?;
    } else {
        ui.out(format!("wrote {}", path.display()))?;
    }
    Ok(Outcome::Done)
}
