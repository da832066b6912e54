//! From flags to what is changed at each strength.

use std::path::Path;
use std::sync::Arc;

use crate::analysis::steer::{FeatureEdits, SteeringVector, TranscoderEdits, VectorOrigin};
use crate::analysis::{DirectionEdit, DirectionOp, FeatureEdit, FeatureOp, Intervention, Placement};
use crate::base::{Error, Result};
use crate::cli::model_name::compare_models;
use crate::cli::render::Ui;
use crate::dictionary::{Dictionary, TranscoderSet};
use crate::interop::read_npy_vector;
use crate::model::{HookPoint, ModelConfig};

use super::MAX_NORM_KEY;
use super::args::{FeatureArg, Method, OperationArgs, SteerArgs, Strengths, TargetArgs};

/// What is done at every strength.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Clamp,
    Add,
    Scale,
    Cap,
    Ablate,
    ProjectOut,
    Method(Method),
}

/// What to do, at which strengths.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Operation {
    pub(super) kind: Kind,
    /// The strengths that the flag gives; empty where it needs or has none.
    pub(super) values: Vec<f32>,
    multiplier: f32,
}

impl Operation {
    /// What the flags ask for: without any, features are clamped to their own values and vectors need a strength.
    ///
    /// # Errors
    /// `Flag` for a multiplier that is not finite or without a method, and for several strengths that nothing takes.
    pub(super) fn of(args: &SteerArgs) -> Result<Self> {
        let OperationArgs {
            clamp,
            add,
            scale,
            cap,
            ablate,
            project_out,
            strength,
            method,
            strength_multiplier,
            no_error_term: _,
        } = &args.operation;
        let given = [(Kind::Clamp, clamp), (Kind::Add, add), (Kind::Scale, scale), (Kind::Cap, cap)];
        let given = given.into_iter().find_map(|(kind, values)| Some((kind, values.clone()?)));
        let by_method = (method.is_some() || strength.is_some() || args.targets.feature.is_empty())
            .then(|| (Kind::Method(method.unwrap_or(Method::SimpleAdditive)), strength.clone().unwrap_or_default()));
        let (kind, Strengths(values)) = match (ablate, project_out) {
            (true, _) => (Kind::Ablate, Strengths::default()),
            (_, true) => (Kind::ProjectOut, Strengths::default()),
            _ => given.or(by_method).unwrap_or((Kind::Clamp, Strengths::default())),
        };
        let expected = match kind {
            Kind::Method(_) if strength_multiplier.is_finite() => None,
            Kind::Method(_) => Some("a finite number"),
            _ if (strength_multiplier - 1.0).abs() < f32::EPSILON => None,
            _ => Some("no multiplier, which belongs to --method"),
        };
        if let Some(expected) = expected {
            let remedy = "leave it out, or multiply the strengths themselves";
            return Err(Error::flag("--strength-multiplier", expected, strength_multiplier, remedy));
        }
        let TargetArgs { feature, vector, .. } = &args.targets;
        if values.len() > 1 && vector.is_empty() && feature.iter().all(|feature| feature.value.is_some()) {
            let found = "a value of its own for each";
            return Err(Error::flag("--feature", "a feature that takes the listed values", found, "write ID alone"));
        }
        Ok(Self { kind, values, multiplier: *strength_multiplier })
    }

    /// The strengths to steer with; one absent where the operation has none or features bring their own.
    pub(super) fn strengths(&self) -> Vec<Option<f32>> {
        if self.values.is_empty() { vec![None] } else { self.values.iter().copied().map(Some).collect() }
    }

    /// The flag that gives its strength.
    fn flag(&self) -> &'static str {
        match self.kind {
            Kind::Clamp => "--clamp",
            Kind::Add => "--add",
            Kind::Scale => "--scale",
            Kind::Cap => "--cap",
            Kind::Ablate => "--ablate",
            Kind::ProjectOut => "--project-out",
            Kind::Method(_) => "--strength",
        }
    }

    /// What the strengths are, for the head of a table.
    pub(super) fn title(&self) -> &'static str {
        self.flag().trim_start_matches('-')
    }

    fn needs(&self, what: &str) -> Error {
        let remedy = "write --feature ID:V, or give the flag a value";
        Error::flag(self.flag(), "a finite value", format!("none for {what}"), remedy)
    }

    /// What to do with a feature's activation; `None` where its direction is changed instead.
    fn on_activation(&self, feature: u32, value: Option<f32>) -> Result<Option<FeatureOp>> {
        let value = || value.ok_or_else(|| self.needs(&format!("feature {feature}")));
        Ok(Some(match self.kind {
            Kind::Clamp => FeatureOp::Clamp(value()?),
            Kind::Add => FeatureOp::Add(value()?),
            Kind::Scale => FeatureOp::Scale(value()?),
            Kind::Cap => FeatureOp::Cap(value()?),
            Kind::Ablate => FeatureOp::Ablate,
            Kind::ProjectOut | Kind::Method(_) => return Ok(None),
        }))
    }

    /// What to do along a direction.
    fn on_direction(&self, what: &str, value: Option<f32>) -> Result<DirectionOp> {
        let value = || value.ok_or_else(|| self.needs(what));
        let coefficient = || value().map(|v| v * self.multiplier);
        Ok(match self.kind {
            Kind::Clamp => DirectionOp::Clamp(value()?),
            Kind::Add => DirectionOp::Add(value()?),
            Kind::Scale => DirectionOp::Scale(value()?),
            Kind::Cap => DirectionOp::Cap(value()?),
            Kind::Ablate | Kind::ProjectOut => DirectionOp::ProjectOut,
            Kind::Method(Method::SimpleAdditive) => DirectionOp::Add(coefficient()?),
            Kind::Method(Method::OrthogonalDecomp) => DirectionOp::Scale(coefficient()?),
            Kind::Method(Method::ProjectionCap) => DirectionOp::Cap(coefficient()?),
        })
    }
}

/// A steering vector with its place in the model.
#[derive(Debug, Clone)]
pub(super) struct Placed {
    name: String,
    vector: SteeringVector,
    at: Placement,
}

impl Placed {
    /// Reads a vector and finds its hook.
    ///
    /// # Errors
    /// As [`SteeringVector::read`]; `Flag` when neither file nor `--hook` says where it belongs; `Unknown` for a hook
    /// that the model lacks; `Mismatch` for another model's vector, unless forced.
    pub(super) fn read(path: &Path, args: &SteerArgs, config: &ModelConfig, ui: &Ui) -> Result<Self> {
        let npy = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("npy"));
        let vector = if npy {
            SteeringVector { values: read_npy_vector(path)?, origin: VectorOrigin::default() }
        } else {
            SteeringVector::read(path, args.targets.tensor.as_deref())?
        };
        let own = vector.origin.hook.as_deref();
        let hook = args.targets.hook.as_deref().or(own).ok_or_else(|| {
            let found = format!("none in {}", path.display());
            Error::flag("--hook", "the hook point that the vector belongs to", found, "name it, as `info` lists them")
        })?;
        let point = HookPoint::resolve(hook, config)?;
        if let Some(own) = own.filter(|own| HookPoint::resolve(own, config).ok() != Some(point)) {
            ui.progress().warn(&format!("{} was made at {own}; using it at {hook}, as told", path.display()));
        }
        if let Some(model) = &vector.origin.model
            && compare_models(model, &args.model) == Some(false)
        {
            let both = (format!("{} of model '{model}'", path.display()), format!("--model {}", args.model));
            args.force.allow("vector and model", both, "use the model that the vector was made with", ui)?;
        }
        let vector = if args.targets.normalize { vector.normalized() } else { vector };
        let name = path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        Ok(Self { name: format!("vector {name}"), vector, at: Placement::at(point) })
    }

    /// How long it is, and where it is added.
    pub(super) fn describe(&self) -> String {
        format!("{}: norm {:.3}, at {}", self.name, self.vector.norm(), self.at)
    }
}

/// The change at every strength.
///
/// # Errors
/// `Flag` when a feature or vector has no strength, `--normalize` or `--no-error-term` changes nothing; as
/// [`DirectionEdit::check`].
pub(super) fn interventions(
    args: &SteerArgs,
    operation: &Operation,
    dictionary: Option<&Arc<Dictionary>>,
    set: Option<&Arc<TranscoderSet>>,
    vectors: &[Placed],
    config: &ModelConfig,
) -> Result<Vec<Intervention>> {
    let strengths = operation.strengths().into_iter();
    let of_activations = !matches!(operation.kind, Kind::ProjectOut | Kind::Method(_));
    if args.targets.normalize && vectors.is_empty() && of_activations {
        let expected = "a vector, or a change along a feature's direction";
        let found = format!("{}, a change of activations", operation.flag());
        return Err(Error::flag("--normalize", expected, found, "leave it out"));
    }
    let of = |strength| -> Result<Intervention> {
        let plain = at_strength(args, operation, dictionary, vectors, config, strength)?;
        let transcoders = set.map(|set| of_transcoders(args, operation, set, strength)).transpose()?;
        Ok(Intervention { transcoders, ..plain })
    };
    strengths.map(of).collect()
}

/// The change of a transcoder set's features.
fn of_transcoders(
    args: &SteerArgs,
    operation: &Operation,
    set: &Arc<TranscoderSet>,
    strength: Option<f32>,
) -> Result<TranscoderEdits> {
    let mut edits = Vec::new();
    for &FeatureArg { layer, feature, value } in &args.targets.feature {
        let Some(layer) = layer else {
            let remedy = "write LAYER/ID: every layer of the set has its own features";
            return Err(Error::flag("--feature", "a layer and a feature of it", feature, remedy));
        };
        let Some(op) = operation.on_activation(feature, value.or(strength))? else {
            let expected = "--clamp, --add, --scale, --cap or --ablate with --transcoders";
            return Err(Error::flag(operation.flag(), expected, "a change along a direction", "change the activation"));
        };
        edits.push((layer, FeatureEdit { feature, op }));
    }
    if args.operation.no_error_term {
        let expected = "a dictionary at a single hook (--sae)";
        return Err(Error::flag("--no-error-term", expected, "--transcoders", "leave it out"));
    }
    let untouched = usize::from(!args.targets.steer_outliers);
    Ok(TranscoderEdits { set: Arc::clone(set), edits, untouched })
}

fn at_strength(
    args: &SteerArgs,
    operation: &Operation,
    dictionary: Option<&Arc<Dictionary>>,
    vectors: &[Placed],
    config: &ModelConfig,
    strength: Option<f32>,
) -> Result<Intervention> {
    let (mut edits, mut directions) = (Vec::new(), Vec::new());
    let limit = dictionary.and_then(|d| d.config.metadata.extra.get(MAX_NORM_KEY)?.as_f64());
    let max_norm = limit.filter(|_| !args.targets.steer_outliers);
    // Those of a transcoder set are none of a dictionary's.
    let own_features = args.targets.feature.iter().filter(|_| dictionary.is_some());
    for &FeatureArg { layer, feature, value } in own_features {
        if let Some(layer) = layer {
            let remedy = "leave the layer out, or give a set of transcoders with --transcoders";
            return Err(Error::flag("--feature", "a feature of the dictionary", format!("{layer}/{feature}"), remedy));
        }
        let value = value.or(strength);
        if let Some(op) = operation.on_activation(feature, value)? {
            edits.push(FeatureEdit { feature, op });
        } else if let Some(dictionary) = dictionary {
            let op = operation.on_direction(&format!("feature {feature}"), value)?;
            let mut edit = DirectionEdit::of_feature(dictionary, feature, op, config)?;
            if args.targets.normalize {
                edit.vector = unit(edit.vector);
            }
            // Neuronpedia steers every position; what is ours keeps off rows that the dictionary never saw.
            edit.max_norm = max_norm.filter(|_| operation.kind == Kind::ProjectOut);
            directions.push(edit);
        }
    }
    for Placed { name, vector, at } in vectors {
        let op = operation.on_direction(name, strength)?;
        let (name, vector) = (name.clone(), vector.values.clone());
        directions.push(DirectionEdit { name, at: *at, vector, feature: None, op, max_norm: None });
    }
    for edit in &directions {
        edit.check(config)?;
    }
    if args.operation.no_error_term && edits.is_empty() && args.targets.transcoders.is_none() {
        let expected = "a change of features' activations, as --clamp or --ablate make";
        return Err(Error::flag("--no-error-term", expected, "a change along a direction", "leave it out"));
    }
    let features = dictionary.filter(|_| !edits.is_empty()).map(|dictionary| FeatureEdits {
        dictionary: Arc::clone(dictionary),
        edits,
        error_term: !args.operation.no_error_term,
        max_norm,
    });
    Ok(Intervention { features, directions, transcoders: None })
}

fn unit(vector: Vec<f32>) -> Vec<f32> {
    SteeringVector { values: vector, origin: VectorOrigin::default() }.normalized().values
}
