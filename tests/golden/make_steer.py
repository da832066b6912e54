"""What other implementations compute when a model is steered, on the tiny checkpoints of tests/golden/models.

    pip install sae-lens==6.54.12 transformer-lens==3.2.1 transformers==4.57.3
    python tests/golden/make_steer.py               # torch 2.x on a CPU; the same seeds give the same files

Writes to tests/golden/steer/:
  vectors.safetensors   a steering vector for each checkpoint
  directions.json       Neuronpedia's three methods as plain PyTorch hooks on transformers: greedy tokens
  standard/ topk/ jumprelu/   dictionaries as SAELens stores them, at blocks.1.hook_resid_post of the checkpoint gpt2
  features.json, features.safetensors   SAELens' HookedSAETransformer with features clamped, scaled, capped and
                        ablated, with and without the error term: logits [cases, s, v]; and greedy tokens
Everything is computed in float32 without a key-value cache.
"""

import json
import pathlib
import shutil

import torch
from safetensors.torch import save_file
from sae_lens import JumpReLUSAE, JumpReLUSAEConfig, StandardSAE, StandardSAEConfig, TopKSAE, TopKSAEConfig
from sae_lens.analysis.hooked_sae_transformer import HookedSAETransformer
from transformer_lens import HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights
from transformers import AutoModelForCausalLM

HERE = pathlib.Path(__file__).parent
ROOT = HERE / "steer"
PROMPT, NEW, EOS, WIDTH = [1, 7, 21, 9, 33], 16, 2, 24
HOOK = "blocks.1.hook_resid_post"


def greedy(logits_of, tokens=PROMPT):
    """The most likely tokens one after the other; no choice is close enough for rounding to turn it."""
    tokens, closest = list(tokens), float("inf")
    while len(tokens) < len(PROMPT) + NEW:
        logits = logits_of(torch.tensor([tokens]))[0, -1]
        best = logits.topk(2)
        closest = min(closest, (best.values[0] - best.values[1]).item())
        tokens.append(best.indices[0].item())
        if tokens[-1] == EOS:
            break
    return tokens[len(PROMPT) :], closest


def steered(method, v, c):
    """The change of hidden states [.., d] along v: additive, orthogonal decomposition, projection cap."""
    unit = v / v.norm()
    P = torch.outer(v, v) / v.dot(v)

    def change(h):
        if method == "simple-additive":
            return h + c * v
        if method == "orthogonal-decomp":
            return h @ (torch.eye(len(v)) - P).T + c * (h @ P.T)
        projection = h @ unit
        return h + (projection.clamp(max=c) - projection)[..., None] * unit

    return change


def blocks(model):
    return model.transformer.h if hasattr(model, "transformer") else model.model.layers


def hooked(model, hook, change):
    """Registers `change` at blocks.N.hook_resid_pre or blocks.N.hook_resid_post."""
    _, layer, site = hook.split(".")
    block = blocks(model)[int(layer)]
    if site == "hook_resid_pre":
        return block.register_forward_pre_hook(lambda m, args: (change(args[0]), *args[1:]))

    def after(m, args, output):
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    return block.register_forward_hook(after)


def load(name):
    path = HERE / "models" / name
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


def make_directions():
    vectors, cases = {}, []
    for name in ["gpt2", "llama", "gemma2", "qwen3"]:
        generator = torch.Generator().manual_seed(sum(map(ord, name)))
        model = load(name)
        v = 0.6 * torch.randn(model.config.hidden_size, generator=generator)
        logits_of = lambda tokens: model(tokens, use_cache=False).logits.float()
        plain, closest = greedy(logits_of)
        assert closest > 1e-3, name
        vectors[name] = v
        for hook in ["blocks.0.hook_resid_post", "blocks.1.hook_resid_pre", HOOK]:
            for method, strengths in {
                "simple-additive": [-6.0, 1.5, 4.0],
                "orthogonal-decomp": [0.0, -3.0, 5.0],
                "projection-cap": [-2.0, 0.3],
            }.items():
                for strength in strengths:
                    multiplier = 0.5 if strength == 4.0 else 1.0
                    handle = hooked(model, hook, steered(method, v, multiplier * strength))
                    tokens, closest = greedy(logits_of)
                    handle.remove()
                    if closest < 1e-3:
                        continue
                    case = {"model": name, "hook": hook, "method": method, "strength": strength}
                    cases.append(case | {"multiplier": multiplier, "tokens": tokens, "unsteered": plain})
    changed = sum(case["tokens"] != case["unsteered"] for case in cases)
    print(f"{len(cases)} cases along directions, {changed} of which change the text")
    save_file(vectors, ROOT / "vectors.safetensors")
    write("directions.json", {"prompt": PROMPT, "new": NEW, "cases": cases})


def write(name, content):
    head = {key: value for key, value in content.items() if key != "cases"}
    lines = ",\n".join("  " + json.dumps(case) for case in content["cases"])
    text = json.dumps(head)[:-1] + ', "cases": [\n' + lines + "\n]}\n"
    (ROOT / name).write_text(text)


def dictionaries():
    """Random dictionaries of three architectures, some features of which are active everywhere, some nowhere."""
    kinds = {
        "standard": (StandardSAE, StandardSAEConfig, {}),
        "topk": (TopKSAE, TopKSAEConfig, {"k": 5, "rescale_acts_by_decoder_norm": True}),
        "jumprelu": (JumpReLUSAE, JumpReLUSAEConfig, {}),
    }
    for seed, (name, (cls, config, settings)) in enumerate(kinds.items()):
        torch.manual_seed(seed)
        sae = cls(config(d_in=WIDTH, d_sae=40, apply_b_dec_to_input=True, **settings))
        sae.W_enc.data = 0.3 * torch.randn(WIDTH, 40)
        sae.W_dec.data = 0.4 * torch.randn(40, WIDTH)
        sae.b_enc.data = 0.5 * torch.randn(40) - 0.3
        sae.b_dec.data = 0.3 * torch.randn(WIDTH)
        if name == "jumprelu":
            sae.threshold.data = 0.2 + 0.5 * torch.rand(40)
        sae.cfg.metadata.hook_name = HOOK
        sae.cfg.metadata.prepend_bos = True
        sae.save_model(ROOT / name)
        path = ROOT / name / "cfg.json"
        path.write_text(json.dumps(json.loads(path.read_text()), indent=1) + "\n")
        yield name, cls.load_from_disk(ROOT / name).eval()


def lens_model():
    hf = load("gpt2")
    c = hf.config
    cfg = HookedTransformerConfig(
        n_layers=c.n_layer,
        d_model=c.n_embd,
        n_ctx=c.n_positions,
        n_heads=c.n_head,
        d_head=c.n_embd // c.n_head,
        d_mlp=4 * c.n_embd,
        d_vocab=c.vocab_size,
        act_fn="gelu_new",
        eps=c.layer_norm_epsilon,
        normalization_type="LN",
        device="cpu",
    )
    model = HookedSAETransformer(cfg)
    missing = model.load_state_dict(convert_gpt2_weights(hf, cfg), strict=False).missing_keys
    assert all(key.endswith(("mask", "IGNORE", "unembed.b_U")) for key in missing), missing  # GPT-2 has no b_U
    tokens = torch.tensor([PROMPT])
    assert torch.allclose(model(tokens).log_softmax(-1), hf(tokens).logits.log_softmax(-1), atol=1e-4)
    return model.eval()


OPERATIONS = {
    "clamp": lambda f, v: torch.full_like(f, v),
    "scale": lambda f, v: f * v,
    "cap": lambda f, v: f.clamp(max=v),
    "ablate": lambda f, v: torch.zeros_like(f),
}


def make_features():
    model, cases, logits = lens_model(), [], []
    with torch.no_grad():
        plain = model(torch.tensor([PROMPT]))
    for name, sae in dictionaries():
        with torch.no_grad():
            seen = model.run_with_cache(torch.tensor([PROMPT]))[1][HOOK]
            mean = sae.encode(seen)[0].mean(0)
        order = mean.argsort(descending=True).tolist()
        often, rare, silent = order[0], order[3], order[-1]
        edits = [
            [(often, "clamp", 4.0)],
            [(silent, "clamp", 6.0)],
            [(rare, "clamp", -2.0), (often, "ablate", 0.0)],
            [(often, "scale", 3.0)],
            [(often, "cap", mean[often].item() / 2), (silent, "cap", 1.0)],
            [(often, "ablate", 0.0)],
        ]
        for changes in edits:
            for error_term in [True, False]:

                def change(acts, hook):
                    acts = acts.clone()
                    for feature, op, value in changes:
                        acts[..., feature] = OPERATIONS[op](acts[..., feature], value)
                    return acts

                def logits_of(tokens):
                    with model.saes([sae], use_error_term=error_term):
                        return model.run_with_hooks(tokens, fwd_hooks=[(f"{HOOK}.hook_sae_acts_post", change)])

                found = logits_of(torch.tensor([PROMPT]))
                assert (found - plain).abs().max() > 1e-3, (name, changes)
                tokens, closest = greedy(logits_of)
                case = {"sae": name, "edits": [list(c) for c in changes], "error_term": error_term}
                cases.append(case | {"tokens": tokens if closest > 1e-3 else None})
                # Logits as transformers gives them: TransformerLens centres nothing without being asked to.
                logits.append(found[0])
    print(f"{len(cases)} cases of features, {sum(c['tokens'] is not None for c in cases)} with tokens")
    save_file({"logits": torch.stack(logits), "unsteered": plain[0].contiguous()}, ROOT / "features.safetensors")
    write("features.json", {"prompt": PROMPT, "new": NEW, "hook": HOOK, "cases": cases})


def main():
    shutil.rmtree(ROOT, ignore_errors=True)
    ROOT.mkdir()
    with torch.no_grad():
        make_directions()
        make_features()


if __name__ == "__main__":
    main()
