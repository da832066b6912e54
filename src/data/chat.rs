//! Chat templates: messages to the text that an instruction-tuned model was trained on.
//!
//! A template is a Jinja program in `chat_template.jinja`, in `tokenizer_config.json`, or in the metadata of a GGUF
//! file. It runs in an environment like transformers' (`apply_chat_template` of `utils/chat_template_utils.py`): blocks
//! trimmed, loop controls, Python's methods on texts and maps, `raise_exception`, `strftime_now`, and `tojson` without
//! escapes for HTML.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind, context};
use serde::Serialize;
use serde_json::Value;

use super::gguf::{Gguf, is_gguf};
use super::hub::ModelFiles;
use crate::base::artifact::read_json;
use crate::base::{Error, Result};

/// The file that holds a template alone.
pub(super) const CHAT_TEMPLATE: &str = "chat_template.jinja";
/// The template of a file that has several.
const DEFAULT: &str = "default";

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Message {
    /// "system", "user" or "assistant".
    pub role: String,
    /// The text.
    pub content: String,
}

impl Message {
    /// A turn of `role`.
    pub fn new(role: &str, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// A model's chat template.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatTemplate {
    source: String,
    /// The file it was found in.
    path: PathBuf,
    /// Special tokens by the names that templates use: `bos_token`.
    tokens: BTreeMap<String, String>,
}

impl ChatTemplate {
    /// The template of a model.
    ///
    /// # Errors
    /// `Missing` when the model has none, `Malformed` when its configuration is no JSON, `Io`.
    pub fn of(files: &ModelFiles) -> Result<Self> {
        let mut tokens = BTreeMap::new();
        if is_gguf(&files.tokenizer) {
            let file = Gguf::open(&files.tokenizer)?;
            let source = file.text("tokenizer.chat_template")?.map(str::to_owned);
            let pieces = file.texts("tokenizer.ggml.tokens")?.unwrap_or_default();
            for name in ["bos", "eos"] {
                let id = file.usize(&format!("tokenizer.ggml.{name}_token_id"))?;
                let piece = id.and_then(|id| pieces.get(id));
                tokens.extend(piece.map(|piece| (format!("{name}_token"), (*piece).to_owned())));
            }
            return Self::new(source, &files.tokenizer, tokens);
        }
        let config: Value = match &files.tokenizer_config {
            Some(path) => read_json("tokenizer configuration", path)?,
            None => Value::Null,
        };
        for (key, value) in config.as_object().into_iter().flatten().filter(|(key, _)| key.ends_with("_token")) {
            let token = value.as_str().or_else(|| value.get("content")?.as_str());
            tokens.extend(token.map(|token| (key.clone(), token.to_owned())));
        }
        let beside = files.tokenizer.with_file_name(CHAT_TEMPLATE);
        if beside.is_file() {
            let source = std::fs::read_to_string(&beside).map_err(Error::io("read the chat template", &beside))?;
            return Self::new(Some(source), &beside, tokens);
        }
        let path = files.tokenizer_config.as_deref().unwrap_or(&files.tokenizer);
        Self::new(template_in(&config), path, tokens)
    }

    fn new(source: Option<String>, path: &Path, tokens: BTreeMap<String, String>) -> Result<Self> {
        let source = source.ok_or_else(|| Error::Missing {
            what: "chat template",
            path: path.into(),
            expected: format!("'chat_template' there, or {CHAT_TEMPLATE} beside it"),
            remedy: "leave out --chat, or use an instruction-tuned model".into(),
        })?;
        Ok(Self { source: plain_blocks(&source), path: path.into(), tokens })
    }

    /// `messages` as the model was trained to read them, ending where the assistant's answer begins.
    ///
    /// # Errors
    /// `Unsupported` when the template refuses the conversation (as some do a system message), `Malformed` when it
    /// cannot be run.
    pub fn render(&self, messages: &[Message]) -> Result<String> {
        let mut environment = environment();
        for (name, token) in &self.tokens {
            environment.add_global(name.clone(), token.clone());
        }
        let context = context! { messages => Serde(messages), add_generation_prompt => true };
        environment.render_str(&self.source, context).map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &minijinja::Error) -> Error {
        let why = error.detail().map_or_else(|| error.to_string(), str::to_owned);
        if error.kind() == ErrorKind::InvalidOperation && why.starts_with(REFUSED) {
            return Error::Unsupported {
                what: "this conversation".into(),
                why: format!("the chat template says: {}", why.trim_start_matches(REFUSED)),
                remedy: "leave out --system, or --chat".into(),
            };
        }
        let line = error.line().map(|line| format!(" on line {line}")).unwrap_or_default();
        let expected = "a Jinja template as transformers runs it";
        Error::malformed("chat template", &self.path, expected, format!("{why}{line}"), "leave out --chat")
    }
}

/// Tells what a template itself refuses from what goes wrong in it.
const REFUSED: &str = "refused: ";

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    if let Ok(syntax) = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build() {
        environment.set_syntax(syntax);
    }
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", |why: String| -> Result<String, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, format!("{REFUSED}{why}")))
    });
    environment.add_function("strftime_now", |format: String| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs());
        strftime(&format, now)
    });
    environment.add_filter("tojson", |value: minijinja::Value| -> Result<String, minijinja::Error> {
        let bad = |e: serde_json::Error| minijinja::Error::new(ErrorKind::BadSerialization, e.to_string());
        Ok(python_json(&serde_json::to_value(&value).map_err(bad)?))
    });
    environment
}

/// The template in `tokenizer_config.json`: a text, or several with names.
fn template_in(config: &Value) -> Option<String> {
    let template = config.get("chat_template")?;
    if let Some(text) = template.as_str() {
        return Some(text.to_owned());
    }
    let named = template.as_array()?;
    let of = |entry: &Value| entry.get("template").and_then(Value::as_str).map(str::to_owned);
    let default = named.iter().find(|entry| entry.get("name").and_then(Value::as_str) == Some(DEFAULT));
    of(default.or(named.first())?)
}

/// `{% generation %}` blocks, which mark the assistant's tokens for training and print their body, as blocks that
/// every Jinja knows.
fn plain_blocks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, tag)) = rest.split_once("{%") {
        out.push_str(before);
        out.push_str("{%");
        let Some((body, after)) = tag.split_once("%}") else {
            out.push_str(tag);
            return out;
        };
        match body.trim_matches(|c: char| c == '-' || c == '+' || c.is_whitespace()) {
            "generation" => out.push_str(&body.replace("generation", "if true")),
            "endgeneration" => out.push_str(&body.replace("endgeneration", "endif")),
            _ => out.push_str(body),
        }
        out.push_str("%}");
        rest = after;
    }
    out + rest
}

/// JSON as Python's `json.dumps(…, ensure_ascii=False)` writes it.
fn python_json(value: &Value) -> String {
    match value {
        Value::Array(items) => format!("[{}]", items.iter().map(python_json).collect::<Vec<_>>().join(", ")),
        Value::Object(map) => {
            let pair =
                |(key, value): (&String, &Value)| format!("{}: {}", Value::String(key.clone()), python_json(value));
            format!("{{{}}}", map.iter().map(pair).collect::<Vec<_>>().join(", "))
        }
        scalar => scalar.to_string(),
    }
}

/// `format` for the moment `seconds` after 1970 began, in UTC: day, month, year, hour, minute, second.
fn strftime(format: &str, seconds: u64) -> String {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    let (year, month, day) = civil(seconds / 86_400);
    let name = MONTHS.get(month as usize - 1).copied().unwrap_or_default();
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    [
        ("%d", format!("{day:02}")),
        ("%m", format!("{month:02}")),
        ("%Y", year.to_string()),
        ("%B", name.to_owned()),
        ("%b", name.chars().take(3).collect()),
        ("%H", format!("{hour:02}")),
        ("%M", format!("{minute:02}")),
        ("%S", format!("{second:02}")),
    ]
    .iter()
    .fold(format.to_owned(), |text, (code, value)| text.replace(code, value))
}

/// Year, month and day of the `days`-th day after 1970 began (Hinnant, "chrono-Compatible Low-Level Date Algorithms").
fn civil(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(dir: &Path) -> ModelFiles {
        ModelFiles {
            dir_or_name: "m".into(),
            config: dir.join("config.json"),
            tokenizer: dir.join("tokenizer.json"),
            tokenizer_config: Some(dir.join("tokenizer_config.json")),
            generation_config: None,
            weights: Vec::new(),
        }
    }

    fn template(source: &str) -> ChatTemplate {
        let tokens = [("bos_token".to_owned(), "<s>".to_owned())].into();
        ChatTemplate::new(Some(source.into()), Path::new("t.jinja"), tokens).unwrap()
    }

    fn said() -> [Message; 2] {
        [Message::new("system", "Be brief."), Message::new("user", " Hello ")]
    }

    #[test]
    fn chatml_is_rendered_as_transformers_does() {
        let smollm = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ \
            '<|im_start|>system\nYou are helpful<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + \
            message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ \
            '<|im_start|>assistant\n' }}{% endif %}";
        let expected = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n Hello <|im_end|>\n\
            <|im_start|>assistant\n";
        assert_eq!(template(smollm).render(&said()).unwrap(), expected);
        let alone = template(smollm).render(&said()[1..]).unwrap();
        assert!(alone.starts_with("<|im_start|>system\nYou are helpful<|im_end|>\n<|im_start|>user\n Hello "));
    }

    #[test]
    fn blocks_are_trimmed_methods_are_pythons_and_loops_can_end_early() {
        let source = "{{ bos_token }}\n  {%- for m in messages %}\n  {% if m.role == 'system' %}{% continue %}{% endif %}\n  \
            {% generation %}\n[{{ m['content'].strip() | upper }}|{{ m | tojson }}]\n  {% endgeneration %}\n{% endfor %}\n";
        let text = template(source).render(&said()).unwrap();
        assert_eq!(text, "<s>[HELLO|{\"role\": \"user\", \"content\": \" Hello \"}]\n");
    }

    #[test]
    fn what_a_template_refuses_is_its_own_words_and_what_is_wrong_names_the_line() {
        let refusing =
            "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}";
        let error = template(refusing).render(&said()).unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }));
        assert!(error.to_string().contains("System role not supported"), "{error}");
        assert_eq!(template(refusing).render(&said()[1..]).unwrap(), "");
        let broken = template("a\n{% for %}").render(&said()).unwrap_err().to_string();
        assert!(broken.contains("line 2") && broken.contains("t.jinja"), "{broken}");
    }

    #[test]
    fn a_file_beside_the_configuration_wins_and_a_model_without_either_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("tokenizer_config.json");
        let of = || ChatTemplate::of(&files(dir.path()));
        std::fs::write(&config, r#"{"eos_token": "</s>"}"#).unwrap();
        let error = of().unwrap_err().to_string();
        assert!(error.contains("chat template not found") && error.contains("--chat"), "{error}");
        let several =
            r#"{"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]}"#;
        std::fs::write(&config, several).unwrap();
        assert_eq!(of().unwrap().render(&said()).unwrap(), "d");
        std::fs::write(&config, r#"{"bos_token": {"content": "<s>"}, "chat_template": "{{ bos_token }}x"}"#).unwrap();
        assert_eq!(of().unwrap().render(&said()).unwrap(), "<s>x");
        std::fs::write(dir.path().join(CHAT_TEMPLATE), "file").unwrap();
        assert_eq!(of().unwrap().render(&said()).unwrap(), "file");
    }

    #[test]
    fn dates_are_the_calendars() {
        assert_eq!(strftime("%d %b %Y, %H:%M:%S", 1_722_038_399), "26 Jul 2024, 23:59:59");
        assert_eq!(strftime("%d %B %Y", 951_782_400), "29 February 2000");
        assert_eq!(strftime("%Y-%m-%d", 0), "1970-01-01");
    }
}
