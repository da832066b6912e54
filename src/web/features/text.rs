//! The text that examples quote, each stretch of it once.

use std::collections::{BTreeMap, HashMap};

/// What stands between stretches that are not neighbours; nobody can search for it.
const BREAK: &str = "\u{0}";

/// Words with a number each, in the order of their first use.
#[derive(Debug)]
pub(super) struct Words {
    numbers: HashMap<String, u32>,
    words: Vec<String>,
}

impl Words {
    /// With the break between stretches as number 0.
    pub(super) fn new() -> Self {
        Self { numbers: HashMap::from([(BREAK.to_owned(), 0)]), words: vec![BREAK.to_owned()] }
    }

    /// The number of `word`.
    pub(super) fn number(&mut self, word: &str) -> u32 {
        if let Some(&number) = self.numbers.get(word) {
            return number;
        }
        let number = self.words.len() as u32;
        self.numbers.insert(word.to_owned(), number);
        self.words.push(word.to_owned());
        number
    }

    /// All of them, by number.
    pub(super) fn list(&self) -> &[String] {
        &self.words
    }
}

/// A stretch of one sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stretch {
    start: u32,
    words: Vec<u32>,
}

impl Stretch {
    fn end(&self) -> u32 {
        self.start + self.words.len() as u32
    }
}

/// The stretches of every sequence that were quoted, in order, never touching.
#[derive(Debug, Default)]
pub(super) struct Quoted(BTreeMap<u64, Vec<Stretch>>);

impl Quoted {
    /// Takes in `words` from position `start` of `sequence` on.
    pub(super) fn add(&mut self, sequence: u64, start: u32, words: Vec<u32>) {
        let stretches = self.0.entry(sequence).or_default();
        let new = Stretch { start, words };
        let from = stretches.partition_point(|s| s.end() < new.start);
        let to = stretches.partition_point(|s| s.start <= new.end());
        if let [only] = &stretches[from..to]
            && only.start <= new.start
            && new.end() <= only.end()
        {
            return;
        }
        let touched = &stretches[from..to];
        let start = touched.first().map_or(new.start, |s| s.start.min(new.start));
        let end = touched.last().map_or(new.end(), |s| s.end().max(new.end()));
        let mut words = vec![0; (end - start) as usize];
        for part in touched.iter().chain([&new]) {
            let at = (part.start - start) as usize;
            words[at..at + part.words.len()].copy_from_slice(&part.words);
        }
        stretches.splice(from..to, [Stretch { start, words }]);
    }

    /// The whole text, stretch after stretch with breaks between them, and where each position of it went.
    pub(super) fn join(&self) -> (Vec<u32>, Places) {
        let (mut text, mut places) = (vec![0], BTreeMap::new());
        for (&sequence, stretches) in &self.0 {
            let mut starts = Vec::with_capacity(stretches.len());
            for stretch in stretches {
                starts.push((stretch.start, text.len() as u32));
                text.extend_from_slice(&stretch.words);
                text.push(0);
            }
            places.insert(sequence, starts);
        }
        (text, Places(places))
    }
}

/// Where positions of sequences lie in the joined text.
#[derive(Debug)]
pub(super) struct Places(BTreeMap<u64, Vec<(u32, u32)>>);

impl Places {
    /// The place of a position that was quoted.
    pub(super) fn of(&self, sequence: u64, position: u32) -> u32 {
        let Some(starts) = self.0.get(&sequence) else { return 0 };
        let after = starts.partition_point(|(start, _)| *start <= position);
        starts[..after].last().map_or(0, |(start, place)| place + (position - start))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlapping_quotes_are_kept_once() {
        let mut quoted = Quoted::default();
        let words = |from: u32, to: u32| (from..to).map(|p| 100 + p).collect::<Vec<_>>();
        for (from, to) in [(10, 15), (30, 33), (13, 18), (18, 20), (11, 12), (40, 44), (28, 41), (0, 3)] {
            quoted.add(5, from, words(from, to));
        }
        quoted.add(2, 7, vec![1, 2]);
        let (text, places) = quoted.join();
        let mut expected = vec![0, 1, 2, 0];
        for (from, to) in [(0, 3), (10, 20), (28, 44)] {
            expected.extend(words(from, to));
            expected.push(0);
        }
        assert_eq!(text, expected);
        assert_eq!((places.of(2, 8), text[places.of(5, 19) as usize], text[places.of(5, 28) as usize]), (2, 119, 128));
    }

    #[test]
    fn equal_words_have_one_number() {
        let mut words = Words::new();
        assert_eq!([words.number("a"), words.number("b"), words.number("a"), words.number(BREAK)], [1, 2, 1, 0]);
        assert_eq!(words.list(), [BREAK, "a", "b"]);
    }
}
