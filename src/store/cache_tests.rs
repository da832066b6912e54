use std::collections::BTreeMap;
use std::path::PathBuf;

use rand::Rng;

use super::*;
use crate::base::{DtypeChoice, Silent};
use crate::data::BosPolicy;
use crate::store::format::{HookEntry, ModelEntry};
use crate::store::reader::CacheReader;

pub(in crate::store) const HOOK: &str = "blocks.1.hook_resid_post";
const WIDE: &str = "blocks.0.mlp.hook_post";

/// A cache of two hooks with known contents, in a directory of its own.
pub(in crate::store) struct Example {
    dir: tempfile::TempDir,
    pub(in crate::store) settings: CacheSettings,
    tokens: Vec<u32>,
    documents: Vec<u32>,
    activations: [Vec<f32>; 2],
}

impl Example {
    pub(in crate::store) const CONTEXT: usize = 6;
    const WIDTHS: [usize; 2] = [3, 5];

    /// Values that all three number types hold exactly.
    pub(in crate::store) fn new(dtype: DtypeChoice, sequences: usize) -> Self {
        let rows = sequences * Self::CONTEXT;
        let mut rng = crate::base::rng::stream(1, "example cache");
        let mut values = |n: usize| (0..n).map(|_| f32::from(rng.random_range(-100i8..=100)) / 8.).collect();
        let hook = |i: usize| HookEntry { name: [HOOK, WIDE][i].into(), width: Self::WIDTHS[i], dtype };
        let settings = CacheSettings {
            model: ModelEntry { name: "m".into(), weights_blake3: "w".into(), dtype, device: "cpu".into() },
            tokenizer_blake3: "t".into(),
            data: Vec::new(),
            text_field: "text".into(),
            hooks: vec![hook(0), hook(1)],
            context_size: Self::CONTEXT,
            bos: BosPolicy::Prepend,
            special_token_ids: vec![1],
            batch_size: 2,
            shard_sequences: 4,
            target_sequences: None,
        };
        Self {
            dir: tempfile::tempdir().unwrap(),
            settings,
            tokens: (0..rows as u32).map(|i| 10 + i).collect(),
            documents: (0..rows as u32).map(|i| i / 9).collect(),
            activations: [values(rows * 3), values(rows * 5)],
        }
    }

    pub(in crate::store) fn row(&self, sequence: usize, position: usize) -> Vec<f32> {
        let row = sequence * Self::CONTEXT + position;
        self.activations[0][row * 3..row * 3 + 3].to_vec()
    }

    pub(in crate::store) fn scale_row(&mut self, sequence: usize, position: usize, factor: f32) {
        let row = sequence * Self::CONTEXT + position;
        self.activations[0][row * 3..row * 3 + 3].fill(factor);
    }

    pub(in crate::store) fn set_token(&mut self, sequence: usize, position: usize, token: u32) {
        self.tokens[sequence * Self::CONTEXT + position] = token;
    }

    /// The cache, written and opened.
    pub(in crate::store) fn written(&self) -> CacheReader {
        let target = self.target("cache");
        let writer = CacheWriter::begin(&target, self.settings.clone(), false).unwrap();
        self.go_on(writer, usize::MAX).unwrap();
        CacheReader::open(&target).unwrap()
    }

    fn target(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn sequences(&self) -> usize {
        self.tokens.len() / Self::CONTEXT
    }

    /// Pushes sequences after those stored, three at a time, up to `until`; finishes when that is everything.
    fn go_on(&self, mut writer: CacheWriter, until: usize) -> Result<()> {
        let mut next = writer.stored_sequences() as usize;
        while next < until.min(self.sequences()) {
            let end = (next + 3).min(until).min(self.sequences());
            let rows = next * Self::CONTEXT..end * Self::CONTEXT;
            let part = |hook: usize| {
                let width = Self::WIDTHS[hook];
                &self.activations[hook][rows.start * width..rows.end * width]
            };
            writer.push(&self.tokens[rows.clone()], &self.documents[rows.clone()], &[part(0), part(1)])?;
            next = end;
        }
        if until >= self.sequences() { writer.finish(&RunRecord::new("cache", &1, 0)).map(drop) } else { Ok(()) }
    }
}

fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    entries.map(|e| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap())).collect()
}

fn partial(target: &Path) -> PathBuf {
    crate::base::artifact::partial_path(target)
}

#[test]
fn a_cache_returns_what_was_written_in_each_number_type() {
    for dtype in [DtypeChoice::F32, DtypeChoice::F16, DtypeChoice::Bf16] {
        let example = Example::new(dtype, 10);
        let reader = example.written();
        assert_eq!((reader.sequences(), reader.rows(), reader.manifest().shards.len()), (10, 60, 3));
        reader.verify(&Silent).unwrap();
        let wide = reader.hook(Some(WIDE)).unwrap();
        let mut out = Vec::new();
        reader.read_sequences(wide, 0..10, &mut out).unwrap();
        assert_eq!(out, example.activations[1]);
        reader.read_rows(0, &[59, 0, 24, 23, 24], &mut out).unwrap();
        let expected: Vec<f32> =
            [(9, 5), (0, 0), (4, 0), (3, 5), (4, 0)].iter().flat_map(|&(s, p)| example.row(s, p)).collect();
        assert_eq!(out, expected);
        for sequence in 0..10 {
            let rows = sequence * 6..(sequence + 1) * 6;
            assert_eq!(reader.tokens(sequence as u64).unwrap(), example.tokens[rows.clone()]);
            assert_eq!(reader.documents(sequence as u64).unwrap(), example.documents[rows]);
        }
        assert!(reader.tokens(10).is_err() && reader.read_rows(0, &[60], &mut out).is_err());
        assert!(reader.read_sequences(0, 9..11, &mut out).is_err());
    }
}

#[test]
fn a_run_cut_off_anywhere_and_resumed_equals_an_uninterrupted_one() {
    let example = Example::new(DtypeChoice::F16, 11);
    example.written();
    let whole = contents(&example.target("cache"));
    assert_eq!(whole.len(), 5, "three shards, cache.json and run.json");
    for cut in 0..11 {
        let target = example.target(&format!("cut-{cut}"));
        let begin = |resume| CacheWriter::begin(&target, example.settings.clone(), resume);
        example.go_on(begin(false).unwrap(), cut).unwrap();
        let refused = matches!(begin(false), Err(Error::OutputInUse { .. }));
        assert_eq!((refused, target.exists()), (cut >= 4, false), "only whole shards ask for --resume");
        fs::write(partial(&target).join("shard-00002.safetensors"), "an orphan").unwrap();
        fs::write(partial(&target).join("shard-00003.safetensors.tmp"), "half").unwrap();
        let writer = begin(true).unwrap();
        assert_eq!(writer.stored_sequences(), cut as u64 / 4 * 4);
        example.go_on(writer, usize::MAX).unwrap();
        assert!(contents(&target) == whole, "cut at {cut}");
    }
}

#[test]
fn a_torn_or_changed_shard_is_computed_again() {
    let example = Example::new(DtypeChoice::F32, 11);
    example.written();
    let whole = contents(&example.target("cache"));
    let length = whole["shard-00001.safetensors"].len();
    let mut flipped = whole["shard-00001.safetensors"].clone();
    flipped[length - 1] ^= 1;
    let damages: [Option<&[u8]>; 3] = [Some(&whole["shard-00001.safetensors"][..length - 7]), Some(&flipped), None];
    for (i, damage) in damages.into_iter().enumerate() {
        let target = example.target(&format!("torn-{i}"));
        example.go_on(CacheWriter::begin(&target, example.settings.clone(), false).unwrap(), 9).unwrap();
        let shard = partial(&target).join("shard-00001.safetensors");
        match damage {
            Some(bytes) => fs::write(&shard, bytes).unwrap(),
            None => fs::remove_file(&shard).unwrap(),
        }
        let writer = CacheWriter::begin(&target, example.settings.clone(), true).unwrap();
        assert_eq!((writer.stored_sequences(), writer.warnings().len()), (4, 1));
        example.go_on(writer, usize::MAX).unwrap();
        assert!(contents(&target) == whole, "damage {i}");
    }
}

#[test]
fn resuming_with_other_settings_names_the_difference() {
    let example = Example::new(DtypeChoice::F32, 11);
    let target = example.target("other");
    example.go_on(CacheWriter::begin(&target, example.settings.clone(), false).unwrap(), 5).unwrap();
    let mut other = example.settings.clone();
    other.hooks[1].width = 7;
    other.model.name = "the same model by another name".into();
    let error = CacheWriter::begin(&target, other, true).unwrap_err().to_string();
    assert!(error.contains("hooks.1.width 5") && error.contains("7 now"), "{error}");
    let mut same = example.settings.clone();
    same.model.name = "the same model by another name".into();
    assert!(CacheWriter::begin(&target, same, true).is_ok());
}

#[test]
fn values_that_are_not_finite_stop_the_run_and_keep_whole_shards() {
    for (dtype, value, expected) in [(DtypeChoice::F16, 7e4, "--dtype bf16"), (DtypeChoice::F32, f32::NAN, "damaged")] {
        let mut example = Example::new(dtype, 11);
        example.scale_row(7, 2, value);
        let target = example.target("bad");
        let writer = CacheWriter::begin(&target, example.settings.clone(), false).unwrap();
        let error = example.go_on(writer, usize::MAX).unwrap_err().to_string();
        assert!(
            error.contains("sequence 7, position 2") && error.contains(HOOK) && error.contains(expected),
            "{error}"
        );
        assert_eq!(CacheManifest::read(&partial(&target)).unwrap().sequences, 4);
    }
}

#[test]
fn a_damaged_or_unfinished_cache_says_which_file_and_what_to_do() {
    let example = Example::new(DtypeChoice::F32, 11);
    let reader = example.written();
    let target = example.target("cache");
    let shard = target.join("shard-00001.safetensors");
    let whole = fs::read(&shard).unwrap();
    let open = || CacheReader::open(&target).map(drop).unwrap_err().to_string();

    fs::write(&shard, &whole[..whole.len() - 10]).unwrap();
    assert!(open().contains("shard-00001") && open().contains("cache again"), "{}", open());
    let mut garbled = whole.clone();
    garbled[9] = b'!';
    fs::write(&shard, &garbled).unwrap();
    assert!(open().contains("shard-00001"), "{}", open());
    fs::remove_file(&shard).unwrap();
    assert!(open().contains("not found") && open().contains("shard-00001"), "{}", open());
    let mut flipped = whole;
    let last = flipped.len() - 1;
    flipped[last] ^= 1;
    fs::write(&shard, &flipped).unwrap();
    let error = CacheReader::open(&target).unwrap().verify(&Silent).unwrap_err().to_string();
    assert!(error.contains("shard-00001") && error.contains("BLAKE3"), "{error}");

    let error = reader.hook(Some("blocks.1.hook_resid_pots")).unwrap_err().to_string();
    assert!(error.contains(HOOK), "{error}");
    assert!(reader.hook(None).unwrap_err().to_string().contains(WIDE));
    assert_eq!(reader.hook(Some("model.layers.1")).unwrap(), 0);

    let cut = example.target("cut");
    example.go_on(CacheWriter::begin(&cut, example.settings.clone(), false).unwrap(), 5).unwrap();
    for dir in [&cut, &partial(&cut)] {
        let error = CacheReader::open(dir).unwrap_err().to_string();
        assert!(error.contains("--resume"), "{error}");
    }
    fs::write(target.join(MANIFEST), "{\"format_version\": 2}").unwrap();
    assert!(open().contains("version 2"), "{}", open());
}
