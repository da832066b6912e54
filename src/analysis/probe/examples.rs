//! Labelled texts from JSON lines.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::base::nearest::nearest;
use crate::base::{Error, Result};

/// Texts that a label must have, so that there is something to learn from and something to test on.
pub const LEAST_TEXTS: usize = 4;

/// Which fields of a line hold what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExampleFields {
    /// The text, a string.
    pub text: String,
    /// The label: a string, a whole number, or true or false.
    pub label: String,
    /// What must not stand in both parts of the split, such as the entity that a text is about; kinds as of a label.
    pub group: Option<String>,
    /// The one label to tell from all others; every label is a class of its own when absent.
    pub positive: Option<String>,
}

impl Default for ExampleFields {
    fn default() -> Self {
        Self { text: "text".into(), label: "label".into(), group: None, positive: None }
    }
}

/// Texts with a class each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Examples {
    /// Where they come from.
    pub path: PathBuf,
    /// The texts.
    pub texts: Vec<String>,
    /// The line that each stands on, from 1.
    pub lines: Vec<usize>,
    /// The class of each, an index into `classes`.
    pub labels: Vec<usize>,
    /// Names of the classes, ascending: numbers as numbers, then words. Of two the second is the positive one.
    pub classes: Vec<String>,
    /// The group of each, numbered by first appearance, where there are groups.
    pub groups: Option<Vec<usize>>,
}

/// A label as it stands in the file. The order is that of classes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Label {
    Number(i64),
    Word(String),
}

impl std::fmt::Display for Label {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(n) => n.fmt(f),
            Self::Word(word) => f.write_str(word),
        }
    }
}

impl Examples {
    /// Reads `path`, one JSON object a line; empty lines do not count.
    ///
    /// # Errors
    /// `Io`; `Malformed` for a line that is no object, lacks a field or has one of another kind, and when there are
    /// fewer than two classes or fewer than [`LEAST_TEXTS`] texts of one; `Unknown` for a positive label that no text has.
    pub fn read(path: &Path, fields: &ExampleFields) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(Error::io("read the labelled texts", path))?;
        let bad = |found: String, remedy: &str| {
            Error::malformed("labelled text", path, "one JSON object with text and label a line", found, remedy)
        };
        let text =
            String::from_utf8(bytes).map_err(|_| bad("bytes that are no UTF-8".into(), "convert it to UTF-8"))?;
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
        let (mut texts, mut lines, mut labels, mut groups) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let at = |found: String| format!("{found} on line {}", i + 1);
            let value: Value = serde_json::from_str(line)
                .map_err(|e| bad(at(format!("no JSON ({e})")), "mend or remove that line"))?;
            let field = |name: &str, flag: &str| {
                value.get(name).ok_or_else(|| bad(at(format!("{} and no '{name}'", keys(&value))), &naming(flag)))
            };
            let own = field(&fields.text, "--text-field")?;
            let own = own
                .as_str()
                .ok_or_else(|| bad(at(format!("'{}' that is no string", fields.text)), &naming("--text-field")))?;
            let kind = |name: &str, value: &Value| {
                label(value).ok_or_else(|| {
                    let found = at(format!("'{name}' that is {value}"));
                    bad(found, "labels are strings, whole numbers, true or false: classes, not quantities")
                })
            };
            labels.push(kind(&fields.label, field(&fields.label, "--label-field")?)?);
            if let Some(name) = &fields.group {
                groups.push(kind(name, field(name, "--group-field")?)?);
            }
            texts.push(own.to_owned());
            lines.push(i + 1);
        }
        if texts.is_empty() {
            return Err(bad("an empty file".into(), "write labelled texts into it, one JSON object a line"));
        }
        let (classes, labels) = classes(labels, fields.positive.as_deref())?;
        let examples = Self {
            path: path.into(),
            texts,
            lines,
            labels,
            classes,
            groups: fields.group.as_ref().map(|_| numbered(groups)),
        };
        examples.check()?;
        Ok(examples)
    }

    /// Number of texts of each class.
    pub fn counts(&self) -> Vec<usize> {
        let mut counts = vec![0; self.classes.len()];
        self.labels.iter().for_each(|&label| counts[label] += 1);
        counts
    }

    fn check(&self) -> Result<()> {
        let bad = |found: String, remedy: &str| {
            let expected = format!("at least two labels with {LEAST_TEXTS} texts each");
            Err(Error::malformed("labelled text", &self.path, expected, found, remedy))
        };
        if let [only] = &self.classes[..] {
            let found = format!("the label '{only}' on all {} texts", self.texts.len());
            return bad(found, "a probe tells labels apart: add texts with another label");
        }
        let few: Vec<(String, usize)> =
            self.classes.iter().cloned().zip(self.counts()).filter(|(_, count)| *count < LEAST_TEXTS).collect();
        let Some((label, count)) = few.first() else { return Ok(()) };
        let more =
            if few.len() > 1 { format!(", and {} other labels with too few", few.len() - 1) } else { String::new() };
        let texts = if *count == 1 { "text" } else { "texts" };
        bad(
            format!("{count} {texts} with the label '{label}'{more}"),
            "add texts, leave rare labels out, or ask for one label against the rest with --positive",
        )
    }
}

fn naming(flag: &str) -> String {
    format!("mend that line, or name the field with {flag}")
}

fn keys(value: &Value) -> String {
    match value.as_object() {
        None => "JSON that is no object".into(),
        Some(object) if object.is_empty() => "no keys".into(),
        Some(object) => {
            let names: Vec<&str> = object.keys().map(String::as_str).take(20).collect();
            format!("the keys {}", names.join(", "))
        }
    }
}

/// What may be a class: whole numbers, also written as `1.0`, words and truth values.
fn label(value: &Value) -> Option<Label> {
    match value {
        Value::String(word) => Some(Label::Word(word.clone())),
        Value::Bool(truth) => Some(Label::Word(truth.to_string())),
        Value::Number(number) => {
            let whole = |x: &f64| x.fract() == 0.0 && x.abs() < 9e15;
            number.as_i64().or_else(|| number.as_f64().filter(whole).map(|x| x as i64)).map(Label::Number)
        }
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// Class names and the class of each label. With `positive` there are two: all other labels, and it.
fn classes(labels: Vec<Label>, positive: Option<&str>) -> Result<(Vec<String>, Vec<usize>)> {
    let mut classes: BTreeMap<&Label, usize> = labels.iter().map(|label| (label, 0)).collect();
    classes.values_mut().enumerate().for_each(|(i, class)| *class = i);
    let names: Vec<String> = classes.keys().map(ToString::to_string).collect();
    let numbers: Vec<usize> = labels.iter().map(|label| classes[label]).collect();
    let Some(positive) = positive else { return Ok((names, numbers)) };
    let Some(own) = names.iter().position(|name| name == positive) else {
        return Err(Error::Unknown { kind: "label", found: positive.into(), nearest: nearest(positive, &names, 8) });
    };
    let negative = match &names[..] {
        [a, b] => (if own == 0 { b } else { a }).clone(),
        _ => format!("not {positive}"),
    };
    if names.len() == 1 {
        return Ok((names, numbers));
    }
    Ok((vec![negative, positive.into()], numbers.iter().map(|&n| usize::from(n == own)).collect()))
}

fn numbered(groups: Vec<Label>) -> Vec<usize> {
    let mut seen: BTreeMap<Label, usize> = BTreeMap::new();
    let number = |group| {
        let next = seen.len();
        *seen.entry(group).or_insert(next)
    };
    groups.into_iter().map(number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(contents: &str, fields: &ExampleFields) -> Result<Examples> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("texts.jsonl");
        std::fs::write(&path, contents).unwrap();
        Examples::read(&path, fields)
    }

    fn lines(labels: &[&str]) -> String {
        let line =
            |(i, label): (usize, &&str)| format!("{{\"text\": \"t{i}\", \"label\": {label}, \"g\": {}}}\n", i / 2);
        labels.iter().enumerate().map(line).collect()
    }

    #[test]
    fn labels_of_every_kind_become_classes_in_order() {
        let fields = ExampleFields { group: Some("g".into()), ..ExampleFields::default() };
        let found = read(&lines(&["10", "9", "10.0", "9"].repeat(4)), &fields).unwrap();
        assert_eq!((found.classes, &found.labels[..4]), (vec!["9".to_owned(), "10".into()], &[1, 0, 1, 0][..]));
        assert_eq!((found.lines[15], found.groups.unwrap()[15]), (16, 7));
        let found = read(&format!("\u{feff}\n{}", lines(&["true", "false"].repeat(4))), &fields).unwrap();
        assert_eq!((found.classes, found.lines[0]), (vec!["false".to_owned(), "true".into()], 2));
        let one = ExampleFields { positive: Some("b".into()), ..ExampleFields::default() };
        let found = read(&lines(&["\"a\"", "\"b\"", "\"c\""].repeat(4)), &one).unwrap();
        assert_eq!((found.classes, &found.labels[..3]), (vec!["not b".to_owned(), "b".into()], &[0, 1, 0][..]));
    }

    #[test]
    fn what_cannot_be_learnt_from_is_an_error_that_says_why() {
        let good = || lines(&["0", "1"].repeat(4));
        let fields = ExampleFields::default();
        let named =
            |text: &str, label: &str| ExampleFields { text: text.into(), label: label.into(), ..fields.clone() };
        let cases = [
            (lines(&["1"; 9]), fields.clone(), "the label '1' on all 9 texts"),
            (lines(&["0", "0", "0", "0", "1"]), fields.clone(), "1 text with the label '1'"),
            (good() + "{\"text\": \"x\"}\n", fields.clone(), "the keys text and no 'label' on line 9"),
            (good() + "{\"text\": \"x\", \"label\": null}\n", fields.clone(), "'label' that is null on line 9"),
            (good() + "{\"text\": \"x\", \"label\": 0.5}\n", fields.clone(), "'label' that is 0.5 on line 9"),
            (good() + "{\"text\": \"x\", \"label\": NaN}\n", fields.clone(), "no JSON"),
            (good() + "[]\n", fields.clone(), "JSON that is no object"),
            (good(), named("prompt", "label"), "--text-field"),
            (good(), named("label", "label"), "'label' that is no string"),
            (good(), named("text", "y"), "--label-field"),
            (" \n".into(), fields.clone(), "an empty file"),
            (good(), ExampleFields { positive: Some("2".into()), ..fields.clone() }, "unknown label '2'"),
        ];
        for (contents, fields, expected) in cases {
            let error = read(&contents, &fields).unwrap_err().to_string();
            assert!(error.contains(expected), "'{expected}' is not in: {error}");
        }
    }
}
