//! Whether a command gives a dictionary what it was made for: model, hook, BOS rule and scaling.
//!
//! A dictionary encodes any rows of its width and gives plausible numbers for them, so what is known to differ is an
//! error unless `--force` says otherwise. What cannot be known, such as a model under a name of one's own, is a warning.

use crate::base::{Error, Result};
use crate::data::BosPolicy;
use crate::dictionary::{Dictionary, NormalizeActivations};
use crate::model::config::Norm;
use crate::model::{HookPoint, ModelConfig};
use crate::store::CacheReader;

use super::model_name::compare_models;
use super::render::Ui;

/// The flag of every command that takes a dictionary.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct ForceArgs {
    /// Go on although a dictionary was made for another model, hook, BOS rule or scaling than it is given.
    #[arg(long)]
    force: bool,
}

impl ForceArgs {
    /// An error that names both sides, or with `--force` a warning.
    ///
    /// # Errors
    /// `Mismatch`, unless forced.
    pub(crate) fn allow(self, what: &'static str, both: (String, String), remedy: &str, ui: &Ui) -> Result<()> {
        let (left, right) = both;
        if self.force {
            ui.progress().warn(&format!("{left} against {right}; going on as told"));
            return Ok(());
        }
        Err(Error::Mismatch { what, left, right, remedy: format!("{remedy}; or go on regardless with --force") })
    }
}

/// What a command gives a dictionary. Absent is what follows from the dictionary itself.
#[derive(Debug, Clone)]
pub(crate) struct Given<'a> {
    /// Where it comes from: "the cache acts", "--model gpt2".
    pub(crate) source: String,
    /// The model's name, as the user gave it.
    pub(crate) model: &'a str,
    /// The hook that rows are read from.
    pub(crate) hook: Option<&'a str>,
    /// Whether sequences begin with the BOS token.
    pub(crate) bos: Option<BosPolicy>,
    /// Tokens in a sequence.
    pub(crate) context_size: Option<usize>,
    /// The model's configuration, where it was opened.
    pub(crate) config: Option<&'a ModelConfig>,
}

impl<'a> Given<'a> {
    /// Rows of `hook` in a cache.
    pub(crate) fn cache(reader: &'a CacheReader, hook: &'a str, config: Option<&'a ModelConfig>) -> Self {
        let settings = reader.settings();
        Self {
            source: format!("the cache {}", reader.dir().display()),
            model: &settings.model.name,
            hook: Some(hook),
            bos: Some(settings.bos),
            context_size: Some(settings.context_size),
            config,
        }
    }

    /// A model that was named on the command line.
    pub(crate) fn model(name: &'a str, bos: BosPolicy, config: &'a ModelConfig) -> Self {
        let source = format!("--model {name}");
        Self { source, model: name, hook: None, bos: Some(bos), context_size: None, config: Some(config) }
    }
}

/// The BOS rule under which a dictionary was made; SAELens' default where it does not say.
pub(crate) fn bos_of(dictionary: &Dictionary) -> BosPolicy {
    if dictionary.config.metadata.prepend_bos == Some(false) { BosPolicy::Never } else { BosPolicy::Prepend }
}

/// One thing that differs.
#[derive(Debug, PartialEq)]
struct Difference {
    expected: String,
    given: String,
    remedy: &'static str,
}

/// Compares what `dictionary` was made for with what it is `given`.
///
/// # Errors
/// `Mismatch`, naming everything that differs on both sides, unless forced: then each is a warning.
pub(crate) fn check(dictionary: &Dictionary, given: &Given<'_>, force: ForceArgs, ui: &Ui) -> Result<()> {
    let differences = differences(dictionary, given);
    for doubt in doubts(dictionary, given) {
        ui.progress().warn(&doubt);
    }
    if let (Some(own), Some(here)) = (dictionary.config.metadata.context_size, given.context_size)
        && here > own
    {
        ui.say(format!("{dictionary} was trained on sequences of {own} tokens; {} has {here}", given.source));
    }
    let join = |of: fn(&Difference) -> &str| differences.iter().map(of).collect::<Vec<_>>().join(", ");
    let (expected, found) = (join(|d| &d.expected), join(|d| &d.given));
    if differences.is_empty() {
        return Ok(());
    }
    if force.force {
        ui.progress().warn(&format!("{dictionary} expects {expected}; {} has {found}; going on as told", given.source));
        return Ok(());
    }
    Err(Error::Mismatch {
        what: "what the dictionary was made for and what it is given",
        left: format!("{dictionary} expects {expected}"),
        right: format!("{} has {found}", given.source),
        remedy: format!("{}; or go on regardless with --force", join(|d| d.remedy)),
    })
}

fn differences(dictionary: &Dictionary, given: &Given<'_>) -> Vec<Difference> {
    let config = &dictionary.config;
    let metadata = &config.metadata;
    let mut differences = Vec::new();
    if let Some(own) = metadata.model_name.as_deref()
        && compare_models(own, given.model) == Some(false)
    {
        let remedy = "use the model that the dictionary was trained on";
        differences.push(Difference {
            expected: format!("model '{own}'"),
            given: format!("model '{}'", given.model),
            remedy,
        });
    }
    if let (Some(own), Some(here)) = (metadata.hook_name.as_deref(), given.hook)
        && compare_hooks(own, here) == Some(false)
    {
        differences.push(Difference {
            expected: format!("hook {own}"),
            given: format!("hook {here}"),
            remedy: "cache the dictionary's own hook, or leave out --hook",
        });
    }
    let first = |begins: bool| if begins { "BOS at the start of sequences" } else { "no BOS" };
    if let (Some(own), Some(here)) = (metadata.prepend_bos, given.bos.map(|bos| bos == BosPolicy::Prepend))
        && own != here
    {
        let remedy = if own { "leave out --no-bos" } else { "use --no-bos" };
        differences.push(Difference { expected: first(own).into(), given: first(here).into(), remedy });
    }
    if config.normalize_activations == NormalizeActivations::ExpectedAverageOnlyIn {
        differences.push(Difference {
            expected: "rows scaled by a factor that is not in its files (expected_average_only_in)".into(),
            given: "rows as they are".into(),
            remedy: "put the release's norm_scaling_factor under \"metadata\" in cfg.json",
        });
    }
    let layer_norm = |norm: Norm| {
        matches!(norm, Norm::LayerNorm { .. } | Norm::LayerNormWithoutBias { .. } | Norm::LayerNormWithoutGain { .. })
    };
    if config.center_input && given.config.is_some_and(|config| !layer_norm(config.norm)) {
        differences.push(Difference {
            expected: "a model with centred writing weights".into(),
            given: "RMSNorm, under which they are not centred".into(),
            remedy: "set model_from_pretrained_kwargs.center_writing_weights to false in cfg.json",
        });
    }
    differences
}

/// What cannot be decided.
fn doubts(dictionary: &Dictionary, given: &Given<'_>) -> Vec<String> {
    let metadata = &dictionary.config.metadata;
    let mut doubts = Vec::new();
    if let Some(own) = metadata.model_name.as_deref()
        && compare_models(own, given.model).is_none()
    {
        doubts.push(format!(
            "{dictionary} was made for model '{own}'; whether '{}' of {} is that model cannot be told from the name",
            given.model, given.source
        ));
    }
    if let (Some(own), Some(here)) = (metadata.hook_name.as_deref(), given.hook)
        && compare_hooks(own, here).is_none()
    {
        doubts.push(format!("{dictionary} was made for hook {own}; whether {here} is that hook cannot be told"));
    }
    doubts
}

/// Whether two spellings name one hook; `None` where one needs a model's layout to be understood.
fn compare_hooks(a: &str, b: &str) -> Option<bool> {
    if a == b {
        return Some(true);
    }
    match (a.parse::<HookPoint>(), b.parse::<HookPoint>()) {
        (Ok(a), Ok(b)) => Some(a == b),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dictionary::{Activation, Architecture, DictionaryConfig};

    fn dictionary(edit: impl FnOnce(&mut DictionaryConfig)) -> Dictionary {
        let mut config = DictionaryConfig::new(Architecture::Relu, 1, 1);
        config.metadata.model_name = Some("gpt2-small".into());
        config.metadata.hook_name = Some("blocks.8.hook_resid_pre".into());
        config.metadata.prepend_bos = Some(true);
        config.metadata.context_size = Some(128);
        edit(&mut config);
        let one = || vec![1.0];
        Dictionary::new(config, one(), one(), one(), one(), Activation::relu()).unwrap()
    }

    fn given<'a>(model: &'a str, hook: &'a str, bos: BosPolicy) -> Given<'a> {
        let source = "the cache acts".into();
        Given { source, model, hook: Some(hook), bos: Some(bos), context_size: Some(64), config: None }
    }

    #[test]
    fn everything_that_differs_is_named_and_what_agrees_is_not() {
        let own = "blocks.8.hook_resid_pre";
        assert!(differences(&dictionary(|_| {}), &given("gpt2", own, BosPolicy::Prepend)).is_empty());
        let module = dictionary(|config| config.metadata.hook_name = Some("model.layers.7".into()));
        assert!(differences(&module, &given("gpt2", "blocks.7.hook_resid_post", BosPolicy::Prepend)).is_empty());
        let wrong =
            differences(&dictionary(|_| {}), &given("pythia-70m", "blocks.8.hook_resid_post", BosPolicy::Never));
        let expected: Vec<&str> = wrong.iter().map(|d| d.expected.as_str()).collect();
        assert_eq!(expected, ["model 'gpt2-small'", "hook blocks.8.hook_resid_pre", "BOS at the start of sequences"]);
        let silent = dictionary(|config| config.metadata = crate::dictionary::Metadata::default());
        assert!(differences(&silent, &given("gpt2", own, BosPolicy::Never)).is_empty());
        let scaled = dictionary(|config| config.normalize_activations = NormalizeActivations::ExpectedAverageOnlyIn);
        let wrong = differences(&scaled, &given("gpt2", own, BosPolicy::Prepend));
        assert!(wrong.len() == 1 && wrong[0].remedy.contains("norm_scaling_factor"));
    }

    #[test]
    fn a_difference_is_an_error_with_both_sides_and_a_warning_when_forced() {
        let ui = Ui::new(false, true, 0);
        let wrong = given("pythia-70m", "blocks.8.hook_resid_pre", BosPolicy::Prepend);
        let check = |force| check(&dictionary(|_| {}), &wrong, ForceArgs { force }, &ui);
        let error = check(false).unwrap_err().to_string();
        for part in ["gpt2-small", "pythia-70m", "the cache acts", "--force", "trained on"] {
            assert!(error.contains(part), "{error}");
        }
        assert!(check(true).is_ok());
    }

    #[test]
    fn what_cannot_be_told_is_a_warning() {
        let own = dictionary(|_| {});
        let unknown = given("./checkpoint-500", "blocks.8.hook_resid_pre", BosPolicy::Prepend);
        assert!(differences(&own, &unknown).is_empty());
        assert!(doubts(&own, &unknown)[0].contains("checkpoint-500"));
        let known = given("gpt2", "blocks.8.hook_resid_pre", BosPolicy::Prepend);
        assert!(doubts(&own, &known).is_empty());
    }
}
