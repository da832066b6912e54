"""Explained variance against L0 of ReLU dictionaries, `mechinterp train-sae` and SAELens, at several penalties.

    cargo build --release
    MECHINTERP_PEERS=PEERS MECHINTERP_PEER_PYTHON=VENV/bin/python benches/pareto.py CACHE ACTS.safetensors WORK

CACHE and ACTS are as for train.py; ACTS must leave out the held-out end of the cache. WORK keeps every dictionary, so a
run that was cut off goes on where it stopped. All are judged by `mechinterp eval` on the held-out rows, outliers left out.
"""
import argparse, json, os, pathlib, subprocess, sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import side_by_side as bench

KEYS = ["explained_variance", "l0", "mse", "cossim", "dead_features"]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=pathlib.Path), parser.add_argument("acts", type=pathlib.Path), parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("--d-sae", type=int, default=16384), parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--ours", type=float, nargs="+", default=[1, 2, 4, 8], help="our penalties (default %(default)s)")
    parser.add_argument("--saelens", type=float, nargs="+", default=[2, 4, 8], help="SAELens' penalties (default %(default)s)")
    parser.add_argument("--binary", default=bench.ROOT / "target/release/mechinterp")
    parser.add_argument("--peers", default=os.environ.get("MECHINTERP_PEERS")), parser.add_argument("--python", default=os.environ.get("MECHINTERP_PEER_PYTHON", "python3"))
    parser.add_argument("--out", help="JSON file for the figures"), parser.add_argument("--svg", help="the picture")
    return parser.parse_args()


def train(args):
    made = []
    for program, penalties in [("mechinterp", args.ours), ("saelens", args.saelens)]:
        for penalty in penalties:
            out = args.work / f"{program}_l1_{penalty:g}"
            made.append((program, penalty, out))
            if (out / "cfg.json").exists():
                continue
            print(out.name, "…", file=sys.stderr, flush=True)
            if program == "mechinterp":
                command = [args.binary, "train-sae", "--cache", args.cache, "--arch", "relu", "--l1-coefficient", penalty, "--d-sae", args.d_sae,
                           "--steps", args.steps, "--batch-size", 4096, "--eval-every", args.steps, "--checkpoint-every", args.steps, "--out", out, "-q"]
            else:
                command = [args.python, pathlib.Path(args.peers) / "train_saelens.py", args.acts, "standard", args.d_sae, args.steps,
                           "--lr", "1e-3", "--l1", penalty, "--out", out]
            subprocess.run([str(word) for word in command], check=True, stdout=sys.stderr)
    return made


def main():
    args = arguments()
    args.work.mkdir(parents=True, exist_ok=True)
    made = train(args)
    evaluate = [args.binary, "eval", "--cache", args.cache, "--no-directions", "--force", "--json", "-q", "--sae", *(out for *_, out in made)]
    evaluate += ["--html", args.svg] if args.svg else []
    report = json.loads(subprocess.run([str(word) for word in evaluate], check=True, capture_output=True, text=True).stdout)
    figures = [{key: value for group in found["eval_result_metrics"].values() for key, value in group.items()} for found in report]
    points = [{"program": program, "l1_coefficient": penalty, **{key: found[key] for key in KEYS}} for (program, penalty, _), found in zip(made, figures)]
    for point in points:
        print(f"{point['program']:<10} λ {point['l1_coefficient']:<4g} explained variance {point['explained_variance']:.4f} at L0 {point['l0']:.1f}, {point['dead_features']:.0f} dead")
    if args.out:
        settings = {"d_sae": args.d_sae, "steps": args.steps, "batch_size": 4096}
        result = {"what": "explained variance against L0", "settings": settings, "machine": bench.machine(args.python, ["torch", "sae-lens"]), "points": points}
        pathlib.Path(args.out).write_text(json.dumps(result, indent=1) + "\n")


main()
