"""Interventions on transcoder features by circuit-tracer, on the tiny checkpoints of tests/golden/models.

    pip install circuit-tracer==0.5.0 transformer-lens==3.2.1 transformers==4.57.3
    python tests/golden/make_interventions.py       # torch 2.x on a CPU; the same seeds give the same files

Writes tests/golden/intervene/NAME.safetensors: for a per-layer set (`plt`), one with linear skips and JumpReLU (`skip`)
and a cross-layer transcoder (`clt`) their weights, and for every case what `feature_intervention` returns: logits [s, v]
and activations or pre-activations [layers, s, f].

    patterns   attention patterns of the clean run, deltas from current activations (circuit-tracer's default)
    free       nothing frozen
    direct     constrained_layers is every layer, pre-activations: what attribution predicts
    range      constrained_layers is the first layer only
    greedy     tokens that follow one after the other with nothing frozen, an open-ended intervention in force

Metadata: the hooks, and the interventions as JSON lists [layer, first position, end or null, feature, value].
"""

import json
import pathlib

import torch
from circuit_tracer.replacement_model.replacement_model_transformerlens import TransformerLensReplacementModel
from circuit_tracer.transcoder.activation_functions import JumpReLU
from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder
from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder, TranscoderSet
from safetensors.torch import save_file
from transformer_lens import HookedTransformerConfig
from transformers import AutoModelForCausalLM

from hooked import sizes

from make_circuits import FAMILIES

HERE = pathlib.Path(__file__).parent
PROMPT = [1, 9, 21, 17, 8, 30]
WIDTH, NEW = 32, 8
HOOKS = {"llama": ("mlp.hook_in", "mlp.hook_out"), "gemma2": ("ln2.hook_normalized", "hook_mlp_out")}
# layer, positions, feature; values are chosen below so that active features are pushed up, down, out and below zero.
CHOSEN = [(0, (2, None), 0), (0, (3, 4), 1), (1, (4, 5), 0), (1, (1, 3), 1), (0, (0, 1), 0)]


def configured(name):
    """A function that gives the checkpoint with a transcoder set, unprocessed."""
    model = AutoModelForCausalLM.from_pretrained(HERE / "models" / name, dtype=torch.float32, attn_implementation="eager").eval()
    config = model.config
    convert, axes = FAMILIES[name](config)
    cfg = HookedTransformerConfig(
        **(sizes(config) | axes), original_architecture=type(model).__name__, model_name=name, dtype=torch.float32, device="cpu", seed=0)

    def with_set(transcoders):
        ours = TransformerLensReplacementModel(cfg)
        ours.load_and_process_state_dict(
            convert(model, cfg), fold_ln=False, center_writing_weights=False, center_unembed=False,
            fold_value_biases=False, refactor_factored_attn_matrices=False)
        ours._configure_replacement_model(transcoders)
        off = (ours(torch.tensor(PROMPT))[0] - model(torch.tensor([PROMPT])).logits[0]).abs().max()
        assert off < 1e-4, off
        return ours.eval()

    return cfg, with_set


def rand(*shape, scale=1.0):
    return torch.randn(*shape) * scale


def per_layer(cfg, hooks, skip, out):
    d, layers = cfg.d_model, {}
    for i in range(cfg.n_layers):
        activation = JumpReLU(torch.rand(WIDTH) * 0.5) if skip else torch.relu
        t = SingleLayerTranscoder(d, WIDTH, activation, i, skip_connection=skip, device=torch.device("cpu"), dtype=torch.float32)
        weights = {
            "W_enc": rand(WIDTH, d, scale=d**-0.5), "W_dec": rand(WIDTH, d, scale=0.3), "b_enc": rand(WIDTH, scale=0.2) - 0.3,
            "b_dec": rand(d, scale=0.1)}
        if skip:
            weights["W_skip"] = rand(d, d, scale=0.1)
            out[f"skip.{i}.threshold"] = activation.threshold.data
        for key, value in weights.items():
            getattr(t, key).data = value
            out[f"{'skip' if skip else 'plt'}.{i}.{key}"] = value
        layers[i] = t
    return TranscoderSet(layers, *hooks)


def cross_layer(cfg, hooks, out):
    d, n = cfg.d_model, cfg.n_layers
    t = CrossLayerTranscoder(
        n, WIDTH, d, lazy_decoder=False, feature_input_hook=hooks[0], feature_output_hook=hooks[1],
        device=torch.device("cpu"), dtype=torch.float32)
    t.W_enc.data = rand(n, WIDTH, d, scale=d**-0.5)
    t.b_enc.data = rand(n, WIDTH, scale=0.2) - 0.3
    t.b_dec.data = rand(n, d, scale=0.1)
    for i in range(n):
        t.W_dec[i].data = rand(WIDTH, n - i, d, scale=0.3)
        out[f"clt.{i}.W_enc"], out[f"clt.{i}.b_enc"], out[f"clt.{i}.b_dec"] = t.W_enc[i], t.b_enc[i], t.b_dec[i]
        out[f"clt.{i}.W_dec"] = t.W_dec[i]
    return t


def chosen(model):
    """The most active features of the places, with values that turn them in different ways."""
    _, clean = model.get_activations(torch.tensor(PROMPT))
    listed = []
    for i, (layer, (start, end), rank) in enumerate(CHOSEN):
        acts = clean[layer, start : end or len(PROMPT)].sum(0)
        feature = acts.topk(rank + 1).indices[rank].item()
        largest = clean[layer, :, feature].max().item()
        value = round([2.5 * largest + 1.0, 0.0, -0.75, 0.5 * largest, 1.25][i], 4)
        listed.append([layer, start, end, feature, value])
    return listed


def run(model, listed, out, prefix):
    tokens = torch.tensor(PROMPT)
    interventions = [(layer, slice(start, end), feature, value) for layer, start, end, feature, value in listed]
    layers = range(model.cfg.n_layers)
    cases = dict(
        patterns=dict(), free=dict(freeze_attention=False), direct=dict(constrained_layers=layers, apply_activation_function=False),
        range=dict(constrained_layers=range(1)))
    clean, _ = model.get_activations(tokens)
    out[f"{prefix}.clean.logits"] = clean[0]
    for name, settings in cases.items():
        logits, activations = model.feature_intervention(tokens, interventions, **settings)
        assert (logits - clean).abs().max() > 1e-2, (prefix, name)
        out[f"{prefix}.{name}.logits"], out[f"{prefix}.{name}.activations"] = logits[0], activations
    grown, closest = list(PROMPT), float("inf")
    for _ in range(NEW):
        logits, _ = model.feature_intervention(torch.tensor(grown), interventions, freeze_attention=False)
        best = logits[0, -1].topk(2)
        closest = min(closest, (best.values[0] - best.values[1]).item())
        grown.append(best.indices[0].item())
    assert closest > 1e-3, closest
    out[f"{prefix}.greedy"] = torch.tensor(grown[len(PROMPT) :])


def main():
    (HERE / "intervene").mkdir(exist_ok=True)
    for seed, name in enumerate(HOOKS):
        torch.manual_seed(seed)
        cfg, with_set = configured(name)
        out, hooks = {}, HOOKS[name]
        metadata = {"input": hooks[0], "output": hooks[1], "prompt": json.dumps(PROMPT)}
        sets = dict(
            plt=per_layer(cfg, hooks, False, out), skip=per_layer(cfg, hooks, True, out), clt=cross_layer(cfg, hooks, out))
        for prefix, transcoders in sets.items():
            model = with_set(transcoders)
            listed = chosen(model)
            metadata[prefix] = json.dumps(listed)
            run(model, listed, out, prefix)
        out = {key: value.detach().clone().contiguous() for key, value in out.items()}
        save_file(out, HERE / "intervene" / f"{name}.safetensors", metadata=metadata)
        print(name, metadata)


if __name__ == "__main__":
    with torch.no_grad():
        main()
