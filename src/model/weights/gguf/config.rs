//! The `config.json` that a GGUF file's metadata stands for. Keys: `llama-arch.cpp`; values that llama.cpp knows
//! without writing them down: `llama-model.cpp`.

use serde_json::{Map, Value, json};

use crate::base::Result;
use crate::data::gguf::Gguf;

use super::meta::{Meta, unsupported};
use super::{Arch, arch_of};

/// The `config.json` of the model in `gguf`.
///
/// # Errors
/// `Malformed` when keys are missing, `Unknown` for an architecture, `Unsupported` for a key of unknown meaning.
pub(in crate::model::weights) fn of(gguf: &Gguf) -> Result<Value> {
    let arch = arch_of(gguf)?;
    let meta = Meta::new(gguf, arch.name);
    let mut config = common(&meta, arch)?;
    let dims = Dims {
        layers: meta.usize("block_count")?,
        width: meta.usize("embedding_length")?,
        heads: meta.usize("attention.head_count")?,
        key_value: meta.usize_or("attention.head_count_kv", meta.usize("attention.head_count")?)?,
        head: 0,
    };
    if dims.layers > gguf.tensors().len() {
        return Err(gguf.wrong(format!("tensors for {} blocks", dims.layers), gguf.tensors().len().to_string()));
    }
    let head = meta.optional("attention.key_length")?;
    let dims = Dims { head: head.unwrap_or(dims.width / dims.heads.max(1)), ..dims };
    if let Some(value) = gguf.usize(&format!("{}.attention.value_length", arch.name))?
        && value != dims.head
    {
        return Err(unsupported(gguf, &format!("its values have {value} dimensions a head, its keys {}", dims.head)));
    }
    if head.is_some() {
        config.insert("head_dim".into(), dims.head.into());
    }
    rotary(&meta, &dims, &mut config)?;
    own(&meta, arch, &dims, &mut config)?;
    meta.check_all_used()?;
    Ok(Value::Object(config))
}

/// Sizes that several settings are made of.
struct Dims {
    layers: usize,
    width: usize,
    heads: usize,
    key_value: usize,
    head: usize,
}

type Config = Map<String, Value>;

fn put(config: &mut Config, fields: Value) {
    if let Value::Object(fields) = fields {
        config.extend(fields);
    }
}

/// What all architectures have.
fn common(meta: &Meta<'_>, arch: &Arch) -> Result<Config> {
    let gguf = meta.gguf;
    let embedding = gguf.tensors().get("token_embd.weight").ok_or_else(|| gguf.lacks("'token_embd.weight'"))?;
    let ids = |names: &[&str]| -> Result<Vec<usize>> {
        let mut ids = Vec::new();
        for name in names {
            ids.extend(gguf.usize(&format!("tokenizer.ggml.{name}_token_id"))?.filter(|id| !ids.contains(id)));
        }
        Ok(ids)
    };
    let heads = meta.usize("attention.head_count")?;
    let mut config = Config::new();
    put(
        &mut config,
        json!({
            "model_type": arch.model_type,
            "vocab_size": embedding.shape.first(),
            "hidden_size": meta.usize("embedding_length")?,
            "intermediate_size": meta.usize("feed_forward_length")?,
            "num_hidden_layers": meta.usize("block_count")?,
            "num_attention_heads": heads,
            "num_key_value_heads": meta.usize_or("attention.head_count_kv", heads)?,
            "max_position_embeddings": meta.usize("context_length")?,
            "tie_word_embeddings": !meta.has("output.weight"),
            "bos_token_id": ids(&["bos"])?.first(),
            "eos_token_id": ids(&["eos", "eot", "eom"])?,
        }),
    );
    if let Some(eps) = meta.f64("attention.layer_norm_rms_epsilon")? {
        put(&mut config, json!({"rms_norm_eps": eps}));
    }
    if let Some(eps) = meta.f64("attention.layer_norm_epsilon")? {
        put(&mut config, json!({"layer_norm_eps": eps, "layer_norm_epsilon": eps, "norm_epsilon": eps}));
    }
    Ok(config)
}

/// Rotary positions: base, how much of a head rotates, and scaling.
fn rotary(meta: &Meta<'_>, dims: &Dims, config: &mut Config) -> Result<()> {
    let theta = meta.f64("rope.freq_base")?.unwrap_or(10_000.0);
    put(config, json!({"rope_theta": theta, "rotary_emb_base": theta}));
    let rotated = meta.usize_or("rope.dimension_count", dims.head)?;
    if rotated > dims.head {
        let found = format!("{rotated} of {} dimensions", dims.head);
        return Err(meta.gguf.wrong("a part of every head to rotate", found));
    }
    // Families that rotate a part have other defaults than the whole.
    if rotated != dims.head || matches!(meta.arch, "phi2" | "phi3" | "stablelm" | "gptneox") {
        let part = rotated as f64 / dims.head.max(1) as f64;
        put(config, json!({"partial_rotary_factor": part, "rotary_pct": part}));
    }
    let factor = meta.f64("rope.scaling.factor")?;
    let original = meta.optional("rope.scaling.original_context_length")?;
    let attention = meta.f64("rope.scaling.attn_factor")?;
    let kind = meta.gguf.text(&meta.key("rope.scaling.type"))?;
    if let Some(original) = original {
        put(config, json!({"original_max_position_embeddings": original}));
    }
    let mut scaling = match (kind, factor) {
        (None, None) | (Some("none" | "longrope"), _) => Config::new(),
        (None | Some("linear"), Some(factor)) => fields(json!({"rope_type": "linear", "factor": factor})),
        (Some("yarn"), Some(factor)) => {
            let mut yarn = fields(json!({"rope_type": "yarn", "factor": factor}));
            for (ours, theirs) in [("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")] {
                if let Some(beta) = meta.f64(&format!("rope.scaling.{theirs}"))? {
                    yarn.insert(ours.into(), beta.into());
                }
            }
            yarn
        }
        (Some(kind), _) => return Err(unsupported(meta.gguf, &format!("it scales rotary positions by '{kind}'"))),
    };
    // Llama 3 stores the divisor of every frequency in place of the rule they come from.
    if let Some(factors) = meta.tensor("rope_freqs.weight")? {
        let same =
            json!({"rope_type": "longrope", "short_factor": factors, "long_factor": factors, "attention_factor": 1.0});
        scaling = fields(same);
    }
    let (long, short) = (meta.tensor("rope_factors_long.weight")?, meta.tensor("rope_factors_short.weight")?);
    if let (Some(long), Some(short)) = (long, short) {
        scaling = fields(json!({"rope_type": "longrope", "short_factor": short, "long_factor": long}));
    }
    if scaling.is_empty() {
        return match kind {
            Some("longrope") => Err(meta.gguf.lacks("'rope_factors_long.weight' and 'rope_factors_short.weight'")),
            _ => Ok(()),
        };
    }
    if let Some(original) = original {
        scaling.insert("original_max_position_embeddings".into(), original.into());
    }
    if let Some(attention) = attention {
        // llama.cpp multiplies YaRN's own temperature by it.
        let own = if kind == Some("yarn") { 1.0 + 0.1 * factor.unwrap_or(1.0).ln() } else { 1.0 };
        scaling.insert("attention_factor".into(), (attention * own).into());
    }
    config.insert("rope_scaling".into(), Value::Object(scaling));
    Ok(())
}

fn fields(value: Value) -> Config {
    if let Value::Object(fields) = value { fields } else { Config::new() }
}

/// What one architecture has that others do not.
fn own(meta: &Meta<'_>, arch: &Arch, dims: &Dims, config: &mut Config) -> Result<()> {
    let biased = |part: &str| meta.has(&format!("blk.0.{part}.bias"));
    let norm = |part: &str| meta.has(&format!("blk.0.{part}.weight"));
    let own = match arch.name {
        "llama" => json!({"attention_bias": biased("attn_q"), "mlp_bias": biased("ffn_up")}),
        "smollm3" => {
            // `n_no_rope_layer_step` of llama.cpp.
            let rotates: Vec<_> = (1..=dims.layers).map(|layer| usize::from(layer % 4 != 0)).collect();
            json!({"attention_bias": biased("attn_q"), "mlp_bias": biased("ffn_up"),
                "no_rope_layer_interval": 4, "no_rope_layers": rotates})
        }
        "granite" => json!({
            "attention_bias": biased("attn_q"), "mlp_bias": biased("ffn_up"),
            "attention_multiplier": meta.f64("attention.scale")?.unwrap_or(1.0 / (dims.head as f64).sqrt()),
            "embedding_multiplier": meta.f64("embedding_scale")?.unwrap_or(1.0),
            "residual_multiplier": meta.f64("residual_scale")?.unwrap_or(1.0),
            "logits_scaling": meta.f64("logit_scale")?.unwrap_or(1.0),
        }),
        "olmo" => json!({"clip_qkv": meta.f64("attention.clamp_kqv")?, "attention_bias": biased("attn_q")}),
        "olmo2" | "qwen3" => json!({"attention_bias": biased("attn_q")}),
        "gemma" | "gemma2" | "gemma3" => gemma(meta, arch, dims)?,
        "phi2" => json!({"hidden_act": "gelu_new", "qk_layernorm": false}),
        "phi3" => {
            // Zero stands for no window.
            let window = meta.optional("attention.sliding_window")?.filter(|&window| window > 0);
            json!({"sliding_window": window})
        }
        "starcoder2" => json!({"use_bias": biased("attn_q"), "hidden_act": "gelu_pytorch_tanh"}),
        "stablelm" => json!({
            "use_qkv_bias": biased("attn_q"),
            "qk_layernorm": norm("attn_q_norm"),
            "use_parallel_residual": meta.gguf.bool(&meta.key("use_parallel_residual"))?.unwrap_or(!norm("ffn_norm")),
        }),
        "gptneox" => json!({
            "hidden_act": "gelu",
            "attention_bias": biased("attn_qkv"),
            "use_parallel_residual": meta.gguf.bool(&meta.key("use_parallel_residual"))?.unwrap_or(true),
        }),
        "falcon" => {
            let two_norms = norm("attn_norm_2");
            let grouped = dims.key_value != 1 && dims.key_value != dims.heads;
            json!({
                "num_kv_heads": if grouped { dims.key_value } else { dims.heads }, "ffn_hidden_size": config.get("intermediate_size"),
                "multi_query": dims.key_value == 1 || grouped, "new_decoder_architecture": two_norms || grouped,
                "num_ln_in_parallel_attn": if two_norms { Some(2) } else { grouped.then_some(1) },
                "parallel_attn": !norm("ffn_norm"), "alibi": false, "bias": biased("attn_qkv"), "activation": "gelu",
            })
        }
        "gpt2" => json!({
            "n_embd": dims.width, "n_layer": dims.layers, "n_head": dims.heads,
            "n_positions": config.get("max_position_embeddings"), "n_inner": config.get("intermediate_size"),
            "activation_function": "gelu_new",
        }),
        _ => json!({}),
    };
    put(config, own);
    Ok(())
}

fn gemma(meta: &Meta<'_>, arch: &Arch, dims: &Dims) -> Result<Value> {
    let act = "gelu_pytorch_tanh";
    let mut own = fields(json!({"hidden_activation": act, "hidden_act": act, "attention_bias": false}));
    if arch.name == "gemma" {
        return Ok(Value::Object(own));
    }
    // llama.cpp tells the 27B models, whose queries are scaled otherwise, by their number of layers.
    let largest = if arch.name == "gemma2" { 46 } else { 62 };
    let scalar = if dims.layers == largest { dims.width / dims.heads.max(1) } else { dims.head };
    put(
        &mut own,
        json!({"query_pre_attn_scalar": scalar, "sliding_window": meta.usize_or("attention.sliding_window", 4096)?}),
    );
    let (attention, logits) = (meta.f64("attn_logit_softcapping")?, meta.f64("final_logit_softcapping")?);
    if arch.name == "gemma2" {
        put(
            &mut own,
            json!({"attn_logit_softcapping": attention.unwrap_or(50.0), "final_logit_softcapping": logits.unwrap_or(30.0)}),
        );
    } else {
        put(
            &mut own,
            json!({
                "attn_logit_softcapping": attention, "final_logit_softcapping": logits,
                "sliding_window_pattern": meta.usize_or("attention.sliding_window_pattern", 6)?,
                "rope_local_base_freq": meta.f64("rope.freq_base_swa")?.unwrap_or(10_000.0),
            }),
        );
    }
    Ok(Value::Object(own))
}
