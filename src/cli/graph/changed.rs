//! What an intervention did, as JSON and on the terminal.

use serde::Serialize;

use crate::analysis::graph::{Answers, ChangedRun, FeatureChange, FrozenRun, Graph, NodeKind};
use crate::base::Result;
use crate::cli::open::Opened;
use crate::cli::places;
use crate::cli::render::{BOLD, DIM, GREEN, RED, Table, Ui, columns, paint, quoted, side_by_side};

/// Features of the graph that are listed with their change.
const FOLLOWERS: usize = 8;

/// What was done and what came of it.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) model: String,
    pub(super) scan: String,
    pub(super) prompt: String,
    pub(super) tokens: Vec<u32>,
    /// What stays as it was.
    pub(super) held: &'static str,
    pub(super) changes: Vec<Changed>,
    /// Tokens, the likeliest before first.
    pub(super) answers: Vec<Answer>,
    /// Whether another token is the likeliest one now.
    pub(super) turned: bool,
    /// Features of the graph that changed most.
    pub(super) followers: Vec<Follower>,
    pub(super) continuation: Option<Continuation>,
}

#[derive(Debug, Serialize)]
pub(super) struct Changed {
    pub(super) what: String,
    pub(super) layer: usize,
    pub(super) feature: u32,
    /// Position and activation in the unchanged run, at the positions of the prompt that are changed.
    pub(super) activations: Vec<(usize, f32)>,
}

#[derive(Debug, Serialize)]
pub(super) struct Answer {
    pub(super) token: u32,
    pub(super) text: String,
    /// Whether it was asked for, or is a target of the graph.
    pub(super) target: bool,
    pub(super) probability: (f32, f32),
    pub(super) logit: (f32, f32),
}

#[derive(Debug, Serialize)]
pub(super) struct Follower {
    pub(super) id: String,
    pub(super) label: Option<String>,
    pub(super) activation: (f32, f32),
}

#[derive(Debug, Serialize)]
pub(super) struct Continuation {
    pub(super) before: String,
    pub(super) after: String,
}

/// A change with the activations that it meets.
pub(super) fn described(run: &FrozenRun<'_>, change: &FeatureChange) -> Changed {
    let touched = (0..run.positions()).filter(|&position| change.positions.contain(position));
    let activations = touched.map(|position| (position, run.activation(change.layer, position, change.feature)));
    Changed {
        what: change.to_string(),
        layer: change.layer,
        feature: change.feature,
        activations: activations.collect(),
    }
}

/// The likeliest tokens without and with the changes, and the targets.
pub(super) fn listed(
    opened: &Opened,
    run: &FrozenRun<'_>,
    answers: &Answers,
    changed: &[f32],
    targets: &[u32],
    top: usize,
) -> Result<Vec<Answer>> {
    let vocabulary = answers.before.len();
    let last = (run.positions() - 1) * vocabulary;
    let clean = run.clean.logits()?.flatten_all()?.to_vec1::<f32>()?;
    let at = |logits: &[f32], token: u32| logits.get(last + token as usize).copied().unwrap_or_default();
    let mut tokens: Vec<u32> = targets.to_vec();
    tokens.extend(answers.top(top).into_iter().map(|change| change.token));
    tokens.sort_by(|a, b| answers.of(*b).before.total_cmp(&answers.of(*a).before).then(a.cmp(b)));
    tokens.dedup();
    let answer = |token: u32| {
        let of = answers.of(token);
        Answer {
            token,
            text: opened.tokenizer.piece(token),
            target: targets.contains(&token),
            probability: (of.before, of.after),
            logit: (at(&clean, token), at(changed, token)),
        }
    };
    Ok(tokens.into_iter().map(answer).collect())
}

/// The features of the graph whose activation changed most, those that were changed by hand left out.
pub(super) fn followers(
    run: &FrozenRun<'_>,
    graph: &Graph,
    changes: &[FeatureChange],
    changed: &ChangedRun,
) -> Result<Vec<Follower>> {
    let mut found = Vec::new();
    for node in &graph.nodes {
        let NodeKind::Feature { layer, feature, ref label, .. } = node.kind else { continue };
        let own = |c: &FeatureChange| (c.layer, c.feature) == (layer, feature) && c.positions.contain(node.position);
        if changes.iter().any(own) {
            continue;
        }
        let now = changed.activations(layer, &[feature])?.get(node.position).copied().unwrap_or_default();
        let before = run.activation(layer, node.position, feature);
        if (now - before).abs() > 1e-3 * before.abs() {
            found.push(Follower { id: node.id(graph.n_layers), label: label.clone(), activation: (before, now) });
        }
    }
    let size = |follower: &Follower| (follower.activation.1 - follower.activation.0).abs();
    found.sort_by(|a, b| size(b).total_cmp(&size(a)));
    found.truncate(FOLLOWERS);
    Ok(found)
}

impl Report {
    pub(super) fn print(&self, opened: &Opened, tokens: &[u32], ui: &Ui) -> Result<()> {
        ui.out(format!("{} {}", paint(DIM, "prompt"), places::numbered(tokens, &opened.tokenizer)))?;
        for change in &self.changes {
            let now: Vec<String> = change.activations.iter().take(6).map(|(at, a)| format!("{a:.2} at {at}")).collect();
            let more = if change.activations.len() > 6 { ", …" } else { "" };
            let was = paint(DIM, format!("(it is {}{more})", now.join(", ")));
            ui.out(format!("{} {} {was}", paint(DIM, "change"), change.what))?;
        }
        ui.out(format!("{} {}", paint(DIM, "held  "), self.held))?;
        ui.out("")?;
        let mut table = Table::new(&["next token", ">before", ">after", ">logit before", ">after", ""]);
        for answer in &self.answers {
            let Answer { text, probability, logit, target, .. } = answer;
            let rise = probability.1 - probability.0;
            let arrow = match rise {
                r if r > 5e-5 => paint(GREEN, "▲"),
                r if r < -5e-5 => paint(RED, "▼"),
                _ => String::new(),
            };
            table.row(vec![
                if *target { paint(BOLD, quoted(text)) } else { quoted(text) },
                format!("{:.2} %", probability.0 * 100.0),
                format!("{:.2} %", probability.1 * 100.0),
                format!("{:.2}", logit.0),
                format!("{:.2}", logit.1),
                arrow,
            ]);
        }
        ui.out(table)?;
        self.print_followers(ui)?;
        if let Some(Continuation { before, after }) = &self.continuation {
            ui.out("")?;
            ui.out(side_by_side(("without", before), ("with the change", after), columns()))?;
        }
        Ok(())
    }

    fn print_followers(&self, ui: &Ui) -> Result<()> {
        if self.followers.is_empty() {
            return Ok(());
        }
        ui.out("")?;
        let mut table = Table::new(&["what followed in the graph", ">before", ">after", "label"]);
        for Follower { id, label, activation } in &self.followers {
            let label = label.clone().unwrap_or_default();
            table.row(vec![id.clone(), format!("{:.3}", activation.0), format!("{:.3}", activation.1), label]);
        }
        ui.out(table)
    }
}
