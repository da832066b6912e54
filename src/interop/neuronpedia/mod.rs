//! Feature indexes as other programs show them: Neuronpedia's export layout, `SAEDashboard`'s batches, and the files of
//! circuit-tracer's feature panel; and attribution graphs. Features are written only: what comes back from people are
//! labels, which the index reads itself. Graphs are read, too.
//!
//! | target | files |
//! | --- | --- |
//! | [`export::write`] | `MODEL/LAYER-SET/{release,model,sourceset,source}.jsonl`, `{features,activations,explanations}/batch-N.jsonl.gz` |
//! | [`dashboard::write`] | `batch-N.json`, `skipped_indexes.json` |
//! | [`panel::write`] | `features/SET/NUMBER.json` |
//! | [`graph::write`] | `SLUG.json`, `graph-metadata.json`; read, too |

use serde::{Deserialize, Serialize};

use crate::analysis::feature::{FeatureRecord, IndexHeader};
use crate::base::{Error, Progress, Result};
use crate::dictionary::Dictionary;
use crate::model::HookPoint;
use crate::model::hook::Scope;

pub mod dashboard;
pub mod export;
pub mod graph;
pub mod panel;

/// An index, read feature by feature.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    /// About the whole.
    pub header: &'a IndexHeader,
    /// The features to write, ascending.
    pub features: &'a [u32],
    /// Reads one.
    pub record: &'a dyn Fn(u32) -> Result<FeatureRecord>,
    /// The dictionary, whose decoder rows go with the features where the target takes them.
    pub dictionary: Option<&'a Dictionary>,
    /// What the target calls it.
    pub names: &'a Names,
    /// Told about every feature.
    pub progress: &'a dyn Progress,
}

/// How Neuronpedia and its relatives name a dictionary: model `gpt2-small`, layer 8, set `res-jb` make the source
/// `8-res-jb`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Names {
    /// The model.
    pub model_id: String,
    /// The layer that the dictionary reads.
    pub layer: usize,
    /// Dictionaries of one kind on all layers.
    pub source_set: String,
    /// The hook point.
    pub hook_name: String,
}

impl Names {
    /// Those that follow from an index: the last part of the model's name, and a set such as `res-16k`, unless
    /// `source_set` names another.
    ///
    /// # Errors
    /// `Unsupported` when the index does not say which layer of which model it is about.
    pub fn of(header: &IndexHeader, source_set: Option<&str>) -> Result<Self> {
        let missing = |why: &str| Error::Unsupported {
            what: "exporting this index".into(),
            why: why.into(),
            remedy:
                "write model_name and hook_name into its index.json, or index again with a dictionary that has both"
                    .into(),
        };
        let model = header.model_name.as_deref().ok_or_else(|| missing("it does not say which model it is about"))?;
        let hook_name =
            header.hook_name.clone().ok_or_else(|| missing("it does not say which hook point it is about"))?;
        let point: HookPoint = hook_name.parse()?;
        let layer = match point.site.scope() {
            Scope::Block => point.layer.unwrap_or_default(),
            Scope::Embedding | Scope::Final => return Err(missing(&format!("{hook_name} is in no layer"))),
        };
        let own = || format!("{}-{}", short(&point), thousands(header.d_sae));
        let (model, _) = model.split_once('@').unwrap_or((model, ""));
        let last = model.trim_end_matches('/').rsplit('/').next().unwrap_or(model);
        Ok(Self {
            model_id: identifier(&last.to_lowercase()),
            layer,
            source_set: identifier(&source_set.map_or_else(own, str::to_owned)),
            hook_name,
        })
    }

    /// Layer and set in one, as Neuronpedia numbers sources.
    pub fn source_id(&self) -> String {
        format!("{}-{}", self.layer, self.source_set)
    }
}

/// Neuronpedia's word for a place in a block.
fn short(point: &HookPoint) -> &'static str {
    match point.site.name() {
        "hook_resid_pre" | "hook_resid_mid" | "hook_resid_post" => "res",
        "hook_mlp_in" | "hook_mlp_out" | "mlp.hook_pre" | "mlp.hook_post" => "mlp",
        name if name.starts_with("attn.") || name.starts_with("hook_attn") => "att",
        _ => "feat",
    }
}

/// A width as people say it.
fn thousands(n: usize) -> String {
    if n >= 1024 && n.is_multiple_of(1024) { format!("{}k", n / 1024) } else { n.to_string() }
}

/// What may stand in paths and addresses.
fn identifier(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' }).collect()
}

/// `x` to five significant digits: more is noise, and half of a file's bytes.
fn short_number(x: f64) -> f64 {
    if x == 0.0 || !x.is_finite() {
        return 0.0;
    }
    let scale = 10f64.powi(4 - x.abs().log10().floor() as i32);
    // The smallest numbers overflow the scale.
    if scale.is_finite() && scale > 0.0 { (x * scale).round() / scale } else { x }
}

fn short_numbers(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&x| short_number(f64::from(x))).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::analysis::feature::IndexSettings;
    use crate::analysis::feature::labels::Label;
    use crate::analysis::feature::logits::TokenLogit;
    use crate::analysis::feature::record::{
        AlignmentRecord, CoactiveRecord, ExampleRecord, HistogramRecord, IntervalRecord, LogitHistogram,
        NeighbourRecord, TokenRecord,
    };

    pub(in crate::interop) fn header() -> IndexHeader {
        IndexHeader {
            version: 2,
            model_name: Some("org/Some-Model@main".into()),
            hook_name: Some("blocks.2.hook_resid_post".into()),
            dictionary: Some("sae".into()),
            source: Some("acts".into()),
            neurons_of: None,
            context_size: 32,
            d_sae: 2048,
            dead_features: 1,
            rows: 1000,
            rows_left_out: 24,
            sequences: 32,
            settings: IndexSettings::default(),
        }
    }

    fn example(value: f32, start: u32) -> ExampleRecord {
        ExampleRecord {
            value,
            document: 3,
            sequence: 9,
            position: start + 1,
            peak: 1,
            tokens: vec!["<b>\"".into(), " \\xe2".into(), "\u{1f600}".into()],
            token_ids: vec![start, 2, 3],
            values: vec![0.0, value, value / 3.0],
        }
    }

    /// Feature 1 never fires.
    pub(in crate::interop) fn record(index: u32) -> FeatureRecord {
        let mut record = FeatureRecord::default();
        record.summary.index = index;
        if index == 1 {
            return record;
        }
        let token = |text: &str, logit| TokenRecord { text: text.into(), effect: TokenLogit { token: 7, logit } };
        record.summary.density = 0.125;
        record.summary.count = 125;
        record.summary.max = 3.0;
        record.histogram = HistogramRecord { bin_width: 0.5, counts: vec![50, 40, 20, 10, 4, 1] };
        record.labels = vec![Label {
            feature: index,
            text: "a \"label\"".into(),
            method: None,
            model: None,
            author: Some("ann".into()),
            score: None,
        }];
        record.promoted = Some((0..12).map(|i| token(" up", 2.0 - i as f32 * 0.1)).collect());
        record.suppressed = Some(vec![token("down", -1.234_567_8)]);
        record.logit_histogram = Some(LogitHistogram { start: -1.5, bin_width: 0.5, counts: vec![3, 9, 4] });
        record.alignment = vec![AlignmentRecord { coordinate: 5, value: -0.75, share: 0.25 }];
        record.nearest = vec![NeighbourRecord { feature: 4, cosine: 0.5 }];
        record.coactive = vec![CoactiveRecord { feature: 6, jaccard: 0.3, correlation: 0.4, cosine: 0.6 }];
        record.examples = vec![example(3.0, 10), example(2.0, 10), example(1.0, 20)];
        let interval = |from: f64| IntervalRecord {
            from,
            to: from + 1.5,
            count: 60,
            share: 0.48,
            examples: vec![example(from as f32 + 1.0, 20)],
        };
        record.intervals = vec![interval(1.5), interval(0.0)];
        record
    }

    /// What `write` makes of features 0, 1 and 2.
    pub(in crate::interop) fn source<'a>(header: &'a IndexHeader, names: &'a Names) -> Source<'a> {
        Source {
            header,
            features: &[0, 1, 2],
            record: &|feature| Ok(record(feature)),
            dictionary: None,
            names,
            progress: &crate::base::Silent,
        }
    }

    #[test]
    fn names_follow_from_the_index() {
        let names = Names::of(&header(), None).unwrap();
        assert_eq!((names.model_id.as_str(), names.source_id().as_str()), ("some-model", "2-res-2k"));
        assert_eq!(Names::of(&header(), Some("res jb")).unwrap().source_id(), "2-res-jb");
        for header in [
            IndexHeader { model_name: None, ..header() },
            IndexHeader { hook_name: None, ..header() },
            IndexHeader { hook_name: Some("hook_embed".into()), ..header() },
        ] {
            let error = Names::of(&header, None).unwrap_err().to_string();
            assert!(error.contains("index.json"), "{error}");
        }
    }

    #[test]
    fn numbers_keep_five_digits_at_any_size() {
        let found = [1.234_567_8, -0.000_123_456_78, 123_456.7, 0.0, 1e-310, f64::NAN].map(short_number);
        assert_eq!(found[..4], [1.2346, -0.000_123_46, 123_460.0, 0.0]);
        assert!(found[4] >= 0.0 && found[5] == 0.0);
    }
}
