//! Whether two references name one model. References are written in many ways: a hub id, a directory, a GGUF file, a
//! short name of TransformerLens.

/// Parts of names by which a model is recognised as a published one.
const FAMILIES: &[&str] = &[
    "gpt2",
    "gpt-2",
    "gpt-neo",
    "gpt-j",
    "gptj",
    "gpt-oss",
    "pythia",
    "opt-",
    "bloom",
    "llama",
    "gemma",
    "mistral",
    "mixtral",
    "qwen",
    "smollm",
    "phi-",
    "phi1",
    "phi2",
    "phi3",
    "olmo",
    "falcon",
    "stablelm",
    "starcoder",
    "deepseek",
    "tinystories",
    "granite",
    "yi-",
];
/// Short names of TransformerLens for other ones of the hub.
const ALIASES: &[(&str, &str)] = &[
    ("gpt2-small", "gpt2"),
    ("mistral-7b", "mistral-7b-v0.1"),
    ("mistral-7b-instruct", "mistral-7b-instruct-v0.1"),
    ("gpt-j-6b", "gpt-j-6b"),
    ("llama-2-7b", "llama-2-7b-hf"),
    ("llama-2-7b-chat", "llama-2-7b-chat-hf"),
];

/// Whether two references name one model; `None` when they differ and one of them is no published name, so that it says
/// nothing.
pub(super) fn compare_models(a: &str, b: &str) -> Option<bool> {
    let (a, b) = (model_name(a), model_name(b));
    let published = |name: &str| name == "demo" || FAMILIES.iter().any(|family| name.contains(family));
    if a == b { Some(true) } else { (published(&a) && published(&b)).then_some(false) }
}

/// The model's own name in a hub id, a directory, a hub cache directory or a GGUF file: lower case, without owner,
/// revision and number type.
fn model_name(reference: &str) -> String {
    let parts: Vec<&str> = reference.split(['/', '\\']).filter(|part| !part.is_empty() && *part != ".").collect();
    let cached = parts.iter().find_map(|part| part.strip_prefix("models--")?.rsplit("--").next());
    let name = cached.or(parts.last().copied()).unwrap_or_default();
    let name = name.split('@').next().unwrap_or_default().to_lowercase().replace('_', "-");
    let name = name.strip_suffix(".gguf").map_or(name.as_str(), without_number_type);
    let name = name.strip_prefix("meta-").unwrap_or(name);
    ALIASES.iter().find(|(short, _)| *short == name).map_or(name, |(_, full)| full).to_owned()
}

/// `smollm2-135m-instruct-q4-k-m` without its last parts.
fn without_number_type(name: &str) -> &str {
    let is_type = |part: &str| {
        let digits = part.trim_start_matches("iq").trim_start_matches('q');
        (part.starts_with(['q', 'i']) && digits.starts_with(|c: char| c.is_ascii_digit()))
            || matches!(part, "f16" | "bf16" | "f32")
    };
    let mut end = name.len();
    for (at, _) in name.match_indices(['-', '.']) {
        if is_type(name[at + 1..].split(['-', '.']).next().unwrap_or_default()) {
            end = at;
            break;
        }
    }
    &name[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_one_model_are_recognised_and_others_told_apart() {
        let same = [
            ("gpt2-small", "openai-community/gpt2"),
            ("google/gemma-2-2b", "gemma-2-2b"),
            ("pythia-70m", "EleutherAI/pythia-70m@step1000"),
            ("HuggingFaceTB/SmolLM2-135M-Instruct", "./models/smollm2-135m-instruct/"),
            ("smollm2-135m-instruct", "/data/SmolLM2-135M-Instruct-Q4_K_M.gguf"),
            ("meta-llama/Meta-Llama-3-8B", "llama-3-8b"),
            ("gpt2", "/cache/hub/models--openai-community--gpt2/snapshots/0123abcd"),
            ("my-model", "somewhere/my-model"),
            ("demo", "demo"),
        ];
        for (a, b) in same {
            assert_eq!(compare_models(a, b), Some(true), "{a} {b}");
        }
        let other = [
            ("gpt2", "gpt2-medium"),
            ("pythia-70m", "pythia-70m-deduped"),
            ("gemma-2-2b", "gemma-2b"),
            ("gpt2", "demo"),
        ];
        for (a, b) in other {
            assert_eq!(compare_models(a, b), Some(false), "{a} {b}");
        }
        assert_eq!(compare_models("gpt2", "./checkpoint-500"), None);
        assert_eq!(compare_models("my-model", "gpt2"), None);
    }
}
