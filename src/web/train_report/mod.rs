//! The page about a trained dictionary: how training went, what came out, and how to make it again; or, of several,
//! how they compare.
//!
//! Everything is read from the dictionary's directory. Curves follow the keys of `metrics.jsonl`, so a figure that a
//! training method adds appears without a change here.

mod compare;
mod curves;

use std::path::{Path, PathBuf};

use serde_json::Value;

pub use compare::compare;
use curves::Curves;

use super::chart::{Axis, Histogram, figure};
use super::markup::Element;
use super::page::{self, Card};
use super::text::{duration, shell_word, short, thousands, trained_as};
use crate::analysis::eval::weights::{Directions, directions};
use crate::base::artifact::{read_json, write_atomic};
use crate::base::{Result, RunRecord, Silent};
use crate::dictionary::train::{METRICS_FILE, Session};
use crate::dictionary::{DictionaryConfig, io};

/// What densities are counted on.
const DENSITY_ROWS: &str = "The first picture counts the last rows of training, two million at most.";

/// Name of the page in a dictionary's directory.
pub const REPORT_FILE: &str = "report.html";

/// A trained dictionary as its directory describes it.
#[derive(Debug, Clone)]
pub struct TrainReport {
    name: String,
    config: DictionaryConfig,
    record: Option<RunRecord>,
    curves: Curves,
    sessions: Vec<Session>,
    /// How often each feature fired at the end of training, `[f]`.
    frequencies: Option<Vec<f64>>,
    directions: Directions,
    encoder_bias: Vec<f32>,
}

/// Writes [`REPORT_FILE`] into the dictionary directory `dir`.
///
/// # Errors
/// As [`TrainReport::read`]; `Io` when the page cannot be written.
pub fn write(dir: &Path) -> Result<PathBuf> {
    let path = dir.join(REPORT_FILE);
    write_atomic(&path, TrainReport::read(dir)?.page().as_bytes())?;
    Ok(path)
}

/// Writes [`REPORT_FILE`] into each of the dictionary directories `members`, and into `dir` one that compares them.
///
/// # Errors
/// As [`write()`].
pub fn write_sweep(dir: &Path, members: &[PathBuf]) -> Result<()> {
    let mut reports = Vec::with_capacity(members.len());
    for member in members {
        let report = TrainReport::read(member)?;
        write_atomic(&member.join(REPORT_FILE), report.page().as_bytes())?;
        reports.push(report);
    }
    write_atomic(&dir.join(REPORT_FILE), compare(&reports).as_bytes())
}

impl TrainReport {
    /// Reads the directory of a dictionary. One that was not trained by this program has weights and no curves.
    ///
    /// # Errors
    /// Whatever reading its files gives.
    pub fn read(dir: &Path) -> Result<Self> {
        let dictionary = io::read(dir)?;
        let name = dir.file_name().unwrap_or(dir.as_os_str()).to_string_lossy();
        let record = dir.join("run.json");
        Ok(Self {
            name: name.trim_end_matches(".partial").to_owned(),
            record: record.exists().then(|| read_json("record of the run", &record)).transpose()?,
            curves: Curves::read(&dir.join(METRICS_FILE))?,
            sessions: Session::read_all(dir)?,
            frequencies: io::read_sparsity(dir, dictionary.d_sae())?,
            directions: directions(&dictionary, false, &Silent)?,
            encoder_bias: dictionary.b_enc,
            config: dictionary.config,
        })
    }

    /// The page.
    pub fn page(&self) -> String {
        let mut body = vec![page::header(&self.above(), &self.title(), &self.facts()), page::cards(&self.cards())];
        if self.curves.is_empty() {
            body.push(page::section("Training", "There is no metrics.jsonl: another program trained this.", []));
        } else {
            let note = "Over the tokens seen. Point at a curve to read its values; held-out text is never trained on.";
            body.push(page::section("Training", note, [page::charts(self.curves.charts())]));
        }
        let note = self.silent_note();
        body.push(page::section("Features", &note, [page::charts(self.histograms())]));
        let made = Element::of("div", "columns").children([panel(&self.provenance()), panel(&self.settings())]);
        body.push(page::section(
            "How it was made",
            "",
            self.command().map(|c| page::code(&c)).into_iter().chain([made]),
        ));
        body.push(page::footer());
        page::html(&format!("{} · {}", self.name, self.title()), body)
    }

    fn above(&self) -> String {
        format!("Sparse dictionary · {}", self.name)
    }

    fn title(&self) -> String {
        let hook = self.config.metadata.hook_name.as_deref().unwrap_or("a dictionary without a hook");
        match &self.config.metadata.model_name {
            Some(model) => format!("{hook} of {}", short(model)),
            None => hook.to_owned(),
        }
    }

    fn facts(&self) -> Vec<String> {
        let DictionaryConfig { d_in, d_sae, d_out, .. } = self.config;
        let widths = if d_in == d_out { d_in.to_string() } else { format!("{d_in} to {d_out}") };
        let mut facts =
            vec![trained_as(&self.config), format!("{} features", thousands(d_sae as u64)), format!("width {widths}")];
        let data = self.config.metadata.dataset_path.as_deref();
        facts.extend(
            data.map(|data| format!("trained on {}", data.split(',').map(short).collect::<Vec<_>>().join(", "))),
        );
        facts
    }

    fn cards(&self) -> Vec<Card> {
        let (curves, f) = (&self.curves, self.config.d_sae);
        let mut cards = Vec::new();
        let place = if self.has_heldout() { "held-out text" } else { "the last batch" };
        if let Some(value) = self.explained_variance() {
            let note = format!("R² on {place}");
            cards.push(Card { label: "Explained variance", value: format!("{value:.4}"), note });
        }
        if let Some(value) = self.l0() {
            cards.push(Card { label: "L0", value: format!("{value:.1}"), note: format!("active features, {place}") });
        }
        if let Some(dead) = self.dead() {
            let share = 100.0 * dead / f.max(1) as f64;
            let revived = curves.last("resampled").filter(|n| *n > 0.0);
            let revived = revived.map_or(String::new(), |n| format!(", {} started again", thousands(n as u64)));
            let note = format!("{share:.1} % of {}{revived}", thousands(f as u64));
            cards.push(Card { label: "Dead features", value: thousands(dead as u64), note });
        }
        if let Some((steps, rows)) = curves.last("step").zip(curves.last(curves::SAMPLES)) {
            let note = format!("tokens, in {} steps", thousands(steps as u64));
            cards.push(Card { label: "Trained on", value: figure(rows), note });
        }
        let seconds: f64 = self.sessions.iter().map(|s| s.seconds).sum();
        let tokens: u64 = self.sessions.iter().map(|s| s.tokens).sum();
        if seconds > 0.0 {
            cards.push(Card { label: "Speed", value: figure(tokens as f64 / seconds), note: "tokens a second".into() });
            let resumed = match self.sessions.len() {
                0 | 1 => "of training".into(),
                n => format!("of training, in {n} sessions"),
            };
            cards.push(Card { label: "Time", value: duration(seconds), note: resumed });
        }
        cards
    }

    fn has_heldout(&self) -> bool {
        self.curves.last("heldout_explained_variance").is_some()
    }

    /// Measured at the very end where the dictionary says so, else the last that was logged.
    fn explained_variance(&self) -> Option<f64> {
        let stored = self.config.metadata.extra.get("explained_variance").and_then(Value::as_f64);
        let logged = || self.curves.last("heldout_explained_variance").or(self.curves.last("explained_variance"));
        stored.or_else(logged)
    }

    fn l0(&self) -> Option<f64> {
        self.config.metadata.l0.or(self.curves.last("heldout_l0")).or(self.curves.last("l0"))
    }

    fn dead(&self) -> Option<f64> {
        self.config.metadata.num_dead_features.map(|n| n as f64).or(self.curves.last("dead_features"))
    }

    fn silent_note(&self) -> String {
        let silent = self.frequencies.as_ref().map(|f| f.iter().filter(|f| **f == 0.0).count());
        match silent {
            None => String::new(),
            Some(0) => format!("{DENSITY_ROWS} Every feature fired in them; dead are those silent at the very end."),
            Some(n) => format!(
                "{DENSITY_ROWS} {} features did not fire in them and have no place in the first picture.",
                thousands(n as u64)
            ),
        }
    }

    fn histograms(&self) -> Vec<Element> {
        let Directions { encoder_norm, decoder_norm, encoder_decoder, .. } = &self.directions;
        let of = |title: &str, axis: Axis, values: &[f32]| {
            Histogram::new(title, axis, "features", values.iter().map(|v| f64::from(*v))).svg()
        };
        let mut charts = Vec::new();
        if let Some(frequencies) = &self.frequencies {
            let axis = Axis::log("share of tokens on which a feature fires");
            charts.push(Histogram::new("Density", axis, "features", frequencies.iter().copied()).svg());
        }
        charts.push(of("Decoder norms", Axis::linear("norm of a decoder row"), decoder_norm));
        charts.push(of("Encoder norms", Axis::linear("norm of an encoder column"), encoder_norm));
        if let Some(cosines) = encoder_decoder {
            let axis = Axis::linear("cosine of a feature's encoder column and decoder row");
            charts.push(of("Encoder against decoder", axis, cosines));
        }
        charts.push(of("Encoder biases", Axis::linear("encoder bias"), &self.encoder_bias));
        charts
    }

    fn provenance(&self) -> Vec<(String, String)> {
        let metadata = &self.config.metadata;
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let extra = |key: &str| metadata.extra.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let mut rows = vec![
            ("model".into(), text(&metadata.model_name)),
            ("hook".into(), text(&metadata.hook_name)),
            ("text".into(), text(&metadata.dataset_path)),
            ("context".into(), metadata.context_size.map_or(String::new(), |n| format!("{n} tokens"))),
            ("begins with BOS".into(), metadata.prepend_bos.map_or("", |b| if b { "yes" } else { "no" }).into()),
            ("trained with".into(), extra("trained_with")),
        ];
        for input in self.record.iter().flat_map(|r| &r.inputs) {
            rows.push((input.role.clone(), input.name.clone()));
            rows.push((format!("BLAKE3 of the {}", input.role), input.blake3.clone()));
        }
        rows.retain(|(_, value)| !value.is_empty());
        rows
    }

    fn settings(&self) -> Vec<(String, String)> {
        let mut rows = Vec::new();
        if let Some(record) = &self.record {
            flatten("", &record.settings, &mut rows);
            if !rows.iter().any(|(name, _)| name == "seed") {
                rows.push(("seed".into(), record.seed.to_string()));
            }
        }
        rows
    }

    fn command(&self) -> Option<String> {
        let arguments = &self.sessions.first()?.arguments;
        (!arguments.is_empty()).then(|| arguments.iter().map(|a| shell_word(a)).collect::<Vec<_>>().join(" "))
    }
}

fn panel(rows: &[(String, String)]) -> Element {
    Element::of("div", "panel").child(page::pairs(rows))
}

/// The leaves of `value` under their own names, which are unique in our settings; inner objects one after the other.
fn flatten(name: &str, value: &Value, rows: &mut Vec<(String, String)>) {
    match value {
        Value::Object(map) => map.iter().for_each(|(name, value)| flatten(name, value, rows)),
        Value::Null => rows.push((spaced(name), "automatic".into())),
        Value::String(text) => rows.push((spaced(name), text.clone())),
        other => rows.push((spaced(name), other.to_string())),
    }
}

fn spaced(name: &str) -> String {
    name.replace('_', " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::artifact::write_json;
    use crate::dictionary::Architecture;
    use crate::dictionary::tests::random;
    use crate::dictionary::train::SESSIONS_FILE;
    use crate::web::markup::tests::well_formed;

    const METRICS: &str = "{\"step\":1,\"n_training_samples\":4096,\"loss\":2.0,\"explained_variance\":0.5,\"l0\":9.0,\
                           \"dead_features\":1,\"heldout_explained_variance\":0.625}\n";

    fn directory() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let mut dictionary = random(Architecture::TopK { k: 3, rescale_acts_by_decoder_norm: false }, 6, 40);
        dictionary.config.metadata.hook_name = Some("blocks.1.hook_resid_post".into());
        dictionary.config.metadata.model_name = Some("/models/<img src=x>".into());
        dictionary.config.metadata.num_dead_features = Some(2);
        io::write(dir.path(), &dictionary).unwrap();
        io::write_sparsity(dir.path(), &[vec![0.0; 5], vec![0.125; 35]].concat()).unwrap();
        let record = RunRecord::new("train-sae", &serde_json::json!({"training": {"lr": 0.5, "steps": null}}), 7);
        let arguments = ["mechinterp", "train-sae", "--cache", "my acts"].map(Into::into).to_vec();
        let session = Session { arguments, from_step: 0, to_step: 1, tokens: 4096, seconds: 2.0 };
        write_json(&dir.path().join(SESSIONS_FILE), &[session]).unwrap();
        write_json(&dir.path().join("run.json"), &record).unwrap();
        std::fs::write(dir.path().join(METRICS_FILE), METRICS).unwrap();
        dir
    }

    #[test]
    fn the_page_says_what_the_directory_holds() {
        let dir = directory();
        let page = std::fs::read_to_string(write(dir.path()).unwrap()).unwrap();
        let names = well_formed(page.strip_prefix("<!doctype html>").unwrap());
        assert!(!names.iter().any(|name| name == "img" || name == "script"), "{names:?}");
        assert_eq!(names.iter().filter(|name| *name == "figure").count(), 4 + 5, "curves and histograms");
        for expected in [
            "blocks.1.hook_resid_post of &lt;img src=x&gt;",
            "TopK, k = 3",
            ">0.6250<",
            "5.0 % of 40",
            ">2048<",
            "tokens a second",
            "5 features did not fire",
            "mechinterp train-sae --cache 'my acts'",
            ">automatic<",
        ] {
            assert!(page.contains(expected), "{expected} is not in {page}");
        }
    }

    #[test]
    fn dictionaries_of_other_programs_have_no_curves() {
        let dir = directory();
        for file in [METRICS_FILE, SESSIONS_FILE, "run.json", "sparsity.safetensors"] {
            std::fs::remove_file(dir.path().join(file)).unwrap();
        }
        let report = TrainReport::read(dir.path()).unwrap();
        let page = report.page();
        well_formed(page.strip_prefix("<!doctype html>").unwrap());
        assert!(page.contains("another program trained this") && page.contains("Decoder norms"));
        assert!(!page.contains(">Density<") && !page.contains(">Speed<"));
        let both = compare(&[report.clone(), TrainReport::read(directory().path()).unwrap()]);
        well_formed(both.strip_prefix("<!doctype html>").unwrap());
        assert!(both.contains(">2 dictionaries</h1>"));
    }
}
