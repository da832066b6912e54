"""Check that SAELens opens dictionary directories and computes what we compute.

    MECHINTERP_SAELENS_CHECK=DIR cargo test --lib saelens_is_given      # writes one directory a kind of dictionary
    python tests/saelens_check.py DIR/*

Each directory holds cfg.json, sae_weights.safetensors and check.safetensors: `x` [n, d_in], `codes` [n, d_sae] (dense)
and `x_hat` [n, d_out], float32, written by our side. Exits with 1 when SAELens' encode or forward pass differs by more
than 1e-5 of the largest value, or when the check would be vacuous (nothing active). Needs
`pip install sae-lens==6.54.12`.
"""

import sys

import torch
from sae_lens import SAE
from safetensors.torch import load_file

TOLERANCE = 1e-5


def difference(ours, theirs):
    """The largest difference, as a share of the largest value."""
    if ours.shape != theirs.shape:
        sys.exit(f"FAILED: shape {tuple(ours.shape)} here, {tuple(theirs.shape)} in SAELens")
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def check(directory):
    """Prints one line; the larger of the two differences, infinite when the check shows nothing."""
    sae = SAE.load_from_disk(directory, device="cpu")
    tensors = load_file(f"{directory}/check.safetensors")
    x, x_hat = tensors["x"], tensors["x_hat"]
    kwargs = sae.cfg.metadata.model_from_pretrained_kwargs or {}
    if kwargs.get("center_writing_weights"):
        # SAELens leaves this to the model, whose rows are centred; ours are those of the model as published.
        mean = x.mean(-1, keepdim=True)
        x, x_hat = x - mean, x_hat - mean
    if sae.cfg.reshape_activations == "hook_z":
        x = x.reshape(len(x), 4, -1)
    codes = sae.encode(x)
    codes = codes.to_dense() if codes.is_sparse else codes
    forward = sae(x).reshape(x_hat.shape)
    encoded, decoded = difference(tensors["codes"], codes), difference(x_hat, forward)
    l0 = (codes != 0).sum(-1).float().mean()
    what = f"{sae.cfg.architecture()}, {sae.cfg.normalize_activations}, {sae.cfg.reshape_activations}"
    print(f"{directory}: {what}: L0 {l0:.1f}, codes differ by {encoded:.2e}, reconstructions by {decoded:.2e}")
    meaningful = bool((codes != 0).any()) and bool((codes == 0).any())
    return max(encoded, decoded) if meaningful else float("inf")


def main(directories):
    torch.set_grad_enabled(False)
    worst = max(check(directory) for directory in directories)
    print(f"largest difference {worst:.2e} of the largest value")
    if not worst <= TOLERANCE:
        sys.exit("FAILED: SAELens and mechinterp disagree")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(sys.argv[1:])
