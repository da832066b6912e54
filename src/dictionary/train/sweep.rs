//! Sweep files: several dictionaries to train on the same rows, as TOML.
//!
//! ```toml
//! [defaults]                  # settings of all runs, by the names of `TrainSettings`, and `hook`
//! d_sae = 16384
//! steps = 2000
//!
//! [[run]]                     # one run, or with a grid one for each choice of a value from every list
//! name = "topk"
//! arch = "topk"
//! grid = { k = [32, 64, 128] }
//!
//! [[run]]
//! name = "relu"
//! grid = { l1_coefficient = [2, 5], seed = [1, 2] }
//!
//! [grid]                      # lists that multiply every run; without any [[run]] they are the runs
//! lr = [5e-4, 1e-3]
//! ```
//!
//! Runs of a grid are named by their values, `topk-k=32-lr=0.0005`. What concerns the batches can stand in
//! `[defaults]` alone, since all runs share them.

use std::path::Path;

use serde::Deserialize;
use toml::{Table, Value};

use super::settings::TrainSettings;
use crate::base::nearest::nearest;
use crate::base::{Error, Result};

const WHAT: &str = "sweep file";
/// Settings that all runs share, as they share the batches.
const SHARED: [&str; 6] = ["batch_size", "tokens", "steps", "checkpoint_every", "n_batches_for_norm", "heldout_rows"];
/// Runs in a file at most: more are a grid that grew by accident.
const MAX_RUNS: usize = 1000;

/// One dictionary of a sweep.
#[derive(Debug, Clone, PartialEq)]
pub struct SweepEntry {
    /// What tells it from the others; a file name.
    pub name: String,
    /// The hook point it learns from, where the file names one.
    pub hook: Option<String>,
    /// Its settings.
    pub settings: TrainSettings,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    defaults: Table,
    #[serde(default)]
    grid: Table,
    #[serde(default)]
    run: Vec<Table>,
}

/// Reads the sweep file at `path`; what it leaves open is as in `base`.
///
/// # Errors
/// `Io` when it cannot be read; `Malformed`, with the key, when it is not as described, gives no run or one name twice.
pub fn read_sweep(path: &Path, base: &TrainSettings) -> Result<Vec<SweepEntry>> {
    let text = std::fs::read_to_string(path).map_err(Error::io("read the sweep file", path))?;
    let file = File::parse(path, &text)?;
    Reader { path, base }.entries(file)
}

impl File {
    fn parse(path: &Path, text: &str) -> Result<Self> {
        toml::from_str(text).map_err(|e| {
            let line = e.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            let at = line.map_or(String::new(), |line| format!(" in line {line}"));
            let expected = "TOML with [defaults], [grid] and [[run]]";
            let found = format!("{}{at}", e.message().replace('\n', " "));
            Error::malformed(WHAT, path, expected, found, "correct the file; 'train-sae --help' shows an example")
        })
    }
}

struct Reader<'a> {
    path: &'a Path,
    base: &'a TrainSettings,
}

/// A run before its name is settled: the names of its values and its settings.
type Choice = (Vec<String>, Table);

impl Reader<'_> {
    fn entries(&self, file: File) -> Result<Vec<SweepEntry>> {
        let File { defaults, grid, mut run } = file;
        self.check(&defaults, "[defaults]", true)?;
        if run.is_empty() {
            if grid.is_empty() {
                return Err(self.wrong("at least one [[run]], or a [grid]", "neither".into()));
            }
            run.push(Table::new());
        }
        let alone = run.len() == 1;
        let mut entries: Vec<SweepEntry> = Vec::new();
        for (number, mut own) in run.into_iter().enumerate() {
            let place = format!("[[run]] number {}", number + 1);
            let name = self.name(&mut own, &place, alone)?;
            let own_grid = match own.remove("grid") {
                None => Table::new(),
                Some(Value::Table(table)) => table,
                Some(other) => return Err(self.wrong("a table of lists", format!("grid = {other} in {place}"))),
            };
            self.check(&own, &place, false)?;
            let mut settings = defaults.clone();
            settings.extend(own);
            let lists: Table = grid.clone().into_iter().chain(own_grid).collect();
            for (values, settings) in self.product(settings, &lists, &place)? {
                let name: Vec<String> = name.iter().cloned().chain(values).collect();
                let entry = self.entry(name.join("-"), settings)?;
                if entries.iter().any(|other| other.name == entry.name) {
                    return Err(self.wrong("a name of its own for each run", format!("'{}' twice", entry.name)));
                }
                entries.push(entry);
            }
            if entries.len() > MAX_RUNS {
                return Err(self.wrong("at most 1000 runs", "more".into()));
            }
        }
        Ok(entries)
    }

    /// The name that a run gives itself; one that is alone needs none where a grid names its parts.
    fn name(&self, own: &mut Table, place: &str, alone: bool) -> Result<Option<String>> {
        match own.remove("name") {
            Some(Value::String(name)) if is_file_name(&name) => Ok(Some(name)),
            Some(other) => {
                let expected = "a name of letters, digits, '.', '_', '-', '=' that does not begin with a dot";
                Err(self.wrong(expected, format!("name = {other} in {place}")))
            }
            None if alone => Ok(None),
            None => Err(self.wrong("a name", format!("none in {place}"))),
        }
    }

    /// `settings` with every choice of a value from each of `lists`.
    fn product(&self, settings: Table, lists: &Table, place: &str) -> Result<Vec<Choice>> {
        let mut choices: Vec<Choice> = vec![(Vec::new(), settings)];
        for (key, list) in lists {
            let values = match list {
                Value::Array(values) if !values.is_empty() => values,
                other => return Err(self.wrong("a list of values", format!("{key} = {other} in the grid of {place}"))),
            };
            let mut more = Vec::new();
            for (names, settings) in choices {
                for value in values {
                    let mut settings = settings.clone();
                    settings.insert(key.clone(), value.clone());
                    let mut names = names.clone();
                    names.push(file_name(&format!("{key}={}", plain(value))));
                    more.push((names, settings));
                }
            }
            choices = more;
            if choices.len() > MAX_RUNS {
                return Err(self.wrong("at most 1000 runs", format!("more in {place}")));
            }
        }
        for (_, settings) in &choices {
            let varied: Table = settings.iter().filter(|(key, _)| lists.contains_key(*key)).map(cloned).collect();
            self.check(&varied, &format!("the grid of {place}"), false)?;
        }
        Ok(choices)
    }

    fn entry(&self, name: String, mut settings: Table) -> Result<SweepEntry> {
        if name.is_empty() {
            return Err(self.wrong("a name", "none in [[run]] number 1".into()));
        }
        let hook = match settings.remove("hook") {
            Some(Value::String(hook)) => Some(hook),
            _ => None,
        };
        Ok(SweepEntry { settings: self.settings(&settings, &name)?, name, hook })
    }

    /// The base settings with those of `table`.
    fn settings(&self, table: &Table, place: &str) -> Result<TrainSettings> {
        let base = serde_json::to_value(self.base).ok();
        let Some(serde_json::Value::Object(mut all)) = base else {
            return Err(self.wrong("settings", "none".into()));
        };
        for (key, value) in table {
            let value = serde_json::to_value(value).unwrap_or_default();
            all.insert(key.clone(), value);
        }
        serde_json::from_value(all.into())
            .map_err(|e| self.wrong("values of the right kind", format!("{e} in {place}")))
    }

    /// Checks that every key of `table` is a setting, has a value of the right kind, and may stand there.
    fn check(&self, table: &Table, place: &str, shared: bool) -> Result<()> {
        let known = match serde_json::to_value(self.base) {
            Ok(serde_json::Value::Object(fields)) => fields,
            _ => serde_json::Map::new(),
        };
        for (key, value) in table {
            let found = || format!("{key} = {value} in {place}");
            if key == "hook" {
                if !value.is_str() {
                    return Err(self.wrong("the name of a hook point", found()));
                }
                continue;
            }
            if !known.contains_key(key) {
                let near = nearest(key, known.keys().map(String::as_str).chain(["hook"]), 4).join(", ");
                return Err(self.wrong(&format!("a setting such as {near}"), format!("{key} in {place}")));
            }
            if !shared && SHARED.contains(&key.as_str()) {
                return Err(self.wrong(&format!("{key} in [defaults], since all runs share the batches"), found()));
            }
            let alone: Table = std::iter::once((key.clone(), value.clone())).collect();
            if let Err(Error::Malformed { found: reason, .. }) = self.settings(&alone, place) {
                return Err(self.wrong(&format!("a {key} of the right kind"), format!("{key} = {value}: {reason}")));
            }
        }
        Ok(())
    }

    fn wrong(&self, expected: &str, found: String) -> Error {
        Error::malformed(WHAT, self.path, expected, found, "correct the file; 'train-sae --help' shows an example")
    }
}

fn cloned((key, value): (&String, &Value)) -> (String, Value) {
    (key.clone(), value.clone())
}

/// A value as it stands in a name: without quotes and brackets.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().map(plain).collect::<Vec<_>>().join("_"),
        other => other.to_string(),
    }
}

fn is_file_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-=+".contains(c);
    !name.is_empty() && name.len() <= 100 && !name.starts_with('.') && name.chars().all(allowed)
}

/// `text` with whatever a file name cannot hold replaced.
fn file_name(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_alphanumeric() || "._-=+".contains(c) { c } else { '_' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<SweepEntry>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sweep.toml");
        std::fs::write(&path, text).unwrap();
        read_sweep(&path, &TrainSettings { seed: 9, ..TrainSettings::default() })
    }

    #[test]
    fn runs_multiply_with_both_grids_and_fall_back_on_the_defaults() {
        let entries = read(
            r#"
            [defaults]
            d_sae = 512
            steps = 100
            [grid]
            lr = [1e-3, 2e-3]
            [[run]]
            name = "one"
            l1_coefficient = 2
            hook = "blocks.1.hook_resid_post"
            [[run]]
            name = "wide"
            d_sae = 1024
            grid = { l1_coefficient = [1, 2.5], seed = [3] }
            "#,
        )
        .unwrap();
        let names: Vec<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
        let expected = [
            "one-lr=0.001",
            "one-lr=0.002",
            "wide-lr=0.001-l1_coefficient=1-seed=3",
            "wide-lr=0.001-l1_coefficient=2.5-seed=3",
            "wide-lr=0.002-l1_coefficient=1-seed=3",
            "wide-lr=0.002-l1_coefficient=2.5-seed=3",
        ];
        assert_eq!(names, expected);
        assert_eq!(entries[0].hook.as_deref(), Some("blocks.1.hook_resid_post"));
        assert_eq!((entries[0].settings.seed, entries[0].settings.d_sae, entries[0].settings.lr), (9, Some(512), 1e-3));
        let last = &entries[5];
        assert_eq!((last.hook.as_deref(), last.settings.d_sae, last.settings.seed), (None, Some(1024), 3));
        assert_eq!((last.settings.lr, last.settings.steps), (2e-3, Some(100)));
        let field = |entry: &SweepEntry, key: &str| serde_json::to_value(&entry.settings).unwrap()[key].clone();
        assert_eq!(field(last, "l1_coefficient"), 2.5);
        let only = read("[grid]\nhook = [\"blocks.0.hook_mlp_out\", \"a/b\"]\n").unwrap();
        assert_eq!((only[0].name.as_str(), only[1].name.as_str()), ("hook=blocks.0.hook_mlp_out", "hook=a_b"));
        assert_eq!(only[1].hook.as_deref(), Some("a/b"));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        let cases = [
            ("[defaults]\nlr = 1e-3\n", "neither"),
            ("[defaults]\nlearning_rate = 1\n[grid]\nlr = [1]", "learning_rate in [defaults]"),
            ("[defaults]\nlr = \"fast\"\n[grid]\nseed = [1]", "lr = \"fast\""),
            ("[grid]\nlr = 1e-3\n", "lr = 0.001 in the grid"),
            ("[grid]\nseed = [1, -2]\n", "seed"),
            ("[grid]\nseed = []\n", "a list of values"),
            ("[[run]]\nname = \"a\"\nsteps = 5\n", "steps in [defaults]"),
            ("[grid]\nbatch_size = [5]\n", "batch_size in [defaults]"),
            ("[[run]]\nname = \"a\"\n[[run]]\nname = \"a\"\n", "'a' twice"),
            ("[[run]]\nname = \"a\"\n[[run]]\nlr = 1\n", "[[run]] number 2"),
            ("[[run]]\nname = \"../a\"\n", "../a"),
            ("[[run]]\nlr = 1e-3\n", "a name"),
            ("[runs]\n", "unknown field"),
            ("[defaults]\nlr = = 3\n", "in line 2"),
            ("[defaults]\nhook = 3\n[grid]\nseed = [1]", "hook = 3"),
        ];
        for (text, expected) in cases {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("sweep.toml"), "{text}: {error}");
        }
        let thousands = (0..40).map(|i| i.to_string()).collect::<Vec<_>>().join(",");
        assert!(read(&format!("[grid]\nseed = [{thousands}]\nlog_every = [{thousands}]\n")).is_err());
    }
}
