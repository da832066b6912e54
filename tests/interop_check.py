"""Check that other tools open the dictionaries that `mechinterp convert` writes, and compute what the originals do.

    python tests/interop_check.py target/release/mechinterp

Converts every dictionary of tests/golden/dictionaries to every format that can hold it, opens the result with the
tool whose format it is (sae-lens, dictionary-learning, eai-sparsify; one that is not installed is skipped with a line),
and compares encode and decode with the golden rows, which the original's own tool computed. Exits with 1 when a
difference exceeds 1e-5 of the largest value, or when nothing was checked.
"""

import contextlib
import io
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import torch
from safetensors.torch import load_file

TOLERANCE = 1e-5
GOLDEN = pathlib.Path(__file__).parent / "golden/dictionaries"
os.environ["SPARSIFY_DISABLE_TRITON"] = "1"


def saelens(directory):
    from sae_lens import SAE

    sae = SAE.load_from_disk(directory, device="cpu")
    if sae.cfg.reshape_activations == "hook_z":
        sae.turn_off_forward_pass_hook_z_reshaping()
    return sae.encode, lambda x, codes: sae(x)


def dictionary_learning(directory):
    from dictionary_learning import dictionary as d
    from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
    from dictionary_learning.trainers.top_k import AutoEncoderTopK

    trainer = json.loads((pathlib.Path(directory) / "config.json").read_text())["trainer"]
    classes = {c.__name__: c for c in [d.AutoEncoder, d.AutoEncoderNew, d.GatedAutoEncoder, d.JumpReluAutoEncoder, AutoEncoderTopK, BatchTopKSAE]}
    path = f"{directory}/ae.pt"
    state = torch.load(path, weights_only=True)
    keep = {"normalize_decoder": False} if trainer["dict_class"] == "AutoEncoder" else {}
    ae = classes[trainer["dict_class"]].from_pretrained(path, **keep)
    assert set(ae.state_dict()) == set(state)
    return ae.encode, lambda x, codes: ae.decode(codes)


def sparsify(directory):
    from sparsify import SparseCoder

    ((name, coder),) = SparseCoder.load_many(directory, local=True).items()

    def encode(x):
        top_acts, top_indices, _ = coder.encode(x)
        return torch.zeros(len(x), coder.num_latents).scatter(1, top_indices, top_acts)

    return encode, lambda x, codes: coder(x).sae_out


def difference(ours, theirs):
    ours = ours.to_dense() if ours.is_sparse else ours
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def main(binary):
    torch.set_grad_enabled(False)
    good, tools = True, {"saelens": saelens, "dictionary_learning": dictionary_learning, "sparsify": sparsify}
    for to, tool in tools.items():
        package = {"saelens": "sae_lens"}.get(to, to)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                __import__(package)
        except ImportError as missing:
            print(f"SKIPPED {to}: {missing}")
            continue
        worst, checked, refused = 0.0, 0, 0
        for case in json.loads((GOLDEN / "index.json").read_text()):
            golden = load_file(GOLDEN / f"golden/{case['name']}.safetensors")
            with tempfile.TemporaryDirectory() as scratch:
                out = f"{scratch}/out"
                command = [binary, "convert", "--sae", GOLDEN / case["path"], "--to", to, "--out", out, "-q"]
                ended = subprocess.run(command, capture_output=True, text=True)
                if ended.returncode:
                    assert "is not supported" in ended.stderr, ended.stderr
                    refused += 1
                    continue
                encode, decode = tool(out)
                codes = encode(golden["x"])
                pair = difference(codes, golden["codes"]), difference(decode(golden["x"], codes), golden["x_hat"])
            if max(pair) > TOLERANCE:
                print(f"FAILED {case['name']} as {to}: codes {pair[0]:.1e}, decoded {pair[1]:.1e}")
                good = False
            worst, checked = max(worst, *pair), checked + 1
        print(f"{to}: {checked} dictionaries opened, largest difference {worst:.1e} of the largest value; {refused} refused")
        good &= checked > 0
    if not good:
        sys.exit("FAILED: another tool does not compute what mechinterp wrote")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
