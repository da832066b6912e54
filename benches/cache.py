"""`mechinterp cache` against SAELens and against a bare PyTorch hook, in alternating pairs.

    cargo build --release
    MECHINTERP_PEERS=PEERS MECHINTERP_PEER_PYTHON=VENV/bin/python benches/cache.py MODEL_DIR CORPUS.jsonl

PEERS holds `cache_saelens.py` and `cache_torch.py`; both print `N tokens in S s`. All keep the residual stream after one
layer. Ours and SAELens' time is from text to files on disk. The PyTorch hook's leaves out tokenising and writing, so it
is the harder one to beat. Loading the model is in nobody's tokens/s, and in everybody's time of the whole process.
"""
import argparse, json, os, pathlib, re, shutil, sys, tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import side_by_side as bench

PACKAGES = ["torch", "transformers", "sae-lens", "transformer-lens", "datasets"]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    bench.add_common(parser, "cache")
    parser.add_argument("corpus", help="text, one JSON object a line with the field `text`")
    parser.add_argument("--peers", default=os.environ.get("MECHINTERP_PEERS"), help="directory of the peers' scripts (default: $MECHINTERP_PEERS)")
    parser.add_argument("--binary", default=bench.ROOT / "target/release/mechinterp", help="our program (default target/release/mechinterp)")
    parser.add_argument("--against", nargs="+", choices=["saelens", "torch-bf16", "torch-f32"], default=["saelens", "torch-bf16"])
    parser.add_argument("--model-dtype", default="bf16", help="what ours computes in (default %(default)s)")
    parser.add_argument("--tokens", type=int, default=65536, help="tokens to cache (default %(default)s)")
    parser.add_argument("--layer", type=int, default=15), parser.add_argument("--context-size", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=16)
    args = parser.parse_args()
    if not args.peers:
        parser.error("--peers, or the variable MECHINTERP_PEERS, must name the directory of the peers' scripts")
    return args


def ours(args):
    """One run of `mechinterp cache`; the size of the largest shard is in the result."""
    scratch = pathlib.Path(tempfile.mkdtemp())
    command = [args.binary, "cache", "--model", args.model, "--data", args.corpus, "--hook", f"blocks.{args.layer}.hook_resid_post",
               "--context-size", args.context_size, "--tokens", args.tokens, "--batch-size", args.batch_size, "--dtype", "f16",
               "--model-dtype", args.model_dtype, "--out", scratch / "acts", "--json", "-q"]
    out, usage = bench.run(command + (["--threads", args.threads] if args.threads else []))
    summary = json.loads(out)
    shard = max(file.stat().st_size for file in (scratch / "acts").glob("shard-*.safetensors"))
    shutil.rmtree(scratch)
    tokens = summary["manifest"]["tokens"]
    return {"tokens": tokens, "tokens_per_second": summary["tokens_per_second"], "shard_bytes": shard, **usage}


def peer(args, script, *flags):
    command = [args.python, pathlib.Path(args.peers) / script, args.model, args.corpus, args.tokens, "--layer", args.layer,
               "--ctx", args.context_size, "--batch", args.batch_size, *flags]
    out, usage = bench.run(command, bench.thread_environment(args.threads))
    tokens, seconds = re.search(r"(\d+) tokens in ([\d.]+) s", out).groups()
    rate = re.search(r"= (\d+) tokens/s", out)
    return {"tokens": int(tokens), "tokens_per_second": float(rate[1]) if rate else int(tokens) / float(seconds), **usage}


def main():
    args = arguments()
    peers = {"saelens": lambda: peer(args, "cache_saelens.py"), "torch-bf16": lambda: peer(args, "cache_torch.py", "--dtype", "bfloat16"),
             "torch-f32": lambda: peer(args, "cache_torch.py", "--dtype", "float32")}
    runs = bench.alternate(lambda: ours(args), {name: peers[name] for name in args.against}, args.repeats)
    weights = json.loads(bench.run([args.binary, "info", args.model, "--json"])[0])["weight_bytes"]
    summary = bench.summarise(runs)
    shard = max(row.get("shard_bytes", 0) for row in runs)
    summary["memory"] = {"weight_bytes": weights, "shard_bytes": shard, "of_1.2_weights_and_a_shard": summary["medians"]["mechinterp"]["peak_bytes"] / (1.2 * weights + shard)}
    settings = {"model": pathlib.Path(args.model).resolve().name, "corpus": pathlib.Path(args.corpus).name,
                **{key: getattr(args, key) for key in ("tokens", "layer", "context_size", "batch_size", "model_dtype", "repeats", "threads")}}
    bench.write(args.name, "cache", settings, bench.machine(args.python, PACKAGES), runs, summary)
    memory = summary["memory"]
    print(f"peak memory is {memory['of_1.2_weights_and_a_shard']:.2f} of 1.2 × the weights ({weights / 1e6:,.0f} MB) plus a shard ({shard / 1e6:,.0f} MB)")


if __name__ == "__main__":
    main()
