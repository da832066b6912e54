"""Loads what `mechinterp` writes with circuit-tracer's own loaders and compares codes and reconstructions.

    python tests/sets_check.py target/release/mechinterp

Needs circuit-tracer 0.5, torch and safetensors. Every golden set that circuit-tracer wrote is written again by
`mechinterp convert --set`, and circuit-tracer must load the copy from its cache and compute what it computed itself:
lazily and not. The copy is also written as SAELens' folders and back.
"""

import pathlib
import subprocess
import sys
import tempfile

import torch
from circuit_tracer.utils.caching import load_transcoders_from_cache
from circuit_tracer.utils.hf_utils import load_transcoder_from_hub
from safetensors.torch import load_file

PROGRAM = pathlib.Path(sys.argv[1]).resolve()
GOLDEN = pathlib.Path(__file__).parent / "golden" / "sets"


def convert(source, out, to="circuit_tracer"):
    command = [PROGRAM, "convert", "--set", source, "--to", to, "--out", out]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode == 0, done.stderr


def check(cache, name, described, expected):
    reference = f"tiny/{name}"
    for lazy in (False, True):
        transcoders, config = load_transcoders_from_cache(
            reference, cache_dir=str(cache), lazy_encoder=lazy, lazy_decoder=lazy
        )
        for key in ("model_name", "model_kind", "feature_input_hook", "feature_output_hook"):
            assert config[key] == described[key], (name, key, config)
        with torch.no_grad():
            a = transcoders.encode(expected["x"])
            y = transcoders.decode(a, expected["x"])
        torch.testing.assert_close(a, expected["a"], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(y, expected["y"], rtol=1e-5, atol=1e-6)
        assert (a != 0).any() and transcoders.n_layers == 3
    # As a user of circuit-tracer names it.
    assert load_transcoder_from_hub(reference, cache_dir=str(cache))[0].scan == config["scan"]


def lines(path):
    return dict(line.split(": ", 1) for line in path.read_text().splitlines() if ": " in line and line[0] != "-")


checked = 0
with tempfile.TemporaryDirectory() as work:
    cache = pathlib.Path(work)
    for path in sorted(GOLDEN.iterdir()):
        if not path.is_dir():
            continue
        expected = load_file(GOLDEN / f"{path.name}.expected.safetensors")
        described = lines(path / "config.yaml")
        ours = cache / "tiny" / path.name
        wrote, said = convert(path, ours)
        if path.name == "gemma-scope-2-clt":
            # circuit-tracer's loader leaves out a cross-layer transcoder's linear connection.
            assert not wrote and "linear connection" in said and not ours.exists(), said
            continue
        assert wrote, said
        check(cache, path.name, described, expected)
        checked += 1
        folders = cache / "folders" / path.name
        wrote, said = convert(ours, folders, "saelens")
        if path.name.startswith("clt") or path.name == "plt-jumprelu":
            # SAELens has neither cross-layer transcoders nor a JumpReLU that passes negative values.
            assert not wrote and not folders.exists(), said
            continue
        assert wrote, said
        wrote, said = convert(folders, cache / "tiny" / f"{path.name}-back")
        assert wrote, said
        check(cache, f"{path.name}-back", described, expected)
        checked += 1
        # Sets that circuit-tracer cannot compute have a kind that it refuses, and not one that it computes wrongly.
        config = cache / "tiny" / f"{path.name}-back" / "config.yaml"
        config.write_text(config.read_text().replace("model_kind: ", "model_kind: mechinterp_"))
        try:
            load_transcoders_from_cache(f"tiny/{path.name}-back", cache_dir=str(cache))
            raise AssertionError("an extended set was loaded")
        except ValueError as error:
            assert "mechinterp_transcoder_set" in str(error), error
assert checked == 9, checked
print(f"circuit-tracer loads {checked} written sets and computes what it computed itself")
