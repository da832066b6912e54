//! `mechinterp steer`

mod args;
mod change;
mod chat;
mod report;
mod vector;

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::analysis::steer::{TranscoderEdits, sweep};
use crate::analysis::{Intervention, SteerPositions, SteerSettings, steer};
use crate::base::artifact::write_atomic;
use crate::base::{Error, Result};
use crate::data::BosPolicy;
use crate::dictionary::Dictionary;
use crate::web::{chart, steer_report};

use super::expect::{self, Given};
use super::open::{self, Opened};
use super::own_or::OwnOr;
use super::places;
use super::prompts::Prompt;
use super::render::Ui;
use super::{Common, Outcome};

pub(super) use self::args::ChatArgs;
pub(super) use self::chat::template;

use self::args::SteerArgs;
use self::change::{Operation, Placed, interventions};
use self::report::{Line, SweepReport};

/// Where `train-sae` keeps, in a dictionary's metadata, the norm above which positions were left out.
pub(super) const MAX_NORM_KEY: &str = "max_activation_norm";

/// Arguments of `steer`: those of steering, or a subcommand with its own.
pub(super) type Args = OwnOr<SteerArgs, Action>;

/// What else there is to do.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Action {
    #[command(about = vector::ABOUT)]
    Vector(vector::Args),
}

pub(super) fn run(args: Args, common: &Common, ui: &Ui) -> Result<Outcome> {
    match args {
        OwnOr::Own(args) => Session::open(*args, common, ui)?.run(ui),
        OwnOr::Action(Action::Vector(args)) => vector::run(&args, common, ui),
    }
}

/// Everything that was asked for, opened and checked.
struct Session {
    args: SteerArgs,
    opened: Opened,
    operation: Operation,
    interventions: Vec<Intervention>,
    prompts: Vec<Prompt>,
    /// The prompts as people read them.
    labels: Vec<String>,
    settings: SteerSettings,
}

impl Session {
    fn open(args: SteerArgs, common: &Common, ui: &Ui) -> Result<Self> {
        let operation = Operation::of(&args)?;
        args.settings(Vec::new())?;
        for file in [&args.output.out, &args.output.html, &args.output.svg].into_iter().flatten() {
            open::check_writable(file)?;
        }
        let given = args.prompts.read()?;
        let dictionary = match &args.targets.sae {
            Some(dir) => Some(Arc::new(open::dictionary(dir, ui)?)),
            None => None,
        };
        let reference = args.targets.transcoders.as_deref();
        let set = reference.map(|set| open::transcoders(set, &args.model, args.force, ui)).transpose()?;
        let files = open::locate(&args.model, ui)?;
        // What can be wrong without the weights is found before they are read.
        let config = open::config(&files)?;
        let template = chat::template(&args.chat, &files)?;
        let placed = |path: &PathBuf| Placed::read(path, &args, &config, ui);
        let vectors = args.targets.vector.iter().map(placed).collect::<Result<Vec<_>>>()?;
        for vector in &vectors {
            ui.say(vector.describe());
        }
        let bos = bos(&args, dictionary.as_deref());
        if let Some(dictionary) = &dictionary {
            let given = Given::model(&args.model, bos, &config);
            // Whether a conversation begins with it is the template's business.
            let given = if args.chat.chat { Given { bos: None, ..given } } else { given };
            expect::check(dictionary, &given, args.force, ui)?;
        }
        if let Some(set) = &set {
            set.check_model(&config)?;
        }
        let interventions = interventions(&args, &operation, dictionary.as_ref(), set.as_ref(), &vectors, &config)?;
        check_features(&interventions)?;
        let opened = open::open_files(&files, args.dtype, common.device)?;
        let texts = given.texts();
        let (given, bos) = match &template {
            Some(template) => (given.rendered(|text| template.render(text))?, BosPolicy::Never),
            None => (given, bos),
        };
        let prompts = given.encode(&opened.tokenizer, bos, opened.model.config())?;
        let label = |(text, prompt): (Option<String>, &Prompt)| match text {
            Some(text) => Ok(text),
            None => opened.tokenizer.decode(&prompt.tokens),
        };
        let labels = texts.into_iter().zip(&prompts).map(label).collect::<Result<_>>()?;
        let mut settings = args.settings(chat::stop_tokens(&files, &opened)?)?;
        if let Some(list) = &args.targets.at {
            let at = |prompt: &Prompt| places::positions("--at", list, &prompt.tokens, &opened.tokenizer);
            settings.positions = SteerPositions::Listed(prompts.iter().map(at).collect::<Result<_>>()?);
        }
        Ok(Self { args, opened, operation, interventions, prompts, labels, settings })
    }

    fn run(&self, ui: &Ui) -> Result<Outcome> {
        let output = &self.args.output;
        let files = output.out.is_some() || output.html.is_some() || output.svg.is_some();
        match (self.prompts.as_slice(), self.interventions.as_slice()) {
            ([prompt], [intervention]) if !files => self.one(prompt, intervention, ui)?,
            _ => self.many(ui)?,
        }
        Ok(Outcome::Done)
    }

    /// One prompt at one strength: both texts, and the first difference between them.
    fn one(&self, prompt: &Prompt, intervention: &Intervention, ui: &Ui) -> Result<()> {
        let result = steer(&self.opened.model, &prompt.tokens, intervention, &self.settings, ui.progress())?;
        let concepts = self.concepts()?;
        let label = self.labels.first().map_or("", String::as_str);
        let report = report::One::new(label, intervention.describe(), concepts, &result, &self.opened.tokenizer)?;
        if ui.json() { ui.out_json(&report) } else { report.print(&self.opened.tokenizer, ui) }
    }

    /// Every prompt at every strength.
    fn many(&self, ui: &Ui) -> Result<()> {
        let output = &self.args.output;
        let mut lines = match &output.out {
            Some(path) => Some((File::create(path).map_err(Error::io("write the texts", path))?, path.as_path())),
            None => None,
        };
        let mut report = SweepReport::new(&self.operation, self.concepts()?, &self.interventions);
        let tokens: Vec<Vec<u32>> = self.prompts.iter().map(|prompt| prompt.tokens.clone()).collect();
        let model = &self.opened.model;
        let ended = sweep(model, &tokens, &self.interventions, &self.settings, ui.progress(), |number, texts| {
            let new = report.take(number, self.labels.get(number).map_or("", String::as_str), texts, |ids| {
                self.opened.tokenizer.decode(ids)
            })?;
            lines.as_mut().map_or(Ok(()), |(file, path)| write_lines(file, path, new))
        });
        match (ended, &output.out) {
            (Err(Error::Interrupted { .. }), Some(path)) if !report.lines().is_empty() => {
                return Err(Error::Interrupted {
                    kept: format!("{} texts are in {}", report.lines().len(), path.display()),
                    resume: "run the same command with the prompts that are not in it".into(),
                });
            }
            (ended, _) => ended?,
        }
        report.finish();
        self.write_pages(&report, ui)?;
        if let Some(path) = &output.out {
            ui.say(format!("wrote {} texts to {}", report.lines().len(), path.display()));
        }
        if ui.json() { ui.out_json(&report) } else { report.print(ui) }
    }

    fn write_pages(&self, report: &SweepReport, ui: &Ui) -> Result<()> {
        let targets = &self.args.targets;
        let set = targets.transcoders.as_ref().map(Path::new);
        let page = report.page(&self.args.model, targets.sae.as_deref().or(set));
        if let Some(path) = &self.args.output.html {
            write_atomic(path, steer_report::page(&page).as_bytes())?;
            ui.say(format!("wrote {}", path.display()));
        }
        if let Some(path) = &self.args.output.svg {
            write_atomic(path, chart::standalone(steer_report::picture(&page)).as_bytes())?;
            ui.say(format!("wrote {}", path.display()));
        }
        Ok(())
    }

    /// What is turned, by name.
    fn concepts(&self) -> Result<Vec<String>> {
        let Some(first) = self.interventions.first() else { return Ok(Vec::new()) };
        let concepts = first.concepts(self.opened.model.config())?;
        Ok(concepts.into_iter().map(|concept| concept.name).collect())
    }
}

/// Checks that a set has the features, before the model's weights are read.
fn check_features(interventions: &[Intervention]) -> Result<()> {
    interventions
        .iter()
        .filter_map(|intervention| intervention.transcoders.as_ref())
        .try_for_each(TranscoderEdits::check)
}

/// Whether texts begin with the BOS token: as the dictionary was trained, as most models are without one.
fn bos(args: &SteerArgs, dictionary: Option<&Dictionary>) -> BosPolicy {
    match dictionary {
        _ if args.no_bos => BosPolicy::Never,
        Some(dictionary) => expect::bos_of(dictionary),
        None => BosPolicy::Prepend,
    }
}

/// Appends lines to the file and hands them to the system, so that a cut-off run keeps them.
fn write_lines(file: &mut File, path: &Path, lines: &[Line]) -> Result<()> {
    let mut text = Vec::new();
    for line in lines {
        serde_json::to_writer(&mut text, line).map_err(|e| Error::io("write the texts", path)(e.into()))?;
        text.push(b'\n');
    }
    file.write_all(&text).map_err(Error::io("write the texts", path))
}
