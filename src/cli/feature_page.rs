//! How a feature looks on a terminal.

use crate::analysis::feature::search::Found;
use crate::analysis::feature::{
    CoactiveRecord, ExampleRecord, FeatureRecord, HistogramRecord, IndexFile, NeighbourRecord, Summary, TokenRecord,
};
use crate::base::Result;

use super::render::{BOLD, DIM, GREEN, Table, Ui, paint, quoted, shade, thousands};

/// Columns of the activation histogram.
const COLUMNS: usize = 32;
const BLOCKS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// Examples of each interval that a page shows.
const OF_INTERVAL: usize = 2;
/// Neighbours that a page names.
const NEIGHBOURS: usize = 4;

/// How much of a feature a page shows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shown {
    /// Strongest examples.
    pub(super) examples: usize,
    /// Whether examples of the intervals are shown too.
    pub(super) intervals: bool,
}

/// The first line about a feature, and its labels.
pub(super) fn heading(record: &FeatureRecord, ui: &Ui) -> Result<()> {
    let Summary { index, density, count, mean, max, .. } = record.summary;
    let title = paint(BOLD, format!("feature {index}"));
    let name = record.labels.first().map(|label| format!("  {}", paint(GREEN.bold(), one_line(&label.text))));
    let title = format!("{title}{}", name.unwrap_or_default());
    if count == 0 {
        ui.out(format!("{title}  {}", paint(DIM, "never fires on this text")))?;
    } else {
        ui.out(format!(
            "{title}  fires on {} of positions ({})   mean {mean:.2}   max {max:.2}",
            percent(density),
            thousands(count)
        ))?;
    }
    for label in record.labels.iter().skip(1) {
        let by: Vec<&str> = label.method.iter().chain(&label.model).map(String::as_str).collect();
        ui.out(format!("  {} {}", one_line(&label.text), paint(DIM, by.join(", "))))?;
    }
    Ok(())
}

/// One feature: figures, histogram, what it writes, where it fires.
pub(super) fn page(record: &FeatureRecord, index: &IndexFile, shown: Shown, ui: &Ui) -> Result<()> {
    heading(record, ui)?;
    let max = record.summary.max;
    let field = |name: &str, text: String| ui.out(format!("  {}  {text}", paint(DIM, format!("{name:<12}"))));
    if record.summary.count > 0 {
        let Summary { std, skewness, kurtosis, .. } = record.summary;
        let moments = paint(DIM, format!("std {std:.2}  skewness {skewness:.1}  kurtosis {kurtosis:.1}"));
        field("activations", format!("0 {} {max:.1}  {moments}", bars(&record.histogram, max)))?;
    }
    for (name, list) in [("promotes", &record.promoted), ("suppresses", &record.suppressed)] {
        if let Some(list) = list {
            field(name, tokens(list))?;
        }
    }
    // The order through the norm is news only where it is another.
    if let (Some(raw), Some(normed)) = (&record.promoted, &record.promoted_through_norm)
        && raw.iter().map(|t| t.effect.token).ne(normed.iter().map(|t| t.effect.token))
    {
        field("through norm", tokens(normed))?;
    }
    if !record.nearest.is_empty() {
        let near = |n: &NeighbourRecord| named(index, n.feature, &format!("{:.2}", n.cosine));
        field("writes like", record.nearest.iter().take(NEIGHBOURS).map(near).collect::<Vec<_>>().join("  "))?;
    }
    if !record.coactive.is_empty() {
        let with = |c: &CoactiveRecord| named(index, c.feature, &percent(f64::from(c.jaccard)));
        field("fires with", record.coactive.iter().take(NEIGHBOURS).map(with).collect::<Vec<_>>().join("  "))?;
    }
    if let (Some(neurons), Some(point)) = (&record.neurons, &index.header.neurons_of) {
        let neuron = |n: &crate::analysis::feature::NeuronRecord| {
            format!("{} {}", n.neuron, paint(DIM, format!("{:+.2}", n.cosine)))
        };
        let list: Vec<String> = neurons.iter().take(NEIGHBOURS).map(neuron).collect();
        field("leans on", format!("{}  {}", list.join("  "), paint(DIM, format!("neurons of {point}"))))?;
    }
    for example in record.examples.iter().take(shown.examples) {
        ui.out(line(example, max))?;
    }
    for interval in record.intervals.iter().filter(|i| shown.intervals && !i.examples.is_empty()) {
        let bounds = format!("{:.2} to {:.2}: {} of its firings", interval.from, interval.to, percent(interval.share));
        ui.out(format!("  {}", paint(DIM, bounds)))?;
        for example in interval.examples.iter().take(OF_INTERVAL) {
            ui.out(line(example, max))?;
        }
    }
    ui.out("")
}

/// A feature that a search found: what it is, and the example that matches best.
pub(super) fn hit(found: &Found, record: &FeatureRecord, ui: &Ui) -> Result<()> {
    heading(record, ui)?;
    let mut why = Vec::new();
    if found.label > 0.0 {
        why.push("label".to_owned());
    }
    if found.matches > 0 {
        why.push(format!("{} examples", found.matches));
    }
    if found.promoted > 0.0 {
        why.push("promoted tokens".to_owned());
    }
    let promotes = record.promoted.as_deref().map(|list| tokens(&list[..list.len().min(5)])).unwrap_or_default();
    ui.out(format!("  {}  {promotes}", paint(DIM, format!("score {:.2} by {}", found.score, why.join(", ")))))?;
    let best = found.best_example.unwrap_or_default();
    let others = (0..record.examples.len()).filter(|&i| i != best);
    for example in [best].into_iter().chain(others).take(2).filter_map(|i| record.examples.get(i)) {
        ui.out(line(example, record.summary.max))?;
    }
    ui.out("")
}

fn named(index: &IndexFile, feature: u32, figure: &str) -> String {
    let name = index.labels.name(feature).map(|name| format!(" {}", paint(GREEN, one_line(name)))).unwrap_or_default();
    format!("{feature}{name} {}", paint(DIM, figure))
}

/// The distinct tokens at the peaks of the strongest examples, `n` at most.
pub(super) fn peaks(record: &FeatureRecord, n: usize) -> Vec<String> {
    let mut peaks: Vec<String> = Vec::new();
    for example in &record.examples {
        if let Some(peak) = example.tokens.get(example.peak)
            && !peaks.contains(peak)
            && peaks.len() < n
        {
            peaks.push(peak.clone());
        }
    }
    peaks
}

/// All features at a glance: how many live, how often they fire, and the first of those chosen.
pub(super) fn overview(index: &IndexFile, chosen: &[u32], ui: &Ui) -> Result<()> {
    let summaries = index.summaries();
    let live: Vec<&Summary> = summaries.iter().filter(|s| s.count > 0).collect();
    let labelled = index.labels.features().len();
    let labels = if labelled > 0 { format!(", {} with a label", thousands(labelled as u64)) } else { String::new() };
    ui.out(format!(
        "{} features, {} live, {} never fire on this text{labels}",
        thousands(summaries.len() as u64),
        thousands(live.len() as u64),
        thousands((summaries.len() - live.len()) as u64)
    ))?;
    let mut table = Table::new(&[">fires on", ">features", ""]);
    let bounds = [1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-5, 0.0];
    for pair in bounds.windows(2) {
        let n = live.iter().filter(|s| s.density <= pair[0] && s.density > pair[1]).count();
        let width = (n * 40).div_ceil(live.len().max(1));
        let label =
            if pair[1] == 0.0 { format!("≤ {}", percent(pair[0])) } else { format!("> {}", percent(pair[1])) };
        table.row(vec![label, thousands(n as u64), "█".repeat(width)]);
    }
    ui.out(format!("{table}\n"))?;
    let mut table = Table::new(&[">feature", ">fires on", ">mean", ">max", "strongest on"]);
    for &feature in chosen.iter().take(24) {
        let found = index.record(feature)?;
        let Summary { density, mean, max, .. } = found.summary;
        let name = found.labels.first().map(|label| format!("{} ", paint(GREEN, one_line(&label.text))));
        let peaks: Vec<String> = peaks(&found, 5).iter().map(|peak| quoted(peak)).collect();
        table.row(vec![
            feature.to_string(),
            percent(density),
            format!("{mean:.2}"),
            format!("{max:.2}"),
            format!("{}{}", name.unwrap_or_default(), peaks.join(" ")),
        ]);
    }
    ui.out(table)?;
    ui.out(paint(
        DIM,
        "--feature ID shows one; --search WORDS finds some; --random 5 draws some; --sort density --limit 10 ranks; \
         --out keeps all",
    ))
}

/// One example on one line, tokens shaded by their activation, the strongest activation before it.
fn line(example: &ExampleRecord, max: f32) -> String {
    format!("  {} {}", paint(DIM, format!("{:>7.2}", example.value)), shaded(&example.tokens, &example.values, max))
}

/// Tokens shaded by their activations.
pub(super) fn shaded(tokens: &[String], values: &[f32], max: f32) -> String {
    tokens.iter().zip(values).map(|(token, value)| shade(&one_line(token), value / max)).collect()
}

/// A token without line breaks, which would tear the page.
pub(super) fn one_line(token: &str) -> String {
    token.replace('\n', "↵").replace('\t', "⇥").replace('\r', "").chars().filter(|c| !c.is_control()).collect()
}

fn tokens(list: &[TokenRecord]) -> String {
    list.iter()
        .map(|t| format!("{} {}", quoted(&t.text), paint(DIM, format!("{:+.2}", t.effect.logit))))
        .collect::<Vec<_>>()
        .join("  ")
}

/// The histogram squeezed into a fixed number of columns, the tallest full.
fn bars(histogram: &HistogramRecord, max: f32) -> String {
    let mut columns = [0u64; COLUMNS];
    for (bin, count) in histogram.counts.iter().enumerate() {
        let centre = (bin as f64 + 0.5) * histogram.bin_width;
        let column = (centre / f64::from(max.abs()) * COLUMNS as f64) as usize;
        columns[column.min(COLUMNS - 1)] += count;
    }
    let tallest = columns.iter().copied().max().unwrap_or(0).max(1);
    // Counts fall off fast, so height is logarithmic: the tail is what tells features apart.
    let height = |n: u64| if n == 0 { 0 } else { 1 + ((n as f64).ln() / (tallest as f64 + 1.0).ln() * 7.0) as usize };
    columns.iter().map(|&n| BLOCKS[height(n).min(8)]).collect()
}

pub(super) fn percent(share: f64) -> String {
    let percent = share * 100.0;
    let digits = match percent {
        p if p >= 1.0 => 1,
        p if p >= 0.01 || p == 0.0 => 2,
        _ => 4,
    };
    format!("{percent:.digits$} %")
}
