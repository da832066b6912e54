//! What an attribution takes in memory, said before it starts.

use crate::base::{Error, Result};
use crate::model::ModelConfig;

use super::context::Context;
use super::types::GraphSettings;

/// Buffers of a batch's gradients that are alive at once.
const BUFFERS: usize = 4;
/// What the way back keeps of a block for each position: values of the stream's width, of the MLP's, and patterns.
const TAPE_WIDTHS: usize = 16;
const TAPE_MLPS: usize = 5;
const TAPE_PATTERNS: usize = 5;

/// Bytes that a process can still take, where the system says.
fn available() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.split_whitespace().next()?.parse::<usize>().ok()?.checked_mul(1024)
}

/// Bytes of what is held for a prompt of `s` tokens: attention patterns, the values at each layer's hooks, a batch.
pub(super) fn of_prompt(config: &ModelConfig, s: usize, batch: usize) -> usize {
    let floats = |factors: &[usize]| factors.iter().fold(size_of::<f32>(), |n, factor| n.saturating_mul(*factor));
    let patterns = floats(&[2, config.n_layers, config.n_heads, s, s]);
    let streams = floats(&[6, config.n_layers, s, config.d_model]);
    let width = config.d_model.max(config.n_heads * config.d_head);
    let rows = floats(&[BUFFERS, batch, s, width]);
    let logits = floats(&[2, s, config.vocab_size]);
    patterns.saturating_add(streams).saturating_add(rows).saturating_add(logits)
}

/// Bytes that differentiating `copies` of a prompt of `s` tokens through `blocks` blocks keeps.
fn of_gradients(config: &ModelConfig, s: usize, copies: usize, blocks: usize) -> usize {
    let d_mlp = config.mlp.d_mlp;
    let values = TAPE_WIDTHS * config.d_model + TAPE_MLPS * d_mlp + TAPE_PATTERNS * config.n_heads * s;
    [copies, s, blocks, values].iter().fold(size_of::<f32>(), |n, factor| n.saturating_mul(*factor))
}

/// Refuses gradients before they are computed.
///
/// # Errors
/// `Flag` with the estimate.
pub(super) fn check_gradients(config: &ModelConfig, s: usize, copies: usize, blocks: usize) -> Result<()> {
    fits(of_gradients(config, s, copies, blocks), available(), "--prompt", || {
        format!("gradients of {copies} copies of {s} tokens through {blocks} blocks")
    })
}

/// Bytes of the rows of `n` features and of `targets`, at most.
fn of_rows(context: &Context, n: usize, targets: usize) -> usize {
    let columns = &context.columns;
    let mut lengths: Vec<usize> = context.features.iter().map(|f| columns.len(f.layer, f.position)).collect();
    if n < lengths.len() {
        let longest = lengths.len() - n;
        lengths.select_nth_unstable(longest);
        lengths.drain(..longest);
    }
    let targets = targets.saturating_mul(columns.len(columns.n_layers, columns.positions - 1));
    lengths.iter().fold(targets, |sum, n| sum.saturating_add(*n)).saturating_mul(size_of::<f32>())
}

/// Refuses a prompt before it is run.
///
/// # Errors
/// `Flag` with the estimate.
pub fn check_prompt(config: &ModelConfig, s: usize, batch: usize) -> Result<()> {
    fits(of_prompt(config, s, batch), available(), "--prompt", || {
        format!("{s} tokens in a model of {} layers and {} heads", config.n_layers, config.n_heads)
    })
}

/// Refuses the rows of a graph before the first is computed.
///
/// # Errors
/// `Flag` with the estimate.
pub(super) fn check_rows(context: &Context, settings: &GraphSettings, targets: usize) -> Result<()> {
    let n = settings.max_feature_nodes.min(context.features.len());
    fits(of_rows(context, n, targets), available(), "--max-feature-nodes", || {
        format!("rows of {n} features, of {} that are active", context.features.len())
    })
}

fn fits(needed: usize, available: Option<usize>, flag: &'static str, what: impl Fn() -> String) -> Result<()> {
    let reserved = Vec::<u8>::new().try_reserve_exact(needed).is_ok();
    let available = available.unwrap_or(if reserved { usize::MAX } else { 0 });
    if needed <= available && reserved {
        return Ok(());
    }
    let gigabytes = |bytes: usize| format!("{:.1} GB", bytes as f64 / 1e9);
    let free = if available == 0 { "more than there is".into() } else { format!("{} are free", gigabytes(available)) };
    Err(Error::flag(
        flag,
        "a graph that fits into memory",
        format!("{}, which take about {}; {free}", what(), gigabytes(needed)),
        "shorten the prompt, or ask for fewer rows with --max-feature-nodes or --batch-size",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_refused_with_the_estimate() {
        let what = || "9 tokens".to_owned();
        fits(1 << 20, Some(1 << 21), "--prompt", what).unwrap();
        let error = fits(3_000_000_000, Some(2_000_000_000), "--prompt", what).unwrap_err().to_string();
        assert!(error.contains("9 tokens") && error.contains("3.0 GB") && error.contains("2.0 GB"), "{error}");
        let model = crate::analysis::tests::open("llama");
        check_gradients(model.config(), 9, 16, 2).unwrap();
        let error = check_gradients(model.config(), 1 << 20, 16, 2).unwrap_err().to_string();
        assert!(error.contains("16 copies of 1048576 tokens through 2 blocks"), "{error}");
        let error = check_prompt(model.config(), 1 << 30, 256).unwrap_err().to_string();
        assert!(error.contains("1073741824 tokens"), "{error}");
    }
}
