//! Changes at one point that depend on the values at earlier points of the same pass, such as that of a transcoder's
//! feature, which is read where the MLP reads and written where it writes.

use std::fmt;

use candle_core::Tensor;

use crate::base::{Error, Result};

use super::config::ModelConfig;
use super::hook::{Axes, HookPoint};
use super::plan::{Edit, Stop};

/// A change of the residual stream's coordinates at one point, computed from values at earlier points.
///
/// The model cannot know transcoders, which are built on it; they hand their edits over behind this trait.
pub trait Relay: fmt::Debug + Send + Sync {
    /// The points it reads, each before the point it changes.
    fn reads(&self) -> &[HookPoint];

    /// Width of the vectors it changes.
    fn width(&self) -> usize;

    /// What it does, for records and errors: "ablate feature 12 of layer 3".
    fn describe(&self) -> String;

    /// The new values of `x`, shape `[b, s, width]`, same shape and number type. `read` are the values at
    /// [`Relay::reads`] after their edits, `[b, s, _]` each; the first position is `offset` of its sequence, which is not
    /// zero when a key-value cache holds the earlier ones.
    ///
    /// # Errors
    /// When the computation fails.
    fn relay(&self, x: &Tensor, read: &[&Tensor], offset: usize) -> Result<Tensor>;
}

/// Checks that `relay` can work as `edit` in a model.
pub(super) fn check(edit: &Edit, relay: &dyn Relay, config: &ModelConfig) -> Result<()> {
    let unsupported = |what: String, why: &str| Error::Unsupported {
        what,
        why: why.into(),
        remedy: "read an earlier point of the residual stream's width".into(),
    };
    let streams = |point: &HookPoint| point.layer.is_some() && point.site.axes() == Axes::Residual;
    if !streams(&edit.at) || edit.head.is_some() {
        let what = format!("a change at {} from values at other points", edit.at);
        return Err(unsupported(what, "it is made of whole vectors in the coordinates of the residual stream"));
    }
    for read in relay.reads() {
        read.check(config)?;
        if !streams(read) || fires(*read, config) >= fires(edit.at, config) {
            let what = format!("a change at {} from values at {read}", edit.at);
            return Err(unsupported(what, "the values are not there yet, or are no vectors of the residual stream"));
        }
    }
    if edit.at.site.width(config) == Some(relay.width()) {
        return Ok(());
    }
    Err(Error::Mismatch {
        what: "edit and hook point",
        left: format!("{} makes vectors of width {}", relay.describe(), relay.width()),
        right: format!("{} has width {}", edit.at, config.d_model),
        remedy: "use transcoders made for this model".into(),
    })
}

fn fires(point: HookPoint, config: &ModelConfig) -> Stop {
    Stop::Block(point.layer.unwrap_or_default(), point.site.fires_by(config.layout))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use candle_core::Device;

    use super::*;
    use crate::model::tests::{far, open};
    use crate::model::{EditOp, HookPlan, KvCache, Positions, Site};

    /// Adds twice what it reads.
    #[derive(Debug)]
    struct Twice([HookPoint; 1], usize);

    impl Relay for Twice {
        fn reads(&self) -> &[HookPoint] {
            &self.0
        }

        fn width(&self) -> usize {
            self.1
        }

        fn describe(&self) -> String {
            format!("add twice {}", self.0[0])
        }

        fn relay(&self, x: &Tensor, read: &[&Tensor], _: usize) -> Result<Tensor> {
            Ok((x + (read[0] * 2.0)?)?)
        }
    }

    #[test]
    fn a_change_follows_the_value_it_reads_also_with_a_cache() {
        for name in ["llama", "gpt2", "gpt_neox", "falcon-one-norm", "olmo2"] {
            let model = open(name);
            let width = model.config().d_model;
            let (from, to) = (HookPoint::block(0, Site::MlpHookIn), HookPoint::block(1, Site::MlpOut));
            let relay = Edit::new(to, EditOp::Relay(Arc::new(Twice([from], width)))).positions(Positions::From(2));
            let tokens = model.tokens(&[[3u32, 9, 4, 17, 8]]).unwrap();
            let read = model.forward(&tokens, &HookPlan::new().capture(from).capture(to)).unwrap();
            let touched = Tensor::new(&[0f32, 0.0, 2.0, 2.0, 2.0], &Device::Cpu).unwrap().reshape((1, 5, 1)).unwrap();
            let added = read.captured(from).unwrap().broadcast_mul(&touched).unwrap();
            let by_hand = HookPlan::new().with_logits().edit(Edit::new(to, EditOp::Add(added)));
            let by_hand = model.forward(&tokens, &by_hand).unwrap();
            let plan = HookPlan::new().with_logits().edit(relay);
            let run = model.forward(&tokens, &plan).unwrap();
            let off = far(run.logits().unwrap(), by_hand.logits().unwrap());
            assert!(off < 1e-5, "{name}: off by {off}");
            assert!(!run.captures.contains_key(&from), "what is read is not captured");

            let resolved = plan.resolve(model.config()).unwrap();
            let mut cache = KvCache::new();
            let mut last = None;
            for token in [3u32, 9, 4, 17, 8] {
                last = Some(model.step(&model.tokens(&[[token]]).unwrap(), &resolved, &mut cache).unwrap());
            }
            let last = last.unwrap();
            let whole = run.logits().unwrap().narrow(1, 4, 1).unwrap();
            assert!(far(last.logits().unwrap(), &whole) < 1e-4, "{name}: with a cache");
        }
    }

    #[test]
    fn reading_what_comes_later_is_an_error() {
        let model = open("llama");
        let point = HookPoint::block;
        for (from, to) in [
            (point(1, Site::MlpHookIn), point(0, Site::MlpOut)),
            (point(0, Site::MlpOut), point(0, Site::MlpOut)),
            (point(0, Site::MlpPost), point(0, Site::MlpOut)),
            (point(0, Site::MlpHookIn), HookPoint::global(Site::UnembedIn)),
        ] {
            let plan = HookPlan::new().edit(Edit::new(to, EditOp::Relay(Arc::new(Twice([from], 24)))));
            let error = plan.resolve(model.config()).unwrap_err().to_string();
            assert!(error.contains(&to.to_string()), "{error}");
        }
    }
}
