use super::*;
use crate::analysis::feature::index::tests::{build, identity, source};
use crate::analysis::feature::labels::Label;
use crate::base::Silent;

fn findings() -> (Findings, usize) {
    let (source, dictionary) = (source(5, 200), identity(5));
    let index = build(&source, 6);
    (Findings::complete(index, &dictionary, &source, None, &Silent).unwrap(), source.all.context_size)
}

#[test]
fn a_written_index_reads_back_and_a_broken_one_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let (findings, s) = findings();
    let header = findings.header(Some("m".into()), Some("blocks.0.hook_resid_post".into()));
    findings.write(dir.path(), &header, None).unwrap();
    let file = IndexFile::open(dir.path()).unwrap();
    assert_eq!(file.summaries(), findings.index.summaries());
    assert_eq!(file.header, header);
    let in_memory = IndexFile::in_memory(&findings, header.clone(), None).unwrap();
    let all = source(5, 200).all;
    for (feature, stats) in findings.index.features.iter().enumerate() {
        let record = file.record(feature as u32).unwrap();
        assert_eq!(record, in_memory.record(feature as u32).unwrap());
        assert_eq!(record.histogram.counts.iter().sum::<u64>(), stats.count);
        assert_eq!(record.intervals.iter().map(|i| i.count).sum::<u64>(), stats.count);
        assert!(record.intervals.is_sorted_by(|a, b| a.from >= b.to) && record.intervals.len() == INTERVALS);
        let top: Vec<(u64, u32, f32)> = record.examples.iter().map(|e| (e.sequence, e.position, e.value)).collect();
        let expected = stats.examples.top().iter().map(|e| (u64::from(e.sequence), e.position, e.value));
        assert_eq!(top, expected.collect::<Vec<_>>());
        let drawn = record.intervals.iter().flat_map(|i| i.examples.iter().map(move |e| (i, e)));
        for (interval, example) in drawn.clone() {
            assert!(f64::from(example.value) >= interval.from && f64::from(example.value) < interval.to);
        }
        assert!(drawn.clone().count() >= stats.examples.drawn().len());
        assert!(record.intervals.iter().all(|i| i.examples.len() as u64 <= i.count.min(5)));
        for e in record.examples.iter().chain(drawn.map(|(_, e)| e)) {
            let first = e.sequence as usize * s + e.position as usize - e.peak;
            assert_eq!(e.token_ids, all.tokens[first..first + e.token_ids.len()]);
            assert_eq!(e.tokens[0], format!("<{}>", e.token_ids[0]));
            assert_eq!((e.values[e.peak], e.document), (e.value, all.documents[first + e.peak]));
            let fires = |i: usize| if all.kept[i] { all.rows[i * 5 + feature] } else { 0.0 };
            assert_eq!(e.values, (first..first + e.values.len()).map(fires).collect::<Vec<_>>());
        }
        assert!(record.nearest.len() == 4 && !record.coactive.is_empty() && record.promoted.is_none());
        assert_eq!(record.alignment[0].coordinate as usize, feature);
        assert!(record.neurons.is_none() && record.logit_histogram.is_none());
    }
    assert!(file.record(5).unwrap_err().to_string().contains("from 0 to 4"));
    let path = dir.path().join(FEATURES_FILE);
    let whole = std::fs::read(&path).unwrap();
    for cut in [0, 9, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&path, &whole[..cut]).unwrap();
        let error = IndexFile::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("features.safetensors"), "{error}");
    }
    std::fs::write(&path, &whole).unwrap();
    let old = IndexHeader { version: 1, ..header };
    crate::base::artifact::write_json(&dir.path().join(HEADER_FILE), &old).unwrap();
    assert!(IndexFile::open(dir.path()).unwrap_err().to_string().contains("version 1"));
}

#[test]
fn labels_are_part_of_records() {
    let dir = tempfile::tempdir().unwrap();
    let (findings, _) = findings();
    findings.write(dir.path(), &findings.header(None, None), None).unwrap();
    let mut file = IndexFile::open(dir.path()).unwrap();
    file.labels.set(Label::by_hand(3, "threes"));
    file.labels.save(dir.path()).unwrap();
    let file = IndexFile::open(dir.path()).unwrap();
    assert_eq!(file.record(3).unwrap().labels[0].text, "threes");
    assert!(file.record(2).unwrap().labels.is_empty());
    let found = crate::analysis::feature::search(&file, "Threes").unwrap();
    assert!(found.len() == 1 && found[0].feature == 3 && found[0].score == 2.0);
}
