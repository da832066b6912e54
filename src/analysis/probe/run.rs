//! Probes of several hooks and dictionaries on one set of labelled texts.

use rayon::prelude::*;
use serde::Serialize;

use super::direction::{Direction, DirectionSource};
use super::examples::Examples;
use super::fit::{self, FitSettings, Method};
use super::linear::{Linear, Rows};
use super::pool::{PooledText, Position, Wanted, pool, width};
use super::score::{Scores, log_softmax, predictions};
use super::sparse::{ChosenFeature, SparseFit};
use super::split::{Split, permuted};
use crate::analysis::stop_if_cancelled;
use crate::base::progress::Unit;
use crate::base::{Progress, Result};
use crate::dictionary::{Dictionary, SparseCodes};
use crate::model::{HookPoint, Model};

/// Pooled values of all hooks that are held at once, 1 GiB; more hooks than that take several passes over the texts.
const POOLED_VALUES: usize = 1 << 28;

/// What to probe and how.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ProbeSettings {
    /// How directions are found.
    pub methods: Vec<Method>,
    /// Which positions make a text's row.
    pub position: Position,
    /// Share of the texts of each class that is held out.
    pub test_share: f64,
    /// Permutations of the labels that the control averages over; none leaves it out.
    pub controls: usize,
    /// Features that sparse probes read, one probe for each number.
    pub k: Vec<usize>,
    /// Penalty and scaling.
    pub fit: FitSettings,
    /// Seed of the split and of the controls.
    pub seed: u64,
}

impl Default for ProbeSettings {
    fn default() -> Self {
        Self {
            methods: vec![Method::Logistic, Method::DifferenceOfMeans],
            position: Position::Last,
            test_share: 0.25,
            controls: 3,
            k: vec![1, 2, 5],
            fit: FitSettings::default(),
            seed: 0,
        }
    }
}

/// Scores of a probe, and those of the same probe on labels without meaning.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Outcome {
    /// On the texts it was fitted on.
    pub train: Scores,
    /// On held-out texts.
    pub test: Scores,
    /// Held-out accuracy on permuted labels, the mean over controls.
    pub control_accuracy: Option<f64>,
    /// Held-out accuracy less the control's (Hewitt and Liang 2019).
    pub selectivity: Option<f64>,
}

/// A probe on all coordinates of a hook.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DenseProbe {
    /// Where it reads.
    pub hook: HookPoint,
    /// How its direction was found.
    pub method: Method,
    /// How well it does.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// Steps of the solver.
    pub iterations: Option<usize>,
    /// The classifier, for raw rows.
    #[serde(skip)]
    pub linear: Linear,
}

/// A probe on a few features of a dictionary.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SparseProbe {
    /// Which of the dictionaries.
    pub dictionary: usize,
    /// Where the dictionary reads.
    pub hook: HookPoint,
    /// Features an output.
    pub k: usize,
    /// How well it does.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// The features.
    pub features: Vec<ChosenFeature>,
}

/// A held-out text that the best probe is wrong about.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Mistake {
    /// Its number among the examples.
    pub text: usize,
    /// The class it has.
    pub class: usize,
    /// The class that the probe says.
    pub predicted: usize,
    /// How far the wrong output lies above the right one; of a single output its size.
    pub margin: f64,
}

/// All probes of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ProbeRun {
    /// What was learnt from and what was held out.
    #[serde(skip)]
    pub split: Split,
    /// Held-out accuracy of always saying the most frequent class.
    pub majority_accuracy: f64,
    /// By hook, then by method.
    pub dense: Vec<DenseProbe>,
    /// By dictionary, then by `k`.
    pub sparse: Vec<SparseProbe>,
    /// The dense probe with the best held-out accuracy, then area under the curve; of equals the first.
    pub best: Option<usize>,
    /// What it is wrong about, surest first.
    pub mistakes: Vec<Mistake>,
}

/// Fits probes for the classes of `examples`, whose texts are `texts` in the same order, at every hook and on the
/// features of every dictionary. The result does not depend on the number of threads.
///
/// # Errors
/// As [`Split::stratified`]; `Unknown` or `Unsupported` for a hook that cannot be pooled; `NonFinite`; `Interrupted`.
pub fn probe(
    model: &Model,
    texts: &[PooledText],
    examples: &Examples,
    hooks: &[HookPoint],
    dictionaries: &[(HookPoint, &Dictionary)],
    settings: &ProbeSettings,
    progress: &dyn Progress,
) -> Result<ProbeRun> {
    let split = Split::stratified(examples, settings.test_share, settings.seed)?;
    let classes = examples.classes.len();
    let controls = (0..settings.controls).map(|i| permuted(&examples.labels, settings.seed, i)).collect();
    let task = Task { examples, split: &split, controls, settings };
    let (mut dense, mut sparse, mut best_outputs) = (Vec::new(), Vec::new(), None);
    for (pass, hooks) in passes(hooks, texts.len(), model)?.into_iter().enumerate() {
        let wanted_dictionaries = if pass == 0 { dictionaries } else { &[] };
        let wanted = Wanted { hooks, dictionaries: wanted_dictionaries, position: settings.position };
        let pooled = pool(model, texts, wanted, progress)?;
        progress.begin("probes", (hooks.len() + wanted_dictionaries.len()) as u64, Unit::Items);
        let fitted: Vec<Vec<(DenseProbe, Vec<f64>)>> = hooks
            .par_iter()
            .zip(&pooled.rows)
            .map(|(&hook, rows)| {
                stop_if_cancelled(progress)?;
                let probes = settings.methods.iter().map(|&method| task.dense(hook, method, rows)).collect();
                progress.advance(1);
                Ok(probes)
            })
            .collect::<Result<_>>()?;
        for (probe, outputs) in fitted.into_iter().flatten() {
            if best_outputs.as_ref().is_none_or(|(best, _): &(usize, _)| better(&probe, &dense[*best])) {
                best_outputs = Some((dense.len(), outputs));
            }
            dense.push(probe);
        }
        for (i, (&(hook, _), codes)) in wanted_dictionaries.iter().zip(&pooled.codes).enumerate() {
            stop_if_cancelled(progress)?;
            sparse.extend(settings.k.iter().map(|&k| task.sparse(i, hook, k, codes)));
            progress.advance(1);
        }
        progress.end();
    }
    let majority_accuracy = split.majority_accuracy(&examples.labels, classes);
    let (best, mistakes) = match &best_outputs {
        Some((best, outputs)) => (Some(*best), task.mistakes(outputs)),
        None => (None, Vec::new()),
    };
    Ok(ProbeRun { split, majority_accuracy, dense, sparse, best, mistakes })
}

fn better(a: &DenseProbe, b: &DenseProbe) -> bool {
    let key = |p: &DenseProbe| (p.outcome.test.accuracy, p.outcome.test.auroc.unwrap_or_default());
    key(a) > key(b)
}

/// `hooks` in parts whose pooled rows fit in memory together; one empty part where there are none.
fn passes<'a>(hooks: &'a [HookPoint], texts: usize, model: &Model) -> Result<Vec<&'a [HookPoint]>> {
    let widest = hooks.iter().map(|&hook| width(hook, model)).collect::<Result<Vec<_>>>()?.into_iter().max();
    let together = (POOLED_VALUES / (texts * widest.unwrap_or(1)).max(1)).max(1);
    Ok(if hooks.is_empty() { vec![hooks] } else { hooks.chunks(together).collect() })
}

/// What every probe of a run shares.
struct Task<'a> {
    examples: &'a Examples,
    split: &'a Split,
    /// Labels dealt out anew.
    controls: Vec<Vec<usize>>,
    settings: &'a ProbeSettings,
}

impl Task<'_> {
    fn classes(&self) -> usize {
        self.examples.classes.len()
    }

    /// The probe, and its outputs on held-out texts.
    fn dense(&self, hook: HookPoint, method: Method, rows: &[f32]) -> (DenseProbe, Vec<f64>) {
        let d = rows.len() / self.examples.labels.len().max(1);
        let [train, test] = [&self.split.train, &self.split.test].map(|part| Rows::select(rows, d, part));
        let task = fit::Task::new(method, train.clone(), self.settings.fit);
        let learn = |labels: &[usize]| task.fit(&pick(labels, &self.split.train), self.classes());
        let outputs = |linear: &Linear, rows: &Rows| {
            let mut outputs = linear.outputs_on(rows);
            log_softmax(&mut outputs, linear.outputs());
            outputs
        };
        let found = learn(&self.examples.labels);
        let on_test = outputs(&found.linear, &test);
        let columns = found.linear.outputs();
        let outcome = self.outcome(&outputs(&found.linear, &train), &on_test, columns, |labels| {
            outputs(&learn(labels).linear, &test)
        });
        (DenseProbe { hook, method, outcome, iterations: found.iterations, linear: found.linear }, on_test)
    }

    fn sparse(&self, dictionary: usize, hook: HookPoint, k: usize, codes: &SparseCodes) -> SparseProbe {
        let Split { train, test } = self.split;
        let learn = |labels: &[usize]| SparseFit::new(codes, train, labels, self.classes(), k, self.settings.fit);
        let found = learn(&self.examples.labels);
        let (on_train, on_test) = (found.outputs_on(codes, train), found.outputs_on(codes, test));
        let outcome =
            self.outcome(&on_train, &on_test, found.outputs(), |labels| learn(labels).outputs_on(codes, test));
        SparseProbe { dictionary, hook, k, outcome, features: found.features }
    }

    /// Scores of outputs on both parts, and of what `control` gives on held-out texts after learning other labels.
    fn outcome(&self, train: &[f64], test: &[f64], columns: usize, control: impl Fn(&[usize]) -> Vec<f64>) -> Outcome {
        let score = |outputs: &[f64], labels: &[usize], part| Scores::of(outputs, columns, &pick(labels, part));
        let labels = &self.examples.labels;
        let test_scores = score(test, labels, &self.split.test);
        let controls: f64 =
            self.controls.iter().map(|labels| score(&control(labels), labels, &self.split.test).accuracy).sum();
        let control_accuracy = (!self.controls.is_empty()).then(|| controls / self.controls.len() as f64);
        Outcome {
            train: score(train, labels, &self.split.train),
            test: test_scores,
            control_accuracy,
            selectivity: control_accuracy.map(|control| test_scores.accuracy - control),
        }
    }

    fn mistakes(&self, outputs: &[f64]) -> Vec<Mistake> {
        let columns = outputs.len() / self.split.test.len().max(1);
        let predicted = predictions(outputs, columns);
        let rows = outputs.chunks_exact(columns.max(1));
        let mut mistakes: Vec<Mistake> = self
            .split
            .test
            .iter()
            .zip(predicted.iter().zip(rows))
            .map(|(&text, (&predicted, row))| {
                let class = self.examples.labels[text];
                let margin = if let [z] = row { z.abs() } else { row[predicted] - row[class] };
                Mistake { text, class, predicted, margin }
            })
            .filter(|m| m.class != m.predicted)
            .collect();
        mistakes.sort_by(|a, b| b.margin.total_cmp(&a.margin).then(a.text.cmp(&b.text)));
        mistakes
    }
}

fn pick(labels: &[usize], part: &[usize]) -> Vec<usize> {
    part.iter().map(|&i| labels[i]).collect()
}

impl DenseProbe {
    /// Its directions: one that points to the second of two classes, or one a class.
    pub fn directions(&self, examples: &Examples, model_name: &str, position: Position) -> Vec<Direction> {
        let labels = if self.linear.outputs() == 1 { &examples.classes[1..] } else { &examples.classes[..] };
        let direction = |(output, label): (usize, &String)| Direction {
            values: self.linear.direction(output).iter().map(|&x| x as f32).collect(),
            bias: self.linear.biases[output],
            source: DirectionSource {
                model_name: model_name.into(),
                hook_name: self.hook.to_string(),
                method: self.method,
                position,
                classes: examples.classes.clone(),
                label: label.clone(),
                accuracy: self.outcome.test.accuracy,
            },
        };
        labels.iter().enumerate().map(direction).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::analysis::tests::{dictionary_at, open};
    use crate::base::Silent;
    use crate::ops::gemm::tests::with_threads;

    /// Texts whose last token tells the class; a few are mislabelled.
    fn world(classes: usize) -> (Vec<PooledText>, Examples) {
        let n = 96;
        let labels: Vec<usize> = (0..n).map(|i| (i * 5 / 3) % classes).collect();
        let tokens = |i: usize| {
            let told = if i % 31 == 7 { (labels[i] + 1) % classes } else { labels[i] };
            vec![1, (3 + i % 40) as u32, (10 + told * 9) as u32]
        };
        let special = BTreeSet::from([1]);
        let texts = (0..n).map(|i| PooledText::new(tokens(i), &special).unwrap()).collect();
        let examples = Examples {
            path: "x".into(),
            texts: vec![String::new(); n],
            lines: (1..=n).collect(),
            labels,
            classes: (0..classes).map(|c| format!("class {c}")).collect(),
            groups: None,
        };
        (texts, examples)
    }

    fn run(classes: usize) -> ProbeRun {
        let (texts, examples) = world(classes);
        let hooks = ["hook_embed", "blocks.1.hook_resid_post"].map(|name| name.parse().unwrap());
        let dictionary = dictionary_at("blocks.1.hook_resid_post", 24, 40);
        let dictionaries = [(hooks[1], &dictionary)];
        let settings = ProbeSettings::default();
        probe(&open("llama"), &texts, &examples, &hooks, &dictionaries, &settings, &Silent).unwrap()
    }

    #[test]
    fn what_the_last_token_says_is_found_and_chance_is_not() {
        for classes in [2, 3] {
            let found = run(classes);
            assert_eq!((found.dense.len(), found.sparse.len()), (4, 3));
            let best = &found.dense[found.best.unwrap()];
            let right = (found.split.test.len() - found.mistakes.len()) as f64 / found.split.test.len() as f64;
            assert!(best.outcome.test.accuracy > 0.8 && (best.outcome.test.accuracy - right).abs() < 1e-12);
            assert!(best.outcome.selectivity.unwrap() > 0.25, "{best:?}");
            assert!(found.majority_accuracy < 0.6);
            assert!(
                found.sparse.iter().all(|probe| probe.features.len() == probe.k * if classes == 2 { 1 } else { 3 })
            );
            assert!(found.sparse[2].outcome.train.accuracy > found.majority_accuracy);
        }
    }

    #[test]
    fn a_direction_says_what_the_probe_says() {
        let (_, examples) = world(2);
        let found = run(2);
        let probe = &found.dense[1];
        let directions = probe.directions(&examples, "llama", Position::Last);
        let [only] = &directions[..] else { panic!("{directions:?}") };
        assert_eq!((only.source.label.as_str(), only.values.len()), ("class 1", 24));
        assert!((only.bias - probe.linear.biases[0]).abs() < 1e-12);
        let (_, three) = world(3);
        assert_eq!(run(3).dense[0].directions(&three, "llama", Position::Last).len(), 3);
    }

    #[test]
    fn a_run_does_not_depend_on_the_threads() {
        assert_eq!(with_threads(1, || run(2)), with_threads(2, || run(2)));
    }
}
