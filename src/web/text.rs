//! Words and numbers for people.

use crate::dictionary::Architecture;

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

/// What the field calls an architecture.
pub fn kind(architecture: &Architecture) -> &'static str {
    match architecture.name() {
        "standard" => "ReLU",
        "topk" => "TopK",
        "batchtopk" => "BatchTopK",
        "jumprelu" => "JumpReLU",
        "gated" => "Gated",
        "matryoshka_batchtopk" => "Matryoshka BatchTopK",
        "transcoder" => "Transcoder",
        "skip_transcoder" => "Skip transcoder",
        "jumprelu_transcoder" => "JumpReLU transcoder",
        other => other,
    }
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
