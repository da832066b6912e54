//! The model with transcoders in place of its layers' outputs, in one forward pass: an edit at each input hook encodes
//! what arrives there, one at each output hook puts in what the codes so far amount to.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Tensor};

use crate::base::{Context, Error, Result};
use crate::dictionary::{SparseCodes, TranscoderSet};
use crate::model::{Edit, EditOp, HookPlan, HookPoint, Model, Rewrite};

/// Rows of every layer's input and output.
type Activations = (Vec<Vec<f32>>, Vec<Vec<f32>>);

/// What is changed in a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// One layer is replaced by its transcoder.
    Replace(usize),
    /// All are.
    ReplaceAll,
    /// One layer is replaced by its mean.
    Ablate(usize),
    /// All are.
    AblateAll,
}

/// A model and its transcoders.
pub(super) struct Passes<'a> {
    pub(super) set: Arc<TranscoderSet>,
    pub(super) model: &'a Model,
}

/// What a pass has computed so far.
#[derive(Debug)]
struct Pass {
    set: Arc<TranscoderSet>,
    /// Which positions of the batch count, `[sequences · positions]`.
    kept: Vec<bool>,
    found: Mutex<Found>,
}

#[derive(Debug, Default)]
struct Found {
    /// Codes of the layers so far.
    codes: Vec<SparseCodes>,
    /// Rows at the input of the last of them.
    input: Vec<f32>,
}

impl Passes<'_> {
    fn points(&self, layer: usize) -> (HookPoint, HookPoint) {
        let config = self.set.config();
        (HookPoint::block(layer, config.input), HookPoint::block(layer, config.output))
    }

    /// Rows of every layer's input and output that count, `[n, d]` each.
    pub(super) fn activations(&self, sequences: &[Vec<u32>], kept: &[Vec<bool>]) -> Result<Activations> {
        let layers = self.set.config().n_layers;
        let plan = (0..layers).fold(HookPlan::new(), |plan, layer| {
            let (input, output) = self.points(layer);
            plan.capture(input).capture(output)
        });
        let tokens: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
        let run = self.model.forward(&self.model.tokens(&tokens)?, &plan)?;
        let kept: Vec<bool> = kept.concat();
        let rows = |point: HookPoint| {
            let captured = run.captured(point)?;
            let width = self.set.config().d_model;
            Ok(select(&values(captured).during(|| format!("reading {point}"))?, width, &kept))
        };
        let inputs = (0..layers).map(|layer| rows(self.points(layer).0)).collect::<Result<_>>()?;
        let outputs = (0..layers).map(|layer| rows(self.points(layer).1)).collect::<Result<_>>()?;
        Ok((inputs, outputs))
    }

    /// Logits of the positions that count, `[n, v]`, under a change; `means` are those of the layers' outputs.
    pub(super) fn logits(
        &self,
        sequences: &[Vec<u32>],
        kept: &[Vec<bool>],
        change: Option<Change>,
        means: &[Vec<f32>],
    ) -> Result<Vec<f32>> {
        let pass = Arc::new(Pass { set: Arc::clone(&self.set), kept: kept.concat(), found: Mutex::default() });
        let layers = self.set.config().n_layers;
        let mut plan = HookPlan::new().with_logits();
        let (replaced, ablated) = match change {
            None => (0..0, 0..0),
            Some(Change::Replace(layer)) => (layer..layer + 1, 0..0),
            Some(Change::ReplaceAll) => (0..layers, 0..0),
            Some(Change::Ablate(layer)) => (0..0, layer..layer + 1),
            Some(Change::AblateAll) => (0..0, 0..layers),
        };
        for layer in 0..replaced.end {
            let (input, output) = self.points(layer);
            // Layers whose features do not reach a replaced one need not be encoded.
            if replaced.clone().any(|to| self.set.writes_to(layer).contains(&to)) {
                plan =
                    plan.edit(Edit::new(input, EditOp::Rewrite(Arc::new(Encode { pass: Arc::clone(&pass), layer }))));
            }
            if replaced.contains(&layer) {
                plan =
                    plan.edit(Edit::new(output, EditOp::Rewrite(Arc::new(Decode { pass: Arc::clone(&pass), layer }))));
            }
        }
        for layer in ablated {
            let row = means.get(layer).cloned().unwrap_or_default();
            let put = Put { pass: Arc::clone(&pass), row };
            plan = plan.edit(Edit::new(self.points(layer).1, EditOp::Rewrite(Arc::new(put))));
        }
        let tokens: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
        let run = self.model.forward(&self.model.tokens(&tokens)?, &plan)?;
        let logits = values(run.logits()?).during(|| "reading logits".into())?;
        Ok(select(&logits, self.model.config().vocab_size, &pass.kept))
    }
}

/// The numbers of a tensor on this machine.
fn values(x: &Tensor) -> candle_core::Result<Vec<f32>> {
    x.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}

/// The rows that count.
fn select(rows: &[f32], width: usize, kept: &[bool]) -> Vec<f32> {
    rows.chunks_exact(width.max(1)).zip(kept).filter(|(_, kept)| **kept).flat_map(|(row, _)| row).copied().collect()
}

/// `x` with `new` in the rows that count.
fn replaced(x: &Tensor, kept: &[bool], new: &[f32]) -> candle_core::Result<Tensor> {
    let (n, d) = x.dims2()?;
    let mut rows = values(x)?;
    let places = rows.chunks_exact_mut(d.max(1)).zip(kept).filter(|(_, kept)| **kept);
    places.zip(new.chunks_exact(d.max(1))).for_each(|((row, _), new)| row.copy_from_slice(new));
    Tensor::from_vec(rows, (n, d), x.device())?.to_dtype(x.dtype())
}

/// Encodes what arrives, and leaves it as it is.
struct Encode {
    pass: Arc<Pass>,
    layer: usize,
}

/// Puts in what the codes amount to.
struct Decode {
    pass: Arc<Pass>,
    layer: usize,
}

/// Puts in one row everywhere.
struct Put {
    pass: Arc<Pass>,
    row: Vec<f32>,
}

impl Rewrite for Encode {
    fn width(&self) -> usize {
        self.pass.set.config().d_model
    }

    fn describe(&self) -> String {
        format!("encode layer {} with {}", self.layer, self.pass.set)
    }

    fn rewrite(&self, x: &Tensor) -> Result<Tensor> {
        let rows = select(&values(x).during(|| self.describe())?, self.width(), &self.pass.kept);
        let codes = self.pass.set.encode(self.layer, &rows)?;
        let mut found = self.pass.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.codes.resize(self.layer, SparseCodes::default());
        found.codes.push(codes);
        found.input = rows;
        Ok(x.clone())
    }
}

impl Rewrite for Decode {
    fn width(&self) -> usize {
        self.pass.set.config().d_model
    }

    fn describe(&self) -> String {
        format!("replace layer {} by {}", self.layer, self.pass.set)
    }

    fn rewrite(&self, x: &Tensor) -> Result<Tensor> {
        let made = {
            let found = self.pass.found.lock().unwrap_or_else(PoisonError::into_inner);
            if found.codes.len() != self.layer + 1 {
                return Err(Error::Unsupported {
                    what: self.describe(),
                    why: "its output hook fires before its input hook".into(),
                    remedy: "use a set that reads a hook before the one it writes".into(),
                });
            }
            self.pass.set.reconstruct_layer(self.layer, &found.codes, &found.input)?
        };
        replaced(x, &self.pass.kept, &made).during(|| self.describe())
    }
}

impl Rewrite for Put {
    fn width(&self) -> usize {
        self.row.len()
    }

    fn describe(&self) -> String {
        "put in the mean".into()
    }

    fn rewrite(&self, x: &Tensor) -> Result<Tensor> {
        let count = self.pass.kept.iter().filter(|kept| **kept).count();
        replaced(x, &self.pass.kept, &self.row.repeat(count)).during(|| self.describe())
    }
}

macro_rules! described {
    ($($kind:ty),*) => {$(
        impl fmt::Debug for $kind {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.describe())
            }
        }
    )*};
}
described!(Encode, Decode, Put);
