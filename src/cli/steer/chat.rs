//! Prompts as messages of a conversation, and the tokens that end an answer.

use serde_json::Value;

use crate::base::Result;
use crate::base::artifact::read_json;
use crate::cli::open::Opened;
use crate::data::{ChatTemplate, Message, ModelFiles};

use super::args::ChatArgs;

/// A chat template with what stands before the user's message.
pub(in crate::cli) struct Conversation {
    template: ChatTemplate,
    system: Option<String>,
}

/// The conversation that the flags ask for.
///
/// # Errors
/// As [`ChatTemplate::of`].
pub(in crate::cli) fn template(args: &ChatArgs, files: &ModelFiles) -> Result<Option<Conversation>> {
    if !args.chat {
        return Ok(None);
    }
    Ok(Some(Conversation { template: ChatTemplate::of(files)?, system: args.system.clone() }))
}

impl Conversation {
    /// The text of a conversation in which a user says `text`.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub(in crate::cli) fn render(&self, text: &str) -> Result<String> {
        let system = self.system.iter().map(|text| Message::new("system", text));
        let messages: Vec<Message> = system.chain([Message::new("user", text)]).collect();
        self.template.render(&messages)
    }
}

/// The tokens that end a text: those of `config.json`, those of `generation_config.json`, which in instruction-tuned
/// models has the end of a turn, and the tokenizer's.
///
/// # Errors
/// `Malformed` when `generation_config.json` is no JSON.
pub(super) fn stop_tokens(files: &ModelFiles, opened: &Opened) -> Result<Vec<u32>> {
    let mut tokens = opened.model.config().eos_token_ids.clone();
    if let Some(path) = &files.generation_config {
        let config: Value = read_json("generation configuration", path)?;
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        match config.get("eos_token_id") {
            Some(Value::Array(ids)) => tokens.extend(ids.iter().filter_map(id)),
            Some(one) => tokens.extend(id(one)),
            None => {}
        }
    }
    tokens.extend(opened.tokenizer.eos_id());
    tokens.sort_unstable();
    tokens.dedup();
    Ok(tokens)
}
