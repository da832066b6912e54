"""What transformers computes in float32 on SmolLM2-135M-Instruct, in little space.

    python3 tests/golden/make_smollm2.py MODEL_DIR        # transformers 4.57.3, torch, safetensors

Writes tests/golden/smollm2.safetensors. For prompt i: `i.tokens` [s], `i.top_ids` and `i.top_logits` [s, 20], and for
every layer `i.blocks.L.hook_resid_post` [5, 192]: every third component at positions 0, 1, 2, 3 and the last one.
"""
import pathlib, sys
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPTS = [
    "The capital of France is",
    "When the first railway reached the town in 1847, the mill on the river had already stood empty for a decade. "
    "Its owner, Mrs. Harriet Cole, sold the looms to a dealer from Leeds for £312 and moved to the coast, where "
    "she wrote three books about weaving. \"A loom,\" she liked to say, \"is a very slow printing press.\"",
]

torch.set_grad_enabled(False)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32, attn_implementation="eager").eval()
golden = {}
for i, prompt in enumerate(PROMPTS):
    tokens = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids
    seen = {}
    # hidden_states of transformers are normalised after the last layer, so every block is read by a hook.
    handles = [
        block.register_forward_hook(lambda _m, _i, out, layer=layer: seen.__setitem__(layer, out[0] if isinstance(out, tuple) else out))
        for layer, block in enumerate(model.model.layers)
    ]
    top = model(tokens, use_cache=False).logits[0].topk(20)
    for handle in handles:
        handle.remove()
    golden[f"{i}.tokens"] = tokens[0].to(torch.int64)
    golden[f"{i}.top_ids"] = top.indices.to(torch.int64)
    golden[f"{i}.top_logits"] = top.values.clone()
    for layer, stream in seen.items():
        stream = stream.reshape(-1, stream.shape[-1])
        golden[f"{i}.blocks.{layer}.hook_resid_post"] = stream[[0, 1, 2, 3, -1], ::3].contiguous()
path = pathlib.Path(__file__).parent / "smollm2.safetensors"
save_file(golden, path)
print(path, path.stat().st_size // 1024, "KiB", [golden[f"{i}.tokens"].numel() for i in range(len(PROMPTS))])
