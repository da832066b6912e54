"""The checkpoints: small, random and awkward. Between them every axis of every family is off its default somewhere."""
from dataclasses import dataclass, field
import transformers as hf


@dataclass
class Checkpoint:
    """One model and how its directory is written."""
    config: object
    length: int = 14                              # tokens, longer than every window
    batch: int = 1
    dtype: str = "bfloat16"                       # of the stored weights
    written: dict = field(default_factory=dict)   # overrides config.json; None leaves the key out
    sparse: bool = False                          # config.json without the keys that have their class's default
    strip: str = ""                               # prefix that the stored names lack
    rename: tuple = ("", "")                      # prefix of stored names, and what stands there instead
    extra: tuple = ()                             # stored names that no decoder needs
    shards: int = 1


TOKENS = dict(bos_token_id=1, eos_token_id=2)
SIZE = dict(vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=32, **TOKENS)
GROUPED = dict(**SIZE, intermediate_size=20, num_key_value_heads=2)
WIDE = dict(vocab_size=48, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, **TOKENS)
ROPE = {**GROUPED, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64}
ORIGINAL = dict(original_max_position_embeddings=16)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, **ORIGINAL)
YARN = dict(rope_type="yarn", factor=3.0, original_max_position_embeddings=8)
EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=12)


def but(base, **changes):
    return {**base, **changes}


def full(*kinds):
    return [f"{kind}_attention" for kind in kinds]


CHECKPOINTS = {
    "gpt2": Checkpoint(hf.GPT2Config(vocab_size=48, n_positions=32, n_embd=24, n_layer=3, n_head=4, **TOKENS), batch=2, length=8,
                       dtype="float16"),
    # The original OpenAI files have no prefix and carry mask buffers.
    "gpt2-scaled": Checkpoint(
        hf.GPT2Config(vocab_size=40, n_positions=32, n_embd=18, n_layer=3, n_head=3, n_inner=20, activation_function="relu",
                      scale_attn_by_inverse_layer_idx=True, layer_norm_epsilon=1e-3, **TOKENS),
        dtype="float32", strip="transformer.", extra=("h.0.attn.bias", "h.0.attn.masked_bias")),

    "gpt_neo": Checkpoint(
        hf.GPTNeoConfig(vocab_size=40, hidden_size=16, num_layers=2, num_heads=4, max_position_embeddings=32, window_size=5,
                        attention_types=[[["global", "local"], 1]], **TOKENS), sparse=True,
                        extra=("transformer.h.0.attn.attention.masked_bias",)),
    "gpt_neo-untied": Checkpoint(
        hf.GPTNeoConfig(vocab_size=40, hidden_size=18, num_layers=3, num_heads=3, max_position_embeddings=24, window_size=4,
                        intermediate_size=20,
                        attention_types=[[["local"], 2], [["global"], 1]], activation_function="gelu", layer_norm_epsilon=1e-3,
                        tie_word_embeddings=False, **TOKENS),
        written=dict(attention_layers=None)),

    "gpt_neox": Checkpoint(
        hf.GPTNeoXConfig(**but(SIZE, num_attention_heads=2), intermediate_size=24), sparse=True,
        extra=("gpt_neox.layers.0.attention.bias", "gpt_neox.layers.0.attention.masked_bias",
               "gpt_neox.layers.0.attention.rotary_emb.inv_freq")),
    "gpt_neox-sequential": Checkpoint(
        hf.GPTNeoXConfig(**but(SIZE, hidden_size=18, num_attention_heads=3), intermediate_size=20, rotary_pct=0.7,
                         rotary_emb_base=100,
                         use_parallel_residual=False, attention_bias=False, hidden_act="gelu_new", layer_norm_eps=1e-3,
                         tie_word_embeddings=True)),

    "opt": Checkpoint(hf.OPTConfig(**SIZE, ffn_dim=24), sparse=True),
    "opt-350m": Checkpoint(hf.OPTConfig(**SIZE, ffn_dim=24, do_layer_norm_before=False, word_embed_proj_dim=12,
                                        activation_function="gelu"), strip="model."),
    "opt-bare": Checkpoint(hf.OPTConfig(**SIZE, ffn_dim=24, enable_bias=False, layer_norm_elementwise_affine=False,
                                        _remove_final_layer_norm=True,
                                        tie_word_embeddings=False)),

    "llama": Checkpoint(hf.LlamaConfig(**WIDE, tie_word_embeddings=True), batch=2, length=10),
    "llama-wide": Checkpoint(
        hf.LlamaConfig(**but(WIDE, num_attention_heads=6), head_dim=10, attention_bias=True, mlp_bias=True, rms_norm_eps=1e-3,
                       hidden_act="gelu"),
        dtype="float32", length=10, shards=2),
    "llama-linear": Checkpoint(hf.LlamaConfig(**ROPE, rope_scaling=dict(rope_type="linear", factor=4.0))),
    "llama-dynamic": Checkpoint(hf.LlamaConfig(**but(ROPE, max_position_embeddings=16),
                                               rope_scaling=dict(rope_type="dynamic", factor=2.0)), length=20),
    "llama-llama3": Checkpoint(hf.LlamaConfig(**ROPE, rope_theta=500.0, rope_scaling=LLAMA3), length=20),
    "llama-v5": Checkpoint(  # transformers 5 keeps everything about rotation in one place
        hf.LlamaConfig(**ROPE, rope_theta=300.0, rope_scaling=LLAMA3),
        written=dict(rope_theta=None, rope_scaling=None, rope_parameters=dict(rope_theta=300.0, **LLAMA3))),
    "llama-yarn": Checkpoint(  # the ramp begins and ends inside the four frequencies
        hf.LlamaConfig(**ROPE, rope_theta=20.0, rope_scaling=dict(rope_type="yarn", factor=4.0, beta_fast=1.0, beta_slow=0.2, **ORIGINAL)),
        length=20),
    # transformers 4 reads the trained length of longrope beside max_position_embeddings, not inside rope_scaling.
    "llama-longrope": Checkpoint(
        hf.LlamaConfig(**ROPE, **ORIGINAL, rope_scaling=dict(rope_type="longrope", short_factor=[1.0, 1.1, 1.2, 1.3],
                                                             long_factor=[2.0, 3.0, 4.0, 5.0])), length=20),

    "mistral": Checkpoint(hf.MistralConfig(**but(GROUPED, num_key_value_heads=1), head_dim=6, sliding_window=5,
                                           tie_word_embeddings=True)),
    "mistral-full": Checkpoint(hf.MistralConfig(**GROUPED, sliding_window=None, rope_theta=1e6, rms_norm_eps=1e-3), sparse=True),

    "qwen2": Checkpoint(hf.Qwen2Config(**but(GROUPED, num_hidden_layers=3), use_sliding_window=True, sliding_window=4,
                                       max_window_layers=1, tie_word_embeddings=True),
                        written=dict(layer_types=None)),
    "qwen2-yarn": Checkpoint(  # a window that is switched off, as in the released files
        hf.Qwen2Config(**GROUPED, rope_theta=500.0, rope_scaling=YARN),
        written=dict(layer_types=None, sliding_window=4, max_window_layers=1, use_sliding_window=False)),

    "qwen3": Checkpoint(hf.Qwen3Config(**GROUPED, head_dim=8, tie_word_embeddings=True, rope_theta=1e6), sparse=True,
                        written=dict(layer_types=None)),
    "qwen3-window": Checkpoint(
        hf.Qwen3Config(**but(GROUPED, num_key_value_heads=4), head_dim=6, attention_bias=True, rms_norm_eps=1e-3,
                       layer_types=full("sliding", "full"),
                       use_sliding_window=True, sliding_window=4, max_window_layers=1)),

    # The first release says "gelu" and means its tanh approximation.
    "gemma": Checkpoint(hf.GemmaConfig(**but(GROUPED, hidden_size=20, num_key_value_heads=1), head_dim=6, rms_norm_eps=1e-3),
                        written=dict(hidden_act="gelu")),
    "gemma-heads": Checkpoint(hf.GemmaConfig(**but(GROUPED, num_key_value_heads=4), head_dim=6, attention_bias=True,
                                             tie_word_embeddings=False),
                              written=dict(hidden_act="gelu", hidden_activation="gelu_pytorch_tanh")),

    "gemma2": Checkpoint(
        hf.Gemma2Config(**but(GROUPED, hidden_size=20), head_dim=6, sliding_window=5, query_pre_attn_scalar=7,
                        attn_logit_softcapping=3.0, final_logit_softcapping=4.0),
        sparse=True, written=dict(layer_types=None)),
    "gemma2-uncapped": Checkpoint(
        hf.Gemma2Config(**but(GROUPED, num_hidden_layers=3, num_key_value_heads=1), head_dim=4, sliding_window=4,
                        query_pre_attn_scalar=16, rms_norm_eps=1e-3,
                        attn_logit_softcapping=None, final_logit_softcapping=None, attention_bias=True, hidden_activation="gelu",
                        layer_types=full("full", "sliding", "sliding"), tie_word_embeddings=False)),

    "gemma3_text": Checkpoint(  # five windowed layers to one that sees everything
        hf.Gemma3TextConfig(**but(GROUPED, hidden_size=12, num_hidden_layers=6, num_attention_heads=2, num_key_value_heads=1,
                                  intermediate_size=16), head_dim=8,
                            sliding_window=4, query_pre_attn_scalar=9, rope_scaling=dict(rope_type="linear", factor=8.0)),
        length=10, written=dict(layer_types=None, sliding_window_pattern=6)),
    "gemma3_text-v5": Checkpoint(
        hf.Gemma3TextConfig(**but(GROUPED, hidden_size=20, num_hidden_layers=3), head_dim=6, sliding_window=5,
                            query_pre_attn_scalar=6, rope_theta=2000.0,
                            rope_local_base_freq=50.0, rope_scaling=dict(rope_type="linear", factor=4.0),
                            final_logit_softcapping=5.0, attn_logit_softcapping=None,
                            layer_types=full("sliding", "full", "sliding"), tie_word_embeddings=False),
        written=dict(rope_theta=None, rope_local_base_freq=None, rope_scaling=None, rope_parameters={
            "full_attention": dict(rope_type="linear", factor=4.0, rope_theta=2000.0),
            "sliding_attention": dict(rope_type="default", rope_theta=50.0)})),
    # Text layers inside a multimodal checkpoint, in transformers' two spellings; released files leave out defaults, eight heads among them.
    "gemma3": Checkpoint(
        hf.Gemma3Config(text_config=dict(**but(GROUPED, num_attention_heads=8, num_key_value_heads=4,
                                               max_position_embeddings=131072), head_dim=4, sliding_window=5,
                                         rope_scaling=dict(rope_type="linear", factor=8.0)),
                        vision_config=dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
                                           image_size=2, patch_size=1),
                        mm_tokens_per_image=4), sparse=True, length=10, written=dict(layer_types=None)),
    "gemma3-old-names": Checkpoint(
        hf.Gemma3Config(text_config=dict(**but(GROUPED, num_attention_heads=2, num_key_value_heads=1, num_hidden_layers=3),
                                         head_dim=8, sliding_window=4,
                                         layer_types=full("sliding", "full", "sliding")),
                        vision_config=dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
                                           image_size=2, patch_size=1),
                        mm_tokens_per_image=4), length=10, rename=("model.", "")),

    "phi": Checkpoint(hf.PhiConfig(**but(SIZE, num_attention_heads=2), intermediate_size=24), sparse=True),
    "phi-normed": Checkpoint(
        hf.PhiConfig(**but(SIZE, hidden_size=20, num_attention_heads=2), num_key_value_heads=1, intermediate_size=20,
                     partial_rotary_factor=0.4, qk_layernorm=True,
                     rope_theta=100.0, layer_norm_eps=1e-3, hidden_act="gelu", tie_word_embeddings=True),
        written=dict(rope_theta=None, partial_rotary_factor=None, rope_scaling=None,
                     rope_parameters=dict(rope_type="default", rope_theta=100.0, partial_rotary_factor=0.4))),

    "phi3": Checkpoint(hf.Phi3Config(**but(GROUPED, num_key_value_heads=1), pad_token_id=0, sliding_window=6), sparse=True),
    "phi3-long": Checkpoint(  # past the trained length, with heads that turn by three quarters
        hf.Phi3Config(**but(GROUPED, num_attention_heads=2, num_key_value_heads=1), pad_token_id=0, partial_rotary_factor=0.75,
                      sliding_window=9,
                      original_max_position_embeddings=8, rope_scaling=dict(type="longrope", short_factor=[1.0, 1.1, 1.3],
                                                                            long_factor=[2.0, 3.0, 5.0]),
                      tie_word_embeddings=True)),
    "phi3-short": Checkpoint(  # the same below the trained length
        hf.Phi3Config(**but(GROUPED, num_attention_heads=2, num_key_value_heads=2), pad_token_id=0,
                      original_max_position_embeddings=20, rms_norm_eps=1e-3,
                      rope_scaling=dict(type="longrope", short_factor=[1.0, 1.1, 1.3, 1.5], long_factor=[2.0, 3.0, 5.0, 7.0]))),

    "olmo": Checkpoint(hf.OlmoConfig(**but(GROUPED, num_key_value_heads=4), clip_qkv=0.8, tie_word_embeddings=True)),
    "olmo-grouped": Checkpoint(hf.OlmoConfig(**GROUPED, attention_bias=True, rope_theta=100.0,
                                             rope_scaling=dict(type="linear", factor=2.0))),
    "olmo2": Checkpoint(hf.Olmo2Config(**but(GROUPED, num_key_value_heads=4)), sparse=True),
    "olmo2-grouped": Checkpoint(
        hf.Olmo2Config(**but(GROUPED, max_position_embeddings=12), attention_bias=True, rms_norm_eps=1e-3,
                       rope_scaling=dict(type="dynamic", factor=2.0),
                       tie_word_embeddings=True)),

    "falcon": Checkpoint(hf.FalconConfig(**SIZE, ffn_hidden_size=24), sparse=True),
    "falcon-grouped": Checkpoint(hf.FalconConfig(**SIZE, ffn_hidden_size=20, new_decoder_architecture=True, num_kv_heads=2,
                                                 bias=True, layer_norm_epsilon=1e-3)),
    "falcon-one-norm": Checkpoint(
        hf.FalconConfig(**SIZE, ffn_hidden_size=20, new_decoder_architecture=True, num_kv_heads=1, num_ln_in_parallel_attn=1,
                        activation="gelu_pytorch_tanh",
                        rope_theta=100.0, tie_word_embeddings=False)),
    "falcon-alibi": Checkpoint(
        hf.FalconConfig(**but(SIZE, hidden_size=18, num_attention_heads=6), ffn_hidden_size=20, alibi=True, multi_query=False,
                        parallel_attn=False, bias=True)),

    "smollm3": Checkpoint(hf.SmolLM3Config(**but(GROUPED, num_hidden_layers=4), pad_token_id=0, tie_word_embeddings=True),
                          length=10, sparse=True,
                          written=dict(layer_types=None, no_rope_layers=None)),
    "smollm3-window": Checkpoint(
        hf.SmolLM3Config(**but(GROUPED, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1), pad_token_id=0,
                         no_rope_layers=[0, 1, 1], use_sliding_window=True, sliding_window=5, attention_bias=True, mlp_bias=True,
                         rope_theta=20.0, tie_word_embeddings=False,
                         rope_scaling=dict(**YARN, beta_fast=0.5, beta_slow=0.1, mscale=1.2, mscale_all_dim=0.7, truncate=False))),

    "stablelm": Checkpoint(hf.StableLmConfig(**but(GROUPED, num_attention_heads=2, num_key_value_heads=1), use_qkv_bias=True),
                           sparse=True),
    "stablelm-parallel": Checkpoint(
        hf.StableLmConfig(**but(GROUPED, hidden_size=24), use_parallel_residual=True, qk_layernorm=True,
                          partial_rotary_factor=0.7, layer_norm_eps=1e-3,
                          hidden_act="gelu", tie_word_embeddings=True)),

    "starcoder2": Checkpoint(hf.Starcoder2Config(**GROUPED, sliding_window=5)),
    "starcoder2-bare": Checkpoint(hf.Starcoder2Config(**but(GROUPED, num_key_value_heads=1), use_bias=False, sliding_window=None,
                                                      hidden_act="gelu", norm_epsilon=1e-3,
                                                      tie_word_embeddings=False)),

    "granite": Checkpoint(hf.GraniteConfig(**GROUPED, embedding_multiplier=3.0, residual_multiplier=0.4, attention_multiplier=0.3,
                                           logits_scaling=2.5, tie_word_embeddings=True)),
    "granite-biased": Checkpoint(hf.GraniteConfig(**GROUPED, residual_multiplier=1.7, attention_bias=True, mlp_bias=True,
                                                  rms_norm_eps=1e-3, rope_theta=300.0, rope_scaling=dict(**YARN, attention_factor=1.3)),
                                 sparse=True),
}

MIXTURES = {
    "mixtral": Checkpoint(hf.MixtralConfig(**but(GROUPED, intermediate_size=12), num_local_experts=4)),
    "mixtral-window": Checkpoint(hf.MixtralConfig(**but(GROUPED, intermediate_size=12), num_local_experts=3,
                                                  num_experts_per_tok=1, sliding_window=5, tie_word_embeddings=True)),
    "qwen2_moe": Checkpoint(hf.Qwen2MoeConfig(**GROUPED, **EXPERTS, shared_expert_intermediate_size=10)),
    "qwen2_moe-normed": Checkpoint(hf.Qwen2MoeConfig(**GROUPED, **EXPERTS, shared_expert_intermediate_size=14,
                                                     norm_topk_prob=True, tie_word_embeddings=True)),
    "qwen3_moe": Checkpoint(hf.Qwen3MoeConfig(**GROUPED, **EXPERTS, head_dim=8, norm_topk_prob=True)),
    "qwen3_moe-unnormed": Checkpoint(hf.Qwen3MoeConfig(**GROUPED, **EXPERTS, head_dim=6, attention_bias=True, sliding_window=4,
                                                       use_sliding_window=True, tie_word_embeddings=True)),
    "olmoe": Checkpoint(hf.OlmoeConfig(**but(GROUPED, intermediate_size=12), num_experts=4, num_experts_per_tok=2)),
    "olmoe-clipped": Checkpoint(hf.OlmoeConfig(**but(GROUPED, intermediate_size=12, num_key_value_heads=4), num_experts=4,
                                               num_experts_per_tok=3, norm_topk_prob=True, clip_qkv=0.8)),
}
