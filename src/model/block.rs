//! One block: attention and MLP with the norms of its layout, each addition to the stream behind its hook point.

use candle_core::Tensor;

use crate::base::Result;

use super::attention::{Attention, Inputs};
use super::config::BlockLayout;
use super::hook::{HookPoint, Site};
use super::kv_cache::KvCache;
use super::linear::scaled;
use super::mlp::Mlp;
use super::norm::{Norm, NormPoints};
use super::pass::Pass;
use super::tap::Tap;

/// The parameters of one block.
#[derive(Debug, Clone)]
pub(crate) struct Block {
    pub(super) layer: usize,
    pub(super) layout: BlockLayout,
    pub(super) ln1: Norm,
    pub(super) ln1_post: Option<Norm>,
    pub(super) attention: Attention,
    /// The same parameters as `ln1` where the layout shares them.
    pub(super) ln2: Norm,
    pub(super) ln2_post: Option<Norm>,
    pub(super) mlp: Mlp,
    /// Multiplies what attention and MLP add.
    pub(super) residual_multiplier: f64,
}

impl Block {
    /// The block's output `[b, s, d]`, or `None` when the plan ends inside it.
    pub(super) fn forward(
        &self,
        x: Tensor,
        pass: &Pass,
        cache: Option<&mut KvCache>,
        tap: &mut Tap<'_>,
    ) -> Result<Option<Tensor>> {
        let resid_pre = tap.at(self.at(Site::ResidPre), x)?;
        if tap.stops_at(self.layer, Site::ResidPre) {
            return Ok(None);
        }
        let normed = if self.layout.norms_inputs() {
            self.ln1.forward(&resid_pre, tap, self.ln1_points())?
        } else {
            resid_pre.clone()
        };
        let inputs = self.attention_inputs(normed.clone(), &resid_pre, tap)?;
        let Some(attn_out) = self.attention.forward(&inputs, pass, cache, tap)? else { return Ok(None) };
        let attn_added = self.attention_added(attn_out, tap)?;
        let stream = (&resid_pre + attn_added)?;
        let (stream, mlp_in) = if self.layout.is_parallel() {
            (stream, resid_pre)
        } else {
            let stream = match self.layout {
                BlockLayout::StreamNorm => self.ln1.forward(&stream, tap, self.ln1_points())?,
                _ => stream,
            };
            let resid_mid = tap.at(self.at(Site::ResidMid), stream)?;
            (resid_mid.clone(), resid_mid)
        };
        if tap.stops_at(self.layer, Site::ResidMid) {
            return Ok(None);
        }
        let mlp_in = self.mlp_input(mlp_in, normed, tap)?;
        if tap.stops_at(self.layer, Site::MlpHookIn) {
            return Ok(None);
        }
        let Some(mlp_out) = self.mlp.forward(&mlp_in, tap)? else { return Ok(None) };
        let resid_post = (stream + self.mlp_added(mlp_out, tap)?)?;
        let resid_post = match self.layout {
            BlockLayout::StreamNorm => self.ln2.forward(&resid_post, tap, self.ln2_points())?,
            _ => resid_post,
        };
        let resid_post = tap.at(self.at(Site::ResidPost), resid_post)?;
        Ok((!tap.stops_at(self.layer, Site::ResidPost)).then_some(resid_post))
    }

    /// `normed` for all heads, and the stream per head, normed, for every projection that the plan touches.
    fn attention_inputs(&self, normed: Tensor, resid_pre: &Tensor, tap: &mut Tap<'_>) -> Result<Inputs> {
        let (heads, kv_heads) = (self.attention.heads, self.attention.kv_heads);
        let repeat = |heads| -> Result<Tensor> {
            let (b, s, d) = resid_pre.dims3()?;
            Ok(resid_pre.unsqueeze(2)?.broadcast_as((b, s, heads, d))?.contiguous()?)
        };
        let attn_in =
            if tap.wants(self.at(Site::AttnIn)) { Some(tap.at(self.at(Site::AttnIn), repeat(heads)?)?) } else { None };
        let mut split = |site, heads| -> Result<Option<Tensor>> {
            let point = self.at(site);
            let x = match &attn_in {
                Some(attn_in) => attn_in.clone(),
                None if tap.wants(point) => repeat(heads)?,
                None => return Ok(None),
            };
            let x = tap.at(point, x)?;
            let normed = self.layout.norms_inputs();
            Ok(Some(if normed { self.ln1.forward_per_head(&x, tap, self.ln1_points())? } else { x }))
        };
        let (q, k) = (split(Site::QInput, heads)?, split(Site::KInput, kv_heads)?);
        Ok(Inputs { whole: normed, q, k, v: split(Site::VInput, kv_heads)? })
    }

    /// What attention adds to the stream, from its raw output.
    fn attention_added(&self, out: Tensor, tap: &mut Tap<'_>) -> Result<Tensor> {
        let points = NormPoints::block(self.layer, Site::Ln1PostScale, Site::Ln1PostNormalized);
        let out = match &self.ln1_post {
            Some(norm) => norm.forward(&out, tap, points)?,
            None => out,
        };
        let out = tap.at(self.at(Site::AttnOut), out)?;
        let added = match self.layout {
            BlockLayout::OutputNorm => self.ln1.forward(&out, tap, self.ln1_points())?,
            _ => out,
        };
        tap.at(self.at(Site::AttnAdded), scaled(added, self.residual_multiplier)?)
    }

    /// What the MLP reads, from the stream that its branch starts at. A norm shared with attention, whose result is
    /// `normed`, is computed again only when hooks could tell the two apart.
    fn mlp_input(&self, stream: Tensor, normed: Tensor, tap: &mut Tap<'_>) -> Result<Tensor> {
        let apart = [Site::Ln1Scale, Site::Ln1Normalized, Site::MlpIn, Site::Ln2Scale, Site::Ln2Normalized];
        let shared = self.layout == BlockLayout::ParallelSharedNorm;
        let x = if shared && !apart.iter().any(|&site| tap.wants(self.at(site))) {
            normed
        } else {
            let x = tap.at(self.at(Site::MlpIn), stream)?;
            if self.layout.norms_inputs() { self.ln2.forward(&x, tap, self.ln2_points())? } else { x }
        };
        tap.at(self.at(Site::MlpHookIn), x)
    }

    /// What the MLP adds to the stream, from its raw output.
    fn mlp_added(&self, out: Tensor, tap: &mut Tap<'_>) -> Result<Tensor> {
        let points = NormPoints::block(self.layer, Site::Ln2PostScale, Site::Ln2PostNormalized);
        let out = match &self.ln2_post {
            Some(norm) => norm.forward(&out, tap, points)?,
            None => out,
        };
        let out = tap.at(self.at(Site::MlpOut), out)?;
        let added = match self.layout {
            BlockLayout::OutputNorm => self.ln2.forward(&out, tap, self.ln2_points())?,
            _ => out,
        };
        tap.at(self.at(Site::MlpAdded), scaled(added, self.residual_multiplier)?)
    }

    fn at(&self, site: Site) -> HookPoint {
        HookPoint::block(self.layer, site)
    }

    fn ln1_points(&self) -> NormPoints {
        NormPoints::block(self.layer, Site::Ln1Scale, Site::Ln1Normalized)
    }

    fn ln2_points(&self) -> NormPoints {
        NormPoints::block(self.layer, Site::Ln2Scale, Site::Ln2Normalized)
    }
}
