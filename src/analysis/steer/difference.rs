//! The difference of two means: a steering vector out of two sets of prompts.
//!
//! ```text
//! v = mean over positive prompts of h̄ − mean over negative prompts of h̄
//! ```
//!
//! with `h̄` a prompt's mean over its tokens, or its last token. Turner et al. 2023, "Activation Addition"; Rimsky et
//! al. 2024, "Steering Llama 2 via Contrastive Activation Addition"; Marks & Tegmark 2023, "The Geometry of Truth".

use serde::{Deserialize, Serialize};

use super::measure::{mean, rows_at};
use crate::analysis::{Placement, stop_if_cancelled};
use crate::base::progress::Unit;
use crate::base::{Error, Progress, Result};
use crate::model::{HookPlan, Model};
use crate::ops::squared_norm;

/// What stands for a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pool {
    /// The mean over its tokens, the first (an attention sink in most models) left out.
    #[default]
    Mean,
    /// Its last token.
    Last,
}

/// A difference of means, and how well it tells the two sets apart.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// Positive mean minus negative mean, `[d]`.
    pub vector: Vec<f32>,
    /// Mean projection of the positive prompts on the vector's direction.
    pub positive: f64,
    /// Mean projection of the negative prompts.
    pub negative: f64,
    /// Share of the prompts on their side of the middle between the two, on the same prompts that made the vector.
    pub separated: f64,
    /// Mean norm of what stands for a prompt: the scale on which the vector's own norm is large or small.
    pub typical_norm: f64,
}

/// The difference between the means of `positive` and `negative` prompts at `at`.
///
/// # Errors
/// `Unsupported` for a point without a fixed width, and where both sets have one mean; `Flag` when a set is empty;
/// `NonFinite`; `Interrupted`; whatever the model gives.
pub fn difference_of_means(
    model: &Model,
    at: Placement,
    positive: &[Vec<u32>],
    negative: &[Vec<u32>],
    pool: Pool,
    progress: &dyn Progress,
) -> Result<Difference> {
    at.point.check(model.config())?;
    if at.width(model.config()).is_none() {
        return Err(Error::Unsupported {
            what: format!("a vector at {at}"),
            why: "it has no fixed number of values a token".into(),
            remedy: "use another --hook, such as blocks.N.hook_resid_post".into(),
        });
    }
    for (flag, prompts) in [("--positive", positive), ("--negative", negative)] {
        if prompts.is_empty() {
            return Err(Error::flag(flag, "at least one prompt", "none", "write some prompts, one a line"));
        }
    }
    progress.begin("reading prompts", (positive.len() + negative.len()) as u64, Unit::Items);
    let read = |prompts: &[Vec<u32>]| -> Result<Vec<Vec<f32>>> {
        prompts
            .iter()
            .map(|prompt| {
                stop_if_cancelled(progress)?;
                progress.advance(1);
                pooled(model, at, prompt, pool)
            })
            .collect()
    };
    let (positive, negative) = (read(positive)?, read(negative)?);
    progress.end();
    let (above, below) = (mean_of(&positive), mean_of(&negative));
    let vector: Vec<f32> = above.iter().zip(&below).map(|(a, b)| (a - b) as f32).collect();
    let norm = squared_norm(&vector).sqrt();
    if !norm.is_finite() {
        return Err(Error::NonFinite {
            what: format!("the activations of {at}"),
            count: vector.iter().filter(|x| !x.is_finite()).count(),
            at: "the mean".into(),
            remedy: "run with --dtype f32".into(),
        });
    }
    if norm == 0.0 {
        return Err(Error::Unsupported {
            what: "a vector from these prompts".into(),
            why: format!("positive and negative prompts have the same mean at {at}"),
            remedy: "use prompts that differ; with --pool last also in their last token or before it".into(),
        });
    }
    let project = |rows: &[Vec<f32>]| -> Vec<f64> {
        let dot = |row: &Vec<f32>| row.iter().zip(&vector).map(|(x, v)| f64::from(*x) * f64::from(*v)).sum::<f64>();
        rows.iter().map(|row| dot(row) / f64::from(norm)).collect()
    };
    let (up, down) = (project(&positive), project(&negative));
    let average = |values: &[f64]| mean(values.iter().copied()).unwrap_or(0.0);
    let middle = average(&up).midpoint(average(&down));
    let right = up.iter().filter(|p| **p > middle).count() + down.iter().filter(|p| **p < middle).count();
    let norms = positive.iter().chain(&negative).map(|row| f64::from(squared_norm(row)).sqrt());
    Ok(Difference {
        positive: average(&up),
        negative: average(&down),
        separated: right as f64 / (up.len() + down.len()) as f64,
        typical_norm: mean(norms).unwrap_or(0.0),
        vector,
    })
}

/// What stands for `prompt`, `[d]`.
fn pooled(model: &Model, at: Placement, prompt: &[u32], pool: Pool) -> Result<Vec<f32>> {
    let run = model.forward(&model.tokens(&[prompt])?, &HookPlan::new().capture(at.point))?;
    let rows = rows_at(&run, at)?;
    let d = rows.len() / prompt.len().max(1);
    let rows: Vec<Vec<f32>> = rows.chunks_exact(d.max(1)).map(<[f32]>::to_vec).collect();
    Ok(match (pool, rows.as_slice()) {
        (Pool::Mean, [_, rest @ ..]) if !rest.is_empty() => mean_of(rest).into_iter().map(|x| x as f32).collect(),
        (_, [.., last]) => last.clone(),
        (_, []) => Vec::new(),
    })
}

fn mean_of(rows: &[Vec<f32>]) -> Vec<f64> {
    let mut sum = vec![0.0; rows.first().map_or(0, Vec::len)];
    for row in rows {
        sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x));
    }
    sum.iter().map(|x| x / rows.len() as f64).collect()
}
