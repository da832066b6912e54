//! The architectures of llama.cpp: what GGUF calls their tensors (`gguf-py/gguf/tensor_mapping.py`), what Hugging Face
//! calls them, and what the conversion does to their values (`conversion/*.py` of llama.cpp).

/// Names in GGUF and in Hugging Face checkpoints, without layer number and suffix.
type Pairs = &'static [(&'static str, &'static str)];

/// How a fused query, key and value matrix was put in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fused {
    /// Queries, keys, values; as in the checkpoint, or one after the other where it has three matrices.
    No,
    /// The checkpoint goes head by head: its query, its key, its value.
    ByHead,
    /// The checkpoint goes key-value head by key-value head: its queries, its key, its value.
    ByGroup,
}

/// One architecture of llama.cpp.
#[derive(Debug)]
pub(super) struct Arch {
    /// `general.architecture`.
    pub(super) name: &'static str,
    /// `model_type` in `config.json`.
    pub(super) model_type: &'static str,
    /// Tensors outside of blocks.
    pub(super) top: Pairs,
    /// What stands before the layer number in Hugging Face's names.
    pub(super) block: &'static str,
    /// Tensors inside of blocks.
    pub(super) parts: &'static [Pairs],
    /// Whether the rows of queries and keys are in the order that rotates neighbours against each other, where Hugging
    /// Face rotates halves (`LlamaModel.permute`; `LLAMA_ROPE_TYPE_NORM`).
    pub(super) interleaved: bool,
    /// Whether norm weights are stored with the one added that Hugging Face adds when it applies them.
    pub(super) norms_plus_one: bool,
    /// Whether Hugging Face stores the matrices of blocks as `[in, out]`.
    pub(super) transposed: bool,
    /// The order of a fused query, key and value matrix.
    pub(super) fused: Fused,
}

const TOP: Pairs = &[("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];
const ATTENTION: Pairs = &[
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
];
const QK_NORMS: Pairs = &[("attn_q_norm", "self_attn.q_norm"), ("attn_k_norm", "self_attn.k_norm")];
const GATED: Pairs = &[("ffn_gate", "mlp.gate_proj"), ("ffn_up", "mlp.up_proj"), ("ffn_down", "mlp.down_proj")];
const NORMS: Pairs = &[("attn_norm", "input_layernorm"), ("ffn_norm", "post_attention_layernorm")];
const POST_NORMS: Pairs =
    &[("post_attention_norm", "post_attention_layernorm"), ("post_ffw_norm", "post_feedforward_layernorm")];
const SANDWICH_NORMS: Pairs = &[("attn_norm", "input_layernorm"), ("ffn_norm", "pre_feedforward_layernorm")];

const LLAMA: Arch = Arch {
    name: "llama",
    model_type: "llama",
    top: TOP,
    block: "model.layers.",
    parts: &[NORMS, ATTENTION, GATED],
    interleaved: true,
    norms_plus_one: false,
    transposed: false,
    fused: Fused::No,
};

static ARCHS: [Arch; 16] = [
    LLAMA,
    Arch { name: "granite", model_type: "granite", ..LLAMA },
    Arch { name: "smollm3", model_type: "smollm3", ..LLAMA },
    Arch { name: "olmo", model_type: "olmo", parts: &[ATTENTION, GATED], ..LLAMA },
    Arch {
        name: "olmo2",
        model_type: "olmo2",
        parts: &[POST_NORMS, QK_NORMS, ATTENTION, GATED],
        interleaved: false,
        ..LLAMA
    },
    Arch { name: "qwen2", model_type: "qwen2", interleaved: false, ..LLAMA },
    Arch {
        name: "qwen3",
        model_type: "qwen3",
        parts: &[NORMS, QK_NORMS, ATTENTION, GATED],
        interleaved: false,
        ..LLAMA
    },
    Arch { name: "gemma", model_type: "gemma", interleaved: false, norms_plus_one: true, ..LLAMA },
    Arch {
        name: "gemma2",
        model_type: "gemma2",
        parts: &[SANDWICH_NORMS, POST_NORMS, ATTENTION, GATED],
        interleaved: false,
        norms_plus_one: true,
        ..LLAMA
    },
    Arch {
        name: "gemma3",
        model_type: "gemma3_text",
        parts: &[SANDWICH_NORMS, POST_NORMS, QK_NORMS, ATTENTION, GATED],
        interleaved: false,
        norms_plus_one: true,
        ..LLAMA
    },
    Arch {
        name: "phi2",
        model_type: "phi",
        top: &[("token_embd", "model.embed_tokens"), ("output_norm", "model.final_layernorm"), ("output", "lm_head")],
        parts: &[&[
            ("attn_norm", "input_layernorm"),
            ("attn_q", "self_attn.q_proj"),
            ("attn_k", "self_attn.k_proj"),
            ("attn_v", "self_attn.v_proj"),
            ("attn_output", "self_attn.dense"),
            ("ffn_up", "mlp.fc1"),
            ("ffn_down", "mlp.fc2"),
        ]],
        interleaved: false,
        ..LLAMA
    },
    Arch {
        name: "phi3",
        model_type: "phi3",
        parts: &[
            NORMS,
            &[
                ("attn_qkv", "self_attn.qkv_proj"),
                ("attn_output", "self_attn.o_proj"),
                ("ffn_up", "mlp.gate_up_proj"),
                ("ffn_down", "mlp.down_proj"),
            ],
        ],
        interleaved: false,
        ..LLAMA
    },
    Arch {
        name: "starcoder2",
        model_type: "starcoder2",
        parts: &[NORMS, ATTENTION, &[("ffn_up", "mlp.c_fc"), ("ffn_down", "mlp.c_proj")]],
        interleaved: false,
        ..LLAMA
    },
    Arch {
        name: "stablelm",
        model_type: "stablelm",
        parts: &[
            NORMS,
            ATTENTION,
            GATED,
            &[("attn_q_norm", "self_attn.q_layernorm"), ("attn_k_norm", "self_attn.k_layernorm")],
        ],
        interleaved: false,
        ..LLAMA
    },
    Arch {
        name: "gptneox",
        model_type: "gpt_neox",
        top: &[
            ("token_embd", "gpt_neox.embed_in"),
            ("output_norm", "gpt_neox.final_layer_norm"),
            ("output", "embed_out"),
        ],
        block: "gpt_neox.layers.",
        parts: &[
            NORMS,
            &[
                ("attn_qkv", "attention.query_key_value"),
                ("attn_output", "attention.dense"),
                ("ffn_up", "mlp.dense_h_to_4h"),
                ("ffn_down", "mlp.dense_4h_to_h"),
            ],
        ],
        interleaved: false,
        fused: Fused::ByHead,
        ..LLAMA
    },
    Arch {
        name: "falcon",
        model_type: "falcon",
        top: &[
            ("token_embd", "transformer.word_embeddings"),
            ("output_norm", "transformer.ln_f"),
            ("output", "lm_head"),
        ],
        block: "transformer.h.",
        parts: &[&[
            ("attn_norm", "input_layernorm"),
            ("ffn_norm", "post_attention_layernorm"),
            ("attn_qkv", "self_attention.query_key_value"),
            ("attn_output", "self_attention.dense"),
            ("ffn_up", "mlp.dense_h_to_4h"),
            ("ffn_down", "mlp.dense_4h_to_h"),
        ]],
        interleaved: false,
        fused: Fused::ByGroup,
        ..LLAMA
    },
];

static GPT2: Arch = Arch {
    name: "gpt2",
    model_type: "gpt2",
    top: &[
        ("token_embd", "transformer.wte"),
        ("position_embd", "transformer.wpe"),
        ("output_norm", "transformer.ln_f"),
        ("output", "lm_head"),
    ],
    block: "transformer.h.",
    parts: &[&[
        ("attn_norm", "ln_1"),
        ("attn_qkv", "attn.c_attn"),
        ("attn_output", "attn.c_proj"),
        ("ffn_norm", "ln_2"),
        ("ffn_up", "mlp.c_fc"),
        ("ffn_down", "mlp.c_proj"),
    ]],
    interleaved: false,
    transposed: true,
    ..LLAMA
};

/// Falcon's blocks with two norms side by side, which GGUF tells by the second one.
pub(super) const FALCON_TWO_NORMS: Pairs = &[("attn_norm", "ln_mlp"), ("attn_norm_2", "ln_attn")];

/// All architectures that can be opened.
pub(super) fn all() -> impl Iterator<Item = &'static Arch> {
    ARCHS.iter().chain([&GPT2])
}
