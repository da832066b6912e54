//! Words and numbers for people.

use serde_json::Value;

use crate::dictionary::{Architecture, DictionaryConfig};

const HOUR: f64 = 3600.0;

/// A number with thousands separated.
pub fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// What the field calls the architecture of a dictionary: that of its training where it says so, because some are
/// stored as another (BatchTopK as JumpReLU).
pub fn kind(config: &DictionaryConfig) -> &str {
    let trained = config.metadata.extra.get("training_architecture").and_then(Value::as_str);
    let name = match trained.unwrap_or(config.architecture.name()) {
        "standard" => "ReLU",
        "topk" => "TopK",
        "abstopk" => "AbsTopK",
        "batchtopk" => "BatchTopK",
        "jumprelu" => "JumpReLU",
        "gated" => "Gated",
        "matryoshka_batchtopk" => "Matryoshka BatchTopK",
        "groupmax" => "GroupMax",
        other => other,
    };
    match (name, config.transcoder) {
        ("ReLU", true) => "ReLU transcoder",
        ("JumpReLU", true) => "JumpReLU transcoder",
        ("TopK", true) => "TopK transcoder",
        (name, _) => name,
    }
}

/// The architecture with its `k`, where it has one.
pub fn trained_as(config: &DictionaryConfig) -> String {
    let details = config.metadata.extra.get("training_architecture_details");
    let trained = details.and_then(|details| details.get("k")).and_then(Value::as_f64);
    let k = match config.architecture {
        Architecture::TopK { k, .. } | Architecture::AbsTopK { k, .. } | Architecture::GroupMax { k } => Some(k as f64),
        _ => trained,
    };
    k.map_or(kind(config).to_owned(), |k| format!("{}, k = {k}", kind(config)))
}

/// The last part of a path; a hub id stays whole.
pub fn short(name: &str) -> &str {
    let path = name.starts_with(['/', '.', '~']) || name.matches('/').count() > 1;
    if path { name.trim_end_matches('/').rsplit('/').next().unwrap_or(name) } else { name }
}

/// A time span in its two largest units.
pub(super) fn duration(seconds: f64) -> String {
    match seconds.round() {
        s if s < 60.0 => format!("{s} s"),
        s if s < HOUR => format!("{} min {:02} s", (s / 60.0).floor(), s % 60.0),
        s => format!("{} h {:02} min", (s / HOUR).floor(), (s % HOUR / 60.0).floor()),
    }
}

/// `word` as a shell takes it.
pub(super) fn shell_word(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) { word.into() } else { format!("'{}'", word.replace('\'', "'\\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_are_for_people() {
        assert_eq!(
            (thousands(0), thousands(999), thousands(1_234_567)),
            ("0".into(), "999".into(), "1,234,567".into())
        );
        assert_eq!([9.4, 61.0, 3599.7, 7384.0].map(duration), ["9 s", "1 min 01 s", "1 h 00 min", "2 h 03 min"]);
        assert_eq!((short("/a/b/c/"), short("org/name"), short("mix.jsonl")), ("c", "org/name", "mix.jsonl"));
        assert_eq!(
            (shell_word("a b'c"), shell_word("--l1=3"), shell_word("")),
            ("'a b'\\''c'".into(), "--l1=3".into(), "''".into())
        );
    }
}
