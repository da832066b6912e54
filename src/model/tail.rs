//! The rest of a forward pass: from the residual stream that enters a block.
//!
//! What was computed before that block is not computed again, so patching layer 20 of 24 costs a sixth of a pass.

use candle_core::Tensor;

use crate::base::{Context, Error, Result};

use super::decoder::{Model, Run};
use super::hook::{HookPoint, Scope};
use super::plan::HookPlan;
use super::tap::Tap;

impl Model {
    /// As [`Model::forward`] from block `layer` on, given `stream` `[b, s, d]`: `hook_resid_pre` of that block, or with
    /// `layer` the number of layers the last `hook_resid_post`.
    ///
    /// # Errors
    /// As [`Model::forward`]; `Unsupported` when the plan names a point before `layer`; `Mismatch` when `stream` has
    /// another width than the model's.
    pub fn forward_from(&self, layer: usize, stream: &Tensor, plan: &HookPlan) -> Result<Run> {
        let plan = plan.resolve(self.config())?;
        let (b, s, d) = stream.dims3().during(|| "continuing from a residual stream".into())?;
        self.check(&plan, 0, s)?;
        if d != self.config().d_model {
            return Err(Error::Mismatch {
                what: "residual stream and model",
                left: format!("a stream of width {d}"),
                right: format!("d_model {}", self.config().d_model),
                remedy: "continue from a stream that this model computed".into(),
            });
        }
        let before = |point: &&HookPoint| match point.site.scope() {
            Scope::Embedding => true,
            Scope::Block => point.layer.is_some_and(|own| own < layer),
            Scope::Final => false,
        };
        if let Some(point) = plan.captures.iter().chain(plan.edits.keys()).chain(&plan.relayed).find(before) {
            return Err(Error::Unsupported {
                what: format!("{point} in a pass that begins with layer {layer}"),
                why: "the point lies before it".into(),
                remedy: "begin with an earlier layer".into(),
            });
        }
        let stream = stream.to_device(self.device())?.to_dtype(self.activation_dtype())?;
        let pass = self.pass(0, s)?;
        self.shared_out(b, s, plan.edits.is_empty(), |first, n| {
            let mut tap = Tap::new(&plan, 0, 0);
            let x = self.blocks_from(layer, stream.narrow(0, first, n)?, &pass, None, &mut tap)?;
            self.finish(x, false, tap)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tests::{far, open};
    use crate::model::{Edit, EditOp, Site};

    #[test]
    fn a_pass_that_begins_inside_ends_as_the_whole_one() {
        for name in ["llama", "gpt2", "gemma2", "gpt_neox", "olmo2", "opt", "falcon-alibi"] {
            let model = open(name);
            let layers = model.config().n_layers;
            let rows: Vec<[u32; 7]> = (0..80).map(|i| [3, 9, 4 + i % 30, 17, 8, 30, 5 + i % 20]).collect();
            let tokens = model.tokens(&rows).unwrap();
            let streams = (0..layers).map(|layer| HookPoint::block(layer, Site::ResidPre));
            let last = HookPoint::block(layers - 1, Site::ResidPost);
            let plan = streams.fold(HookPlan::new().with_logits().capture(last), HookPlan::capture);
            let run = model.forward(&tokens, &plan).unwrap();
            for layer in 0..=layers {
                let stream = if layer == layers { last } else { HookPoint::block(layer, Site::ResidPre) };
                let stream = run.captured(stream).unwrap();
                let rest = model.forward_from(layer, stream, &HookPlan::new().with_logits()).unwrap();
                let off = far(rest.logits().unwrap(), run.logits().unwrap());
                assert!(off < 2e-5, "{name} from layer {layer}: off by {off}");
            }
        }
    }

    #[test]
    fn edits_apply_and_points_before_the_beginning_are_errors() {
        let model = open("llama");
        let pre = HookPoint::block(1, Site::ResidPre);
        let tokens = model.tokens(&[[3u32, 9, 4]]).unwrap();
        let run = model.forward(&tokens, &HookPlan::new().with_logits().capture(pre)).unwrap();
        let edit = |layer| Edit::new(HookPoint::block(layer, Site::MlpOut), EditOp::Ablate);
        let whole = model.forward(&tokens, &HookPlan::new().with_logits().edit(edit(1))).unwrap();
        let stream = run.captured(pre).unwrap();
        let rest = model.forward_from(1, stream, &HookPlan::new().with_logits().edit(edit(1))).unwrap();
        assert!(far(rest.logits().unwrap(), whole.logits().unwrap()) < 2e-5);
        assert!(far(rest.logits().unwrap(), run.logits().unwrap()) > 1e-2, "the edit does something");
        let error = model.forward_from(1, stream, &HookPlan::new().edit(edit(0))).unwrap_err().to_string();
        assert!(error.contains("blocks.0.hook_mlp_out") && error.contains("earlier layer"), "{error}");
    }
}
