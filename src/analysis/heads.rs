//! Scores that tell well-known kinds of attention heads: induction, previous-token and duplicate-token heads.
//!
//! The text is `[BOS] r r`: `n` random tokens twice, so that everything a head knows about the second half it has from
//! the first. Two scores of each kind, averaged over several such texts:
//!
//! | | stripe (TransformerLens' induction tutorial) | share (`detect_head` of TransformerLens, error measure "mul") |
//! | --- | --- | --- |
//! | induction | mean of `A[i, i − n + 1]` | `Σ A ⊙ D / Σ A`, `D[i, j] = 1` where token `j − 1` is token `i`, `j ≤ i` |
//! | previous token | mean of `A[i, i − 1]` | the same with `D[i, i − 1] = 1` |
//! | duplicate token | mean of `A[i, i − n]` | the same with `D[i, j] = 1` where token `j` is token `i`, `j < i` |
//!
//! `A` is the attention pattern; each mean is over all `i` for which the key exists. A head that always attends so has a
//! stripe of 1. Its share is lower, about one half for induction and duplicates, because the first half has nothing to
//! match. Olsson et al. 2022, "In-context Learning and Induction Heads".

use rand::Rng;
use rand::seq::SliceRandom;
use serde::Serialize;

use crate::base::rng::stream;
use crate::base::{Context, Error, Progress, Result, Unit};
use crate::model::{HookPlan, HookPoint, Model, Site};

use super::stop_if_cancelled;

/// What text to make.
#[derive(Debug, Clone, Serialize)]
pub struct HeadSettings {
    /// Random tokens, `n`, that are repeated once.
    pub length: usize,
    /// How many texts.
    pub texts: usize,
    /// Seed of the tokens.
    pub seed: u64,
    /// The token before them.
    pub bos: Option<u32>,
    /// Tokens to draw from.
    #[serde(skip)]
    pub vocabulary: Vec<u32>,
}

/// The scores of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Score {
    /// Mean attention along the diagonal.
    pub stripe: f64,
    /// Share of all attention that goes where such a head looks.
    pub share: f64,
}

/// One head.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct HeadScores {
    /// Its layer.
    pub layer: usize,
    /// Its number.
    pub head: usize,
    /// Attends to the token after the previous occurrence of the present one.
    pub induction: Score,
    /// Attends to the token before the present one.
    pub previous: Score,
    /// Attends to the previous occurrence of the present token.
    pub duplicate: Score,
}

/// The texts: BOS, then `length` random tokens twice; distinct ones where the vocabulary has enough.
///
/// # Errors
/// `Flag` when length or number are zero, when the vocabulary is empty, or when a text does not fit the model.
pub fn texts(settings: &HeadSettings, context_length: usize) -> Result<Vec<Vec<u32>>> {
    let HeadSettings { length, texts, seed, bos, vocabulary } = settings;
    let longest = context_length.saturating_sub(usize::from(bos.is_some())) / 2;
    if *length < 2 || *length > longest {
        return Err(Error::flag(
            "--length",
            format!("2 to {longest} random tokens, which are repeated"),
            length,
            "the text must fit the model's context",
        ));
    }
    if *texts == 0 {
        return Err(Error::flag("--texts", "1 or more", 0, "10 gives steady scores"));
    }
    if vocabulary.is_empty() {
        return Err(Error::flag("MODEL", "a vocabulary to draw from", "none", "check the model's tokenizer"));
    }
    let mut rng = stream(*seed, "heads/tokens");
    let mut draw = || {
        let random: Vec<u32> = if vocabulary.len() >= *length {
            let mut all = vocabulary.clone();
            all.partial_shuffle(&mut rng, *length).0.to_vec()
        } else {
            (0..*length).map(|_| vocabulary[rng.random_range(0..vocabulary.len())]).collect()
        };
        bos.iter().copied().chain(random.iter().copied()).chain(random.iter().copied()).collect()
    };
    Ok((0..*texts).map(|_| draw()).collect())
}

/// The scores of all heads on `texts`, whose repeated part is `length` tokens long.
///
/// # Errors
/// As [`Model::forward`].
pub fn head_scores(
    model: &Model,
    texts: &[Vec<u32>],
    length: usize,
    progress: &dyn Progress,
) -> Result<Vec<HeadScores>> {
    let (layers, heads) = (model.config().n_layers, model.config().n_heads);
    let none = Score::default();
    let all = (0..layers).flat_map(|layer| (0..heads).map(move |head| (layer, head)));
    let mut scores: Vec<HeadScores> =
        all.map(|(layer, head)| HeadScores { layer, head, induction: none, previous: none, duplicate: none }).collect();
    let point = |layer| HookPoint::block(layer, Site::AttnPattern);
    let plan = (0..layers).map(point).fold(HookPlan::new(), HookPlan::capture);
    progress.begin("texts", texts.len() as u64, Unit::Items);
    for tokens in texts {
        stop_if_cancelled(progress)?;
        let run = model.forward(&model.tokens(&[tokens])?, &plan)?;
        let kinds = kinds(tokens, length);
        for (layer, of_layer) in scores.chunks_exact_mut(heads.max(1)).enumerate() {
            let reading = || format!("reading {}", point(layer));
            let pattern = run.captured(point(layer))?.to_dtype(candle_core::DType::F32).during(reading)?;
            let pattern = pattern.flatten_all().and_then(|x| x.to_vec1::<f32>()).during(reading)?;
            let s = tokens.len();
            for (own, pattern) in of_layer.iter_mut().zip(pattern.chunks_exact((s * s).max(1))) {
                let HeadScores { induction, previous, duplicate, .. } = own;
                for (score, kind) in [induction, previous, duplicate].into_iter().zip(&kinds) {
                    score.add(kind.score(pattern, s), texts.len());
                }
            }
        }
        progress.advance(1);
    }
    progress.end();
    Ok(scores)
}

impl Score {
    fn add(&mut self, one: Self, n: usize) {
        self.stripe += one.stripe / n as f64;
        self.share += one.share / n as f64;
    }
}

/// Where a kind of head looks.
struct Kind {
    /// How far before the query.
    back: usize,
    /// `[s, s]`
    detects: Vec<bool>,
}

/// Induction, previous token, duplicate token.
fn kinds(tokens: &[u32], length: usize) -> [Kind; 3] {
    let s = tokens.len();
    let pattern = |looks: &dyn Fn(usize, usize) -> bool| -> Vec<bool> {
        (0..s * s).map(|at| at % s <= at / s && looks(at / s, at % s)).collect()
    };
    let earlier = |query: usize, key: usize| key < query && tokens[key] == tokens[query];
    [
        Kind { back: length - 1, detects: pattern(&|query, key| key > 0 && earlier(query, key - 1)) },
        Kind { back: 1, detects: pattern(&|query, key| key + 1 == query) },
        Kind { back: length, detects: pattern(&earlier) },
    ]
}

impl Kind {
    /// Of one head's pattern `[s, s]`.
    fn score(&self, pattern: &[f32], s: usize) -> Score {
        let stripe = (self.back..s).filter_map(|query| pattern.get(query * s + query - self.back));
        let (sum, n) = stripe.fold((0.0, 0usize), |(sum, n), x| (sum + f64::from(*x), n + 1));
        let total: f64 = pattern.iter().map(|x| f64::from(*x)).sum();
        let hit: f64 = pattern.iter().zip(&self.detects).filter(|(_, d)| **d).map(|(x, _)| f64::from(*x)).sum();
        Score { stripe: sum / n.max(1) as f64, share: hit / total }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::tests::open;
    use crate::base::Silent;

    fn settings(vocabulary: std::ops::Range<u32>) -> HeadSettings {
        HeadSettings { length: 8, texts: 3, seed: 5, bos: Some(1), vocabulary: vocabulary.collect() }
    }

    #[test]
    fn texts_repeat_themselves_and_a_seed_makes_one_set() {
        let made = texts(&settings(3..40), 64).unwrap();
        assert_eq!(made, texts(&settings(3..40), 64).unwrap());
        assert_ne!(made, texts(&HeadSettings { seed: 6, ..settings(3..40) }, 64).unwrap());
        for text in &made {
            assert_eq!((text.len(), text[0]), (17, 1));
            assert_eq!(text[1..9], text[9..]);
            let mut distinct = text[1..9].to_vec();
            distinct.sort_unstable();
            distinct.dedup();
            assert_eq!(distinct.len(), 8);
        }
        assert_eq!(texts(&settings(3..6), 64).unwrap()[0].len(), 17, "few tokens are drawn again");
        let error = texts(&settings(3..40), 16).unwrap_err().to_string();
        assert!(error.contains("2 to 7"), "{error}");
    }

    #[test]
    fn perfect_heads_have_a_perfect_stripe() {
        let tokens = [1, 10, 11, 12, 13, 10, 11, 12, 13];
        let (s, n) = (tokens.len(), 4);
        let kinds = kinds(&tokens, n);
        let head = |back: usize| -> Vec<f32> {
            let looks = |i: usize| i.saturating_sub(back);
            (0..s * s).map(|at| if at % s == looks(at / s) { 1.0 } else { 0.0 }).collect()
        };
        for (i, back) in [n - 1, 1, n].into_iter().enumerate() {
            let scores = kinds.each_ref().map(|kind| kind.score(&head(back), s));
            assert_eq!(scores[i].stripe, 1.0);
            let others = scores.iter().enumerate().filter(|(other, _)| *other != i);
            assert!(others.into_iter().all(|(_, score)| score.stripe < 0.5), "{scores:?}");
            // Of nine queries four have something to match, all but the first a token before them.
            let matched = if i == 1 { 8.0 } else { 4.0 };
            assert!((scores[i].share - matched / 9.0).abs() < 1e-12, "{scores:?}");
        }
    }

    #[test]
    fn every_head_has_scores_between_zero_and_one() {
        for name in ["llama", "gpt2", "gemma2"] {
            let model = open(name);
            // Short enough for Gemma's window of five positions.
            let settings = HeadSettings { length: 4, ..settings(3..40) };
            let made = texts(&settings, model.config().context_length).unwrap();
            let scores = head_scores(&model, &made, 4, &Silent).unwrap();
            assert_eq!(scores.len(), model.config().n_layers * model.config().n_heads);
            let all = scores.iter().flat_map(|s| [s.induction, s.previous, s.duplicate]);
            assert!(all.into_iter().all(|s| s.stripe > 0.0 && s.stripe < 1.0 && s.share > 0.0 && s.share < 1.0));
        }
    }
}
