//! Llama 1 to 3 and everything saved as `LlamaForCausalLM`, such as SmolLM2.

use crate::base::Result;

use super::super::config::ModelConfig;
use super::{Fields, Names, llama_like};

pub(super) fn parse(fields: &Fields<'_>) -> Result<(ModelConfig, Names)> {
    Ok((llama_like::parse(fields, "llama", llama_like::LLAMA)?, llama_like::NAMES))
}
