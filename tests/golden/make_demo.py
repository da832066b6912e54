"""What transformers computes on the built-in model, under TransformerLens names, and whether it answers alike.

    python3 tests/golden/make_demo.py          # transformers 4.57.3, torch, safetensors

Writes tests/golden/demo.safetensors: two sentences as token ids, the logits and every residual stream in float32.
"""
import pathlib
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = pathlib.Path(__file__).parent
MODEL = HERE.parent.parent / "assets" / "demo"
TEXTS = [
    "The capital of the country where Marseille lies is Paris.",
    "La langue de l'Italie se nomme italien, et Rome est.",
]

torch.set_grad_enabled(False)
tokenizer = AutoTokenizer.from_pretrained(MODEL)
model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32, attn_implementation="eager").eval()
rows = [tokenizer(text).input_ids for text in TEXTS]
for text, row in zip(TEXTS, rows):
    assert tokenizer.decode(row, skip_special_tokens=True) == text, tokenizer.decode(row)
length = min(map(len, rows))
tokens = torch.tensor([row[:length] for row in rows])
seen = {}
for i, block in enumerate(model.model.layers):
    block.register_forward_pre_hook(lambda _m, args, i=i: seen.__setitem__(f"blocks.{i}.hook_resid_pre", args[0].clone()))
    block.register_forward_hook(lambda _m, _i, out, i=i: seen.__setitem__(f"blocks.{i}.hook_resid_post", (out[0] if isinstance(out, tuple) else out).clone()))
logits = model(tokens, use_cache=False).logits
save_file({"tokens": tokens, "logits": logits, **{k: v.contiguous() for k, v in seen.items()}}, HERE / "demo.safetensors")
print(tokens.shape, logits.shape, sorted(seen))
