//! How a feature looks on a terminal.

use crate::analysis::feature::record::{ExampleRecord, FeatureRecord, HistogramRecord, TokenRecord};
use crate::analysis::feature::stats::Summary;
use crate::base::Result;

use super::render::{BOLD, DIM, Table, Ui, paint, quoted, shade, thousands};

/// Columns of the activation histogram.
const COLUMNS: usize = 32;
const BLOCKS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// One feature: figures, histogram, what it writes, where it fires.
pub(super) fn page(record: &FeatureRecord, examples: usize, ui: &Ui) -> Result<()> {
    let Summary { index, density, count, mean, max, .. } = record.summary;
    let title = paint(BOLD, format!("feature {index}"));
    if count == 0 {
        return ui.out(format!("{title}  {}\n", paint(DIM, "never fires on this text")));
    }
    ui.out(format!(
        "{title}  fires on {} of positions ({})   mean {mean:.2}   max {max:.2}",
        percent(density),
        thousands(count)
    ))?;
    let bars = bars(&record.histogram, max);
    ui.out(format!("  {}  {}", paint(DIM, "activations"), format_args!("0 {bars} {max:.1}")))?;
    for (label, list) in [("promotes   ", &record.promoted), ("suppresses ", &record.suppressed)] {
        if let Some(list) = list {
            ui.out(format!("  {}  {}", paint(DIM, label), tokens(list)))?;
        }
    }
    for example in record.examples.iter().take(examples) {
        ui.out(line(example, max))?;
    }
    ui.out("")
}

/// All features at a glance: how many live, how often they fire, and the busiest.
pub(super) fn overview(
    summaries: &[Summary],
    chosen: &[u32],
    record: impl Fn(u32) -> Result<Option<FeatureRecord>>,
    ui: &Ui,
) -> Result<()> {
    let live: Vec<&Summary> = summaries.iter().filter(|s| s.count > 0).collect();
    ui.out(format!(
        "{} features, {} live, {} never fire on this text",
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
    let shown = chosen.iter().filter(|&&f| summaries.get(f as usize).is_some_and(|s| s.count > 0)).take(24);
    for &feature in shown {
        let Some(found) = record(feature)? else { continue };
        let Summary { density, mean, max, .. } = found.summary;
        let mut peaks: Vec<String> = Vec::new();
        for example in &found.examples {
            let peak = quoted(&example.tokens[example.peak]);
            if !peaks.contains(&peak) && peaks.len() < 5 {
                peaks.push(peak);
            }
        }
        table.row(vec![
            feature.to_string(),
            percent(density),
            format!("{mean:.2}"),
            format!("{max:.2}"),
            peaks.join(" "),
        ]);
    }
    ui.out(table)?;
    ui.out(paint(
        DIM,
        "--feature ID shows one; --random 5 draws some; --sort density --limit 10 ranks; --out keeps all",
    ))
}

/// One example on one line, tokens shaded by their activation, the strongest activation before it.
fn line(example: &ExampleRecord, max: f32) -> String {
    let text: String =
        example.tokens.iter().zip(&example.values).map(|(token, value)| shade(&one_line(token), value / max)).collect();
    format!("  {} {text}", paint(DIM, format!("{:>7.2}", example.value)))
}

/// A token without line breaks, which would tear the page.
fn one_line(token: &str) -> String {
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
        let column = (centre / f64::from(max) * COLUMNS as f64) as usize;
        columns[column.min(COLUMNS - 1)] += count;
    }
    let tallest = columns.iter().copied().max().unwrap_or(0).max(1);
    // Counts fall off fast, so height is logarithmic: the tail is what tells features apart.
    let height = |n: u64| if n == 0 { 0 } else { 1 + ((n as f64).ln() / (tallest as f64 + 1.0).ln() * 7.0) as usize };
    columns.iter().map(|&n| BLOCKS[height(n).min(8)]).collect()
}

fn percent(share: f64) -> String {
    let percent = share * 100.0;
    let digits = match percent {
        p if p >= 1.0 => 1,
        p if p >= 0.01 || p == 0.0 => 2,
        _ => 4,
    };
    format!("{percent:.digits$} %")
}
