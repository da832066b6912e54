"""Tiny models of every architecture as llama.cpp's converter would write them, with the weights, settings and logits
that transformers has for them, and tokenizers in both kinds that GGUF knows.

    python3 tests/golden/make_gguf.py [SMOLLM2_DIR]    # transformers 4.57.3, gguf 0.19, sentencepiece, torch, safetensors

Writes tests/golden/gguf/. Names come from gguf-py's tensor map; what the converter does to values (rotary order, added
ones, fused and transposed matrices) is written here after llama.cpp's conversion/*.py. With the directory of SmolLM2
also writes tests/golden/smollm2-gguf.safetensors: what transformers computes on its model.gguf.
"""
import json, math, pathlib, sys
import numpy as np
import gguf, torch, transformers as tf
from safetensors.torch import save_file

OUT = pathlib.Path(__file__).parent / "gguf"
OUT.mkdir(exist_ok=True)
torch.manual_seed(0)
torch.set_grad_enabled(False)
ARCHS = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}

V, D, L, H, K, F, C = 24, 16, 2, 4, 2, 24, 32
SMALL = dict(vocab_size=V, hidden_size=D, intermediate_size=F, num_hidden_layers=L, num_attention_heads=H,
             num_key_value_heads=K, max_position_embeddings=C, bos_token_id=1, eos_token_id=2, pad_token_id=0)
LONG = dict(type="longrope", short_factor=[1.0], long_factor=[3.0])
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)
# File name: architecture, configuration.
MODELS = {
    "llama": ("llama", tf.LlamaConfig(**SMALL, rms_norm_eps=1e-5, rope_theta=500.0, tie_word_embeddings=True)),
    "llama-biased": ("llama", tf.LlamaConfig(**SMALL, attention_bias=True, mlp_bias=True)),
    "llama-3": ("llama", tf.LlamaConfig(**SMALL, rope_theta=500.0, rope_scaling=LLAMA3)),
    "qwen2": ("qwen2", tf.Qwen2Config(**SMALL)),
    "qwen3": ("qwen3", tf.Qwen3Config(**SMALL, head_dim=6)),
    "gemma": ("gemma", tf.GemmaConfig(**SMALL, head_dim=6)),
    "gemma2": ("gemma2", tf.Gemma2Config(**SMALL, head_dim=6, query_pre_attn_scalar=6, sliding_window=5)),
    "gemma3": ("gemma3", tf.Gemma3TextConfig(**{**SMALL, "num_hidden_layers": 7}, head_dim=6, query_pre_attn_scalar=6, sliding_window=5,
                                             rope_scaling=dict(rope_type="linear", factor=4.0))),
    "phi2": ("phi2", tf.PhiConfig(**SMALL, partial_rotary_factor=0.5)),
    "phi3": ("phi3", tf.Phi3Config(**SMALL, original_max_position_embeddings=16, rope_scaling=LONG, partial_rotary_factor=0.5)),
    "gptneox": ("gptneox", tf.GPTNeoXConfig(**{k: v for k, v in SMALL.items() if k != "num_key_value_heads"}, rotary_pct=0.5)),
    "gpt2": ("gpt2", tf.GPT2Config(vocab_size=V, n_positions=C, n_embd=D, n_layer=L, n_head=H, bos_token_id=1, eos_token_id=2)),
    "falcon": ("falcon", tf.FalconConfig(vocab_size=V, hidden_size=D, num_hidden_layers=L, num_attention_heads=H, multi_query=True,
                                         new_decoder_architecture=False, parallel_attn=True, bias=False, alibi=False, max_position_embeddings=C)),
    "falcon-grouped": ("falcon", tf.FalconConfig(vocab_size=V, hidden_size=D, num_hidden_layers=L, num_attention_heads=H, num_kv_heads=K,
                                                 new_decoder_architecture=True, bias=False, alibi=False, max_position_embeddings=C)),
    "starcoder2": ("starcoder2", tf.Starcoder2Config(**SMALL, use_bias=True, sliding_window=None)),
    "olmo": ("olmo", tf.OlmoConfig(**SMALL, clip_qkv=0.6)),
    "olmo2": ("olmo2", tf.Olmo2Config(**SMALL)),
    "stablelm": ("stablelm", tf.StableLmConfig(**SMALL, use_qkv_bias=True, partial_rotary_factor=0.5)),
    "stablelm-12b": ("stablelm", tf.StableLmConfig(**SMALL, partial_rotary_factor=0.5, qk_layernorm=True, use_parallel_residual=True)),
    "granite": ("granite", tf.GraniteConfig(**SMALL, attention_multiplier=0.3, embedding_multiplier=3.0, residual_multiplier=0.5, logits_scaling=2.0)),
    "smollm3": ("smollm3", tf.SmolLM3Config(**{**SMALL, "num_hidden_layers": 4})),
}


def permute(w, heads):
    """LlamaModel.permute"""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def ungroup(w, config):
    """Rows of a fused matrix of groups (some queries, a key, a value) to queries, keys, values."""
    heads = config.num_attention_heads
    groups = heads if config.model_type == "gpt_neox" else (getattr(config, "num_kv_heads", None) or 1) if config.new_decoder_architecture or not config.multi_query else 1
    w = w.reshape(groups, heads // groups + 2, -1, *w.shape[1:])
    parts = w[:, :-2], w[:, -2:-1], w[:, -1:]
    return torch.cat([p.reshape(-1, *w.shape[3:]) for p in parts])


def converted(arch, config, name, w):
    heads, kv = config.num_attention_heads, getattr(config, "num_key_value_heads", None)
    if arch in ("llama", "granite", "smollm3", "olmo"):
        if ".q_proj." in name: w = permute(w, heads)
        if ".k_proj." in name: w = permute(w, kv)
    if arch.startswith("gemma") and name.endswith("norm.weight"):
        w = w + 1
    if arch in ("gptneox", "falcon") and "query_key_value" in name:
        w = ungroup(w, config)
    if arch == "gpt2" and name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")):
        w = w.T
    return w.contiguous()


def metadata(writer, arch, c):
    get = lambda *names: next((getattr(c, n) for n in names if getattr(c, n, None) is not None), None)
    heads, width = c.num_attention_heads, c.hidden_size
    head = get("head_dim") or width // heads
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(width)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_feed_forward_length(get("intermediate_size", "ffn_hidden_size", "n_inner") or 4 * width)
    writer.add_head_count(heads)
    kv = get("num_key_value_heads") if arch != "falcon" else (c.num_kv_heads if c.new_decoder_architecture else 1)
    if arch not in ("gpt2", "gptneox"): writer.add_head_count_kv(kv)
    if get("rms_norm_eps") is not None: writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    eps = get("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon") or (1e-5 if arch == "olmo" else None)
    if eps and get("rms_norm_eps") is None: writer.add_layer_norm_eps(eps)
    if get("rope_theta") and arch not in ("gptneox", "stablelm"): writer.add_rope_freq_base(c.rope_theta)
    part = get("partial_rotary_factor", "rotary_pct")
    if arch in ("llama", "granite", "smollm3", "phi2", "phi3", "gptneox", "stablelm"): writer.add_rope_dimension_count(int(head * (part or 1)))
    if arch in ("qwen3", "gemma", "gemma2", "gemma3"):
        writer.add_key_length(head); writer.add_value_length(head)
    if arch in ("gemma2", "gemma3"): writer.add_sliding_window(c.sliding_window)
    if arch == "gemma2":
        writer.add_attn_logit_softcapping(c.attn_logit_softcapping); writer.add_final_logit_softcapping(c.final_logit_softcapping)
    if arch == "gemma3":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR); writer.add_rope_scaling_factor(c.rope_scaling["factor"])
    if arch == "phi3":
        writer.add_sliding_window(c.sliding_window or 0)
        writer.add_rope_scaling_orig_ctx_len(c.original_max_position_embeddings)
        stretch = c.max_position_embeddings / c.original_max_position_embeddings
        writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(stretch) / math.log(c.original_max_position_embeddings)))
    if arch in ("gptneox", "stablelm"): writer.add_parallel_residual(c.use_parallel_residual)
    if arch == "olmo": writer.add_clamp_kqv(c.clip_qkv)
    if arch == "falcon": writer.add_tensor_data_layout("jploski")
    if arch == "granite":
        writer.add_attention_scale(c.attention_multiplier); writer.add_embedding_scale(c.embedding_multiplier)
        writer.add_residual_scale(c.residual_multiplier); writer.add_logit_scale(c.logits_scaling)
    writer.add_vocab_size(c.vocab_size)


def rotary_tensors(writer, arch, c):
    scaling = getattr(c, "rope_scaling", None) or {}
    if arch == "phi3":
        for kind in ("long", "short"):
            writer.add_tensor(f"rope_factors_{kind}.weight", np.array(scaling[f"{kind}_factor"], np.float32))
    if scaling.get("rope_type") == "llama3":   # LlamaModel.generate_extra_tensors
        head = c.hidden_size // c.num_attention_heads
        factors = []
        for n in range(0, head, 2):
            wave = 2 * math.pi * c.rope_theta ** (n / head)
            old, low, high, factor = (scaling[k] for k in ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor", "factor"))
            smooth = (old / wave - low) / (high - low)
            factors.append(1.0 if wave < old / high else factor if wave > old / low else 1 / ((1 - smooth) / factor + smooth))
        writer.add_tensor("rope_freqs.weight", np.array(factors, np.float32))


def save(file, arch, c, state, split=0):
    writer = gguf.GGUFWriter(OUT / f"{file}.gguf", arch, split_max_tensors=split)
    writer.add_name(f"tiny {arch}")
    writer.add_bos_token_id(c.bos_token_id); writer.add_eos_token_id(c.eos_token_id)
    metadata(writer, arch, c)
    if file in ("llama", "split/llama"):       # with a tokenizer, as a whole model for the command line
        tokens = ["<unk>", "<s>", "</s>", "ab", *"\u0120abcdefghijklmnopqrs"]
        writer.add_tokenizer_model("gpt2"); writer.add_tokenizer_pre("gpt-2"); writer.add_token_list(tokens)
        writer.add_token_types([2, 3, 3] + [1] * 21); writer.add_token_merges(["a b"]); writer.add_add_bos_token(True)
    names = gguf.get_tensor_name_map(ARCHS[arch], c.num_hidden_layers)
    heads, merged = {}, {}
    for name, w in state.items():
        if "_layernorm.norms." in name:        # StableLMModel._stack_qk_norm
            whole, head = name.split(".norms.")
            heads.setdefault(whole + ".weight", {})[int(head.split(".")[0])] = w
        else:
            merged[name] = w
    merged |= {name: torch.stack([parts[n] for n in sorted(parts)]) for name, parts in heads.items()}
    for name, w in merged.items():
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert stored, name
        w = converted(arch, c, name, w)
        writer.add_tensor(stored, (w.half() if w.ndim == 2 else w).numpy())
    rotary_tensors(writer, arch, c)
    writer.write_header_to_file(); writer.write_kv_data_to_file(); writer.write_tensors_to_file(); writer.close()


for file, (arch, config) in MODELS.items():
    config._attn_implementation = "eager"
    with tf.modeling_utils.no_init_weights():  # the initialisation of StableLM fails on norms without a bias
        model = tf.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval().float()
    model.tie_weights()
    for parameter in model.parameters():
        parameter.copy_((torch.randn_like(parameter) * 0.3).half().float())
    tokens = torch.randint(3, V, (1, 20))
    logits = model(tokens, use_cache=False).logits
    state = {k: v for k, v in model.state_dict().items() if not k.endswith(("inv_freq", ".masked_bias", ".attn.bias"))}
    if config.tie_word_embeddings: state.pop("lm_head.weight", None)
    save(file, arch, config, state)
    if file == "llama":
        (OUT / "split").mkdir(exist_ok=True)
        save("split/llama", arch, config, state, split=8)
    kept = {k: v.half().contiguous() for k, v in state.items()}
    save_file(kept | {"golden.logits": logits.contiguous(), "golden.tokens": tokens}, OUT / f"{file}.safetensors")
    (OUT / f"{file}.json").write_text(json.dumps(json.loads(config.to_json_string(use_diff=False)), indent=1, sort_keys=True) + "\n")
    print(file, float(logits.abs().max()))

# Every stored number type: what gguf-py makes of random blocks. Scales are kept small and finite.
writer, expected = gguf.GGUFWriter(OUT / "types.gguf", "llama"), {}
random = np.random.default_rng(0)
for kind in ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL"):
    kind = gguf.GGMLQuantizationType[kind]
    values = random.normal(size=(3, 256)).astype(np.float32)
    try:
        stored = gguf.quants.quantize(values, kind)
    except NotImplementedError:                # k-quants: any bytes are numbers, but for the half-precision scales
        block, size = gguf.GGML_QUANT_SIZES[kind]
        stored = random.integers(0, 256, (3, 256 // block * size), dtype=np.uint8)
        scales = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}.get(kind.name, ())
        for at in scales:
            stored[:, at : at + 2] = random.normal(size=(3, 1)).astype(np.float16).view(np.uint8)
    name = f"blk.0.{kind.name.lower()}"
    writer.add_tensor(name, stored, raw_dtype=kind)
    if kind.name != "IQ4_NL":                  # which mechinterp refuses
        expected[name] = torch.from_numpy(gguf.quants.dequantize(stored, kind).astype(np.float32).copy())
writer.write_header_to_file(); writer.write_kv_data_to_file(); writer.write_tensors_to_file(); writer.close()
save_file(expected, OUT / "types.safetensors")

if len(sys.argv) > 1:
    model = tf.AutoModelForCausalLM.from_pretrained(sys.argv[1], gguf_file="model.gguf", dtype=torch.float32).eval()
    tokens = torch.tensor([[1, 504, 3575, 282, 4649, 314, 7042, 30, 198, 3, 17000, 49151]])
    logits = model(tokens).logits[0]
    top = logits.topk(32, -1)
    save_file({"tokens": tokens, "ids": top.indices, "logits": top.values}, OUT.parent / "smollm2-gguf.safetensors")
