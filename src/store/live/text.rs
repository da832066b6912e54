//! What the text is before a model sees it: how many sequences it fills, how many of their rows the rules about tokens
//! keep, and which sequences are held out.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::base::{Error, Progress, Result, Unit};
use crate::data::corpus::Documents;
use crate::data::{Corpus, PackSettings, Packer, Sequence, Tokenizer};
use crate::store::filter::{FilterReport, FilterSettings};
use crate::store::shuffle::Split;

/// The text with what turns it into sequences.
#[derive(Debug)]
pub(super) struct Text {
    pub(super) tokenizer: Arc<Tokenizer>,
    pub(super) corpus: Arc<Corpus>,
    pub(super) pack: PackSettings,
    pub(super) filter: FilterSettings,
}

/// What one reading of the text found.
#[derive(Debug, Clone)]
pub(super) struct Census {
    /// The sequences that are used, and which of them are held out.
    pub(super) split: Split,
    /// Rows of each sequence that the rules about tokens keep.
    pub(super) kept: Vec<u32>,
    /// The rows by rule. Norms are not known yet.
    pub(super) report: FilterReport,
}

impl Text {
    /// The sequences from the beginning.
    pub(super) fn packer(&self) -> Result<Packer<'_, Documents<'_>>> {
        Packer::new(&self.tokenizer, self.corpus.documents(), self.pack)
    }

    /// Which rows of a sequence the rules about tokens keep.
    pub(super) fn kept<'a>(&'a self, tokens: &'a [u32]) -> impl Iterator<Item = bool> + 'a {
        tokens.iter().enumerate().map(|(position, token)| self.fate(position, *token) == Fate::Kept)
    }

    fn fate(&self, position: usize, token: u32) -> Fate {
        let special: &BTreeSet<u32> = self.tokenizer.special_ids();
        match position {
            0 if self.filter.skip_first => Fate::First,
            _ if self.filter.skip_special && special.contains(&token) => Fate::Special,
            _ => Fate::Kept,
        }
    }

    /// Reads the text until its training part keeps `rows` rows, or to its end, with the last `held_out` of the
    /// sequences held out. Tokenising is a small part of a percent of what running the model costs.
    pub(super) fn census(&self, rows: Option<u64>, held_out: f64, progress: &dyn Progress) -> Result<Census> {
        progress.begin("reading the text", 0, Unit::Tokens);
        let counted = self.count(rows, held_out, progress);
        progress.end();
        let (kept, report) = counted?;
        if kept.is_empty() {
            let context = self.pack.context_size;
            return Err(Error::Missing {
                what: "enough text",
                path: self.corpus.files().first().map(|f| f.path.clone()).unwrap_or_default(),
                expected: format!("at least one sequence of {context} tokens"),
                remedy: "give more text, or a smaller --context-size".into(),
            });
        }
        let split = Split::new(kept.len() as u64, held_out)?;
        if kept[..split.training().end as usize].iter().all(|&n| n == 0) {
            return Err(Error::Unsupported {
                what: "training on this text".into(),
                why: format!("of its training part no row is kept: {report}"),
                remedy: "give more text, or switch the filters off".into(),
            });
        }
        Ok(Census { split, kept, report })
    }

    fn count(&self, rows: Option<u64>, held_out: f64, progress: &dyn Progress) -> Result<(Vec<u32>, FilterReport)> {
        let mut kept: Vec<u32> = Vec::new();
        let mut report = FilterReport {
            rows: 0,
            kept: 0,
            first_position: 0,
            special_tokens: 0,
            large_norm: 0,
            median_norm: None,
            settings: self.filter,
        };
        // Training sequences so far, and the rows they keep.
        let (mut training, mut enough) = (0, 0);
        for sequence in self.packer()? {
            let Sequence { tokens, .. } = sequence?;
            let before = report.kept;
            for (position, &token) in tokens.iter().enumerate() {
                match self.fate(position, token) {
                    Fate::Kept => report.kept += 1,
                    Fate::First => report.first_position += 1,
                    Fate::Special => report.special_tokens += 1,
                }
            }
            report.rows += tokens.len() as u64;
            kept.push((report.kept - before) as u32);
            progress.advance(tokens.len() as u64);
            if kept.len().is_multiple_of(256) && progress.cancelled() {
                return Err(interrupted());
            }
            let held = (kept.len() as f64 * held_out).ceil() as usize;
            while training + held < kept.len() {
                enough += u64::from(kept[training]);
                training += 1;
            }
            if rows.is_some_and(|rows| enough >= rows) {
                break;
            }
        }
        Ok((kept, report))
    }
}

#[derive(PartialEq, Eq)]
enum Fate {
    Kept,
    First,
    Special,
}

/// The user stopped the run while it waited for rows.
pub(super) fn interrupted() -> Error {
    Error::Interrupted {
        kept: "whatever was saved before is kept".into(),
        resume: "run the same command with --resume".into(),
    }
}
