//! What must hold between hook points of one pass, and between passes, in every family.

use candle_core::{D, Device, Tensor};
use mechinterp::model::config::{BlockLayout, Norm};
use mechinterp::model::generate::{GenerateSettings, generate};
use mechinterp::model::{Edit, EditOp, HookPlan, HookPoint, KvCache, Model, ModelConfig, Positions, Run, Site};

use crate::close::Close;
use crate::golden::{Golden, names, open, open_for};

/// One block of a pass that captured everything.
struct Block<'a> {
    run: &'a Run,
    config: &'a ModelConfig,
    layer: usize,
    name: String,
}

impl Block<'_> {
    fn at(&self, site: Site) -> &Tensor {
        self.run.captured(HookPoint::block(self.layer, site)).unwrap()
    }

    fn has(&self, site: Site) -> bool {
        HookPoint::block(self.layer, site).check(self.config).is_ok()
    }

    fn assert(&self, what: &str, left: &Tensor, right: &Tensor) {
        Close(2e-6).assert(&format!("{} {what}", self.name), left, right);
    }
}

fn every_block(check: impl Fn(&Block<'_>)) {
    for name in names() {
        let golden = Golden::open(&name);
        let (run, config) = (golden.run_everything(), golden.model.config());
        for layer in 0..config.n_layers {
            check(&Block { run: &run, config, layer, name: format!("{name} layer {layer}") });
        }
    }
}

#[test]
fn every_hook_point_has_its_documented_shape() {
    for name in names() {
        let golden = Golden::open(&name);
        let (run, config) = (golden.run_everything(), golden.model.config());
        let (b, s) = golden.tokens.dims2().unwrap();
        for point in HookPoint::all(config) {
            assert_eq!(run.captured(point).unwrap().dims(), point.site.shape(config, b, s, s), "{name} {point}");
        }
    }
}

#[test]
fn the_residual_stream_adds_up() {
    every_block(|block| {
        let previous = match block.layer {
            0 => {
                let embed = block.run.captured(HookPoint::global(Site::Embed)).unwrap().clone();
                match block.run.captures.get(&HookPoint::global(Site::PosEmbed)) {
                    Some(positions) => (embed + positions).unwrap(),
                    None => embed,
                }
            }
            layer => block.run.captured(HookPoint::block(layer - 1, Site::ResidPost)).unwrap().clone(),
        };
        Close(0.0).assert(&block.name, block.at(Site::ResidPre), &previous);
        let with_attention = (block.at(Site::ResidPre) + block.at(Site::AttnAdded)).unwrap();
        match block.config.layout {
            // The stream itself is normalised after each addition, so that the norm undoes the sum's size and mean.
            BlockLayout::StreamNorm => {
                block.assert(
                    "ln1 of the sum",
                    &denormalised(block, Site::Ln1Scale, Site::Ln1Normalized),
                    &centred(&with_attention),
                );
                let with_mlp = (block.at(Site::ResidMid) + block.at(Site::MlpAdded)).unwrap();
                block.assert(
                    "ln2 of the sum",
                    &denormalised(block, Site::Ln2Scale, Site::Ln2Normalized),
                    &centred(&with_mlp),
                );
            }
            layout if layout.is_parallel() => {
                assert!(!block.has(Site::ResidMid), "{}", block.name);
                let post = (with_attention + block.at(Site::MlpAdded)).unwrap();
                block.assert("resid_post", block.at(Site::ResidPost), &post);
            }
            _ => {
                block.assert("resid_mid", block.at(Site::ResidMid), &with_attention);
                let post = (block.at(Site::ResidMid) + block.at(Site::MlpAdded)).unwrap();
                block.assert("resid_post", block.at(Site::ResidPost), &post);
            }
        }
        let mlp_reads = if block.has(Site::ResidMid) { Site::ResidMid } else { Site::ResidPre };
        Close(0.0).assert(&block.name, block.at(Site::MlpIn), block.at(mlp_reads));
        let multiplier = block.config.residual_multiplier;
        if block.config.layout != BlockLayout::OutputNorm {
            for (out, added) in [(Site::AttnOut, Site::AttnAdded), (Site::MlpOut, Site::MlpAdded)] {
                block.assert("added", block.at(added), &(block.at(out) * multiplier).unwrap());
            }
        }
    });
}

#[test]
fn norms_divide_what_they_read_and_the_mlp_reads_the_norm() {
    every_block(|block| {
        let layout = block.config.layout;
        let mut norms = Vec::new();
        match layout {
            BlockLayout::StreamNorm => {} // stands after the addition: see the test above
            BlockLayout::OutputNorm => {
                norms.push((Site::Ln1Scale, Site::Ln1Normalized, Site::AttnOut));
                norms.push((Site::Ln2Scale, Site::Ln2Normalized, Site::MlpOut));
            }
            _ => {
                norms.push((Site::Ln1Scale, Site::Ln1Normalized, Site::ResidPre));
                norms.push((Site::Ln2Scale, Site::Ln2Normalized, Site::MlpIn));
            }
        }
        if layout == BlockLayout::PreAndPostNorm {
            norms.push((Site::Ln2PostScale, Site::Ln2PostNormalized, Site::MlpHookOut));
            assert_affine(block, Site::Ln1PostNormalized, Site::AttnOut);
            assert_affine(block, Site::Ln2PostNormalized, Site::MlpOut);
        }
        for (scale, normalized, read) in norms {
            let read = if block.config.norm.centres() { centred(block.at(read)) } else { block.at(read).clone() };
            block.assert(scale.name(), &denormalised(block, scale, normalized), &read);
        }
        match layout {
            BlockLayout::OutputNorm => {
                Close(0.0).assert(&block.name, block.at(Site::MlpHookIn), block.at(Site::ResidMid));
                assert_affine(block, Site::Ln1Normalized, Site::AttnAdded);
                assert_affine(block, Site::Ln2Normalized, Site::MlpAdded);
            }
            BlockLayout::StreamNorm => {
                Close(0.0).assert(&block.name, block.at(Site::MlpHookIn), block.at(Site::ResidMid));
                assert_affine(block, Site::Ln1Normalized, Site::ResidMid);
                assert_affine(block, Site::Ln2Normalized, Site::ResidPost);
            }
            _ => assert_affine(block, Site::Ln2Normalized, Site::MlpHookIn),
        }
    });
}

/// `scale · normalized`, which is what the norm read, less its mean in a layer norm.
fn denormalised(block: &Block<'_>, scale: Site, normalized: Site) -> Tensor {
    block.at(normalized).broadcast_mul(block.at(scale)).unwrap()
}

fn centred(x: &Tensor) -> Tensor {
    x.broadcast_sub(&x.mean_keepdim(D::Minus1).unwrap()).unwrap()
}

/// `after = w · normalized + b` with one `w` and `b` a channel, the same at every position.
fn assert_affine(block: &Block<'_>, normalized: Site, after: Site) {
    let rows = |site| block.at(site).flatten(0, 1).unwrap();
    let (x, y) = (rows(normalized), rows(after));
    let (dx, dy) = (centred(&x.t().unwrap()), centred(&y.t().unwrap())); // channel, position
    let sum = |t: Tensor| t.sum_keepdim(1).unwrap();
    let slope = (sum((&dx * &dy).unwrap()) / sum(dx.sqr().unwrap())).unwrap();
    let biased = matches!(block.config.norm, Norm::LayerNorm { .. });
    let fitted = if biased { dx.broadcast_mul(&slope) } else { x.t().unwrap().broadcast_mul(&slope) };
    let target = if biased { dy } else { y.t().unwrap() };
    Close(2e-5).assert(&format!("{} {} of {}", block.name, after.name(), normalized.name()), &fitted.unwrap(), &target);
}

#[test]
fn patterns_come_from_scores_and_heads_add_up() {
    every_block(|block| {
        let (scores, pattern) = (block.at(Site::AttnScores), block.at(Site::AttnPattern));
        let softmax = candle_nn::ops::softmax(scores, D::Minus1).unwrap();
        block.assert("pattern", pattern, &softmax);
        let (s, window) = (pattern.dim(2).unwrap(), block.config.windows[block.layer].unwrap_or(usize::MAX));
        for (q, row) in scores.get(0).unwrap().get(0).unwrap().to_vec2::<f32>().unwrap().iter().enumerate() {
            let seen: Vec<usize> = (0..s).filter(|&key| row[key].is_finite()).collect();
            assert_eq!(seen, (q.saturating_sub(window - 1)..=q).collect::<Vec<_>>(), "{} query {q}", block.name);
        }
        if block.config.layout != BlockLayout::PreAndPostNorm {
            // What is left of attention's output beside the heads is its bias, the same everywhere.
            let heads = block.at(Site::AttnResult).sum(2).unwrap();
            let rest = (block.at(Site::AttnOut) - &heads).unwrap();
            let bias = rest.narrow(1, 0, 1).unwrap().narrow(0, 0, 1).unwrap();
            block.assert("attn_result", &heads.broadcast_add(&bias).unwrap(), block.at(Site::AttnOut));
        }
    });
}

#[test]
fn hooked_and_unhooked_passes_agree() {
    for name in names() {
        let golden = Golden::open(&name);
        let plain = golden.model.forward(&golden.tokens, &HookPlan::new().with_logits()).unwrap();
        let hooked = golden.run_everything();
        Close(5e-6).assert(&name, hooked.logits().unwrap(), plain.logits().unwrap());
    }
}

#[test]
fn a_pass_stops_after_the_last_point_it_needs() {
    for name in names() {
        let model = open(&name);
        let tokens = model.tokens(&[[3u32, 4, 5]]).unwrap();
        let everything = HookPoint::all(model.config());
        for site in [Site::Z, Site::MlpHookOut, Site::ResidPost] {
            let last = HookPoint::block(0, site);
            // An edit with NaN above the captured point would poison the result if it were computed.
            let poison = Edit::new(HookPoint::block(1, Site::ResidPre), EditOp::Scale(f64::NAN));
            let run = model.forward(&tokens, &HookPlan::new().capture(last).edit(poison)).unwrap();
            assert!(run.logits.is_none());
            let sum = run.captured(last).unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(sum.is_finite(), "{name} {last}");
        }
        // A point by itself has the value that it has among all others.
        let plan = everything.iter().fold(HookPlan::new().with_logits(), |plan, &point| plan.capture(point));
        let all = model.forward(&tokens, &plan).unwrap();
        for &point in everything.iter().filter(|point| point.site != Site::AttnScores) {
            let run = model.forward(&tokens, &HookPlan::new().capture(point)).unwrap();
            let alone = run.captured(point).unwrap();
            Close(5e-6).assert(&format!("{name} {point}"), alone, all.captured(point).unwrap());
        }
    }
}

/// Plans without and with edits, all of which must hold for every step as for a whole pass.
fn plans(config: &ModelConfig, prompt: usize, length: usize) -> Vec<HookPlan> {
    let direction: Vec<f32> = (0..config.d_model).map(|i| if i % 3 == 0 { 4.0 } else { -1.5 }).collect();
    let direction = Tensor::new(direction, &Device::Cpu).unwrap();
    let add = || Edit::new(HookPoint::block(0, Site::ResidPost), EditOp::Add(direction.clone()));
    let rotary = HookPoint::block(1, Site::RotK).check(config).is_ok();
    let key_site = if rotary { Site::RotK } else { Site::K };
    let edits = [
        add(),
        add().positions(Positions::From(prompt)),
        add().positions(Positions::List(vec![2, length - 2])),
        Edit::new(HookPoint::block(1, key_site), EditOp::Scale(-2.0)),
        Edit::new(HookPoint::block(1, Site::Z), EditOp::Ablate).head(1),
        Edit::new(HookPoint::block(1, Site::AttnPattern), EditOp::Ablate).head(0),
    ];
    std::iter::once(HookPlan::new()).chain(edits.map(|edit| HookPlan::new().edit(edit))).collect()
}

/// Logits of the last position, `[v]`, of a whole pass.
fn last_logits(model: &Model, tokens: &[u32], plan: &HookPlan) -> Tensor {
    let run = model.forward(&model.tokens(&[tokens]).unwrap(), &plan.clone().with_logits()).unwrap();
    run.logits().unwrap().get(0).unwrap().get(tokens.len() - 1).unwrap()
}

#[test]
fn steps_with_a_cache_give_the_logits_of_whole_passes_steered_and_not() {
    const PROMPT: usize = 7;
    for name in names() {
        let golden = Golden::open(&name);
        let (model, tokens) = (&golden.model, golden.tokens.get(0).unwrap().to_vec1::<u32>().unwrap());
        // Windows and trained lengths of the checkpoints lie between 4 and 16 positions.
        let ends: Vec<usize> = [PROMPT, 8, 10].into_iter().chain(11..=tokens.len()).collect();
        let plain = last_logits(model, &tokens, &HookPlan::new());
        for (i, plan) in plans(model.config(), PROMPT, tokens.len()).iter().enumerate() {
            let resolved = plan.clone().with_logits().resolve(model.config()).unwrap();
            let (mut cache, mut start) = (KvCache::new(), 0);
            for &end in ends.iter().filter(|&&end| end <= tokens.len()) {
                let piece = model.tokens(&[&tokens[start..end]]).unwrap();
                let logits = model.step(&piece, &resolved, &mut cache).unwrap().logits.unwrap();
                let whole = last_logits(model, &tokens[..end], plan);
                Close(1e-5).assert(&format!("{name} plan {i} at {end}"), &logits, &whole);
                start = end;
            }
            assert_eq!((start, cache.len()), (tokens.len(), tokens.len()));
            let moved = Close::distance("steered", &last_logits(model, &tokens, plan), &plain);
            assert_eq!(i > 0, moved > 1e-3, "{name}: plan {i} moves logits by {moved:.1e}");
        }
    }
}

#[test]
fn greedy_generation_takes_the_most_likely_token_of_whole_passes() {
    let settings = GenerateSettings { max_new_tokens: 8, temperature: 0.0, top_p: None, seed: 0, stop_tokens: vec![] };
    for name in names() {
        let model = open(&name);
        let mut tokens = vec![7u32, 21, 9, 33, 14, 5, 30];
        let plan = plans(model.config(), tokens.len(), 15).swap_remove(2);
        let generated = generate(&model, &tokens, &plan, &settings, |_| Ok(())).unwrap();
        for token in generated {
            let likely = last_logits(&model, &tokens, &plan).argmax(0).unwrap().to_scalar::<u32>().unwrap();
            tokens.push(likely);
            assert_eq!(token, likely, "{name} at {}", tokens.len());
        }
        assert_eq!(tokens.len(), 15);
    }
}

#[test]
fn a_model_opened_for_a_plan_has_what_the_plan_needs_and_says_what_it_lacks() {
    for name in names() {
        let golden = Golden::open(&name);
        let post = HookPoint::block(0, Site::ResidPost);
        let plan = HookPlan::new().capture(post);
        let part = open_for(&name, &plan);
        let (ours, whole) =
            (part.forward(&golden.tokens, &plan).unwrap(), golden.model.forward(&golden.tokens, &plan).unwrap());
        Close(0.0).assert(&name, ours.captured(post).unwrap(), whole.captured(post).unwrap());
        let deeper = HookPlan::new().capture(HookPoint::block(1, Site::ResidPre));
        for plan in [deeper, HookPlan::new().with_logits()] {
            let error = part.forward(&golden.tokens, &plan).unwrap_err().to_string();
            assert!(error.contains("opened for plans that never reach it"), "{name}: {error}");
        }
        assert!(part.unembedding().is_err(), "{name}");
    }
}
