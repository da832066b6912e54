//! The tables of one feature as the page keeps them: lists of numbers, row after row, under short names.

use serde::{Serialize, Serializer};

use super::text::Words;
use crate::analysis::feature::FeatureRecord;
use crate::analysis::feature::record::TokenRecord;

/// One feature's tables, lists of numbers row after row.
#[derive(Serialize)]
pub(super) struct Tables {
    /// Sequences, standard deviation, skewness, kurtosis, weakest.
    s: [Short; 5],
    /// Bin width and counts of activations.
    h: Option<Vec<Short>>,
    /// First bound, bin width and counts of logits.
    l: Option<Vec<Short>>,
    /// Word and logit of promoted tokens, of suppressed ones, and of both through the final norm.
    p: Option<Vec<Short>>,
    n: Option<Vec<Short>>,
    pn: Option<Vec<Short>>,
    nn: Option<Vec<Short>>,
    /// Feature and cosine.
    c: Vec<Short>,
    /// Feature, Jaccard index, correlation, cosine.
    o: Vec<Short>,
    /// Coordinate, value, share.
    a: Vec<Short>,
    /// Neuron, cosine.
    u: Option<Vec<Short>>,
    /// Bounds, count and examples of each interval.
    i: Vec<[Short; 4]>,
}

/// A number to four significant digits, whole ones exactly and without a point.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Short(f64);

impl Serialize for Short {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let x = self.0;
        if x.fract() == 0.0 && x.abs() < 9e15 {
            return serializer.serialize_i64(x as i64);
        }
        let scale = 10f64.powi(3 - x.abs().log10().floor() as i32);
        let rounded = (x * scale).round() / scale;
        serializer.serialize_f64(if rounded.is_finite() { rounded } else { 0.0 })
    }
}

impl Tables {
    /// Those of `record`, whose tokens become numbers in `words`.
    pub(super) fn new(record: &FeatureRecord, words: &mut Words) -> Self {
        let summary = &record.summary;
        let mut tokens = |list: &Option<Vec<TokenRecord>>| {
            let pairs = |list: &Vec<TokenRecord>| {
                list.iter()
                    .flat_map(|t| [f64::from(words.number(&t.text)), f64::from(t.effect.logit)])
                    .map(Short)
                    .collect()
            };
            list.as_ref().map(pairs)
        };
        let counts = |counts: &[u64]| counts.iter().map(|&n| Short(n as f64)).collect::<Vec<_>>();
        let pair = |number: u32, value: f32| [f64::from(number), f64::from(value)].map(Short);
        let fires = &record.histogram;
        Self {
            s: [summary.sequences as f64, summary.std, summary.skewness, summary.kurtosis, f64::from(summary.min)]
                .map(Short),
            h: (!fires.counts.is_empty()).then(|| [vec![Short(fires.bin_width)], counts(&fires.counts)].concat()),
            l: record
                .logit_histogram
                .as_ref()
                .map(|l| [vec![Short(l.start), Short(l.bin_width)], counts(&l.counts)].concat()),
            p: tokens(&record.promoted),
            n: tokens(&record.suppressed),
            pn: tokens(&record.promoted_through_norm),
            nn: tokens(&record.suppressed_through_norm),
            c: record.nearest.iter().flat_map(|n| pair(n.feature, n.cosine)).collect(),
            o: record
                .coactive
                .iter()
                .flat_map(|c| {
                    [f64::from(c.feature), f64::from(c.jaccard), f64::from(c.correlation), f64::from(c.cosine)]
                })
                .map(Short)
                .collect(),
            a: record
                .alignment
                .iter()
                .flat_map(|a| [f64::from(a.coordinate), f64::from(a.value), f64::from(a.share)])
                .map(Short)
                .collect(),
            u: record.neurons.as_ref().map(|list| list.iter().flat_map(|n| pair(n.neuron, n.cosine)).collect()),
            i: record
                .intervals
                .iter()
                .map(|i| [i.from, i.to, i.count as f64, i.examples.len() as f64].map(Short))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let found = [3.0, -0.123_456, 12_345.6, 1e-9, 7e20, 0.0].map(|x| serde_json::to_string(&Short(x)).unwrap());
        assert_eq!(found[..4], ["3", "-0.1235", "12350.0", "1e-9"]);
        assert_eq!(found[5], "0");
    }
}
