"""Check that SAELens opens a dictionary directory and computes what we compute.

    python tests/saelens_check.py DIR

DIR holds cfg.json, sae_weights.safetensors and check.safetensors: `x` [n, d_in], `codes` [n, d_sae] (dense) and
`x_hat` [n, d_out], float32, written by our side. Exits with 1 when SAELens' encode or decode differs by more than
1e-5 of the largest value, or when the check would be vacuous (nothing active). Needs `pip install sae-lens==6.54.12`.
"""

import sys

import torch
from sae_lens import SAE
from safetensors.torch import load_file

TOLERANCE = 1e-5


def difference(name, ours, theirs):
    """The largest difference, as a share of the largest value; False when it is too large."""
    if ours.shape != theirs.shape:
        print(f"{name}: shape {tuple(ours.shape)} here, {tuple(theirs.shape)} in SAELens")
        return False
    worst = ((ours - theirs).abs().max() / theirs.abs().max()).item()
    print(f"{name}: largest difference {worst:.2e} of the largest value")
    return worst <= TOLERANCE


def main(directory):
    torch.set_grad_enabled(False)
    sae = SAE.load_from_disk(directory, device="cpu")
    check = load_file(f"{directory}/check.safetensors")
    codes = sae.encode(check["x"])
    codes = codes.to_dense() if codes.is_sparse else codes
    print(f"{sae.cfg.architecture()} at {sae.cfg.metadata.hook_name}: {tuple(check['x'].shape)} rows, L0 {(codes != 0).sum(-1).float().mean():.1f}")
    good = difference("codes", check["codes"], codes)
    good &= difference("decoded", check["x_hat"], sae.decode(check["codes"]))
    good &= bool((codes != 0).any()) and bool((codes == 0).any())
    if not good:
        sys.exit("FAILED: SAELens and mechinterp disagree")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
