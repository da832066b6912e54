//! Granite: Llama with multipliers on embeddings, scores, residuals and logits (`configuration_granite.py`).

use crate::base::Result;

use super::super::config::{Attention, Embedding, ModelConfig};
use super::{Fields, Names, llama_like};

pub(super) fn parse(fields: &Fields<'_>) -> Result<(ModelConfig, Names)> {
    let base = llama_like::parse(fields, "granite", llama_like::LLAMA)?;
    let config = ModelConfig {
        attention: Attention { scale: fields.f64_or("attention_multiplier", 1.0)?, ..base.attention },
        embedding: Embedding {
            multiplier: fields.f64_or("embedding_multiplier", 1.0)?,
            logit_divisor: fields.f64_or("logits_scaling", 1.0)?,
            ..base.embedding
        },
        residual_multiplier: fields.f64_or("residual_multiplier", 1.0)?,
        ..base
    };
    Ok((config, llama_like::NAMES))
}
