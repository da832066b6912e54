"""`mechinterp train-sae` against SAELens on the same cached activations, in alternating pairs.

    cargo build --release
    MECHINTERP_PEERS=PEERS MECHINTERP_PEER_PYTHON=VENV/bin/python benches/train.py CACHE ACTS.safetensors

CACHE is a directory that `mechinterp cache` wrote, ACTS the same activations as one tensor `acts` [sequences, context,
width], which PEERS/train_saelens.py reads. Both train on batches of 4096 rows with first positions and outliers left out.
A figure is rows over the seconds of the steps, data included, start and final evaluation left out.
"""
import argparse, json, os, pathlib, re, shutil, sys, tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import side_by_side as bench

PACKAGES = ["torch", "sae-lens"]
BATCH = 4096


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", help="directory of cached activations"), parser.add_argument("acts", help="the same as one tensor")
    parser.add_argument("--arch", default="topk", choices=["topk", "standard", "batchtopk", "jumprelu"])
    parser.add_argument("--d-sae", type=int, default=16384), parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--l1", type=float, default=4.0, help="weight of the penalty (default %(default)s)")
    parser.add_argument("--steps", type=int, default=200, help="our steps (default %(default)s)")
    parser.add_argument("--peer-steps", type=int, default=12, help="SAELens' steps, whose time does not change over a run (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--binary", default=bench.ROOT / "target/release/mechinterp", help="our program (default target/release/mechinterp)")
    parser.add_argument("--peers", default=os.environ.get("MECHINTERP_PEERS"), help="directory of the peers' scripts (default: $MECHINTERP_PEERS)")
    parser.add_argument("--python", default=os.environ.get("MECHINTERP_PEER_PYTHON", "python3"), help="Python with SAELens (default: $MECHINTERP_PEER_PYTHON)")
    parser.add_argument("--out", help="JSON file for the figures")
    args = parser.parse_args()
    if not args.peers:
        parser.error("--peers, or the variable MECHINTERP_PEERS, must name the directory of the peers' scripts")
    return args


def ours(args):
    scratch = pathlib.Path(tempfile.mkdtemp(dir=pathlib.Path(args.cache).resolve().parent))
    names = {"standard": "relu"}
    own = {"topk": ["--k", args.k], "batchtopk": ["--k", args.k], "standard": ["--l1-coefficient", args.l1], "jumprelu": ["--l0-coefficient", args.l1]}
    out, usage = bench.run([args.binary, "train-sae", "--cache", args.cache, "--arch", names.get(args.arch, args.arch), "--d-sae", args.d_sae,
                            *own[args.arch], "--steps", args.steps, "--batch-size", BATCH, "--eval-every", args.steps, "--checkpoint-every", args.steps,
                            "--out", scratch / "sae", "--json", "-q"])
    report = json.loads(out)
    sessions = json.loads((scratch / "sae" / "sessions.json").read_text())
    seconds = sum(session["seconds"] for session in sessions)
    shutil.rmtree(scratch)
    heldout = report.get("heldout") or {}
    return {"steps": args.steps, "tokens_per_second": args.steps * BATCH / seconds, "explained_variance": heldout.get("explained_variance"),
            "l0": heldout.get("l0"), "dead_features": report.get("dead_features"), **usage}


def saelens(args):
    out, usage = bench.run([args.python, pathlib.Path(args.peers) / "train_saelens.py", args.acts, args.arch, args.d_sae, args.peer_steps,
                            "--k", args.k, "--l1", args.l1, "--batch", BATCH])
    return {"steps": args.peer_steps, "tokens_per_second": float(re.search(r"(\d+) tokens/s in the step", out)[1]), **usage}


def main():
    args = arguments()
    runs = bench.alternate(lambda: ours(args), {"saelens": lambda: saelens(args)}, args.repeats)
    summary = bench.summarise(runs)
    print(bench.table(summary))
    if args.out:
        settings = {key: getattr(args, key) for key in ("arch", "d_sae", "k", "l1", "steps", "peer_steps", "repeats")}
        result = {"what": "train-sae", "settings": settings, "machine": bench.machine(args.python, PACKAGES), "summary": summary, "runs": runs}
        pathlib.Path(args.out).write_text(json.dumps(result, indent=1) + "\n")


main()
