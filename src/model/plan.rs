//! What to read and what to change in a forward pass, said as data before anything is computed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use candle_core::Tensor;

use crate::base::{Error, Result};

use super::config::ModelConfig;
use super::hook::{HookPoint, Scope, Site};
use super::relay::{self, Relay};

/// A change that needs more than arithmetic with a constant, such as clamping a dictionary's feature.
///
/// The model cannot know dictionaries, which are built on it; they hand their edits over behind this trait.
pub trait Rewrite: fmt::Debug + Send + Sync {
    /// Width of the vectors it takes.
    fn width(&self) -> usize;

    /// What it does, for records and errors: "clamp feature 12 to 8".
    fn describe(&self) -> String;

    /// The new values of `x`, shape `[n, width]`, same shape and number type.
    ///
    /// # Errors
    /// When the computation fails.
    fn rewrite(&self, x: &Tensor) -> Result<Tensor>;
}

/// The arithmetic of an edit. Vectors have the site's width, or one head's width when a head is named.
#[derive(Debug, Clone)]
pub enum EditOp {
    /// Replace by a vector `[width]`, or by a tensor of the site's full shape ("patch").
    Set(Tensor),
    /// Add a vector `[width]`, or a tensor of the site's full shape.
    Add(Tensor),
    /// Multiply by a number.
    Scale(f64),
    /// Set to zero.
    Ablate,
    /// Remove the component along a vector `[width]`.
    ProjectOut(Tensor),
    /// Anything else.
    Rewrite(Arc<dyn Rewrite>),
    /// Anything that depends on values at earlier points of the pass.
    Relay(Arc<dyn Relay>),
}

/// The positions an edit touches, counted from the sequence's start, cached positions included.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Positions {
    /// Every position.
    #[default]
    All,
    /// This position and all after it. With the prompt's length it means generated tokens only.
    From(usize),
    /// A list.
    List(Vec<usize>),
}

impl Positions {
    /// Whether position `p` is touched.
    pub fn contain(&self, p: usize) -> bool {
        match self {
            Self::All => true,
            Self::From(start) => p >= *start,
            Self::List(list) => list.contains(&p),
        }
    }
}

/// One change at one point.
#[derive(Debug, Clone)]
pub struct Edit {
    /// Where.
    pub at: HookPoint,
    /// Which head, for sites with a head axis; all when absent.
    pub head: Option<usize>,
    /// Which positions.
    pub positions: Positions,
    /// What.
    pub op: EditOp,
}

impl Edit {
    /// An edit of every head and position at `at`.
    pub fn new(at: HookPoint, op: EditOp) -> Self {
        Self { at, head: None, positions: Positions::All, op }
    }

    /// Restricts the edit to some positions.
    #[must_use]
    pub fn positions(mut self, positions: Positions) -> Self {
        self.positions = positions;
        self
    }

    /// Restricts the edit to one head.
    #[must_use]
    pub fn head(mut self, head: usize) -> Self {
        self.head = Some(head);
        self
    }
}

/// Captures, edits and whether logits are wanted.
#[derive(Debug, Clone, Default)]
pub struct HookPlan {
    captures: Vec<HookPoint>,
    edits: Vec<Edit>,
    logits: bool,
}

impl HookPlan {
    /// A plan that asks for nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Also computes logits.
    #[must_use]
    pub fn with_logits(mut self) -> Self {
        self.logits = true;
        self
    }

    /// Also keeps the values at `point`, after edits.
    #[must_use]
    pub fn capture(mut self, point: HookPoint) -> Self {
        if !self.captures.contains(&point) {
            self.captures.push(point);
        }
        self
    }

    /// Also applies `edit`. Edits at one point apply in the order they were added.
    #[must_use]
    pub fn edit(mut self, edit: Edit) -> Self {
        self.edits.push(edit);
        self
    }

    /// Checks every point against a model and finds where the forward pass may stop.
    ///
    /// # Errors
    /// `Unknown` for a point the model lacks, `Mismatch` for an edit of another width, `Unsupported` for a head
    /// or a full-width operation at a site that cannot take it.
    pub fn resolve(&self, config: &ModelConfig) -> Result<ResolvedPlan> {
        for point in self.captures.iter().chain(self.edits.iter().map(|e| &e.at)) {
            point.check(config)?;
        }
        for edit in &self.edits {
            check_edit(edit, config)?;
        }
        let mut edits: BTreeMap<HookPoint, Vec<Edit>> = BTreeMap::new();
        let mut relayed = BTreeSet::new();
        for edit in &self.edits {
            if let EditOp::Relay(relay) = &edit.op {
                relayed.extend(relay.reads());
            }
            edits.entry(edit.at).or_default().push(edit.clone());
        }
        let last = self.captures.iter().map(|point| match point.site.scope() {
            Scope::Embedding => Stop::Embedding,
            Scope::Block => Stop::Block(point.layer.unwrap_or_default(), point.site.fires_by(config.layout)),
            Scope::Final if point.site == Site::UnembedOut => Stop::Never,
            Scope::Final => Stop::FinalNorm,
        });
        let stop = if self.logits { Stop::Never } else { last.max().unwrap_or(Stop::Embedding) };
        Ok(ResolvedPlan { captures: self.captures.clone(), edits, relayed, stop })
    }
}

/// The last thing a forward pass has to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stop {
    /// The embedding.
    Embedding,
    /// A site of a block.
    Block(usize, Site),
    /// The final norm.
    FinalNorm,
    /// The logits.
    Never,
}

/// A plan whose points are known to exist.
#[derive(Debug, Clone)]
pub struct ResolvedPlan {
    pub(super) captures: Vec<HookPoint>,
    pub(super) edits: BTreeMap<HookPoint, Vec<Edit>>,
    /// Points whose values edits at later points read.
    pub(super) relayed: BTreeSet<HookPoint>,
    pub(super) stop: Stop,
}

fn check_edit(edit: &Edit, config: &ModelConfig) -> Result<()> {
    let unsupported = |what: &str, why: &str, remedy: &str| Error::Unsupported {
        what: format!("{what} at {}", edit.at),
        why: why.into(),
        remedy: remedy.into(),
    };
    if let EditOp::Relay(relay) = &edit.op {
        return relay::check(edit, relay.as_ref(), config);
    }
    let heads = edit.at.site.heads(config);
    match (edit.head, heads) {
        (Some(_), None) => {
            return Err(unsupported("an edit of one head", "the site has no head axis", "leave the head out"));
        }
        (Some(head), Some(n)) if head >= n => {
            return Err(unsupported(
                &format!("an edit of head {head}"),
                &format!("the site has {n} heads"),
                "count heads from zero",
            ));
        }
        _ => {}
    }
    let Some(full) = edit.at.site.width(config) else {
        if edit.at.site.axes().are_names() {
            return match &edit.op {
                EditOp::Set(t) if t.rank() == 2 => Ok(()),
                _ => Err(unsupported(
                    "this edit",
                    "its values are names, not quantities",
                    "set them all, in the shape of the hook point",
                )),
            };
        }
        return match &edit.op {
            EditOp::Scale(_) | EditOp::Ablate => Ok(()),
            EditOp::Set(t) | EditOp::Add(t) if t.rank() == 4 => Ok(()),
            _ => Err(unsupported("a vector edit", "the site's last axis is key positions", "set, add or scale it")),
        };
    };
    let width = if edit.head.is_some() { full / heads.unwrap_or(1) } else { full };
    let given = match &edit.op {
        EditOp::Set(t) | EditOp::Add(t) if t.rank() > 1 => return Ok(()),
        EditOp::Set(t) | EditOp::Add(t) | EditOp::ProjectOut(t) => t.elem_count(),
        EditOp::Rewrite(rewrite) => rewrite.width(),
        EditOp::Scale(_) | EditOp::Ablate | EditOp::Relay(_) => return Ok(()),
    };
    if given == width {
        return Ok(());
    }
    Err(Error::Mismatch {
        what: "edit and hook point",
        left: format!("the edit has width {given}"),
        right: format!("{} has width {width}", edit.at),
        remedy: "use a vector or dictionary made for this model and hook point".into(),
    })
}
