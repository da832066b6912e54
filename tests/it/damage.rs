//! Foreign dictionaries that are cut off, corrupt or hostile: one clear error that names the file, nothing executed,
//! bounded memory.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use mechinterp::interop;
use serde_json::{Value, json};

use crate::fixture::Cli;
use crate::interop::{cases, folder, text};

/// A copy of a golden dictionary under its own folder names, which formats read.
struct Copy {
    _dir: tempfile::TempDir,
    open: PathBuf,
}

impl Copy {
    fn of(path: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let open = dir.path().join(path);
        let from = folder().join(path);
        if from.is_dir() {
            copy(&from, &open);
        } else {
            copy(from.parent().unwrap(), open.parent().unwrap());
        }
        Self { _dir: dir, open }
    }

    fn files(&self) -> Vec<PathBuf> {
        walk(if self.open.is_dir() { &self.open } else { self.open.parent().unwrap() })
    }

    /// The one file whose name ends so.
    fn file(&self, end: &str) -> PathBuf {
        self.files().into_iter().find(|file| file.to_string_lossy().ends_with(end)).unwrap()
    }

    fn error(&self) -> String {
        match interop::open(&self.open) {
            Ok(_) => panic!("{} opened", self.open.display()),
            Err(error) => error.to_string(),
        }
    }
}

fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        if entry.path().is_dir() { files.extend(walk(&entry.path())) } else { files.push(entry.path()) }
    }
    files.sort();
    files
}

fn copy(from: &Path, to: &Path) {
    for file in walk(from) {
        let target = to.join(file.strip_prefix(from).unwrap());
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        std::fs::copy(file, target).unwrap();
    }
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

fn is_weights(path: &Path) -> bool {
    ["safetensors", "npz", "pt", "pth"].iter().any(|e| path.extension().is_some_and(|found| found == *e))
}

/// Replaces `from` by `to` everywhere in a file; whether it was there.
fn replace(path: &Path, from: &[u8], to: &[u8]) -> bool {
    assert_eq!(from.len(), to.len());
    let mut bytes = std::fs::read(path).unwrap();
    let places: Vec<usize> =
        (0..bytes.len().saturating_sub(from.len())).filter(|&i| bytes[i..].starts_with(from)).collect();
    for &at in &places {
        bytes[at..at + to.len()].copy_from_slice(to);
    }
    std::fs::write(path, bytes).unwrap();
    !places.is_empty()
}

#[test]
fn files_cut_off_anywhere_are_refused_by_name() {
    let mut cuts = 0;
    for case in cases() {
        let copy = Copy::of(text(&case, "path"));
        for file in copy.files() {
            // Settings in YAML have no end that could be missing.
            if !is_weights(&file) && file.extension().is_none_or(|e| e != "json") {
                continue;
            }
            let whole = std::fs::read(&file).unwrap();
            let step = (whole.len() / 40).max(1);
            for cut in (0..whole.len()).step_by(step).chain(whole.len().saturating_sub(30)..whole.len()) {
                // A JSON file may end in space.
                if whole[cut..].iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                std::fs::write(&file, &whole[..cut]).unwrap();
                let error = copy.error();
                assert!(error.contains(&name(&file)) && error.contains("remedy"), "{cut} bytes of {file:?}: {error}");
                cuts += 1;
            }
            std::fs::write(&file, &whole).unwrap();
        }
        assert!(interop::open(&copy.open).is_ok());
    }
    assert!(cuts > 3000, "{cuts}");
}

#[test]
fn values_that_are_no_numbers_are_refused_by_tensor() {
    let mut formats = Vec::new();
    for case in cases() {
        let copy = Copy::of(text(&case, "path"));
        let dictionary = interop::open(&copy.open).unwrap().dictionary;
        // The first bias is stored as it is used in all formats but those that scale it.
        let Some(first) = dictionary.b_enc.first().filter(|b| **b != 0.0) else { continue };
        let weights = copy.files().into_iter().find(|file| is_weights(file)).unwrap();
        if replace(&weights, &first.to_le_bytes(), &f32::NAN.to_le_bytes()) {
            let error = copy.error();
            // NumPy's archives have checksums, which see the change before anyone sees the number.
            assert!(error.contains("NaN") || error.contains("checksum"), "{error}");
            assert!(error.contains(&name(&weights)) && error.contains('\''), "{error}");
            formats.push(text(&case, "format").to_owned());
        }
    }
    formats.dedup();
    assert_eq!(formats.len(), 9, "{formats:?}");
}

#[test]
fn shapes_and_number_types_that_do_not_fit_are_refused_by_tensor() {
    for case in cases() {
        let case_name = text(&case, "name");
        let copy = Copy::of(text(&case, "path"));
        let weights = copy.files().into_iter().find(|file| is_weights(file)).unwrap();
        let whole = std::fs::read(&weights).unwrap();
        let refused = |what: &str| {
            let error = copy.error();
            // With a third axis a matrix is that of another format, which is named then.
            let other = what == "another axis" && (error.contains("cross-layer") || error.contains("cfg.json"));
            let named = error.contains(&name(&weights)) && error.contains('\'');
            assert!(named || other, "{what} of {case_name}: {error}");
        };
        if weights.extension().is_some_and(|e| e == "safetensors") {
            let tensors = candle_core::safetensors::load(&weights, &Device::Cpu).unwrap();
            let names: Vec<String> = tensors.keys().cloned().collect();
            for tensor in &names {
                let edited = |edit: &dyn Fn(&Tensor) -> Tensor| {
                    let mut tensors: HashMap<String, Tensor> = tensors.clone();
                    tensors.insert(tensor.clone(), edit(&tensors[tensor]));
                    candle_core::safetensors::save(&tensors, &weights).unwrap();
                };
                edited(&|t| t.to_dtype(DType::I64).unwrap());
                refused("integers");
                if tensors[tensor].rank() > 0 {
                    edited(&|t| t.narrow(0, 0, t.dim(0).unwrap() - 1).unwrap().contiguous().unwrap());
                    // Whichever tensor of the changed one's width is asked for next is named.
                    drop(copy.error());
                    edited(&|t| t.unsqueeze(0).unwrap());
                    refused("another axis");
                }
                let mut fewer = tensors.clone();
                fewer.remove(tensor);
                candle_core::safetensors::save(&fewer, &weights).unwrap();
                // A skip connection, a threshold and norms may be absent; then something else says so.
                let optional =
                    ["W_skip", "activation_function.threshold", "log_jumprelu_threshold", "affine_skip_connection"];
                if !optional.contains(&tensor.as_str()) {
                    assert!(copy.error().contains("safetensors") || copy.error().contains("norm"), "{tensor}");
                }
                let mut more = tensors.clone();
                more.insert("W_more".into(), tensors[tensor].clone());
                candle_core::safetensors::save(&more, &weights).unwrap();
                assert!(copy.error().contains("W_more"), "{tensor} of {case_name}");
            }
        } else if replace(&weights, b"FloatStorage", b"ShortStorage") {
            refused("short integers");
            std::fs::write(&weights, &whole).unwrap();
        } else if replace(&weights, b"'<f4'", b"'<i4'") {
            refused("integers");
            std::fs::write(&weights, &whole).unwrap();
            assert!(replace(&weights, b"(24,)", b"(12,)") && replace(&weights, b"(8, 24)", b"(24, 8)"));
            refused("other shapes");
        }
    }
}

#[test]
fn configurations_that_mean_something_else_are_refused_by_key_and_value() {
    let edits: &[(&str, &str, &str, Value, &str)] = &[
        ("sparsify/topk/layers.2", "cfg.json", "/activation", json!("softmax"), "softmax"),
        ("sparsify/topk/layers.2", "cfg.json", "/temperature", json!(2), "'temperature'"),
        ("sparsify/topk/layers.2", "cfg.json", "/k", json!(0), "k from 1"),
        ("sparsify/groupmax/layers.2", "cfg.json", "/k", json!(5), "divisor"),
        ("sparsify/topk/layers.2", "cfg.json", "/num_latents", json!(1u64 << 60), "latents"),
        ("sparsify/topk/layers.2", "cfg.json", "/d_in", json!("eight"), "'d_in'"),
        ("sparsify/early/h.1", "cfg.json", "/signed", json!(true), "signed"),
        ("sparsify/skip/layers.2.mlp", "cfg.json", "/skip_connection", json!(false), "W_skip"),
        ("dictionary_learning/topk/trainer_0", "config.json", "/trainer/dict_class", json!("CrossCoder"), "CrossCoder"),
        (
            "dictionary_learning/topk/trainer_0",
            "config.json",
            "/trainer/dict_class",
            json!("AutoEncoder"),
            "as config.json says",
        ),
        ("dictionary_learning/topk/trainer_0", "config.json", "/trainer/scale", json!(3), "'trainer.scale'"),
        ("dictionary_learning/topk/trainer_0", "config.json", "/trainer/dict_size", json!(48), "48"),
        ("dictionary_learning/topk/trainer_0", "config.json", "/buffer/center", json!(true), "'buffer.center'"),
        ("dictionary_learning/topk/trainer_0", "config.json", "/more", json!(1), "'more'"),
        ("llama_scope/Llama3_1-8B-Base-L15R-8x", "hyperparams.json", "/act_fn", json!("swish"), "swish"),
        ("llama_scope/Llama3_1-8B-Base-L15R-8x", "hyperparams.json", "/use_glu_encoder", json!(true), "gated linear"),
        (
            "llama_scope/Llama3_1-8B-Base-L15R-8x",
            "hyperparams.json",
            "/norm_activation",
            json!("token-wise"),
            "token-wise",
        ),
        (
            "llama_scope/Llama3_1-8B-Base-L15R-8x",
            "hyperparams.json",
            "/dataset_average_activation_norm",
            json!({}),
            "norm",
        ),
        ("llama_scope/Llama3_1-8B-Base-L15R-8x", "hyperparams.json", "/d_model", json!(16), "16"),
        ("llama_scope/Llama3_1-8B-Base-L15R-8x", "hyperparams.json", "/whiten", json!(true), "'whiten'"),
        (
            "gemma_scope_2/gemma-scope-2-270m-pt/resid_post/layer_12_width_16k_l0_big",
            "config.json",
            "/architecture",
            json!("topk"),
            "topk",
        ),
        (
            "gemma_scope_2/gemma-scope-2-270m-pt/resid_post/layer_12_width_16k_l0_big",
            "config.json",
            "/affine_connection",
            json!(true),
            "affine",
        ),
        (
            "gemma_scope_2/gemma-scope-2-270m-pt/resid_post/layer_12_width_16k_l0_big",
            "config.json",
            "/scaling",
            json!(1),
            "'scaling'",
        ),
    ];
    for (path, file, pointer, value, needle) in edits {
        let copy = Copy::of(path);
        let file = copy.file(file);
        let mut json: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        json.pointer_mut(parent).unwrap().as_object_mut().unwrap().insert(key.into(), value.clone());
        std::fs::write(&file, json.to_string()).unwrap();
        let error = copy.error();
        // Weights that do not fit the configuration are named themselves.
        let named = copy.files().iter().any(|file| error.contains(&name(file)));
        assert!(error.contains(needle) && named, "{pointer} {value}: {error}");
    }
    let copy = Copy::of("sparsify/topk/layers.2");
    std::fs::write(copy.file("cfg.json"), "[".repeat(100_000)).unwrap();
    assert!(copy.error().contains("cfg.json"));
}

/// A stored zip archive; `torch.load` and ours read no checksums of it.
fn archive(parts: &[(&str, Vec<u8>)]) -> Vec<u8> {
    members(&parts.iter().map(|(name, bytes)| (*name, bytes.clone(), 0, bytes.len() as u32)).collect::<Vec<_>>())
}

/// Members with their stored bytes, compression method and the size they claim to have.
fn members(parts: &[(&str, Vec<u8>, u16, u32)]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, stored, method, size) in parts {
        let mut fields = method.to_le_bytes().to_vec();
        fields.extend([0; 8]);
        fields.extend((stored.len() as u32).to_le_bytes());
        fields.extend(size.to_le_bytes());
        fields.extend((name.len() as u16).to_le_bytes());
        fields.extend([0; 2]);
        directory.extend(b"PK\x01\x02\x14\x00\x14\x00\x00\x00");
        directory.extend(&fields);
        directory.extend([0; 10]);
        directory.extend((out.len() as u32).to_le_bytes());
        directory.extend(name.bytes());
        out.extend(b"PK\x03\x04\x14\x00\x00\x00");
        out.extend(&fields);
        out.extend(name.bytes());
        out.extend(stored);
    }
    let (at, length, count) = (out.len() as u32, directory.len() as u32, parts.len() as u16);
    out.extend(directory);
    out.extend(b"PK\x05\x06\x00\x00\x00\x00");
    out.extend([count.to_le_bytes(), count.to_le_bytes()].concat());
    out.extend([length.to_le_bytes(), at.to_le_bytes()].concat());
    out.extend([0, 0]);
    out
}

fn npy(shape: &str, numbers: &[u8]) -> Vec<u8> {
    let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n");
    let mut out = b"\x93NUMPY\x01\x00".to_vec();
    out.extend((header.len() as u16).to_le_bytes());
    out.extend(header.bytes());
    out.extend(numbers);
    out
}

fn deflated(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A pickle of a dict of one entry, whose value is described by `value`.
fn pickled(value: &[u8]) -> Vec<u8> {
    [b"\x80\x02}X\x15\x00\x00\x00encoder_linear.weight", value, b"s."].concat()
}

/// `_rebuild_tensor_v2` of storage `0` with these sizes and strides.
fn tensor(shape: &[i64], strides: &[i64]) -> Vec<u8> {
    let tuple = |numbers: &[i64]| {
        let mut out = b"(".to_vec();
        for n in numbers {
            out.extend([0x8a, 8]);
            out.extend(n.to_le_bytes());
        }
        out.push(b't');
        out
    };
    let storage = b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQK\x00";
    [&storage[..], &tuple(shape), &tuple(strides), b"\x89}tR"].concat()
}

/// Files that ask for far more than they are, or for something to be run.
fn bombs() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let torch = |pickle: Vec<u8>| archive(&[("a/data.pkl", pickle), ("a/data/0", vec![0; 16])]);
    let mut laughs = b"\x80\x02]q\x00".to_vec();
    for level in 1u8..60 {
        // Each list holds the one before it twice.
        laughs.extend([b']', b'q', level, b'h', level - 1, b'a', b'h', level - 1, b'a']);
    }
    laughs.push(b'.');
    let run = b"\x80\x02cos\nsystem\nX\x0e\x00\x00\x00touch attacked\x85R.".to_vec();
    let zeros = vec![0u8; 1 << 28];
    let whole = npy("(8192, 8192)", &zeros);
    let packed = deflated(&whole);
    let mut bomb = vec![];
    for name in ["W_enc.npy", "W_dec.npy"] {
        bomb.push((name, packed.clone(), 8, whole.len() as u32));
    }
    let bias = npy("(8192,)", &vec![0; 8192 * 4]);
    for name in ["b_enc.npy", "b_dec.npy", "threshold.npy"] {
        bomb.push((name, bias.clone(), 0, bias.len() as u32));
    }
    let safetensors = |header: &str| {
        let mut out = (header.len() as u64).to_le_bytes().to_vec();
        out.extend(header.bytes());
        out
    };
    let huge = 1i64 << 40;
    let empty = safetensors(
        "{\"W_enc\":{\"dtype\":\"F32\",\"shape\":[0,1152921504606846976],\"data_offsets\":[0,0]},\
         \"W_dec\":{\"dtype\":\"F32\",\"shape\":[0,1152921504606846976],\"data_offsets\":[0,0]}}",
    );
    vec![
        ("run.pt", torch(run), "os.system"),
        ("laughs.pt", torch(laughs), "a dict"),
        ("text.pt", torch(pickled(b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7f")), "byte"),
        ("bytes.pt", torch(pickled(b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f")), "byte"),
        ("long.pt", torch(pickled(b"\x8b\xff\xff\xff\x7f")), "opcode"),
        ("repeated.pt", torch(pickled(&tensor(&[1 << 20, 1 << 20], &[0, 0]))), "a number for each place"),
        ("overflow.pt", torch(pickled(&tensor(&[huge, huge], &[0, 0]))), "a number for each place"),
        ("negative.pt", torch(pickled(&tensor(&[-1, 4], &[1, 1]))), "tensor"),
        ("pickle.pt", archive(&[("a/data.pkl", vec![b'('; 1 << 25])]), "description"),
        ("bomb.npz", members(&bomb), "claims to unpack"),
        ("modest.npz", members(&[("W_enc.npy", packed, 8, 300)]), "300 bytes"),
        ("shape.npz", archive(&[("W_enc.npy", npy("(1000000000000, 1000000000000)", &[0; 64]))]), "bytes for"),
        ("empty.npz", archive(&[("W_enc.npy", npy("(1000000000000, 0)", &[]))]), "a matrix"),
        ("axes.npz", archive(&[("W_enc.npy", npy(&format!("({})", "1, ".repeat(3000)), &[0; 4]))]), "a matrix"),
        ("header.safetensors", [&(1u64 << 62).to_le_bytes()[..], &[b' '; 64]].concat(), "do not parse"),
        ("empty.safetensors", empty, "a matrix"),
    ]
}

#[test]
fn bombs_are_refused_in_little_memory_and_nothing_runs() {
    let cli = Cli::new();
    let mut wrong = Vec::new();
    for (file, contents, needle) in bombs() {
        cli.write(file, &contents);
        // A third of the address space that the largest of them asks for; a process that tried would be aborted.
        let line = format!("ulimit -v 1000000; exec \"$0\" convert --sae {file} --to saelens --out out --threads 2");
        let mut command = cli.program("sh");
        command.args(["-c", &line, env!("CARGO_BIN_EXE_mechinterp")]);
        let ended = command.output().unwrap();
        let stderr = String::from_utf8_lossy(&ended.stderr).split_whitespace().collect::<Vec<_>>().join(" ");
        let clear = stderr.contains(file) && stderr.contains(needle) && stderr.contains("remedy");
        if ended.status.code() != Some(2) || !clear || stderr.contains("panicked") {
            wrong.push(format!("{file}: {:?} {stderr}", ended.status.code()));
        }
        std::fs::remove_file(cli.path(file)).unwrap();
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(!cli.path("attacked").exists() && !Path::new("attacked").exists() && !cli.path("out").exists());
}

#[test]
fn what_is_no_dictionary_is_said_to_be_none() {
    let cli = Cli::new();
    let error = |path: &str| interop::open(&cli.path(path)).unwrap_err().to_string();
    assert!(error("nowhere").contains("check the path"));
    std::fs::create_dir(cli.path("empty")).unwrap();
    assert!(error("empty").contains("nothing") && error("empty").contains("Gemma Scope"));
    cli.write("empty/notes.txt", "x");
    assert!(error("empty").contains("notes.txt"));
    cli.write("empty/a.txt.pt", "x");
    assert!(error("empty").contains("a.txt.pt"));
    cli.write("zero.safetensors", "");
    assert!(error("zero.safetensors").contains("zero.safetensors"));
    std::fs::create_dir(cli.path("both")).unwrap();
    for file in ["params.npz", "ae.pt"] {
        cli.write(&format!("both/{file}"), "x");
    }
    assert!(error("both").contains("several dictionaries") && error("both").contains("dictionary_learning"));
    let tensor = Tensor::zeros((3, 4), DType::F32, &Device::Cpu).unwrap();
    candle_core::safetensors::save(&HashMap::from([("lm_head.weight", tensor)]), cli.path("model.safetensors"))
        .unwrap();
    assert!(error("model.safetensors").contains("lm_head.weight"));
}
