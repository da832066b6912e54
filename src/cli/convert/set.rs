//! `mechinterp convert --set`

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::base::artifact::InputRecord;
use crate::base::{Artifact, Error, Result, RunRecord};
use crate::dictionary::TranscoderSet;
use crate::interop::{self, Format, OpenedSet, SetFormat};

use super::super::Outcome;
use super::super::open;
use super::super::render::{Table, Ui, thousands};
use super::super::set_facts::SetFacts;
use super::TOLERANCE;

#[derive(Serialize)]
struct Report<'a> {
    set: &'a str,
    from: Format,
    to: Format,
    out: &'a Path,
    #[serde(flatten)]
    facts: SetFacts<'a>,
    /// Of what was written, read back, to what was read: the norm of the difference of their reconstructions over the
    /// norm of the one.
    difference: f64,
    notes: Vec<String>,
}

pub(super) fn run(reference: &str, to: Format, out: &Path, model_name: Option<&str>, ui: &Ui) -> Result<Outcome> {
    let format = SetFormat::of(to)?;
    let OpenedSet { set, format: from, path, notes } = open::transcoder_set(reference, ui)?;
    let set = match model_name {
        Some(name) => set.with_model_name(name),
        None => set,
    };
    let difference = write(&set, reference, &path, format, out)?;
    let report = Report { set: reference, from, to, out, facts: SetFacts::of(&set)?, difference, notes };
    if ui.json() {
        ui.out_json(&report)?;
    } else {
        print(&report, ui)?;
    }
    Ok(Outcome::Done)
}

/// Writes the set, reads it back and says how far the two are apart.
fn write(set: &TranscoderSet, reference: &str, source: &Path, format: SetFormat, out: &Path) -> Result<f64> {
    let artifact = Artifact::begin_new(out)?;
    if let Err(error) = interop::write_set_in(set, artifact.dir(), format) {
        artifact.discard();
        return Err(error);
    }
    let difference = interop::set_distance(set, &interop::open_set(artifact.dir())?)?;
    if difference.is_nan() || difference > TOLERANCE {
        return Err(Error::Mismatch {
            what: "the transcoder set and what was written of it",
            left: reference.into(),
            right: format!("{} differs by {difference:.1e} of its reconstructions", artifact.dir().display()),
            remedy: "this is a defect of the program: please report it with the set".into(),
        });
    }
    let settings = serde_json::json!({ "set": reference, "to": format.format(), "scan": set.config().scan });
    let mut record = RunRecord::new("convert", &settings, 0);
    record.inputs = files(source, set)?;
    artifact.finish(&record)?;
    Ok(difference)
}

/// The files of the set that were read, hashed.
fn files(source: &Path, set: &TranscoderSet) -> Result<Vec<InputRecord>> {
    let record = |path: PathBuf| {
        let blake3 = crate::base::artifact::hash_file(&path)?;
        let name = path.strip_prefix(source).unwrap_or(&path).display().to_string();
        Ok(InputRecord { role: "transcoder".into(), name, blake3 })
    };
    set.files().into_iter().map(record).collect()
}

fn print(report: &Report<'_>, ui: &Ui) -> Result<()> {
    let mut table = Table::new(&["transcoder set", ""]);
    let mut row = |name: &str, value: String| table.row(vec![name.to_owned(), value]);
    row("from", report.from.title().into());
    row("to", report.to.title().into());
    let facts = &report.facts;
    row("kind", facts.kind.title().into());
    row("architecture", facts.activation());
    row("layers", facts.n_layers.to_string());
    row("features a layer", thousands(facts.d_transcoder as u64));
    row("width", facts.d_model.to_string());
    row("reads", facts.feature_input_hook.into());
    row("writes to", facts.feature_output_hook.into());
    row("model", facts.model_name.unwrap_or("unknown").into());
    row("reads back", format!("with a difference of {:.1e}", report.difference));
    ui.out(table)?;
    ui.say(format!("wrote {}", report.out.display()));
    Ok(())
}
