//! Direct logit attribution on a terminal and as heatmaps.

use crate::analysis::lens::{Attribution, Component, Part};
use crate::base::Result;
use crate::web::heatmap::{Cell, Heatmap, Scale};

use super::super::heatmap::bar;
use super::super::render::{BOLD, DIM, GREEN, RED, Table, Ui, paint, quoted};
use super::Report;

/// Columns of the widest bar.
const BAR: usize = 24;

/// What is taken apart: "logit of “Paris”" or the difference of two.
pub(super) fn subject(report: &Report) -> String {
    let token = report.target.as_ref().map(|token| quoted(&token.token)).unwrap_or_default();
    match &report.against {
        Some(against) => format!("logit of {token} less that of {}", quoted(&against.token)),
        None => format!("logit of {token}"),
    }
}

/// A component's name.
pub(super) fn name(component: Component) -> String {
    match component {
        Component::Embedding => "embedding".into(),
        Component::PositionEmbedding => "position".into(),
        Component::Head { layer, head } => format!("{layer}.{head}"),
        Component::AttentionBias { layer } => format!("{layer} attention biases"),
        Component::Mlp { layer } => format!("{layer} MLP"),
        Component::NormBias { layer } => format!("{layer} norm biases"),
        Component::Unembedding => "biases of norm and head".into(),
    }
}

/// The heads, largest contribution first.
pub(super) fn heads(attribution: &Attribution) -> Vec<Part> {
    let is_head = |part: &&Part| matches!(part.component, Component::Head { .. });
    let mut heads: Vec<Part> = attribution.parts.iter().filter(is_head).copied().collect();
    heads.sort_by(|a, b| b.value.abs().total_cmp(&a.value.abs()));
    heads
}

/// The parts outside the blocks.
pub(super) fn outside(attribution: &Attribution) -> impl Iterator<Item = &Part> {
    attribution.parts.iter().filter(|part| part.component.layer().is_none())
}

/// A line that says how the sum compares.
pub(super) fn check(attribution: &Attribution) -> String {
    let Attribution { logit, sum, discrepancy, capped, .. } = attribution;
    let capped = capped.map(|capped| format!("; {capped:.4} after the soft cap")).unwrap_or_default();
    format!("sum of all parts {sum:.4}, the model computed {logit:.4}, remainder {discrepancy:.1e}{capped}")
}

pub(super) fn print(report: &Report, found: &Attribution, n: usize, n_layers: usize, ui: &Ui) -> Result<()> {
    let token = report.pieces.get(found.position).map(|piece| quoted(piece)).unwrap_or_default();
    ui.out(format!(
        "{}  {}",
        paint(BOLD, format!("{} = {:.4}", subject(report), found.logit)),
        paint(DIM, format!("after position {} {token}, divisors of norms frozen", found.position))
    ))?;
    by_layer(found, n_layers, ui)?;
    let heads = heads(found);
    if !heads.is_empty() && n > 0 {
        ui.out("")?;
        let mut table = Table::new(&["head", ">adds", ""]);
        let largest = heads[0].value.abs();
        for part in heads.iter().take(n) {
            table.row(vec![name(part.component), signed(part.value), coloured(part.value, largest)]);
        }
        ui.out(table)?;
    }
    if let Some(features) = &found.features {
        ui.out(format!("\n{}", paint(DIM, format!("by features at {}", features.point))))?;
        let rest = [("bias", features.bias), ("error", features.error), ("elsewhere", features.elsewhere)];
        let all = features.parts.iter().map(|part| part.value).chain(rest.map(|(_, value)| value));
        let largest = all.fold(0f64, |m, v| m.max(v.abs()));
        let mut table = Table::new(&["feature", ">activation", ">adds", ""]);
        for part in features.parts.iter().take(n) {
            let activation = format!("{:.3}", part.activation);
            table.row(vec![part.feature.to_string(), activation, signed(part.value), coloured(part.value, largest)]);
        }
        if features.parts.len() > n {
            let other: f64 = features.parts.iter().skip(n).map(|part| part.value).sum();
            let label = format!("{} others", features.parts.len() - n);
            table.row(vec![label, String::new(), signed(other), coloured(other, largest)]);
        }
        for (label, value) in rest {
            table.row(vec![paint(DIM, label), String::new(), signed(value), coloured(value, largest)]);
        }
        ui.out(table)?;
    }
    ui.out(format!("\n{}", paint(DIM, check(found))))
}

fn by_layer(found: &Attribution, n_layers: usize, ui: &Ui) -> Result<()> {
    let mut table = Table::new(&["layer", ">attention", ">MLP", ">adds", ">so far", ""]);
    let layers = layer_sums(found, n_layers);
    let outside_values = outside(found).map(|part| part.value);
    let largest = layers.iter().map(|(a, m)| a + m).chain(outside_values).fold(0f64, |m, v| m.max(v.abs()));
    let mut so_far = 0.0;
    let mut row = |label: String, parts: Option<(f64, f64)>, value: f64| {
        so_far += value;
        let (attention, mlp) = parts.map_or((String::new(), String::new()), |(a, m)| (signed(a), signed(m)));
        table.row(vec![label, attention, mlp, signed(value), signed(so_far), coloured(value, largest)]);
    };
    let ends = |part: &&Part| part.component == Component::Unembedding;
    for part in outside(found).filter(|part| !ends(part)) {
        row(name(part.component), None, part.value);
    }
    for (layer, (attention, mlp)) in layers.into_iter().enumerate() {
        row(layer.to_string(), Some((attention, mlp)), attention + mlp);
    }
    for part in outside(found).filter(ends) {
        row(name(part.component), None, part.value);
    }
    ui.out(table)
}

/// Attention's and the MLP's contribution of every layer; biases of norms on the stream count with the MLP.
fn layer_sums(found: &Attribution, n_layers: usize) -> Vec<(f64, f64)> {
    let of = |layer: usize, attention: bool| {
        found.total(|component| component.layer() == Some(layer) && component.is_attention() == attention)
    };
    (0..n_layers).map(|layer| (of(layer, true), of(layer, false))).collect()
}

fn signed(value: f64) -> String {
    format!("{value:+.3}")
}

fn coloured(value: f64, largest: f64) -> String {
    let share = if largest > 0.0 { value / largest } else { 0.0 };
    paint(if value < 0.0 { RED } else { GREEN }, bar(share, BAR))
}

/// Layers by attention and MLP, and layers by heads.
pub(super) fn heatmaps(report: &Report, found: &Attribution, n_layers: usize, n_heads: usize) -> [Heatmap; 2] {
    let layers = layer_sums(found, n_layers);
    let cell = |value: f64, what: String| Cell {
        value: Some(value),
        // Zero has no sign.
        text: if value.abs() < 0.005 { "0.00".into() } else { format!("{value:+.2}") },
        details: format!("{what}\n{value:+.5} of {:.5}", found.logit),
    };
    let both = layers.iter().flat_map(|&(attention, mlp)| [attention, mlp]);
    let by_layer = Heatmap {
        title: "by layer".into(),
        meaning: format!("what each adds to the {}", subject(report)),
        x: String::new(),
        y: "layer".into(),
        columns: ["attention", "MLP"].map(|name| (name.to_owned(), String::new())).to_vec(),
        rows: (0..n_layers).map(|layer| layer.to_string()).collect(),
        cells: layers
            .iter()
            .enumerate()
            .map(|(layer, &(attention, mlp))| {
                vec![cell(attention, format!("attention of layer {layer}")), cell(mlp, format!("MLP of layer {layer}"))]
            })
            .collect(),
        scale: Scale::around_zero(both),
    };
    let head_value = |layer, head| found.total(|component| component == Component::Head { layer, head });
    let values = (0..n_layers).flat_map(|layer| (0..n_heads).map(move |head| (layer, head)));
    let by_head = Heatmap {
        title: "by head".into(),
        meaning: format!("what each head adds to the {}", subject(report)),
        x: "head".into(),
        y: "layer".into(),
        columns: (0..n_heads).map(|head| (head.to_string(), String::new())).collect(),
        rows: (0..n_layers).map(|layer| layer.to_string()).collect(),
        cells: (0..n_layers)
            .map(|layer| {
                (0..n_heads).map(|head| cell(head_value(layer, head), format!("head {layer}.{head}"))).collect()
            })
            .collect(),
        scale: Scale::around_zero(values.map(|(layer, head)| head_value(layer, head))),
    };
    [by_layer, by_head]
}
