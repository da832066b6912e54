//! The record of a run beside its checkpoints, and whether a cut-off run is continued as it was begun.

use serde_json::Value;

use crate::base::artifact::read_json;
use crate::base::{Artifact, Error, Result, RunRecord};

/// Kept beside the checkpoints while a run goes on.
pub(in super::super) const RECORD: &str = "run.json";

/// Refuses to continue a run on other data or settings.
pub(in super::super) fn check_same_run(artifact: &Artifact, record: &RunRecord) -> Result<()> {
    let path = artifact.dir().join(RECORD);
    if !artifact.resumed() || !path.exists() {
        return Ok(());
    }
    let old: RunRecord = read_json("record of the cut-off run", &path)?;
    let remedy = |what: &str| format!("{what}, or remove {}", artifact.dir().display());
    let key = |record: &RunRecord| record.inputs.iter().map(|i| (i.role.clone(), i.blake3.clone())).collect::<Vec<_>>();
    let (before, now) = (key(&old), key(record));
    if before != now {
        let changed = record.inputs.iter().find(|i| !before.contains(&(i.role.clone(), i.blake3.clone())));
        let roles: Vec<&str> = old.inputs.iter().map(|input| input.role.as_str()).collect();
        let (name, found) = match changed {
            Some(input) if roles.contains(&input.role.as_str()) => {
                (format!("{} {}", input.role, input.name), format!("a {} with other contents", input.role))
            }
            _ => {
                let now: Vec<&str> = record.inputs.iter().map(|input| input.role.as_str()).collect();
                (now.join(", "), roles.join(", "))
            }
        };
        return Err(Error::Mismatch {
            what: "the inputs and the cut-off run",
            left: name,
            right: found,
            remedy: remedy("name what it was started on"),
        });
    }
    if let Some((left, right)) = first_difference("", &old.settings, &record.settings) {
        let what = "the settings and the cut-off run";
        return Err(Error::Mismatch { what, left, right, remedy: remedy("repeat its settings") });
    }
    Ok(())
}

/// The first setting in which two JSON objects differ, with both values.
fn first_difference(name: &str, old: &Value, new: &Value) -> Option<(String, String)> {
    if old == new {
        return None;
    }
    if let (Some(old), Some(new)) = (old.as_object(), new.as_object()) {
        let missing = Value::Null;
        let below = |key: &str| if name.is_empty() { key.to_owned() } else { format!("{name}.{key}") };
        let differing = |key: &String| {
            first_difference(&below(key), old.get(key).unwrap_or(&missing), new.get(key).unwrap_or(&missing))
        };
        return new.keys().chain(old.keys()).find_map(differing);
    }
    Some((format!("{name} {new}"), format!("{name} {old}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::artifact::{InputRecord, write_json};
    use serde_json::json;

    fn record(settings: Value, inputs: &[(&str, &str)]) -> RunRecord {
        let input = |(role, hash): &(&str, &str)| InputRecord {
            role: (*role).into(),
            name: format!("my-{role}"),
            blake3: (*hash).into(),
        };
        RunRecord { inputs: inputs.iter().map(input).collect(), ..RunRecord::new("train-sae", &settings, 0) }
    }

    #[test]
    fn another_model_text_or_setting_does_not_continue_a_run() {
        let tmp = tempfile::tempdir().unwrap();
        let begun = record(json!({"training": {"lr": 1}}), &[("model", "a"), ("data", "b")]);
        let artifact = Artifact::begin(&tmp.path().join("sae"), false).unwrap();
        write_json(&artifact.dir().join(RECORD), &begun).unwrap();
        check_same_run(&artifact, &record(json!({}), &[])).unwrap();
        drop(artifact);
        let artifact = Artifact::begin(&tmp.path().join("sae"), true).unwrap();
        check_same_run(&artifact, &begun).unwrap();
        let others = [
            (record(begun.settings.clone(), &[("model", "a"), ("data", "c")]), "data my-data"),
            (record(begun.settings.clone(), &[("model", "x"), ("data", "b")]), "a model with other contents"),
            (record(begun.settings.clone(), &[("cache", "a")]), "cache against model, data"),
            (record(json!({"training": {"lr": 2}}), &[("model", "a"), ("data", "b")]), "training.lr 2"),
        ];
        for (other, expected) in others {
            let error = check_same_run(&artifact, &other).unwrap_err().to_string();
            assert!(error.contains(expected), "{expected}: {error}");
        }
    }
}
