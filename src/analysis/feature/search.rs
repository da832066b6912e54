//! Finding features by words.
//!
//! The words are looked for in labels, in the text of examples and among promoted tokens, whatever the case; in text they
//! have to begin where a word begins. A feature scores
//!
//! ```text
//! 2 · label  +  Σ strength / examples  +  ½ · promoted
//! ```
//! - `label` is 1 where a label contains the words as they stand, else the share of the words that it contains, if that
//!   is half or more.
//! - `strength` of an example is its activation on the words over the maximum of the feature: the largest activation on
//!   a token of the match, or a tenth of its peak where the match is only near. It is summed over all examples and
//!   divided by the number of strongest ones, so that a feature which fires at full strength on the words in all its
//!   strongest examples scores about 1, and a feature that merely has the words beside it scores little. Words that no
//!   example contains as they stand are looked for one by one; an example then has to contain them all, and counts half.
//! - `promoted` is the share of the words that are a promoted token, each weighted by its effect over the largest.
//!
//! Equal scores are in the order of their numbers. The text of the examples is scanned as bytes, once a query.

use rayon::prelude::*;
use serde::Serialize;

use super::open::{Examples, IndexFile, between};
use super::write::TOP;
use crate::base::{Error, Result};

/// Features that one task looks at.
const TASK_FEATURES: usize = 256;
/// The part of its peak that an example counts where the words are only near.
const NEAR: f32 = 0.1;

/// A feature that was found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Found {
    /// The feature.
    pub feature: u32,
    /// By which it is ranked.
    pub score: f32,
    /// How well a label matches, from 0 to 1.
    pub label: f32,
    /// What the examples contribute.
    pub examples: f32,
    /// Examples that contain the words, of the strongest and of those drawn from intervals.
    pub matches: usize,
    /// How well the promoted tokens match, from 0 to 1.
    pub promoted: f32,
    /// The place, among the strongest examples, of the one that matches best.
    pub best_example: Option<usize>,
}

/// The features that match `words`, best first.
///
/// # Errors
/// `Flag` when there are no words, `Malformed` when the index is damaged.
pub fn search(index: &IndexFile, words: &str) -> Result<Vec<Found>> {
    let phrase = words.trim().to_lowercase();
    let terms: Vec<&str> = phrase.split_whitespace().collect();
    if terms.is_empty() {
        return Err(Error::flag("--search", "a word or more", "none", "as in --search \"golden gate\""));
    }
    let f = index.summaries().len();
    let mut found: Vec<Found> = (0..f as u32).map(empty).collect();
    for label in index.labels.iter() {
        if let Some(found) = found.get_mut(label.feature as usize) {
            found.label = found.label.max(label_score(&label.text.to_lowercase(), &phrase, &terms));
        }
    }
    examples(index, &phrase, &terms, &mut found)?;
    promoted(index, &terms, &mut found)?;
    for found in &mut found {
        found.score = 2.0 * found.label + found.examples + 0.5 * found.promoted;
    }
    found.retain(|found| found.score > 0.0);
    found.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.feature.cmp(&b.feature)));
    Ok(found)
}

fn empty(feature: u32) -> Found {
    Found { feature, score: 0.0, label: 0.0, examples: 0.0, matches: 0, promoted: 0.0, best_example: None }
}

fn label_score(label: &str, phrase: &str, terms: &[&str]) -> f32 {
    if label.contains(phrase) {
        return 1.0;
    }
    let share = terms.iter().filter(|term| label.contains(**term)).count() as f32 / terms.len() as f32;
    if share >= 0.5 { share } else { 0.0 }
}

/// For every token of the text whether it belongs to a match, a bit each: all of a corpus' bits stay in the cache.
struct Matches {
    bits: Vec<u64>,
}

impl Matches {
    /// The tokens of the places where `needle` stands in `text`, of which the `i`th of `tokens` begins at `start(i)`;
    /// `None` where it stands nowhere.
    fn of(needle: &str, text: &[u8], tokens: usize, start: impl Fn(usize) -> usize) -> Option<Self> {
        let mut bits = vec![0; tokens.div_ceil(64)];
        let (mut any, mut token) = (false, 0);
        let inside_word = |place: usize| {
            let letter = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
            letter(needle.as_bytes().first()) && place > 0 && letter(text.get(place - 1))
        };
        for place in memchr::memmem::find_iter(text, needle.as_bytes()).filter(|&place| !inside_word(place)) {
            any = true;
            token = holding(place, token, tokens, &start);
            let end = place + needle.len();
            let mut inside = token;
            while inside < tokens && start(inside) < end {
                bits[inside / 64] |= 1 << (inside % 64);
                inside += 1;
            }
        }
        any.then_some(Self { bits })
    }

    /// Whether a token of `range` belongs to a match.
    fn any(&self, range: std::ops::Range<usize>) -> bool {
        let Some(last) = range.end.checked_sub(1).filter(|last| range.start <= *last) else { return false };
        let (from, to) = (range.start / 64, last / 64);
        (from..=to).any(|i| {
            let below = if i == from { u64::MAX << (range.start % 64) } else { u64::MAX };
            let above = if i == to { u64::MAX >> (63 - last % 64) } else { u64::MAX };
            self.bits.get(i).is_some_and(|bits| bits & below & above != 0)
        })
    }

    /// Whether the token belongs to a match.
    fn has(&self, token: usize) -> bool {
        self.bits.get(token / 64).is_some_and(|bits| bits >> (token % 64) & 1 == 1)
    }
}

/// The last of `tokens` that begins at or before `place`, which is `from` or comes after it. Places ascend and the next
/// is near, so strides grow from one.
fn holding(place: usize, from: usize, tokens: usize, start: &impl Fn(usize) -> usize) -> usize {
    let mut stride = 1;
    while from + stride < tokens && start(from + stride) <= place {
        stride *= 2;
    }
    let (mut low, mut high) = (from + stride / 2, (from + stride).min(tokens));
    while high - low > 1 {
        let middle = low.midpoint(high);
        if start(middle) <= place {
            low = middle;
        } else {
            high = middle;
        }
    }
    low
}

fn examples(index: &IndexFile, phrase: &str, terms: &[&str], found: &mut [Found]) -> Result<()> {
    let arrays = &index.arrays;
    let text = arrays.get::<u8>("search.text")?.bytes();
    let starts = arrays.get::<u64>("search.starts")?;
    let tokens = starts.len().saturating_sub(1);
    let of = |needle: &str| Matches::of(needle, text, tokens, |i| starts.at(i).map_or(usize::MAX, |at| at as usize));
    let (matches, weight) = match of(phrase) {
        Some(matches) => (vec![matches], 1.0),
        None if terms.len() == 1 => return Ok(()),
        None => match terms.iter().map(|term| of(term)).collect::<Option<Vec<_>>>() {
            Some(matches) => (matches, 0.5),
            None => return Ok(()),
        },
    };
    let stored = Examples::of(index)?;
    let (length, window) = (index.header.context_size, index.header.settings.window);
    found.par_iter_mut().with_min_len(TASK_FEATURES).try_for_each(|found| {
        let own = between(&stored.offsets, found.feature as usize)?;
        let max = index.summaries().get(found.feature as usize).map_or(0.0, |summary| summary.max.abs());
        let (mut sum, mut best) = (0.0, 0.0);
        let places = stored.position.range(own.clone())?.zip(stored.row.range(own.clone())?);
        for (e, (position, row)) in own.clone().zip(places) {
            let (around, first) = (window.around(position as usize, length), row as usize * length);
            let range = first + around.start..first + around.end;
            // Most examples match nothing, so nothing else is read of them.
            if !matches.iter().all(|matches| matches.any(range.clone())) {
                continue;
            }
            let on_words = strength(&stored, e, first, &matches)?;
            let strength = on_words.max(NEAR * stored.value.at(e)?.abs()) / max;
            sum += strength;
            found.matches += 1;
            if stored.interval.at(e)? == TOP && strength > best {
                (best, found.best_example) = (strength, Some(e - own.start));
            }
        }
        if sum > 0.0 {
            let top = stored.interval.range(own)?.filter(|&interval| interval == TOP).count();
            found.examples = weight * sum / top.max(1) as f32;
        }
        Ok(())
    })
}

/// The largest activation around example `e` on a token that matches; `first` is the first token of its sequence.
fn strength(stored: &Examples<'_>, e: usize, first: usize, matches: &[Matches]) -> Result<f32> {
    let on_words = stored.firings(e)?.filter(|(position, _)| {
        let token = first + *position as usize;
        matches.iter().any(|matches| matches.has(token))
    });
    Ok(on_words.fold(0f32, |most, (_, value)| most.max(value.abs())))
}

/// Whether a token is the word `term`, which is in lower case.
fn is_word(piece: &[u8], term: &str) -> bool {
    if piece.is_ascii() {
        return piece.trim_ascii().eq_ignore_ascii_case(term.as_bytes());
    }
    String::from_utf8_lossy(piece).trim().to_lowercase() == term
}

/// Adds to every feature the share of `terms` that are among its promoted tokens.
fn promoted(index: &IndexFile, terms: &[&str], found: &mut [Found]) -> Result<()> {
    if !index.arrays.has("promoted.token") {
        return Ok(());
    }
    let words = index.vocabulary()?;
    let highest = words.tokens.iter().last().map_or(0, |token| token as usize + 1);
    for term in terms {
        let mut is_term = vec![false; highest];
        let mut any = false;
        for (i, token) in words.tokens.iter().enumerate() {
            let same = is_word(words.bytes(i)?, term);
            is_term[token as usize] = same;
            any |= same;
        }
        if !any {
            continue;
        }
        for (tokens, logits) in
            [("promoted.token", "promoted.logit"), ("promoted_through_norm.token", "promoted_through_norm.logit")]
        {
            let (tokens, logits) = (index.arrays.get::<u32>(tokens)?, index.arrays.get::<f32>(logits)?);
            let columns = tokens.columns().max(1);
            for (i, token) in tokens.iter().enumerate() {
                if is_term.get(token as usize).copied().unwrap_or_default()
                    && let Some(found) = found.get_mut(i / columns)
                {
                    let share = logits.at(i)? / logits.at(i - i % columns)?;
                    // Each list tells half.
                    found.promoted += 0.5 * share.clamp(0.0, 1.0) / terms.len() as f32;
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_mark_every_token_that_they_touch() {
        let text = b"the golden gate\0golden age\0";
        let starts = [0, 3, 8, 10, 16, 22, 27];
        let of = |needle: &str| Matches::of(needle, text, 6, |i| starts[i]);
        let matches = of("golden gate").unwrap();
        let marked: Vec<bool> = (0..6).map(|i| matches.any(i..i + 1)).collect();
        assert_eq!(marked, [false, true, true, true, false, false]);
        let golden = of("golden").unwrap();
        let marked: Vec<bool> = (0..6).map(|i| golden.any(i..i + 1)).collect();
        assert_eq!(marked, [false, true, true, false, true, false]);
        assert!(golden.any(0..6) && !golden.any(3..4) && !golden.any(0..1));
        assert!(of("gate golden").is_none());
        assert!(of("gol").is_some() && of("ate").is_none());
    }

    #[test]
    fn the_token_that_holds_a_place_is_the_last_that_begins_before_it() {
        let starts: Vec<usize> = (0..300).map(|i| i * 3 + i % 2).collect();
        for place in 0..1000 {
            let expected = starts.partition_point(|&start| start <= place) - 1;
            for from in [0, expected / 2, expected] {
                assert_eq!(holding(place, from, 300, &|i: usize| starts[i]), expected, "{place} from {from}");
            }
        }
    }

    #[test]
    fn bits_answer_for_ranges_as_counting_does() {
        let marked = |token: usize| token % 67 == 3 || token == 127;
        let mut bits = vec![0u64; 4];
        (0..256).filter(|&token| marked(token)).for_each(|token| bits[token / 64] |= 1 << (token % 64));
        let matches = Matches { bits };
        for from in 0..256 {
            assert_eq!(matches.has(from), marked(from));
            for to in from..=256 {
                assert_eq!(matches.any(from..to), (from..to).any(marked), "{from}..{to}");
            }
        }
        assert!(!matches.has(256) && !matches.any(250..400));
    }

    #[test]
    fn tokens_are_words_whatever_their_case_and_spaces() {
        assert!(is_word(b" Gate", "gate") && is_word("ÉTÉ".as_bytes(), "été") && is_word(b"gate\n", "gate"));
        assert!(!is_word(b" gates", "gate") && !is_word(b"", "gate") && !is_word(&[0xff, b'a'], "a"));
    }

    #[test]
    fn labels_match_as_they_stand_or_by_half_of_the_words() {
        let score = |label: &str| label_score(label, "golden gate bridge", &["golden", "gate", "bridge"]);
        assert_eq!(
            [score("the golden gate bridge"), score("bridge over the gate"), score("a gate")],
            [1.0, 2.0 / 3.0, 0.0]
        );
    }
}
