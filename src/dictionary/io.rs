//! Dictionary directories in SAELens' version 6 format: `cfg.json`, `sae_weights.safetensors`, and optionally
//! `sparsity.safetensors`. `SAE.load_from_disk` opens what [`write()`] makes.
//!
//! Reading is strict, because a dictionary that is read a little wrong still gives plausible numbers: an unknown
//! architecture, normalisation or key is an error, as are missing, extra, misshapen and non-finite tensors.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Map, Value, json};

use super::{Activation, Architecture, Dictionary, DictionaryConfig};
use crate::base::artifact::{read_json, write_atomic, write_json};
use crate::base::mapped::Mapped;
use crate::base::nearest::nearest;
use crate::base::{Error, Result};

/// The configuration file.
pub const CONFIG_FILE: &str = "cfg.json";
/// The weights.
pub const WEIGHTS_FILE: &str = "sae_weights.safetensors";
/// How often each feature fires.
pub const SPARSITY_FILE: &str = "sparsity.safetensors";

const CONFIG: &str = "dictionary configuration";
const WEIGHTS: &str = "dictionary weights";
const SPARSITY: &str = "feature sparsity";
const MAKE_AGAIN: &str = "copy or make the dictionary again";

/// Keys of `cfg.json` that are read, or that change nothing about what the dictionary computes.
const KNOWN_KEYS: &[&str] = &[
    "architecture",
    "d_in",
    "d_sae",
    "dtype",
    "device",
    "apply_b_dec_to_input",
    "normalize_activations",
    "reshape_activations",
    "metadata",
    "sae_lens_version",
    "k",
    "rescale_acts_by_decoder_norm",
];

/// Writes `dictionary` into the existing directory `dir`, each file whole or not at all.
///
/// # Errors
/// `Io` when a file cannot be written; `NonFinite` when a weight is NaN or infinite.
pub fn write(dir: &Path, dictionary: &Dictionary) -> Result<()> {
    let Dictionary { config, w_enc, b_enc, w_dec, b_dec, activation } = dictionary;
    let DictionaryConfig { architecture, d_in, d_sae, d_out, apply_b_dec_to_input, reshape_activations, metadata } =
        config;
    let mut cfg = json!({
        "d_in": d_in,
        "d_sae": d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": apply_b_dec_to_input,
        "normalize_activations": "none",
        "reshape_activations": reshape_activations,
    });
    if let (Value::Object(cfg), Ok(Value::Object(own))) = (&mut cfg, serde_json::to_value(architecture)) {
        cfg.extend(own);
        cfg.insert("metadata".into(), json!(metadata));
    }
    let path = dir.join(WEIGHTS_FILE);
    let mut tensors = vec![
        ("W_enc", vec![*d_in, *d_sae], w_enc.as_slice()),
        ("b_enc", vec![*d_sae], b_enc),
        ("W_dec", vec![*d_sae, *d_out], w_dec),
        ("b_dec", vec![*d_out], b_dec),
    ];
    tensors.extend(activation.tensors().into_iter().map(|(name, values)| (name, vec![*d_sae], values)));
    for (name, _, values) in &tensors {
        check_finite(name, values, &path)?;
    }
    let tensors: Vec<_> = tensors.into_iter().map(|(name, shape, v)| (name, shape, Values::F32(v))).collect();
    write_tensors(&path, &tensors)?;
    write_json(&dir.join(CONFIG_FILE), &cfg)
}

/// Writes firing frequencies, `[f]` between 0 and 1, as SAELens stores them: `log10(frequency + 1e-10)`.
///
/// # Errors
/// `Io` when the file cannot be written.
pub fn write_sparsity(dir: &Path, frequencies: &[f64]) -> Result<()> {
    let logs: Vec<f32> = frequencies.iter().map(|f| (f + 1e-10).log10() as f32).collect();
    write_tensors(&dir.join(SPARSITY_FILE), &[("sparsity", vec![logs.len()], Values::F32(&logs))])
}

/// Reads the dictionary in `dir`.
///
/// # Errors
/// `Missing` without one of the two files; `Malformed`, `Unknown`, `Unsupported` or `NonFinite`, naming the file,
/// when its contents are damaged or mean something that this version does not compute.
pub fn read(dir: &Path) -> Result<Dictionary> {
    let config = read_config(dir)?;
    let path = dir.join(WEIGHTS_FILE);
    require(&path, WEIGHTS)?;
    let file = Mapped::open(WEIGHTS, &path)?;
    let shapes: HashMap<String, Vec<usize>> = file.entries()?.into_iter().map(|(n, _, shape)| (n, shape)).collect();
    let (d_in, d_sae, d_out) = (config.d_in, config.d_sae, config.d_out);
    let mut read = Vec::new();
    let mut tensor = |name: &str, shape: &[usize]| -> Result<Vec<f32>> {
        if shapes.get(name).is_some_and(|found| found != shape) {
            return Err(Error::malformed(
                WEIGHTS,
                &path,
                format!("'{name}' as {shape:?}, from {CONFIG_FILE}"),
                format!("{:?}", shapes.get(name).map_or(&[][..], Vec::as_slice)),
                format!("the weights and {CONFIG_FILE} belong to different dictionaries; {MAKE_AGAIN}"),
            ));
        }
        let values = file.tensor(name, DType::F32, &Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?;
        check_finite(name, &values, &path)?;
        read.push(name.to_owned());
        Ok(values)
    };
    let (w_enc, b_enc) = (tensor("W_enc", &[d_in, d_sae])?, tensor("b_enc", &[d_sae])?);
    let (w_dec, b_dec) = (tensor("W_dec", &[d_sae, d_out])?, tensor("b_dec", &[d_out])?);
    let activation = Activation::from_tensors(config.architecture, &w_dec, d_out, |name| tensor(name, &[d_sae]))?;
    let mut extra: Vec<String> = shapes.into_keys().filter(|name| !read.contains(name)).collect();
    extra.sort();
    if !extra.is_empty() {
        return Err(Error::malformed(
            WEIGHTS,
            &path,
            format!("the tensors of architecture '{}': {}", config.architecture.name(), read.join(", ")),
            format!("also {}", extra.join(", ")),
            format!("the file belongs to another architecture, or {CONFIG_FILE} was edited"),
        ));
    }
    Dictionary::new(config, w_enc, b_enc, w_dec, b_dec, activation)
}

/// Reads `cfg.json` alone.
///
/// # Errors
/// As [`read`].
pub fn read_config(dir: &Path) -> Result<DictionaryConfig> {
    let path = dir.join(CONFIG_FILE);
    require(&path, CONFIG)?;
    let cfg: Map<String, Value> = read_json(CONFIG, &path)?;
    check_version(&cfg, &path)?;
    let architecture = architecture(&cfg, &path)?;
    if let Some(key) = cfg.keys().find(|key| !KNOWN_KEYS.contains(&key.as_str())) {
        return Err(Error::Unsupported {
            what: format!("the key '{key}' of {}", path.display()),
            why: "it may change what the dictionary computes, and this version does not know it".into(),
            remedy: "if it is harmless, move it into \"metadata\"".into(),
        });
    }
    only_value(&cfg, "normalize_activations", "none", &path)?;
    let d_in = size(&cfg, "d_in", &path)?;
    let d_sae = size(&cfg, "d_sae", &path)?;
    if let Architecture::TopK { k, .. } = architecture
        && !(1..=d_sae).contains(&k)
    {
        return Err(malformed(&path, format!("k from 1 to d_sae, {d_sae}"), k.to_string()));
    }
    Ok(DictionaryConfig {
        apply_b_dec_to_input: optional(&cfg, "apply_b_dec_to_input", &path)?.unwrap_or(true),
        reshape_activations: optional(&cfg, "reshape_activations", &path)?.unwrap_or_default(),
        metadata: optional(&cfg, "metadata", &path)?.unwrap_or_default(),
        ..DictionaryConfig::new(architecture, d_in, d_sae)
    })
}

/// Reads firing frequencies, `[d_sae]` between 0 and 1, where the directory has them.
///
/// # Errors
/// `Malformed` when the file is damaged or of another size.
pub fn read_sparsity(dir: &Path, d_sae: usize) -> Result<Option<Vec<f64>>> {
    let path = dir.join(SPARSITY_FILE);
    if !path.exists() {
        return Ok(None);
    }
    let bytes = Mapped::open(SPARSITY, &path)?.bytes("sparsity", Dtype::F32, &[d_sae])?.to_vec();
    let frequency = |b: &[u8]| (10f64.powf(f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))) - 1e-10).max(0.0);
    Ok(Some(bytes.chunks_exact(4).map(frequency).collect()))
}

/// The values of one tensor to be written.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Values<'a> {
    /// Floats.
    F32(&'a [f32]),
    /// Counts.
    U32(&'a [u32]),
    /// Bytes of text.
    U8(&'a [u8]),
}

impl Values<'_> {
    fn dtype(self) -> Dtype {
        match self {
            Self::F32(_) => Dtype::F32,
            Self::U32(_) => Dtype::U32,
            Self::U8(_) => Dtype::U8,
        }
    }

    fn bytes(self) -> Cow<'static, [u8]> {
        match self {
            Self::F32(values) => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Self::U32(values) => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Self::U8(values) => values.to_vec().into(),
        }
    }
}

/// Writes named tensors as one safetensors file, atomically.
///
/// # Errors
/// `Io` when the file cannot be written.
pub(crate) fn write_tensors(path: &Path, tensors: &[(impl AsRef<str>, Vec<usize>, Values)]) -> Result<()> {
    let failed = |e: safetensors::SafeTensorError| Error::Io {
        action: "serialise tensors",
        path: path.into(),
        source: std::io::Error::other(e),
    };
    let bytes: Vec<Cow<[u8]>> = tensors.iter().map(|(_, _, values)| values.bytes()).collect();
    let views = tensors
        .iter()
        .zip(&bytes)
        .map(|((name, shape, values), bytes)| {
            Ok((name.as_ref(), TensorView::new(values.dtype(), shape.clone(), bytes)?))
        })
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()
        .map_err(failed)?;
    let file = safetensors::serialize(views, None).map_err(failed)?;
    write_atomic(path, &file)
}

fn require(path: &Path, what: &'static str) -> Result<()> {
    if path.is_file() {
        return Ok(());
    }
    Err(Error::Missing {
        what,
        path: path.into(),
        expected: format!("a dictionary directory holds {CONFIG_FILE} and {WEIGHTS_FILE}"),
        remedy: "give the directory that `train-sae` wrote, or one in SAELens' format".into(),
    })
}

/// Version 6 keeps the model's names under `metadata`; older files are flat and mean other things by some keys.
fn check_version(cfg: &Map<String, Value>, path: &Path) -> Result<()> {
    let version = cfg.get("metadata").and_then(|m| m.get("sae_lens_version")).or(cfg.get("sae_lens_version"));
    let major = version.and_then(Value::as_str).and_then(|v| v.split('.').next()?.parse::<u32>().ok());
    if major.is_some_and(|major| major >= 6) {
        return Ok(());
    }
    Err(Error::Unsupported {
        what: format!("the configuration {}", path.display()),
        why: match version {
            None => {
                "it has no metadata.sae_lens_version, so it is in SAELens' flat format from before version 6".into()
            }
            Some(version) => format!("it is of SAELens version {version}, and version 6 or later is read"),
        },
        remedy: "open and save it once with SAELens 6: SAE.load_from_disk(dir).save_model(new_dir)".into(),
    })
}

fn architecture(cfg: &Map<String, Value>, path: &Path) -> Result<Architecture> {
    let found = cfg.get("architecture").and_then(Value::as_str);
    let Some(name) = found else {
        return Err(malformed(path, "a string 'architecture'".into(), "none".into()));
    };
    if !Architecture::NAMES.contains(&name) {
        return Err(Error::Unknown {
            kind: "dictionary architecture",
            found: format!("{name}' in '{}", path.display()),
            nearest: nearest(name, Architecture::NAMES.iter().copied(), Architecture::NAMES.len()),
        });
    }
    let own: Map<String, Value> = ["architecture", "k", "rescale_acts_by_decoder_norm"]
        .into_iter()
        .filter_map(|key| Some((key.to_owned(), cfg.get(key)?.clone())))
        .collect();
    serde_json::from_value(Value::Object(own))
        .map_err(|e| malformed(path, format!("the parameters of architecture '{name}'"), e.to_string()))
}

fn size(cfg: &Map<String, Value>, key: &str, path: &Path) -> Result<usize> {
    match optional::<usize>(cfg, key, path)? {
        Some(size) if size > 0 => Ok(size),
        _ => Err(malformed(path, format!("'{key}' as a positive integer"), format!("{:?}", cfg.get(key)))),
    }
}

fn optional<T: serde::de::DeserializeOwned>(cfg: &Map<String, Value>, key: &str, path: &Path) -> Result<Option<T>> {
    let Some(value) = cfg.get(key) else { return Ok(None) };
    serde_json::from_value(value.clone())
        .map(Some)
        .map_err(|e| malformed(path, format!("a valid '{key}'"), format!("{value} ({e})")))
}

fn only_value(cfg: &Map<String, Value>, key: &str, expected: &str, path: &Path) -> Result<()> {
    match cfg.get(key) {
        None => Ok(()),
        Some(Value::String(found)) if found == expected => Ok(()),
        Some(found) => Err(Error::Unsupported {
            what: format!("{key} {found} in {}", path.display()),
            why: format!("only '{expected}' is computed; the scaling is not part of the stored weights"),
            remedy: "fold it into the weights with SAELens (fold_activation_norm_scaling_factor) and save again".into(),
        }),
    }
}

fn malformed(path: &Path, expected: String, found: String) -> Error {
    Error::malformed(CONFIG, path, expected, found, MAKE_AGAIN)
}

fn check_finite(name: &str, values: &[f32], path: &Path) -> Result<()> {
    let count = values.iter().filter(|v| !v.is_finite()).count();
    if count == 0 {
        return Ok(());
    }
    let first = values.iter().position(|v| !v.is_finite()).unwrap_or_default();
    Err(Error::NonFinite {
        what: format!("'{name}' of {}", path.display()),
        count,
        at: format!("value {first}"),
        remedy: "the training that made it diverged: train again with a lower --lr".into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dictionary::tests::random;

    fn stored(architecture: Architecture) -> (tempfile::TempDir, Dictionary) {
        let dir = tempfile::tempdir().unwrap();
        let mut dictionary = random(architecture, 6, 10);
        dictionary.config.metadata.hook_name = Some("blocks.3.hook_resid_post".into());
        dictionary.config.metadata.extra.insert("note".into(), json!({"any": [1, 2]}));
        write(dir.path(), &dictionary).unwrap();
        (dir, dictionary)
    }

    fn edited(edit: impl FnOnce(&mut Map<String, Value>)) -> Error {
        let (dir, _) = stored(Architecture::Relu);
        let path = dir.path().join(CONFIG_FILE);
        let mut cfg: Map<String, Value> = read_json("test", &path).unwrap();
        edit(&mut cfg);
        write_json(&path, &cfg).unwrap();
        read(dir.path()).unwrap_err()
    }

    #[test]
    fn every_architecture_reads_back_as_written() {
        let top_k = Architecture::TopK { k: 3, rescale_acts_by_decoder_norm: true };
        for architecture in [Architecture::Relu, Architecture::JumpRelu, top_k] {
            let (dir, dictionary) = stored(architecture);
            assert_eq!(read(dir.path()).unwrap(), dictionary);
        }
    }

    #[test]
    fn sparsity_reads_back_as_frequencies() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read_sparsity(dir.path(), 3).unwrap().is_none());
        write_sparsity(dir.path(), &[0.0, 0.5, 1e-4]).unwrap();
        let back = read_sparsity(dir.path(), 3).unwrap().unwrap();
        assert!(back[0] < 1e-12 && (back[1] - 0.5).abs() < 1e-6 && (back[2] - 1e-4).abs() < 1e-9, "{back:?}");
        assert!(matches!(read_sparsity(dir.path(), 4), Err(Error::Malformed { .. })));
    }

    #[test]
    fn configurations_that_mean_something_else_are_refused_by_name() {
        let error = edited(|cfg| drop(cfg.insert("architecture".into(), json!("temporal")))).to_string();
        assert!(error.contains("temporal") && error.contains("jumprelu") && error.contains("cfg.json"), "{error}");
        let error = edited(|cfg| drop(cfg.insert("normalize_activations".into(), json!("layer_norm")))).to_string();
        assert!(error.contains("layer_norm"), "{error}");
        let error = edited(|cfg| drop(cfg.insert("activation_scale".into(), json!(2)))).to_string();
        assert!(error.contains("activation_scale"), "{error}");
        let error = edited(|cfg| drop(cfg.remove("metadata"))).to_string();
        assert!(error.contains("before version 6"), "{error}");
        assert!(matches!(edited(|cfg| drop(cfg.insert("d_in".into(), json!(0)))), Error::Malformed { .. }));
        assert!(matches!(edited(|cfg| drop(cfg.insert("d_sae".into(), json!("x")))), Error::Malformed { .. }));
        let error = edited(|cfg| drop(cfg.insert("d_in".into(), json!(7)))).to_string();
        assert!(error.contains("[7, 10]") && error.contains("[6, 10]"), "{error}");
    }

    #[test]
    fn damaged_weights_are_refused_by_file() {
        let (dir, _) = stored(Architecture::Relu);
        let path = dir.path().join(WEIGHTS_FILE);
        let whole = std::fs::read(&path).unwrap();
        for cut in [0, 7, 100, whole.len() - 1] {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let error = read(dir.path()).unwrap_err().to_string();
            assert!(error.contains(WEIGHTS_FILE), "{error}");
        }
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(read(dir.path()), Err(Error::Missing { .. })));
        let (w, b) = ([0.5f32; 60], [0.0f32; 10]);
        let tensors = |b_dec: &'static [f32]| {
            vec![
                ("W_enc", vec![6, 10], Values::F32(&w)),
                ("b_enc", vec![10], Values::F32(&b)),
                ("W_dec", vec![10, 6], Values::F32(&w)),
                ("b_dec", vec![6], Values::F32(b_dec)),
            ]
        };
        write_tensors(&path, &tensors(&[0.0, 0.0, f32::NAN, 0.0, 0.0, 0.0])).unwrap();
        let error = read(dir.path()).unwrap_err();
        assert!(matches!(&error, Error::NonFinite { count: 1, .. }) && error.to_string().contains("b_dec"), "{error}");
        let mut extra = tensors(&[0.0; 6]);
        extra.push(("threshold", vec![10], Values::F32(&b)));
        write_tensors(&path, &extra).unwrap();
        assert!(read(dir.path()).unwrap_err().to_string().contains("threshold"));
        write_tensors(&path, &tensors(&[0.0; 6])[1..]).unwrap();
        assert!(read(dir.path()).unwrap_err().to_string().contains("W_enc"));
        write_tensors(&path, &tensors(&[0.0; 6])).unwrap();
        assert!(read(dir.path()).is_ok());
    }

    /// Leaves directories for `tests/saelens_check.py` where `MECHINTERP_SAELENS_CHECK` points, one an architecture.
    #[test]
    fn saelens_is_given_what_it_needs_to_check_us() {
        let tmp = tempfile::tempdir().unwrap();
        let root = std::env::var_os("MECHINTERP_SAELENS_CHECK").map_or(tmp.path().into(), std::path::PathBuf::from);
        let top_k = |rescale| Architecture::TopK { k: 7, rescale_acts_by_decoder_norm: rescale };
        let architectures = [Architecture::Relu, Architecture::JumpRelu, top_k(false), top_k(true)];
        for (i, architecture) in architectures.into_iter().enumerate() {
            let dir = root.join(format!("{i}-{}", architecture.name()));
            std::fs::create_dir_all(&dir).unwrap();
            let mut dictionary = random(architecture, 48, 160);
            dictionary.config.metadata.hook_name = Some("blocks.0.hook_resid_post".into());
            crate::dictionary::scale::fold(&mut dictionary, 0.37);
            let x = crate::ops::gemm::tests::numbers(64 * 48, "x");
            let codes = dictionary.encode(&x).unwrap();
            let decoded = dictionary.decode(&codes).unwrap();
            let dense = codes.to_dense();
            assert!(dense.iter().any(|z| *z > 0.0));
            write(&dir, &dictionary).unwrap();
            let tensors = [
                ("x", vec![64, 48], Values::F32(&x)),
                ("codes", vec![64, 160], Values::F32(&dense)),
                ("x_hat", vec![64, 48], Values::F32(&decoded)),
            ];
            write_tensors(&dir.join("check.safetensors"), &tensors).unwrap();
            assert_eq!(read(&dir).unwrap(), dictionary);
        }
    }
}
