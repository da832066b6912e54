//! Graphs through dictionaries of residual streams, for those who have no transcoders (Marks et al. 2024, "Sparse
//! Feature Circuits: Discovering and Editing Interpretable Causal Graphs in Language Models").
//!
//! The stream at a layer is all that later layers know, so features of one dictionary act on those of the next and on
//! nothing beyond: the graph has an edge for every pair of consecutive dictionaries, from tokens to the first, and from
//! the last to the targets.
//!
//! ```text
//! A[t, s] = a_s ⟨ḡ_t[p_s], W_dec_s⟩        error: ⟨ḡ_t[p], e_p⟩        token: ⟨ḡ_t[p], W_E[token_p]⟩
//! ```
//!
//! `ḡ_t` is the integrated gradient of the target's pre-activation (or logit less the mean) with respect to the stream,
//! on the way from the dictionary's bias, where nothing is active, to the stream itself. Unlike the graphs of
//! transcoders, nothing is frozen: attention and MLPs in between follow, and an edge is the average over that way. A row
//! and what the bias alone gives sum to the target's value up to the number of steps, which is measured.

use std::sync::Arc;
use std::time::Instant;

use candle_core::DType;

use crate::analysis::{Placement, stop_if_cancelled};
use crate::base::progress::Unit;
use crate::base::{Error, Progress, Result};
use crate::dictionary::{Architecture, Dictionary};
use crate::model::{HookPlan, HookPoint, Model, ModelConfig, Run, Site};

use super::attribute::nan_or_max;
use super::attribution::{ActiveFeature, Attribution};
use super::build::{About, Frame, framed};
use super::columns::Columns;
use super::context::{active, dot, last_logits, softmax, values, without};
use super::gradient::{Segment, Value};
use super::influence::{Influence, size};
use super::memory;
use super::prune::prune;
use super::targets::{Target, TargetChoice};
use super::types::{Graph, GraphSettings};

/// Rows whose copies of the stream go through the model together.
const ROWS_AT_ONCE: usize = 16;

/// Dictionaries of residual streams, one a layer, from the first layer on.
#[derive(Debug, Clone)]
pub struct Dictionaries(Vec<(HookPoint, Arc<Dictionary>)>);

impl Dictionaries {
    /// Sorts `dictionaries` by where they stand in a model.
    ///
    /// # Errors
    /// `Flag` for fewer than two; `Unsupported` for one that is not of a residual stream between blocks, or that
    /// normalises rows; `Mismatch` for two of one layer; as [`Placement::of`].
    pub fn new(dictionaries: Vec<Arc<Dictionary>>, config: &ModelConfig) -> Result<Self> {
        if dictionaries.len() < 2 {
            return Err(Error::flag(
                "--sae",
                "dictionaries of two layers or more",
                dictionaries.len(),
                "name one of another layer too, or use --transcoders",
            ));
        }
        let mut placed = Vec::new();
        for dictionary in dictionaries {
            let point = Placement::of(&dictionary, config)?.point;
            let why = match point.site {
                Site::ResidPre | Site::ResidPost if dictionary.normalizes_rows() => "it normalises each row",
                Site::ResidPre | Site::ResidPost if dictionary.config.architecture == Architecture::Gated => {
                    "its features have two pre-activations"
                }
                Site::ResidPre | Site::ResidPost => {
                    placed.push((point, dictionary));
                    continue;
                }
                _ => "it is not of the residual stream between two blocks",
            };
            return Err(Error::Unsupported {
                what: format!("a graph through {dictionary}"),
                why: why.into(),
                remedy:
                    "use ReLU, JumpReLU or TopK dictionaries of hook_resid_pre or hook_resid_post that take raw rows"
                        .into(),
            });
        }
        placed.sort_by_key(|(point, _)| entered(*point));
        let twice = placed
            .windows(2)
            .find(|pair| pair[0].0.layer == pair[1].0.layer || entered(pair[0].0) == entered(pair[1].0));
        match twice {
            None => Ok(Self(placed)),
            Some(pair) => Err(Error::Mismatch {
                what: "dictionaries of a graph",
                left: pair[0].1.to_string(),
                right: format!("{}, of the same layer", pair[1].1),
                remedy: "give one dictionary a layer".into(),
            }),
        }
    }
}

/// The block that the stream at `point` enters.
fn entered(point: HookPoint) -> usize {
    point.layer.unwrap_or(0) + usize::from(point.site == Site::ResidPost)
}

/// Traces a prompt through dictionaries, with `steps` steps of integration.
///
/// # Errors
/// `Flag` for a prompt of one token or no steps; when a tensor operation fails; `Interrupted`.
#[expect(clippy::too_many_arguments, reason = "those of `trace`, and the steps")]
pub fn trace_dictionaries(
    model: &Model,
    dictionaries: &Dictionaries,
    tokens: &[u32],
    choice: &TargetChoice,
    settings: &GraphSettings,
    steps: usize,
    about: &About<'_>,
    progress: &dyn Progress,
) -> Result<(Graph, Attribution)> {
    let start = Instant::now();
    settings.check()?;
    if steps == 0 {
        return Err(Error::flag("--steps", "1 or more", steps, "leave it out for the default"));
    }
    if model.device().is_cpu() && model.dtype() != DType::F32 {
        return Err(Error::Unsupported {
            what: format!("gradients through a model in {} on the CPU", model.dtype().as_str()),
            why: "its packed products have none".into(),
            remedy: "compute in f32 with --dtype f32".into(),
        });
    }
    check_segments(model.config(), dictionaries, tokens.len())?;
    let streams = Streams::new(model, dictionaries, tokens, settings.zero_positions)?;
    let targets = choice.resolve_among(model, &streams.logits, &softmax(&streams.logits, cap(model)))?;
    let attribution = Work { model, streams: &streams, steps, progress }.attribute(targets, settings)?;
    let pruned = prune(&attribution, settings);
    let layers: Vec<usize> = dictionaries.0.iter().map(|(point, _)| point.layer.unwrap_or(0)).collect();
    let scan = dictionaries.0.iter().map(|(_, dictionary)| dictionary.to_string());
    let frame = Frame {
        scan: scan.collect::<Vec<_>>().join(" + "),
        cross_layer: false,
        tokens,
        n_layers: model.config().n_layers,
        layers: &layers,
    };
    let mut graph = framed(&frame, &attribution, &pruned, settings, about);
    graph.report.seconds = start.elapsed().as_secs_f64();
    Ok((graph, attribution))
}

fn cap(model: &Model) -> Option<f64> {
    model.config().embedding.logit_soft_cap
}

/// One run of a prompt, taken apart by every dictionary.
struct Streams<'a> {
    dictionaries: &'a Dictionaries,
    /// What enters the first block, and what of it tokens do not give, `[s, d]`.
    embedding: (Vec<f32>, Vec<f32>),
    /// The stream at each dictionary, and what of it stands without features and errors.
    parts: Vec<(Vec<f32>, Vec<f32>)>,
    /// What each dictionary leaves over; zeros where features are left out.
    errors: Vec<Vec<f32>>,
    /// Active features; their layer is the dictionary's place in the list.
    features: Vec<ActiveFeature>,
    columns: Columns,
    logits: Vec<f32>,
    /// Input of the unembedding at the last position.
    last: Vec<f32>,
}

impl<'a> Streams<'a> {
    fn new(model: &Model, dictionaries: &'a Dictionaries, tokens: &[u32], zero_positions: usize) -> Result<Self> {
        let (config, s) = (model.config(), tokens.len());
        if s < 2 {
            let expected = "two tokens or more: nothing is traced at the first";
            return Err(Error::flag("--prompt", expected, format!("{s} in all"), "write more text"));
        }
        let globals = [Site::Embed, Site::PosEmbed, Site::UnembedIn, Site::UnembedOut].map(HookPoint::global);
        let points = dictionaries.0.iter().map(|(point, _)| *point).chain(globals);
        let plan = points.filter(|point| point.exists_in(config)).fold(HookPlan::new(), HookPlan::capture);
        let run = model.forward(&model.tokens(&[tokens])?, &plan)?;
        let untraced = zero_positions.min(s - 1);
        let d = config.d_model;
        let (mut parts, mut errors, mut codes) = (Vec::new(), Vec::new(), Vec::new());
        for (point, dictionary) in &dictionaries.0 {
            let x = values(&run, *point)?;
            let own = without(&dictionary.encode(&x)?, untraced);
            let mut error = x.clone();
            let reconstructed = dictionary.reconstruct_codes(&x, &own)?;
            error.iter_mut().zip(reconstructed).for_each(|(x, y)| *x -= y);
            error[..untraced * d].fill(0.0);
            let mut baseline = dictionary.b_dec.repeat(s);
            baseline[..untraced * d].copy_from_slice(&x[..untraced * d]);
            parts.push((x, baseline));
            errors.push(error);
            codes.push(own);
        }
        let features = active(&codes);
        Ok(Self {
            dictionaries,
            embedding: embedding(&run, config)?,
            columns: Columns::new(&features, dictionaries.0.len(), s),
            features,
            parts,
            errors,
            logits: last_logits(&run, config, s)?,
            last: values(&run, HookPoint::global(Site::UnembedIn))?.split_off((s - 1) * d),
        })
    }

    fn positions(&self) -> usize {
        self.columns.positions
    }

    /// The segment that ends at dictionary `to`, or with one too many at the unembedding.
    fn segment<'s>(&'s self, model: &'s Model, to: usize, steps: usize) -> Segment<'s> {
        let (from, (stream, baseline)) = match to.checked_sub(1) {
            Some(below) => (entered(self.dictionaries.0[below].0), &self.parts[below]),
            None => (0, &self.embedding),
        };
        let to = self.dictionaries.0.get(to).map_or(HookPoint::global(Site::UnembedIn), |(point, _)| *point);
        Segment { model, from, stream, baseline, to, steps }
    }
}

/// What enters the first block, and what of it is there without tokens: positions.
fn embedding(run: &Run, config: &ModelConfig) -> Result<(Vec<f32>, Vec<f32>)> {
    let tokens = values(run, HookPoint::global(Site::Embed))?;
    if !Site::PosEmbed.exists_in(config) {
        let none = vec![0.0; tokens.len()];
        return Ok((tokens, none));
    }
    let positions = values(run, HookPoint::global(Site::PosEmbed))?;
    Ok((tokens.iter().zip(&positions).map(|(t, p)| t + p).collect(), positions))
}

struct Work<'a> {
    model: &'a Model,
    streams: &'a Streams<'a>,
    steps: usize,
    progress: &'a dyn Progress,
}

/// A row that is asked for: where its value stands, and what it is.
struct Wanted {
    position: usize,
    vector: Vec<f32>,
    constant: f64,
    value: f64,
}

impl Work<'_> {
    fn attribute(&self, targets: Vec<Target>, settings: &GraphSettings) -> Result<Attribution> {
        let (columns, features) = (&self.streams.columns, &self.streams.features);
        let dictionaries = self.streams.parts.len();
        let each = settings.max_feature_nodes.div_ceil(dictionaries);
        let of = |i: usize| columns.features_at(i, 0).start..columns.features_at(i, columns.positions - 1).end;
        let rows: usize = (0..dictionaries).map(|i| of(i).len().min(each)).sum();
        self.progress.begin("attributing", (rows + targets.len()) as u64, Unit::Items);
        let (target_rows, mut largest_row_error) = self.rows(dictionaries, &self.wanted_targets(&targets))?;
        let mut influence = Influence::new(columns.sources());
        for (target, row) in targets.iter().zip(&target_rows) {
            let place = (dictionaries, columns.positions - 1);
            influence.pass_on(target.probability, size(row), columns.cut(place, row));
        }
        let mut found: Vec<Option<Vec<f32>>> = vec![None; features.len()];
        for i in (0..dictionaries).rev() {
            let mut rank: Vec<usize> = of(i).collect();
            rank.sort_by(|a, b| influence.of[*b].total_cmp(&influence.of[*a]).then(a.cmp(b)));
            rank.truncate(each);
            let (rows, worst) = self.rows(i, &self.wanted_features(i, &rank)?)?;
            largest_row_error = nan_or_max(largest_row_error, worst);
            for (feature, row) in rank.into_iter().zip(rows) {
                let weight = influence.of[feature];
                influence.pass_on(weight, size(&row), columns.cut((i, features[feature].position), &row));
                found[feature] = Some(row);
            }
        }
        self.progress.end();
        Ok(Attribution::packed(columns, features, found, target_rows, targets, largest_row_error))
    }

    fn wanted_targets(&self, targets: &[Target]) -> Vec<Wanted> {
        let position = self.streams.positions() - 1;
        let wanted = |target: &Target| Wanted {
            position,
            vector: target.direction.clone(),
            constant: target.constant,
            value: dot(&self.streams.last, &target.direction) + target.constant,
        };
        targets.iter().map(wanted).collect()
    }

    fn wanted_features(&self, i: usize, chosen: &[usize]) -> Result<Vec<Wanted>> {
        let dictionary = &self.streams.dictionaries.0[i].1;
        let d = dictionary.d_in();
        let numbers: Vec<u32> = chosen.iter().map(|&f| self.streams.features[f].feature).collect();
        let columns = dictionary.encoder_columns(&numbers)?;
        let wanted = chosen.iter().enumerate().map(|(k, &feature)| {
            let ActiveFeature { position, feature, .. } = self.streams.features[feature];
            let vector: Vec<f32> = columns.iter().skip(k).step_by(numbers.len()).copied().collect();
            let centre = if dictionary.config.apply_b_dec_to_input { dot(&dictionary.b_dec, &vector) } else { 0.0 };
            let constant = f64::from(dictionary.b_enc[feature as usize]) - centre;
            let value = dot(&self.streams.parts[i].0[position * d..][..d], &vector) + constant;
            Wanted { position, vector, constant, value }
        });
        Ok(wanted.collect())
    }

    /// Rows at dictionary `i`, and by how much the worst misses its value.
    fn rows(&self, i: usize, wanted: &[Wanted]) -> Result<(Vec<Vec<f32>>, f64)> {
        let segment = self.streams.segment(self.model, i, self.steps);
        let (mut rows, mut worst) = (Vec::with_capacity(wanted.len()), 0f64);
        for batch in wanted.chunks(ROWS_AT_ONCE) {
            stop_if_cancelled(self.progress)?;
            let values: Vec<Value<'_>> =
                batch.iter().map(|w| Value { position: w.position, vector: &w.vector }).collect();
            for (wanted, (gradient, without)) in batch.iter().zip(segment.gradients(&values)?) {
                let row = self.row(i, wanted.position, &gradient)?;
                let sum: f64 = row.iter().map(|entry| f64::from(*entry)).sum();
                let bias = without + wanted.constant;
                let largest = row.iter().fold(0f32, |m, entry| m.max(entry.abs()));
                let scale = f64::from(largest).max(bias.abs()).max(wanted.value.abs()).max(f64::MIN_POSITIVE);
                worst = nan_or_max(worst, (sum + bias - wanted.value).abs() / scale);
                rows.push(row);
            }
            self.progress.advance(batch.len() as u64);
        }
        Ok((rows, worst))
    }

    /// The entries of a row at dictionary `i`: features and errors of the dictionary below, or tokens.
    fn row(&self, i: usize, position: usize, gradient: &[f32]) -> Result<Vec<f32>> {
        let (columns, d) = (&self.streams.columns, self.model.config().d_model);
        let mut row = vec![0.0; columns.len(i, position)];
        let Some(below) = i.checked_sub(1) else {
            let (with, without) = &self.streams.embedding;
            for at in 0..=position {
                let token: Vec<f32> = with[at * d..][..d].iter().zip(&without[at * d..]).map(|(x, p)| x - p).collect();
                row[columns.error_entry(i, position, i, at)] = dot(&gradient[at * d..][..d], &token) as f32;
            }
            return Ok(row);
        };
        let dictionary = &self.streams.dictionaries.0[below].1;
        for at in 0..=position {
            let g = &gradient[at * d..][..d];
            let entry = columns.feature_entry(position, below, at);
            for (k, node) in columns.features_at(below, at).enumerate() {
                let ActiveFeature { feature, activation, .. } = self.streams.features[node];
                let own = [activation];
                let written = dictionary.activation.decoder_values(&[feature], &own)[0];
                row[entry + k] = (dot(g, dictionary.decoder_row(feature)?) * f64::from(written)) as f32;
            }
            row[columns.error_entry(i, position, below, at)] =
                dot(g, &self.streams.errors[below][at * d..][..d]) as f32;
        }
        Ok(row)
    }
}

/// Refuses a prompt whose gradients do not fit into memory: the farthest way between two dictionaries is differentiated
/// for several copies of the prompt at once.
fn check_segments(config: &ModelConfig, dictionaries: &Dictionaries, s: usize) -> Result<()> {
    let mut ends: Vec<usize> = dictionaries.0.iter().map(|(point, _)| entered(*point)).collect();
    ends.push(config.n_layers);
    let longest = ends.iter().scan(0, |from, &to| Some(to - std::mem::replace(from, to).min(to))).max();
    memory::check_gradients(config, s, ROWS_AT_ONCE, longest.unwrap_or(config.n_layers))
}
