//! Opening what commands name: models, tokenizers, prompts.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::DType;

use crate::base::{DeviceChoice, DtypeChoice, Error, Result};
use crate::data::hub::{ModelFiles, locate_model};
use crate::data::tokenizer::{BosPolicy, SpecialIds, Tokenizer};
use crate::demo::built_in;
use crate::dictionary::{Dictionary, TranscoderSet};
use crate::interop::{self, Format, OpenedSet};
use crate::model::{HookPlan, Model, ModelConfig, family, weights};
use crate::ops::bf16::Kernel;
use crate::store::CacheReader;

use super::expect::ForceArgs;
use super::model_name::compare_models;
use super::render::Ui;

/// A model with its tokenizer.
pub(crate) struct Opened {
    pub(crate) model: Model,
    pub(crate) tokenizer: Tokenizer,
}

/// The files behind a MODEL argument; `demo` is unpacked once into the user's cache directory.
pub(crate) fn locate(reference: &str, ui: &Ui) -> Result<ModelFiles> {
    if reference != "demo" {
        return locate_model(reference, ui.progress());
    }
    let dir = built_in::unpack(&cache_dir().join(format!("demo-{}", built_in::fingerprint())))?;
    let files = locate_model(&dir.display().to_string(), ui.progress())?;
    Ok(ModelFiles { dir_or_name: "demo".into(), ..files })
}

/// Opens a MODEL argument.
pub(crate) fn open(reference: &str, dtype: DtypeChoice, device: DeviceChoice, ui: &Ui) -> Result<Opened> {
    let files = locate(reference, ui)?;
    open_files(&files, dtype, device)
}

/// Opens files that were located before.
pub(crate) fn open_files(files: &ModelFiles, dtype: DtypeChoice, device: DeviceChoice) -> Result<Opened> {
    open_for(&HookPlan::new().with_logits(), files, dtype, device)
}

/// As [`open_files`], without the layers that passes with `plan` never reach.
pub(crate) fn open_for(
    plan: &HookPlan,
    files: &ModelFiles,
    dtype: DtypeChoice,
    device: DeviceChoice,
) -> Result<Opened> {
    let device = device.open()?;
    let model = Model::open_for(plan, &files.config, &files.weights, DType::from(dtype), &device)?;
    let tokenizer = tokenizer(files, model.config())?;
    Ok(Opened { model, tokenizer })
}

/// The number type for passes whose speed matters more than their last bits: bf16 where the CPU multiplies it natively,
/// else f32.
pub(crate) fn fast_dtype(device: DeviceChoice) -> DtypeChoice {
    let cpu = device.open().is_ok_and(|device| device.is_cpu());
    if cpu && Kernel::best().is_native() { DtypeChoice::Bf16 } else { DtypeChoice::F32 }
}

/// The configuration alone, without touching weights.
pub(crate) fn config(files: &ModelFiles) -> Result<ModelConfig> {
    let json = weights::read_config(&files.config)?;
    Ok(family::parse(&json, &files.config)?.0)
}

/// The tokenizer of located files.
pub(crate) fn tokenizer(files: &ModelFiles, config: &ModelConfig) -> Result<Tokenizer> {
    let fallback = SpecialIds { bos: config.bos_token_id, eos: config.eos_token_ids.first().copied() };
    Tokenizer::load(&files.tokenizer, files.tokenizer_config.as_deref(), fallback)
}

/// The tokens of a prompt, checked against the context.
pub(crate) fn encode_prompt(opened: &Opened, prompt: &str, bos: BosPolicy) -> Result<Vec<u32>> {
    let tokens = opened.tokenizer.encode(prompt, bos)?;
    check_length(&tokens, opened.model.config())?;
    Ok(tokens)
}

/// Checks that a sequence is neither empty nor longer than the model's context.
fn check_length(tokens: &[u32], config: &ModelConfig) -> Result<()> {
    if tokens.is_empty() {
        return Err(Error::flag("--prompt", "at least one token", "none", "write some text, or drop --no-bos"));
    }
    if tokens.len() > config.context_length {
        return Err(Error::Mismatch {
            what: "prompt and model",
            left: format!("{} tokens", tokens.len()),
            right: format!("a context of {} tokens", config.context_length),
            remedy: "shorten the prompt".into(),
        });
    }
    Ok(())
}

/// Opens a dictionary of any known format; says which one it is, where it belongs and what its files leave open.
pub(crate) fn dictionary(path: &Path, ui: &Ui) -> Result<Dictionary> {
    let interop::Opened { dictionary, format, notes, .. } = interop::open(path)?;
    if format != Format::SaeLens {
        ui.say(format!("{}: a dictionary in {}'s format", path.display(), format.title()));
    }
    for note in notes {
        ui.say(format!("{}: {note}", path.display()));
    }
    ui.say(format!("{}: {}", path.display(), dictionary.config.summary()));
    Ok(dictionary)
}

/// Opens a transcoder set of any known format; says which one it is and what its files leave open.
pub(crate) fn transcoder_set(reference: &str, ui: &Ui) -> Result<OpenedSet> {
    let opened = interop::open_set_with(reference, ui.progress())?;
    for note in &opened.notes {
        ui.say(format!("{reference}: {note}"));
    }
    ui.say(format!("{reference}: {}", opened.set.summary()));
    Ok(opened)
}

/// Opens a transcoder set of any known format; says what its files leave open.
///
/// # Errors
/// As [`interop::open_set_with`]; `Mismatch` when it names another model, unless forced.
pub(crate) fn transcoders(reference: &str, model: &str, force: ForceArgs, ui: &Ui) -> Result<Arc<TranscoderSet>> {
    let opened = transcoder_set(reference, ui)?;
    if let Some(own) = &opened.set.config().model_name
        && compare_models(own, model) == Some(false)
    {
        let both = (format!("{} for the model '{own}'", opened.set.config().scan), format!("--model {model}"));
        force.allow("transcoder set and model", both, "use the model that the set was trained on", ui)?;
    }
    Ok(Arc::new(opened.set))
}

/// Opens a cache and checks that its contents are what was written: every command that takes one reads all of it.
pub(crate) fn cache(dir: &Path, ui: &Ui) -> Result<CacheReader> {
    let reader = CacheReader::open(dir)?;
    reader.verify(ui.progress())?;
    Ok(reader)
}

/// The hook of a cache that a dictionary belongs to: the one named, else the dictionary's own, else the only one.
pub(crate) fn cache_hook(reader: &CacheReader, dictionary: &Dictionary, name: Option<&str>) -> Result<String> {
    let own = dictionary.config.metadata.hook_name.as_deref();
    let hook = reader.hook(name.or(own))?;
    let entry = reader.hook_entry(hook)?;
    if entry.width != dictionary.d_in() {
        return Err(Error::Mismatch {
            what: "dictionary and cache widths",
            left: format!("a dictionary for {} with d_in {}", own.unwrap_or("an unnamed hook"), dictionary.d_in()),
            right: format!("{} in {} with width {}", entry.name, reader.dir().display(), entry.width),
            remedy: "use the cache of the model and hook that the dictionary was trained on".into(),
        });
    }
    Ok(entry.name.clone())
}

/// Checks that a tokenizer is the one that made a cache's tokens.
pub(crate) fn check_tokenizer(tokenizer: &Tokenizer, reader: &CacheReader) -> Result<()> {
    let (ours, theirs) = (tokenizer.hash(), &reader.settings().tokenizer_blake3);
    if ours == theirs {
        return Ok(());
    }
    Err(Error::Mismatch {
        what: "the model's tokenizer and the cache's",
        left: format!("a tokenizer with BLAKE3 {}", &ours[..ours.len().min(12)]),
        right: format!("tokens of one with BLAKE3 {}", &theirs[..theirs.len().min(12)]),
        remedy: format!("use the model that made the cache, {}", reader.settings().model.name),
    })
}

/// Where files are kept that can be made again: `$XDG_CACHE_HOME` or `~/.cache`, else the temporary directory.
pub(crate) fn cache_dir() -> PathBuf {
    let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let base = variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|home| home.join(".cache")));
    base.unwrap_or_else(std::env::temp_dir).join("mechinterp")
}

/// Checks early that a file can be written, before the expensive part.
pub(crate) fn check_writable(path: &Path) -> Result<()> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if parent.is_dir() && !path.is_dir() {
        return Ok(());
    }
    let (expected, found) =
        if path.is_dir() { ("a file name", "a directory") } else { ("an existing directory", "none") };
    Err(Error::Missing {
        what: "output directory",
        path: path.into(),
        expected: format!("{expected}, found {found}"),
        remedy: "make the directory, or choose another --out".into(),
    })
}
