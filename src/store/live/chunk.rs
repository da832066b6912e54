//! Rows of some sequences, as the model computes them.

use candle_core::{DType, Device};
use rayon::prelude::*;

use super::order::{Deal, SPREAD};
use super::text::Text;
use crate::base::{Context, DtypeChoice, Error, Result};
use crate::data::Sequence;
use crate::model::{HookPlan, HookPoint, Model};
use crate::ops::squared_norm;
use crate::store::values::Values;

/// The hooks of a model that rows are read from.
#[derive(Debug, Clone)]
pub(super) struct Hooks {
    pub(super) points: Vec<HookPoint>,
    pub(super) widths: Vec<usize>,
    pub(super) dtype: DtypeChoice,
    /// Above this norm a row is left out, for each hook.
    pub(super) limits: Vec<Option<f32>>,
}

/// Values of rows of every hook, with places for rows that were left out.
#[derive(Debug)]
pub(super) struct Rows {
    /// One tensor a hook, `[rows, width]`.
    pub(super) values: Vec<Values>,
    /// The rows without values, ascending.
    pub(super) left_out: Vec<u32>,
    /// How many rows there are.
    pub(super) count: usize,
}

impl Rows {
    /// `rows` rows of zeros.
    pub(super) fn zeros(hooks: &Hooks, rows: usize) -> Self {
        let values = hooks.widths.iter().map(|width| Values::zeros(hooks.dtype, rows * width)).collect();
        Self { values, left_out: Vec::new(), count: rows }
    }

    /// Whether a row has values.
    pub(super) fn has(&self, row: usize) -> bool {
        self.left_out.binary_search(&(row as u32)).is_err()
    }
}

/// Some sequences run through the model: norms and values of every row.
pub(super) struct Computed {
    /// One a hook, `[rows, width]`.
    values: Vec<Vec<f32>>,
    /// Whether the rules keep a row.
    pub(super) fates: Vec<Kept>,
}

/// What becomes of a computed row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    Yes,
    /// Its token is not wanted.
    NotItsToken,
    /// A norm is too large.
    NotItsNorm,
}

impl Hooks {
    /// What the model's forward pass has to give.
    pub(super) fn plan(&self) -> HookPlan {
        self.points.iter().fold(HookPlan::new(), |plan, &hook| plan.capture(hook))
    }

    /// Runs `sequences`, of which the first has the number `first`, at once.
    pub(super) fn compute(&self, model: &Model, text: &Text, sequences: &[Sequence], first: u64) -> Result<Computed> {
        let tokens: Vec<&[u32]> = sequences.iter().map(|s| s.tokens.as_slice()).collect();
        let run = model.forward(&model.tokens(&tokens)?, &self.plan())?;
        let mut fates: Vec<Kept> = tokens
            .iter()
            .flat_map(|tokens| text.kept(tokens))
            .map(|kept| if kept { Kept::Yes } else { Kept::NotItsToken })
            .collect();
        let mut values = Vec::with_capacity(self.points.len());
        for ((&point, &width), &limit) in self.points.iter().zip(&self.widths).zip(&self.limits) {
            let captured = run.captured(point)?.to_dtype(DType::F32).and_then(|t| t.to_device(&Device::Cpu));
            let captured: Vec<f32> =
                captured.and_then(|t| t.flatten_all()?.to_vec1()).during(|| format!("fetching {point}"))?;
            let norms: Vec<f32> = captured.par_chunks_exact(width).map(|row| squared_norm(row).sqrt()).collect();
            for (row, (fate, norm)) in fates.iter_mut().zip(norms).enumerate() {
                if *fate == Kept::NotItsToken {
                    continue;
                }
                if !norm.is_finite() {
                    return Err(not_finite(point, first, row, text.pack.context_size));
                }
                if limit.is_some_and(|limit| norm > limit) {
                    *fate = Kept::NotItsNorm;
                }
            }
            values.push(captured);
        }
        Ok(Computed { values, fates })
    }

    /// Norms of the rows of hook number `hook` whose tokens are wanted.
    pub(super) fn norms(&self, computed: &Computed, hook: usize) -> Vec<f32> {
        let rows = computed.values[hook].chunks_exact(self.widths[hook]).zip(&computed.fates);
        rows.filter(|(_, fate)| **fate != Kept::NotItsToken).map(|(row, _)| squared_norm(row).sqrt()).collect()
    }

    /// Puts row `from` of `computed` into row `to` of `rows`.
    pub(super) fn put(&self, computed: &Computed, from: usize, rows: &mut Rows, to: usize) -> Result<()> {
        for (hook, &width) in self.widths.iter().enumerate() {
            if !rows.values[hook].set(to * width, self.row(computed, hook, from)) {
                return Err(self.out_of_range(hook));
            }
        }
        Ok(())
    }

    /// Puts row `from` of `computed` behind `values`, one tensor a hook.
    pub(super) fn append(&self, computed: &Computed, from: usize, values: &mut [Values]) -> Result<()> {
        for (hook, values) in values.iter_mut().enumerate() {
            values.extend(self.row(computed, hook, from)).map_err(|_| self.out_of_range(hook))?;
        }
        Ok(())
    }

    pub(super) fn row<'a>(&self, computed: &'a Computed, hook: usize, row: usize) -> &'a [f32] {
        let width = self.widths[hook];
        &computed.values[hook][row * width..][..width]
    }

    fn out_of_range(&self, hook: usize) -> Error {
        Error::NonFinite {
            what: format!("a row of {}, kept as {},", self.points[hook], self.dtype),
            count: 1,
            at: "a value beyond the range of that number type".into(),
            remedy: "use --buffer-dtype f32, which takes twice the memory, or bf16".into(),
        }
    }
}

/// The rows of a chunk, dealt into parts while they are computed.
pub(super) struct Dealt<'a> {
    hooks: &'a Hooks,
    deal: Deal,
    parts: Vec<Rows>,
    /// Rows dealt so far.
    next: u64,
}

impl<'a> Dealt<'a> {
    pub(super) fn new(hooks: &'a Hooks, deal: Deal) -> Self {
        let parts = deal.parts().map(|rows| Rows::zeros(hooks, rows)).into();
        Self { hooks, deal, parts, next: 0 }
    }

    /// Deals the wanted rows of `computed`.
    pub(super) fn add(&mut self, computed: &Computed) -> Result<()> {
        for (row, fate) in computed.fates.iter().enumerate().filter(|(_, fate)| **fate != Kept::NotItsToken) {
            let (part, place) = self.deal.place(self.next);
            self.next += 1;
            if *fate == Kept::NotItsNorm {
                self.parts[part].left_out.push(place as u32);
            } else {
                self.hooks.put(computed, row, &mut self.parts[part], place)?;
            }
        }
        Ok(())
    }

    /// The [`SPREAD`] parts.
    pub(super) fn finish(mut self) -> Vec<Rows> {
        debug_assert_eq!(self.parts.len(), SPREAD);
        self.parts.iter_mut().for_each(|part| part.left_out.sort_unstable());
        self.parts
    }
}

fn not_finite(point: HookPoint, first: u64, row: usize, context: usize) -> Error {
    Error::NonFinite {
        what: format!("the activations of {point}"),
        count: 1,
        at: format!("sequence {}, position {}", first + (row / context) as u64, row % context),
        remedy: "run the model with --model-dtype f32".into(),
    }
}
