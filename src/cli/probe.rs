//! `mechinterp probe`

use std::path::PathBuf;

use serde::Serialize;

use crate::analysis::probe::logistic::LogisticSettings;
use crate::analysis::probe::{
    ExampleFields, Examples, FitSettings, Method, PooledText, Position, ProbeRun, ProbeSettings, probe,
};
use crate::base::artifact::{InputRecord, hash_file, write_json};
use crate::base::{Artifact, Error, Result, RunRecord};
use crate::data::{BosPolicy, Tokenizer};
use crate::dictionary::Dictionary;
use crate::model::{HookPlan, HookPoint, ModelConfig, Site};

use super::expect::{self, ForceArgs, Given};
use super::open;
use super::probe_table::{self, Report};
use super::prompts::ReadingArgs;
use super::render::Ui;
use super::{Common, Outcome};

/// Arguments of `probe`.
#[derive(Debug, Clone, clap::Args, Serialize)]
pub(super) struct Args {
    /// Hugging Face directory, hub id, `.gguf` file, or `demo`.
    #[arg(long, value_name = "MODEL")]
    model: String,
    /// Labelled texts: JSON lines with a text and a label each.
    #[arg(long, value_name = "FILE.jsonl")]
    data: PathBuf,
    /// Field that holds the text.
    #[arg(long, value_name = "NAME", default_value = "text")]
    text_field: String,
    /// Field that holds the label: a string, a whole number, true or false.
    #[arg(long, value_name = "NAME", default_value = "label")]
    label_field: String,
    /// Field whose values must not stand on both sides of the split, such as the entity a text is about.
    #[arg(long, value_name = "NAME")]
    group_field: Option<String>,
    /// Tell this label from all others, in place of every label from every other.
    #[arg(long, value_name = "LABEL")]
    positive: Option<String>,
    /// Layers to probe: all, or a list such as 0,5,10.
    #[arg(long, value_name = "all|LIST", default_value = "all", value_parser = layers)]
    layers: Layers,
    /// What to read in each layer, such as `hook_resid_post` or `attn.hook_z`; or one hook point by its full name.
    #[arg(long, value_name = "NAME", default_value = "hook_resid_post")]
    hook: String,
    /// Dictionary whose features are probed too, k at a time; repeat the flag for several.
    #[arg(long, value_name = "DIR", num_args = 1..)]
    sae: Vec<PathBuf>,
    /// Features that a probe on a dictionary reads, one probe for each number.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "1,2,5")]
    k: Vec<usize>,
    /// How directions are found: `logistic`, `difference_of_means`.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "logistic,difference_of_means", value_parser = method)]
    method: Vec<Method>,
    /// What makes a text's row: its last token, or the mean or maximum over tokens. Special tokens never count.
    #[arg(long, value_name = "last|mean|max", default_value = "last", value_parser = position)]
    position: Position,
    /// Tokens of a text at most; the rest is cut off.
    #[arg(long, value_name = "N", default_value_t = 512)]
    max_tokens: usize,
    /// Share of the texts of each label that is held out to test on.
    #[arg(long, value_name = "SHARE", default_value_t = 0.25)]
    test_share: f64,
    /// Permutations of the labels that the control averages over; 0 leaves it out.
    #[arg(long, value_name = "N", default_value_t = 3)]
    controls: usize,
    /// Inverse strength of the logistic regression's L2 penalty, scikit-learn's C.
    #[arg(long = "c", value_name = "X", default_value_t = 1.0)]
    c: f64,
    /// Fit logistic regressions on activations as they are, not scaled to deviation 1.
    #[arg(long)]
    no_standardize: bool,
    /// Seed of the split and the controls.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    #[serde(flatten)]
    reading: ReadingArgs,
    /// Directory to make, with every figure and a direction of every probe for `steer --vector`.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    #[command(flatten)]
    #[serde(skip)]
    force: ForceArgs,
}

/// The layers to probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Layers {
    All,
    List(Vec<usize>),
}

fn layers(text: &str) -> Result<Layers, String> {
    if text == "all" {
        return Ok(Layers::All);
    }
    let list: Option<Vec<usize>> = text.split(',').map(|layer| layer.trim().parse().ok()).collect();
    list.map(Layers::List).ok_or_else(|| "expected all, or layers such as 0,5,10".into())
}

fn method(text: &str) -> Result<Method, String> {
    let known = [Method::Logistic, Method::DifferenceOfMeans];
    known.into_iter().find(|m| m.name() == text).ok_or_else(|| "expected logistic or difference_of_means".into())
}

fn position(text: &str) -> Result<Position, String> {
    let known = [Position::Last, Position::Mean, Position::Max];
    known.into_iter().find(|p| p.name() == text).ok_or_else(|| "expected last, mean or max".into())
}

impl Args {
    fn check(&self) -> Result<()> {
        if !(self.c.is_finite() && self.c > 0.0) {
            return Err(Error::flag("--c", "a positive number", self.c, "1 is scikit-learn's default"));
        }
        if self.max_tokens == 0 {
            return Err(Error::flag("--max-tokens", "1 or more", 0, "the default is 512"));
        }
        if self.k.contains(&0) {
            return Err(Error::flag("--k", "1 or more features", 0, "1,2,5 is the default"));
        }
        Ok(())
    }

    fn settings(&self) -> ProbeSettings {
        let mut distinct = Vec::new();
        for method in &self.method {
            if !distinct.contains(method) {
                distinct.push(*method);
            }
        }
        ProbeSettings {
            methods: distinct,
            position: self.position,
            test_share: self.test_share,
            controls: self.controls,
            k: self.k.clone(),
            fit: FitSettings {
                standardize: !self.no_standardize,
                logistic: LogisticSettings { c: self.c, ..LogisticSettings::default() },
            },
            seed: self.seed,
        }
    }

    /// The hooks to probe: one of every layer asked for, or the one that is named in full.
    fn hooks(&self, config: &ModelConfig) -> Result<Vec<HookPoint>> {
        let Some(site) = Site::ALL.iter().copied().find(|s| s.name() == self.hook && in_blocks(*s)) else {
            if self.layers != Layers::All {
                let remedy =
                    "name what to read in each layer with --hook, such as hook_resid_post, or leave out --layers";
                return Err(Error::flag("--layers", "no layers beside a full hook name", &self.hook, remedy));
            }
            return Ok(vec![HookPoint::resolve(&self.hook, config)?]);
        };
        let layers = match &self.layers {
            Layers::All => (0..config.n_layers).collect(),
            Layers::List(list) => list.clone(),
        };
        let point = |layer| {
            if layer >= config.n_layers {
                let expected = format!("layers from 0 to {}", config.n_layers.saturating_sub(1));
                return Err(Error::flag("--layers", expected, layer, "`info` shows the model's layers"));
            }
            HookPoint::block(layer, site).check(config)
        };
        layers.into_iter().map(point).collect()
    }
}

fn in_blocks(site: Site) -> bool {
    matches!(site.scope(), crate::model::hook::Scope::Block)
}

pub(super) fn run(args: Args, common: &Common, ui: &Ui) -> Result<Outcome> {
    args.check()?;
    let examples = read(&args)?;
    let files = open::locate(&args.model, ui)?;
    let config = open::config(&files)?;
    let hooks = args.hooks(&config)?;
    let bos = args.reading.bos();
    let dictionaries = open_dictionaries(&args, &config, bos, ui)?;
    let artifact = args.out.as_ref().map(|out| Artifact::begin_new(out)).transpose()?;
    let plan = hooks.iter().chain(dictionaries.iter().map(|(hook, _)| hook));
    let plan = plan.fold(HookPlan::new(), |plan, &hook| plan.capture(hook));
    let opened = open::open_for(&plan, &files, args.reading.dtype, common.device)?;
    let (texts, cut) = tokenize(&args, &examples, &opened.tokenizer, bos, &config)?;
    if cut > 0 {
        ui.progress().warn(&format!("{cut} texts are longer than {} tokens and were cut there", limit(&args, &config)));
    }
    let borrowed: Vec<(HookPoint, &Dictionary)> = dictionaries.iter().map(|(hook, d)| (*hook, d)).collect();
    let settings = args.settings();
    let result = probe(&opened.model, &texts, &examples, &hooks, &borrowed, &settings, ui.progress())?;
    let report = Report::new(&args.model, &args.sae, &examples, &settings, &result);
    if let Some(artifact) = artifact {
        let target = artifact.target().to_path_buf();
        write(artifact, &args, &examples, &result, &report)?;
        ui.say(format!("wrote {}", target.display()));
    }
    if ui.json() {
        ui.out_json(&report)?;
    } else {
        probe_table::print(&report, ui)?;
    }
    Ok(Outcome::Done)
}

fn read(args: &Args) -> Result<Examples> {
    let fields = ExampleFields {
        text: args.text_field.clone(),
        label: args.label_field.clone(),
        group: args.group_field.clone(),
        positive: args.positive.clone(),
    };
    Examples::read(&args.data, &fields)
}

/// The dictionaries with the hooks they read.
fn open_dictionaries(
    args: &Args,
    config: &ModelConfig,
    bos: BosPolicy,
    ui: &Ui,
) -> Result<Vec<(HookPoint, Dictionary)>> {
    let open = |path: &PathBuf| {
        let dictionary = open::dictionary(path, ui)?;
        expect::check(&dictionary, &Given::model(&args.model, bos, config), args.force, ui)?;
        let Some(hook) = dictionary.config.metadata.hook_name.as_deref() else {
            return Err(Error::malformed(
                "dictionary",
                path.join("cfg.json"),
                "the hook point that it reads",
                "none",
                "write metadata.hook_name into the file, such as blocks.8.hook_resid_pre",
            ));
        };
        let hook = HookPoint::resolve(hook, config)?;
        let width = hook.site.width(config).unwrap_or_default();
        if width != dictionary.d_in() {
            return Err(Error::Mismatch {
                what: "dictionary and hook point widths",
                left: format!("{} with d_in {}", path.display(), dictionary.d_in()),
                right: format!("{hook} of {} with width {width}", args.model),
                remedy: "use the model that the dictionary was trained on".into(),
            });
        }
        Ok((hook, dictionary))
    };
    args.sae.iter().map(open).collect()
}

fn limit(args: &Args, config: &ModelConfig) -> usize {
    args.max_tokens.min(config.context_length)
}

/// Every text as tokens, and how many were cut.
fn tokenize(
    args: &Args,
    examples: &Examples,
    tokenizer: &Tokenizer,
    bos: BosPolicy,
    config: &ModelConfig,
) -> Result<(Vec<PooledText>, usize)> {
    let (limit, mut cut) = (limit(args, config), 0);
    let mut texts = Vec::with_capacity(examples.texts.len());
    for (text, line) in examples.texts.iter().zip(&examples.lines) {
        let mut tokens = tokenizer.encode(text, bos)?;
        cut += usize::from(tokens.len() > limit);
        tokens.truncate(limit);
        let text = PooledText::new(tokens, tokenizer.special_ids()).ok_or_else(|| {
            Error::malformed(
                "labelled text",
                &examples.path,
                "texts with at least one token that is not special",
                format!("none on line {line}"),
                "mend or remove that line",
            )
        })?;
        texts.push(text);
    }
    Ok((texts, cut))
}

/// Results and directions.
fn write(artifact: Artifact, args: &Args, examples: &Examples, result: &ProbeRun, report: &Report<'_>) -> Result<()> {
    write_json(&artifact.dir().join("results.json"), report)?;
    for (i, dense) in result.dense.iter().enumerate() {
        for direction in dense.directions(examples, &args.model, args.position) {
            let label =
                if examples.classes.len() == 2 { String::new() } else { format!(".{}", direction.source.label) };
            let name = |stem: &str| artifact.dir().join(format!("{stem}{}.safetensors", file_name(&label)));
            direction.write(&name(&format!("{}.{}", dense.hook, dense.method.name())))?;
            if Some(i) == result.best {
                direction.write(&name("best"))?;
            }
        }
    }
    let mut record = RunRecord::new("probe", args, args.seed);
    record.inputs.push(InputRecord {
        role: "data".into(),
        name: args.data.display().to_string(),
        blake3: hash_file(&args.data)?,
    });
    artifact.finish(&record)
}

/// A label as part of a file name.
fn file_name(label: &str) -> String {
    label.chars().map(|c| if c.is_alphanumeric() || "-_.".contains(c) { c } else { '_' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_all_or_a_list() {
        assert_eq!(layers("all"), Ok(Layers::All));
        assert_eq!(layers("0, 5,10"), Ok(Layers::List(vec![0, 5, 10])));
        assert!(layers("first").is_err() && layers("1-3").is_err());
        assert_eq!(file_name(".New York/1"), ".New_York_1");
    }
}
