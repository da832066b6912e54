"""Greedy generation with a key-value cache against transformers' `generate`, in alternating pairs.

    cargo build --release --example generate
    MECHINTERP_PEER_PYTHON=VENV/bin/python benches/generate.py MODEL_DIR --dtype bf16

Both continue the same prompt by the same number of tokens, without stopping at an end-of-text token, after four tokens to
warm up. Seconds are from the prompt's ids to the last token; loading the model is left out.
"""
import argparse, json, pathlib, sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import side_by_side as bench

PEER = """
import json, sys, time, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model, prompt, new, dtype = sys.argv[1], sys.argv[2], int(sys.argv[3]), {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}[sys.argv[4]]
torch.set_grad_enabled(False)
tokenizer = AutoTokenizer.from_pretrained(model)
lm = AutoModelForCausalLM.from_pretrained(model, torch_dtype=getattr(torch, dtype))
ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
go = lambda n: lm.generate(**ids, max_new_tokens=n, min_new_tokens=n, do_sample=False, use_cache=True, pad_token_id=0)
go(4)
begun = time.perf_counter()
out = go(new)
seconds = time.perf_counter() - begun
made = out.shape[1] - ids.input_ids.shape[1]
print(json.dumps({"prompt_tokens": ids.input_ids.shape[1], "new_tokens": made, "seconds": seconds, "tokens_per_second": made / seconds,
                  "text": tokenizer.decode(out[0, -made:])}))
"""


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    bench.add_common(parser, "generate")
    parser.add_argument("--binary", default=bench.ROOT / "target/release/examples/generate", help="our program (default target/release/examples/generate)")
    parser.add_argument("--dtype", choices=["f32", "bf16", "f16"], default="bf16", help="number type of both (default %(default)s)")
    parser.add_argument("--prompt", default="The history of the city begins")
    parser.add_argument("--max-new-tokens", type=int, default=128, help="tokens to generate (default %(default)s)")
    return parser.parse_args()


def result(out, usage):
    report = json.loads(out.splitlines()[-1])
    return {**{key: report[key] for key in ("prompt_tokens", "new_tokens", "seconds", "tokens_per_second", "text")}, **usage}


def main():
    args = arguments()
    threads = ["--threads", args.threads] if args.threads else []
    ours = lambda: result(*bench.run([args.binary, args.model, "--prompt", args.prompt, "--max-new-tokens", args.max_new_tokens, "--dtype", args.dtype, *threads]))
    peer = lambda: result(*bench.run([args.python, "-c", PEER, args.model, args.prompt, args.max_new_tokens, args.dtype], bench.thread_environment(args.threads)))
    runs = bench.alternate(ours, {"transformers": peer}, args.repeats)
    lengths = {(row["prompt_tokens"], row["new_tokens"]) for row in runs}
    if len(lengths) > 1:
        sys.exit(f"the programs did not do the same work: prompt and new tokens {sorted(lengths)}")
    same = {program: {row.pop("text") for row in runs if row["program"] == program} for program in ("mechinterp", "transformers")}
    settings = {"model": pathlib.Path(args.model).resolve().name, "prompt": args.prompt, "max_new_tokens": args.max_new_tokens, "dtype": args.dtype,
                "repeats": args.repeats, "threads": args.threads}
    extra = {"same_text": same["mechinterp"] == same["transformers"]}
    bench.write(args.name, "generate", settings, bench.machine(args.python, ["torch", "transformers"]), runs, bench.summarise(runs), extra)
    print(f"the texts are {'the same' if extra['same_text'] else 'not the same, as rounding may have it below f32'}")


if __name__ == "__main__":
    main()
