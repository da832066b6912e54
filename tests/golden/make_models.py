"""Tiny random checkpoints with awkward settings, and what transformers computes on them, under TransformerLens names.

    python3 tests/golden/make_models.py        # transformers 4.57.3, torch, safetensors

Writes tests/golden/models/NAME/{config.json,model.safetensors,golden.safetensors}. Values are float32; weights are
rounded to bfloat16 first so that every stored number type holds them exactly.
"""
import json, pathlib
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

HERE = pathlib.Path(__file__).parent / "models"
torch.manual_seed(0)
torch.set_grad_enabled(False)

LLAMA = dict(vocab_size=48, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3, bos_token_id=1, eos_token_id=2)
ORIGINAL = dict(original_max_position_embeddings=16)
MODELS = {
    "gpt2": GPT2Config(vocab_size=48, n_positions=32, n_embd=24, n_layer=3, n_head=4, initializer_range=0.3, bos_token_id=1, eos_token_id=2),
    "gpt2-scaled": GPT2Config(vocab_size=48, n_positions=32, n_embd=24, n_layer=3, n_head=3, n_inner=36, activation_function="relu",
                              scale_attn_by_inverse_layer_idx=True, layer_norm_epsilon=1e-3, initializer_range=0.3, bos_token_id=1, eos_token_id=2),
    "llama": LlamaConfig(**LLAMA, tie_word_embeddings=True),
    "llama-wide": LlamaConfig(**{**LLAMA, "num_attention_heads": 6, "num_key_value_heads": 2}, head_dim=10, attention_bias=True, mlp_bias=True,
                              tie_word_embeddings=False, rms_norm_eps=1e-3, hidden_act="gelu"),
    "llama-linear": LlamaConfig(**LLAMA, rope_scaling=dict(rope_type="linear", factor=4.0)),
    "llama-dynamic": LlamaConfig(**{**LLAMA, "max_position_embeddings": 16}, rope_scaling=dict(rope_type="dynamic", factor=2.0)),
    "llama-llama3": LlamaConfig(**LLAMA, rope_theta=500.0, rope_scaling=dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, **ORIGINAL)),
    "llama-yarn": LlamaConfig(**LLAMA, rope_theta=500.0, rope_scaling=dict(rope_type="yarn", factor=4.0, beta_fast=4.0, **ORIGINAL)),
    # transformers 4 reads the trained length of longrope beside max_position_embeddings, not inside rope_scaling.
    "llama-longrope": LlamaConfig(**LLAMA, **ORIGINAL, rope_scaling=dict(rope_type="longrope", short_factor=[1.0, 1.1, 1.2], long_factor=[2.0, 3.0, 4.0])),
}


def hooks(model, kind, seen):
    """Clones every value that a TransformerLens name denotes."""
    keep = lambda name: (lambda _m, _i, out: seen.__setitem__(name, (out[0] if isinstance(out, tuple) else out).clone()))
    keep_in = lambda name: (lambda _m, args: seen.__setitem__(name, args[0].clone()))
    blocks = model.transformer.h if kind == "gpt2" else model.model.layers
    for i, block in enumerate(blocks):
        p = f"blocks.{i}."
        attn, ln2 = (block.attn, block.ln_2) if kind == "gpt2" else (block.self_attn, block.post_attention_layernorm)
        out, down = (attn.c_proj, block.mlp.c_proj) if kind == "gpt2" else (attn.o_proj, block.mlp.down_proj)
        block.register_forward_pre_hook(keep_in(p + "hook_resid_pre"))
        block.register_forward_hook(keep(p + "hook_resid_post"))
        attn.register_forward_hook(keep(p + "hook_attn_out"))
        block.mlp.register_forward_hook(keep(p + "hook_mlp_out"))
        block.mlp.register_forward_pre_hook(keep_in(p + "mlp.hook_in"))
        ln2.register_forward_pre_hook(keep_in(p + "hook_resid_mid"))
        out.register_forward_pre_hook(keep_in(p + "attn.hook_z"))
        down.register_forward_pre_hook(keep_in(p + "mlp.hook_post"))
        (block.mlp.c_fc if kind == "gpt2" else block.mlp.gate_proj).register_forward_hook(keep(p + "mlp.hook_pre"))
        if kind == "llama":
            block.mlp.up_proj.register_forward_hook(keep(p + "mlp.hook_pre_linear"))
            for part in "qkv":
                getattr(attn, part + "_proj").register_forward_hook(keep(p + "attn.hook_" + part))
        else:
            attn.c_attn.register_forward_hook(lambda _m, _i, o, p=p: seen.update({p + "attn.hook_" + n: t.clone() for n, t in zip("qkv", o.split(o.shape[-1] // 3, -1))}))
    final = model.transformer.ln_f if kind == "gpt2" else model.model.norm
    final.register_forward_hook(keep("unembed.hook_in"))


for name, config in MODELS.items():
    kind = config.model_type
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for parameter_name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.add_(torch.randn_like(parameter) * 0.2)
        parameter.copy_(parameter.bfloat16().float())
    config.dtype = "bfloat16" if name == "llama" else "float16" if name == "gpt2" else "float32"
    out = HERE / name
    out.mkdir(parents=True, exist_ok=True)
    length = 24
    tokens = torch.randint(3, 48, (2, length))
    seen = {}
    hooks(model, kind, seen)
    result = model(tokens, output_attentions=True, use_cache=False)
    heads = config.num_attention_heads
    for i, pattern in enumerate(result.attentions):
        seen[f"blocks.{i}.attn.hook_pattern"] = pattern
    golden = {"tokens": tokens.to(torch.int64), "logits": result.logits}
    golden |= {k: v.contiguous().float() for k, v in seen.items()}
    save_file(golden, out / "golden.safetensors")
    state = {k: v.to(getattr(torch, config.dtype if isinstance(config.dtype, str) else "float32")).contiguous() for k, v in model.state_dict().items()}
    if config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    if name == "gpt2-scaled":  # the original OpenAI files have no prefix and carry mask buffers
        state = {k.removeprefix("transformer."): v for k, v in state.items()}
        state["h.0.attn.bias"] = torch.ones(1, 1, 4, 4)
    if name == "llama-wide":   # shards
        keys = sorted(state)
        parts = [keys[: len(keys) // 2], keys[len(keys) // 2 :]]
        index = {}
        for n, part in enumerate(parts):
            file = f"model-{n + 1:05}-of-{len(parts):05}.safetensors"
            save_file({k: state[k] for k in part}, out / file)
            index |= {k: file for k in part}
        (out / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}, indent=1))
    else:
        save_file(state, out / "model.safetensors")
    text = json.loads(config.to_json_string())
    (out / "config.json").write_text(json.dumps(text, indent=1, sort_keys=True) + "\n")
    print(name, sum(f.stat().st_size for f in out.iterdir()) // 1024, "KiB", float(result.logits.abs().max()))
