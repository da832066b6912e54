//! The parsers, each with the files that it is fed damaged versions of.

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mechinterp::base::{DtypeChoice, Error, RunRecord, Silent};
use mechinterp::data::gguf::Gguf;
use mechinterp::data::{BosPolicy, Corpus};
use mechinterp::interop;
use mechinterp::model::weights;
use mechinterp::store::CacheReader;
use mechinterp::store::format::{CacheSettings, HookEntry, ModelEntry};
use mechinterp::store::writer::CacheWriter;
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::writer::SerializedFileWriter;

/// One parser.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    /// JSON configurations of dictionaries.
    Config,
    /// Transcoder sets: descriptions and layers.
    Set,
    /// Safetensors of dictionaries.
    Safetensors,
    /// Zip archives, as raw bytes.
    Zip,
    /// The `.npy` headers and numbers inside of an archive.
    Npy,
    /// The pickle inside of an archive of torch, read as a dictionary.
    Pickle,
    /// The same, read as weights of a model.
    TorchWeights,
    /// GGUF.
    Gguf,
    /// `cache.json` and shards.
    Cache,
    /// Text in parquet.
    Parquet,
}

/// A file that gets damaged.
#[derive(Debug, Clone)]
pub(crate) struct Seed {
    /// The file.
    pub(crate) file: PathBuf,
    /// What is opened: the file, or the directory around it.
    pub(crate) open: PathBuf,
    /// Its contents.
    pub(crate) whole: Vec<u8>,
}

thread_local! {
    static REPLY: RefCell<String> = const { RefCell::new(String::new()) };
}

/// What kind of answer the last reading gave: the error without names and numbers.
pub(crate) fn last_reply() -> String {
    REPLY.with(|reply| reply.borrow().clone())
}

fn noted<T>(result: Result<T, Error>) -> Option<T> {
    let reply = match &result {
        Ok(_) => String::new(),
        Err(error) => {
            let text = error.to_string();
            let first = text.lines().next().unwrap_or_default();
            first.chars().filter(|c| !c.is_ascii_digit()).take(160).collect()
        }
    };
    REPLY.with(|last| *last.borrow_mut() = reply);
    result.ok()
}

impl Target {
    pub(crate) const ALL: [Self; 10] = [
        Self::Config,
        Self::Set,
        Self::Safetensors,
        Self::Zip,
        Self::Npy,
        Self::Pickle,
        Self::TorchWeights,
        Self::Gguf,
        Self::Cache,
        Self::Parquet,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Set => "set",
            Self::Safetensors => "safetensors",
            Self::Zip => "zip",
            Self::Npy => "npy",
            Self::Pickle => "pickle",
            Self::TorchWeights => "torch-weights",
            Self::Gguf => "gguf",
            Self::Cache => "cache",
            Self::Parquet => "parquet",
        }
    }

    /// Reads `path` to the end; whether it could.
    pub(crate) fn read(self, path: &Path) -> bool {
        match self {
            Self::Config | Self::Safetensors | Self::Zip | Self::Npy | Self::Pickle => noted(interop::open(path))
                .is_some_and(|opened| {
                    let x = vec![0.5; opened.dictionary.d_in().min(1 << 16)];
                    opened.dictionary.d_in() >= 1 << 16 || opened.dictionary.reconstruct(&x).is_ok()
                }),
            Self::Set => noted(interop::open_set(path)).is_some_and(|set| {
                let layers = 0..set.config().n_layers;
                let x = vec![vec![0.5; set.config().d_model]; layers.len()];
                let codes: Result<Vec<_>, _> = layers.map(|layer| set.encode(layer, &x[layer])).collect();
                noted(codes).is_some_and(|codes| noted(set.reconstruct(&codes, &x)).is_some())
            }),
            Self::TorchWeights => {
                let files = [path.to_owned()];
                noted(weights::entries(&files)).is_some_and(|entries| {
                    let open = weights::Weights::open(&files, candle_core::DType::F32, &candle_core::Device::Cpu);
                    let small = |e: &&weights::Entry| e.bytes < 1 << 20;
                    noted(open).is_some_and(|open| {
                        entries.iter().filter(small).for_each(|e| drop(open.get(&e.name, &e.shape)));
                        true
                    })
                })
            }
            Self::Gguf => noted(Gguf::open(path)).is_some_and(|file| {
                drop(noted(weights::entries(&[path.to_owned()])));
                file.tensors().values().map(|tensor| file.bytes(tensor).len()).sum::<usize>() < usize::MAX
            }),
            Self::Cache => noted(CacheReader::open(path)).is_some_and(|reader| {
                let whole = noted(reader.verify(&Silent)).is_some();
                let mut rows = Vec::new();
                drop(reader.read_rows(0, &[0], &mut rows));
                whole && reader.tokens(0).is_ok()
            }),
            Self::Parquet => {
                let Some(corpus) = noted(Corpus::open(&[path.to_owned()], "text")) else { return false };
                corpus.documents().take(64).all(|document| document.is_ok())
            }
        }
    }

    /// Copies of its files under `dir`.
    pub(crate) fn seeds(self, dir: &Path) -> Vec<Seed> {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        fs::create_dir_all(dir).unwrap();
        match self {
            Self::Config => dictionaries(&golden, dir, &["json", "yaml"]),
            Self::Set => sets(&golden.join("sets"), dir),
            Self::Safetensors => dictionaries(&golden, dir, &["safetensors"]),
            Self::Zip => dictionaries(&golden, dir, &["npz", "pt", "pth"]),
            Self::Npy => dictionaries(&golden, dir, &["npz"]),
            Self::Pickle => dictionaries(&golden, dir, &["pt", "pth"]),
            Self::TorchWeights => files(&golden.join("weights"), dir, &["views.bin", "module.bin"]),
            Self::Gguf => files(&golden.join("gguf"), dir, &["types.gguf", "llama.gguf", "gemma3.gguf", "gpt2.gguf"]),
            Self::Cache => cache(&dir.join("acts")),
            Self::Parquet => vec![parquet_file(&dir.join("text.parquet"))],
        }
    }
}

fn seed(file: PathBuf, open: PathBuf) -> Seed {
    let whole = fs::read(&file).unwrap();
    Seed { file, open, whole }
}

fn files(from: &Path, dir: &Path, names: &[&str]) -> Vec<Seed> {
    let copy = |name: &&str| {
        fs::copy(from.join(name), dir.join(name)).unwrap();
        seed(dir.join(name), dir.join(name))
    };
    names.iter().map(copy).collect()
}

/// The files of foreign dictionaries that end in one of `ends`, each opened through its dictionary.
fn dictionaries(golden: &Path, dir: &Path, ends: &[&str]) -> Vec<Seed> {
    copy(&golden.join("dictionaries"), dir);
    let index: Vec<serde_json::Value> =
        serde_json::from_slice(&fs::read(golden.join("dictionaries/index.json")).unwrap()).unwrap();
    let mut seeds = Vec::new();
    for case in index {
        let open = dir.join(case["path"].as_str().unwrap());
        let around = if open.is_dir() { open.clone() } else { open.parent().unwrap().into() };
        for file in walk(&around) {
            if file.extension().is_some_and(|e| ends.iter().any(|end| e == *end)) {
                seeds.push(seed(file, open.clone()));
            }
        }
    }
    seeds
}

/// The files of transcoder sets, each opened through its set.
fn sets(from: &Path, dir: &Path) -> Vec<Seed> {
    copy(from, dir);
    let sets = fs::read_dir(dir).unwrap().flatten().map(|entry| entry.path()).filter(|path| path.is_dir());
    let mut seeds: Vec<Seed> =
        sets.flat_map(|set| walk(&set).into_iter().map(move |file| seed(file, set.clone()))).collect();
    seeds.sort_by(|a, b| a.file.cmp(&b.file));
    seeds
}

fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).unwrap().flatten() {
        if entry.path().is_dir() { files.extend(walk(&entry.path())) } else { files.push(entry.path()) }
    }
    files.sort();
    files
}

fn copy(from: &Path, to: &Path) {
    for file in walk(from) {
        let target = to.join(file.strip_prefix(from).unwrap());
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(file, target).unwrap();
    }
}

/// A cache of a few rows.
fn cache(dir: &Path) -> Vec<Seed> {
    let settings = CacheSettings {
        model: ModelEntry {
            name: "m".into(),
            weights_blake3: "w".into(),
            dtype: DtypeChoice::F32,
            device: "cpu".into(),
        },
        tokenizer_blake3: "t".into(),
        data: Vec::new(),
        text_field: "text".into(),
        hooks: vec![HookEntry { name: "blocks.1.hook_resid_post".into(), width: 3, dtype: DtypeChoice::F16 }],
        context_size: 6,
        bos: BosPolicy::Prepend,
        special_token_ids: vec![1],
        batch_size: 2,
        shard_sequences: 2,
        target_sequences: None,
    };
    let mut writer = CacheWriter::begin(dir, settings, false).unwrap();
    for _ in 0..3 {
        writer.push(&[1, 2, 3, 4, 5, 6], &[0; 6], &[&[0.5; 18]]).unwrap();
    }
    writer.finish(&RunRecord::new("fuzz", &(), 0)).unwrap();
    let kept = |file: &PathBuf| file.extension().is_some_and(|e| e == "json" || e == "safetensors");
    walk(dir).into_iter().filter(kept).map(|file| seed(file, dir.to_owned())).collect()
}

/// A column of texts in two groups of rows.
fn parquet_file(path: &Path) -> Seed {
    let schema = parquet::schema::parser::parse_message_type("message m { optional binary text (UTF8); }").unwrap();
    let file = fs::File::create(path).unwrap();
    let mut writer = SerializedFileWriter::new(file, Arc::new(schema), Arc::default()).unwrap();
    for group in 0..2 {
        let mut rows = writer.next_row_group().unwrap();
        let mut column = rows.next_column().unwrap().unwrap();
        let texts: Vec<ByteArray> = (0..9).map(|n| format!("row {n} of group {group}").as_str().into()).collect();
        let levels = [1, 1, 0, 1, 1, 1, 1, 1, 1, 1];
        column.typed::<ByteArrayType>().write_batch(&texts, Some(&levels), None).unwrap();
        column.close().unwrap();
        rows.close().unwrap();
    }
    writer.close().unwrap();
    seed(path.into(), path.into())
}
