//! `graph --sae`: graphs through autoencoders of residual streams.

use std::sync::Arc;

use crate::analysis::graph::{About, Dictionaries, Graph, GraphSettings, TargetChoice, trace_dictionaries};
use crate::base::{Error, Result};
use crate::cli::Outcome;
use crate::cli::expect::{self, Given};
use crate::cli::open::{self, Opened};
use crate::cli::render::Ui;
use crate::data::BosPolicy;
use crate::model::ModelConfig;

use super::args::TraceArgs;

/// Beyond this part of its largest term, what a row misses its value by is said.
const ROW_ERROR: f64 = 0.1;

/// The dictionaries of the command line.
///
/// # Errors
/// As [`open::dictionary`], [`expect::check`] and [`Dictionaries::new`].
pub(super) fn open(args: &TraceArgs, bos: BosPolicy, config: &ModelConfig, ui: &Ui) -> Result<Dictionaries> {
    if args.check.verify {
        let remedy = "leave --verify out, or use --transcoders";
        return Err(Error::flag("--verify", "--transcoders, whose graphs predict interventions", "--sae", remedy));
    }
    let given = Given::model(&args.model, bos, config);
    let given = if args.chat.chat { Given { bos: None, ..given } } else { given };
    let open = |dir| -> Result<_> {
        let dictionary = open::dictionary(dir, ui)?;
        expect::check(&dictionary, &given, args.force, ui)?;
        Ok(Arc::new(dictionary))
    };
    Dictionaries::new(args.sae.iter().map(|dir| open(dir)).collect::<Result<_>>()?, config)
}

/// The graph through them.
///
/// # Errors
/// As [`trace_dictionaries`].
#[expect(clippy::too_many_arguments, reason = "those of `trace_dictionaries`")]
pub(super) fn graph(
    args: &TraceArgs,
    dictionaries: &Dictionaries,
    opened: &Opened,
    tokens: &[u32],
    choice: &TargetChoice,
    settings: &GraphSettings,
    about: &About<'_>,
    ui: &Ui,
) -> Result<Graph> {
    let model = &opened.model;
    let traced = trace_dictionaries(model, dictionaries, tokens, choice, settings, args.steps, about, ui.progress())?;
    Ok(traced.0)
}

/// Says by how much effects miss the value they are effects on, which more steps of integration make smaller.
pub(super) fn checked(graph: &Graph, steps: usize, ui: &Ui) -> Outcome {
    let worst = graph.report.largest_row_error;
    if worst > ROW_ERROR {
        ui.progress().warn(&format!(
            "with {steps} steps the inputs of a node miss its value by {:.0} % of the largest of them; more --steps bring \
             them nearer",
            100.0 * worst
        ));
    }
    Outcome::Done
}
