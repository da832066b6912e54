//! Tokens, positions, layers and heads, as flags name them.

use crate::base::{Error, Result};
use crate::data::tokenizer::{BosPolicy, Tokenizer};

use super::render::{Ui, quoted};

/// The token that `text` is. A leading space belongs to it: " Paris" is what follows a word.
///
/// # Errors
/// `Flag` showing the pieces when the tokenizer splits it, or the token that stands for all words it does not know.
pub(super) fn single_token(tokenizer: &Tokenizer, flag: &'static str, text: &str) -> Result<u32> {
    let ids = tokenizer.encode(text, BosPolicy::Never)?;
    // A tokenizer of whole words gives one token for any unknown word, and it says something else.
    let plain = |text: &str| text.trim().to_lowercase();
    if let [id] = ids.as_slice()
        && plain(&tokenizer.piece(*id)) == plain(text)
    {
        return Ok(*id);
    }
    // Tokenizers that put a space before every text split " Paris" in two although it is one token.
    let trimmed = tokenizer.encode(text.trim_start(), BosPolicy::Never)?;
    if let [id] = trimmed.as_slice()
        && tokenizer.piece(*id) == text
    {
        return Ok(*id);
    }
    let same = (0..tokenizer.vocab_size() as u32).find(|&id| !text.is_empty() && tokenizer.piece(id) == text);
    same.ok_or_else(|| {
        let pieces: Vec<String> = ids.iter().map(|&id| quoted(&tokenizer.piece(id))).collect();
        let spaced = format!(" {text}");
        let other = ids.len() > 1 && tokenizer.encode(&spaced, BosPolicy::Never).is_ok_and(|ids| ids.len() == 1);
        let remedy = if other {
            format!("write '{spaced}' with the space before it, which is one token")
        } else {
            "name a word that is one token, or the first piece of it".to_owned()
        };
        let found = format!(
            "'{text}', which is {} token{}: {}",
            pieces.len(),
            if pieces.len() == 1 { "" } else { "s" },
            pieces.join(" ")
        );
        Error::flag(flag, "text of a single token", found, remedy)
    })
}

/// As [`single_token`]; remarks when the same word after a space is another token, and the prompt ends in a word.
///
/// # Errors
/// As [`single_token`].
pub(super) fn answer_token(
    tokenizer: &Tokenizer,
    flag: &'static str,
    text: &str,
    prompt: &[u32],
    ui: &Ui,
) -> Result<u32> {
    let id = single_token(tokenizer, flag, text)?;
    let after_word = prompt.last().is_some_and(|&last| tokenizer.piece(last).ends_with(char::is_alphanumeric));
    if after_word
        && text.starts_with(char::is_alphanumeric)
        && let Ok(spaced) = single_token(tokenizer, flag, &format!(" {text}"))
        && spaced != id
    {
        ui.say(format!(
            "{flag} '{text}' has no space before it and continues the last word; ' {text}' is another token"
        ));
    }
    Ok(id)
}

/// A prompt's tokens for people, numbered.
pub(super) fn numbered(tokens: &[u32], tokenizer: &Tokenizer) -> String {
    let of = |(i, &id): (usize, &u32)| format!("{i}:{}", quoted(&tokenizer.piece(id)));
    tokens.iter().enumerate().map(of).collect::<Vec<_>>().join(" ")
}

/// The positions that `list` names in `tokens`: numbers from 0, negative ones from the end, ranges `2-5`, `all`, `last`,
/// or the text of tokens; separated by commas. In ascending order.
///
/// # Errors
/// `Flag` for a position outside the prompt or text that is no token of it.
pub(super) fn positions(flag: &'static str, list: &str, tokens: &[u32], tokenizer: &Tokenizer) -> Result<Vec<usize>> {
    let mut found = Vec::new();
    for item in list.split(',').filter(|item| !item.trim().is_empty()) {
        if let Some(span) = spans(item, tokens.len()) {
            found.extend(span);
            continue;
        }
        let word = item.trim();
        let named = tokens.iter().enumerate().filter(|(_, id)| tokenizer.piece(**id).trim() == word);
        let before = found.len();
        found.extend(named.map(|(position, _)| position));
        if found.len() == before {
            return Err(outside(flag, item, tokens, tokenizer));
        }
    }
    if found.is_empty() || found.iter().any(|&position| position >= tokens.len()) {
        return Err(outside(flag, list, tokens, tokenizer));
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

fn outside(flag: &'static str, item: &str, tokens: &[u32], tokenizer: &Tokenizer) -> Error {
    let expected = format!("positions of the prompt, 0 to {}", tokens.len().saturating_sub(1));
    let remedy = format!("the prompt is {}", numbered(tokens, tokenizer));
    Error::flag(flag, expected, format!("'{}'", item.trim()), remedy)
}

/// The layers or heads below `limit` that `list` names: numbers, ranges `2-5`, `all`.
///
/// # Errors
/// `Flag` for words and for numbers out of range.
pub(super) fn numbers(flag: &'static str, list: &str, limit: usize) -> Result<Vec<usize>> {
    let bad = |item: &str| {
        let expected = format!("numbers from 0 to {}", limit.saturating_sub(1));
        Error::flag(flag, expected, format!("'{item}'"), "write numbers and ranges, as in 0,4-7, or all")
    };
    let mut found = Vec::new();
    for item in list.split(',').filter(|item| !item.trim().is_empty()) {
        let span = spans(item, limit).filter(|span| !span.is_empty() && span.end <= limit);
        found.extend(span.ok_or_else(|| bad(item.trim()))?);
    }
    if found.is_empty() {
        return Err(bad(list));
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// A number, a range or a word for one, of things numbered below `length`. What lies outside is past the end.
fn spans(item: &str, length: usize) -> Option<std::ops::Range<usize>> {
    let item = item.trim();
    let at = |text: &str| -> Option<usize> {
        let n: i64 = text.parse().ok()?;
        let from_start = if n < 0 { n.checked_add(length as i64)? } else { n };
        Some(usize::try_from(from_start).unwrap_or(usize::MAX - 1))
    };
    match item {
        "all" => return Some(0..length),
        "last" => return Some(length.saturating_sub(1)..length),
        _ => {}
    }
    if let Some(one) = at(item) {
        return Some(one..one + 1);
    }
    let (start, end) = item.split_once('-').filter(|(start, _)| !start.is_empty())?;
    let (start, end) = (at(start)?, at(end)?);
    // A range backwards, or one that would list billions, is a position that does not exist.
    Some(if start <= end && end < length { start..end + 1 } else { usize::MAX - 1..usize::MAX })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::tokenizer::tests::byte_tokenizer;

    #[test]
    fn positions_are_numbers_ranges_words_and_tokens() {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = byte_tokenizer(dir.path());
        let tokens = tokenizer.encode("abcab", BosPolicy::Never).unwrap();
        let at = |list: &str| positions("--position", list, &tokens, &tokenizer);
        for (list, expected) in [
            ("0", vec![0]),
            ("-1,0", vec![0, 4]),
            ("1-3", vec![1, 2, 3]),
            ("all", vec![0, 1, 2, 3, 4]),
            ("last", vec![4]),
            ("b", vec![1, 4]),
            ("a,2", vec![0, 2, 3]),
        ] {
            assert_eq!(at(list).unwrap(), expected, "{list}");
        }
        for list in ["5", "-6", "3-9", "4-2", "z", "", "0-99999999999"] {
            let error = at(list).unwrap_err().to_string();
            assert!(error.contains("0 to 4") && error.contains("0:“a” 1:“b”"), "{list}: {error}");
        }
        assert_eq!(numbers("--layer", "0,2-3", 4).unwrap(), [0, 2, 3]);
        for list in ["4", "a", "", "2-4", "-9", "1,,x"] {
            assert!(numbers("--layer", list, 4).unwrap_err().to_string().contains("0 to 3"), "{list}");
        }
    }

    #[test]
    fn a_target_is_one_token_or_an_error_that_shows_its_pieces() {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = byte_tokenizer(dir.path());
        assert_eq!(single_token(&tokenizer, "--target", "a").unwrap(), 97);
        let error = single_token(&tokenizer, "--target", "ab").unwrap_err().to_string();
        assert!(error.contains("2 tokens: “a” “b”"), "{error}");
        assert!(single_token(&tokenizer, "--target", "").is_err());
    }
}
