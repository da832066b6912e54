//! From settings to library calls: which run is patched, with what, and where.

use crate::analysis::Placement;
use crate::analysis::patch::path::parse_receiver;
use crate::analysis::patch::{
    Axis, Baseline, By, FeatureSweep, KnockOut, KnockOutColumns, Metric, Patcher, PathSettings, Replacement, SITES,
    Scope, Sweep, Trace, has_heads, points,
};
use crate::base::nearest::nearest;
use crate::base::{Error, Result};
use crate::data::tokenizer::BosPolicy;
use crate::dictionary::Dictionary;
use crate::model::{HookPoint, ModelConfig, Site};

use super::super::open::Opened;
use super::super::render::{Ui, quoted};
use super::super::{places, prompts};
use super::{Ablation, Args, ByKind, Outcomes, Ran, Report};

/// What a sweep patches.
enum Target {
    Site(Site),
    Feature,
}

pub(super) fn run(
    args: &Args,
    opened: &Opened,
    dictionary: Option<&Dictionary>,
    (mut clean, mut corrupt): (Ran, Option<Ran>),
    metric: Metric,
    (bos, ui): (BosPolicy, &Ui),
) -> Result<Report> {
    let Opened { model, tokenizer } = opened;
    let config = model.config();
    let scope = Scope {
        layers: places::numbers("--layer", &args.layer, config.n_layers)?,
        heads: args
            .head
            .as_ref()
            .map(|list| places::numbers("--head", list, config.n_heads))
            .transpose()?
            .unwrap_or_default(),
        positions: places::positions("--position", &args.position, &clean.tokens, tokenizer)?,
    };
    let names: Vec<String> = metric.tokens().into_iter().map(|token| quoted(&tokenizer.piece(token))).collect();
    let metric_name = match metric {
        Metric::LogitDifference { .. } => format!("logit of {}", names.join(" less that of ")),
        Metric::Logit { .. } => format!("logit of {}", names.join("")),
        Metric::Probability { .. } => format!("probability of {}", names.join("")),
        Metric::LogProbability { .. } => format!("log probability of {}", names.join("")),
    };
    let denoise = !args.noise && args.ablate.is_none() && !args.knock_out;
    let clean_tokens = clean.tokens.clone();
    let corrupt_tokens = corrupt.as_ref().map(|ran| ran.tokens.clone());
    let (base, source) = match (&corrupt_tokens, denoise) {
        (Some(corrupt), true) => (corrupt, Some(&clean_tokens)),
        (corrupt, _) => (&clean_tokens, corrupt.as_ref()),
    };
    let work = Work { args, opened, dictionary, scope: &scope, bos, ui, metric };
    let (patcher, source, results, method) = work.results(base, source)?;
    let baseline = Baseline { base: patcher.base().metric, source: source.as_ref().map(|run| run.metric) };
    if let Some(source) = &source
        && baseline.normalised(source.metric).is_none()
    {
        ui.progress().warn("both prompts measure the same, so that effects cannot be normalised; see --raw");
    }
    let (of_clean, of_corrupt) =
        if denoise { (baseline.source, Some(baseline.base)) } else { (Some(baseline.base), baseline.source) };
    clean.metric = of_clean;
    if let Some(corrupt) = &mut corrupt {
        corrupt.metric = of_corrupt;
    }
    let results = results.into_iter().map(|(site, sweep, features)| Outcomes::new(site, sweep, baseline, features));
    Ok(Report {
        model: args.model.clone(),
        method,
        patched: if denoise { "corrupted" } else { "clean" },
        metric,
        metric_name,
        clean,
        corrupt,
        baseline,
        results: results.collect(),
    })
}

/// Everything a mode needs.
struct Work<'a> {
    args: &'a Args,
    opened: &'a Opened,
    dictionary: Option<&'a Dictionary>,
    scope: &'a Scope,
    bos: BosPolicy,
    ui: &'a Ui,
    metric: Metric,
}

type Found = Vec<(String, Sweep, Option<FeatureSweep>)>;

impl<'a> Work<'a> {
    fn config(&self) -> &'a ModelConfig {
        self.opened.model.config()
    }

    fn results(&self, base: &[u32], source: Option<&Vec<u32>>) -> Result<(Patcher<'a>, Option<Trace>, Found, String)> {
        let (model, metric) = (&self.opened.model, self.metric);
        if self.args.knock_out {
            let patcher = Patcher::new(model, base, metric, &[])?;
            let sweep = patcher.knock_out(&self.knock_out(base)?, self.ui.progress())?;
            let source = source.map(|tokens| Trace::record(model, tokens, metric, &[])).transpose()?;
            let method = "attention of the clean run cut".to_owned();
            return Ok((patcher, source, vec![("attention".into(), sweep, None)], method));
        }
        if let (false, Some(source)) = (self.args.path_to.is_empty(), source) {
            let settings = self.path()?;
            let points = Patcher::path_points(self.config(), &settings.receivers);
            let patcher = Patcher::new(model, base, metric, &points)?;
            let source = Trace::record(model, source, metric, &points)?;
            let sweep = patcher.paths(&settings, &source, self.ui.progress())?;
            let frozen = if settings.freeze_mlps { "other heads and MLPs frozen" } else { "other heads frozen" };
            let method =
                format!("{}, along the path to {} only, {frozen}", self.direction(), self.args.path_to.join(", "));
            return Ok((
                patcher,
                Some(source),
                vec![(format!("to {}", self.args.path_to.join(", ")), sweep, None)],
                method,
            ));
        }
        let targets = self.targets()?;
        let points = self.points(&targets)?;
        let patcher = Patcher::new(model, base, metric, &points)?;
        let source = source.map(|tokens| Trace::record(model, tokens, metric, &points)).transpose()?;
        let (replacement, features_from, method) = self.replacement(base, source.as_ref(), &points)?;
        let mut found = Vec::new();
        for (name, target) in &targets {
            match target {
                Target::Site(site) => {
                    let by = self.by(*site);
                    let sweep = patcher.sweep(*site, by, self.scope, &replacement, self.ui.progress())?;
                    found.push((name.clone(), sweep, None));
                }
                Target::Feature => found.push(self.features(&patcher, features_from.as_ref())?),
            }
        }
        Ok((patcher, source, found, method))
    }

    fn direction(&self) -> String {
        let (from, to) = if self.args.noise { ("corrupted", "clean") } else { ("clean", "corrupted") };
        format!("values of the {from} run put into the {to} one")
    }

    fn targets(&self) -> Result<Vec<(String, Target)>> {
        let known = || SITES.iter().map(|(name, _)| *name).chain(["feature"]);
        let parse = |text: &String| {
            let name = text.trim().trim_start_matches("attn.").trim_start_matches("hook_");
            if name == "feature" {
                return Ok((name.to_owned(), Target::Feature));
            }
            let site = SITES.iter().find(|(known, _)| *known == name).map(|(_, site)| *site);
            let site = site.ok_or_else(|| Error::Unknown {
                kind: "site to patch",
                found: text.clone(),
                nearest: nearest(name, known(), 13),
            })?;
            Ok((name.to_owned(), Target::Site(site)))
        };
        self.args.site.iter().map(parse).collect()
    }

    fn points(&self, targets: &[(String, Target)]) -> Result<Vec<HookPoint>> {
        let mut all = Vec::new();
        for (_, target) in targets {
            match (target, self.dictionary) {
                (Target::Site(site), _) => all.extend(points(*site, &self.scope.layers, self.config())?),
                (Target::Feature, Some(dictionary)) => all.push(Placement::of(dictionary, self.config())?.point),
                (Target::Feature, None) => {}
            }
        }
        Ok(all)
    }

    /// By head where there are heads, unless told otherwise.
    fn by(&self, site: Site) -> By {
        match (self.args.by, has_heads(site)) {
            (None, true) | (Some(ByKind::Head), _) => By::Head,
            (None, false) | (Some(ByKind::Position), _) => By::Position,
            (Some(ByKind::HeadPosition), _) => By::HeadPosition,
        }
    }

    /// What is put in, the run that features take their activations from, and both in words.
    fn replacement(
        &self,
        base: &[u32],
        source: Option<&Trace>,
        points: &[HookPoint],
    ) -> Result<(Replacement, Option<Trace>, String)> {
        let model = &self.opened.model;
        let Some(ablation) = self.args.ablate else {
            let source = source.cloned();
            return Ok((Replacement::Runs(source.iter().cloned().collect()), source, self.direction()));
        };
        let from_file = || -> Result<Option<Vec<Vec<u32>>>> {
            let Some(path) = &self.args.prompts else { return Ok(None) };
            let limit = self.config().context_length;
            let encode = |text: String| -> Result<Vec<u32>> {
                let mut tokens = self.opened.tokenizer.encode(&text, self.bos)?;
                tokens.truncate(limit);
                Ok(tokens)
            };
            let all = prompts::texts(path)?.into_iter().map(encode).collect::<Result<Vec<_>>>()?;
            Ok(Some(all.into_iter().filter(|tokens| !tokens.is_empty()).collect()))
        };
        let given = || -> Result<Vec<Vec<u32>>> {
            Ok(from_file()?.unwrap_or_else(|| {
                std::iter::once(base.to_vec()).chain(source.map(|run| run.tokens.clone())).collect()
            }))
        };
        match ablation {
            Ablation::Zero => Ok((Replacement::Zero, None, "values of the clean run replaced by zeros".into())),
            Ablation::Mean => {
                let mean = Replacement::mean(model, &given()?, points, base.len(), self.ui.progress())?;
                let how = match &mean {
                    Replacement::Mean(means) if means.by_position => format!("{} prompts, by position", means.runs),
                    Replacement::Mean(means) => {
                        format!("{} prompts, over all positions but the first, which has its own", means.runs)
                    }
                    _ => String::new(),
                };
                Ok((mean, None, format!("values of the clean run replaced by averages over {how}")))
            }
            Ablation::Resample => {
                let draws = (self.args.draws, self.args.seed);
                let runs = Replacement::resample(model, &given()?, points, base, draws)?;
                let (n, first) = match &runs {
                    Replacement::Runs(runs) => (runs.len(), runs.first().cloned()),
                    _ => (0, None),
                };
                Ok((runs, first, format!("values of the clean run replaced by those of {n} other prompts")))
            }
        }
    }

    fn features(&self, patcher: &Patcher<'_>, source: Option<&Trace>) -> Result<(String, Sweep, Option<FeatureSweep>)> {
        let Some(dictionary) = self.dictionary else {
            return Err(Error::flag("--sae", "a dictionary to patch features of", "none", "name its directory"));
        };
        let wanted = (self.args.features, self.scope.positions.as_slice());
        let found = patcher.features(dictionary, source, wanted, self.ui.progress())?;
        let mut names: Vec<String> = found.features.iter().map(|row| row.feature.to_string()).collect();
        let with_all =
            |row: &[Option<f64>], all: f64| -> Vec<Option<f64>> { row.iter().copied().chain([Some(all)]).collect() };
        let mut metric: Vec<_> = found.features.iter().map(|row| with_all(&row.metric, row.everywhere)).collect();
        if source.is_some() {
            names.push("error".into());
            metric.push(with_all(&found.error, found.error_everywhere));
        }
        let pieces = found.positions.iter().map(ToString::to_string).chain(["all".to_owned()]);
        let sweep = Sweep { rows: Axis::Name(names), columns: Axis::Name(pieces.collect()), metric };
        Ok((format!("features at {}", found.point), sweep, Some(found)))
    }

    fn knock_out(&self, base: &[u32]) -> Result<KnockOut> {
        let Args { from, to, window, per_head, .. } = self.args;
        let tokenizer = &self.opened.tokenizer;
        let queries = places::positions("--from", from, base, tokenizer)?;
        let keys = match to {
            Some(list) => places::positions("--to", list, base, tokenizer)?,
            None => (0..=queries.iter().copied().max().unwrap_or(0)).collect(),
        };
        let columns = match (to, per_head) {
            (Some(_), true) => KnockOutColumns::Heads,
            (Some(_), false) => KnockOutColumns::Together,
            (None, _) => KnockOutColumns::Keys,
        };
        let Scope { layers, heads, .. } = self.scope.clone();
        Ok(KnockOut { layers, window: *window, heads, queries, keys, columns })
    }

    fn path(&self) -> Result<PathSettings> {
        let receivers = self.args.path_to.iter().map(|node| parse_receiver(node, self.config().n_layers));
        let Scope { layers, heads, positions } = self.scope.clone();
        Ok(PathSettings {
            layers,
            mlps: heads.is_empty(),
            heads,
            positions,
            receivers: receivers.collect::<Result<_>>()?,
            freeze_mlps: self.args.freeze_mlps,
        })
    }
}
