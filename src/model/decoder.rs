//! The one forward pass: embed → blocks → final norm → unembed.
//!
//! ```text
//! x = W_E[tokens] · multiplier (→ project in) (+ W_pos)
//! each block:  x += Attn(norm(x));  x += MLP(norm(x))          [`super::config::BlockLayout`] has the variants
//! logits = cap(norm(x) (→ project out) W_U (+ b_U) / divisor)
//! ```
//!
//! It stops after the last value that the plan asks for. When the weights are variables every operation keeps its
//! gradient, so the same code trains the built-in model.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use crate::base::{Context, Error, Result};
use crate::ops::threads;

use super::block::Block;
use super::config::{ModelConfig, Position};
use super::hook::{HookPoint, Site};
use super::kv_cache::KvCache;
use super::linear::{Linear, scaled};
use super::norm::{Norm, NormPoints};
use super::pass::Pass;
use super::plain;
use super::plan::{HookPlan, ResolvedPlan, Stop};
use super::tap::Tap;

/// What a forward pass produced.
#[derive(Debug, Clone)]
pub struct Run {
    /// `[b, s, v]` in f32, when the plan asked for logits.
    pub logits: Option<Tensor>,
    /// The captured values, after edits, in the number type of the residual stream.
    pub captures: BTreeMap<HookPoint, Tensor>,
}

impl Run {
    /// The runs of consecutive sequences as that of all of them.
    fn joined(runs: Vec<Self>) -> Result<Self> {
        let join = |parts: Vec<&Tensor>| Tensor::cat(&parts, 0);
        let logits: Vec<&Tensor> = runs.iter().filter_map(|run| run.logits.as_ref()).collect();
        let points: Vec<HookPoint> = runs.first().map(|run| run.captures.keys().copied().collect()).unwrap_or_default();
        let capture = |point| -> Result<_> {
            let parts = runs.iter().filter_map(|run| run.captures.get(&point)).collect();
            Ok((point, join(parts)?))
        };
        Ok(Self {
            logits: if logits.is_empty() { None } else { Some(join(logits)?) },
            captures: points.into_iter().map(capture).collect::<Result<_>>()?,
        })
    }

    /// The captured values at `point`.
    ///
    /// # Errors
    /// `Unsupported` when the plan did not capture the point.
    pub fn captured(&self, point: HookPoint) -> Result<&Tensor> {
        self.captures.get(&point).ok_or_else(|| Error::Unsupported {
            what: format!("reading {point}"),
            why: "the plan did not capture it".into(),
            remedy: "add the point to the plan".into(),
        })
    }

    /// The logits.
    ///
    /// # Errors
    /// `Unsupported` when the plan did not ask for logits.
    pub fn logits(&self) -> Result<&Tensor> {
        self.logits.as_ref().ok_or_else(|| Error::Unsupported {
            what: "reading logits".into(),
            why: "the plan did not ask for them".into(),
            remedy: "build the plan with logits".into(),
        })
    }
}

/// Rows that one thread takes through all layers: a panel of weights serves them all, and they fit its cache.
const ROWS_AT_ONCE: usize = 256;

/// A decoder with its weights.
#[derive(Debug, Clone)]
pub struct Model {
    pub(super) config: ModelConfig,
    pub(super) embed: Tensor,
    /// From the width of the embedding to that of the stream, where they differ.
    pub(super) project_in: Option<Linear>,
    pub(super) pos_embed: Option<Tensor>,
    pub(super) blocks: Vec<Block>,
    pub(super) ln_final: Option<Norm>,
    /// From the width of the stream to that of the embedding, where they differ.
    pub(super) project_out: Option<Linear>,
    /// Absent, as later blocks are, in models opened for plans that never reach it.
    pub(super) unembed: Option<Linear>,
    /// The last part that was opened.
    pub(super) last: Stop,
    pub(super) dtype: DType,
}

impl Model {
    /// The model's shape.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The device the weights are on.
    pub fn device(&self) -> &Device {
        self.embed.device()
    }

    /// The number type that the weights count as: f32 weights whose values are all bf16's are held as such.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The unembedding `W_U` `[d, v]`, the projection before it included.
    ///
    /// # Errors
    /// `Unsupported` when the model was opened without it; when multiplying with that projection fails.
    pub fn unembedding(&self) -> Result<Tensor> {
        let unembed = self.head()?.weight(self.dtype())?;
        Ok(match &self.project_out {
            Some(project) => project.weight(self.dtype())?.matmul(&unembed)?,
            None => unembed,
        })
    }

    pub(super) fn head(&self) -> Result<&Linear> {
        self.unembed.as_ref().ok_or_else(opened_for_less)
    }

    /// Makes the `[b, s]` input of a forward pass.
    ///
    /// # Errors
    /// `Mismatch` when a token is outside the vocabulary; `Tensor` when rows differ in length.
    pub fn tokens<S: AsRef<[u32]>>(&self, sequences: &[S]) -> Result<Tensor> {
        let length = sequences.first().map_or(0, |s| s.as_ref().len());
        let flat: Vec<u32> = sequences.iter().flat_map(|s| s.as_ref().iter().copied()).collect();
        if let Some(&token) = flat.iter().find(|&&t| t as usize >= self.config.vocab_size) {
            return Err(Error::Mismatch {
                what: "token and model",
                left: format!("token id {token}"),
                right: format!("a vocabulary of {}", self.config.vocab_size),
                remedy: "use the tokenizer that belongs to the model".into(),
            });
        }
        Tensor::from_vec(flat, (sequences.len(), length), self.device()).during(|| "making the token batch".into())
    }

    /// Runs `tokens` `[b, s]` through the model.
    ///
    /// # Errors
    /// When the plan names points the model lacks, when the sequence is empty or longer than the context, or when
    /// the device runs out of memory.
    pub fn forward(&self, tokens: &Tensor, plan: &HookPlan) -> Result<Run> {
        let plan = plan.resolve(&self.config)?;
        let (b, s) = tokens.dims2()?;
        self.check(&plan, 0, s)?;
        let pass = self.pass(0, s)?;
        self.shared_out(b, s, plan.edits.is_empty(), |first, n| {
            self.run(&tokens.narrow(0, first, n)?, &pass, None, Tap::new(&plan, 0, 0))
        })
    }

    /// Calls `part(first, n)` for all `b` sequences of `s` positions. On the CPU a few sequences at a time, which may be
    /// taken `apart`, go through all layers on one thread: what they compute stays in its cache, and threads never wait
    /// for each other.
    pub(super) fn shared_out(
        &self,
        b: usize,
        s: usize,
        apart: bool,
        part: impl Fn(usize, usize) -> Result<Run> + Sync,
    ) -> Result<Run> {
        let together = ROWS_AT_ONCE.div_ceil(s);
        if b <= together || !apart || !self.device().is_cpu() || self.embed.track_op() {
            return threads::in_pool(|| part(0, b));
        }
        let starts: Vec<usize> = (0..b).step_by(together).collect();
        let runs = starts.into_par_iter().map(|first| threads::on_this_thread(|| part(first, together.min(b - first))));
        Run::joined(runs.collect::<Result<_>>()?)
    }

    pub(super) fn pass(&self, offset: usize, s: usize) -> Result<Pass> {
        Pass::new(&self.config, offset, s, self.activation_dtype(), self.device())
    }

    /// The number type of the stream: that of the weights, but f32 beside bf16 weights on the CPU, where our kernels
    /// round only what enters a product.
    pub(super) fn activation_dtype(&self) -> DType {
        if self.dtype() == DType::BF16 && self.device().is_cpu() { DType::F32 } else { self.dtype() }
    }

    /// As [`Model::forward`] for the positions after those in `cache`, which it extends. Logits are those of the
    /// last position only, `[b, 1, v]`.
    ///
    /// # Errors
    /// As [`Model::forward`].
    pub fn step(&self, tokens: &Tensor, plan: &ResolvedPlan, cache: &mut KvCache) -> Result<Run> {
        self.check(plan, cache.len(), tokens.dims2()?.1)?;
        let (tokens, again) = self.with_outdated(tokens, cache)?;
        let pass = self.pass(cache.len(), tokens.dim(1)?)?;
        let tap = Tap::new(plan, cache.len(), again);
        threads::in_pool(|| self.run(&tokens, &pass, Some(cache), tap))
    }

    /// A pass without a cache unembeds every position, one with a cache the last.
    fn run(&self, tokens: &Tensor, pass: &Pass, mut cache: Option<&mut KvCache>, mut tap: Tap<'_>) -> Result<Run> {
        let offset = cache.as_ref().map_or(0, |c| c.len());
        let last_only = cache.is_some();
        let x = self.embed_tokens(tokens, offset, &mut tap)?;
        if tap.stop() == Stop::Embedding {
            return Ok(Run { logits: None, captures: tap.into_captures() });
        }
        let x = self.blocks_from(0, x, pass, cache.as_deref_mut(), &mut tap)?;
        if let Some(cache) = cache {
            cache.advance(tokens)?;
        }
        self.finish(x, last_only, tap)
    }

    /// Blocks `first..` on the stream that enters the first of them; `None` when the plan ends inside one.
    pub(super) fn blocks_from(
        &self,
        first: usize,
        x: Tensor,
        pass: &Pass,
        mut cache: Option<&mut KvCache>,
        tap: &mut Tap<'_>,
    ) -> Result<Option<Tensor>> {
        let mut x = Some(x);
        for block in self.blocks.iter().skip(first) {
            let Some(input) = x else { break };
            x = block.forward(input, pass, cache.as_deref_mut(), tap)?;
        }
        Ok(x)
    }

    /// The run of a pass whose blocks are done.
    pub(super) fn finish(&self, x: Option<Tensor>, last_only: bool, mut tap: Tap<'_>) -> Result<Run> {
        let logits = match x {
            Some(x) if tap.stop() >= Stop::FinalNorm => self.unembed(&x, last_only, &mut tap)?,
            _ => None,
        };
        Ok(Run { logits, captures: tap.into_captures() })
    }

    /// `tokens`, after those of the cache where the longer sequence turns them anew, and how many these are. The cache
    /// is empty then.
    fn with_outdated(&self, tokens: &Tensor, cache: &mut KvCache) -> Result<(Tensor, usize)> {
        let Position::Rotary { rotations, .. } = &self.config.position else {
            return Ok((tokens.clone(), 0));
        };
        let (before, after) = (cache.len(), cache.len() + tokens.dim(1)?);
        if before == 0 || !rotations.iter().any(|rotary| rotary.changes_between(before, after)) {
            return Ok((tokens.clone(), 0));
        }
        Ok(match cache.restart() {
            Some(earlier) => (Tensor::cat(&[&earlier, tokens], 1)?, before),
            None => (tokens.clone(), 0),
        })
    }

    fn embed_tokens(&self, tokens: &Tensor, offset: usize, tap: &mut Tap<'_>) -> Result<Tensor> {
        let tokens = tap.at(HookPoint::global(Site::Tokens), tokens.clone())?;
        let (b, s) = tokens.dims2()?;
        let x = self.embed.index_select(&tokens.flatten_all()?, 0)?.reshape((b, s, ()))?;
        let x = x.to_dtype(self.activation_dtype())?;
        // candle rounds the factor to the number type of the stream, as Gemma does.
        let x = scaled(x, self.config.embedding.multiplier)?;
        let x = match &self.project_in {
            Some(project) => project.forward(&x)?,
            None => x,
        };
        let x = tap.at(HookPoint::global(Site::Embed), x)?;
        let (Some(pos_embed), Position::Learned { offset: first }) = (&self.pos_embed, &self.config.position) else {
            return Ok(x);
        };
        let positions = pos_embed.narrow(0, first + offset, s)?.unsqueeze(0)?.broadcast_as(x.shape())?.contiguous()?;
        let positions = tap.at(HookPoint::global(Site::PosEmbed), positions)?;
        plain::add(&x, &positions)
    }

    pub(super) fn unembed(&self, x: &Tensor, last_only: bool, tap: &mut Tap<'_>) -> Result<Option<Tensor>> {
        let at = HookPoint::global;
        let x = if last_only {
            let s = x.dim(1)?;
            tap.only_last(s);
            x.narrow(1, s - 1, 1)?
        } else {
            x.clone()
        };
        let points = NormPoints { scale: at(Site::LnFinalScale), normalized: at(Site::LnFinalNormalized) };
        let x = match &self.ln_final {
            Some(norm) => norm.forward(&x, tap, points)?,
            None => x,
        };
        let x = tap.at(at(Site::UnembedIn), x)?;
        if tap.stop() < Stop::Never {
            return Ok(None);
        }
        let x = match &self.project_out {
            Some(project) => project.forward(&x)?,
            None => x,
        };
        let logits = tap.at(at(Site::UnembedOut), self.head()?.forward(&x)?)?.to_dtype(DType::F32)?;
        let logits = scaled(logits, self.config.embedding.logit_divisor.recip())?;
        Ok(Some(match self.config.embedding.logit_soft_cap {
            Some(cap) => ((logits / cap)?.tanh()? * cap)?,
            None => logits,
        }))
    }

    /// Checks that the model has what `plan` needs, and room for `s` positions after `offset` earlier ones.
    pub(super) fn check(&self, plan: &ResolvedPlan, offset: usize, s: usize) -> Result<()> {
        let part = |stop| match stop {
            Stop::Block(layer, _) => Stop::Block(layer, Site::Embed),
            other => other,
        };
        if part(plan.stop) > part(self.last) {
            return Err(opened_for_less());
        }
        let limit = self.config.context_length;
        if s > 0 && offset + s <= limit {
            return Ok(());
        }
        Err(Error::Mismatch {
            what: "sequence and model",
            left: format!("{} tokens", offset + s),
            right: format!("a context of 1 to {limit} tokens"),
            remedy: "shorten the prompt, or generate fewer tokens".into(),
        })
    }
}

fn opened_for_less() -> Error {
    Error::Unsupported {
        what: "computing this part of the model".into(),
        why: "the model was opened for plans that never reach it".into(),
        remedy: "open the whole model".into(),
    }
}
