"""Check that SAELens opens what `train-sae` wrote and computes what `eval` and `features` report.

    python tests/saelens_roundtrip.py BINARY        # pip install sae-lens==6.54.12

Caches the built-in model on a little text and, for every architecture, trains a small dictionary with BINARY, opens it
with `SAE.load_from_disk` and works out by hand, from SAELens' encode and decode on the rows of the cache, the figures
that BINARY reports: over all rows for `eval`, feature by feature for `features`. Exits with 1 when a relative difference exceeds 1e-5 or when
the check would be vacuous. `saelens_check.py` compares codes element by element for every architecture.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

import torch
from sae_lens import SAE
from safetensors.torch import load_file

TOLERANCE = 1e-5
HOOK = "blocks.1.hook_resid_post"
CONTEXT = 32
# What trains each architecture, and as what it is stored.
ARCHITECTURES = {
    "relu": ("standard", ["--l1-coefficient", "2"]),
    "gated": ("gated", ["--l1-coefficient", "2"]),
    "topk": ("topk", ["--k", "16"]),
    "batchtopk": ("jumprelu", ["--k", "16"]),
    "matryoshka": ("jumprelu", ["--k", "16", "--matryoshka-widths", "32,96,192"]),
    "jumprelu": ("jumprelu", ["--l0-coefficient", "4"]),
}
COUNTRIES = {"France": "Paris", "Japan": "Tokyo", "Italy": "Rome", "Spain": "Madrid", "Germany": "Berlin"}
COLOURS = ["blue", "red", "green", "black", "white"]


class Check:
    """Collects comparisons, each as a relative difference."""

    def __init__(self):
        self.differences = []

    def equal(self, name, ours, theirs):
        ours, theirs = torch.as_tensor(ours, dtype=torch.float64), torch.as_tensor(theirs, dtype=torch.float64)
        if ours.shape != theirs.shape:
            sys.exit(f"FAILED: {name}: shape {tuple(ours.shape)} here, {tuple(theirs.shape)} with SAELens")
        scale = theirs.abs().max().item()
        if not scale > 0:
            sys.exit(f"FAILED: {name}: nothing to compare")
        self.differences.append(((ours - theirs).abs().max().item() / scale, name))

    def finish(self):
        for difference, name in sorted(self.differences, reverse=True)[:10]:
            print(f"{difference:.2e}  {name}")
        bad = [name for difference, name in self.differences if not difference <= TOLERANCE]
        if bad:
            sys.exit(f"FAILED: SAELens and mechinterp differ by more than {TOLERANCE:g} in {', '.join(bad)}")
        print(f"SAELens and mechinterp agree in {len(self.differences)} figures to {TOLERANCE:g}")


def run(directory, binary, *arguments):
    result = subprocess.run([binary, *arguments], cwd=directory, stdout=subprocess.PIPE, text=True)
    if result.returncode != 0:
        sys.exit(f"FAILED: {' '.join(arguments)} ended with {result.returncode}")
    return result.stdout


def write_text(path):
    lines = []
    for country, capital in COUNTRIES.items():
        for other, city in COUNTRIES.items():
            for colour in COLOURS:
                text = f"The capital of {country} is {capital}. The dog is {colour}. The capital of {other} is {city}."
                lines.append(json.dumps({"text": text}))
    path.write_text("\n".join(lines) + "\n")


def cached_rows(directory):
    """Every row of the cache [rows, d], and which the default filter keeps: neither first nor special nor huge."""
    manifest = json.loads((directory / "cache.json").read_text())
    shards = [load_file(directory / shard["file"]) for shard in manifest["shards"]]
    x = torch.cat([shard[HOOK] for shard in shards])
    tokens = torch.cat([shard["tokens"] for shard in shards]).to(torch.int64)
    kept = ~torch.isin(tokens, torch.tensor(manifest["settings"]["special_token_ids"]))
    kept[:, 0] = False
    x, kept = x.reshape(-1, x.shape[-1]), kept.reshape(-1)
    norms = x.norm(dim=-1)
    kept &= norms <= 10 * norms[kept].median()
    return x, kept


def figures(x, codes, x_hat):
    """Reconstruction and sparsity in float64, as SAEBench's core evaluation defines them."""
    x, codes, x_hat = x.double(), codes.double(), x_hat.double()
    error = (x - x_hat).pow(2).sum(-1)
    return {
        "mse": error.mean(),
        "explained_variance": 1 - error.sum() / (x - x.mean(0)).pow(2).sum(),
        "cossim": torch.cosine_similarity(x, x_hat, dim=-1).mean(),
        "l2_norm_in": x.norm(dim=-1).mean(),
        "l2_norm_out": x_hat.norm(dim=-1).mean(),
        "l0": (codes > 0).sum(-1).double().mean(),
        "l1": codes.abs().sum(-1).mean(),
    }


def check_architecture(architecture, directory, binary, x, kept, check):
    """Trains one dictionary in `directory` and compares all its figures."""
    stored_as, flags = ARCHITECTURES[architecture]
    run(directory, binary, "train-sae", "--cache", "acts", "--arch", architecture, "--d-sae", "192", "--steps", "300", "--batch-size", "256", "--lr", "0.002", *flags, "--out", architecture, "-q")
    common = ["--sae", architecture, "--cache", "acts", "--json", "-q"]
    report = json.loads(run(directory, binary, "eval", *common, "--held-out", "1"))[0]
    features = json.loads(run(directory, binary, "features", *common, "--top-k", "1"))["features"]

    sae = SAE.load_from_disk(directory / architecture, device="cpu")
    if sae.cfg.architecture() != stored_as:
        sys.exit(f"FAILED: {architecture} is stored as {sae.cfg.architecture()}")
    if (report["positions"]["rows"], report["positions"]["kept"]) != (len(x), int(kept.sum())):
        sys.exit(f"FAILED: kept {report['positions']} here, {int(kept.sum())} of {len(x)} rows by hand")
    x = x[kept]
    codes = sae.encode(x)
    codes = codes.to_dense() if codes.is_sparse else codes
    x_hat = sae.decode(codes)

    ours = {key: value for category in report["eval_result_metrics"].values() for key, value in category.items()}
    for key, value in figures(x, codes, x_hat).items():
        check.equal(f"{architecture}: {key}", ours[key], value)
    # The differences above average over rows and features; these would show a single wrong feature.
    active = codes > 0
    counts = active.sum(0)
    ids = torch.tensor([feature["index"] for feature in features])
    if ids.tolist() != list(range(sae.cfg.d_sae)):
        sys.exit("FAILED: features does not list every feature once")
    check.equal(f"{architecture}: count of each feature", [feature["count"] for feature in features], counts)
    check.equal(f"{architecture}: maximum of each feature", [feature["max"] for feature in features], codes.max(0).values)
    check.equal(f"{architecture}: mean of each feature", [feature["mean"] for feature in features], codes.double().sum(0) / counts.clamp(min=1))
    if not 1 < active.sum(-1).double().mean() < sae.cfg.d_sae / 2:
        sys.exit(f"FAILED: the {architecture} dictionary is not sparse, so this shows little")
    print(f"{architecture}: {stored_as} at {sae.cfg.metadata.hook_name}, {len(x)} rows, L0 {ours['l0']:.1f}, EV {ours['explained_variance']:.3f}")


def main(binary):
    torch.set_grad_enabled(False)
    binary = str(pathlib.Path(binary).resolve())
    check = Check()
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        write_text(directory / "text.jsonl")
        run(directory, binary, "cache", "--model", "demo", "--data", "text.jsonl", "--hook", HOOK, "--context-size", str(CONTEXT), "--dtype", "f32", "--out", "acts", "-q")
        x, kept = cached_rows(directory / "acts")
        for architecture in ARCHITECTURES:
            check_architecture(architecture, directory, binary, x, kept, check)
    check.finish()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
