"""What transformers computes, under TransformerLens names.

Every module's input and output is recorded; the golden values are picked from that record. What transformers holds
only inside a function (norm divisors, fused projections taken apart) is computed again here from its input, by the
definition rather than by transformers' code, and held against the module's output.
"""
import sys
import torch
from .modules import modules_of


class Record:
    """Clones of the input and output of every module, and of what `apply_rotary_pos_emb` returned, in order."""

    def __init__(self, model):
        self.ins, self.outs, self.rotated = {}, {}, []
        for name, module in model.named_modules():
            keep_in = lambda _m, args, kwargs, n=name: self._keep(self.ins, n, args or tuple(kwargs.values()))
            keep_out = lambda _m, _args, out, n=name: self._keep(self.outs, n, out)
            module.register_forward_pre_hook(keep_in, with_kwargs=True)
            module.register_forward_hook(keep_out)
        self.modeling = sys.modules[type(model).__module__]
        self.rotate = getattr(self.modeling, "apply_rotary_pos_emb", None)
        if self.rotate:
            self.modeling.apply_rotary_pos_emb = self._rotate

    def _keep(self, into, name, value):
        value = value[0] if isinstance(value, tuple) and value else value
        if isinstance(value, torch.Tensor):
            into[name] = value.clone()

    def _rotate(self, *args, **kwargs):
        q, k = self.rotate(*args, **kwargs)
        self.rotated.append((q.clone(), k.clone()))
        return q, k

    def close(self):
        if self.rotate:
            self.modeling.apply_rotary_pos_emb = self.rotate


def close(name, ours, theirs):
    """Holds a value computed here against one that transformers computed."""
    worst = (ours - theirs).abs().max() / theirs.abs().max()
    assert worst < 1e-5, f"{name}: off by {worst}"


def text_config(config):
    return getattr(config, "text_config", config)


def shape_of(config):
    """Heads, key-value heads and their width."""
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    if config.model_type == "falcon":
        return heads, config.num_kv_heads if config.new_decoder_architecture or not config.multi_query else 1, width
    return heads, getattr(config, "num_key_value_heads", None) or heads, width


def rotates(config, layer):
    if config.model_type == "smollm3":
        return bool(config.no_rope_layers[layer])
    return config.model_type not in ("gpt2", "gpt_neo", "opt") and not getattr(config, "alibi", False)


def normalise(x, kind, eps):
    """The divisor and the normalised value, by definition."""
    if kind == "layer":
        x = x - x.mean(-1, keepdim=True)
    scale = (x * x).mean(-1, keepdim=True).add(eps).sqrt()
    return scale, x / scale


def norm_eps(module):
    """A norm keeps its constant under one of three names; OLMo's has it in the code."""
    found = [getattr(module, key) for key in ("eps", "variance_epsilon") if hasattr(module, key)]
    return found[0] if found else 1e-5


def norm_hooks(golden, point, parts, record, model, path):
    """`hook_scale` and `hook_normalized` of the norm at `path`."""
    module = model.get_submodule(path)
    scale, normalized = normalise(record.ins[path], parts.norm, norm_eps(module))
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    after = normalized if weight is None else normalized * (weight + 1 if parts.norm == "rms+1" else weight)
    close(point, after if bias is None else after + bias, record.outs[path])
    golden[point + ".hook_scale"], golden[point + ".hook_normalized"] = scale, normalized


def clipped(config, x):
    clip = getattr(config, "clip_qkv", None)
    return x if clip is None else x.clamp(-clip, clip)


def projections(config, parts, record, block):
    """Queries `[b, s, H, h]`, keys and values `[b, s, K, h]`, before norm and rotation."""
    heads, kv_heads, width = shape_of(config)
    if parts.fused is None:
        q, k, v = (record.outs[block + getattr(parts, part)].unflatten(-1, (-1, width)) for part in "qkv")
    elif parts.fused_order == "stacked":
        rows = record.outs[block + parts.fused].unflatten(-1, (heads + 2 * kv_heads, width))
        q, k, v = rows[:, :, :heads], rows[:, :, heads : heads + kv_heads], rows[:, :, heads + kv_heads :]
    else:
        groups = record.outs[block + parts.fused].unflatten(-1, (kv_heads, heads // kv_heads + 2, width))
        q, k, v = groups[..., :-2, :].flatten(2, 3), groups[..., -2, :], groups[..., -1, :]
    if parts.q_norm is None:  # otherwise queries and keys are clipped behind their norm
        q, k = clipped(config, q), clipped(config, k)
    return q, k, clipped(config, v)


def head_norm_hooks(golden, point, parts, model, path, x):
    """As `norm_hooks` for queries or keys, whose norm is per head, or over all heads where its weight is that wide.
    Returns the value after gain and bias."""
    module = model.get_submodule(path)
    heads = list(getattr(module, "norms", [module]))  # StableLM has a weight for each head
    weight = torch.stack([head.weight for head in heads])  # 1 or H, width
    full = weight.shape[-1] != x.shape[-1]
    scale, normalized = normalise(x.flatten(2) if full else x, parts.norm, norm_eps(heads[0]))
    golden[point + ".hook_scale"], golden[point + ".hook_normalized"] = scale, normalized
    after = normalized * ((weight + 1 if parts.norm == "rms+1" else weight)[0] if full or len(heads) == 1 else weight)
    bias = getattr(heads[0], "bias", None)
    return (after if bias is None else after + bias).reshape(x.shape)


def rotated(config, placed, values):
    """Rotated queries or keys `[b, s, heads, h]` from transformers' `[b, heads, s, r]`: parts of heads that do not rotate
    are those of `placed`, and Falcon's repeated key heads are taken once."""
    values = values.transpose(1, 2)
    values = values[:, :, :: values.shape[2] // placed.shape[2]]
    return torch.cat([values, placed[..., values.shape[-1] :]], -1)


def attention_hooks(golden, p, config, parts, model, record, block, pattern, turned):
    q, k, v = projections(config, parts, record, block)
    golden |= {p + "attn.hook_q": q, p + "attn.hook_k": k, p + "attn.hook_v": v}
    if parts.q_norm:
        q = clipped(config, head_norm_hooks(golden, p + "attn.q_norm", parts, model, block + parts.q_norm, q))
        k = clipped(config, head_norm_hooks(golden, p + "attn.k_norm", parts, model, block + parts.k_norm, k))
    if turned:
        rot_q, rot_k = rotated(config, q, turned[0]), rotated(config, k, turned[1])
        if not getattr(config, "rope_scaling", None):  # which may bring a temperature
            close(p + "rotation by nothing", rot_q[:, 0], q[:, 0])
            close(p + "rotation by nothing", rot_k[:, 0], k[:, 0])
        golden |= {p + "attn.hook_rot_q": rot_q, p + "attn.hook_rot_k": rot_k}
    z = record.ins[block + parts.out].unflatten(-1, q.shape[2:])
    repeated = v.repeat_interleave(q.shape[2] // v.shape[2], 2)
    close(p + "attn.hook_z", torch.einsum("bhqk,bkhd->bqhd", pattern, repeated), z)
    golden |= {p + "attn.hook_pattern": pattern, p + "attn.hook_z": z}


def mlp_hooks(golden, p, parts, record, block, like, experts_per_token):
    golden[p + "mlp.hook_in"] = record.ins[block + (parts.mlp or parts.up)].view(like.shape)
    if parts.router:
        weights = record.outs[block + parts.router].softmax(-1)
        golden[p + "mlp.hook_expert_weights"] = weights
        golden[p + "mlp.hook_expert_indices"] = weights.topk(experts_per_token, -1).indices
        return
    if parts.gate_up:
        golden[p + "mlp.hook_pre"], golden[p + "mlp.hook_pre_linear"] = record.outs[block + parts.gate_up].chunk(2, -1)
    elif parts.gate:
        golden[p + "mlp.hook_pre"] = record.outs[block + parts.gate]
        golden[p + "mlp.hook_pre_linear"] = record.outs[block + parts.up]
    else:
        golden[p + "mlp.hook_pre"] = record.outs[block + parts.up].view(*like.shape[:2], -1)
    golden[p + "mlp.hook_post"] = record.ins[block + parts.down].view(*like.shape[:2], -1)


def block_hooks(golden, layer, config, parts, model, record, pattern, turned):
    """All points of one block. Values that equal another point's by an identity that the Rust tests check are left out:
    `hook_resid_pre`, `hook_mlp_in`, and `*_added` and `mlp.hook_out` where they are the `*_out`."""
    p, block = f"blocks.{layer}.", f"{parts.blocks}.{layer}."
    resid_pre, resid_post = record.ins[block[:-1]], record.outs[block[:-1]]
    attention_hooks(golden, p, config, parts, model, record, block, pattern, turned)
    mlp_hooks(golden, p, parts, record, block, resid_pre, getattr(config, "num_experts_per_tok", None))
    norms = {"ln1": parts.ln1, "ln2": parts.ln2, "ln1_post": parts.ln1_post, "ln2_post": parts.ln2_post}
    for name, path in norms.items():
        if path:
            norm_hooks(golden, p + name, parts, record, model, block + path)
            for value in ("hook_scale", "hook_normalized"):  # OPT flattens positions before its second norm
                golden[f"{p}{name}.{value}"] = golden[f"{p}{name}.{value}"].view(*resid_pre.shape[:2], -1)

    attn_out = record.outs[block + parts.attn]
    mlp_out = record.outs[block + (parts.mlp or parts.down)].view(resid_pre.shape)
    attn_added, mlp_added = attn_out, mlp_out
    if parts.ln1_post:
        golden[p + "mlp.hook_out"] = mlp_out
        attn_out = attn_added = record.outs[block + parts.ln1_post]
        mlp_out = mlp_added = record.outs[block + parts.ln2_post]
    if parts.wiring == "norm_output":
        attn_added, mlp_added = record.outs[block + parts.ln1], record.outs[block + parts.ln2]
    if multiplier := getattr(config, "residual_multiplier", None):
        attn_added, mlp_added = attn_out * multiplier, mlp_out * multiplier
    golden |= {p + "hook_attn_out": attn_out, p + "hook_mlp_out": mlp_out, p + "hook_resid_post": resid_post}
    if attn_added is not attn_out:
        golden |= {p + "hook_attn_added": attn_added, p + "hook_mlp_added": mlp_added}

    if parts.wiring == "norm_stream":
        golden[p + "hook_resid_mid"] = record.outs[block + parts.ln1]
        close(p + "norm of the stream", record.ins[block + parts.ln1], resid_pre + attn_out)
        return
    if parts.wiring != "parallel":
        golden[p + "hook_resid_mid"] = resid_mid = resid_pre + attn_added
        read = record.ins[block + parts.mlp] if parts.wiring == "norm_output" else record.ins[block + parts.ln2]
        close(p + "hook_resid_mid", resid_mid, read.view(resid_mid.shape))
    close(p + "hook_resid_post", resid_pre + attn_added + mlp_added, resid_post)


def capture(model, tokens):
    """Tokens, logits and every hook point's value for one forward pass."""
    config, parts, record = text_config(model.config), modules_of(model.config), Record(model)
    # Without a head mask Falcon's eager attention adds its position bias twice: in the mask and to the scores.
    once = dict(head_mask=torch.ones(config.num_hidden_layers, config.num_attention_heads)) if getattr(config, "alibi", False) else {}
    try:
        result = model(tokens, output_attentions=True, use_cache=False, **once)
    finally:
        record.close()
    layers = len(model.get_submodule(parts.blocks))
    first = record.ins[f"{parts.blocks}.0"]
    golden = {"tokens": tokens, "logits": result.logits, "hook_embed": first}
    if parts.pos_embed:
        golden["hook_embed"] = record.outs[parts.embed]
        golden["hook_pos_embed"] = record.outs[parts.pos_embed].expand_as(first)
        close("hook_pos_embed", golden["hook_embed"] + golden["hook_pos_embed"], first)
    turning = [layer for layer in range(layers) if rotates(config, layer)]
    assert len(turning) == len(record.rotated), "a layer rotates that should not, or the other way round"
    turned = dict(zip(turning, record.rotated))
    for layer in range(layers):
        block_hooks(golden, layer, config, parts, model, record, result.attentions[layer], turned.get(layer))
    if parts.ln_final:
        norm_hooks(golden, "ln_final", parts, record, model, parts.ln_final)
    # OPT-350m projects down before its head; the point is before that, where the stream still has its width.
    golden["unembed.hook_in"] = record.ins.get("model.decoder.project_out", record.ins[parts.unembed])
    if not torch.equal(record.outs[parts.unembed], result.logits):
        golden["unembed.hook_out"] = record.outs[parts.unembed]
    return {name: value.contiguous() for name, value in golden.items()}
