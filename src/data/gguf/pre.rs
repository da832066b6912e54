//! How byte-level tokenizers cut text before merging, by the name that llama.cpp gives it (`tokenizer.ggml.pre`,
//! `get_vocab_base_pre` of `convert_hf_to_gguf.py`). The pieces are those of the `tokenizer.json` that the name stands
//! for, which llama.cpp spells with patterns of its own.

use serde_json::{Value, json};

use crate::base::Error;
use crate::base::nearest::nearest;

use super::Gguf;

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT_4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const FALCON: [&str; 3] = [
    r"[\p{P}\$\+<=>\^~\|`]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    "[0-9][0-9][0-9]",
];
const DEEPSEEK_V3: [&str; 3] = [
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
];
const DEEPSEEK_CODER: [&str; 5] = ["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}"];

/// What a name of a pre-tokenizer stands for.
pub(super) struct Pre {
    /// The `pre_tokenizer` of a `tokenizer.json`.
    pub(super) json: Value,
    /// Whether text is brought to Unicode's composed form first.
    pub(super) composes: bool,
    /// Whether a word that is a token is never merged from its parts.
    pub(super) ignore_merges: bool,
    /// Whether the beginning-of-sequence token is added where the file does not say.
    pub(super) adds_bos: bool,
}

enum Cut {
    /// GPT-2's pattern, which the byte-level step brings along.
    Gpt2,
    /// Every digit by itself, then GPT-2's pattern.
    Digits,
    /// Each pattern in turn on what those before it left.
    Patterns(&'static [&'static str]),
}

const NAMES: [(&str, Cut); 20] = [
    ("gpt-2", Cut::Gpt2),
    ("phi-2", Cut::Gpt2),
    ("olmo", Cut::Gpt2),
    ("smollm", Cut::Digits),
    ("starcoder", Cut::Digits),
    ("refact", Cut::Digits),
    ("minerva-7b", Cut::Digits),
    ("falcon", Cut::Patterns(&FALCON)),
    ("llama-bpe", Cut::Patterns(&[LLAMA3])),
    ("llama3", Cut::Patterns(&[LLAMA3])),
    ("llama-v3", Cut::Patterns(&[LLAMA3])),
    ("smaug-bpe", Cut::Patterns(&[LLAMA3])),
    ("dbrx", Cut::Patterns(&[LLAMA3])),
    ("qwen2", Cut::Patterns(&[QWEN2])),
    ("deepseek-r1-qwen", Cut::Patterns(&[QWEN2])),
    ("stablelm2", Cut::Patterns(&[QWEN2])),
    ("tekken", Cut::Patterns(&[TEKKEN])),
    ("gpt-4o", Cut::Patterns(&[GPT_4O])),
    ("deepseek-v3", Cut::Patterns(&DEEPSEEK_V3)),
    ("deepseek-coder", Cut::Patterns(&DEEPSEEK_CODER)),
];

impl Pre {
    /// The pre-tokenizer that `gguf` names.
    ///
    /// # Errors
    /// `Unsupported` when it names none, `Unknown` when it names one that is not known: cutting text in another way
    /// would give other tokens.
    pub(super) fn of(gguf: &Gguf) -> crate::base::Result<Self> {
        let name = gguf.text("tokenizer.ggml.pre")?.unwrap_or_default();
        // `default` is what converters wrote before they told pre-tokenizers apart.
        if matches!(name, "" | "default") {
            return Err(Error::Unsupported {
                what: format!("the tokenizer in {}", gguf.path().display()),
                why: "the file does not say how text is cut into words ('tokenizer.ggml.pre'), as old files do not"
                    .into(),
                remedy: "take a newer conversion of the model, or its Hugging Face directory".into(),
            });
        }
        let Some((_, cut)) = NAMES.iter().find(|(known, _)| *known == name) else {
            return Err(Error::Unknown {
                kind: "pre-tokenizer in the GGUF file ('tokenizer.ggml.pre')",
                found: name.to_owned(),
                nearest: nearest(name, NAMES.iter().map(|(known, _)| *known), 5),
            });
        };
        let llama3 = matches!(name, "llama-bpe" | "llama3" | "llama-v3");
        Ok(Self {
            json: cut.json(),
            composes: matches!(name, "qwen2" | "deepseek-r1-qwen" | "stablelm2" | "olmo"),
            ignore_merges: llama3 || name == "tekken",
            adds_bos: llama3 || name == "tekken",
        })
    }
}

impl Cut {
    fn json(&self) -> Value {
        let level = |use_regex| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
        let split = |pattern: &str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
        let steps = match self {
            Self::Gpt2 => vec![level(true)],
            Self::Digits => vec![json!({"type": "Digits", "individual_digits": true}), level(true)],
            Self::Patterns(patterns) => patterns.iter().map(|&p| split(p)).chain([level(false)]).collect(),
        };
        json!({"type": "Sequence", "pretokenizers": steps})
    }
}
