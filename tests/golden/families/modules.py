"""Where each family keeps its parts: dotted module names, and how its block is wired."""
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Modules:
    """Module names of one family. Those of a block follow `blocks` and the layer number; None means there is none."""
    embed: str = "model.embed_tokens"
    pos_embed: str | None = None
    blocks: str = "model.layers"
    ln_final: str | None = "model.norm"
    unembed: str = "lm_head"
    ln1: str = "input_layernorm"
    ln2: str = "post_attention_layernorm"
    ln1_post: str | None = None
    ln2_post: str | None = None
    attn: str = "self_attn"
    q: str = "self_attn.q_proj"
    k: str = "self_attn.k_proj"
    v: str = "self_attn.v_proj"
    fused: str | None = None        # instead of q, k, v
    fused_order: str = "grouped"    # per key head: its queries, key, value; or "stacked": all queries, keys, values
    q_norm: str | None = None
    k_norm: str | None = None
    out: str = "self_attn.o_proj"
    mlp: str | None = "mlp"
    gate: str | None = "mlp.gate_proj"
    up: str | None = "mlp.up_proj"
    gate_up: str | None = None      # instead of gate and up: both stacked
    down: str | None = "mlp.down_proj"
    router: str | None = None       # mixtures of experts; then there is no gate, up or down
    norm: str = "rms"               # or "rms+1", whose weight is stored minus one, or "layer"
    wiring: str = "sequential"      # or "parallel"; "norm_output": the norms stand behind attention and MLP, before
                                    # the addition; "norm_stream": behind the addition


LLAMA = Modules()
GEMMA = replace(LLAMA, norm="rms+1")
GEMMA2 = replace(GEMMA, ln1_post="post_attention_layernorm", ln2="pre_feedforward_layernorm",
                 ln2_post="post_feedforward_layernorm")
GEMMA3 = replace(GEMMA2, q_norm="self_attn.q_norm", k_norm="self_attn.k_norm")
QWEN3 = replace(LLAMA, q_norm="self_attn.q_norm", k_norm="self_attn.k_norm")
GPT2 = Modules(embed="transformer.wte", pos_embed="transformer.wpe", blocks="transformer.h", ln_final="transformer.ln_f",
               ln1="ln_1", ln2="ln_2", attn="attn", fused="attn.c_attn", fused_order="stacked", out="attn.c_proj",
               gate=None, up="mlp.c_fc", down="mlp.c_proj", norm="layer")
NEO = "attn.attention."
PHI = replace(LLAMA, ln_final="model.final_layernorm", ln2="input_layernorm", out="self_attn.dense", gate=None, up="mlp.fc1",
              down="mlp.fc2", norm="layer", wiring="parallel")
FALCON = Modules(embed="transformer.word_embeddings", blocks="transformer.h", ln_final="transformer.ln_f", attn="self_attention",
                 fused="self_attention.query_key_value", out="self_attention.dense", gate=None, up="mlp.dense_h_to_4h",
                 down="mlp.dense_4h_to_h", norm="layer")
EXPERTS = dict(gate=None, up=None, down=None)


def modules_of(config):
    """The parts of the model that `config` describes."""
    match config.model_type:
        case "gpt2":
            return GPT2
        case "gpt_neo":
            return replace(GPT2, attn="attn.attention", fused=None, q=NEO + "q_proj", k=NEO + "k_proj", v=NEO + "v_proj",
                           out=NEO + "out_proj")
        case "gpt_neox":
            return Modules(embed="gpt_neox.embed_in", blocks="gpt_neox.layers", ln_final="gpt_neox.final_layer_norm",
                           unembed="embed_out",
                           attn="attention", fused="attention.query_key_value", out="attention.dense", gate=None,
                           up="mlp.dense_h_to_4h",
                           down="mlp.dense_4h_to_h", norm="layer",
                           wiring="parallel" if config.use_parallel_residual else "sequential")
        case "opt":
            before = config.do_layer_norm_before
            projected = config.word_embed_proj_dim != config.hidden_size
            return Modules(embed="model.decoder.project_in" if projected else "model.decoder.embed_tokens",
                           pos_embed="model.decoder.embed_positions", blocks="model.decoder.layers",
                           ln_final="model.decoder.final_layer_norm" if before and not config._remove_final_layer_norm else None,
                           ln1="self_attn_layer_norm", ln2="final_layer_norm", out="self_attn.out_proj", mlp=None, gate=None,
                           up="fc1",
                           down="fc2", norm="layer", wiring="sequential" if before else "norm_stream")
        case "llama" | "mistral" | "qwen2" | "smollm3" | "granite":
            return LLAMA
        case "qwen3":
            return QWEN3
        case "gemma":
            return GEMMA
        case "gemma2":
            return GEMMA2
        case "gemma3_text":
            return GEMMA3
        case "gemma3":
            inner = "model.language_model."
            return replace(GEMMA3, embed=inner + "embed_tokens", blocks=inner + "layers", ln_final=inner + "norm")
        case "phi":
            norms = dict(q_norm="self_attn.q_layernorm", k_norm="self_attn.k_layernorm") if config.qk_layernorm else {}
            return replace(PHI, **norms)
        case "phi3":
            return replace(LLAMA, fused="self_attn.qkv_proj", fused_order="stacked", gate_up="mlp.gate_up_proj")
        case "olmo":
            return replace(LLAMA, norm="layer")
        case "olmo2":
            return replace(QWEN3, ln1="post_attention_layernorm", ln2="post_feedforward_layernorm", wiring="norm_output")
        case "falcon":
            norms = {}
            if config.new_decoder_architecture and config.num_ln_in_parallel_attn != 1:
                norms = dict(ln1="ln_attn", ln2="ln_mlp")
            elif config.parallel_attn:
                norms = dict(ln2="input_layernorm")
            parallel = config.parallel_attn or config.new_decoder_architecture
            return replace(FALCON, **norms, wiring="parallel" if parallel else "sequential")
        case "stablelm":
            norms = dict(q_norm="self_attn.q_layernorm", k_norm="self_attn.k_layernorm") if config.qk_layernorm else {}
            parallel = dict(wiring="parallel", ln2="input_layernorm") if config.use_parallel_residual else {}
            return replace(LLAMA, norm="layer", **norms, **parallel)
        case "starcoder2":
            return replace(LLAMA, gate=None, up="mlp.c_fc", down="mlp.c_proj", norm="layer")
        case "mixtral":
            return replace(LLAMA, mlp="block_sparse_moe", router="block_sparse_moe.gate", **EXPERTS)
        case "qwen2_moe":
            return replace(LLAMA, router="mlp.gate", **EXPERTS)
        case "qwen3_moe" | "olmoe":
            return replace(QWEN3, router="mlp.gate", **EXPERTS)
    raise ValueError(config.model_type)
