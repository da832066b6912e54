//! The part of YAML that `config.yaml` of a transcoder set is written in: one mapping of texts and lists of texts, with
//! comments. What is not of that kind is refused with its line where a key that is read has it, and left alone
//! elsewhere.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::super::tensors::listed;
use crate::base::{Error, Result};

const WHAT: &str = "configuration of a transcoder set";
/// Lists of 60 layers' addresses are 10 KB.
const LARGEST: u64 = 1 << 20;

/// A value of the mapping.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Value {
    /// Nothing, `null` or `~`.
    None,
    Text(String),
    List(Vec<String>),
    /// Something else, from this line on.
    Other(usize),
}

/// A mapping, and the file that it is in.
#[derive(Debug)]
pub(crate) struct Yaml {
    path: PathBuf,
    values: BTreeMap<String, Value>,
}

impl Yaml {
    /// Reads `path`.
    ///
    /// # Errors
    /// `Io`; `Malformed` when it is no text, no mapping, or names a key twice.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let size = std::fs::metadata(path).map_err(Error::io("read the set's configuration", path))?.len();
        if size > LARGEST {
            return Err(wrong(path, "a few lines of YAML".into(), format!("{size} bytes")));
        }
        let bytes = std::fs::read(path).map_err(Error::io("read the set's configuration", path))?;
        let text = String::from_utf8(bytes).map_err(|e| wrong(path, "UTF-8 text".into(), e.to_string()))?;
        let values = parse(&text).map_err(|(line, found)| {
            wrong(path, "lines of 'key: value' and lists of texts".into(), format!("{found} in line {line}"))
        })?;
        Ok(Self { path: path.into(), values })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The text of `key`, where it has one.
    ///
    /// # Errors
    /// `Malformed` when it is a list or something else.
    pub(crate) fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.values.get(key) {
            None | Some(Value::None) => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(other) => Err(self.kind(key, "a text", other)),
        }
    }

    /// The text of `key`, which must be there.
    ///
    /// # Errors
    /// `Malformed` when it is not, or is no text.
    pub(crate) fn required(&self, key: &str) -> Result<&str> {
        self.text(key)?.ok_or_else(|| {
            let found = format!("only {}", listed(self.values.keys().map(String::as_str)));
            wrong(&self.path, format!("a key '{key}'"), found)
        })
    }

    /// The list of `key`, where it has one.
    ///
    /// # Errors
    /// `Malformed` when it is no list of texts.
    pub(crate) fn list(&self, key: &str) -> Result<Option<&[String]>> {
        match self.values.get(key) {
            None | Some(Value::None) => Ok(None),
            Some(Value::List(items)) => Ok(Some(items)),
            Some(other) => Err(self.kind(key, "a list of texts", other)),
        }
    }

    /// An error about what a key says.
    pub(crate) fn wrong(&self, expected: String, found: String) -> Error {
        wrong(&self.path, expected, found)
    }

    fn kind(&self, key: &str, expected: &str, found: &Value) -> Error {
        let found = match found {
            Value::None => "nothing".into(),
            Value::Text(text) => format!("'{text}'"),
            Value::List(items) => format!("a list of {}", items.len()),
            Value::Other(line) => format!("something else from line {line} on"),
        };
        wrong(&self.path, format!("{expected} as '{key}'"), found)
    }
}

fn wrong(path: &Path, expected: String, found: String) -> Error {
    Error::malformed(WHAT, path, expected, found, "copy or write the set's config.yaml again")
}

/// A line that cannot be, and what is wrong with it.
type Wrong = (usize, String);

fn parse(text: &str) -> Result<BTreeMap<String, Value>, Wrong> {
    let mut values = BTreeMap::new();
    // The last key that had nothing after its colon.
    let mut open: Option<String> = None;
    for (number, line) in (1..).zip(text.lines()) {
        let bare = without_comment(line);
        if bare.trim().is_empty() || (bare.trim_end() == "---" && values.is_empty()) {
            continue;
        }
        let indented = bare.starts_with([' ', '\t']);
        if let Some(item) = bare.trim_start().strip_prefix("- ") {
            let key = open.as_ref().ok_or_else(|| (number, "a list item without a key".into()))?;
            let value = values.entry(key.clone()).or_insert(Value::None);
            match (text_of(item.trim()), value) {
                (Some(item), Value::List(items)) => items.push(item),
                (Some(item), value @ Value::None) => *value = Value::List(vec![item]),
                (_, value) => *value = Value::Other(number),
            }
            continue;
        }
        if indented {
            let key = open.as_ref().ok_or_else(|| (number, "an indented line without a key".into()))?;
            values.insert(key.clone(), Value::Other(number));
            continue;
        }
        let split = bare.split_once(": ").or_else(|| Some((bare.trim_end().strip_suffix(':')?, "")));
        let (key, value) = split.ok_or_else(|| (number, "no 'key: value'".to_owned()))?;
        let key = text_of(key.trim()).ok_or_else(|| (number, "no key".to_owned()))?;
        let value = parse_value(value.trim()).unwrap_or(Value::Other(number));
        open = (value == Value::None).then(|| key.clone());
        if values.insert(key.clone(), value).is_some() {
            return Err((number, format!("the key '{key}' again")));
        }
    }
    Ok(values)
}

/// The value behind a colon; `None` for what is of no kind that is read.
fn parse_value(text: &str) -> Option<Value> {
    let Some(items) = text.strip_prefix('[') else { return scalar(text) };
    let items = items.strip_suffix(']')?.split(',').map(str::trim).filter(|item| !item.is_empty());
    items.map(text_of).collect::<Option<Vec<_>>>().map(Value::List)
}

/// A text, and nothing else.
fn text_of(text: &str) -> Option<String> {
    match scalar(text) {
        Some(Value::Text(text)) => Some(text),
        _ => None,
    }
}

/// A plain or quoted text, or nothing.
fn scalar(text: &str) -> Option<Value> {
    if text.starts_with('"') {
        // Its escapes are those of JSON and a few rare ones.
        return serde_json::from_str(text).ok().map(Value::Text);
    }
    if let Some(rest) = text.strip_prefix('\'') {
        let inner = rest.strip_suffix('\'')?;
        let alone = inner.replace("''", "").contains('\'');
        return (!alone).then(|| Value::Text(inner.replace("''", "'")));
    }
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Some(Value::None),
        _ if text.starts_with(['{', '[', '&', '*', '!', '|', '>', '%', '@', '`']) || text.contains(": ") => None,
        _ => Some(Value::Text(text.to_owned())),
    }
}

/// A line without its comment, which begins at a `#` after a space outside of quotes.
fn without_comment(line: &str) -> &str {
    let mut quote = None;
    let mut before = ' ';
    for (at, c) in line.char_indices() {
        match (quote, c) {
            (None, '#') if before.is_whitespace() => return &line[..at],
            (None, '"' | '\'') if before.is_whitespace() || "[,".contains(before) || before == c => quote = Some(c),
            (Some(open), _) if c == open && before != '\\' => quote = None,
            _ => {}
        }
        before = c;
    }
    line
}

/// `text` as a value of a line.
pub(crate) fn written(text: &str) -> String {
    let plain = text.chars().all(|c| c.is_ascii_alphanumeric() || "_./-".contains(c))
        && text.starts_with(|c: char| c.is_ascii_alphabetic())
        && !["null", "true", "false", "yes", "no", "on", "off", "y", "n"].contains(&text.to_lowercase().as_str());
    if plain { text.into() } else { serde_json::Value::from(text).to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Yaml> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        std::fs::write(&path, text).unwrap();
        Yaml::read(&path)
    }

    #[test]
    fn texts_lists_and_comments_are_read() {
        let yaml = read(
            "---\n# a set\nmodel_name: \"google/gemma-2-2b\"  # the model\nscan: 'it''s # one'\nrevision: null\n\
             empty:\nfeatures:\n  nested: {a: 1}\ntranscoders:\n- hf://a/b/c.npz?revision=1\n- \"x y\"   # two\n\
             short: [a, 'b', \"c\"]\nurl: hf://a/b#c\n",
        )
        .unwrap();
        assert_eq!(yaml.text("model_name").unwrap(), Some("google/gemma-2-2b"));
        assert_eq!(yaml.required("scan").unwrap(), "it's # one");
        assert_eq!(yaml.text("url").unwrap(), Some("hf://a/b#c"));
        assert!(yaml.text("revision").unwrap().is_none() && yaml.text("empty").unwrap().is_none());
        assert_eq!(yaml.list("transcoders").unwrap().unwrap(), ["hf://a/b/c.npz?revision=1", "x y"]);
        assert_eq!(yaml.list("short").unwrap().unwrap(), ["a", "b", "c"]);
        assert!(yaml.list("absent").unwrap().is_none());
        let error = yaml.required("model_kind").unwrap_err().to_string();
        assert!(error.contains("'model_kind'") && error.contains("model_name"), "{error}");
        assert!(yaml.text("features").unwrap_err().to_string().contains("line 8"));
        assert!(yaml.list("model_name").is_err() && yaml.text("transcoders").is_err());
    }

    #[test]
    fn what_is_no_mapping_of_texts_is_refused_with_its_line() {
        for (bad, line) in [
            ("a: 1\na: 2\n", "line 2"),
            ("- a\n", "line 1"),
            ("a: x\n  b: y\n", "line 2"),
            ("a: x\njust text\n", "line 2"),
            ("a: x\n- b\n", "line 2"),
        ] {
            let error = read(bad).unwrap_err().to_string();
            assert!(error.contains(line), "{bad}: {error}");
        }
        let yaml = read("a: \"open\nb: 'it's'\nc: {x: 1}\nd: &anchor\n").unwrap();
        for key in ["a", "b", "c", "d"] {
            assert!(yaml.text(key).is_err(), "{key}");
        }
    }

    #[test]
    fn written_texts_read_back() {
        for text in ["org/name", "it's \"so\"", "null", "12", "a: b", "# x", "", "C:\\x", "ü"] {
            let yaml = read(&format!("key: {}\n", written(text))).unwrap();
            assert_eq!(yaml.text("key").unwrap(), Some(text), "{text}");
        }
        assert_eq!(written("blocks/x-1.y_z"), "blocks/x-1.y_z");
    }
}
