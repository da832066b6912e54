"""Tiny transcoder sets written by circuit-tracer 0.5, with its own codes and reconstructions.

    python tests/golden/sets/make_sets.py

Each folder is a set in one of the forms that circuit-tracer loads, with `expected.safetensors` beside it: the inputs
`x` [layers, rows, d], activations `a` [layers, rows, f] and reconstructions `y` [layers, rows, d]. Needs circuit-tracer
0.5, torch, safetensors, numpy and PyYAML.
"""

import pathlib

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from circuit_tracer.transcoder import cross_layer_transcoder as clt
from circuit_tracer.transcoder import single_layer_transcoder as plt
from circuit_tracer.transcoder.activation_functions import JumpReLU
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).parent
LAYERS, D, FEATURES, ROWS = 3, 6, 10, 5
torch.manual_seed(0)


def rand(*shape):
    return torch.randn(*shape) * 0.5


def describe(path, kind, hooks, **more):
    described = {"model_name": "tiny/model", "model_kind": kind, "feature_input_hook": hooks[0]}
    described |= {"feature_output_hook": hooks[1], **more}
    (path / "config.yaml").write_text(yaml.dump(described))


def expect(path, transcoder):
    x = torch.randn(LAYERS, ROWS, D)
    with torch.no_grad():
        a = transcoder.encode(x)
        y = transcoder.decode(a, x)
    assert y.shape == x.shape, "the last row has an active feature"
    save_file({"x": x, "a": a.contiguous(), "y": y.contiguous()}, HERE / f"{path.name}.expected.safetensors")


def folder(name):
    path = HERE / name
    path.mkdir(exist_ok=True)
    return path


def per_layer(name, jump, skip, hooks, scan):
    layers = {}
    for layer in range(LAYERS):
        # Some thresholds are negative: circuit-tracer's JumpReLU passes negative values then.
        activation = JumpReLU(rand(FEATURES), 0.1) if jump else F.relu
        layers[layer] = plt.SingleLayerTranscoder(D, FEATURES, activation, layer, skip, dtype=torch.float32)
        for parameter in ("W_enc", "W_dec", "b_enc", "b_dec") + (("W_skip",) if skip else ()):
            tensor = getattr(layers[layer], parameter).data
            tensor.copy_(rand(*tensor.shape))
    transcoders = plt.TranscoderSet(layers, *hooks, scan)
    path = folder(name)
    transcoders.to_safetensors(str(path))
    describe(path, "transcoder_set", hooks, scan=scan)
    expect(path, transcoders)


def cross_layer(name, activation, dtype):
    hooks = ("hook_resid_mid", "hook_mlp_out")
    transcoder = clt.CrossLayerTranscoder(
        LAYERS, FEATURES, D, activation, lazy_decoder=False, dtype=dtype, feature_input_hook=hooks[0]
    )
    for parameter in transcoder.parameters():
        parameter.data.copy_(rand(*parameter.shape))
    path = folder(name)
    transcoder.to_safetensors(str(path))
    # As circuit-tracer's own cache describes it.
    describe(path, "cross_layer_transcoder", hooks, scan="tiny/clt@v1", revision=None)
    loaded = clt.load_clt(str(path), dtype=torch.float32, lazy_decoder=True)
    expect(path, loaded)


def gemma_scope(name):
    path, listed, layers = folder(name), [], {}
    for layer in range(LAYERS):
        file = path / f"layer_{layer}" / "average_l0_7" / "params.npz"
        file.parent.mkdir(parents=True, exist_ok=True)
        arrays = {"W_enc": rand(D, FEATURES), "W_dec": rand(FEATURES, D), "b_enc": rand(FEATURES)}
        arrays |= {"b_dec": rand(D), "threshold": rand(FEATURES).abs()}
        np.savez(file, **{key: value.numpy() for key, value in arrays.items()})
        listed.append(str(file.relative_to(path)))
        layers[layer] = plt.load_gemma_scope_transcoder(str(file), layer)
    hooks = ("ln2.hook_normalized", "hook_mlp_out")
    describe(path, "transcoder_set", hooks, transcoders=listed)
    expect(path, plt.TranscoderSet(layers, *hooks))


def gemma_scope_2(name):
    path, listed, layers = folder(name), [], {}
    for layer in range(LAYERS):
        file = path / f"layer_{layer}_width_10_l0_small_affine" / "params.safetensors"
        file.parent.mkdir(parents=True, exist_ok=True)
        tensors = {"w_enc": rand(D, FEATURES), "w_dec": rand(FEATURES, D), "b_enc": rand(FEATURES), "b_dec": rand(D)}
        tensors |= {"threshold": rand(FEATURES).abs(), "affine_skip_connection": rand(D, D)}
        save_file(tensors, file)
        listed.append(str(file.relative_to(path)))
        layers[layer] = plt.load_gemma_scope_2_transcoder(str(file), layer)
    hooks = ("mlp.hook_in", "hook_mlp_out")
    describe(path, "transcoder_set", hooks, transcoders=listed)
    expect(path, plt.TranscoderSet(layers, *hooks))


def gemma_scope_2_cross_layer(name):
    path, listed = folder(name), []
    for layer in range(LAYERS):
        file = path / f"layer_{layer}.safetensors"
        tensors = {"w_enc": rand(D, FEATURES), "w_dec": rand(FEATURES, LAYERS, D), "b_enc": rand(FEATURES)}
        tensors |= {"b_dec": rand(D), "threshold": rand(FEATURES).abs(), "affine_skip_connection": rand(D, D)}
        save_file(tensors, file)
        listed.append(file.name)
    hooks = ("mlp.hook_in", "hook_mlp_out")
    describe(path, "cross_layer_transcoder", hooks, transcoders=listed)
    # The loader leaves out the last file, so a last one is made up for it to leave out.
    paths = {layer: str(path / file) for layer, file in enumerate(listed)} | {LAYERS: ""}
    expect(path, clt.load_gemma_scope_2_clt(paths, *hooks, dtype=torch.float32))


per_layer("plt-relu-skip", False, True, ("hook_resid_mid", "hook_mlp_out"), "tiny/plt")
per_layer("plt-jumprelu", True, False, ("mlp.hook_in", "mlp.hook_out"), "tiny/plt//sub")
cross_layer("clt-relu", "relu", torch.float32)
cross_layer("clt-jumprelu-bf16", "jump_relu", torch.bfloat16)
gemma_scope("gemma-scope")
gemma_scope_2("gemma-scope-2")
gemma_scope_2_cross_layer("gemma-scope-2-clt")
