//! What sets a model apart from a plain decoder, in words.

use crate::model::ModelConfig;
use crate::model::config::{
    Attention, BlockLayout, Embedding, Experts, Mlp, Norm, Position, QkNormScope, RopeScaling, Rotary,
};

use super::render::thousands;

/// Label and value of everything that a pre-norm decoder with full attention would not have to say. Fields are taken
/// apart by name, so that one that is added cannot be forgotten here.
pub(super) fn peculiarities(config: &ModelConfig) -> Vec<(&'static str, String)> {
    let ModelConfig {
        family: _,
        d_model,
        n_layers: _,
        n_heads: _,
        n_key_value_heads: _,
        d_head,
        vocab_size: _,
        context_length: _,
        norm: _,
        layout,
        final_norm,
        position,
        windows,
        attention,
        mlp,
        embedding,
        residual_multiplier,
        bos_token_id: _,
        eos_token_ids: _,
    } = config;
    let mut found: Vec<(&'static str, String)> = Vec::new();
    found.extend(block(*layout).map(|text| ("block", text.to_owned())));
    if is_factor(*residual_multiplier) {
        found.push(("residual", format!("what attention and MLP add is multiplied by {residual_multiplier}")));
    }
    if !final_norm {
        found.push(("final norm", "none".into()));
    }
    found.extend(window(windows).map(|text| ("window", text)));
    found.extend(rotations(position, *d_head).into_iter().map(|text| ("rotation", text)));
    found.extend(scores(attention, *d_head).map(|text| ("scores", text)));
    if let Some(norm) = attention.qk_norm {
        let scope = match norm.scope {
            QkNormScope::Head => "of each head",
            QkNormScope::OwnHead => "of each head, with parameters of its own",
            QkNormScope::Projection => "of all heads together",
        };
        found.push(("qk-norm", format!("{} {scope}", norm_name(norm.norm))));
    }
    if let Some(Experts { count: _, active: _, normalise, shared_width }) = mlp.experts {
        let sum = if normalise { "weights of the chosen sum to one" } else { "weights as the router gives them" };
        let shared = shared_width.map(|width| format!(", and one {width} wide for every position"));
        found.push(("experts", format!("{sum}{}", shared.unwrap_or_default())));
    }
    found.extend(biases(attention, mlp, embedding).map(|text| ("biases", text)));
    found.extend(ends(embedding, *d_model));
    found
}

/// Whether multiplying by `x` changes anything.
fn is_factor(x: f64) -> bool {
    (x - 1.0).abs() > f64::EPSILON
}

fn block(layout: BlockLayout) -> Option<&'static str> {
    match layout {
        BlockLayout::PreNorm => None,
        BlockLayout::PreAndPostNorm => Some("norms before and after attention and MLP"),
        BlockLayout::OutputNorm => Some("norms after attention and MLP, none before"),
        BlockLayout::StreamNorm => Some("norms of the residual stream after attention and MLP"),
        BlockLayout::Parallel => Some("attention and MLP in parallel, each with its norm"),
        BlockLayout::ParallelSharedNorm => Some("attention and MLP in parallel behind one norm"),
    }
}

/// The norm as `info` calls it.
pub(super) fn norm_name(norm: Norm) -> &'static str {
    match norm {
        Norm::LayerNorm { .. } => "LayerNorm",
        Norm::LayerNormWithoutBias { .. } => "LayerNorm without bias",
        Norm::LayerNormWithoutGain { .. } => "LayerNorm without gain and bias",
        Norm::Rms { .. } => "RMSNorm",
        Norm::RmsOnePlus { .. } => "RMSNorm with gain 1 + weight",
    }
}

fn window(windows: &[Option<usize>]) -> Option<String> {
    let mut sizes: Vec<usize> = windows.iter().flatten().copied().collect();
    sizes.sort_unstable();
    sizes.dedup();
    let texts = sizes.iter().map(|&size| {
        let layers: Vec<usize> = (0..windows.len()).filter(|&layer| windows[layer] == Some(size)).collect();
        format!("{} positions in {}", thousands(size as u64), layers_text(&layers, windows.len()))
    });
    (!sizes.is_empty()).then(|| texts.collect::<Vec<_>>().join("; "))
}

/// How the model knows where a token stands, as far as one phrase says it.
pub(super) fn position_name(position: &Position, d_head: usize) -> String {
    match position {
        Position::Learned { .. } => "learned".into(),
        Position::Alibi => "alibi".into(),
        Position::Rotary { rotations, .. } => match rotations.as_slice() {
            [only] => format!("rotary, {}", rotation(only, d_head)),
            _ => "rotary".into(),
        },
    }
}

/// Rotations by layer, where layers differ.
fn rotations(position: &Position, d_head: usize) -> Vec<String> {
    let Position::Rotary { rotations, layers } = position else { return Vec::new() };
    let mut texts = Vec::new();
    for (i, rotary) in rotations.iter().enumerate().filter(|_| rotations.len() > 1) {
        let own: Vec<usize> = (0..layers.len()).filter(|&layer| layers[layer] == Some(i)).collect();
        texts.push(format!("{} in {}", rotation(rotary, d_head), layers_text(&own, layers.len())));
    }
    let without: Vec<usize> = (0..layers.len()).filter(|&layer| layers[layer].is_none()).collect();
    if !without.is_empty() {
        texts.push(format!("none in {}", layers_text(&without, layers.len())));
    }
    texts
}

fn rotation(rotary: &Rotary, d_head: usize) -> String {
    let Rotary { dims, theta, scaling } = rotary;
    let part = if *dims == d_head { String::new() } else { format!(", {dims} of a head's {d_head} values") };
    let stretched = match scaling {
        RopeScaling::None => String::new(),
        RopeScaling::Linear { factor } => format!(", linear scaling by {factor}"),
        RopeScaling::Dynamic { factor, .. } => format!(", dynamic scaling by {factor}"),
        RopeScaling::Llama3 { factor, original_max_position_embeddings: trained, .. } => {
            format!(", llama3 scaling by {factor} from {}", thousands(*trained as u64))
        }
        RopeScaling::Yarn { factor, original_max_position_embeddings: trained, .. } => {
            format!(", yarn scaling by {factor} from {}", thousands(*trained as u64))
        }
        RopeScaling::Longrope { original_max_position_embeddings: trained, .. } => {
            format!(", longrope from {}", thousands(*trained as u64))
        }
    };
    format!("theta {}{part}{stretched}", thousands(theta.round() as u64))
}

fn scores(attention: &Attention, d_head: usize) -> Option<String> {
    let Attention { scale, scale_by_inverse_layer, soft_cap, clip_qkv, qk_norm: _, qkv_bias: _, out_bias: _ } =
        attention;
    let usual = 1.0 / (d_head as f64).sqrt();
    let mut texts = Vec::new();
    if (scale / usual - 1.0).abs() > 1e-6 {
        texts.push(format!("multiplied by {scale:.6} in place of {usual:.6}"));
    }
    if *scale_by_inverse_layer {
        texts.push("divided by the number of the layer".into());
    }
    texts.extend(soft_cap.map(|cap| format!("soft cap {cap}")));
    texts.extend(clip_qkv.map(|limit| format!("queries, keys and values clipped to ±{limit}")));
    (!texts.is_empty()).then(|| texts.join(", "))
}

fn biases(attention: &Attention, mlp: &Mlp, embedding: &Embedding) -> Option<String> {
    let all = [
        ("queries, keys, values", attention.qkv_bias),
        ("attention output", attention.out_bias),
        ("MLP", mlp.bias),
        ("head", embedding.head_bias),
    ];
    let with: Vec<&str> = all.iter().filter(|(_, has)| *has).map(|(name, _)| *name).collect();
    (!with.is_empty()).then(|| with.join("; "))
}

/// What happens between tokens and the first block, and after the last.
fn ends(embedding: &Embedding, d_model: usize) -> Vec<(&'static str, String)> {
    let Embedding { width, multiplier, head_bias: _, logit_divisor, logit_soft_cap } = embedding;
    let mut found = Vec::new();
    if *width != d_model {
        found.push(("embedding", format!("{width} wide, projected to {d_model} and back")));
    }
    if is_factor(*multiplier) {
        found.push(("embedding", format!("multiplied by {}", (multiplier * 1e4).round() / 1e4)));
    }
    if is_factor(*logit_divisor) {
        found.push(("logits", format!("divided by {logit_divisor}")));
    }
    found.extend(logit_soft_cap.map(|cap| ("logits", format!("soft cap {cap}"))));
    found
}

/// `all layers`, or the numbers with runs as `2–5`; a long list ends in how many there are.
pub(super) fn layers_text(layers: &[usize], n_layers: usize) -> String {
    const SHOWN: usize = 6;
    if layers.len() == n_layers {
        return "all layers".into();
    }
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for &layer in layers {
        match runs.last_mut() {
            Some((_, end)) if *end + 1 == layer => *end = layer,
            _ => runs.push((layer, layer)),
        }
    }
    let texts = runs.iter().take(SHOWN).map(|&(start, end)| match end - start {
        0 => start.to_string(),
        _ => format!("{start}–{end}"),
    });
    let list = texts.collect::<Vec<_>>().join(", ");
    let noun = if layers.len() == 1 { "layer" } else { "layers" };
    let more = if runs.len() > SHOWN { format!(", … ({} of {n_layers})", layers.len()) } else { String::new() };
    format!("{noun} {list}{more}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::family;

    fn of(json: serde_json::Value) -> String {
        let (config, _) = family::parse(&json, std::path::Path::new("config.json")).unwrap();
        let lines: Vec<String> =
            peculiarities(&config).iter().map(|(label, value)| format!("{label}: {value}\n")).collect();
        lines.concat()
    }

    #[test]
    fn layers_are_listed_in_runs() {
        assert_eq!(layers_text(&[0, 1, 2], 3), "all layers");
        assert_eq!(layers_text(&[4], 8), "layer 4");
        assert_eq!(layers_text(&[0, 1, 2, 4, 6, 7], 9), "layers 0–2, 4, 6–7");
        let even: Vec<usize> = (0..26).step_by(2).collect();
        assert_eq!(layers_text(&even, 26), "layers 0, 2, 4, 6, 8, 10, … (13 of 26)");
    }

    #[test]
    fn what_gemma_2_does_differently_is_said_and_a_llama_has_little_to_say() {
        let golden = |name: &str| {
            let path = format!("{}/tests/golden/models/{name}/config.json", env!("CARGO_MANIFEST_DIR"));
            of(serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap())
        };
        let gemma = golden("gemma2");
        for needle in
            ["norms before and after", "window: ", "scores: ", "soft cap", "logits: soft cap", "embedding: multiplied"]
        {
            assert!(gemma.contains(needle), "{needle} is not in\n{gemma}");
        }
        assert!(golden("gpt_neox").contains("in parallel"));
        assert!(golden("qwen3").contains("qk-norm: RMSNorm of each head"));
        let llama = golden("llama");
        assert!(llama.lines().all(|line| line.starts_with("biases")), "{llama}");
        assert!(golden("gemma3_text").matches("rotation: theta").count() == 2, "local and global layers");
    }
}
