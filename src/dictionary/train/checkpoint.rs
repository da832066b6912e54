//! Checkpoints: everything that the rest of a run depends on, in one safetensors file written atomically.
//!
//! `checkpoints/step-000000250.safetensors` holds the weights, both Adam moments and the firing counts as tensors,
//! and `progress`, a JSON text as bytes: the plan, the step, the input scale, the length of `metrics.jsonl`. The
//! source's position follows from the step. The last [`KEPT`] stay.

use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::Dtype;
use serde::{Deserialize, Serialize};

use super::dead::Activity;
use super::finish::Scales;
use super::parameters::{Parameters, State};
use super::settings::TrainPlan;
use crate::base::mapped::Mapped;
use crate::base::{Error, Result};
use crate::dictionary::io::{Values, write_tensors};

/// The directory inside the output.
pub(super) const DIRECTORY: &str = "checkpoints";
/// Checkpoints that are kept.
const KEPT: usize = 2;
const WHAT: &str = "training checkpoint";
const VERSION: u32 = 2;

/// What a checkpoint records beside tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Header {
    version: u32,
    /// The plan of the run.
    pub(super) plan: TrainPlan,
    /// Steps taken.
    pub(super) step: u64,
    /// The input scale.
    pub(super) scale: f32,
    /// The scales of the rows that a transcoder reconstructs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) output_scales: Vec<f32>,
    /// Length of `metrics.jsonl`.
    pub(super) metrics_bytes: u64,
    /// Features started again so far.
    pub(super) resampled: u64,
    /// The running threshold of batch-wide selection.
    threshold: f64,
    /// Factor of the penalty after annealing.
    penalty_scale: f64,
    previous_rows: u64,
    current_rows: u64,
}

/// A run between two steps.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Checkpoint {
    /// Scalars.
    pub(super) header: Header,
    /// Weights and moments.
    pub(super) state: State,
    /// Firing counts.
    pub(super) activity: Activity,
}

/// Writes a checkpoint under `dir` and removes all but the last [`KEPT`].
pub(super) fn write(
    dir: &Path,
    plan: &TrainPlan,
    (scales, metrics_bytes, resampled): (&Scales, u64, u64),
    state: &State,
    activity: &Activity,
) -> Result<()> {
    let Activity { since_fired, previous, current, previous_rows, current_rows } = activity;
    let State { weights, first, second, step, threshold, penalty_scale } = state;
    let header = Header {
        version: VERSION,
        plan: plan.clone(),
        step: *step,
        scale: scales.input,
        output_scales: scales.outputs.clone(),
        metrics_bytes,
        resampled,
        threshold: *threshold,
        penalty_scale: *penalty_scale,
        previous_rows: *previous_rows,
        current_rows: *current_rows,
    };
    let folder = dir.join(DIRECTORY);
    fs::create_dir_all(&folder).map_err(Error::io("make the checkpoint directory", &folder))?;
    let path = path(dir, *step);
    let text = serde_json::to_vec(&header).map_err(|e| Error::Io {
        action: "serialise the checkpoint",
        path: path.clone(),
        source: e.into(),
    })?;
    let mut tensors = vec![("progress".to_owned(), vec![text.len()], Values::U8(&text))];
    for (group, parameters) in [("weights", weights), ("first", first), ("second", second)] {
        for (name, shape, values) in parameters.tensors() {
            tensors.push((format!("{group}.{name}"), shape, Values::F32(values)));
        }
    }
    for (name, counts) in [("since_fired", since_fired), ("previous", previous), ("current", current)] {
        tensors.push((name.to_owned(), vec![counts.len()], Values::U32(counts)));
    }
    write_tensors(&path, &tensors)?;
    for old in existing(dir).into_iter().skip(KEPT) {
        fs::remove_file(&old).map_err(Error::io("remove an old checkpoint", &old))?;
    }
    Ok(())
}

/// The checkpoint at `path`.
///
/// # Errors
/// `Malformed` when it does not read, `Mismatch` when the run was started with another plan.
pub(super) fn open(path: &Path, plan: &TrainPlan) -> Result<Checkpoint> {
    let checkpoint = read(path)?;
    check_plan(&checkpoint.header.plan, plan)?;
    Ok(checkpoint)
}

/// Where the checkpoint after `step` steps is under `dir`.
pub(super) fn path(dir: &Path, step: u64) -> PathBuf {
    dir.join(DIRECTORY).join(format!("step-{step:09}.safetensors"))
}

/// Checkpoint files under `dir`, newest first.
pub(super) fn existing(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir.join(DIRECTORY)).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> =
        entries.map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "safetensors")).collect();
    paths.sort();
    paths.reverse();
    paths
}

fn read(path: &Path) -> Result<Checkpoint> {
    let file = Mapped::open(WHAT, path)?;
    let header: Header = file.with("progress", |view| {
        serde_json::from_slice(view.data()).map_err(|e| {
            let remedy = "remove it, and the one before it is used";
            Error::malformed(WHAT, path, "this version's progress record", e.to_string(), remedy)
        })
    })?;
    if header.version != VERSION {
        let found = format!("version {}", header.version);
        let remedy = "continue with the program that wrote it";
        return Err(Error::malformed(WHAT, path, format!("version {VERSION}"), found, remedy));
    }
    let (shape, f) = (header.plan.shape(), header.plan.d_sae);
    let parameters = |group: &str| -> Result<Parameters> {
        let mut parameters = Parameters::zeros(header.plan.arch, shape);
        let named: Vec<(&str, Vec<usize>)> = parameters.tensors().into_iter().map(|(n, s, _)| (n, s)).collect();
        for (to, (name, shape)) in parameters.tensors_mut().into_iter().zip(named) {
            let bytes = file.bytes(&format!("{group}.{name}"), Dtype::F32, &shape)?;
            *to = words(bytes).map(f32::from_bits).collect();
        }
        Ok(parameters)
    };
    let counts = |name: &str| Ok::<_, Error>(words(file.bytes(name, Dtype::U32, &[f])?).collect::<Vec<u32>>());
    let activity = Activity {
        since_fired: counts("since_fired")?,
        previous: counts("previous")?,
        current: counts("current")?,
        previous_rows: header.previous_rows,
        current_rows: header.current_rows,
    };
    let (weights, first, second) = (parameters("weights")?, parameters("first")?, parameters("second")?);
    let (step, threshold, penalty_scale) = (header.step, header.threshold, header.penalty_scale);
    Ok(Checkpoint { state: State { weights, first, second, step, threshold, penalty_scale }, activity, header })
}

/// Little-endian 32-bit words.
fn words(bytes: &[u8]) -> impl Iterator<Item = u32> + '_ {
    bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

fn check_plan(stored: &TrainPlan, asked: &TrainPlan) -> Result<()> {
    if stored == asked {
        return Ok(());
    }
    let fields = |plan: &TrainPlan| match serde_json::to_value(plan) {
        Ok(serde_json::Value::Object(fields)) => fields,
        _ => serde_json::Map::new(),
    };
    let (stored, asked) = (fields(stored), fields(asked));
    let differing: Vec<&String> = stored.keys().filter(|key| stored.get(*key) != asked.get(*key)).collect();
    let list = |of: &serde_json::Map<String, serde_json::Value>| {
        let parts: Vec<String> = differing.iter().map(|key| format!("{key} {}", of[*key])).collect();
        parts.join(", ")
    };
    Err(Error::Mismatch {
        what: "the cut-off run and this one",
        left: format!("{} then", list(&stored)),
        right: format!("{} now", list(&asked)),
        remedy: "resume with the settings of the first command, or start anew in another --out".into(),
    })
}
