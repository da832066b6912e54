use super::*;
use crate::analysis::sequences::tests::InMemory;
use crate::base::Silent;
use crate::dictionary::{Activation, Architecture, DictionaryConfig};
use crate::ops::gemm::tests::{numbers, with_threads};

const S: usize = 17;

/// A dictionary over rows of width `d` whose features are the inputs themselves, so that codes are known.
pub(crate) fn identity(d: usize) -> Dictionary {
    let eye: Vec<f32> = (0..d * d).map(|i| if i % (d + 1) == 0 { 1.0 } else { 0.0 }).collect();
    let config = DictionaryConfig::new(Architecture::Relu, d, d);
    Dictionary::new(config, eye.clone(), vec![0.0; d], eye, vec![0.0; d], Activation::relu()).unwrap()
}

/// Sequences of small whole numbers, full of ties, over several batches.
pub(crate) fn source(width: usize, sequences: usize) -> InMemory {
    let n = sequences * S;
    let rows = numbers(n * width, "rows").iter().map(|x| (x * 6.0).round().max(0.0) * 0.25).collect();
    let all = SequenceBatch {
        first: 0,
        context_size: S,
        tokens: (0..n as u32).map(|i| i * 31 % 97).collect(),
        documents: (0..n as u32).map(|i| i / 40).collect(),
        kept: (0..n).map(|i| i % S != 0 && i % 13 != 5).collect(),
        rows,
    };
    InMemory { width, all }
}

pub(crate) fn build(source: &InMemory, top_k: usize) -> FeatureIndex {
    let settings = IndexSettings { top_k, ..IndexSettings::default() };
    FeatureIndex::build(&identity(source.width), source, settings, &Silent).unwrap()
}

#[test]
fn top_examples_equal_sorting_everything() {
    let source = source(6, 600);
    let (d, all) = (source.width, &source.all);
    for top_k in [1, 20, 3000] {
        let index = build(&source, top_k);
        assert!(index.sequences == 600 && index.rows + index.rows_left_out == 600 * S as u64);
        for (f, stats) in index.features.iter().enumerate() {
            let active = |i: usize| all.kept[i] && all.rows[i * d + f] > 0.0;
            let value = |i: usize| if active(i) { all.rows[i * d + f] } else { 0.0 };
            let mut order: Vec<usize> = (0..all.tokens.len()).filter(|&i| active(i)).collect();
            assert_eq!(stats.count, order.len() as u64);
            assert!((stats.sums[0] - order.iter().map(|&i| f64::from(value(i))).sum::<f64>()).abs() < 1e-9);
            assert_eq!(stats.histogram.counts().iter().sum::<u64>(), stats.count);
            order.sort_by(|&a, &b| value(b).total_cmp(&value(a)).then(a.cmp(&b)));
            let mut expected: Vec<usize> = Vec::new();
            for i in order {
                let near = |&p: &usize| i / S == p / S && i + 10 >= p && i <= p + 5;
                if expected.len() < top_k && !expected.iter().any(near) {
                    expected.push(i);
                }
            }
            let place = |e: &Example| e.sequence as usize * S + e.position as usize;
            let found: Vec<usize> = stats.examples.top().iter().map(place).collect();
            assert_eq!(found, expected, "feature {f}, top {top_k}");
            for e in stats.examples.top().iter().chain(stats.examples.drawn()) {
                let expected: Vec<f32> = (0..index.settings.window.width())
                    .map(|j| (e.position as usize + j).checked_sub(index.settings.window.before))
                    .map(|p| p.filter(|&p| p < S).map_or(0.0, |p| value(e.sequence as usize * S + p)))
                    .collect();
                assert_eq!(stats.examples.around(e, index.settings.window), expected);
                assert_eq!(e.value, value(place(e)));
            }
            assert!(stats.max == stats.examples.top()[0].value && stats.max > 0.0);
        }
    }
}

#[test]
fn every_interval_that_has_firings_shows_some_and_another_seed_shows_others() {
    let source = source(4, 400);
    let index = build(&source, 5);
    for stats in &index.features {
        for i in 0..INTERVALS {
            let (_, count) = stats.histogram.interval_count(i);
            let drawn = stats.examples.drawn().iter().filter(|e| stats.histogram.interval(e.value) == i).count();
            assert!(drawn as u64 <= count.min(5) && (drawn > 0) == (count > 0), "interval {i} with {count} firings");
        }
    }
    let settings = IndexSettings { top_k: 5, seed: 1, ..IndexSettings::default() };
    let other = FeatureIndex::build(&identity(4), &source, settings, &Silent).unwrap();
    assert!(other.features[0].examples.top() == index.features[0].examples.top());
    assert!(other.features[0].examples.drawn() != index.features[0].examples.drawn());
}

#[test]
fn the_index_does_not_depend_on_the_threads() {
    let source = source(70, 300);
    assert_eq!(with_threads(1, || build(&source, 4)), with_threads(2, || build(&source, 4)));
}

#[test]
fn memory_is_bounded_whatever_the_amount_of_text() {
    let held = |stats: &FeatureStats| {
        let (entries, _) = stats.sketch.parts();
        size_of::<FeatureStats>() + 8 * entries.len() + 8 * BINS + stats.examples.bytes()
    };
    let most = |sequences| build(&source(3, sequences), 20).features.iter().map(held).max().unwrap();
    let bound = IndexSettings::default().bytes_a_feature();
    let (some, more) = (most(300), most(3000));
    assert!(some <= bound && more <= bound && more > bound / 3, "{some} and {more} of {bound}");
    let at_131072 = IndexSettings { window: Window { before: 16, after: 8 }, ..IndexSettings::default() };
    let gigabytes = at_131072.bytes_a_feature() as f64 * 131_072.0 / 1e9;
    assert!(gigabytes < 3.0, "{gigabytes} GB");
}

#[test]
fn a_dictionary_of_another_width_is_an_error_that_names_both() {
    let settings = IndexSettings::default();
    let error = FeatureIndex::build(&identity(5), &source(6, 1), settings, &Silent).unwrap_err().to_string();
    assert!(error.contains("rows of 5") && error.contains("rows of 6"), "{error}");
}
