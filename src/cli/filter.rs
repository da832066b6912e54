//! Which positions count, as the commands that learn from activations take it.

use crate::store::filter::FilterSettings;

/// Flags that choose positions.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct FilterArgs {
    /// Also use the first position of every sequence, where models put their attention sink.
    #[arg(long)]
    keep_first_position: bool,
    /// Also use special tokens.
    #[arg(long)]
    keep_special_tokens: bool,
    /// Leave out positions whose norm is above this multiple of the median norm; `off` keeps all.
    #[arg(long, value_name = "X|off", default_value = "10", value_parser = multiple)]
    max_norm_multiple: Multiple,
}

/// A positive number, or none.
#[derive(Debug, Clone, Copy)]
struct Multiple(Option<f32>);

fn multiple(text: &str) -> Result<Multiple, String> {
    if text == "off" {
        return Ok(Multiple(None));
    }
    match text.parse::<f32>() {
        Ok(x) if x.is_finite() && x > 0.0 => Ok(Multiple(Some(x))),
        _ => Err("expected a positive number, or off".into()),
    }
}

impl FilterArgs {
    pub(super) fn settings(&self) -> FilterSettings {
        FilterSettings {
            skip_first: !self.keep_first_position,
            skip_special: !self.keep_special_tokens,
            max_norm_multiple: self.max_norm_multiple.0,
        }
    }
}
