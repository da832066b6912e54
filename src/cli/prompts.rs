//! What a command runs the model on: prompts and token lists, from flags and from files.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::base::{DtypeChoice, Error, Result};
use crate::data::tokenizer::{BosPolicy, Tokenizer};
use crate::model::ModelConfig;

/// How a model reads text.
#[derive(Debug, Clone, Copy, clap::Args, serde::Serialize)]
pub(super) struct ReadingArgs {
    /// Do not put the beginning-of-sequence token before the text.
    #[arg(long)]
    no_bos: bool,
    /// Number type of weights and activations: f32, f16 or bf16.
    #[arg(long, default_value_t)]
    pub(super) dtype: DtypeChoice,
}

impl ReadingArgs {
    pub(super) fn bos(self) -> BosPolicy {
        if self.no_bos { BosPolicy::Never } else { BosPolicy::Prepend }
    }
}

/// The flags that give prompts; at least one must be there.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = true)]
pub(super) struct PromptArgs {
    /// Text to run; repeat the flag for several prompts.
    #[arg(long, value_name = "TEXT")]
    prompt: Vec<String>,
    /// Prompts of a file, one a line; in a .jsonl file the field `text` or `prompt` of every line. Repeatable.
    #[arg(long, value_name = "FILE", visible_alias = "prompts")]
    prompt_file: Vec<PathBuf>,
    /// Token ids to run as they are, as in 1,2,3; repeat the flag for several lists.
    #[arg(long, value_name = "IDS")]
    tokens: Vec<TokenList>,
    /// Token lists of a file, one a line, with commas or spaces or as JSON lists. Repeatable.
    #[arg(long, value_name = "FILE")]
    tokens_file: Vec<PathBuf>,
}

/// Token ids, separated by commas or spaces, in brackets or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TokenList(pub(super) Vec<u32>);

impl FromStr for TokenList {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let inner = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
        let words = inner.split(|c: char| c == ',' || c.is_whitespace()).filter(|word| !word.is_empty());
        let ids = words.map(|word| word.parse().map_err(|_| format!("'{word}' is no token id")));
        let ids: Vec<u32> = ids.collect::<Result<_, _>>()?;
        if ids.is_empty() { Err("a list without a token id".into()) } else { Ok(Self(ids)) }
    }
}

/// One sequence to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Prompt {
    /// The text, unless token ids were given.
    pub(super) text: Option<String>,
    pub(super) tokens: Vec<u32>,
}

enum Contents {
    Text(String),
    Tokens(Vec<u32>),
}

/// The prompts as they were given, in the order of the flags in the help, each with the words that name it in errors.
pub(super) struct Given(Vec<(String, Contents)>);

impl PromptArgs {
    /// A single prompt: a text, or token ids.
    pub(super) fn of_one(text: Option<String>, tokens: Option<TokenList>) -> Self {
        let (prompt, tokens) = (text.into_iter().collect(), tokens.into_iter().collect());
        Self { prompt, prompt_file: Vec::new(), tokens, tokens_file: Vec::new() }
    }

    /// The prompts of one file.
    pub(super) fn of_file(path: &Path) -> Self {
        Self { prompt: Vec::new(), prompt_file: vec![path.into()], tokens: Vec::new(), tokens_file: Vec::new() }
    }

    /// Reads the files.
    ///
    /// # Errors
    /// `Io` for a file that cannot be read, `Malformed` for one without prompts or with a line that is none.
    pub(super) fn read(&self) -> Result<Given> {
        let Self { prompt, prompt_file, tokens, tokens_file } = self;
        let mut given = Vec::new();
        given.extend(prompt.iter().map(|text| (format!("the prompt '{}'", start(text)), Contents::Text(text.clone()))));
        for path in prompt_file {
            given.extend(lines_of("prompt file", path, prompt_of(path))?);
        }
        given.extend(tokens.iter().map(|list| ("--tokens".to_owned(), Contents::Tokens(list.0.clone()))));
        for path in tokens_file {
            given
                .extend(lines_of("token file", path, |line| line.parse().map(|TokenList(ids)| Contents::Tokens(ids)))?);
        }
        Ok(Given(given))
    }
}

impl Given {
    /// The texts as they were given; `None` for token lists.
    pub(super) fn texts(&self) -> Vec<Option<String>> {
        let text = |(_, contents): &(String, Contents)| match contents {
            Contents::Text(text) => Some(text.clone()),
            Contents::Tokens(_) => None,
        };
        self.0.iter().map(text).collect()
    }

    /// The same with every text put into another form, such as a chat template.
    ///
    /// # Errors
    /// `Flag` when there are token lists, and whatever `render` gives.
    pub(super) fn rendered(self, render: impl Fn(&str) -> Result<String>) -> Result<Self> {
        let render = |(origin, contents): (String, Contents)| match contents {
            Contents::Text(text) => Ok((origin, Contents::Text(render(&text)?))),
            Contents::Tokens(_) => {
                Err(Error::flag("--tokens", "texts, with --chat", "token ids", "write the message with --prompt"))
            }
        };
        Ok(Self(self.0.into_iter().map(render).collect::<Result<_>>()?))
    }

    /// Token ids for every prompt, checked against the model.
    ///
    /// # Errors
    /// `Flag` for a prompt without tokens, `Mismatch` for one that is too long or has a token outside the vocabulary.
    pub(super) fn encode(self, tokenizer: &Tokenizer, bos: BosPolicy, config: &ModelConfig) -> Result<Vec<Prompt>> {
        let encode = |(origin, contents): (String, Contents)| {
            let (text, tokens) = match contents {
                Contents::Text(text) => {
                    let tokens = tokenizer.encode(&text, bos)?;
                    (Some(text), tokens)
                }
                Contents::Tokens(tokens) => (None, tokens),
            };
            check(&origin, &tokens, config)?;
            Ok(Prompt { text, tokens })
        };
        self.0.into_iter().map(encode).collect()
    }
}

fn check(origin: &str, tokens: &[u32], config: &ModelConfig) -> Result<()> {
    if tokens.is_empty() {
        let found = format!("none in {origin}");
        return Err(Error::flag("--prompt", "at least one token", found, "write some text, or drop --no-bos"));
    }
    if tokens.len() > config.context_length {
        return Err(Error::Mismatch {
            what: "prompt and model",
            left: format!("{} tokens in {origin}", tokens.len()),
            right: format!("a context of {} tokens", config.context_length),
            remedy: "shorten the prompt".into(),
        });
    }
    match tokens.iter().find(|&&token| token as usize >= config.vocab_size) {
        None => Ok(()),
        Some(token) => Err(Error::Mismatch {
            what: "token and model",
            left: format!("token id {token} in {origin}"),
            right: format!("a vocabulary of {}, numbered from 0", config.vocab_size),
            remedy: "use the ids of the tokenizer that belongs to the model".into(),
        }),
    }
}

/// The lines of a file that hold something, each with its place.
fn lines_of(
    what: &'static str,
    path: &Path,
    parse: impl Fn(&str) -> Result<Contents, String>,
) -> Result<Vec<(String, Contents)>> {
    let bytes = std::fs::read(path).map_err(Error::io("read the prompts", path))?;
    let bad = |found: String| {
        let expected =
            if what == "token file" { "a list of token ids on every line" } else { "a prompt on every line" };
        Error::malformed(what, path, expected, found, "correct the line; `--help` says what the file may hold")
    };
    let text = String::from_utf8(bytes).map_err(|_| bad("bytes that are no UTF-8".into()))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let name = path.display();
    let mut found = Vec::new();
    for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let contents = parse(line).map_err(|why| bad(format!("{why} on line {}", i + 1)))?;
        found.push((format!("line {} of {name}", i + 1), contents));
    }
    if found.is_empty() { Err(bad("an empty file".into())) } else { Ok(found) }
}

/// The prompts of a file, as `--prompt-file` takes them.
///
/// # Errors
/// As [`PromptArgs::read`].
pub(super) fn texts(path: &Path) -> Result<Vec<String>> {
    let lines = lines_of("prompt file", path, prompt_of(path))?;
    let text = |contents| match contents {
        Contents::Text(text) => Some(text),
        Contents::Tokens(_) => None,
    };
    Ok(lines.into_iter().filter_map(|(_, contents)| text(contents)).collect())
}

/// How the lines of this file hold prompts: as they are, or as JSON.
fn prompt_of(path: &Path) -> impl Fn(&str) -> Result<Contents, String> {
    let json = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("jsonl"));
    move |line| {
        if !json {
            return Ok(Contents::Text(line.to_owned()));
        }
        let value: serde_json::Value = serde_json::from_str(line).map_err(|e| format!("no JSON ({e})"))?;
        let text =
            value.as_str().or_else(|| ["text", "prompt"].into_iter().find_map(|field| value.get(field)?.as_str()));
        text.map(|text| Contents::Text(text.to_owned())).ok_or_else(|| "no field 'text' or 'prompt'".into())
    }
}

/// Enough of a prompt to know it again.
fn start(text: &str) -> String {
    let mut chars = text.chars();
    let head: String = chars.by_ref().take(40).collect();
    if chars.next().is_some() { head + "…" } else { head }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_lists_are_read_in_every_common_spelling() {
        for text in ["1,2,3", "1 2 3", "[1, 2, 3]", " 1,2 3\t", "[1,2,3,]"] {
            assert_eq!(text.parse(), Ok(TokenList(vec![1, 2, 3])), "{text}");
        }
        for (text, why) in [("1,x", "'x'"), ("-1", "'-1'"), ("", "without"), ("[]", "without"), ("5000000000", "'5000")]
        {
            assert!(text.parse::<TokenList>().unwrap_err().contains(why), "{text}");
        }
    }

    #[test]
    fn lines_of_files_are_prompts_and_empty_lines_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, contents: &str| {
            std::fs::write(dir.path().join(name), contents).unwrap();
            dir.path().join(name)
        };
        let texts = |path: PathBuf| -> Vec<String> {
            let args = PromptArgs { prompt: vec![], prompt_file: vec![path], tokens: vec![], tokens_file: vec![] };
            let given = args.read().unwrap().0.into_iter();
            given.map(|(_, c)| if let Contents::Text(text) = c { text } else { panic!("tokens") }).collect()
        };
        assert_eq!(texts(file("a.txt", "\u{feff}one\r\n\n two \n")), ["one", " two "]);
        assert_eq!(texts(file("a.jsonl", "{\"text\": \"a\\nb\"}\n{\"prompt\": \"c\"}\n\"d\"\n")), ["a\nb", "c", "d"]);
        let args = |path| PromptArgs { prompt: vec![], prompt_file: vec![], tokens: vec![], tokens_file: vec![path] };
        let error = args(file("t.txt", "1 2\n\n3 four\n")).read().err().unwrap().to_string();
        assert!(error.contains("'four' is no token id on line 3") && error.contains("t.txt"), "{error}");
        let error = args(file("e.txt", " \n")).read().err().unwrap().to_string();
        assert!(error.contains("an empty file"), "{error}");
    }
}
