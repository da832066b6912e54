//! Indexes of all layers of a transcoder set, in one pass of the model.

use std::path::{Path, PathBuf};

use serde_json::json;

use crate::analysis::LiveSequences;
use crate::analysis::feature::layered::{groups, index_layers, writer};
use crate::analysis::feature::{FeatureIndex, Findings, IndexFile};
use crate::base::artifact::{InputRecord, write_json};
use crate::base::{Artifact, Error, Result, RunRecord};
use crate::data::tokenizer::BosPolicy;
use crate::data::{Corpus, PackSettings, Packer, Sequence, Tokenizer, locate_data};
use crate::dictionary::set::TranscoderSet;
use crate::model::{HookPoint, Model, ModelConfig};
use crate::store::FilterSettings;

use super::super::render::{Table, Ui, thousands};
use super::super::train_sae::record::{RECORD, check_same_run};
use super::super::{Common, open, places};
use super::Args;
use super::make::{DEFAULT_CONTEXT, hash_of_text, input};

/// Memory for the indexes of one pass. Layers beyond it take another pass.
const BUDGET: usize = 4 << 30;
/// Sets up to this size are read into memory; of larger ones each layer is read when its turn comes, batch by batch.
const IN_MEMORY: u64 = 3 << 30;

/// What says in a layer's directory that its index is complete; written last.
const DONE: &str = "run.json";

/// What all layers share.
struct Job<'a> {
    args: &'a Args,
    set: &'a TranscoderSet,
    name: &'a str,
    model: &'a Model,
    tokenizer: &'a Tokenizer,
    text: &'a LiveSequences<'a>,
    dir: PathBuf,
}

/// Writes one index a layer under `--out`, in `layer_0`, `layer_1` and so on.
pub(super) fn run(args: &Args, reference: &str, common: &Common, ui: &Ui) -> Result<()> {
    let (Some(out), Some(name)) = (&args.out, &args.model) else { return Ok(()) };
    let set = open::transcoders(reference, name, args.force, ui)?;
    let files = open::locate(name, ui)?;
    let config = open::config(&files)?;
    set.check_model(&config)?;
    let layers = places::numbers("--layers", &args.layers, set.config().n_layers)?;
    let dtype = args.model_dtype.unwrap_or_else(|| open::fast_dtype(common.device));
    let opened = open::open_files(&files, dtype, common.device)?;
    let (model, tokenizer) = (&opened.model, &opened.tokenizer);
    let sequences = sequences(args, tokenizer, &config, ui)?;
    let inputs =
        vec![input("model", name, files.weights_hash()?), input("data", args.data.join(" "), hash_of_text(&sequences))];
    let filter = args.filter.settings();
    let point = HookPoint::block(layers.first().copied().unwrap_or_default(), set.config().input);
    // Norms are those of each layer, and looked at in the pass.
    let without_norms = FilterSettings { max_norm_multiple: None, ..filter };
    let text = LiveSequences::new(model, point, sequences, tokenizer.special_ids(), without_norms, ui.progress())?;
    ui.say(text.report());
    let settings = args.settings();
    let all = json!({
        "transcoders": reference,
        "model": name,
        "data": args.data,
        "index": settings,
        "filter": filter,
        "layers": layers,
    });
    let record = RunRecord { inputs: inputs.clone(), ..RunRecord::new("features", &all, settings.seed) };
    let artifact = Artifact::begin(out, args.resume)?;
    check_same_run(&artifact, &record)?;
    write_json(&artifact.dir().join(RECORD), &record)?;
    let loaded = if set.weight_bytes() <= IN_MEMORY { Some(set.loaded()) } else { None };
    let set = loaded.as_ref().unwrap_or(&*set);
    let job = Job { args, set, name, model, tokenizer, text: &text, dir: artifact.dir().to_path_buf() };
    job.index(&layers, &inputs, ui).map_err(|error| job.stopped(error))?;
    let mut table = Table::new(&[">layer", ">features", ">fire", ">mean density"]);
    for &layer in &layers {
        table.row(job.row(layer)?);
    }
    artifact.finish(&record)?;
    ui.say(format!("wrote {}", out.display()));
    if ui.json() {
        let dirs: Vec<PathBuf> = layers.iter().map(|layer| out.join(folder(*layer))).collect();
        return ui.out_json(&json!({ "written": dirs }));
    }
    ui.out(table)
}

/// The text in pieces of the model's context.
fn sequences(args: &Args, tokenizer: &Tokenizer, config: &ModelConfig, ui: &Ui) -> Result<Vec<Sequence>> {
    let mut paths = Vec::new();
    for data in &args.data {
        paths.extend(locate_data(data, ui.progress())?);
    }
    let corpus = Corpus::open(&paths, "text")?;
    let context_size = DEFAULT_CONTEXT.min(config.context_length);
    let pack = PackSettings { context_size, bos: BosPolicy::Prepend };
    let wanted = args.tokens.div_ceil(context_size.max(1) as u64) as usize;
    Packer::new(tokenizer, corpus.documents(), pack)?.take(wanted).collect()
}

fn passes(n: usize) -> String {
    if n == 1 { "one pass".into() } else { format!("{n} passes") }
}

fn folder(layer: usize) -> String {
    format!("layer_{layer}")
}

impl Job<'_> {
    /// Makes the indexes that are not there yet.
    fn index(&self, layers: &[usize], inputs: &[InputRecord], ui: &Ui) -> Result<()> {
        let Self { args, set, model, text, .. } = self;
        let (settings, filter) = (args.settings(), args.filter.settings());
        let left: Vec<usize> = layers.iter().copied().filter(|&layer| !self.is_done(layer)).collect();
        let most = settings.bytes_a_feature() as f64 * set.config().d_transcoder as f64 * left.len() as f64 / 1e9;
        let parts = groups(&left, set, &settings, BUDGET);
        ui.say(format!(
            "{} layers in {} of the model; their indexes take at most {most:.1} GB",
            left.len(),
            passes(parts.len())
        ));
        for part in &parts {
            let found = index_layers(model, set, part, *text, settings, filter.max_norm_multiple, ui.progress())?;
            for (&layer, index) in part.iter().zip(found) {
                self.finish(layer, index, inputs, ui)?;
            }
        }
        Ok(())
    }

    /// Whether the index of a layer is there already.
    fn is_done(&self, layer: usize) -> bool {
        self.dir.join(folder(layer)).join(DONE).exists()
    }

    /// What an interruption leaves.
    fn stopped(&self, error: Error) -> Error {
        let Error::Interrupted { .. } = error else { return error };
        let done = (0..self.set.config().n_layers).filter(|&layer| self.is_done(layer)).count();
        Error::Interrupted {
            kept: format!("the indexes of {done} layers are written"),
            resume: "run the same command with --resume".into(),
        }
    }

    /// Completes and writes the index of a layer.
    fn finish(&self, layer: usize, index: FeatureIndex, inputs: &[InputRecord], ui: &Ui) -> Result<()> {
        let Self { args, set, name, model, tokenizer, text, dir } = self;
        let dictionary = writer(set, layer)?;
        let findings = Findings::complete(index, &dictionary, *text, Some(model), ui.progress())?;
        let mut header = findings.header(Some((*name).into()), dictionary.config.metadata.hook_name.clone());
        header.dictionary = Some(format!("{}, layer {layer}", set.config().scan));
        header.source = Some(args.data.join(" "));
        let target: &Path = &dir.join(folder(layer));
        std::fs::create_dir_all(target).map_err(Error::io("make the index's directory", target))?;
        findings.write(target, &header, Some(tokenizer))?;
        let own = RunRecord::new("features", &json!({ "layer": layer }), args.settings().seed);
        write_json(&target.join(DONE), &RunRecord { inputs: inputs.to_vec(), ..own })
    }

    /// The row of a finished layer in the table.
    fn row(&self, layer: usize) -> Result<Vec<String>> {
        let index = IndexFile::open(&self.dir.join(folder(layer)))?;
        let summaries = index.summaries();
        let live = summaries.iter().filter(|s| s.count > 0).count();
        let density = summaries.iter().map(|s| s.density).sum::<f64>() / live.max(1) as f64;
        let counts = [layer.to_string(), thousands(summaries.len() as u64), thousands(live as u64)];
        Ok(counts.into_iter().chain([super::super::feature_page::percent(density)]).collect())
    }
}
