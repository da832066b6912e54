"""Logit lens, logit attribution, patching, knock-out, path patching and head scores of TransformerLens on tiny checkpoints.

    python3 tests/golden/make_circuits.py       # transformer-lens 3.2.1, transformers 4.57.3, torch, safetensors

Writes tests/golden/circuits/NAME.safetensors for checkpoints of tests/golden/models. Weights go into a HookedTransformer
through TransformerLens' own converters, unprocessed, and its logits are held against transformers' before anything is
written. Attribution takes a second copy with the norms folded into the weights, as `logit_attrs` expects it; but folding
changes what Gemma 2 computes (its norms after attention and MLP), so there the gain of the final norm is applied here.
"""
import math, pathlib
import torch
from safetensors.torch import save_file
from transformer_lens import HookedTransformer, HookedTransformerConfig, head_detector, patching
from transformer_lens.pretrained.weight_conversions import (
    convert_gemma_weights, convert_gpt2_weights, convert_llama_weights)
from transformers import AutoModelForCausalLM

from hooked import sizes

HERE = pathlib.Path(__file__).parent
CLEAN = [3, 9, 21, 17, 8, 30, 12, 5]
CORRUPT = [3, 9, 14, 17, 25, 30, 12, 5]
TARGET, AGAINST = 7, 11
REPEATED = [1] + [20, 4, 33, 15, 28, 9] * 2


def llama(config):
    return convert_llama_weights, dict(
        act_fn="silu", n_key_value_heads=config.num_key_value_heads, normalization_type="RMS", final_rms=True,
        positional_embedding_type="rotary", rotary_base=int(config.rope_theta), rotary_adjacent_pairs=False,
        rotary_dim=config.head_dim, gated_mlp=True, eps=config.rms_norm_eps)


def gpt2(config):
    return convert_gpt2_weights, dict(act_fn="gelu_new", normalization_type="LN", eps=config.layer_norm_epsilon)


def gemma2(config):
    _, shared = llama(config)
    return convert_gemma_weights, shared | dict(
        act_fn="gelu_pytorch_tanh", use_attn_scale=True, attn_scale=math.sqrt(config.query_pre_attn_scalar),
        attn_types=["local" if kind.startswith("sliding") else "global" for kind in config.layer_types],
        window_size=config.sliding_window, use_local_attn=True, attn_scores_soft_cap=config.attn_logit_softcapping,
        output_logits_soft_cap=config.final_logit_softcapping, use_normalization_before_and_after=True)


FAMILIES = {"llama": llama, "gpt2": gpt2, "gemma2": gemma2}


def hooked(name, fold):
    """The checkpoint as a HookedTransformer, and transformers' model of it."""
    model = AutoModelForCausalLM.from_pretrained(HERE / "models" / name, dtype=torch.float32, attn_implementation="eager").eval()
    config = model.config
    convert, axes = FAMILIES[name](config)
    cfg = HookedTransformerConfig(**(sizes(config) | axes), original_architecture=type(model).__name__, dtype=torch.float32, device="cpu", seed=0)
    ours = HookedTransformer(cfg)
    state = convert(model, cfg)
    ours.load_and_process_state_dict(
        state, fold_ln=fold, center_writing_weights=False, center_unembed=False, fold_value_biases=False, refactor_factored_attn_matrices=False)
    ours.set_use_attn_result(True)
    return ours.eval(), model


def logit_lens(model, cache, out):
    names = ["blocks.0.hook_resid_pre"]
    for layer in range(model.cfg.n_layers):
        names += [f"blocks.{layer}.hook_resid_mid", f"blocks.{layer}.hook_resid_post"]
    for name in names:
        logits = model.unembed(model.ln_final(cache[name]))[0]
        cap = model.cfg.output_logits_soft_cap
        out[f"lens.{name}"] = cap * torch.tanh(logits / cap) if cap > 0 else logits


def attribution(model, tokens, out):
    """Contributions to the difference of two logits after the last position, by `logit_attrs`."""
    logits, cache = model.run_with_cache(tokens)
    pair = (torch.tensor(TARGET), torch.tensor(AGAINST))
    if model.cfg.use_normalization_before_and_after:
        direction = model.ln_final.w * (model.W_U[:, TARGET] - model.W_U[:, AGAINST])
        attrs = lambda stack: (cache.apply_ln_to_stack(stack, layer=-1, pos_slice=-1) @ direction)[:, 0]
    else:
        attrs = lambda stack: cache.logit_attrs(stack, *pair, pos_slice=-1)[:, 0]
    for kind in ("attn", "mlp"):
        stack, labels = cache.decompose_resid(layer=-1, mode=kind, incl_embeds=True, pos_slice=-1, return_labels=True)
        values = dict(zip(labels, attrs(stack)))
        out[f"attribution.{kind}"] = torch.stack([v for k, v in values.items() if "embed" not in k])
        for name in ("embed", "pos_embed"):
            if name in values:
                out[f"attribution.{name}"] = values[name][None]
    if not model.cfg.use_normalization_before_and_after:
        stack = cache.stack_head_results(layer=-1, pos_slice=-1)
        out["attribution.heads"] = attrs(stack).reshape(model.cfg.n_layers, model.cfg.n_heads)
    total = logits[0, -1, TARGET] - logits[0, -1, AGAINST]
    cap = model.cfg.output_logits_soft_cap
    if cap <= 0:
        bias = model.unembed.b_U[TARGET] - model.unembed.b_U[AGAINST]
        parts = sum(v.sum() for k, v in out.items() if k in ("attribution.attn", "attribution.mlp", "attribution.embed", "attribution.pos_embed"))
        assert (parts + bias - total).abs() < 1e-4, (parts, bias, total)
    out["attribution.total"] = total[None]


def metric(logits):
    return logits[0, -1, TARGET] - logits[0, -1, AGAINST]


def patch(model, clean, corrupt, out):
    sweeps = dict(
        resid_pre=patching.get_act_patch_resid_pre, resid_mid=patching.get_act_patch_resid_mid,
        attn_out=patching.get_act_patch_attn_out, mlp_out=patching.get_act_patch_mlp_out,
        z=patching.get_act_patch_attn_head_out_all_pos, q=patching.get_act_patch_attn_head_q_all_pos,
        k=patching.get_act_patch_attn_head_k_all_pos, v=patching.get_act_patch_attn_head_v_all_pos,
        pattern=patching.get_act_patch_attn_head_pattern_all_pos)
    _, clean_cache = model.run_with_cache(clean)
    _, corrupt_cache = model.run_with_cache(corrupt)
    for name, sweep in sweeps.items():
        out[f"denoise.{name}"] = sweep(model, corrupt, clean_cache, metric)
        out[f"noise.{name}"] = sweep(model, clean, corrupt_cache, metric)
    by_position = patching.get_act_patch_attn_head_out_by_pos(model, corrupt, clean_cache, metric)
    out["denoise.z_by_position"] = by_position.permute(0, 2, 1)  # layer, head, position
    out["metric"] = torch.stack([metric(model(clean)), metric(model(corrupt))])
    return clean_cache, corrupt_cache


def ablate(model, clean, corrupt, caches, out):
    """Zeros, and means of both prompts position by position, at every layer's MLP output and position."""
    means = {name: (caches[0][name] + caches[1][name]) / 2 for name in caches[0]}
    for kind in ("zero", "mean"):
        def run(layer, position):
            def hook(x, hook):
                x[:, position] = 0 if kind == "zero" else means[hook.name][:, position]
                return x
            return metric(model.run_with_hooks(clean, fwd_hooks=[(f"blocks.{layer}.hook_mlp_out", hook)]))
        layers, positions = range(model.cfg.n_layers), range(clean.shape[1])
        out[f"ablate.{kind}"] = torch.tensor([[run(layer, position) for position in positions] for layer in layers])


def knock_out(model, clean, out):
    """The last position may not see each other one, in each layer."""
    rows = []
    for layer in range(model.cfg.n_layers):
        def cut(scores, hook, key):
            scores[:, :, -1, key] = -torch.inf
            return scores
        name = f"blocks.{layer}.attn.hook_attn_scores"
        cells = [metric(model.run_with_hooks(clean, fwd_hooks=[(name, lambda s, hook, key=key: cut(s, hook, key))])) for key in range(clean.shape[1] - 1)]
        rows.append(torch.stack(cells))
    out["knock_out"] = torch.stack(rows)


def paths(model, clean, clean_cache, corrupt_cache, out):
    """Wang et al. 2022: every head of layer 0 to the queries of head 1.2, and to the logits; other heads frozen."""
    last = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
    for node, (receiver, head) in dict(q=("blocks.1.attn.hook_q", 2), logits=(last, None)).items():
        found = []
        for sender in range(model.cfg.n_heads):
            def freeze(z, hook):
                z[:] = clean_cache[hook.name]
                if hook.layer() == 0:
                    z[:, :, sender] = corrupt_cache[hook.name][:, :, sender]
                return z
            seen = {}
            def keep(x, hook):
                seen["x"] = x.clone()
            model.run_with_hooks(clean, fwd_hooks=[(lambda n: n.endswith("hook_z"), freeze), (receiver, keep)])
            def put(x, hook):
                if head is None:
                    return seen["x"]
                x[:, :, head] = seen["x"][:, :, head]
                return x
            found.append(metric(model.run_with_hooks(clean, fwd_hooks=[(receiver, put)])))
        out[f"path.{node}"] = torch.stack(found)


def heads(model, out):
    tokens = torch.tensor([REPEATED])
    n = (len(REPEATED) - 1) // 2
    _, cache = model.run_with_cache(tokens, remove_batch_dim=True)
    model.to_tokens = lambda seq: tokens
    for name, offset in dict(induction_head=1 - n, previous_token_head=-1, duplicate_token_head=-n).items():
        stripe = [cache["pattern", layer].diagonal(offset, dim1=-2, dim2=-1).mean(-1) for layer in range(model.cfg.n_layers)]
        out[f"heads.stripe.{name}"] = torch.stack(stripe)
        out[f"heads.share.{name}"] = head_detector.detect_head(model, "", name)
    out["heads.tokens"] = tokens[0].to(torch.int32)


def write(name):
    model, reference = hooked(name, fold=False)
    clean, corrupt = torch.tensor([CLEAN]), torch.tensor([CORRUPT])
    for tokens in (clean, corrupt):
        worst = (model(tokens) - reference(tokens).logits).abs().max()
        assert worst < 1e-4, f"{name}: TransformerLens and transformers differ by {worst}"
    out = {"clean": clean[0].to(torch.int32), "corrupt": corrupt[0].to(torch.int32), "pair": torch.tensor([TARGET, AGAINST], dtype=torch.int32)}
    _, cache = model.run_with_cache(clean)
    logit_lens(model, cache, out)
    folded = model if model.cfg.use_normalization_before_and_after else hooked(name, fold=True)[0]
    assert (folded(clean) - reference(clean).logits).abs().max() < 1e-4
    attribution(folded, clean, out)
    caches = patch(model, clean, corrupt, out)
    ablate(model, clean, corrupt, caches, out)
    knock_out(model, clean, out)
    paths(model, clean, *caches, out)
    heads(model, out)
    out = {key: (value if value.dtype == torch.int32 else value.float()).detach().contiguous().clone() for key, value in out.items()}
    path = HERE / "circuits" / f"{name}.safetensors"
    path.parent.mkdir(exist_ok=True)
    save_file(out, path)
    print(f"{name}: {path.stat().st_size // 1024} KiB, {len(out)} values")


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    for name in FAMILIES:
        write(name)
