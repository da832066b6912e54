"""`mechinterp graph` against circuit-tracer's `attribute` on the CPU, in alternating pairs: same model, same transcoders.

    cargo build --release
    MECHINTERP_PEER_PYTHON=VENV/bin/python benches/graph.py MODEL_DIR SET_DIR --prompt "The capital of France is"

The model is a Llama (SmolLM2 among them), which circuit-tracer takes through its TransformerLens backend: that knows no
checkpoint of this name, so the weights go in through TransformerLens' own converter, held against transformers' logits
first. The set is a directory in circuit-tracer's layout. Seconds are those of tracing and pruning: loading of model and
set is in nobody's seconds, and in everybody's whole process and peak memory. circuit-tracer runs with its own defaults
of batch and lazily read decoders. Without a trained set, --make-random FEATURES writes a random one to SET_DIR whose
thresholds let --active features a token through.
"""
import argparse, json, pathlib, statistics, sys, time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import side_by_side as bench

PACKAGES = ["torch", "transformers", "circuit-tracer", "transformer-lens"]
MOST_TOKENS = 512  # the mask of TransformerLens is quadratic in its context


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    bench.add_common(parser, "graph")
    parser.add_argument("transcoders", help="directory of the set, in circuit-tracer's layout")
    parser.add_argument("--prompt", default="The capital of the state containing Dallas is the city of", help="text to trace (default %(default)r)")
    parser.add_argument("--binary", default=bench.ROOT / "target/release/mechinterp", help="our program (default target/release/mechinterp)")
    parser.add_argument("--max-feature-nodes", type=int, default=7500), parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--make-random", type=int, metavar="FEATURES", help="write a random set of so many features a layer, and end")
    parser.add_argument("--active", type=int, default=64, help="features of the random set that a token turns on (default %(default)s)")
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def ours(args):
    command = [args.binary, "graph", "--model", args.model, "--transcoders", args.transcoders, "--prompt", args.prompt, "--json", "-q",
               "--max-feature-nodes", args.max_feature_nodes, "--batch-size", args.batch_size]
    out, usage = bench.run(command + (["--threads", args.threads] if args.threads else []))
    graph = json.loads(out)
    report = graph["report"]
    scores = report["unpruned_scores"]
    return {"seconds": report["seconds"], "active": report["active_features"], "selected": report["selected_features"],
            "replacement": scores["replacement"], "completeness": scores["completeness"], "kept_nodes": len(graph["nodes"]),
            "kept_edges": len(graph["edges"]), "row_error": report["largest_row_error"], **usage}


def theirs(args):
    command = [args.python, __file__, args.model, args.transcoders, "--peer", "--prompt", args.prompt,
               "--max-feature-nodes", args.max_feature_nodes, "--batch-size", args.batch_size]
    out, usage = bench.run(command, bench.thread_environment(args.threads))
    return {**json.loads(out.splitlines()[-1]), **usage}


def hooked(args, kind):
    """The model as a HookedTransformer of class `kind`, and its tokenizer."""
    import torch
    from transformer_lens import HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_llama_weights
    from transformers import AutoModelForCausalLM, AutoTokenizer
    torch.set_grad_enabled(False)
    reference = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    config, tokenizer = reference.config, AutoTokenizer.from_pretrained(args.model)
    d_head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = getattr(config, "rope_theta", None) or config.rope_parameters["rope_theta"]
    cfg = HookedTransformerConfig(
        d_model=config.hidden_size, n_layers=config.num_hidden_layers, n_heads=config.num_attention_heads, d_vocab=config.vocab_size,
        d_head=d_head, n_ctx=MOST_TOKENS, d_mlp=config.intermediate_size, act_fn=config.hidden_act, final_rms=True, gated_mlp=True,
        n_key_value_heads=config.num_key_value_heads, normalization_type="RMS", positional_embedding_type="rotary", rotary_base=int(rope),
        rotary_adjacent_pairs=False, rotary_dim=d_head, eps=config.rms_norm_eps, original_architecture=type(reference).__name__,
        dtype=torch.float32, device="cpu", seed=0)
    model = kind(cfg)
    model.load_and_process_state_dict(
        convert_llama_weights(reference, cfg), fold_ln=False, center_writing_weights=False, center_unembed=False,
        fold_value_biases=False, refactor_factored_attn_matrices=False)
    tokens = torch.tensor([[tokenizer.bos_token_id] + tokenizer(args.prompt, add_special_tokens=False).input_ids])
    worst = (model(tokens) - reference(tokens).logits).abs().max()
    assert worst < 1e-2, f"TransformerLens and transformers differ by {worst}"
    return model.eval(), tokenizer, tokens


def run_peer(args):
    """circuit-tracer's side, in a process of its own."""
    import gc, torch, yaml
    from circuit_tracer.attribution.attribute import attribute
    from circuit_tracer.graph import compute_graph_scores, prune_graph
    from circuit_tracer.replacement_model.replacement_model_transformerlens import TransformerLensReplacementModel
    from circuit_tracer.transcoder.cross_layer_transcoder import load_clt
    from circuit_tracer.transcoder.single_layer_transcoder import load_transcoder_set
    directory = pathlib.Path(args.transcoders)
    settings = yaml.safe_load((directory / "config.yaml").read_text())
    shared = dict(scan="bench", feature_input_hook=settings["feature_input_hook"], feature_output_hook=settings["feature_output_hook"],
                  device=torch.device("cpu"), dtype=torch.float32, lazy_encoder=False, lazy_decoder=True)
    if settings["model_kind"] == "cross_layer_transcoder":
        transcoders = load_clt(str(directory), **shared)
    else:
        paths = {int(path.stem.removeprefix("layer_")): str(path) for path in directory.glob("layer_*.safetensors")}
        transcoders = load_transcoder_set(paths, **shared)
    model, tokenizer, tokens = hooked(args, TransformerLensReplacementModel)
    gc.collect()
    model._configure_replacement_model(transcoders)
    model.tokenizer = tokenizer
    torch.set_grad_enabled(True)
    begun = time.monotonic()
    graph = attribute(tokens[0], model, batch_size=args.batch_size, max_feature_nodes=args.max_feature_nodes)
    pruned = prune_graph(graph)
    seconds = time.monotonic() - begun
    replacement, completeness = compute_graph_scores(graph)
    print(json.dumps({
        "seconds": seconds, "active": len(graph.active_features), "selected": len(graph.selected_features), "replacement": replacement,
        "completeness": completeness, "kept_nodes": int(pruned.node_mask.sum()), "kept_edges": int(pruned.edge_mask.sum())}))


def make_random(args):
    """A random per-layer JumpReLU set whose thresholds let `--active` features a token through on the prompt."""
    import torch, yaml
    from safetensors.torch import save_file
    from transformer_lens import HookedTransformer
    model, _, tokens = hooked(args, HookedTransformer)
    _, cache = model.run_with_cache(tokens, names_filter=lambda name: name.endswith(("ln2.hook_normalized", "hook_mlp_out")))
    out = pathlib.Path(args.transcoders)
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    d, f = model.cfg.d_model, args.make_random
    for layer in range(model.cfg.n_layers):
        x, y = cache[f"blocks.{layer}.ln2.hook_normalized"][0, 1:], cache[f"blocks.{layer}.hook_mlp_out"][0, 1:]
        w_enc = torch.randn(f, d) / d ** 0.5
        pre = x @ w_enc.T
        threshold = pre.flatten().quantile(1 - args.active / f) if pre.numel() < 1 << 24 else pre.flatten()[: 1 << 24].quantile(1 - args.active / f)
        w_dec = torch.nn.functional.normalize(w_enc, dim=1) * y.norm(dim=1).mean() / (threshold * args.active ** 0.5)
        save_file(dict(W_enc=w_enc, W_dec=w_dec.contiguous(), b_enc=torch.zeros(f), b_dec=y.mean(0).contiguous(),
                       **{"activation_function.threshold": threshold.expand(f).contiguous()}), out / f"layer_{layer}.safetensors")
    settings = dict(model_name=pathlib.Path(args.model).resolve().name, model_kind="transcoder_set",
                    feature_input_hook="ln2.hook_normalized", feature_output_hook="hook_mlp_out", scan="random")
    (out / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))


def main():
    args = arguments()
    if args.peer:
        return run_peer(args)
    if args.make_random:
        return make_random(args)
    runs = []
    for pair in range(args.repeats):
        for program, function in [("mechinterp", ours), ("circuit-tracer", theirs)]:
            print(f"{pair + 1}/{args.repeats} {program} …", file=sys.stderr, flush=True)
            result = {"program": program, "pair": pair, **function(args)}
            print(f"    {result['seconds']:.1f} s, {result['peak_bytes'] / 1e6:,.0f} MB, {result['selected']:,} of {result['active']:,} features, "
                  f"scores {result['replacement']:.4f} {result['completeness']:.4f}", file=sys.stderr)
            runs.append(result)
    of = lambda program: [row for row in runs if row["program"] == program]
    keys = ("seconds", "wall_seconds", "peak_bytes", "active", "selected", "replacement", "completeness", "kept_nodes", "kept_edges")
    medians = {program: {key: statistics.median(row[key] for row in of(program)) for key in keys} for program in ("mechinterp", "circuit-tracer")}
    ratios = [theirs["seconds"] / ours["seconds"] for ours, theirs in zip(of("mechinterp"), of("circuit-tracer"))]
    memory = medians["mechinterp"]["peak_bytes"] / medians["circuit-tracer"]["peak_bytes"]
    summary = {"medians": medians, "faster_by": {"median": statistics.median(ratios), "least": min(ratios), "greatest": max(ratios)}, "peak_memory_share": memory}
    machine = bench.machine(args.python, PACKAGES)
    settings = {"model": pathlib.Path(args.model).resolve().name, "set": pathlib.Path(args.transcoders).resolve().name,
                **{key: getattr(args, key) for key in ("prompt", "max_feature_nodes", "batch_size", "repeats", "threads")}}
    record = {"bench": "graph", "machine": machine, "settings": settings, "summary": summary, "runs": runs}
    path = bench.ROOT / "benches" / "results" / f"{args.name}.json"
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    print("| program | seconds | whole process | peak memory | replacement | completeness |\n| --- | ---: | ---: | ---: | ---: | ---: |")
    for program, row in medians.items():
        print(f"| {program} | {row['seconds']:.1f} | {row['wall_seconds']:.1f} s | {row['peak_bytes'] / 1e6:,.0f} MB | {row['replacement']:.4f} | {row['completeness']:.4f} |")
    print(f"\nfaster by {summary['faster_by']['median']:.1f} × ({min(ratios):.1f}–{max(ratios):.1f}), {memory:.2f} of the peak memory")
    print(f"wrote {path.relative_to(bench.ROOT)}")


if __name__ == "__main__":
    main()
